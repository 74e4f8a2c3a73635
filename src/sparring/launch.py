"""Starting a stage on many ranks with `accelerate launch`, on one machine or several, and reporting their errors.

Machine 0 plays the game. For a stage on many ranks it calls the other machines (calls.py) and starts its own ranks. The ranks connect
through torch's rendezvous; Accelerate and torch number them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sparring import locks
from sparring.calls import WHERE, Address, Calls, answer_calls
from sparring.config import LauncherSection, Recipe, to_yaml
from sparring.config.sections.launcher import NO_DEEPSPEED
from sparring.console import is_quiet, log
from sparring.errors import UserError, first_line
from sparring.rundir import write_text

# Environment variables of the ranks: the folder for reports of their errors, and whether they log warnings only
REPORTS, QUIET = "SPARRING_REPORTS", "SPARRING_QUIET"
CALLED_RECIPE = "launch.yaml"
# Used instead of the user's own `accelerate config`, which must have no effect
NO_CONFIG = Path(__file__).with_name("accelerate.yaml")
DEFAULT_PORT = 29500
PATIENCE_SECONDS = 30.0


def check_launcher(launcher: LauncherSection) -> None:
    """Raise UserError for options with which this machine cannot start ranks."""
    if launcher.kind == "inline":
        return
    port = launcher.main_process_port or (DEFAULT_PORT if launcher.machines > 1 else None)
    if launcher.config_file is None:
        _check_devices(launcher)
        _check_port(launcher, launcher.main_process_ip, port)
    else:
        file = _check_config_file(launcher, Path(launcher.config_file).expanduser())
        _check_port(launcher, launcher.main_process_ip or file.main_process_ip, port or file.main_process_port)


def open_calls(recipe: Recipe) -> AbstractContextManager[Calls | None]:
    """Machine 0's calls to the others, for the time of a game; None if it plays alone. Raises UserError if it cannot listen."""
    launcher = recipe.launcher
    if launcher.machines == 1:
        return contextlib.nullcontext()
    address = _calls_address(launcher)
    try:
        return Calls(address[1], launcher.machines, recipe.seed)
    except OSError as error:
        raise _taken(launcher, address, error) from None


def launch(recipe: Recipe, root: Path, stage: str, calls: Calls | None = None) -> None:
    """Have the ranks compute a stage of the run in `root`, which their rank 0 commits.

    Raises their UserError, or RuntimeError if a rank was killed or failed: the run can resume from the last checkpoint.
    """
    write_text(root / CALLED_RECIPE, to_yaml(recipe))
    if calls is not None:
        address, port = _meeting_point(recipe.launcher)
        log.info(f"{stage}: the ranks of {recipe.launcher.machines} machines connect at {address}:{port}")
    with contextlib.nullcontext() if calls is None else calls.call(stage):
        _run_ranks(recipe.launcher, root, stage)


def follow(recipe: Recipe, root: Path) -> None:
    """Start this machine's ranks for every stage that machine 0 calls for, until the game is over. Raises UserError if machine 0 does
    not answer, or if another process of this machine does the same: both would start ranks."""
    launcher = recipe.launcher
    check_launcher(launcher)
    log.setLevel(logging.INFO)  # log_file would set it, but only machine 0 writes the run's log file
    number, address = launcher.machine_rank, _calls_address(launcher)
    with locks.hold(root, f"{locks.LOCK}-machine-{number}"):
        log.info(f"machine {number} of {launcher.machines}: waiting for calls of machine 0 at {address[0]}:{address[1]}")
        answer_calls(address, number, recipe.seed, lambda stage: _start_ranks(launcher, root, stage))


def command(launcher: LauncherSection, root: Path, stage: str) -> list[str]:
    """The command that starts this machine's ranks of a stage."""
    return [sys.executable, "-m", *LAUNCHERS[launcher.kind](launcher), "-m", "sparring", "stage", str(root / CALLED_RECIPE), stage]


def _accelerate(launcher: LauncherSection) -> list[str]:
    return ["accelerate.commands.launch", *_options(launcher)]


# launcher.kind -> the module that starts ranks, with its options; what each rank runs follows, as `-m MODULE ARGUMENTS`
LAUNCHERS: dict[str, Callable[[LauncherSection], list[str]]] = {"accelerate": _accelerate}


