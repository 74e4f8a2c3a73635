"""The plan for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sparring.planning.advice import Proposal
from sparring.planning.contests import assumptions_of_answers
from sparring.planning.estimate import Plan, StagePlan
from sparring.planning.hours import assumptions
from sparring.planning.published import Published


def as_json(plan: Plan, proposals: Sequence[Proposal], published: Sequence[Published]) -> dict[str, Any]:
    """Everything that the tables show, unrounded: bytes, seconds, hours, tokens, operations."""
    shape = plan.shape
    return {
        "model": {"name": shape.name, "source": shape.source, "parameters": shape.parameters},
        "data": asdict(plan.lengths),
        "hardware": asdict(plan.hardware),
        "training_devices": asdict(plan.parallel),
        "micro_batch_tokens": plan.micro_batch_tokens,
        "assumptions": [*assumptions(plan.device, plan.recipe.sampling.inner_engine), *assumptions_of_answers(plan.recipe)],
        "stages": [_stage(stage, plan) for stage in plan.stages],
        "hours": plan.seconds / 3600,
        "disk_bytes": plan.disk,
        "peak_bytes": plan.peak.memory.total,
        "fits": plan.fits,
        "try": [asdict(proposal) for proposal in proposals],
        "as_published": [asdict(hours) for hours in published],
    }


def _stage(stage: StagePlan, plan: Plan) -> dict[str, Any]:
    total = stage.memory.total
    return {
        "stage": f"{stage.owner}/{stage.kind}",
        "tokens": stage.work.tokens,
        "operations": stage.work.flops,
        "hours": stage.hours,
        "bound_by": stage.driver,
        "bytes": {**asdict(stage.memory), "total": total},
        "fits": total <= plan.device.memory,
    }
