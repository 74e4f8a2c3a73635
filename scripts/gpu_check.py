"""`make gpu-check`: correctness and speed on one GPU, in at most 8 minutes, without network.

    python scripts/gpu_check.py [--dry] [out=runs/gpu_check] [wheels=wheels] [minutes=8] [steps=tests,game,...]

Steps run in order of importance, each in a separate process with a time limit. After each step OUT/gpu_check.json is rewritten; the same
command resumes with the steps that are not done, so an interruption loses no finished step. Of several GPUs it uses the first.
Exit code 1 when a step failed or had no time, or a goal is missed, 2 when a requirement of the project is missing, before any step.
--dry: tiny shapes on the CPU, to test the script; goals do not count, steps have no time limits, and minutes=60 is the default.

The machine must have Python 3.12, PyTorch for CUDA, transformers, accelerate and peft, with what these require. Everything else in
pyproject.toml is taken from the folder of wheels if it is not installed; before, where there is network: python scripts/gpu_wheels.py.
TRL, bitsandbytes and vLLM are optional: without them their steps are left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

from gpu_steps import end_all  # noqa: E402
from gpu_wheels import install, unmet  # noqa: E402

DEFAULTS = {"out": "runs/gpu_check", "wheels": "wheels", "minutes": "", "steps": ""}
MINUTES = {"real": 8, "dry": 60}  # of a call; a dry run may share its CPU with other programs
# step -> its time limit in seconds, in order of importance: after correctness what the goals need, then the rest. Up to half of that of
# training may go into compiling flex attention: with and without gradient, for the first size and for all; a third of that of sampling
# into compiling `generate`. fsdp2 starts a rank for each of nine stages.
LIMITS = {
    "tests": 150,
    "game": 90,
    "train_large": 180,
    "trl_large": 120,
    "sampling": 120,
    "train_small": 100,
    "trl_small": 60,
    "lora": 60,
    "qlora": 60,
    "fsdp2": 150,
    "vllm": 120,
}
PARTLY = {"tests", "sampling"}  # print what they have found so far, which counts when they are cut
WITHOUT_WEIGHTS = {"tests", "game", "fsdp2"}  # the other steps use the models that are made while the first steps run
NEEDS = {"trl_small": "trl", "trl_large": "trl", "qlora": "bitsandbytes", "vllm": "vllm"}
NOT_DRY = {
    "train_large": "its shape is that of train_small",
    "trl_large": "its shape is that of trl_small",
    "vllm": "a CPU says nothing about it",
}
FILE = "gpu_check.json"
LEAST = 15  # seconds under which no step is begun
NO_TIME, CUT = "no time left", "cut: it took too long"


@dataclass(frozen=True)
class Goal:
    """`is_met` is None where it was not measured."""

    what: str
    found: str
    is_met: bool | None


def goals_of(results: Mapping[str, Mapping[str, Any]]) -> Iterator[Goal]:
    """What the results say to the goals. results: step -> what it printed."""
    ended = {name: one for name, one in results.items() if one["status"] == "done" or name in PARTLY}
    found = {name: one["found"] for name, one in ended.items() if one.get("found")}
    tests = found.get("tests", {})
    code = "cut" if tests.get("exit") is None else f"exit code {tests['exit']}"
    said = ", ".join([*(f"{tests.get(word)} {word}" for word in ("passed", "failed", "error", "skipped")), code])
    is_passed = tests.get("exit") == 0 and tests["passed"] > 0 if tests else None
    yield Goal("tests/test_gpu.py passes", said if tests else "", is_passed)
    game = found.get("game")
    yield Goal("a killed run resumes", str(game["went_on"]) if game else "", game["killed"] and game["went_on"] if game else None)
    margins = [margin for name in ("game", "fsdp2") for margin in found.get(name, {}).get("first_margins", [])]
    margins += [found[name]["first_margin"] for name in ("train_small", "train_large", "lora", "qlora") if name in found]
    yield Goal("first-step margin exactly 0", ", ".join(f"{m:g}" for m in margins), all(m == 0 for m in margins) if margins else None)
    yield _at_least("MFU of training, 7B, of the data sheet's peak", found.get("train_large", {}).get("mfu_of_datasheet"), 0.45)
    yield _at_least("times TRL's tokens a second, 7B", _ratio(found, "train_large", "trl_large"), 3)
    rates = sampling_rates(results)
    is_known = {"packed", "generate"} <= set(rates)
    yield _at_least("times `generate`, sampling", rates["packed"] / rates["generate"] if is_known else None, 5)


def sampling_rates(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """way of sampling -> reply tokens a second, for the same prompts."""
    found = [results.get(name, {}).get("found") or {} for name in ("sampling", "vllm")]
    return {way: rate for one in found for way, rate in one.get("tokens_per_second", {}).items()}


def _ratio(found: Mapping[str, Any], ours: str, theirs: str) -> float | None:
    return found[ours]["tokens_per_second"] / found[theirs]["tokens_per_second"] if ours in found and theirs in found else None


def _at_least(what: str, found: float | None, goal: float) -> Goal:
    return Goal(f"{what} >= {goal:g}", "" if found is None else f"{found:.3g}", None if found is None else found >= goal)


def print_goals(goals: Iterable[Goal], is_dry: bool) -> None:
    words = {True: "met", False: "MISSED", None: "not measured"}
    print("\n| goal | found | |\n|---|---|---|")
    for goal in goals:
        print(f"| {goal.what} | {goal.found} | {'dry' if is_dry else words[goal.is_met]} |")


# --- running


def code_hash() -> str:
    """Of what is measured and what measures: there may be no git on the GPU's machine."""
    files = [file for folder in ("src", "benchmarks", "scripts", "tests") for file in sorted((ROOT / folder).rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def environment(mode: str) -> dict[str, str]:
    """Variables of all steps."""
    offline = {"HF_HUB_OFFLINE": "1"}  # else libraries wait for a network that is not there
    if mode == "dry":  # with several threads, tiny products on a busy machine spend most of their time waiting for each other
        return {**offline, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**offline, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}  # TRL would use several GPUs


def missing_for_triton() -> list[str]:
    """What this machine lacks of what Triton needs: it compiles a C module for Python before its first kernel."""
    compilers = filter(None, (os.environ.get("CC"), "gcc", "clang"))
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return [*([] if any(map(shutil.which, compilers)) else ["gcc or clang"]), *([] if headers.exists() else [str(headers)])]


class Check:
    """The steps of one call, and the file that keeps what they found."""

    def __init__(self, out: Path, wheels: Path, mode: str, seconds: float) -> None:
        self.out, self.mode, self.ends = out, mode, time.monotonic() + seconds
        self.file = out / FILE
        out.mkdir(parents=True, exist_ok=True)
        self.site = out / "site"
        self.installed = install(wheels, self.site)
        sys.path.append(str(self.site))
        path = [str(ROOT / "src"), str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {**os.environ, **environment(mode), "PYTHONPATH": os.pathsep.join(path)}
        self.said = {"mode": self.mode, "code": code_hash(), "machine": self._machine(), "missing": []}
        self.results = self._kept()

    def run(self, steps: Iterable[str]) -> None:
        """Every step that is not done yet, in the order of LIMITS; the models are made while the first of them run."""
        todo = [name for name in LIMITS if name in set(steps) and self.results.get(name, {}).get("status") != "done"]
        self._write()
        making = self._start("models") if set(todo) - WITHOUT_WEIGHTS else None
        try:
            for name in todo:
                if making is not None and name not in WITHOUT_WEIGHTS:  # while it runs, it also holds memory of the GPU
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        making.wait(max(0, self.ends - time.monotonic()))
                self.results[name] = self._step(name)
                self._write()
                _print_step(name, self.results[name])
        finally:
            if making is not None:
                _end(making)

    def _step(self, name: str) -> dict[str, Any]:
        if (reason := self._why_not(name)) is not None:
            return {"status": f"left out: {reason}"}
        left = self.ends - time.monotonic()
        if left < LEAST:
            return {"status": NO_TIME}
        began, before = time.monotonic(), os.times()
        process = self._start(name)
        try:
            status = "done" if process.wait(min(left, LIMITS[name]) if self.mode == "real" else left) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = CUT
        finally:  # on Ctrl-C too, which does not reach a session of its own
            _end(process)
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        out, errors = (self._log(name, kind).read_text(encoding="utf-8", errors="replace") for kind in ("out", "err"))
        facts = {"status": status, "seconds": time.monotonic() - began, "cpu_seconds": used, "found": _last_json(out)}
        return facts if status == "done" else {**facts, "error": errors[-2000:]}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        """A step in a session of its own. It writes to files, which are there if this process is killed."""
        with self._log(name, "out").open("w") as out, self._log(name, "err").open("w") as errors:
            return subprocess.Popen(self._command(name), env=self.environment, cwd=ROOT, stdout=out, stderr=errors, start_new_session=True)

    def _log(self, name: str, kind: str) -> Path:
        return self.out / f"{name}.{kind}"

    def _why_not(self, name: str) -> str | None:
        """Why a step cannot run here."""
        if self.mode == "dry" and name in NOT_DRY:
            return f"with --dry {NOT_DRY[name]}"
        package = NEEDS.get(name)
        if package is None or self._has(package):
            return None
        return f"{package} cannot be imported here, nor from a wheel in {self.site}"

    def _command(self, name: str) -> list[str]:
        return [sys.executable, str(ROOT / "scripts" / "gpu_steps.py"), name, str(self.out), self.mode, str(os.getpid())]

    def _has(self, package: str) -> bool:
        return subprocess.run([sys.executable, "-c", f"import {package}"], env=self.environment, capture_output=True).returncode == 0

    def _machine(self) -> dict[str, Any]:
        """Versions, commit and card; a process of its own, so that this one holds no memory of the card."""
        code = (
            "import json, sys, torch; sys.path.insert(0, 'benchmarks'); from common import machine; "
            "print(json.dumps({**machine(), 'card': torch.cuda.get_device_name() if torch.cuda.is_available() else None}))"
        )
        done = subprocess.run([sys.executable, "-c", code], env=self.environment, cwd=ROOT, capture_output=True, text=True, check=True)
        return {**json.loads(done.stdout.splitlines()[-1]), "wheels": self.installed, "compiler_lacks": missing_for_triton()}

    def _kept(self) -> dict[str, dict[str, Any]]:
        """The results of an earlier call with the same code on the same kind of card."""
        before = read(self.file)
        if "steps" not in before:
            return {}
        same = before["machine"]["card"] == self.said["machine"]["card"]
        return before["steps"] if same and all(before[name] == self.said[name] for name in ("mode", "code")) else {}

    def _write(self) -> None:
        goals = [vars(goal) for goal in goals_of(self.results)]
        write(self.file, {**self.said, "steps": self.results, "sampling_tokens_per_second": sampling_rates(self.results), "goals": goals})


def _end(process: subprocess.Popen[bytes]) -> None:
    end_all(process.pid)
    process.wait()


def _print_step(name: str, result: Mapping[str, Any]) -> None:
    took = f", {result['seconds']:.0f} s ({result['cpu_seconds']:.0f} s of CPU time)" if "seconds" in result else ""
    print(f"{name}: {result['status']}{took}", flush=True)


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write(file: Path, found: dict[str, Any]) -> None:
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    aside.replace(file)


def refuse(file: Path, missing: list[str], wheels: Path) -> int:
    """Print which requirements are missing and add them to the file, which keeps what an earlier call found. Returns the exit code."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, {**read(file), "missing": missing})
    print(
        f"{wheels.absolute()}: has no wheel for {', '.join(missing)}, and {sys.executable} has no such package either; every requirement "
        "in pyproject.toml must be installed or in this folder, so no step was begun\n"
        f"  -> where there is network, `python scripts/gpu_wheels.py {wheels}` downloads wheels for Python 3.12 on x86-64 Linux; PyTorch, "
        "transformers, accelerate, peft and what these require must be installed on this machine",
        file=sys.stderr,
    )
    return 2


def _last_json(text: str) -> dict[str, Any] | None:
    """The last line that is a JSON object: TRL prints its logs as Python's dictionaries, and a step that was cut ends with one of them."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            if line.startswith("{"):
                return json.loads(line)
    return None


def main(words: list[str]) -> int:
    options = dict(DEFAULTS)
    for word in words:
        name, equals, value = word.partition("=")
        if word != "--dry" and (not equals or name not in options):
            sys.exit(f"{word}: not an option\n{__doc__}")
        options |= {name: value} if equals else {}
    is_dry = "--dry" in words
    steps = options["steps"].split(",") if options["steps"] else list(LIMITS)
    if unknown := set(steps) - set(LIMITS):
        sys.exit(f"no such steps: {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
    out, wheels = Path(options["out"]).resolve(), Path(options["wheels"])
    if missing := unmet(wheels, "tests" in steps):
        return refuse(out / FILE, missing, wheels)
    mode = "dry" if is_dry else "real"
    check = Check(out, wheels, mode, 60 * float(options["minutes"] or MINUTES[mode]))
    if (lacks := missing_for_triton()) and not is_dry:
        print(f"this machine has no {', no '.join(lacks)}: flex attention cannot be compiled, so its tests fail and training is slower")
    check.run(steps)
    goals = list(goals_of(check.results))
    print_goals(goals, is_dry)
    if rates := sampling_rates(check.results):
        print("\nsampling, reply tokens a second: " + ", ".join(f"{way} {rate:.0f}" for way, rate in rates.items()))
    return verdict(check, goals, is_dry)


def verdict(check: Check, goals: Iterable[Goal], is_dry: bool) -> int:
    """Print what is in the file and what is not. Returns the exit code."""
    failed = [name for name, one in check.results.items() if one["status"] in ("failed", CUT)]
    waiting = [name for name, one in check.results.items() if one["status"] == NO_TIME]
    print(f"\n{check.file}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    if failed or waiting:
        print(f"not done: {', '.join([*failed, *waiting])}; the same command resumes with them")
    else:
        print("every step is done or left out; without this file, the same command repeats them")
    return 1 if failed or waiting or (not is_dry and any(goal.is_met is False for goal in goals)) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the running step would not end
    sys.exit(main(sys.argv[1:]))
