"""Many ranks compute what one process computes: DDP and FSDP2 on two CPU processes connected by gloo.

Tolerance: losses agree to 1e-5, weights to 2e-5 where a step has the size 1e-3 - sums in another order, and nothing else, in float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_worker import ADAPTERS, MEASURED
from safetensors.torch import load_file
from test_fit import AT_ZERO, DUELS, llama, metrics, plain_opponent, plan_of, run_fit, settings
from zygote import Zygote, environments_of_ranks

from sparring.policy import ranks as communication
from sparring.policy.batches import assign_to_ranks, micro_batches_of_ranks
from sparring.policy.load import load_model, merge
from sparring.policy.score import plain_logps
from sparring.training.checkpoint import latest_checkpoint
from sparring.training.opponent_pass import read_logps
from sparring.training.tasks import SpinTask

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
LOSSES, WEIGHTS = 1e-5, 2e-5
NUMBERS = ("loss", "margin", "reward_real", "reward_generated", "real_logp", "generated_logp", "grad_norm", "accuracy", "lr")
STRATEGIES = ["ddp", "fsdp2"]
# What `accelerate launch` sets from the config file of `make gpu-check`
ALONE = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
ALONE["FSDP_RESHARD_AFTER_FORWARD"] = "true"


class Ranks:
    """The reference of one process, and what two ranks of a strategy have found."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote = folder, zygote
        self.start = llama(folder / "start", 0)
        self.opponent = plain_opponent(llama(folder / "other", 1))
        (folder / "opponent.json").write_text(json.dumps(self.opponent))
        self.done: dict[str, dict[str, Any]] = {}
        for name, more in (("adamw", {"optimizer": "adamw", "weight_decay": 0.1}), ("rmsprop", {})):
            self.fit(folder / "one" / name, batch_size=5, **more)
        self.fit(folder / "one" / "single", items=2, batch_size=1)
        self.fit(folder / "one" / "tied", items=10, start=llama(folder / "tied", 2, tie_word_embeddings=True), batch_size=5)
        for name, lora in ADAPTERS.items():
            self.fit(folder / "one" / name, batch_size=5, optimizer="adamw", lora=lora)

    def fit(self, stage: Path, items: int = len(DUELS), start: Path | None = None, **changes: Any) -> None:
        section = settings(**changes)
        duels = DUELS[:items]
        epochs = 1.0 if items < len(DUELS) else 2.0
        task = SpinTask(duels, self.opponent, 0.3, "logistic")
        run_fit(stage, start or self.start, task, plan_of(section, items, epochs=epochs), section).save(stage / "model")

    def found(self, strategy: str) -> dict[str, Any]:
        """Launch the ranks once per strategy; they find the checkpoint of one process in `resumed`."""
        if strategy not in self.done:
            prepared = self.folder / strategy / "resumed"
            shutil.copytree(self.folder / "one" / "adamw", prepared, ignore=shutil.ignore_patterns("model"))
            self.launch(strategy)
            self.done[strategy] = json.loads((self.folder / strategy / "found.json").read_text())
        return self.done[strategy]

    def launch(self, strategy: str) -> None:
        arguments = ["rank_worker.py", strategy, str(self.folder)]
        code = f"import sys\nsys.path.insert(0, {str(HERE)!r})\nsys.argv = {arguments}\nimport rank_worker\nrank_worker.run()"
        environments = environments_of_ranks(1 if strategy == "alone" else 2)
        more = ALONE if strategy == "alone" else {}
        started = [self.zygote.start([], self.folder, python=code, environment={**names, **more}) for names in environments]
        for result in [one.wait() for one in started]:
            assert result.code == 0, result.err


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Ranks:
    return Ranks(tmp_path_factory.mktemp("ranks"), zygote)


def assert_close(found: Path, expected: Path, weights: str = "model.safetensors") -> None:
    for row, other in zip(metrics(found), metrics(expected), strict=True):
        for name in NUMBERS:
            assert row[name] == pytest.approx(other[name], rel=LOSSES, abs=LOSSES), (name, row["step"])
        assert row["tokens"] == other["tokens"], "every duel once"
    ours, theirs = (load_file(stage / "model" / weights) for stage in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == torch.float32
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=WEIGHTS, msg=lambda text, name=name: f"{name}: {text}")


