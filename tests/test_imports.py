"""Imports go one way, and what must start at once imports no torch. The table is section 2 of the design."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
FILES = sorted((SOURCE / "sparring").rglob("*.py"))

# What a room may import besides itself. A room is a module or a package directly below `sparring`.
FLOOR = {"errors", "files", "interrupts", "console", "config", "locks", "rundir", "stage_names", "progress", "own_code"}
STAGES = FLOOR | {"data", "objectives", "checkers", "targets", "policy", "opponent", "training", "evaluation"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "interrupts": set(),
    "console": {"errors"},
    "files": {"errors"},
    "own_code": {"errors", "console", "checkers.worker"},  # which imports nothing itself
    "objectives": {"errors", "own_code"},
    "config": {"errors", "files", "own_code", "objectives"},
    "locks": {"errors"},
    "doctor": FLOOR | {"policy.machine"},
    "rundir": {"errors", "files", "interrupts", "config", "locks"},
    "stage_names": {"errors", "config", "rundir", "progress"},
    "progress": {"errors", "console"},
    "data": FLOOR,
    "policy": FLOOR | {"data"},
    "opponent": FLOOR | {"data", "policy"},
    "checkers": FLOOR | {"data"},
    "targets": FLOOR | {"data"},
    "training": FLOOR | {"data", "objectives", "policy"},
    "evaluation": FLOOR | {"data", "policy", "opponent", "checkers"},
    "report": FLOOR | {"data.prepare", "data.records", "data.tables", "targets"},  # the report only reads
    "live": FLOOR | {"report", "data.tables"},  # looks at a run, by its files alone
    "tracking": FLOOR | {"policy", "report"},
    "calls": {"errors", "console", "rundir"},
    "launch": FLOOR | {"calls", "policy.footprint"},
    "stages": STAGES | {"launch", "calls"},
    "cost": FLOOR,
    "dpo": STAGES | {"stages"},
    "control": STAGES | {"stages", "cost", "dpo"},
    "headroom": STAGES | {"stages"},
    "selfplay": STAGES | {"launch", "stages", "control", "headroom", "report", "tracking"},
    "one_stage": STAGES | {"launch", "stages", "selfplay"},
    "planning": FLOOR | {"data", "policy", "launch"},  # what a game will cost: its config, rows and a model's sizes, no stage of it
    "draft": FLOOR | {"data", "checkers", "planning"},  # a first recipe: looks at the rows and loads no model
    # reads finished runs
    "comparison": FLOOR
    | {"checkers", "cost", "data", "evaluation.metrics", "evaluation.benchmarks", "policy.player", "planning", "report"},
    "game": FLOOR | {"selfplay", "comparison", "report"},
    "players": FLOOR | {"data", "policy", "report"},
    "benchmark": STAGES | {"players", "report"},
    "judge": STAGES | {"players", "report"},
    "grading": STAGES | {"stages", "players", "report"},  # reads runs and data; samples and trains nothing
    "samples": STAGES | {"players", "report"},
    "publish": FLOOR | {"data", "policy", "opponent", "players", "report", "targets"},
    "export": FLOOR | {"policy", "players", "publish", "report"},
    "push": FLOOR | {"policy", "players", "publish", "export"},
    "__init__": STAGES | {"game", "report"},
    "__main__": {"cli"},
    "cli_reference": {"cli", "config"},
    "cli": STAGES
    | {
        "game",
        "comparison",
        "one_stage",
        "export",
        "push",
        "samples",
        "benchmark",
        "judge",
        "report",
        "planning",
        "live",
        "grading",
        "doctor",
        "draft",
        "__init__",
    },
}
HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "pandas"}
STARTS_AT_ONCE = [
    "sparring",
    "sparring.errors",
    "sparring.objectives",
    "sparring.config",
    "sparring.rundir",
    "sparring.data.records",
    "sparring.checkers",
    "sparring.checkers.make",
    "sparring.checkers.probe",
    "sparring.cli",
    "sparring.doctor",
    "sparring.report",
    "sparring.live",
    "sparring.report.run_page",
    "sparring.grading.trial",
    "sparring.planning.command",  # until a model's parameters are counted
]


def module_of(path: Path) -> str:
    """`src/sparring/data/chat.py` -> `sparring.data.chat`; a package is named by its `__init__`."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def exists(module: str) -> bool:
    path = SOURCE.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(module: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of sparring's own, at the top or inside a function, relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (package, node.module) if part)
            # `from sparring.data import chat` names a module, `from sparring.data.chat import Chat` does not
            names = [f"{base}.{alias.name}" if exists(f"{base}.{alias.name}") else base for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "sparring")


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def is_allowed(room: str, target: str) -> bool:
    inside = target.removeprefix("sparring").removeprefix(".") or "__init__"
    return any(f"{inside}.".startswith(f"{allowed}.") for allowed in MAY_IMPORT[room] | {room})


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_downwards(path: Path) -> None:
    module = module_of(path)
    room = room_of(module)
    assert room in MAY_IMPORT, f"{module} is a new room: give it a line in MAY_IMPORT"
    wrong = [f"line {line}: {name}" for line, name in imported(module, path.read_text(encoding="utf-8")) if not is_allowed(room, name)]
    assert not wrong, f"{room} may import {sorted(MAY_IMPORT[room])}, but {module} imports {wrong}"


def test_no_module_imports_itself_through_others() -> None:
    """Rooms of several modules go one way inside too."""
    graph = {}
    for module, path in zip(map(module_of, FILES), FILES, strict=True):
        graph[module.removesuffix(".__init__")] = {name for _, name in imported(module, path.read_text(encoding="utf-8"))}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import sparring.config", ["sparring.config"]),
        ("import sparring.config as c, os", ["sparring.config"]),
        ("from sparring.config import Recipe", ["sparring.config"]),
        ("from sparring import config, run", ["sparring.config", "sparring"]),
        ("from . import records", ["sparring.data.records"]),
        ("from .records import Duel", ["sparring.data.records"]),
        ("from ..config import Recipe", ["sparring.config"]),
        ("from .. import errors", ["sparring.errors"]),
        ("def f():\n    if x:\n        from sparring.errors import UserError", ["sparring.errors"]),
        ("import sparringly, torch\nfrom os import path", []),
    ],
)
def test_the_import_finder(source: str, found: list[str]) -> None:
    assert [name for _, name in imported("sparring.data.example", source)] == found


