"""`micro_batch_tokens` where the recipe names none: from the model's size and free memory, once for a whole run."""

from __future__ import annotations

from pathlib import Path

from sparring.config import LauncherSection, Recipe
from sparring.console import log
from sparring.launch import process_count, ranks_here
from sparring.policy.budget import free_memory, token_budget
from sparring.policy.compute import make_accelerator
from sparring.policy.load import model_shape
from sparring.policy.shares import Parallel
from sparring.rundir import read_object, write_json

CHOSEN = "micro_batch.json"


def choose_tokens(recipe: Recipe, root: Path, base: Path) -> int:
    """What was chosen for the run in `root`; chosen anew, for the model in folder `base`, on another device or shared in another way."""
    file, device, parallel = root / CHOSEN, make_accelerator().device, parallel_of(recipe.launcher)
    shared = f"{parallel.strategy} over {parallel.devices} ranks" if parallel.cuts else None
    chosen, reasons = read_object(file) if file.exists() else {}, {"device": device.type, "shared": shared}
    if any(chosen.get(name) != reason for name, reason in reasons.items()):
        shape, free = model_shape(base), free_memory(device)
        if device.type == "cpu":  # which the ranks of this machine share
            free //= ranks_here(recipe.launcher)
        tokens = token_budget(shape, free, device.type, recipe.trains_adapters_alone, parallel)
        size = f"{shape.num_parameters() / 1e6:.3g}M parameters{f', {shared},' if shared else ''}"
        log.info(f"micro_batch_tokens: {tokens}, for {size} and {free / 2**30:.1f} GiB free")
        chosen = {"micro_batch_tokens": tokens, **reasons}
        write_json(file, chosen)
    return read_object(file, "micro_batch_tokens")["micro_batch_tokens"]


def parallel_of(launcher: LauncherSection) -> Parallel:
    """How the launcher's ranks share a training; whole on each where only a config file says how many there are."""
    if launcher.kind == "inline" or (launcher.config_file is not None and launcher.processes is None):
        return Parallel()
    return Parallel(process_count(launcher), launcher.strategy)
