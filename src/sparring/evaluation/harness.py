"""Benchmarks by lm-evaluation-harness: its tasks, prompts, filters and metrics around our model (packed_lm.py).

A stage's folder gets, per benchmark, `results/KEY.json` (the harness's own numbers, versions and settings) and every sample in
`samples/TASK.jsonl`; `scores.json` at the end. An interrupted benchmark keeps its answers and resumes there.
"""

from __future__ import annotations

import functools
import glob
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from accelerate.utils import set_seed
from jinja2.exceptions import TemplateError

from sparring.config import BenchmarksSection
from sparring.console import log
from sparring.errors import UserError, first_line, require_package, suggestion
from sparring.evaluation.benchmarks import (
    RESULTS,
    SAMPLES,
    TASKS_OPTION,
    Benchmark,
    chosen,
    measured,
    metric_name,
    results_file,
    samples_file,
    score_name,
    suite_means,
)
from sparring.evaluation.metrics import Score
from sparring.policy.compute import make_accelerator
from sparring.policy.load import load_model, load_tokenizer
from sparring.rundir import digest, file_hash, read_json, write_json, write_text
from sparring.stage_names import SCORES

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from sparring.evaluation.packed_lm import PackedLM

PACKAGE = "lm_eval"
CACHE = "answers"
SHOWN = 300  # characters of a parser's message
FOLDERS_OPTION = "evaluate.benchmarks.task_folders (--task-folder)"
# of what the harness reports; the rest is about the machine
KEPT = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "n-samples", "higher_is_better")
# exceptions that a task's files and their functions may raise while the task is loaded
TASK_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ImportError, AssertionError, RuntimeError, TemplateError, yaml.YAMLError)


@dataclass(frozen=True)
class HarnessModel:
    """The model to evaluate: its folder, its number format, and the chat template of its run (None: no template is applied)."""

    folder: Path
    dtype: torch.dtype
    template: str | None = None
    four_bit: bool = False


def require_harness(section: BenchmarksSection) -> None:
    """Raise UserError if the harness is missing or a name unknown, before anything is computed."""
    benchmarks = chosen(section)
    what = "benchmarks need lm-evaluation-harness, which"
    require_package(PACKAGE, what, "evaluate.benchmarks", "eval", ", or leave the benchmarks out")
    if section.tasks or section.task_folders:  # the tasks of the suites are known to the harness
        _manager_of(benchmarks, section.task_folders)


def benchmark_inputs(section: BenchmarksSection) -> dict[str, Any]:
    """Everything that the numbers depend on besides the model: tasks, settings, the harness, the content of local tasks and their data."""
    return {
        "benchmarks": [vars(benchmark) for benchmark in chosen(section)],
        "suites": list(section.suites),
        **section.model_dump(include={"limit", "seed", "chat_template"}),
        "harness": metadata.version(PACKAGE),
        "local": _local_files(section),
    }


def run_benchmarks(stage: Path, section: BenchmarksSection, model: HarnessModel) -> dict[str, Any]:
    """Run all benchmarks of the section on one model, writing into the folder of a stage; returns the stage's facts."""
    benchmarks = chosen(section)
    manager = _manager_of(benchmarks, section.task_folders)
    for folder in (RESULTS, SAMPLES):
        (stage / folder).mkdir(exist_ok=True)
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    missing = [benchmark for benchmark in benchmarks if not results_file(stage, benchmark.key).exists()]
    if missing:
        loaded = _loaded(model, section.batch_tokens)
        for benchmark in missing:
            log.info(f"benchmarks: {benchmark.key}")
            _play(stage, benchmark, section, loaded, manager)
    scores = read_scores(stage, section)
    write_json(stage / SCORES, scores)
    for file in stage.glob(f"{CACHE}*"):
        file.unlink()
    return {"benchmarks": len(benchmarks), "harness": metadata.version(PACKAGE), **section.model_dump(include={"limit", "chat_template"})}


def read_scores(stage: Path, section: BenchmarksSection) -> dict[str, Score]:
    """Scores of all finished benchmarks, and the means of the suites."""
    scores: dict[str, Score] = {}
    for benchmark in chosen(section):
        found = {one.name: one.score for one in measured(benchmark, read_json(results_file(stage, benchmark.key)))}
        if benchmark.metric is not None and score_name(benchmark) not in found:
            raise _no_metric(benchmark, [name.partition("/")[2] for name in found])
        scores |= found
    return {**scores, **suite_means(section, scores)}


# -- one benchmark


