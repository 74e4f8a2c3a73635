"""Accelerate's trackers, opened so that an interrupted run resumes in place.

Points that were on their way at a kill may be lost, so wandb, trackio and mlflow are asked for the newest step that they have. For
tensorboard a new event file is added (`purge_step`); readers then ignore older points from the first step that is sent again.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import Recipe, TrackSection
from sparring.errors import UserError, first_line, require_package

FOLDER = "trackers"
# In every point, so that a tracker can be asked for the last one
AXIS = "optimizer_steps"


@dataclass(frozen=True)
class SeriesLocation:
    """Where a series is stored: `name` is shown to people, `identity` is unique within the tracker."""

    root: Path
    series: str
    project: str
    name: str
    identity: str


@dataclass
class Opened:
    """`tracker` is Accelerate's; `last` is the newest step that it has, -1 if it has none."""

    tracker: Any
    last: int

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send the values of one step."""
        self.tracker.log({**values, AXIS: step}, step=step)
        self.last = step

    def close(self) -> None:
        """Finish the tracker's run without its own messages."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.tracker.finish()


def require_trackers(section: TrackSection) -> None:
    """Raise UserError for a tracker that is not installed, or that needs a login and has none."""
    for name in section.trackers:
        require_package(name, name, "track", name, ", or remove it from the recipe's track")
    if "wandb" in section.trackers and os.environ.get("WANDB_MODE") not in ("offline", "dryrun", "disabled"):
        _log_in_to_wandb()


def open_tracker(kind: str, place: SeriesLocation, sent: int, config: dict[str, Any]) -> Opened:
    """Open or resume a tracker's run. sent: the newest step recorded as sent, -1 for none; config: the recipe, as flat options.

    What trackers print is discarded, because scripts read the tables on a command's standard output.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        return _OPEN[kind](place, sent, config)


def flat(recipe: Recipe) -> dict[str, Any]:
    """`{"train.lr": 5e-7, ...}`: every option that is set, lists as text."""
    found: dict[str, Any] = {}

    def walk(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            elif value is not None:
                found[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)

    walk(recipe.model_dump(mode="json"), "")
    return found


def _tensorboard(place: SeriesLocation, sent: int, config: dict[str, Any]) -> Opened:
    from accelerate.tracking import TensorBoardTracker

    tracker = _started(TensorBoardTracker(f"{place.series}-{place.identity}", place.root / FOLDER / "tensorboard", purge_step=sent + 1))
    if sent < 0:
        options = "\n".join(f"{key}: {value}" for key, value in config.items())
        tracker.tracker.add_text("recipe", f"```\n{options}\n```", 0)
    return Opened(tracker, sent)


def _trackio(place: SeriesLocation, sent: int, config: dict[str, Any]) -> Opened:
    from accelerate.tracking import TrackioTracker

    # trackio's own logging of CPU and GPU would run for the whole game
    options = {"resume": "allow", "embed": False, "auto_log_cpu": False, "auto_log_gpu": False, "config": config}
    tracker = _started(TrackioTracker(place.project, name=f"{place.name}-{place.identity}", **options))
    next_step = getattr(tracker.run, "_next_step", None)  # the step at which it would resume; there is no public attribute
    return Opened(tracker, sent if next_step is None else next_step - 1)


def _wandb(place: SeriesLocation, sent: int, config: dict[str, Any]) -> Opened:
    import wandb
    from accelerate.tracking import WandBTracker

    folder = place.root / FOLDER
    folder.mkdir(exist_ok=True)
    settings = wandb.Settings(console="off", silent=True)
    tracker = _started(
        WandBTracker(place.project, id=place.identity, name=place.name, resume="allow", dir=str(folder), config=config, settings=settings)
    )
    return Opened(tracker, sent if tracker.run.offline else tracker.run.starting_step - 1)  # unknown offline


def _mlflow(place: SeriesLocation, sent: int, config: dict[str, Any]) -> Opened:
    import mlflow
    from accelerate.tracking import MLflowTracker

    tag = {"sparring": place.identity}
    experiment = mlflow.get_experiment_by_name(place.project)
    wanted = f"tags.sparring = '{place.identity}'"
    there = mlflow.search_runs([experiment.experiment_id], wanted, output_format="list") if experiment is not None else []
    run_id = there[0].info.run_id if there else None
    tracker = _started(MLflowTracker(place.project, run_id=run_id, run_name=place.name, tags=tag))
    if run_id is None:
        tracker.store_init_configuration(config)
        return Opened(tracker, -1)
    return Opened(tracker, max((metric.step for metric in mlflow.MlflowClient().get_metric_history(run_id, AXIS)), default=-1))


_OPEN: dict[str, Callable[[SeriesLocation, int, dict[str, Any]], Opened]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _started(tracker: Any) -> Any:
    tracker.main_process_only = False  # only one process tracks; with True, the tracker would ask for its rank, which joins it to the ranks
    tracker.start()
    return tracker


def _log_in_to_wandb() -> None:
    """Log in before the run, where a person can answer wandb's prompt, rather than later in the sending thread."""
    import wandb

    try:
        logged_in = wandb.login()
    except Exception as error:  # its class depends on the version
        logged_in, why = False, first_line(error)
    else:
        why = "wandb has no key"
    if not logged_in:
        raise UserError(why, where="track", remedy="`wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline to send nothing for now")
