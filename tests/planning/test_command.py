"""`sparring plan` as a person types it."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from by_hand import GPU, LENGTHS, llama, recipe_of
from conftest import Game
from rich.console import Console
from zygote import Zygote

from sparring.config import load_recipe
from sparring.planning import work
from sparring.planning.command import advise, assumptions, estimated_time, plan_of, print_plan, verdict
from sparring.planning.estimate import estimate
from sparring.planning.hardware import GB, Hardware, find_hardware

ZEPHYR = ["model.path=alignment-handbook/zephyr-7b-sft-full", "data.max_examples=50060", "iterations=4"]
RECIPES = Path(__file__).parents[2] / "recipes"


def plan(zygote: Zygote, folder: Path, recipe: str, *args: str, **environment: str):
    return zygote.run(["plan", str(RECIPES / recipe), *args], folder, environment=environment)


def test_the_plan_of_a_recipe(zygote: Zygote, tmp_path: Path) -> None:
    result = plan(zygote, tmp_path, "dolly.yaml", *ZEPHYR, "--hardware", "H200", "--json", "plan.json")
    assert result.code == 0, result.err
    for said in (
        "7.24B parameters",
        "iterations/003/train",
        "key-value cache",
        "Time: at most",
        "training and scoring reach 40% of 989 TFLOP/s",
        "assumed",
        "Fits:",
        "Disk:",
    ):
        assert said in result.out, said
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["fits"] is (found["peak_bytes"] <= 141e9) is True
    assert found["peak_bytes"] == max(stage["bytes"]["total"] for stage in found["stages"])
    assert found["hours"] == pytest.approx(sum(stage["hours"] for stage in found["stages"]))
    assert not list(tmp_path.glob("runs*")), "a plan makes no run"


def test_a_model_that_nobody_has_here_is_planned_by_its_size(zygote: Zygote, tmp_path: Path) -> None:
    result = plan(zygote, tmp_path, "dolly.yaml", "model.path=nobody/knows-this", "--params", "8B", "--layers", "32", "--hardware", "H200")
    assert result.code == 0, result.err
    assert "nobody/knows-this, 8.00B parameters (given: 8B; 32 layers of width 4096" in " ".join(result.out.split())


def test_no_table_is_wider_than_the_terminal(zygote: Zygote, tmp_path: Path) -> None:
    result = plan(zygote, tmp_path, "dolly.yaml", *ZEPHYR, "--hardware", "8xA100-80G")
    lines = [line for line in result.out.splitlines() if line[:1] in "│┃┏├└┡"]
    assert lines and max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--hardware", "8xA101-80G"], ["--hardware", "did you mean A100-80G?", "RTX4090-24G"]),
        (["trian.lr=1"], ["trian", "did you mean train"]),
        (["model.path=nobody/knows-this", "--hardware", "L4"], ["model.path (nobody/knows-this)", "config.json"]),
        (["data.max_examples=null", "--hardware", "L4"], ["data.max_examples", "--rows N"]),
        (["--hardware", "L4", "--json", "nowhere/plan.json"], ["--json (nowhere/plan.json)", "does not exist"]),
        (["--hardware", "cpu", "train.lora.quantize=4bit"], ["train.lora.quantize", "need a CUDA device"]),
        (
            ["--hardware", "L4", "sampling.engine=vllm", "train.lora.dora=true"],
            ["train.lora: {dora: true}", "vllm serves no DoRA adapters"],
        ),
        (["--hardware", "L4", "--params", "many"], ["--params", "'many' is not a number of parameters"]),
        (["--hardware", "L4", "--prompt-tokens", "inf"], ["--prompt-tokens", "inf is not a number of tokens"]),
        (["--hardware", "L4", "--generated-tokens", "5000"], ["--generated-tokens", "sampling.max_new_tokens"]),
    ],
)
def test_bad_input_is_told_without_a_traceback(args: list[str], told: list[str], zygote: Zygote, tmp_path: Path) -> None:
    result = plan(zygote, tmp_path, "dolly.yaml", *ZEPHYR, *args)
    assert result.code == 2 and "Traceback" not in result.err
    assert all(part in result.err for part in told), result.err


def test_the_plan_of_a_game_is_near_what_the_game_counts(played: Game) -> None:
    """Tokens of the sampled prompts and replies, of scoring and of training, against the stages' own facts. Here alone the replies have
    the lengths that were drawn, which nobody knows before: the plan is given their mean."""
    result = played.command("plan", "recipe.yaml", "--hardware", "cpu", "--generated-tokens", "6", "--json", "plan.json")
    assert result.code == 0, result.err
    stages = {stage["stage"]: stage for stage in json.loads((played.folder / "plan.json").read_text())["stages"]}
    for t in (0, 1):
        generate, score, train = (played.json(f"iterations/00{t}/{name}/done.json")["facts"] for name in ("generate", "score", "train"))
        assert stages[f"iterations/00{t}/generate"]["tokens"] == pytest.approx(generate["sampled_tokens"], rel=0.15)
        assert stages[f"iterations/00{t}/train"]["tokens"] == pytest.approx(train["trained_tokens"], rel=0.15)
        assert stages[f"iterations/00{t}/score"]["tokens"] == pytest.approx(score["scored_tokens"], rel=0.15)


# ---------------------------------------------------------------------------------------------- verdict and advice


def large(memory_gb: float):
    """A Llama of 0.7 billion parameters on a device of `memory_gb`."""
    shape = llama(hidden_size=2048, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=16, num_key_value_heads=16)
    lengths = replace(LENGTHS, longest_prompt=500, longest_reply=500, longest_generated=500)
    recipe = recipe_of("train.micro_batch_tokens=8192", "sampling.max_new_tokens=500")
    return estimate(recipe, shape, lengths, replace(GPU, memory=memory_gb * GB))


def test_a_plan_that_fits_needs_no_advice() -> None:
    plan = large(80)
    assert plan.fits and advise(plan) is None
    assert verdict(plan)[1].startswith("Fits: ") and len(verdict(plan)) == 2


@pytest.mark.parametrize("memory_gb", [10, 13, 16])
def test_the_change_that_is_named_makes_it_fit(memory_gb: float) -> None:
    plan = large(memory_gb)
    found = advise(plan)
    assert not plan.fits and found is not None
    changes, changed = found
    tried = estimate(load_recipe(plan.recipe, changes), plan.shape, plan.lengths, plan.hardware)
    assert tried.fits and tried.peak == changed.peak and tried.seconds == changed.seconds
    for option in changes:  # each is needed: they cost time
        fewer = load_recipe(plan.recipe, [one for one in changes if one != option])
        assert not estimate(fewer, plan.shape, plan.lengths, plan.hardware).fits, option
    _, what, remedy = verdict(plan)
    assert re.match(r"Does not fit: iterations/00\d/train needs", what) and all(change in remedy for change in changes)


def test_an_option_of_training_means_that_of_sft_too() -> None:
    """Full SFT of the same model needs as much as the game."""
    recipe = load_recipe(large(10).recipe, ["sft={micro_batch_tokens: 8192}"])
    found = advise(estimate(recipe, large(10).shape, large(10).lengths, large(10).hardware))
    assert found is not None
    of_train = {change.removeprefix("train.") for change in found[0] if change.startswith("train.")}
    assert of_train and {change.removeprefix("sft.") for change in found[0] if change.startswith("sft.")} == of_train


def test_replies_and_benchmarks_need_whole_models_whatever_the_launcher_cuts(zygote: Zygote, tmp_path: Path) -> None:
    """70 billion weights over 32 devices: log-probs and training have their parts of them, measuring like scoring once vLLM draws."""
    recipe, hardware = "llama-70b-fsdp/recipe.yaml", ["--hardware", "32xH100-80G", "--json", "plan.json"]

    def planned(*options: str, advice: str = "") -> dict[str, float]:
        result = plan(zygote, tmp_path, recipe, *options, *hardware)
        assert result.code == 0 and advice in result.out, result.err
        found = json.loads((tmp_path / "plan.json").read_text())
        assert found["fits"] is (found["peak_bytes"] <= 80e9)
        return {stage["stage"].rpartition("/")[2]: stage["bytes"]["total"] for stage in found["stages"]}

    cut = planned()
    assert max(cut.values()) < 80e9 and cut["measure"] == pytest.approx(cut["generate"], rel=0.1), "vLLM fills its share of a device"
    whole = planned("sampling.engine=transformers", "sampling.vllm={}")
    assert {name for name, held in whole.items() if held > 141e9} == {"generate", "measure"}
    judged = planned("evaluate.benchmarks={tasks: [arc_easy]}", advice="Try: evaluate.benchmarks=null (")
    assert {name for name, held in judged.items() if held > 141e9} == {"benchmarks"}


@pytest.mark.parametrize(("strategy", "tokens"), [("ddp", 256), ("fsdp2", 2048)])
def test_micro_batches_are_as_large_as_the_shards_leave_room(strategy: str, tokens: int) -> None:
    """672M parameters: 12.1 GB of state for each of 8 devices, or 1.7; and 2.9 MB a token in 0.8 of 10 GB."""
    recipe = recipe_of("launcher.kind=accelerate", f"launcher.strategy={strategy}")
    assert estimate(recipe, large(80).shape, LENGTHS, replace(GPU, memory=10 * GB, count=8)).micro_batch_tokens == tokens


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("sampling.engine=vllm", "sampling.vllm.tensor_parallel=8"), "sampling.vllm.tensor_parallel needs 8 "),
        (("launcher={kind: accelerate, processes: 8}",), "launcher.processes needs 8 devices of 4. Lower it"),
    ],
)
def test_devices_that_are_not_there_do_not_fit(options: tuple[str, ...], told: str) -> None:
    four = replace(GPU, count=4)
    plan = estimate(recipe_of(*options), llama(), LENGTHS, four)
    assert not plan.fits and plan.peak.memory.total < GPU.memory
    assert told in verdict(plan)[1]
    assert estimate(recipe_of(*options), llama(), LENGTHS, replace(GPU, count=8)).fits


def test_ranks_on_a_cpu_share_it() -> None:
    """Two of them take two models' memory of the one machine, and are no faster together than one."""
    cpu = Hardware("cpu (2 cores)", "cpu", 1e12, 1e10, 8 * GB, "by hand")
    launcher = "launcher={kind: accelerate, cpu: true, processes: 2}"
    one, two = (estimate(recipe_of(*options), llama(), LENGTHS, cpu) for options in ((), (launcher,)))
    assert one.fits and two.fits, verdict(two)
    by_kind = [{stage.kind: stage for stage in plan.stages} for plan in (one, two)]
    assert by_kind[0]["train"].seconds == pytest.approx(by_kind[1]["train"].seconds)
    needed = by_kind[1]["train"].memory.total
    assert not estimate(recipe_of(launcher), llama(), LENGTHS, replace(cpu, memory=1.5 * needed)).fits
    assert estimate(recipe_of(), llama(), LENGTHS, replace(cpu, memory=1.5 * needed)).fits