def products_ignore_places() -> bool:
    """Whether this processor rounds a product alike wherever its operands lie in memory: Intel's do, AMD's do not for a single row."""
    torch.manual_seed(0)
    row, weight, room = torch.randn(1, 64), torch.randn(64, 64), torch.empty(64 * 64 + 16)
    moved = (room[place : place + weight.numel()].view(64, 64).copy_(weight) for place in range(16))
    return all(torch.equal(torch.nn.functional.linear(row, one), torch.nn.functional.linear(row, weight)) for one in moved)


def assert_zero(margins: list[float]) -> None:
    """Exactly, where the processor allows it; ranks hold their weights elsewhere while they score than while they train."""
    assert len(margins) >= 15
    assert set(margins) == {0.0} if products_ignore_places() else max(map(abs, margins)) <= 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_adapters_on_two_ranks(strategy: str, name: str, ranks: Ranks) -> None:
    ranks.found(strategy)
    assert_close(ranks.folder / strategy / name, ranks.folder / "one" / name, "adapter_model.safetensors")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_players_measured_by_two_ranks(strategy: str, ranks: Ranks) -> None:
    """13 trees, each once: of the start as it is, too where adapters are trained, of tied weights and of every kind of adapter."""
    for name, (one, two) in ranks.found(strategy)["measured"].items():
        assert one == two, "every rank knows all of them"
        player = ranks.folder / strategy / name / "model" if name in ADAPTERS else ranks.folder / ("tied" if name == "tied" else "start")
        model = load_model(player)
        for found, tree in zip(one, MEASURED, strict=True):
            assert found == pytest.approx(plain_logps(model, tree).tolist(), rel=LOSSES), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_are_one_process(strategy: str, ranks: Ranks) -> None:
    found = ranks.found(strategy)
    assert "FSDP" in found["distributed_type"] or strategy == "ddp"
    for optimizer in ("adamw", "rmsprop"):
        assert_close(ranks.folder / strategy / optimizer, ranks.folder / "one" / optimizer)
        one, two = found[optimizer]
        assert one == two, "ranks hold equal parameters"
    moved = load_file(ranks.folder / strategy / "adamw" / "model" / "model.safetensors")
    start = load_model(ranks.start).state_dict()
    assert all((moved[name] - start[name]).abs().max() > 100 * WEIGHTS for name in moved), "far more than the tolerance"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_opponent_is_base_and_adapter(strategy: str, ranks: Ranks, tmp_path: Path) -> None:
    """At later iterations the opponent carries an adapter: log-probs against those of the merged model's own."""
    found = ranks.found(strategy)
    assert_zero(found["margins_lora_fp32"])
    assert max(map(abs, found["margins_lora_bf16"])) <= 1e-3
    merge(ranks.folder / strategy / "lora" / "model", tmp_path / "merged")
    merged, base = plain_opponent(tmp_path / "merged"), plain_opponent(ranks.start)
    scored = read_logps(ranks.folder / strategy / "lora_fp32" / "score")
    assert scored.keys() == merged.keys()
    assert all(scored[name] == pytest.approx(merged[name], rel=LOSSES) for name in merged)
    assert max(abs(scored[name][0] - base[name][0]) for name in base) > 0.01


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_embeddings_and_head_as_one_matrix(strategy: str, ranks: Ranks) -> None:
    ranks.found(strategy)
    assert_close(ranks.folder / strategy / "tied", ranks.folder / "one" / "tied")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_that_samples_is_whole_on_every_rank(strategy: str, ranks: Ranks) -> None:
    weights = load_model(ranks.start).parameters()
    assert ranks.found(strategy)["everything"] == [float(sum(p.detach().double().sum() for p in weights))] * 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rank_0_alone_reads_what_will_be_dealt_out(strategy: str, ranks: Ranks) -> None:
    found = ranks.found(strategy)
    one, two = found["loads"]
    assert two == 0 and (one >= 6 or strategy == "ddp")
    assert found["loaded_on"] == ["cpu", "meta"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_of_a_sharded_model_holds_its_part_only(strategy: str, ranks: Ranks) -> None:
    all_of_it = load_model(ranks.start).num_parameters()
    shares = [held / all_of_it for held in ranks.found(strategy)["held"]]
    assert shares == pytest.approx([0.5, 0.5] if strategy == "fsdp2" else [1, 1], abs=0.01)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_recomputed_layers_change_nothing(strategy: str, ranks: Ranks) -> None:
    ranks.found(strategy)
    assert_close(ranks.folder / strategy / "recomputed", ranks.folder / "one" / "adamw")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_of_one_process_goes_on_with_two_ranks(strategy: str, ranks: Ranks) -> None:
    ranks.found(strategy)
    assert latest_checkpoint(ranks.folder / "one" / "adamw")[0] == 4, "two of the six steps are done by the ranks"
    assert_close(ranks.folder / strategy / "resumed", ranks.folder / "one" / "adamw")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_checkpoint_of_two_ranks_goes_on_in_one_process(strategy: str, ranks: Ranks, tmp_path: Path) -> None:
    ranks.found(strategy)
    shutil.copytree(ranks.folder / strategy / "adamw", tmp_path / "adamw", ignore=shutil.ignore_patterns("model"))
    ranks.fit(tmp_path / "adamw", batch_size=5, optimizer="adamw", weight_decay=0.1)
    assert_close(tmp_path / "adamw", ranks.folder / "one" / "adamw")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_first_pass_has_margin_exactly_0(strategy: str, ranks: Ranks) -> None:
    found = ranks.found(strategy)
    assert_zero(found["margins_fp32"])
    first = metrics(ranks.folder / strategy / "bf16" / "train")[0]
    assert first["loss"] == pytest.approx(AT_ZERO["logistic"], abs=1e-6)
    assert max(map(abs, found["margins_bf16"])) <= 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fewer_items_than_ranks(strategy: str, ranks: Ranks) -> None:
    ranks.found(strategy)
    assert_close(ranks.folder / strategy / "single", ranks.folder / "one" / "single")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loss_that_is_not_finite_stops_all_ranks_alike(strategy: str, ranks: Ranks) -> None:
    one, two = ranks.found(strategy)["not_finite"]
    assert one == two and "not finite at step 0" in one and "row3" in one and one.startswith("AgreedError")


def test_one_rank_under_fsdp2_is_one_process(ranks: Ranks) -> None:
    """As on one GPU. It resumes from the checkpoint of one process, too."""
    shutil.copytree(ranks.folder / "one" / "adamw", ranks.folder / "alone" / "adamw", ignore=shutil.ignore_patterns("model"))
    ranks.launch("alone")
    assert_close(ranks.folder / "alone" / "adamw", ranks.folder / "one" / "adamw")
    found = json.loads((ranks.folder / "alone" / "found.json").read_text())
    assert found["kinds"] == ["DTensor"]
    assert_zero(found["fp32"])
    assert max(map(abs, found["bf16"])) <= 1e-3


def test_buckets_hold_every_number_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(communication, "BUCKET", 7)
    tensors = [torch.arange(12.0).view(3, 4), torch.zeros(0), torch.tensor(12.0), torch.arange(13.0, 17.0)]
    buckets = list(communication._buckets(tensors))
    assert [[len(part) for part in parts] for parts in buckets] == [[7], [5, 1, 1], [3]]
    assert torch.equal(torch.cat([part for parts in buckets for part in parts]), torch.arange(17.0))
    for parts in buckets:
        for part in parts:
            part.neg_()
    assert tensors[0][2, 3] == -11 and tensors[2] == -12, "views, which are written to"


# --- how work is dealt


def test_work_is_balanced_by_tokens_and_nothing_is_lost() -> None:
    draw = torch.Generator().manual_seed(0)
    for ranks in (1, 2, 3, 8):
        sizes = torch.randint(10, 2000, (65,), generator=draw).tolist()
        shares = assign_to_ranks(sizes, ranks)
        assert sorted(place for share in shares for place in share) == list(range(65)), "none dropped, none twice"
        loads = [sum(sizes[place] for place in share) for share in shares]
        assert max(loads) <= 1.05 * sum(sizes) / ranks
    assert assign_to_ranks([1000, 10, 10, 10], 2) == [[0], [1, 2, 3]], "by tokens, not by rows"
    assert assign_to_ranks([5], 3) == [[0], [], []]


def test_one_rank_has_the_micro_batches_of_one_process() -> None:
    shapes = [(1, length) for length in (7, 30, 12, 50, 9, 21)]
    (groups,) = micro_batches_of_ranks(shapes, 60, "tree", 1)
    assert groups == [[0, 4, 2, 5], [1], [3]]
    both = micro_batches_of_ranks(shapes, 60, "tree", 2)
    assert sorted(place for groups in both for group in groups for place in group) == list(range(6))
    assert all(sum(shapes[place][1] for place in group) <= 60 for groups in both for group in groups)
