"""`make gpu-check` without a card: it runs to its end, keeps what it has found, and judges by the goals."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gpu_check")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gpu_steps")


class FakeSteps:
    """Stands in for gpu_steps.py: `says` is what each step does, as Python."""

    def __init__(self, folder: Path, says: dict[str, str]) -> None:
        self.file, self.log = folder / "steps.py", folder / "called"
        lines = [f"    {name!r}: {code!r}," for name, code in says.items()]
        self.file.write_text(
            "import json, sys, time\n"
            f"open({str(self.log)!r}, 'a').write(sys.argv[1] + ' ')\n"
            "exec({\n" + "\n".join(lines) + "\n}.get(sys.argv[1], ''))\n"
        )

    def command(self, name: str) -> list[str]:
        return [sys.executable, str(self.file), name]

    @property
    def called(self) -> list[str]:
        return sorted(set(self.log.read_text().split()) - {"models"})


@pytest.fixture
def checked(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the check over fake steps; gives them and the file that was written."""

    def run(says: dict[str, str], minutes: float = 1.0, limits: dict[str, int] | None = None) -> tuple[list[str], dict[str, Any]]:
        fake = FakeSteps(tmp_path, says)
        fake.log.write_text("")
        monkeypatch.setattr(check, "LIMITS", limits or dict.fromkeys(says, 30))
        monkeypatch.setattr(check, "LEAST", 1)
        monkeypatch.setattr(check.Check, "_command", lambda _, name: fake.command(name))
        monkeypatch.setattr(check.Check, "_machine", lambda _: {"card": None})
        one = check.Check(tmp_path / "out", tmp_path / "no wheels", "real", 60 * minutes)
        one.run(says)
        return fake.called, json.loads((tmp_path / "out" / "gpu_check.json").read_text())

    return run


GAME = "print(json.dumps({'killed': True, 'went_on': True, 'first_margins': [0.0]}))"


def test_a_step_that_fails_or_takes_too_long_costs_no_other_its_result(checked: Any) -> None:
    says = {
        "tests": "raise SystemExit('broken')",
        "lora": "print(json.dumps({'log': 1})); raise SystemExit('broken')",
        "sampling": "print(json.dumps({'tokens_per_second': {'packed': 5}}), {'loss': 1}, sep='\\n', flush=True); time.sleep(60)",
        "trl_small": "print({'loss': 1}, flush=True); time.sleep(60)",
    }
    _, found = checked({**says, "game": GAME}, limits={"tests": 30, "lora": 30, "sampling": 2, "trl_small": 2, "game": 30})
    steps = found["steps"]
    assert steps["tests"]["status"] == "failed" and "broken" in steps["tests"]["error"]
    assert steps["sampling"]["status"].startswith("cut") and steps["sampling"]["found"] == {"tokens_per_second": {"packed": 5}}
    assert steps["trl_small"]["status"].startswith("cut") and steps["trl_small"]["found"] is None  # but TRL's log, which is no JSON
    assert steps["game"]["status"] == "done" and steps["game"]["found"]["went_on"] is True


def test_a_second_call_goes_on_with_what_is_not_done(checked: Any) -> None:
    called, found = checked({"game": GAME, "tests": "raise SystemExit('broken')"})
    assert called == ["game", "tests"]
    called, found = checked({"game": GAME, "tests": "print(json.dumps({'passed': 3}))"})
    assert called == ["tests"] and found["steps"]["game"]["status"] == found["steps"]["tests"]["status"] == "done"


def test_ctrl_c_ends_the_step_in_work_too(checked: Any, tmp_path: Path) -> None:
    """It would hold the card beside the next call's steps."""
    file = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        checked({"game": f"import os; open({str(file)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), 2); time.sleep(60)"})
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(file.read_text())).wait(10)


def test_a_killed_check_leaves_no_step_at_work(tmp_path: Path) -> None:
    """Nor what the step has started in sessions of their own, as torch starts ranks: they would hold the GPU while the next call runs."""
    step = (
        f"import os, subprocess, sys, threading, time; sys.path.insert(0, {str(SCRIPTS)!r}); import gpu_steps\n"
        "threading.Thread(target=gpu_steps.end_with, args=(os.getppid(),), daemon=True).start()\n"
        "print(os.getpid(), subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True)\n"
        "time.sleep(60)"
    )
    check = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {step!r}], start_new_session=True)"
    process = subprocess.Popen([sys.executable, "-c", check], stdout=subprocess.PIPE, text=True)
    started = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(started) == 2 and all(one.is_running() for one in started)
    process.kill()
    process.wait()
    for one in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.wait(30)


