"""Trackers."""

from __future__ import annotations

from pydantic import Field

from sparring.config.option_types import Section, Text, Trackers


class TrackSection(Section):
    """Trackers through Accelerate. Their keys are in their own environment variable or login, never in a recipe."""

    trackers: Trackers = Field(
        description="Some of tensorboard, trackio, wandb and mlflow; each needs the extra of its name (`sparring[wandb]`)."
    )
    project: Text = Field("sparring", description="Project, or experiment, that the run is shown in. tensorboard has none.")
    name: Text | None = Field(None, description="Name of the run there; that of the run directory when null.")
