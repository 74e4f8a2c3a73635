"""An option that the work of a stage reads is part of the fingerprint of that stage or of one before it: nobody can read one and forget
to pin it. The reads are recorded in a game; then each option is changed, and the finished game must notice by that stage at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, rows, write_rows

import sparring
from sparring.config import Section, load_recipe
from sparring.rundir import RunDir, StageRecord
from sparring.stage_names import stages_of_game
from sparring.stages.run_stage import StageRunner, StageWork, fingerprint

pytestmark = pytest.mark.long

# section -> its name in the recipe
SECTIONS = {"Data": "data", "Evaluate": "evaluate", "Model": "model", "Objective": "objective", "Sampling": "sampling"}
SECTIONS |= {"Optim": "train", "Sft": "sft", "Stop": "stop", "Target": "target", "Train": "train"}
# Read by the work, and free to change: speed, memory, what a kill costs, and messages
FREE = {
    "data.path": "the content of the rows is pinned, wherever they are",
    "data.revision": "as the rows that it leads to",
    "data.name": "as the rows that it leads to",
    "data.split": "as the rows that it leads to",
    "data.on_bad_row": "decides whether there is a table at all",
    "data.checker_columns": "for a function of the user's own, as below",
    "data.prompts": "for verified and majority targets, as below",
    "target.checker": "null here, and pinned by its own fingerprint elsewhere (tests/test_target_games.py)",
    "target.pass_score": "as the checker",
    "sampling.batch_tokens": "speed; rounding",
    "sampling.shard_rows": "what a kill costs",
    **{
        f"{section}.{option}": "speed, memory, what a kill costs; rounding"
        for section in ("sft", "train")
        for option in ("checkpoint_every", "gradient_checkpointing", "micro_batch_tokens")
    },
}
# Of the others, another valid value
OTHER = {
    "data.answer": "completion",
    "data.columns": "{prompt: completion, completion: prompt}",
    "data.held_out": "12",
    "data.max_examples": "20",
    "data.max_prompt_tokens": "40",
    "data.max_reply_tokens": "40",
    "data.reasoning": "drop",
    "data.shape": "prompt_completion",
    "evaluate.greedy": "true",
    "evaluate.samples": "2",
    "model.dtype": "bfloat16",
    "sampling.engine": "server",
    "sampling.max_new_tokens": "7",
    "sampling.replies_per_prompt": "3",
    "sampling.temperature": "0.5",
    "sampling.top_p": "0.5",
    "seed": "5",
    "sft.batch_size": "2",
    "sft.epochs": "2",
    "sft.horizon_epochs": "3",
    "sft.lora": "{rank: 2}",
    "sft.lr": "1e-4",
    "sft.max_grad_norm": "0.5",
    "sft.optimizer": "rmsprop",
    "sft.precision": "bf16",
    "sft.schedule": "cosine",
    "sft.warmup": "0.5",
    "sft.weight_decay": "0.5",
    "showcase": "[other]",
    "showcase_system": "be kind",
    "stop.confidence": "0.8",
    "train.batch_size": "2",
    "train.epochs": "2",
    "train.horizon_epochs": "3",
    "train.lora": "{rank: 2}",
    "train.lr": "1e-4",
    "train.max_grad_norm": "0.5",
    "train.optimizer": "adamw",
    "train.precision": "bf16",
    "train.schedule": "cosine",
    "train.warmup": "0.5",
    "train.weight_decay": "0.5",
}


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, reads: dict[str, list[str]]) -> Iterator[None]:
    """`reads`: option -> the stages whose work has read it."""
    at_work: list[str] = []
    read, compute = Section.__getattribute__, RunDir.stage

    def noted(self: Section, name: str) -> Any:
        if at_work and name in type(self).model_fields:
            section = SECTIONS.get(type(self).__name__.removesuffix("Section"), "")
            reads.setdefault(f"{section}.{name}".lstrip("."), []).append(at_work[-1])
        return read(self, name)

    def stage(self: RunDir, name: str, inputs: dict[str, Any], work: Callable[[Path], Any], **options: Any) -> StageRecord:
        def worked(stage: Path) -> Any:
            at_work.append(name)
            try:
                return work(stage)
            finally:
                at_work.pop()

        return compute(self, name, inputs, worked, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Section, "__getattribute__", noted)
        patch.setattr(RunDir, "stage", stage)
        patch.setattr("sparring.selfplay.place_in", lambda *_: None)  # progress shows the place of a stage among all
        yield


class Noticed(Exception):
    """The stage at which a finished game sees that the recipe has changed."""


def first_changed(root: Path, override: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    def run(self: StageRunner, name: str, work: StageWork, **_: Any) -> StageRecord:
        if self.run.changes(name, fingerprint(work)):
            raise Noticed(name)
        found = self.run.finished(name)
        assert found is not None, name
        return found

    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "run_stage", run)
        patch.setattr("sparring.selfplay.check", lambda _: None)
        try:
            sparring.run(load_recipe(root / "recipe.yaml"), [override])
        except Noticed as stage:
            return str(stage)
    return None


def test_what_the_work_of_a_stage_reads_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"path": str(write_rows(tmp_path / "rows.jsonl", rows(24))), "held_out": 8}
    monkeypatch.chdir(tmp_path)
    reads: dict[str, list[str]] = {}
    with recorded(monkeypatch, reads):
        sparring.run({**TINY, "run_dir": str(tmp_path / "run"), "data": data, "iterations": 1})
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    order = stages_of_game(RunDir(tmp_path / "run").root, recipe)
    options = {option: min(stages, key=order.index) for option, stages in reads.items() if option not in {*SECTIONS.values(), *FREE}}
    unknown = options.keys() - OTHER.keys()
    assert len(options) > 25 and not unknown, "options are read that this test does not know"
    options["train.lora"] = "iterations/000/train"  # what measures before asks of it only whether the base is quantised, which is pinned
    late = {}
    for option, reader in options.items():
        noticed = first_changed(tmp_path / "run", f"{option}={OTHER[option]}", monkeypatch)
        if noticed is None or order.index(noticed) > order.index(reader):
            late[option] = f"read by {reader}, noticed by {noticed}"
    assert not late