def test_a_slow_number_format_is_warned_of_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Not for each change that is tried."""
    cpu = Hardware("cpu", "cpu", 1e11, 1e10, 0.1 * GB, "by hand")
    for name, found in (("find_hardware", cpu), ("find_shape", llama()), ("find_lengths", LENGTHS)):
        monkeypatch.setattr(f"sparring.planning.command.{name}", lambda *_, found=found: found)
    monkeypatch.setattr("sparring.policy.machine.fast_precision", lambda kind: "fp32")
    found = plan_of(recipe_of())
    assert not found.fits and len(verdict(found)) == 3
    assert caplog.text.count("train.precision: bf16 is slow on this CPU") == 1


def test_where_nothing_helps_that_is_said() -> None:
    plan = large(0.5)
    assert advise(plan) is None and "smaller model" in verdict(plan)[2]


def test_durations() -> None:
    assert [estimated_time(seconds) for seconds in (0.5, 9, 80, 600, 5220, 40_000)] == ["0.5 s", "9 s", "80 s", "10 min", "1.45 h", "11 h"]


@pytest.mark.parametrize("width", [80, 160])
def test_tables_at_both_widths(width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_plan(large(13), console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_the_devices_of_a_gpu_recipe_are_counted() -> None:
    """One process trains on one device, however many there are: the plan says so."""
    plan = estimate(recipe_of(), llama(), LENGTHS, find_hardware("8xL4"))
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_plan(plan, console)
    assert re.search(r"8x L4-24G, of which 1 train", console.export_text())


@pytest.mark.parametrize(
    ("options", "hardware", "is_open"),
    [
        ((), GPU, True),
        ((), replace(GPU, kind="cpu"), False),
        (("sampling.engine=transformers",), GPU, False),
        (("launcher=accelerate",), GPU, False),
        (("train.lora={rank: 8, dora: true}",), GPU, False),
    ],
)
def test_the_engine_is_an_assumption_where_the_run_chooses_it(options: tuple[str, ...], hardware: Hardware, is_open: bool) -> None:
    said = "\n".join(assumptions(estimate(recipe_of(*options), llama(), LENGTHS, hardware)))
    assert ("without sampling.engine, transformers is assumed" in said) is is_open and "sampling (transformers)" in said


def test_the_page_says_the_shares_that_are_assumed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    table = page[page.index("**Hours**") : page.index("**Memory**")]
    drawing = (*work.SAMPLING.values(), work.PAGED)
    for share in (*(one.operations for one in (*work.TRAINING.values(), *drawing)), *(one.bandwidth for one in drawing)):
        assert f"{share:.0%} of the" in table, share
    for moved in (one.moved for one in (*work.TRAINING.values(), *drawing) if one.moved):
        assert f"{moved:g} numbers moved for each" in table, moved


@pytest.mark.parametrize(
    ("file", "row", "number_bytes", "bandwidth"),
    [
        ("training_speed-avx2", "AMD EPYC without AVX-512, float32", 4, 16 * GB),
        ("training_speed", "AMD EPYC, AVX-512 bf16", 2, 25 * GB),
        ("training_speed-amx", "Intel Xeon, AMX", 2, 25 * GB),
    ],
)
def test_the_hours_of_a_cpu_on_the_page_follow_from_the_results(file: str, row: str, number_bytes: int, bandwidth: float) -> None:
    """Seconds for 1e12 operations: those measured in training, and those planned for products and copies as fast as there."""
    root = Path(__file__).parents[2]
    results = json.loads((root / "benchmarks" / "results" / f"{file}.json").read_text(encoding="utf-8"))["results"].values()
    shape = llama(hidden_size=work.WIDTH)

    def planned(shares: work.Shares) -> list[float]:
        machines = [replace(GPU, kind="cpu", flops=1e9 * one["matmul_peak_gflops"], bandwidth=bandwidth) for one in results]
        return [work.seconds(work.Work(flops=1e12), shares, machine, 1, shape, number_bytes) for machine in machines]

    def span(found: list[float]) -> str:
        return " to ".join(sorted({f"{min(found):.1f}", f"{max(found):.1f}"}))

    measured = [1e3 / (one["matmul_peak_gflops"] * one["utilisation"]["ours"]) for one in results]
    (line,) = (line for line in (root / "docs" / "plan.md").read_text(encoding="utf-8").splitlines() if line.startswith(f"| {row} |"))
    cells = line.split(" | ")
    assert cells[2:4] == [span(measured), span(planned(work.TRAINING["cpu"]))]
    assert cells[5].rstrip(" |") == span(planned(work.SAMPLING["cpu"]))


# ---------------------------------------------------------------------------------------------- docs/memory.md

MEMORY = (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_memory_table_is_what_the_script_prints(fresh_scripts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    assert importlib.import_module("memory_table").memory_table() in MEMORY, "run: python benchmarks/memory_table.py"


def test_every_recipe_that_the_memory_page_names_fits_its_card(zygote: Zygote, tmp_path: Path) -> None:
    """A line for each: card, then the command."""
    found = re.findall(r"^\| (\d+ GB|\d+ x \d+ GB)[^|]*\| `sparring plan recipes/([^`]*)` \|$", MEMORY, re.MULTILINE)
    assert len(found) >= 4
    for _, command in found:
        recipe, *args = shlex.split(command)
        result = plan(zygote, tmp_path, recipe, *args)
        assert result.code == 0 and "Fits: " in result.out, (command, result.out[-600:], result.err)