def test_a_third_call_starts_nothing_and_says_so(
    checked: Any, check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        checked({"game": GAME})
    assert (tmp_path / "called").read_text() == "", "not even the models"
    assert (tmp_path / "out" / "game.out").read_text().startswith('{"killed"'), "what a step prints is on disk"
    kept = check.Check(tmp_path / "out", tmp_path / "no wheels", "real", 60)
    assert check.verdict(kept, [], False) == 0 and "every step is done or left out" in capsys.readouterr().out


def test_the_models_are_made_for_steps_that_use_them(checked: Any, tmp_path: Path) -> None:
    for name, started in (("game", ["game"]), ("sampling", ["models", "sampling"])):
        checked({name: GAME})
        assert sorted((tmp_path / "called").read_text().split()) == started


def test_steps_without_time_make_the_exit_code_1(
    checked: Any, check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked({"game": GAME}, minutes=0)
    kept = check.Check(tmp_path / "out", tmp_path / "no wheels", "real", 60)
    assert check.verdict(kept, [], False) == 1 and "not done: game; the same command resumes" in capsys.readouterr().out


def test_a_dry_run_sees_no_gpu_and_others_see_one(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.environment("dry")["CUDA_VISIBLE_DEVICES"] == "" and check.environment("dry")["OMP_NUM_THREADS"] == "1"
    for given, expected in ((None, "0"), ("3,1", "3"), ("GPU-1f", "GPU-1f")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if given:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert check.environment("real")["CUDA_VISIBLE_DEVICES"] == expected and "OMP_NUM_THREADS" not in check.environment("real")


def test_a_machine_on_which_triton_cannot_compile_is_named(check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(check.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(check.shutil, "which", lambda name: None if name == "gcc" else f"/usr/bin/{name}")
    assert check.missing_for_triton() == [str(tmp_path / "Python.h")]
    (tmp_path / "Python.h").touch()
    assert check.missing_for_triton() == []
    monkeypatch.setattr(check.shutil, "which", lambda _: None)
    assert check.missing_for_triton() == ["gcc or clang"]


def test_no_step_is_begun_when_the_time_is_over(checked: Any) -> None:
    called, found = checked({"game": GAME}, minutes=0)
    assert called == [] and found["steps"]["game"] == {"status": "no time left"}


def of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: {"status": "done", "found": one} for name, one in found.items()}


def test_goals_are_met_missed_or_not_measured(check: ModuleType) -> None:
    def judged(found: dict[str, Any]) -> list[bool | None]:
        return [goal.is_met for goal in check.goals_of(of(found))]

    assert judged({}) == [None] * 6
    good = {
        "tests": {"passed": 27, "failed": 0, "error": 0, "skipped": 1, "exit": 0},
        "game": {"killed": True, "went_on": True, "first_margins": [0.0, 0.0]},
        "train_large": {"mfu_of_datasheet": 0.47, "tokens_per_second": 9000.0, "first_margin": 0.0},
        "trl_large": {"tokens_per_second": 2900.0},
        "sampling": {"tokens_per_second": {"packed": 5000.0, "generate": 900.0}},
    }
    assert judged(good) == [True] * 6
    bad = {
        "tests": {"passed": 26, "failed": 1, "error": 0, "skipped": 1, "exit": 1},
        "game": {"killed": False, "went_on": False, "first_margins": [0.0, 1e-9]},
        "train_large": {"mfu_of_datasheet": 0.44, "tokens_per_second": 8000.0, "first_margin": 0.0},
        "trl_large": {"tokens_per_second": 2900.0},
        "sampling": {"tokens_per_second": {"packed": 4000.0, "generate": 900.0}},
    }
    assert judged(bad) == [False] * 6
    for odd in ({"passed": 0, "skipped": 27}, {"exit": None}, {"exit": 3}):  # no card; cut after some tests; pytest itself failed
        assert judged({"tests": {**good["tests"], **odd}})[0] is False


def test_vllm_is_left_out_with_a_reason_or_beside_packed_rows(checked: Any, check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    says = {way: f"print(json.dumps({{'tokens_per_second': {{{way!r}: 7.0}}}}))" for way in ("packed", "vllm")}
    says = {"sampling": says["packed"], "vllm": says["vllm"]}
    monkeypatch.setattr(check.Check, "_has", lambda _, package: False)
    called, found = checked(says)
    assert called == ["sampling"] and "vllm cannot be imported" in found["steps"]["vllm"]["status"]
    assert found["sampling_tokens_per_second"] == {"packed": 7.0}
    monkeypatch.setattr(check.Check, "_has", lambda _, package: True)
    called, found = checked(says)
    assert called == ["vllm"] and found["sampling_tokens_per_second"] == {"packed": 7.0, "vllm": 7.0}


def test_a_game_begins_anew_when_its_step_is_repeated(steps: ModuleType, tmp_path: Path) -> None:
    """In a finished one nothing could be killed, and nothing would be computed."""
    (tmp_path / "game").mkdir()
    assert str(tmp_path / "game") in steps.play(tmp_path / "game", steps.DRY)[5] and not (tmp_path / "game").exists()


class FakeVllm:
    """Stands in for VllmEngine and for the vLLM in it: replies as long as they are asked for."""

    said: ClassVar[list[str]] = []

    def __init__(self, folder: Path, sampling: Any, dtype: str, stop_ids: list[int]) -> None:
        assert (sampling.engine, dtype, stop_ids) == ("vllm", "bfloat16", [])
        self._llm = self

    def _settings(self, seed: int, logps: bool) -> SimpleNamespace:
        return SimpleNamespace(seed=seed)

    def reset_prefix_cache(self) -> None:
        self.said.append("forgotten")

    def generate(self, prompts: list[dict[str, Any]], asked: list[Any], use_tqdm: bool) -> list[SimpleNamespace]:
        self.said.append(f"{len(prompts)} prompts")
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * one.max_tokens)]) for one in asked]

    def close(self) -> None:
        self.said.append("closed")


def test_the_step_of_vllm(steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparring.opponent.vllm_engine.VllmEngine", FakeVllm)
    monkeypatch.setattr(steps, "model_at", lambda name: tmp_path)
    assert steps.vllm(tmp_path, steps.REAL)["tokens_per_second"]["vllm"] > 0
    assert FakeVllm.said == [*["forgotten", "256 prompts"] * 2, "closed"]


@pytest.mark.parametrize("workers", [0, 1])
def test_outcomes_are_read_from_what_pytest_says(workers: int, steps: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('name', ['a', 'b, c - d'])\n"
        "def test_name(name): assert name == 'a'\n"
        "@pytest.mark.skip\n"
        "def test_skipped(): ...\n"
        "def test_broken(missing): ...\n"
    )
    command = [sys.executable, "-m", "pytest", "-v", "-ra", "-p", "no:cacheprovider", "-n", str(workers), "tests/test_some.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    file = "tests/test_some.py"
    failures = [f"{file}::test_broken", f"{file}::test_name[b, c - d]"]
    assert steps.outcomes(said) == {"passed": 1, "failed": 1, "error": 1, "skipped": 1, "failures": failures}


def test_tests_that_are_cut_are_not_done(
    steps: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they found is kept, and the next call repeats them."""

    def cut(command: list[str], stdout: Any, timeout: float, **_: Any) -> None:
        stdout.write("tests/test_gpu.py::test_one PASSED [ 3%]\n")
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(steps.subprocess, "run", cut)
    with pytest.raises(SystemExit, match="cut after 130 s"):
        steps.tests(tmp_path, steps.REAL)
    found = json.loads(capsys.readouterr().out)
    assert (found["passed"], found["exit"]) == (1, None)


def test_pairs_of_a_dry_run_are_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    common = importlib.import_module("common")
    monkeypatch.setattr(common, "WORK", tmp_path)
    for shorter, longest in ((1, 850), (20, 41)):
        rows = json.loads(common.random_pairs(48, shorter).read_text())
        most = max(sum(map(len, row.values())) for row in rows)
        assert len(rows) == 48 and longest / 2 < most <= longest and all(all(row.values()) for row in rows)


def test_wheels_have_locked_versions(wheels: ModuleType) -> None:
    assert set(map(wheels.canonicalize_name, (*wheels.NAMES, *wheels.LARGE))) <= set(wheels.locked())


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("gpu_wheels")


def write_wheel(folder: Path, name: str, version: str, *requires: str, tag: str = "py3-none-any") -> str:
    """A wheel of one module. Returns its file name."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(file, "w") as packed:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in requires)]
        packed.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
        packed.writestr(f"{name}.py", "")
    return file.name


def test_only_missing_and_old_packages_are_taken_from_wheels(wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"pyyaml": "6.0", "typing-extensions": "4.9", "scipy": "1.11.0", "pandas": "1.0", "xxhash": "1.0"}
    monkeypatch.setattr(wheels, "installed", lambda: here)
    folder = tmp_path / "wheels"
    for name in ("PyYAML", "pandas"):
        write_wheel(folder, name, "999.0")
    write_wheel(folder, "of_another_python", "1.0", tag="cp27-cp27m-manylinux1_x86_64")
    (folder / "cut_short-1.0-py3-none-any.whl").touch()
    needed = [write_wheel(folder, "some_package", "999.0", "typing-extensions>=4.14", "xxhash>=2")]
    needed += [write_wheel(folder, name, "999.0") for name in ("scipy", "typing_extensions", "xxhash")]
    assert wheels.install(folder, tmp_path / "site") == needed
    assert {file.stem for file in (tmp_path / "site").glob("*.py")} == {Path(name).stem.split("-")[0] for name in needed}
    (tmp_path / "site" / "scipy.py").unlink()
    assert wheels.install(folder, tmp_path / "site") == needed
    assert not (tmp_path / "site" / "scipy.py").exists(), "a second call does not unpack them again"


BARE = ("torch", "transformers", "accelerate", "peft", "numpy", "packaging", "safetensors", "tokenizers", "huggingface-hub", "jinja2")
BARE += ("markupsafe", "pyyaml", "psutil", "tqdm", "filelock", "fsspec", "setuptools")


def test_on_a_bare_machine_every_missing_requirement_is_named_before_any_step(
    check: ModuleType, wheels: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is installed is as the docstrings ask, but for an old accelerate; of the wheels that gpu_wheels.py downloads, one is lost."""
    here, locked = wheels.installed(), wheels.locked()
    monkeypatch.setattr(wheels, "installed", lambda: {**{name: here[name] for name in BARE}, "accelerate": "1.0"})
    folder, out = tmp_path / "wheels", tmp_path / "out"
    for name in map(wheels.canonicalize_name, wheels.NAMES):
        of_it = [text for text in importlib.metadata.requires(name) or [] if "extra ==" not in text]
        if name != "tzdata":  # which matplotlib and pandas require by way of python-dateutil
            write_wheel(folder, name.replace("-", "_"), locked[name], *of_it)
    write_wheel(folder, "of_no_use", "1.0", "not_there")
    out.mkdir()
    (out / check.FILE).write_text(json.dumps({"steps": {"game": {"status": "done"}}}))
    assert check.main([f"out={out}", f"wheels={folder}"]) == 2
    said = capsys.readouterr().err
    missing = ["accelerate>=1.10 (there is 1.0)", "tzdata"]
    assert f"{folder}: has no wheel for {', '.join(missing)}, and" in said and "  -> where there is network" in said
    assert json.loads((out / check.FILE).read_text()) == {"steps": {"game": {"status": "done"}}, "missing": missing}
    assert wheels.unmet(tmp_path / "nowhere", False)[:3] == ["accelerate>=1.10 (there is 1.0)", "datasets>=4.0", "pyarrow>=17"]


def test_options_are_checked() -> None:
    for word, said in (("out", "not an option"), ("steps=tests,nothing", "no such steps: nothing")):
        done = subprocess.run([sys.executable, SCRIPTS / "gpu_check.py", word], capture_output=True, text=True)
        assert done.returncode == 1 and said in done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project's files under another root, so that the weights of the steps are made there and not in runs/."""
    root = tmp_path / "project"
    root.mkdir()
    for name in ("scripts", "benchmarks", "src", "tests", "recipes", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    return root


def test_a_dry_run_of_some_steps_ends_with_their_results(project: Path, tmp_path: Path) -> None:
    """In processes, from the command to the file: one step that computes, and one that a CPU leaves out."""
    command = [sys.executable, project / "scripts" / "gpu_check.py", "--dry", f"out={tmp_path / 'out'}", "steps=sampling,vllm"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert (found["mode"], found["missing"], found["machine"]["card"]) == ("dry", [], None) and found["machine"]["torch"]
    assert {name: one["status"].partition(":")[0] for name, one in found["steps"].items()} == {"sampling": "done", "vllm": "left out"}
    rates = found["sampling_tokens_per_second"]
    assert set(rates) == {"packed", "generate", "generate, static cache"} and min(rates.values()) > 0
    assert [goal["is_met"] is None for goal in found["goals"]] == [True] * 5 + [False]
    assert "sampling, reply tokens a second: packed " in done.stdout and (project / "runs").is_dir()


@pytest.mark.slow
def test_it_runs_to_its_end_on_a_cpu(project: Path, tmp_path: Path) -> None:
    command = [sys.executable, project / "scripts" / "gpu_check.py", "--dry", f"out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    statuses = [one["status"].partition(":")[0] for one in found["steps"].values()]
    assert statuses.count("done") == 8 and statuses.count("left out") == 3 == len(statuses) - 8
    by_goal = {goal["what"]: goal["is_met"] for goal in found["goals"]}
    assert by_goal["first-step margin exactly 0"] is True and by_goal["a killed run resumes"] is True