def _options(launcher: LauncherSection) -> list[str]:
    if launcher.config_file is not None:
        options = ["--config_file", str(Path(launcher.config_file).expanduser())]
        options += ["--num_processes", str(launcher.processes)] if launcher.processes else []
        if launcher.machines > 1:
            options += _machine_options(launcher)
        elif launcher.main_process_port:
            options += ["--main_process_port", str(launcher.main_process_port)]
        return options
    processes = process_count(launcher)
    options = ["--config_file", str(NO_CONFIG), "--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    options += _machine_options(launcher)
    # Accelerate's option for several processes by torch's own launcher, on GPUs or not
    options += ["--multi_gpu"] if processes > 1 else ["--cpu"] if launcher.cpu else []
    if launcher.cpu and "OMP_NUM_THREADS" not in os.environ:
        options += ["--num_cpu_threads_per_process", str(max(1, (os.cpu_count() or 1) * launcher.machines // processes))]
    return options


def _machine_options(launcher: LauncherSection) -> list[str]:
    options = ["--num_machines", str(launcher.machines), "--machine_rank", str(launcher.machine_rank)]
    if launcher.machines == 1:
        return [*options, "--main_process_port", str(launcher.main_process_port or 0)]  # 0: a free one
    port = str(launcher.main_process_port or DEFAULT_PORT)
    address = ["--main_process_ip", launcher.main_process_ip] if launcher.main_process_ip else []  # else the config file has it
    return [*options, *address, "--main_process_port", port, "--same_network"]


def process_count(launcher: LauncherSection) -> int:
    """Ranks on all machines together."""
    return launcher.processes or launcher.machines * max(1, _gpus())


def ranks_here(launcher: LauncherSection) -> int:
    """Ranks on this machine."""
    return 1 if launcher.kind == "inline" else max(1, process_count(launcher) // launcher.machines)


def _run_ranks(launcher: LauncherSection, root: Path, stage: str) -> None:
    with tempfile.TemporaryDirectory(prefix="sparring-") as folder:
        environment = {**os.environ, **_environment(launcher), REPORTS: folder, **({QUIET: "1"} if is_quiet() else {})}
        process = subprocess.Popen(command(launcher, root, stage), env=environment)
        try:
            code = process.wait()
        except BaseException:  # an interrupt: the ranks' own launcher ends them
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_SECONDS)
            process.kill()
            raise
        _raise_reported(stage, code, [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("*.json"))])


def _environment(launcher: LauncherSection) -> dict[str, str]:
    return {"ACCELERATE_USE_CPU": "true"} if launcher.cpu else {}


def _raise_reported(stage: str, code: int, reports: list[dict[str, Any]]) -> None:
    for report in reports:
        if "what" in report:
            raise UserError(report["what"], where=report["where"], remedy=report["remedy"])
    if code or reports:
        found = "".join(f"; rank {report['rank']} raised {report['fault']}" for report in reports)
        raise RuntimeError(
            f"{stage}: a rank was killed or failed; the launcher's lines above say which was first{found}. "
            "An unexplained signal 9 (SIGKILL) usually means out of memory"
        )


def _start_ranks(launcher: LauncherSection, root: Path, stage: str) -> None:
    try:
        log.info(f"{stage}: starting the ranks of this machine")
        _run_ranks(launcher, root, stage)
    except (UserError, RuntimeError) as error:
        log.warning(f"{error}\nwaiting for machine 0 to resume")


def _meeting_point(launcher: LauncherSection) -> Address:
    """Address and port of the rendezvous of several machines' ranks."""
    file = None if launcher.config_file is None else _read_config_file(Path(launcher.config_file).expanduser())
    return launcher.main_process_ip or getattr(file, "main_process_ip", None) or "", launcher.main_process_port or DEFAULT_PORT


def _calls_address(launcher: LauncherSection) -> Address:
    """Address and port of machine 0's calls: the port after that of the rendezvous."""
    address, port = _meeting_point(launcher)
    if not address:
        what = f"the address of machine 0 is missing, here and in {launcher.config_file}"
        raise UserError(what, where="launcher.main_process_ip", remedy="give it, the same on all machines")
    return address, port + 1


def _check_config_file(launcher: LauncherSection, path: Path) -> Any:
    """The settings in the file. Raises UserError if they need what this machine or the recipe does not have."""
    file, where = _read_config_file(path), f"launcher.config_file ({path})"
    if file.distributed_type == "DEEPSPEED":
        remedy = "set distributed_type: FSDP and fsdp_version: 2 in it"
        raise UserError(f"distributed_type: DEEPSPEED; {NO_DEEPSPEED}", where=where, remedy=remedy)
    if not launcher.cpu and not file.use_cpu and _gpus() == 0:
        raise _no_gpu(where)
    if file.num_machines > 1 and launcher.machines == 1:
        what = f"it names {file.num_machines} machines, and launcher.machines is 1: the ranks would wait for each other"
        raise UserError(what, where=where, remedy="give launcher.machines and, on every machine, launcher.machine_rank")
    return file


def _read_config_file(path: Path) -> Any:
    """Accelerate's ClusterConfig."""
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file

    if not path.is_file():
        remedy = "`accelerate config --config_file FILE` writes one"
        raise UserError(f"no such file: {path}", where="launcher.config_file", remedy=remedy)
    try:
        return load_config_from_file(str(path))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"Accelerate cannot read it: {first_line(error)}", where=f"launcher.config_file ({path})") from None


def _no_gpu(where: str) -> UserError:
    return UserError(
        "this machine has no GPU that torch can use, and the launcher would start its ranks on GPUs",
        where=where,
        remedy="launcher.cpu=true starts ranks on CPU, launcher=inline computes in one process",
    )


def _check_devices(launcher: LauncherSection) -> None:
    processes = process_count(launcher)
    if processes % launcher.machines:
        raise UserError(
            f"{processes} processes cannot be spread evenly over {launcher.machines} machines",
            where="launcher.processes",
            remedy="it counts the ranks of all machines together: give a multiple of launcher.machines",
        )
    here, gpus = processes // launcher.machines, _gpus()
    if launcher.cpu:
        return
    if gpus == 0:
        raise _no_gpu("launcher")
    if here > gpus:
        raise UserError(
            f"{here} ranks on this machine, which has {gpus} GPUs", where="launcher.processes", remedy="give every rank a GPU of its own"
        )


def _check_port(launcher: LauncherSection, address: str | None, port: int | None) -> None:
    """The rendezvous port must be free; on one machine it is chosen automatically."""
    if not port or launcher.machine_rank > 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address or "", port))
        except OSError as error:
            raise _taken(launcher, (address or "", port), error) from None


def _taken(launcher: LauncherSection, address: Address, error: OSError) -> UserError:
    return UserError(
        f"the ranks cannot connect there: {error.strerror}",
        where=f"{WHERE} ({address[0]}:{address[1]})",
        remedy="choose another port, the same on all machines" if launcher.machines > 1 else "choose another, or leave it out",
    )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
