"""`import sparring`: the same game from Python, and its pieces."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from conftest import TINY, Game
from test_kill_and_resume import assert_same_outcome

import sparring

RUN_A_DICT = """
import json, sys
import sparring
recipe = json.load(open("recipe.json"))
summary = sparring.run(recipe, ["seed=0"])
assert json.load(open("recipe.json")) == recipe
print(json.dumps(summary))
"""


def test_a_game_from_a_dict_is_the_game_from_the_command(game: Game, played: Game) -> None:
    import json

    (game.folder / "recipe.json").write_text(json.dumps(TINY))
    result = game.command(python=RUN_A_DICT)
    assert result.code == 0, result.err
    assert json.loads(result.out) == game.json("summary.json"), "the summary is what is returned"
    assert_same_outcome(game.root, played.root)


def test_micro_batches_are_chosen_once_for_a_run(game: Game, played: Game) -> None:
    """TINY's sft section names none. What an earlier attempt chose stays, whatever is free now; so does the result, to rounding."""
    assert played.json("micro_batch.json") == {"micro_batch_tokens": 512, "device": "cpu", "shared": None}
    game.root.mkdir()
    (game.root / "micro_batch.json").write_text('{"micro_batch_tokens": 30, "device": "cpu"}')
    result = game.run()
    assert result.code == 0 and "micro_batch_tokens:" not in result.err
    few, many = (each.json("sft/done.json")["facts"] for each in (game, played))
    assert few["micro_batches"] > many["micro_batches"] == many["steps"]
    assert few["trained_tokens"] == many["trained_tokens"] and few["padding"] == many["padding"] == 0
    of = [each.json("summary.json")["start"]["scores"]["nll_per_token"]["value"] for each in (game, played)]
    assert of[0] == pytest.approx(of[1], rel=1e-5)


REFUSED = """
import sparring
try:
    sparring.run({"run_dir": "run", "model": {"path": "builtin:tiny"}})
except sparring.UserError as error:
    print(error.where, "/", error.what, "/", error.remedy)
try:
    sparring.run("recipe.yaml", restart_from="nowhere")
except sparring.UserError as error:
    print(error)
"""


def test_user_errors_reach_the_caller(game: Game) -> None:
    result = game.command(python=REFUSED)
    assert result.code == 0, result.err
    first, second = result.out.split("\n", 1)
    assert first.startswith("recipe / ") or "data: required key is missing" in result.out
    assert "no stage named 'nowhere'" in second and result.err == ""


def test_the_pieces_can_be_imported_and_are_documented() -> None:
    for name in sparring.__all__:
        piece: Any = getattr(sparring, name)
        assert name == "__version__" or piece.__doc__, name
    assert {"run", "load_recipe", "Recipe", "UserError", "spin_loss", "Scorer", "__version__"} <= set(dir(sparring))
    with pytest.raises(AttributeError, match="no attribute 'play'"):
        _ = sparring.play


def test_the_docstring_of_the_package_names_its_pieces() -> None:
    assert all(name in sparring.__doc__ for name in ("sparring.run", "spin_loss", "Scorer", "load_recipe", "UserError"))


def test_import_is_quick_and_loads_no_torch() -> None:
    code = "import sys, sparring; sparring.load_recipe; assert 'torch' not in sys.modules; print(sparring.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == sparring.__version__
