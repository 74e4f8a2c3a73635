"""DPO on labelled pairs as a control: it is TRL's, it stands beside the game, and a kill changes nothing."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Game, write_rows
from test_kill_and_resume import assert_same_outcome, metrics
from zygote import Zygote, unnamed, working

from sparring.config import DataSection, PairsSection, load_recipe
from sparring.data.chat import Chat
from sparring.data.preferences import PAIR_COUNTS, prepare_pairs, read_pairs
from sparring.data.records import PromptSet
from sparring.data.tables import read_rows
from sparring.rundir import RunDir
from sparring.stage_names import stages_of_game
from sparring.tracking.sending import points, series_of
from sparring.training.plan import TrainPlan

# no line break after the end of a turn, which TRL trains on and we do not
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PAIRS, BATCH, STEPS, LR, BETA = 12, 4, 12, 1e-3, 0.1
DPO = {"kind": "dpo", "pairs": "pairs.jsonl", "epochs": 1, "batch_size": 4}


def pairs(count: int = PAIRS) -> list[dict[str, str]]:
    return [{"prompt": f"ask {n}", "chosen": f"yes {n * n}", "rejected": f"no, never {n}"} for n in range(count)]


def turns(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """The conversational shape of a plain row."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {key: [{"role": roles[key], "content": text}] for key, text in row.items()}


# --- TRL


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """A short game from the bare model, with DPO on it for four epochs beside it."""
    game = Game(tmp_path_factory.mktemp("dpo") / "game", zygote, {})
    write_rows(game.folder / "pairs.jsonl", pairs())
    (game.folder / "template.jinja").write_text(TEMPLATE)
    dpo = {**DPO, "epochs": STEPS * BATCH / PAIRS, "lr": LR, "beta": BETA}
    game.write(model__chat_template="template.jinja", sft=None, iterations=1, controls=dpo, train__optimizer="adamw", train__warmup=0.0)
    return game.play()