@pytest.mark.parametrize(
    ("room", "target", "allowed"),
    [
        ("data", "sparring.config", True),
        ("data", "sparring.data.records", True),
        ("config", "sparring.data.records", False),
        ("opponent", "sparring.training.steps", False),
        ("report", "sparring.data.records", True),
        ("report", "sparring.data.chat", False),
        ("report", "sparring.data", False),
        ("data", "sparring", False),
        ("data", "sparring.policy.load", False),
    ],
)
def test_the_rule(room: str, target: str, allowed: bool) -> None:
    assert is_allowed(room, target) is allowed


def heavy_modules_after(code: str, heavy: Collection[str] = HEAVY) -> set[str]:
    """The heavy libraries that a fresh Python has loaded after running `code`."""
    report = f"\nimport json, sys\nprint('LOADED', json.dumps(sorted({set(heavy)!r} & set(sys.modules))))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.rpartition("LOADED ")[2]))


@pytest.mark.parametrize("module", [module for module in STARTS_AT_ONCE if exists(module)])
def test_starts_without_torch(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == set()


def test_a_game_without_a_report_loads_no_plotting_library() -> None:
    """A rank imports this module too, one process a device, and every stage waits for its start."""
    assert heavy_modules_after("import sparring.report.health", {"matplotlib"}) == set()


@pytest.mark.skipif(not exists("sparring.cli"), reason="the command line is not written yet")
def test_help_starts_without_torch() -> None:
    """Through the entry point of pyproject.toml, which is what the command `sparring` calls."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts["sparring"].partition(":")
    code = f"import sys\nsys.argv = ['sparring', '--help']\nfrom {module} import {function} as main\n"
    code += "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    assert heavy_modules_after(code) == set()


# What a function does to the whole process
TO_PROCESS = re.compile(
    r"os\.environ\[[^]]*\] = |del os\.environ|os\.environ\.(setdefault|update|pop|popitem|clear)\(|os\.(put|unset)env\("
    r"|getLogger\([^)]*\)\.setLevel\(|sys\.path\.|Interface\.register\("
)
CACHE = re.compile(r"(functools\.)?(lru_cache|cache)\b")


def process_wide(source: str) -> Iterator[str]:
    """Module variables that start small and change (lists, dicts, None, objects of a class of the package), functions whose results are
    cached, and functions and methods that TO_PROCESS finds."""
    constant = re.compile(r"re\.compile|partial|metadata")
    for name, value in re.findall(r"^(_[a-z]\w*)(?:: [^=\n]+)? = ([^\n]*)", source, re.MULTILINE):
        if not name.startswith("__") and not constant.match(value):
            yield name
    tree = ast.parse(source)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for prefix, body in [("", tree.body), *((f"{one.name}.", one.body) for one in classes)]:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if any(CACHE.match(ast.unparse(one)) for one in node.decorator_list) or TO_PROCESS.search(ast.unparse(node)):
                yield prefix + node.name


def test_process_wide_state_is_documented() -> None:
    found = {
        f"{path.relative_to(SOURCE / 'sparring').with_suffix('').as_posix().replace('/', '.')}.{name}"
        for path in FILES
        for name in process_wide(path.read_text(encoding="utf-8"))
    }
    page = (SOURCE.parent / "docs" / "contributing.md").read_text(encoding="utf-8")
    section = page.partition("### Process-wide state")[2].partition("\n## ")[0]
    assert found == set(re.findall(r"^\| `(\S+)` \|", section, re.MULTILINE))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("_seen: list[str] = []\n_PATTERN = 1\n_word = re.compile('a')", ["_seen"]),
        ("@functools.lru_cache(maxsize=4)\ndef f(): ...\n@cache\ndef g(): ...\n@cached_property\ndef h(): ...", ["f", "g"]),
        ("class A:\n    def f(self):\n        os.environ['X'] = '1'", ["A.f"]),
        ("def f():\n    if 'X' in os.environ:\n        os.environ.setdefault('X', os.environ['Y'])", ["f"]),
        ("def f():\n    return os.environ['X'] == '1', {**os.environ}", []),
        ("def f():\n    logging.getLogger('other').setLevel(logging.ERROR)", ["f"]),
    ],
)
def test_the_finder_of_process_wide_state(source: str, found: list[str]) -> None:
    assert list(process_wide(source)) == found


def test_no_class_name_twice() -> None:
    """A name of a class or an alias of a type means one thing in all of the package."""
    top_level = re.compile(r"^(?:class (\w+)|([A-Z]\w+) = (?!TypeVar))", re.MULTILINE)
    found = [name[1] or name[2] for path in FILES for name in top_level.finditer(path.read_text(encoding="utf-8"))]
    found = [name for name in found if not name.isupper()]  # constants
    assert len(found) == len(set(found)), {name for name in found if found.count(name) > 1}


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def undocumented(trees: Sequence[ast.Module]) -> Iterator[str]:
    """Public functions, classes and methods without a docstring. A method may have that of a base class, or of a Protocol whose methods
    its class has."""
    nodes = [node for tree in trees for node in tree.body if isinstance(node, (*FUNCTIONS, ast.ClassDef))]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    def methods(node: ast.ClassDef) -> dict[str, str | None]:
        """Name -> docstring, those of base classes included."""
        bases = [methods(classes[base]) for base in map(ast.unparse, node.bases) if base in classes]
        found = {name: text for of_base in bases for name, text in of_base.items()}
        return found | {one.name: ast.get_docstring(one) or found.get(one.name) for one in node.body if isinstance(one, FUNCTIONS)}

    protocols = [methods(node) for node in classes.values() if "Protocol" in map(ast.unparse, node.bases)]
    for node in nodes:
        if node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        own = methods(node) if isinstance(node, ast.ClassDef) else {}
        for name, text in own.items():
            texts = [text, *(protocol.get(name) for protocol in protocols if protocol.keys() <= own.keys())]
            if not name.startswith("_") and not any(texts):
                yield f"{node.name}.{name}"


def test_what_is_public_has_a_docstring() -> None:
    assert list(undocumented([ast.parse(path.read_text(encoding="utf-8")) for path in FILES])) == []


def test_the_finder_of_missing_docstrings() -> None:
    protocol = "class P(Protocol):\n    '''A.'''\n    def f(self):\n        '''B.'''\n    def g(self):\n        '''C.'''\n"
    classes = "class A:\n    '''D.'''\n    def f(self): ...\n    def g(self): ...\n"
    classes += "class B(A): ...\nclass C:\n    def f(self): ...\ndef h(): ...\n"
    assert list(undocumented([ast.parse(protocol + classes)])) == ["B", "C", "C.f", "h"]
