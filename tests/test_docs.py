"""The documentation says what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import write_rows
from zygote import Zygote

from sparring.config import Recipe, Section, load_recipe, recipe_reference, section_of, walk_fields
from sparring.config.reference import markdown

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
    assert [found[1] for found in options if found] == names_in_page_order(Recipe)
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links == {key.rpartition(".")[2] for key, field in FIELDS.items() if section_of(field.annotation)}
    assert links <= set(re.findall(r"^## (\w+)$", page, re.MULTILINE))


def names_in_page_order(section: type[Section], seen: set[str] | None = None) -> list[str]:
    """The keys of a section, then those of the sections below it, where the page meets them first."""
    seen = set() if seen is None else seen
    names = list(section.model_fields)
    for name, field in section.model_fields.items():
        child = section_of(field.annotation)
        if child is not None and name not in seen:
            seen.add(name)
            names += names_in_page_order(child, seen)
    return names


def test_the_example_of_the_recipe_page_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", recipe_reference(), re.DOTALL)
    path = tmp_path / "first.yaml"
    path.write_text(example, encoding="utf-8")
    needed = [key for key, field in FIELDS.items() if field.is_required() and section_of(field.annotation) is None]
    required = [key for key in needed if FIELDS[key.partition(".")[0]].is_required()]  # not what an optional section requires
    assert required == ["run_dir", "model.path", "data.path"]
    recipe = load_recipe(path, ["train.lr=1e-6", "objective.beta=[0.1,0.1,5]", "sft=null"])  # the page's command line
    assert recipe.objective.beta == (0.1, 0.1, 5.0)


def test_markdown_cells_are_escaped() -> None:
    assert markdown("a|b `c|d` <b> *x* [y](z)\n  w") == r"a\|b `c\|d` \<b> \*x\* \[y\](z) w"


# ---------------------------------------------------------------------------------------------- README.md

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """The arguments of every command of `program` in the README's bash blocks, which hold one command a line."""
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    assert {line[0] for line in lines if line} <= {"make", "sparring"}, "a new program: say here how it is tested"
    return [line[1:] for line in lines if line and line[0] == program]


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would type the commands: recipes/, the README's own recipe, and data in the columns that it names.

    Of the recipe only what would take hours or a network is replaced: the model, the length of replies, the held-out rows.
    """
    folder = tmp_path_factory.mktemp("reader")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for text in blocks("yaml"):
        name = re.match(r"# (\S+\.yaml)\n", text)[1]
        (folder / name).write_text(text, encoding="utf-8")
        values = load_recipe(folder / name).model_dump(mode="json", exclude_unset=True)
        values["model"] = {"path": "builtin:tiny", "dtype": "float32"}
        values["sampling"]["max_new_tokens"] = 8
        values["data"]["held_out"] = 8
        columns = values["data"]["columns"]
        rows = [{columns["prompt"]: f"what is {n}", columns["completion"]: f"#### {n}"} for n in range(24)]
        write_rows(folder / values["data"]["path"], rows)
        (folder / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


def test_every_sparring_command_of_the_readme_runs(readers_folder: Path, zygote: Zygote) -> None:
    """In the order of the page, as a reader would type them."""
    found = commands("sparring")
    assert {args[0] for args in found} >= {"run", "sample", "export", "recipe"}
    for args in found:
        result = zygote.run(args, readers_folder)
        assert result.code == 0, (args, result.err)


def test_every_make_command_of_the_readme_is_a_target() -> None:
    found = commands("make")
    assert ["demo"] in found and ["test"] in found
    for args in found:
        done = subprocess.run(["make", "--dry-run", *args], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, (args, done.stderr)


def test_the_python_of_the_readme_runs(readers_folder: Path, zygote: Zygote) -> None:
    for code in blocks("python"):
        result = zygote.run([], readers_folder, python=code)
        assert result.code == 0 and result.out.strip(), result.err


def test_the_files_that_the_pages_name_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
        missing = [link for link in links if not (page.parent / link).exists()]
        assert not missing, (page.name, missing)
