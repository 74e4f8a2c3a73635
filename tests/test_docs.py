"""The documentation says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from sparring.config import _markdown, load_recipe, recipe_reference, section_of, walk_fields

ROOT = Path(__file__).parent.parent
RECIPE_PAGE = ROOT / "docs" / "recipe.md"
FIELDS = dict(walk_fields())


# ---------------------------------------------------------------------------------------------- docs/recipe.md


def test_the_recipe_page_is_up_to_date() -> None:
    page = RECIPE_PAGE.read_text(encoding="utf-8")
    assert page == recipe_reference(), "run: python -m sparring.config > docs/recipe.md"


def test_the_recipe_page_is_what_the_module_prints() -> None:
    environment = {"PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "ascii"}  # any terminal can show it
    printed = subprocess.run([sys.executable, "-m", "sparring.config"], capture_output=True, text=True, env=environment, check=True)
    assert printed.stdout == recipe_reference()


def test_the_recipe_page_names_every_option_in_whole_tables() -> None:
    page = recipe_reference()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}
    options = [re.match(r"\| \[?`(\w+)`", row) for row in rows]
    assert [found[1] for found in options if found] == names_in_page_order()
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links == {key for key, field in FIELDS.items() if section_of(field.annotation)}
    assert links <= set(re.findall(r"^## (\w+)$", page, re.MULTILINE))


def names_in_page_order() -> list[str]:
    top = [key for key in FIELDS if "." not in key]
    return top + [key.partition(".")[2] for key in FIELDS if "." in key]


def test_the_example_of_the_recipe_page_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", recipe_reference(), re.DOTALL)
    path = tmp_path / "first.yaml"
    path.write_text(example, encoding="utf-8")
    required = [key for key, field in FIELDS.items() if field.is_required() and section_of(field.annotation) is None]
    assert required == ["run_dir", "model.path", "data.path"]
    recipe = load_recipe(path, ["train.lr=1e-6", "objective.beta=[0.1,0.1,5]", "sft=null"])  # the page's command line
    assert recipe.objective.beta == (0.1, 0.1, 5.0)


def test_markdown_cells_are_escaped() -> None:
    assert _markdown("a|b `c|d` <b> *x* [y](z)\n  w") == r"a\|b `c\|d` \<b> \*x\* \[y\](z) w"
