"""The plots of a model card: files beside it."""

from __future__ import annotations

from pathlib import Path

from sparring.report.page import svg_file
from sparring.report.run_files import read_run
from sparring.report.run_plots import card_figures

FOLDER = "plots"


def write_plots(root: Path, target: Path) -> dict[str, str]:
    """Draw the run's scores over its players into `target`/plots; returns score -> file, relative to `target`."""
    (target / FOLDER).mkdir()
    files = {}
    for name, svg in card_figures(read_run(root)).items():
        files[name] = f"{FOLDER}/{name}.svg"
        (target / files[name]).write_text(svg_file(svg), encoding="utf-8")
    return files
