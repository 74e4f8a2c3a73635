"""The documentation says what the code does."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import write_rows
from zygote import Zygote

from sparring.cli_reference import cli_reference
from sparring.config import DataSection, Recipe, Section, load_recipe, recipe_reference, section_of, walk_fields
from sparring.config.reference import markdown
from sparring.config.yaml_dialect import parse_yaml
from sparring.data.conversations import load_conversations

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
    parents = [key.rpartition(".")[0] for key in needed]  # not what an optional section requires
    required = [key for key, parent in zip(needed, parents, strict=True) if not parent or FIELDS[parent].is_required()]
    assert required == ["run_dir", "model.path", "data.path"]
    recipe = load_recipe(path, ["train.lr=1e-6", "objective.beta=[0.1,0.1,5]", "sft=null"])  # the page's command line
    assert recipe.objective.beta == (0.1, 0.1, 5.0)


def test_markdown_cells_are_escaped() -> None:
    assert markdown("a|b `c|d` <b> *x* [y](z)\n  w") == r"a\|b `c\|d` \<b> \*x\* \[y\](z) w"


# ---------------------------------------------------------------------------------------------- docs/cli.md


def test_the_page_of_commands_is_up_to_date() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == cli_reference(), "run: python -m sparring.cli_reference > docs/cli.md"


def test_the_page_of_commands_names_every_command_and_option(zygote: Zygote, tmp_path: Path) -> None:
    page = cli_reference()
    names = re.findall(r"^## sparring (\S+)$", page, re.MULTILINE)
    assert len(names) == len(set(names)) >= 7
    for name, section in zip(names, page.split("## sparring ")[1:], strict=True):
        helped = zygote.run([name, "--help"], tmp_path).out
        options = set(re.findall(r"--[a-z][a-z-]+", helped)) - {"--help"}
        assert options <= set(re.findall(r"--[a-z][a-z-]+", section)), name
        rows = [line for line in section.splitlines() if line.startswith("|")]
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}, name


# ---------------------------------------------------------------------------------------------- README.md

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """The arguments of every command of `program` in the README's bash blocks, which hold one command a line."""
    lines = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    known = {"make", "sparring", "pip"}  # tests/test_wheel.py installs the package by pip
    assert {line[0] for line in lines if line} <= known, "a new program: say here how it is tested"
    return [line[1:] for line in lines if line and line[0] == program]


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would type the commands: recipes/, the README's own recipe, and 24 rows in the columns that it names.

    Of the recipe only what would take hours or a network is replaced: the model and the length of replies.
    """
    folder = tmp_path_factory.mktemp("reader")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for text in blocks("yaml"):
        name = re.match(r"# (\S+\.yaml)\n", text)[1]
        (folder / name).write_text(text, encoding="utf-8")
        values = load_recipe(folder / name).model_dump(mode="json", exclude_unset=True)
        values["model"] = {"path": "builtin:tiny", "dtype": "float32"}
        values["sampling"]["max_new_tokens"] = 8
        columns = values["data"]["columns"]
        rows = [{columns["prompt"]: f"what is {n}", columns["completion"]: f"#### {n}"} for n in range(24)]
        write_rows(folder / values["data"]["path"], rows)
        (folder / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def toy_run(readers_folder: Path, zygote: Zygote) -> Path:
    """The game of README.md's first result, played; the tutorial's is the same game."""
    assert ["run", "builtin:tiny"] in commands("sparring")
    result = zygote.run(["run", "builtin:tiny"], readers_folder)
    assert result.code == 0, result.err
    return readers_folder / "runs" / "tiny"


def test_every_sparring_command_of_the_readme_runs(toy_run: Path, readers_folder: Path, zygote: Zygote) -> None:
    """In the order of the page, as a reader would type them."""
    found = commands("sparring")
    assert {args[0] for args in found} >= {"init", "run", "export"}
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


# ---------------------------------------------------------------------------------------------- the blocks of docs/*.md


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `reason` says why nobody runs it here, from a comment `not run: ...` right above it."""

    place: str
    language: str
    text: str
    reason: str | None