def _play(stage: Path, benchmark: Benchmark, section: BenchmarksSection, model: PackedLM, manager: TaskManager) -> None:
    from lm_eval import evaluate
    from lm_eval.api.model import CachingLM

    tasks = _load(benchmark, manager, section.seed)
    set_seed(section.seed)
    cached = CachingLM(model, str(stage / CACHE))
    found = evaluate(cached, tasks, limit=section.limit, apply_chat_template=section.chat_template, fewshot_as_multiturn=True)
    cached.dbdict.close()
    for name, samples in found["samples"].items():
        lines = (json.dumps(sample, ensure_ascii=False, default=_as_json) for sample in samples)
        write_text(samples_file(stage, benchmark.key, name), "".join(f"{line}\n" for line in lines))
    kept = json.loads(json.dumps({key: found.get(key) for key in KEPT}, default=_as_json))
    for config in kept["configs"].values():
        config.get("metadata", {}).pop("config_source", None)  # a path of this machine
    settings = section.model_dump(include={"limit", "seed", "chat_template", "batch_tokens"})
    write_json(results_file(stage, benchmark.key), {"benchmark": vars(benchmark), "harness": metadata.version(PACKAGE), **settings, **kept})


def _loaded(model: HarnessModel, batch_tokens: int) -> PackedLM:
    from sparring.evaluation.packed_lm import PackedLM

    tokenizer = load_tokenizer(model.folder)  # its own: the harness changes its pad token
    if model.template is not None:
        tokenizer.chat_template = model.template
    weights = load_model(model.folder, model.dtype, model.four_bit).to(make_accelerator().device)
    return PackedLM(weights, tokenizer, batch_tokens)


def _load(benchmark: Benchmark, manager: TaskManager, seed: int) -> Mapping[str, Any]:
    """The tasks with their data and the requested settings. Raises UserError."""
    try:
        loaded = manager.load([benchmark.task])
        for task in loaded["tasks"].values():
            _set_shots(benchmark, task)
            task.set_fewshot_seed(seed)
    except OSError as error:  # raised by `datasets` if a file or the Hub cannot be reached
        raise UserError(
            f"the data of this task cannot be reached: {first_line(error)}",
            where=benchmark.task,
            remedy="check the network and the paths in data_files (which are taken from the current folder); "
            "`sparring docs evaluation` shows tasks whose data are local files",
        ) from error
    except TASK_ERRORS as error:
        raise UserError(f"the harness cannot load this task: {first_line(error)}", where=benchmark.task, remedy="fix its file") from error
    for check in (_check_kind, _check_shots, _check_metric):
        check(benchmark, list(loaded["tasks"].values()))
    return loaded


def _set_shots(benchmark: Benchmark, task: Any) -> None:
    """As the harness's own command does: a task that sets 0 shots keeps them."""
    own = task.config.num_fewshot
    shots = 0 if own == 0 else benchmark.shots if benchmark.shots is not None else own or 0
    task.set_config("num_fewshot", shots)
    if not shots:
        return
    splits = task.fewshot_cfg.split, task.config.test_split
    same = splits[0] == splits[1] is not None  # an item must not be a shot for itself
    there = max(0, len(list(task.fewshot_docs() or ())) - same)
    if there < shots:
        raise UserError(
            f"{shots} shots are requested, but the task has only {there} items for them",
            where=benchmark.task,
            remedy=f"ask for fewer, as {benchmark.task}@{there}",
        )
    if splits[0] is None and not (task.has_training_docs() or task.has_validation_docs() or task.fewshot_cfg.samples):
        log.warning(f"{benchmark.task}: shots are sampled from the tested items, answers included; its file needs a fewshot_split")


def _check_kind(benchmark: Benchmark, tasks: Sequence[Any]) -> None:
    kinds = {"UNSAFE_CODE": "this task runs code that the model has written", "MULTIMODAL": "this task asks about pictures or sound"}
    for mark, what in kinds.items():
        if any(getattr(task, mark, False) for task in tasks):
            raise UserError(f"{what}, which is not supported", where=benchmark.task, remedy="leave it out, or run it with `lm-eval` itself")


def _check_shots(benchmark: Benchmark, tasks: Sequence[Any]) -> None:
    """Raise UserError if no task has the number of shots in the benchmark's name; log the tasks that keep 0 shots."""
    without = [task.config.task for task in tasks if benchmark.shots and not task.config.num_fewshot]
    if without and len(without) == len(tasks):
        what = f"{benchmark.shots} shots are requested, but the task's file sets 0"
        raise UserError(what, where=benchmark.task, remedy=f"ask for {benchmark.task}, as its file has it")
    if without:
        log.warning(f"{benchmark.key}: run with 0 shots, which their files set: {', '.join(without)}")