def trl_losses(model: Path, rows: list[dict[str, Any]], folder: Path) -> list[float]:
    """The loss of every step of TRL's DPOTrainer on these rows in their order."""
    pytest.importorskip("trl", reason="TRL, the independent DPO implementation, is not installed")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    losses: list[float] = []

    class Recorded(DPOTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            found = super().compute_loss(*args, **kwargs)
            losses.append(float(found.detach()))
            return found

    arguments = DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        learning_rate=LR,
        lr_scheduler_type="linear",
        warmup_steps=0,
        optim="adamw_torch",
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    load = AutoModelForCausalLM.from_pretrained
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = TEMPLATE
    trainer = Recorded(
        model=load(model), ref_model=load(model), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    return losses


def test_the_losses_are_trls(trained: Game, tmp_path: Path) -> None:
    """The same pairs in the same batches, float32 throughout: every step's loss agrees to 1e-4, from ln 2 on the way down."""
    train = trained.json("dpo/train/done.json")
    plan = TrainPlan(PAIRS, STEPS, STEPS, 0, BATCH, LR, "linear", train["inputs"]["order"])
    chat = Chat(_tokenizer(trained.root / "base" / "model"), TEMPLATE)
    section = PairsSection(path=str(trained.folder / "pairs.jsonl"))
    of_stage = read_pairs(trained.root / "dpo/pairs/pairs.parquet")
    assert prepare_pairs(section, DataSection(path="unused"), chat, 0, PromptSet([])).duels == of_stage
    prompts = {chat.prompt_ids(turns(row)["prompt"]): turns(row) for row in pairs()}  # type: ignore[arg-type]
    duels = read_pairs(trained.root / "dpo/pairs/pairs.parquet")
    rows = [prompts[duels[index].prompt_ids] for step in range(STEPS) for index in plan.batch(step)]
    ours = [row["loss"] for row in metrics(trained.root / "dpo/train")]
    theirs = trl_losses(trained.root / "base" / "model", rows, tmp_path)
    assert len(ours) == len(theirs) == STEPS and ours[0] == pytest.approx(0.6931472, abs=1e-6) and ours[-1] < 0.6
    assert ours == pytest.approx(theirs, abs=1e-4)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


# --- beside the game


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """All three controls at the cost of the iterations."""
    game = Game(tmp_path_factory.mktemp("both") / "game", zygote, {})
    write_rows(game.folder / "pairs.jsonl", pairs())
    equal = {key: value for key, value in DPO.items() if key != "epochs"}
    game.write(controls=["continued-sft", equal, {**equal, "start": "best", "epochs": 1}, {"name": "half-epoch", "epochs": 0.5}])
    return game.play()


def test_every_control_stands_beside_the_game(both: Game) -> None:
    summary = both.json("summary.json")
    best = summary["best"]["iteration"]
    shown = [(one["name"], one["stage"], one["from_iteration"]) for one in summary["controls"]]
    assert shown == [
        ("continued SFT", "continued-sft", None),
        ("DPO", "dpo", None),
        ("SPIN, then DPO", "spin-dpo", best),
        ("half-epoch", "half-epoch", None),
    ]
    for one in summary["controls"]:
        assert one["scores"] == both.json(f"{one['stage']}/evaluate/scores.json")
    assert {row["stage"] for row in metrics(both.root) if "stage" in row} == {
        "sft",
        *(f"{one['stage']}/train" for one in summary["controls"]),
    }
    for name in ("dpo", "spin-dpo", "half-epoch"):
        assert both.command("export", "run", f"out-{name}", "--iteration", name).code == 0
        card = (both.folder / f"out-{name}" / "README.md").read_text()
        assert "the control" in card and ("and the labelled pairs `pairs.jsonl`." in card) == name.endswith("dpo")
        assert ("| labelled pairs | `pairs.jsonl` | unknown (there is no card next to it) |" in card) == name.endswith("dpo")


def test_cards_name_the_pairs_and_their_licence(both: Game) -> None:
    """In the table of those who learned from them; others, and the replies, are told that nothing comes from there."""
    order = ["--repo", "me/model", "--dataset-repo", "me/replies", "--pairs-licence", "cc-by-4.0"]
    licence = "cc-by-4.0 (as the publisher says, by --pairs-licence)"
    apart = f"The labelled pairs `pairs.jsonl`, {licence}, were used only for controls of this game."
    for player in ("dpo", "best"):
        result = both.command("push", "run", *order, "--iteration", player, "--dry-run", f"cards-{player}")
        assert result.code == 0, result.err
        card, data = ((both.folder / f"cards-{player}" / name / "README.md").read_text() for name in ("model", "data"))
        assert (f"| labelled pairs | `pairs.jsonl` | {licence} |" in card, apart in card) == (player == "dpo", player != "dpo")
        assert data.count(apart) == 1 and "| labelled pairs |" not in data
    refused = both.command("push", "run", *order[:4], "--pairs-licence", "CC BY", "--dry-run", "no")
    assert refused.code == 2 and "--pairs-licence" in refused.err and "not the identifier of a licence" in refused.err


def test_the_report_and_the_status_tell_of_every_control(both: Game) -> None:
    value = {one["name"]: one["scores"]["nll_per_token"]["value"] for one in both.json("summary.json")["controls"]}
    assert both.command("report", "run", "--output", "page.html").code == 0
    page = (both.folder / "page.html").read_text()
    for name, reached in value.items():
        assert re.search(rf"{name} (is first with )?{reached:.3f}", page)
    status = both.command("status", "run").out
    assert all(name in status for name in value) and "finished" in status
    assert [name for name in stages_of_game(both.root, load_recipe(both.folder / "recipe.yaml")) if not (both.root / name).exists()] == []


def test_what_trackers_are_sent_of_every_control(both: Game) -> None:
    """After the steps that its start has behind it: 6 of SFT, and 6 and 12 of the iterations."""
    best = both.json("summary.json")["best"]["iteration"]
    series = {one.name: list(points(RunDir(both.root), one, -1)) for one in series_of(load_recipe(both.folder / "recipe.yaml"))}
    assert list(series) == ["game", "continued-sft", "dpo", "spin-dpo", "half-epoch"]
    assert [series[name][0].step for name in ("continued-sft", "dpo", "spin-dpo", "half-epoch")] == [7, 7, (13, 25)[best], 7]
    for name, found in series.items():
        if name != "game":
            assert len(found) == len(metrics(both.root / f"{name}/train")) and "scores/nll_per_token" in found[-1].values
            assert ("dpo/margin" in found[0].values, "sft/loss" in found[0].values) == (name.endswith("dpo"), not name.endswith("dpo"))


def test_dpo_starts_from_its_reference(both: Game) -> None:
    """The margin of the first step is exactly 0, and the reference is the start of the game or its best player."""
    best = both.json("summary.json")["best"]["iteration"]
    played = both.json("iterations/000/train/done.json")["inputs"]["opponent"]
    for name, reference in (("dpo", played), ("spin-dpo", None)):
        first, done = metrics(both.root / f"{name}/train")[0], both.json(f"{name}/train/done.json")
        assert first["margin"] == 0 and first["loss"] == pytest.approx(0.6931472, abs=1e-6)
        assert done["inputs"]["reference"] == (reference or both.json(f"iterations/00{best}/measure/done.json")["inputs"]["model"])
        assert done["inputs"]["reference"] == both.json(f"{name}/measure/done.json")["inputs"]["opponent"]
    assert (
        both.json("half-epoch/train/done.json")["facts"]["trained_tokens"]
        < both.json("continued-sft/train/done.json")["facts"]["trained_tokens"]
    )


def test_dpo_costs_what_the_iterations_do(both: Game) -> None:
    """Passes times tokens, the reference's one pass over the pairs included, to within one step."""
    stages = both.json("summary.json")["stages"]
    spent = sum(stages[f"iterations/00{t}/{part}"].get(key, 0) * passes for t in (0, 1) for part, key, passes in COUNTED)
    own = stages["dpo/score"]["scored_tokens"] + 3 * stages["dpo/train"]["trained_tokens"]
    step = 3 * stages["dpo/train"]["trained_tokens"] / both.json("dpo/train/done.json")["facts"]["steps"]
    assert abs(own - spent) <= step
    (table,) = (read_rows(both.root / "dpo" / "score"),)
    assert len({row["duel_id"] for row in table}) == both.json("dpo/pairs/done.json")["facts"]["counts"]["pairs"] == PAIRS


COUNTED = (("generate", "sampled_tokens", 1), ("score", "scored_tokens", 1), ("train", "trained_tokens", 3))


def test_a_restart_that_is_refused_keeps_the_pairs_and_what_was_trained_on_them(both: Game) -> None:
    before = both.state()
    result = both.run("objective.beta=0.5", "--restart-from", "iterations/001/train")
    assert result.code == 2 and "iterations/000/train was made from other inputs" in result.err and both.state() == before, result.err
    assert "--restart-from has deleted nothing" in result.err


def test_bad_pairs_are_refused_before_a_restart_deletes_their_control(both: Game) -> None:
    write_rows(both.folder / "bad.jsonl", [{"prompt": "a", "chosen": "b"}])
    before = both.state()
    result = both.run("controls={kind: dpo, pairs: bad.jsonl, epochs: 1}", "--restart-from", "iterations/001/train")
    assert result.code == 2 and "need a column 'rejected'" in result.err and both.state() == before, result.err


def test_other_pairs_train_dpo_anew_and_nothing_else(both: Game) -> None:
    write_rows(both.folder / "other.jsonl", pairs(8))
    before = both.state()
    result = both.run("controls=[continued-sft, {kind: dpo, pairs: other.jsonl, batch_size: 4, epochs: 1}]")
    assert result.code == 0 and "recomputing dpo/pairs: " in result.err and "recomputing dpo/train: " in result.err, result.err
    assert {name for name, content in before.items() if both.state().get(name) != content} == {n for n in before if n.startswith("dpo/")}
    assert [one["stage"] for one in both.json("summary.json")["controls"]] == ["continued-sft", "dpo"]
    assert both.json("dpo/pairs/done.json")["facts"]["counts"] == {**dict.fromkeys(PAIR_COUNTS, 0), "read": 8, "pairs": 8}


def test_bad_pairs_stop_the_run_before_it_plays(game: Game) -> None:
    game.write(controls=DPO)
    result = game.run()
    assert result.code == 2 and "no such data file" in result.err and "Traceback" not in result.err
    assert not (game.root / "sft").exists()
    write_rows(game.folder / "pairs.jsonl", [{"prompt": "a", "chosen": "b"}])
    result = game.run()
    assert result.code == 2 and "need a column 'rejected'" in result.err and not (game.root / "sft").exists()


# --- kills

KILLS = {
    "pairs written, not committed": ("dpo/pairs", unnamed("dpo/pairs")),
    "in the reference's log-probs": ("dpo/score", working("dpo/score", 1)),
    "in training": ("dpo/train", working("dpo/train", 3)),
    "trained, not committed": ("dpo/train", unnamed("dpo/train")),
    "in measuring": ("dpo/measure", unnamed("dpo/measure.partial/logps.parquet")),
}
QUICK = {"sft": None, "iterations": 1, "controls": {**DPO, "epochs": 2}, "showcase": []}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    game = quick(tmp_path_factory.mktemp("whole"), zygote)
    return game.play()


def quick(folder: Path, zygote: Zygote) -> Game:
    game = Game(folder / "game", zygote, QUICK)
    write_rows(game.folder / "pairs.jsonl", pairs())
    return game


@pytest.mark.parametrize("place", KILLS)
def test_killed_and_resumed_is_as_if_never_killed(place: str, whole: Game, tmp_path: Path, zygote: Zygote) -> None:
    stage, kill = KILLS[place]
    game = quick(tmp_path, zygote)
    game.copy_stages(whole, before=stage)
    assert game.run(sabotage=[kill]).code == -signal.SIGKILL
    result = game.run()
    assert result.code == 0, result.err
    assert_same_outcome(game.root, whole.root)
