"""The notebook plays its game: its code cells in order, in a process of their own and an empty folder, as a kernel would run them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from zygote import Zygote

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "tiny_game.ipynb"

# What a kernel does, less the browser: a cell's last expression is shown. (A kernel with all that it brings is 85 MB.)
KERNEL = """
import ast, json, os, sys, time

shown, names = [], {{"__name__": "__main__"}}
for number, source in enumerate(json.loads({cells!r})):
    *body, last = ast.parse(source).body
    is_value = isinstance(last, ast.Expr)
    exec(compile(ast.Module(body if is_value else [*body, last], []), f"cell {{number}}", "exec"), names)
    value = eval(compile(ast.Expression(last.value), f"cell {{number}}", "eval"), names) if is_value else None
    if hasattr(value, "_repr_html_"):
        shown.append(value._repr_html_())
json.dump({{"tables": shown, "figures": len(names["plt"].get_fignums()), "seconds": time.process_time()}}, open("shown.json", "w"))
"""


def test_the_notebook_plays_a_game_and_shows_it(tmp_path: Path, zygote: Zygote) -> None:
    """It needs the package alone, tables and plots come out, it takes no longer than it says, and it was saved with the like of them."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    environment = {"MPLBACKEND": "agg", "MPLCONFIGDIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    result = zygote.start([], tmp_path, python=KERNEL.format(cells=json.dumps(cells)), environment=environment).wait(600)
    assert result.code == 0, result.err
    assert "The game ended - iterations: all 2 are played" in result.out
    shown = json.loads((tmp_path / "shown.json").read_text())
    assert shown["figures"] == 2 and len(shown["tables"]) == 3 and shown["seconds"] < 60
    scores, first, samples = shown["tables"]
    assert all(word in scores for word in ("exact_match", "iteration 1", "continued SFT", "±"))
    assert "0.693" in first and "last iteration" in samples
    saved = [output for cell in notebook["cells"] for output in cell.get("outputs", []) if "data" in output]
    tables = ["".join(output["data"]["text/html"]) for output in saved if "text/html" in output["data"]]
    words = [[sorted(set(re.findall(r"<th>([a-z][^<]*)</th>", table))) for table in found] for found in (tables, shown["tables"])]
    assert words[0] == words[1] and sum("image/png" in output["data"] for output in saved) == 2
