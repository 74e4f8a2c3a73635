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
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sparring import locks
from sparring.calls import WHERE, Address, Calls, answer_calls
from sparring.config import LauncherSection, Recipe, to_yaml
from sparring.config.sections import NO_DEEPSPEED
from sparring.console import is_quiet, log
from sparring.errors import UserError, first_line
from sparring.policy.footprint import Parallel
from sparring.rundir import write_text

# Environment variables of the ranks: the folder for reports of their errors, and whether they log warnings only
REPORTS, QUIET = "SPARRING_REPORTS", "SPARRING_QUIET"
CALLED_RECIPE = "launch.yaml"
# Used instead of the user's own `accelerate config`, which must have no effect
NO_CONFIG = Path(__file__).with_name("accelerate.yaml")
# distributed_type of config files that can be used
OF_CONFIG_FILES = ("FSDP", "MULTI_GPU", "MULTI_CPU", "NO")
DEFAULT_PORT = 29500
PATIENCE_SECONDS, REASON_SECONDS = 30.0, 5.0


def with_config(launcher: LauncherSection) -> LauncherSection:
    """The section, with what its config file gives where the section itself gives nothing.

    Accelerate reads more of the file: the options of FSDP, and the choice of GPUs. Raises UserError.
    """
    if (file := _config_file(launcher)) is None:
        return launcher
    _check_config(launcher, file)
    return launcher.model_copy(
        update={
            "processes": launcher.processes or (file.num_processes if file.num_processes > 0 else None),  # -1: it gives no number
            "main_process_ip": launcher.main_process_ip or file.main_process_ip,
            "main_process_port": launcher.main_process_port or file.main_process_port or None,  # 0: any
            "strategy": "fsdp2" if file.distributed_type == "FSDP" else launcher.strategy,
            "cpu": launcher.cpu or bool(file.use_cpu) or file.distributed_type == "MULTI_CPU",
        }
    )


def _path(launcher: LauncherSection) -> Path | None:
    return None if launcher.config_file is None else Path(launcher.config_file).expanduser()


def _kind_of(launcher: LauncherSection) -> str | None:
    """distributed_type of the config file; None without one."""
    file = _config_file(launcher)
    return None if file is None else file.distributed_type


def check_launcher(launcher: LauncherSection) -> None:
    """Raise UserError for options with which this machine cannot start ranks."""
    if launcher.kind == "inline":
        return
    launcher = with_config(launcher)
    _check_devices(launcher)
    _check_port(launcher)


def open_calls(recipe: Recipe, root: Path) -> AbstractContextManager[Calls | None]:
    """Machine 0's calls to the others, for the time of the game in `root`; None if it plays alone. Raises UserError if it cannot listen."""
    launcher = recipe.launcher
    if launcher.machines == 1:
        return contextlib.nullcontext()
    address = _calls_address(launcher)
    try:
        return Calls(address[1], launcher.machines, root)
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
        _run_ranks(recipe.launcher, root, stage, failure=None if calls is None else calls.failure)


def follow(recipe: Recipe, root: Path) -> None:
    """Start this machine's ranks for every stage that machine 0 calls for, until the game is over. Raises UserError if machine 0 does
    not answer, or if another process of this machine does the same: both would start ranks."""
    launcher = recipe.launcher
    check_launcher(launcher)
    log.setLevel(logging.INFO)  # log_file would set it, but only machine 0 writes the run's log file
    number, address = launcher.machine_rank, _calls_address(launcher)
    with locks.hold(root, f"{locks.LOCK}-machine-{number}") as lock:
        log.info(f"machine {number} of {launcher.machines}: waiting for calls of machine 0 at {address[0]}:{address[1]}")
        answer_calls(address, number, root, lambda stage, stopped: _start_ranks(launcher, root, stage, lock, stopped))


def command(launcher: LauncherSection, root: Path, stage: str) -> list[str]:
    """The command that starts this machine's ranks of a stage."""
    return [sys.executable, "-m", *LAUNCHERS[launcher.kind](launcher), "-m", "sparring", "stage", str(root / CALLED_RECIPE), stage]


