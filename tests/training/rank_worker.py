"""What the ranks of tests/training/test_ranks.py run: several trainings in one launch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from test_fit import DUELS, Recorder, plan_of, run_fit, settings

from sparring.errors import UserError
from sparring.policy import ranks as communication
from sparring.policy import score
from sparring.policy.batches import branches_of
from sparring.policy.compute import make_accelerator
from sparring.policy.load import load_model
from sparring.policy.ranks import from_main, gathered, is_main, is_sharded, join, rank, rank_count
from sparring.training import masters
from sparring.training.opponent_pass import read_logps, score_duels
from sparring.training.ranked import score_player
from sparring.training.tasks import SpinTask

CHUNK = 5
# every kind of adapter, and one beside the head, which ranks call as often as their replies have chunks
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "dora": {"rank": 4, "dora": True},
    "on_head": {"rank": 4, "targets": ["q_proj", "lm_head"]},
}
MEASURED = [branches_of(duel) for duel in DUELS[:13]]


def main(strategy: str, folder: Path) -> None:
    start, opponent = folder / "start", json.loads((folder / "opponent.json").read_text())
    join(strategy, cpu=True)
    score.HEAD_CHUNK = CHUNK
    communication.BUCKET = 1000  # so that gradients are grouped and cut
    assert rank_count() == 2
    if strategy == "fsdp2":  # as by a file that `accelerate config` wrote
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    loads = count_loads()
    loaded_on = gathered(str(masters.load_on_main(start).device))
    out = folder / strategy
    from_main(lambda: out.mkdir(exist_ok=True))
    found: dict[str, Any] = {"distributed_type": str(make_accelerator().distributed_type), "loaded_on": loaded_on}

    # the whole training, with a remainder: 5 duels a step, 14 in all
    for name, more in (("adamw", {"optimizer": "adamw", "weight_decay": 0.1}), ("rmsprop", {})):
        section = settings(batch_size=5, **more)
        result = fit_to(out / name, start, SpinTask(DUELS, opponent, 0.3, "logistic"), plan_of(section, len(DUELS), epochs=2.0), section)
        found[name] = sums_of_ranks(result.model)
    found["held"] = held_by_ranks(result.model)

    section = settings(batch_size=5, optimizer="adamw", weight_decay=0.1, gradient_checkpointing=True)
    fit_to(out / "recomputed", start, SpinTask(DUELS, opponent, 0.3, "logistic"), plan_of(section, len(DUELS), epochs=2.0), section)

    for name, lora in ADAPTERS.items():
        section = settings(batch_size=5, optimizer="adamw", lora=lora)
        fit_to(out / name, start, SpinTask(DUELS, opponent, 0.3, "logistic"), plan_of(section, len(DUELS), epochs=2.0), section)

    # the same from the checkpoint of one process
    section = settings(batch_size=5, optimizer="adamw", weight_decay=0.1)
    fit_to(out / "resumed", start, SpinTask(DUELS, opponent, 0.3, "logistic"), plan_of(section, len(DUELS), epochs=2.0), section)

    # embeddings and head as one matrix
    section = settings(batch_size=5)
    fit_to(out / "tied", folder / "tied", SpinTask(DUELS[:10], opponent, 0.3, "logistic"), plan_of(section, 10), section)

    for precision in ("fp32", "bf16"):
        found[f"margins_{precision}"] = first_margins(out / precision, start, precision)
        found[f"margins_lora_{precision}"] = first_margins(out / f"lora_{precision}", out / "lora" / "model", precision, lora={"rank": 4})
    players = {"start": (start, None), "tied": (folder / "tied", None), "bare": (start, ADAPTERS["dora"])}
    players |= {name: (out / name / "model", lora) for name, lora in ADAPTERS.items()}
    found["measured"] = {name: gathered(measured(player, lora)) for name, (player, lora) in players.items()}
    # fewer items than ranks: one rank has nothing to do
    section = settings(batch_size=1)
    fit_to(out / "single", start, SpinTask(DUELS[:2], opponent, 0.3, "logistic"), plan_of(section, 2), section)
    found["not_finite"] = refusal(out / "broken", start)
    found["everything"] = sums_of_ranks(load_model(start))  # last, for this changes what transformers loads after it
    found["loads"] = gathered(len(loads))
    if is_main():
        (out / "found.json").write_text(json.dumps(found))


def alone(folder: Path) -> None:
    """One rank under FSDP2, as `make gpu-check` starts it on one GPU. On a CPU, Accelerate would not shard a single rank."""
    torch.distributed.init_process_group("gloo")
    join("fsdp2", cpu=True)
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    plugin = AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
    plugin.cpu_ram_efficient_loading = False
    assert is_sharded() and rank_count() == 1 and plugin.fsdp_version == 2
    score.HEAD_CHUNK = CHUNK
    task = SpinTask(DUELS, json.loads((folder / "opponent.json").read_text()), 0.3, "logistic")
    section = settings(batch_size=5, optimizer="adamw", weight_decay=0.1)
    result = fit_to(folder / "alone" / "adamw", folder / "start", task, plan_of(section, len(DUELS), epochs=2.0), section)
    kinds = {type(parameter).__name__ for parameter in result.model.parameters()}
    margins = {precision: first_margins(folder / "alone" / precision, folder / "start", precision) for precision in ("fp32", "bf16")}
    (folder / "alone" / "found.json").write_text(json.dumps({"kinds": sorted(kinds), **margins}))


def count_loads() -> list[Path]:
    """Grows by every model that this rank reads from disk, where it is to be dealt out."""
    seen: list[Path] = []
    load, load_on_main = masters.load_model, masters.load_on_main

    def counted(folder: Path, *more: Any) -> Any:
        seen.append(folder)
        return load(folder, *more)

    def counting(folder: Path, *more: Any) -> Any:
        masters.load_model = counted
        try:
            return load_on_main(folder, *more)
        finally:
            masters.load_model = load

    masters.load_on_main = counting
    return seen


def fit_to(stage: Path, start: Path, task: SpinTask, plan: Any, section: Any) -> Any:
    result = run_fit(stage, start, task, plan, section)
    from_main(lambda: result.save(stage / "model"))
    return result


def sums_of_ranks(model: torch.nn.Module) -> list[float]:
    """Of every rank the sum over its (whole) parameters."""
    return gathered(float(sum(whole(p).detach().double().sum() for p in model.parameters())))


def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def held_by_ranks(model: torch.nn.Module) -> list[int]:
    """Of every rank how many numbers of the parameters it holds between two passes."""
    return gathered(sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters()))


def first_margins(stage: Path, start: Path, precision: str, **more: Any) -> list[float]:
    """The margins of all duels in a first pass at learning rate 0, on all ranks."""
    section = settings(batch_size=5, precision=precision, **more)
    plan = plan_of(section, len(DUELS), lr=0.0)
    from_main(lambda: (stage / "score").mkdir(parents=True, exist_ok=True))
    score_duels(stage / "score", start, DUELS, plan, section, "score")
    task = Recorder(DUELS, read_logps(stage / "score"), 0.5, "logistic")
    run_fit(stage / "train", start, task, plan, section)
    return [margin for part in gathered(task.margins) for margin in part]


def measured(player: Path, lora: dict[str, Any] | None) -> list[list[float]]:
    kept = len(make_accelerator()._models)
    first, second = score_player(player, [MEASURED[:4], MEASURED[4:]], settings(lora=lora))
    assert len(make_accelerator()._models) <= kept, "nothing of the player stays"
    return first + second


def refusal(stage: Path, start: Path) -> list[str]:
    """What every rank says of a loss that is not finite, in a duel that one of them computes."""
    opponent = {duel.duel_id: [0.0] * 9 for duel in DUELS}
    opponent[DUELS[3].duel_id] = [float("nan")] * 9
    section = settings(batch_size=14)
    try:
        run_fit(stage, start, Truncated(DUELS, opponent, 0.3, "logistic"), plan_of(section, len(DUELS)), section)
    except UserError as error:
        return gathered(f"{type(error).__name__}: {error.what}")
    return gathered(f"rank {rank()} saw nothing")


class Truncated(SpinTask):
    """As many stored log-probs as the duel has branches."""

    def losses(self, indices: Any, logps_DR: Any) -> Any:
        for index in indices:
            name = self.duels[index].duel_id
            self.opponent_logps[name] = self.opponent_logps[name][: len(self.branches(index).replies)]
        return super().losses(indices, logps_DR)


def run() -> None:
    """`main` as a rank's whole process."""
    alone(Path(sys.argv[2])) if sys.argv[1] == "alone" else main(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    make_accelerator().wait_for_everyone()
    os._exit(0)  # without the teardown of process groups, which is not what is tested