def page_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^(?: *<!-- not run: (.+?) -->\n)? *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    return [Block(f"{page.name}:{text[: m.start(2)].count(chr(10)) + 1}", m[2], textwrap.dedent(m[3]), m[1]) for m in found]


TUTORIAL = ROOT / "docs" / "tutorial.md"
BLOCKS = {page: page_blocks(page) for page in sorted((ROOT / "docs").glob("*.md"))}
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if block.reason]
SMALLEST = {"run_dir": "runs/x", "model": {"path": "builtin:tiny"}, "data": {"path": "builtin:tasks"}}


def run_block(block: Block, folder: Path, zygote: Zygote) -> None:
    """As a reader would: commands typed, Python run, recipes and rows loaded."""
    if block.language == "bash":
        for line in block.text.splitlines():
            if words := shlex.split(line, comments=True):
                run_command(words, block.place, folder, zygote)
    elif block.language == "python":
        result = zygote.run([], folder, python=block.text)
        assert result.code == 0 and result.out.strip(), (block.place, result.err)
    elif block.language == "yaml":
        load_yaml(block, folder)
    elif block.language == "jsonl":
        rows = folder / "rows.jsonl"
        rows.write_text(block.text, encoding="utf-8")
        assert len(load_conversations(DataSection(path=str(rows)), 0).rows) == len(block.text.splitlines()), block.place
    elif block.language != "text":  # what a command prints
        assert block.language == "json", f"{block.place}: say here how a block of this language is tested"
        json.loads(f"{{{block.text}}}")


def run_command(words: list[str], place: str, folder: Path, zygote: Zygote) -> None:
    if words[:2] == ["python", "-m"]:
        result = zygote.run([], folder, python=f"import runpy; runpy.run_module({words[2]!r}, run_name='__main__')")
    else:
        assert words[:1] == ["sparring"], f"{place}: nothing here runs {words}; if it cannot be run, say why right above the block"
        result = zygote.start(words[1:], folder).wait(600)
    assert result.code == 0 and result.out.strip(), (place, words, result.err)


def load_yaml(block: Block, folder: Path) -> None:
    """A whole recipe, which becomes the file that its first line names, or a part of one."""
    values = parse_yaml(block.text, block.place)
    if name := re.match(r"# (\S+\.yaml)\n", block.text):
        (folder / name[1]).write_text(block.text, encoding="utf-8")
        values |= {"run_dir": "runs/x"}
    load_recipe({**SMALLEST, **values})


@pytest.fixture(scope="module")
def taught(toy_run: Path, readers_folder: Path, zygote: Zygote) -> Path:
    """The reader's folder after the tutorial: the other pages go on with its run, whose stages are those of README.md's first result."""
    shutil.copytree(toy_run, readers_folder / "runs" / "first", symlinks=True)
    for block in BLOCKS[TUTORIAL]:
        if block.reason is None:
            run_block(block, readers_folder, zygote)
    games = [load_recipe(recipe).model_dump(exclude={"run_dir"}) for recipe in (readers_folder / "first.yaml", "builtin:tiny")]
    assert games[0] == games[1], "another game than README.md's would have to be played"
    return readers_folder


def test_the_tutorial_leaves_what_it_says(taught: Path) -> None:
    summary, soft = (json.loads((taught / f"runs/{name}/summary.json").read_text()) for name in ("first", "soft"))
    assert len(summary["iterations"]) == len(soft["iterations"]) == 2
    start, *played, control = [found["scores"] for found in (summary["start"], *summary["iterations"], *summary["controls"])]
    assert max(played[n]["exact_match"]["value"] for n in (0, 1)) > start["exact_match"]["value"] + 0.05, "the toy learns something"
    assert control["exact_match"]["value"] > start["exact_match"]["value"] + 0.1
    assert all(scores["truncated"]["value"] < 0.1 for scores in (start, *played, control)), "replies are not cut"
    names = ("my-first-model/model.safetensors", "to-the-hub/model/README.md", "to-the-hub/data/README.md")
    assert all((taught / name).exists() for name in names)