def _check_metric(benchmark: Benchmark, tasks: Sequence[Any]) -> None:
    """Raise UserError for an unknown metric before the work, if the task lists its metrics."""
    if benchmark.metric is None or any(callable(task.config.process_results) for task in tasks):
        return
    names = {
        metric_name(entry["metric"] if isinstance(entry["metric"], str) else entry["metric"].__name__, filters["name"])
        for task in tasks
        for entry in task.config.metric_list or ()
        for filters in task.config.filter_list or [{"name": "none"}]
    }
    if benchmark.metric not in names:
        raise _no_metric(benchmark, names)


def _no_metric(benchmark: Benchmark, names: Any) -> UserError:
    guess = suggestion(benchmark.metric or "", names, before="; ")
    return UserError(
        f"the metric {benchmark.metric!r} is not defined for this task{guess}",
        where=benchmark.task,
        remedy=f"it has {', '.join(sorted(names))}",
    )


def _as_json(value: Any) -> Any:
    """NumPy numbers as Python numbers; functions of a task's file by their name."""
    return value.item() if hasattr(value, "item") else getattr(value, "__name__", str(value))


# -- tasks by name


@functools.cache
def _manager(folders: tuple[str, ...], with_defaults: bool) -> TaskManager:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=with_defaults)


def _manager_of(benchmarks: Sequence[Benchmark], folders: tuple[str, ...]) -> TaskManager:
    """A TaskManager with all these tasks. The harness's own 14,000 take seconds to read, and are left out if they are not needed."""
    for folder in folders:
        if not any(Path(folder).expanduser().rglob("*.yaml")):
            what = "no folder with task files (*.yaml)"
            raise UserError(what, where=f"{FOLDERS_OPTION}: {folder}", remedy="`sparring docs evaluation` shows one")
    folders = tuple(str(Path(folder).expanduser()) for folder in folders)
    names = [benchmark.task for benchmark in benchmarks]
    if folders and all(_is_whole((own := _manager(folders, False)).task_index, name) for name in names):
        return own
    everything = _manager(folders, True)
    for name in names:
        if name not in everything.task_index:
            raise _no_task(name, everything, folders)
    return everything


def _no_task(name: str, everything: TaskManager, folders: Sequence[str]) -> UserError:
    guess, broken = suggestion(name, everything.all_tasks, before="; "), next(_broken_files(folders), None)
    own = f"fix this task file: {broken}" if broken else None  # which the harness ignores silently
    remedy = own or "`lm-eval ls tasks` lists those of the harness; --task-folder adds a folder with your own"
    return UserError(f"no task named {name!r}{guess}", where=TASKS_OPTION, remedy=remedy)


def _broken_files(folders: Sequence[str]) -> Iterator[str]:
    """Task files that are not valid YAML, each with the reason."""
    for path in (path for folder in folders for path in sorted(Path(folder).rglob("*.yaml"))):
        try:
            yaml.compose(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            yield f"{path}: {' '.join(str(error).split())[:SHOWN]}"


def _is_whole(index: Mapping[str, Any], name: str) -> bool:
    """Whether a task, or a group with all that it names, is known here."""
    if name not in index:
        return False
    members = (index[name].cfg or {}).get("task")
    return not isinstance(members, list) or all(isinstance(member, dict) or _is_whole(index, member) for member in members)


def _local_files(section: BenchmarksSection) -> dict[str, str]:
    """Content hashes of the task files in the section's folders, and of the files that the chosen tasks among them name as data."""
    if not section.task_folders:
        return {}
    folders = tuple(str(Path(folder).expanduser()) for folder in section.task_folders)
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file() and path.suffix in (".yaml", ".py")]
    known = _manager(folders, False).task_index
    configs = [config for benchmark in chosen(section) if benchmark.task in known for config in _configs(known[benchmark.task].cfg or {})]
    data = [path for config in configs for path in _data_files((config.get("dataset_kwargs") or {}).get("data_files"))]
    return {"tasks": digest(sorted(map(file_hash, files))), "data": digest([file_hash(path) for path in data])}


def _configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The configuration of a task, or of a group and the tasks in it."""
    yield config
    if isinstance(members := config.get("task"), list):
        yield from (member for member in members if isinstance(member, dict))


def _data_files(value: Any) -> list[Path]:
    """The files behind a `data_files`: a path or pattern, or a list or mapping of them."""
    if isinstance(value, str):  # an address matches nothing here
        return sorted(path for path in map(Path, glob.glob(value, recursive=True)) if path.is_file())
    parts = value.values() if isinstance(value, Mapping) else value or ()
    return [path for part in parts for path in _data_files(part)]
