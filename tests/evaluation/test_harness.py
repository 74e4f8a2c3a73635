"""Benchmarks by lm-evaluation-harness: our numbers are those of its own model on its own way, whatever is packed together."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exact import tiny

from sparring.config import BenchmarksSection
from sparring.errors import UserError
from sparring.evaluation import harness
from sparring.evaluation.benchmarks import SUITES
from sparring.evaluation.harness import HarnessModel, benchmark_inputs, require_harness, run_benchmarks
from sparring.policy.load import load_model, load_tokenizer
from sparring.policy.tiny import make_tiny

lm_eval = pytest.importorskip("lm_eval", reason="make test-harness has lm-evaluation-harness")

CHOICE = {
    "task": "sums",
    "dataset_path": "json",
    "test_split": "test",
    "fewshot_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{query}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 2.0},
}
WRITTEN = {
    **{key: CHOICE[key] for key in ("dataset_path", "test_split", "fewshot_split")},
    "task": "written",
    "output_type": "generate_until",
    "doc_to_text": "{{query}}",
    "doc_to_target": "{{choices[gold]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    make_tiny(folder, 3)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums with four answers of unlike lengths, one of a single token; asked as a choice and as free text."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"query": f"What is {n} and {n % 3}?", "choices": [str(n + n % 3), f"it is {n}", "x", f"about {n} or so"], "gold": n % 4}
        for n in range(9)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for config in (CHOICE, WRITTEN):
        write_task(folder, config, data=str(folder / "rows.jsonl"))
    return folder


def write_task(folder: Path, config: dict[str, Any], data: str, **changes: Any) -> None:
    config = {**config, "dataset_kwargs": {"data_files": {"test": data}}, **changes}
    (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(autouse=True)
def _forget_folders() -> Iterator[None]:
    cached = harness._manager
    yield
    cached.cache_clear()


def section(folder: Path, *names: str, **changes: Any) -> BenchmarksSection:
    return BenchmarksSection(tasks=names, task_folders=(str(folder),), **changes)


def play(stage: Path, model: Path, wanted: BenchmarksSection, template: str | None = None) -> dict[str, Any]:
    stage.mkdir(exist_ok=True)
    run_benchmarks(stage, wanted, HarnessModel(model, torch.float32, template))
    return json.loads((stage / "scores.json").read_text())


def harness_alone(model: Path, wanted: BenchmarksSection, names: list[str], shots: int, **more: Any) -> dict[str, Any]:
    """The harness's own model by its own entry point, one row at a time."""
    from lm_eval.models.huggingface import HFLM

    alone = HFLM(pretrained=load_model(model), tokenizer=load_tokenizer(model), batch_size=1)
    return lm_eval.simple_evaluate(
        alone,
        tasks=names,
        num_fewshot=shots,
        task_manager=lm_eval.tasks.TaskManager(include_path=wanted.task_folders[0], include_defaults=False),
        fewshot_random_seed=wanted.seed,
        bootstrap_iters=0,
        **more,
    )


@pytest.mark.parametrize("chat", [False, True])
def test_equals_the_harness_alone(tmp_path: Path, model: Path, tasks: Path, chat: bool) -> None:
    """Log-probs to rounding, greedy flags, replies and scores exactly; trees in several batches, and one reply at a time."""
    wanted = section(tasks, "sums@2", "written@2", chat_template=chat, batch_tokens=300)
    scores = play(tmp_path / "stage", model, wanted)
    alone = harness_alone(model, wanted, ["sums", "written"], 2, apply_chat_template=chat)
    for name, metric in (("sums", "acc"), ("sums", "acc_norm"), ("written", "exact_match")):
        assert scores[f"{name}@2/{metric}"]["value"] == alone["results"][name][f"{metric},none"]
    for name in ("sums", "written"):
        ours = [json.loads(line) for line in (tmp_path / "stage" / "samples" / f"{name}@2.{name}.jsonl").read_text().splitlines()]
        assert [one["prompt_hash"] for one in ours] == [one["prompt_hash"] for one in alone["samples"][name]]
        mine, theirs = ([reply for one in samples for [reply] in one["resps"]] for samples in (ours, alone["samples"][name]))
        if name == "written":
            assert mine == theirs
        else:
            assert [logp for logp, _ in mine] == pytest.approx([logp for logp, _ in theirs], rel=1e-5)
            assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]