def _accelerate(launcher: LauncherSection) -> list[str]:
    launcher = with_config(launcher)
    processes = process_count(launcher)
    file = str(_path(launcher) or NO_CONFIG)
    options = ["accelerate.commands.launch", "--config_file", file, "--num_processes", str(processes), *_machine_options(launcher)]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    if _kind_of(launcher) not in ("FSDP", "MULTI_GPU"):  # which start several without an option
        # Accelerate's option for several processes by torch's own launcher, on GPUs or not
        options += ["--multi_gpu"] if processes > 1 else ["--cpu"] if launcher.cpu else []
    if launcher.cpu and "OMP_NUM_THREADS" not in os.environ:
        options += ["--num_cpu_threads_per_process", str(max(1, (os.cpu_count() or 1) * launcher.machines // processes))]
    return options


# launcher.kind -> the module that starts ranks, with its options; what each rank runs follows, as `-m MODULE ARGUMENTS`
LAUNCHERS: dict[str, Callable[[LauncherSection], list[str]]] = {"accelerate": _accelerate}


def _machine_options(launcher: LauncherSection) -> list[str]:
    options = ["--num_machines", str(launcher.machines), "--machine_rank", str(launcher.machine_rank)]
    if launcher.machines == 1:
        return [*options, "--main_process_port", str(launcher.main_process_port or 0)]  # 0: a free one
    port = str(launcher.main_process_port or DEFAULT_PORT)
    address = ["--main_process_ip", launcher.main_process_ip] if launcher.main_process_ip else []  # else the config file has it
    return [*options, *address, "--main_process_port", port, "--same_network"]


def process_count(launcher: LauncherSection) -> int:
    """Ranks on all machines together."""
    return with_config(launcher).processes or launcher.machines * max(1, _gpus())


def ranks_here(launcher: LauncherSection) -> int:
    """Ranks on this machine."""
    return 1 if launcher.kind == "inline" else max(1, process_count(launcher) // launcher.machines)


def parallel_of(launcher: LauncherSection) -> Parallel:
    """How the launcher's ranks share a training. A single rank shards nothing, except under FSDP of a config file on a GPU."""
    if launcher.kind == "inline":
        return Parallel()
    launcher = with_config(launcher)
    devices = process_count(launcher)
    is_alone = devices == 1 and (launcher.cpu or _kind_of(launcher) != "FSDP")
    return Parallel() if is_alone else Parallel(devices, launcher.strategy)


def _run_ranks(
    launcher: LauncherSection, root: Path, stage: str, lock: int | None = None, failure: Callable[[], str | None] | None = None
) -> None:
    """lock: descriptor of a lock that the launcher's process holds as well, so that after a SIGKILL of this one no other starts the
    same ranks. failure: what has failed on another machine, so that these ranks would wait for it."""
    with tempfile.TemporaryDirectory(prefix="sparring-", ignore_cleanup_errors=True) as folder:
        on_cpu = {"ACCELERATE_USE_CPU": "true"} if with_config(launcher).cpu else {}
        environment = {**os.environ, **on_cpu, REPORTS: folder, **({QUIET: "1"} if is_quiet() else {})}
        process = subprocess.Popen(command(launcher, root, stage), env=environment, pass_fds=() if lock is None else (lock,))
        try:
            code = _wait(process, stage, failure)
            other = None if failure is None or not code else _within(REASON_SECONDS, failure)
        except BaseException:  # an interrupt: the ranks' own launcher ends them
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE_SECONDS)
            process.kill()
            raise
        _raise_reported(stage, code, other, [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("*.json"))])


def _wait(process: subprocess.Popen[bytes], stage: str, failure: Callable[[], str | None] | None) -> int:
    """The exit code. Raises RuntimeError if another machine's ranks have failed and these do not end because of it."""
    while failure is not None and (found := failure()) is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1)
    if failure is None:
        return process.wait()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(PATIENCE_SECONDS)
    raise RuntimeError(f"{stage}: {found}")


def _within(seconds: float, failure: Callable[[], str | None]) -> str | None:
    """What another machine reports within this time: its ranks may have failed first, and these because of them."""
    ends = time.monotonic() + seconds
    while (found := failure()) is None and time.monotonic() < ends:
        time.sleep(0.1)
    return found


def _raise_reported(stage: str, code: int, other: str | None, reports: list[dict[str, Any]]) -> None:
    for report in reports:
        if "what" in report:
            raise UserError(report["what"], where=report["where"], remedy=report["remedy"])
    if code or reports:
        found = "".join(f"; rank {report['rank']} raised {report['fault']}" for report in reports) + (f"; {other}" if other else "")
        raise RuntimeError(
            f"{stage}: a rank was killed or failed; the launcher's lines above say which was first{found}. "
            "An unexplained signal 9 (SIGKILL) usually means out of memory"
        )


def _start_ranks(launcher: LauncherSection, root: Path, stage: str, lock: int, stopped: Callable[[], str | None]) -> str | None:
    """Compute a stage on this machine's ranks; what failed, if they do. stopped: that machine 0 has stopped, if it has."""
    try:
        log.info(f"{stage}: starting the ranks of this machine")
        _run_ranks(launcher, root, stage, lock, stopped)
    except (UserError, RuntimeError, OSError) as error:  # an OSError: no process or no temporary folder
        log.warning(f"{error}\nwaiting for machine 0 to resume")
        return str(error)
    return None


def _meeting_point(launcher: LauncherSection) -> Address:
    """Address and port of the rendezvous of several machines' ranks."""
    launcher = with_config(launcher)
    return launcher.main_process_ip or "", launcher.main_process_port or DEFAULT_PORT


def _calls_address(launcher: LauncherSection) -> Address:
    """Address and port of machine 0's calls: the port after that of the rendezvous."""
    address, port = _meeting_point(launcher)
    if not address:
        what = f"the address of machine 0 is missing, here and in {launcher.config_file}"
        raise UserError(what, where="launcher.main_process_ip", remedy="give it, the same on all machines")
    return address, port + 1


def _config_file(launcher: LauncherSection) -> Any:
    """Accelerate's ClusterConfig, its distributed_type as text; None without a config file. Raises UserError if the file has none."""
    if (path := _path(launcher)) is None:
        return None
    import yaml
    from accelerate.commands.config.config_args import load_config_from_file

    if not path.is_file():
        remedy = "`accelerate config --config_file FILE` writes one"
        raise UserError(f"no such file: {path}", where="launcher.config_file", remedy=remedy)
    try:
        file = load_config_from_file(str(path))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"Accelerate cannot read it: {first_line(error)}", where=f"launcher.config_file ({path})") from None
    for name in ("num_processes", "num_machines", "main_process_port"):
        value = getattr(file, name)
        if not isinstance(value, int) and not (name == "main_process_port" and value is None):
            raise UserError(f"{name}: {value!r}, which is not a whole number", where=f"launcher.config_file ({path})")
    file.distributed_type = str(getattr(file.distributed_type, "value", file.distributed_type))
    return file


