"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """The number formats that `--dtype` accepts."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"

    @property
    def rounded(self) -> str | None:
        """The format that weights are rounded to; None for float32, the format in which they are trained."""
        return None if self is Dtype.float32 else self.value


RecipeFile = Annotated[
    Path, typer.Argument(help="The recipe, a YAML file or builtin:NAME; `sparring docs recipe` lists every key.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Values that replace the recipe's.", show_default=False)
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory (run_dir of the recipe).", show_default=False)]
Target = Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run directory, a model's folder or its Hub id.", show_default=False)]
Players = Annotated[
    list[str] | None,
    typer.Option(
        "--player",
        help="For a run: an iteration's number, best, start or a control's folder; may be repeated. Start and best by default.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the results; RUN/evaluations or evaluations/MODEL when not given.", show_default=False)
]
Weights = Annotated[Dtype, typer.Option(help="Number format of the weights; float32 is exact, the others round.")]