def test_what_is_kept(tmp_path: Path, model: Path, tasks: Path) -> None:
    wanted = section(tasks, "sums@1:acc", "written", limit=4)
    scores = play(tmp_path / "stage", model, wanted)
    assert set(scores) == {"sums@1/acc", "sums@1/acc_norm", "written/exact_match"}
    assert all(set(score) == {"value", "n", "stderr", "higher_is_better"} and score["n"] == 4 for score in scores.values())
    results = json.loads((tmp_path / "stage" / "results" / "sums@1.json").read_text())
    assert results["versions"] == {"sums": 2.0} and results["harness"] == "0.4.13"
    assert results["limit"] == 4 and results["chat_template"] is False and results["n-shot"] == {"sums": 1}
    assert str(tasks.parent) not in json.dumps(results["configs"]["sums"]["metadata"])
    samples = (tmp_path / "stage" / "samples" / "sums@1.sums.jsonl").read_text().splitlines()
    assert len(samples) == 4 and len(json.loads(samples[0])["arguments"]) == 4
    assert not list((tmp_path / "stage").glob("answers*"))  # the cache is of no use once all is there


def test_goes_on_where_it_was_killed(tmp_path: Path, model: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished task is not played again; of one under way the answers that are there are not computed again."""
    from sparring.policy.score import Scorer

    wanted = section(tasks, "written", "sums", batch_tokens=60)
    whole = play(tmp_path / "whole", model, wanted)
    original, calls = Scorer.with_greedy, []

    def killed(self: Scorer, batch: Any) -> Any:
        calls.append(batch.duels)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(Scorer, "with_greedy", killed)
    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "stage", model, wanted)
    written = (tmp_path / "stage" / "results" / "written.json").stat().st_mtime_ns
    before = sum(calls[:2])
    calls[:] = [0] * 3  # from here on nothing is killed
    assert play(tmp_path / "stage", model, wanted) == whole
    assert (tmp_path / "stage" / "results" / "written.json").stat().st_mtime_ns == written
    assert before + sum(calls) == 9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sum@1", "no task named 'sum'; did you mean sums?"),
        ("sums:f1", "sums: the metric 'f1' is not defined for this task\n  -> it has acc, acc_norm"),
        ("written:exact", "did you mean exact_match?"),
        ("sums@9", "sums: 9 shots are requested, but the task has only 8 items for them\n  -> ask for fewer, as sums@8"),
        ("zero@2", "zero: 2 shots are requested, but the task's file sets 0\n  -> ask for zero, as its file has it"),
        ("code", "code: this task runs code that the model has written"),
        ("typo", "fix this task file: "),
        ("gone", "gone: the data of this task cannot be reached"),
        ("broken", "broken: the harness cannot load this task"),
        ("hollow", "hollow: the harness cannot load this task"),
        ("template", "template: the harness cannot load this task"),
    ],
)
def test_what_cannot_be_played(tmp_path: Path, model: Path, tasks: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = harness._manager
    monkeypatch.setattr(harness, "_manager", lambda folders, _: defaults(folders, False))  # the harness's own 14,000 take seconds
    folder = tmp_path / "tasks"
    folder.mkdir()
    for file in tasks.glob("*.yaml"):
        (folder / file.name).write_text(file.read_text())
    write_task(folder, CHOICE, task="gone", data=str(tmp_path / "nowhere.jsonl"))
    write_task(folder, CHOICE, task="code", data=str(tasks / "rows.jsonl"), unsafe_code=True)
    (folder / "typo.yaml").write_text("task: [typo\n")
    write_task(folder, CHOICE, task="zero", data=str(tasks / "rows.jsonl"), num_fewshot=0)
    (folder / "hollow.jsonl").write_text(json.dumps({"query": "a", "choices": ["", "b"], "gold": 0}) + "\n")
    write_task(folder, CHOICE, task="hollow", data=str(folder / "hollow.jsonl"))
    write_task(folder, CHOICE, task="template", data=str(tasks / "rows.jsonl"), doc_to_text="{{query")
    write_task(folder, CHOICE, task="broken", data=str(tasks / "rows.jsonl"), output_type="telepathy")
    with pytest.raises(UserError) as caught:
        play(tmp_path / "stage", model, section(folder, name))
    assert message in str(caught.value)


def test_shots_from_what_is_asked_are_told(tmp_path: Path, model: Path, tasks: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = {key: value for key, value in CHOICE.items() if key != "fewshot_split"}
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_task(folder, config, data=str(tasks / "rows.jsonl"))
    with caplog.at_level(logging.WARNING, "sparring"):
        play(tmp_path / "stage", model, section(folder, "sums@1", limit=1))
    assert "sums: shots are sampled from the tested items" in caplog.text


def test_an_answer_that_does_not_fit(tmp_path: Path, model: Path, tasks: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_task(folder, WRITTEN, data=str(tasks / "rows.jsonl"), generation_kwargs={"until": ["\n"], "max_gen_toks": 512})
    with pytest.raises(UserError, match="requests 512 new tokens, but the model's context has 512"):
        play(tmp_path / "stage", model, section(folder, "written"))


def test_a_folder_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder with task files"):
        require_harness(section(tmp_path, "sums"))


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.errors.is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"not installed\n  -> pip install 'sparring\[eval\]'"):
        require_harness(BenchmarksSection(suites=("paper-extra",)))


def test_inputs_follow_the_content_of_local_tasks(tasks: Path, tmp_path: Path) -> None:
    """Another row or another word of a task makes other numbers; more tokens at once do not."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "rows.jsonl"
    data.write_text((tasks / "rows.jsonl").read_text())
    write_task(folder, CHOICE, data=str(data))
    wanted = section(folder, "sums")
    first = benchmark_inputs(wanted)
    assert benchmark_inputs(section(folder, "sums", batch_tokens=99)) == first
    data.write_text(data.read_text().replace("or so", "or more"))
    second = benchmark_inputs(wanted)
    assert second["local"]["data"] != first["local"]["data"] and second["local"]["tasks"] == first["local"]["tasks"]
    write_task(folder, CHOICE, data=str(data), doc_to_text="{{query}}")
    assert benchmark_inputs(wanted)["local"]["tasks"] != first["local"]["tasks"]


def test_the_suites_are_in_the_harness() -> None:
    """Every task of the suites has the name, and the metric, that we ask for."""
    folders = ("arc", "truthfulqa", "winogrande", "gsm8k", "hellaswag", "mmlu/default", "bbh/cot_fewshot", "openbookqa")
    own = Path(lm_eval.__file__).parent / "tasks"
    index = lm_eval.tasks.TaskManager(include_path=[own / name for name in folders], include_defaults=False).task_index
    for benchmark in (benchmark for suite in SUITES.values() for benchmark in suite):
        config = index[benchmark.task].cfg
        metrics = config.get("metric_list") or config["aggregate_metric_list"]
        assert benchmark.metric.partition(",")[0] in {metric["metric"] for metric in metrics}
        assert benchmark.metric.partition(",")[2] in {"", *(one["name"] for one in config.get("filter_list") or ())}
        assert config.get("num_fewshot") in (None, benchmark.shots)


def test_greedy_flags_of_the_scorer() -> None:
    """Against the argmax of plain forwards, in every layout."""
    from sparring.policy.batches import Branches
    from sparring.policy.score import Scorer

    weights = tiny(vocabulary=40)
    prompt = (5, 9, 3)
    with torch.no_grad():
        likeliest = int(weights(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
        second = int(weights(input_ids=torch.tensor([(*prompt, likeliest)])).logits[0, -1].argmax())
    other = (likeliest + 1) % weights.config.vocab_size
    trees = [Branches(prompt, ((likeliest, second), (other, second), (likeliest,))), Branches(prompt, ((likeliest, other),))]
    scorer = Scorer(weights)
    for layout in ("tree", "rows", "plain"):
        scorer.layout = layout
        batch = scorer.collate(trees)
        logps, greedy = scorer.with_greedy(batch)
        assert greedy[0].tolist() == [True, False, True] and greedy[1, 0].item() is (other == second)
        torch.testing.assert_close(logps, scorer(batch))