def _check_config(launcher: LauncherSection, file: Any) -> None:
    """Raise UserError if a ClusterConfig names what is not supported or contradicts the recipe."""
    kind, where = file.distributed_type, f"launcher.config_file ({_path(launcher)})"
    if kind not in OF_CONFIG_FILES:
        why = f"; {NO_DEEPSPEED}" if kind == "DEEPSPEED" else f"; supported: {', '.join(OF_CONFIG_FILES)}"
        raise UserError(f"distributed_type: {kind}{why}", where=where, remedy="set distributed_type: FSDP and fsdp_version: 2 in it")
    if file.num_machines > 1 and launcher.machines == 1:
        what = f"it names {file.num_machines} machines, and launcher.machines is 1: the ranks would wait for each other"
        raise UserError(what, where=where, remedy="give launcher.machines and, on every machine, launcher.machine_rank")


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
        what = "this machine has no GPU that torch can use, and the launcher would start its ranks on GPUs"
        remedy = "launcher.cpu=true starts ranks on CPU, launcher=inline computes in one process"
        raise UserError(what, where="launcher", remedy=remedy)
    if here > gpus:
        raise UserError(
            f"{here} ranks on this machine, which has {gpus} GPUs", where="launcher.processes", remedy="give every rank a GPU of its own"
        )


def _check_port(launcher: LauncherSection) -> None:
    """The rendezvous port must be free, on all addresses, as torch listens; on one machine it is chosen automatically."""
    address, port = _meeting_point(launcher)
    if launcher.machine_rank > 0 or (launcher.machines == 1 and not launcher.main_process_port):
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise _taken(launcher, (address, port), error) from None


def _taken(launcher: LauncherSection, address: Address, error: OSError) -> UserError:
    return UserError(
        f"the ranks cannot connect there: {error.strerror}",
        where=f"{WHERE} ({address[0]}:{address[1]})",
        remedy="choose another port, the same on all machines" if launcher.machines > 1 else "choose another, or leave it out",
    )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