@pytest.mark.parametrize("page", [page for page in BLOCKS if page != TUTORIAL and BLOCKS[page]], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, taught: Path, zygote: Zygote) -> None:
    for block in BLOCKS[page]:
        if block.reason is None:
            run_block(block, taught, zygote)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_a_block_that_is_not_run(block: Block) -> None:
    """Counted and named in pytest's summary."""
    pytest.skip(f"docs/{block.place} is not run: {block.reason}")


def test_the_picture_of_the_readme_is_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures == ["docs/images/report.png"], "`make picture` makes it"
    assert (ROOT / pictures[0]).stat().st_size < 300_000


COLUMNS = 88  # of a block on the site, beside both of its menus


def test_comments_in_blocks_fit_their_column() -> None:
    """A command may be longer, and is scrolled; nobody scrolls to read what it is for."""
    for page, found in {**BLOCKS, ROOT / "README.md": page_blocks(ROOT / "README.md")}.items():
        for block in found:
            comments = [
                line for line in block.text.splitlines() if block.language in ("bash", "yaml", "python") and re.search(r"(^|\s)# ", line)
            ]
            assert [line for line in comments if len(line) > COLUMNS] == [], page.name


# ---------------------------------------------------------------------------------------------- what an installed user has


def test_every_page_comes_with_the_package(zygote: Zygote, tmp_path: Path) -> None:
    listed = zygote.run(["docs"], tmp_path)
    assert listed.code == 0 and [line.split()[0] for line in listed.out.splitlines()] == sorted(page.stem for page in BLOCKS)
    shown = zygote.run(["docs", "engines"], tmp_path)
    assert shown.out.strip() == (ROOT / "docs" / "engines.md").read_text(encoding="utf-8").strip()
    wrong = zygote.run(["docs", "recipes"], tmp_path)
    assert wrong.code == 2 and "did you mean recipe?" in wrong.err


def test_errors_name_pages_that_exist_and_come_with_the_package() -> None:
    named = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(r"`sparring docs ([a-z-]+)`", text))
        remedies = [line for line in text.splitlines() if re.search(r"(remedy|manual)\b.*docs/[a-z-]+\.md", line)]
        assert remedies == [], path
    assert named and named <= {page.stem for page in BLOCKS}


def test_the_text_on_a_package_index_has_links_that_hold_there() -> None:
    """README.md's own lead to files of a clone. With an address of the project they lead to it, without one to what the package prints."""
    make = runpy.run_path(str(ROOT / "setup.py"))["long_description"]
    own = re.findall(r"(?<!!)\[[^\]]+\]\((?!https?://|#)([^)\s]+)\)", README)
    assert len(own) > 10
    at_home, nowhere = make("https://example.org/sparring/blob/main/"), make(None)
    assert all(f"](https://example.org/sparring/blob/main/{path})" in at_home for path in own)
    for text in (at_home, nowhere):
        assert re.findall(r"\]\((?!https?://)", text) == [] and "![" not in text
    named = re.findall(r"`sparring docs ([\w-]+)`", nowhere)
    assert len(named) >= len(own) and {*named} <= {page.stem for page in BLOCKS}


def test_the_citation_names_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_every_fence_belongs_to_a_block() -> None:
    for page, found in BLOCKS.items():
        fences = re.findall(r"^\s*```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(found), f"{page.name} has a fence that no test sees"
        assert page.read_text(encoding="utf-8").count("<!-- not run") == sum(block.reason is not None for block in found), page.name


def test_the_site_has_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    groups = [entry if isinstance(entry, list) else [{"": entry}] for item in nav for entry in item.values()]
    named = [name for group in groups for page in group for name in page.values()]
    assert sorted(named) == sorted(page.name for page in BLOCKS)
