"""An objective of one's own, exactly as docs/contributing.md says, and everything that such a function may do wrong.

tests/test_adding.py adds it to the package.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import TINY, Game, rows, write_rows
from test_docs import page_blocks
from zygote import Zygote

from sparring.config import load_recipe
from sparring.data.records import Contest, Duel
from sparring.errors import UserError
from sparring.objectives import KINDS
from sparring.objectives.own import OwnObjective
from sparring.objectives.spin import Spin
from sparring.publish.names import public
from sparring.training.tasks import iteration_task

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
FILE, CLASS = (block.text for block in page_blocks(ROOT / "docs/contributing.md") if block.language == "python" and "ipo" in block.text)
# One iteration on twelve rows, eight to train on: two steps
SMALL = {"data__held_out": 4, "sft": None, "sampling__max_new_tokens": 4, "showcase": [], "controls": None, "iterations": 1}
BETA = 0.25
AT_START = (1 / (2 * BETA)) ** 2  # every margin is 0 there


def small_game(folder: Path, zygote: Zygote, loss: str, **changes: object) -> Game:
    game = Game(folder, zygote, {"objective": {"loss": loss, "beta": BETA}, **SMALL, **changes})
    write_rows(folder / "rows.jsonl", rows(12))
    (folder / "ipo.py").write_text(FILE, encoding="utf-8")
    return game


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Game:
    """The page's file, named as the page says; for tests that only read."""
    game = small_game(tmp_path_factory.mktemp("own") / "game", zygote, "logistic", report=True)
    return game.play("objective.loss=ipo.py:ipo")


def first_step(root: Path) -> dict[str, float]:
    return json.loads((root / "iterations/000/train/metrics.jsonl").read_text().splitlines()[0])


# ---------------------------------------------------------------------------------------------- as the page says


def test_a_file_of_ones_own_is_played(own: Game) -> None:
    step = first_step(own.root)
    assert (step["margin"], step["accuracy"], step["reward_real"], step["reward_generated"]) == (0.0, 0.5, 0.0, 0.0)
    assert step["loss"] == pytest.approx(AT_START, rel=1e-12) and step["grad_norm"] > 0
    inputs = own.json("iterations/000/train/done.json")["inputs"]["objective"]
    assert inputs.keys() == {"loss", "beta", "sha256"} and inputs["loss"] == "ipo.py:ipo"


def test_its_name_is_shown(own: Game, tmp_path: Path) -> None:
    """The file is not read for it: a report of a run that came from elsewhere runs none of its code."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(own.root, copy, symlinks=True)
    for args in (["status", str(copy)], ["report", str(copy), "--output", "page.html"]):
        result = own.zygote.run(args, tmp_path)
        assert result.code == 0, result.err
        shown = result.out if args[0] == "status" else (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "ipo.py:ipo" in shown
    assert public(load_recipe({**TINY, "objective": {"loss": "/home/me/ipo.py:ipo"}}))["objective"]["loss"] == "ipo.py:ipo"


def test_another_text_of_the_file_is_another_training(own: Game, zygote: Zygote, tmp_path: Path) -> None:
    shutil.copytree(own.folder, tmp_path / "game", symlinks=True)
    path = tmp_path / "game/ipo.py"
    assert zygote.run(["run", "recipe.yaml", "objective.loss=ipo.py:ipo"], path.parent).code == 0
    path.write_text(FILE.replace("** 2", "** 4"), encoding="utf-8")
    result = zygote.run(["run", "recipe.yaml", "objective.loss=ipo.py:ipo"], path.parent)
    assert result.code == 2 and "objective.sha256" in result.err and "--restart-from iterations/000/train" in result.err, result.err


def test_help_and_docs_say_whose_papers_were_read_in_part(zygote: Zygote, tmp_path: Path) -> None:
    helped = " ".join(zygote.run(["run", "--help"], tmp_path).out.split())
    for page in (helped, *((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("recipe.md", "cli.md"))):
        for paper in ("SPACE, arXiv 2512.07175", "alpha-SPIN, arXiv 2404.04291"):
            assert f"({paper}; implemented from a partial reading of its paper" in page
    assert "SPACE and alpha-SPIN are implemented from a partial reading of their papers." in (ROOT / "docs/theory.md").read_text()


def test_every_objective_says_what_it_is() -> None:
    for kind in KINDS:
        assert kind.names and kind.about and kind.takes("loss")
    assert [kind.names[0] for kind in KINDS if not kind.uses_opponent_logps] == ["t-spin", "sft"]


# ---------------------------------------------------------------------------------------------- it computes what ours does

SPIN = """
    import torch
    from sparring.objectives.shared import mean_over_replies

    def f(player, opponent, mask_DK, *, beta):
        real_D, generated_DK = player.real_D - opponent.real_D, player.generated_DK - opponent.generated_DK
        return mean_over_replies(-torch.nn.functional.logsigmoid(beta * (real_D[:, None] - generated_DK)), mask_DK)
"""


@pytest.fixture
def write(tmp_path: Path):
    """Writes an objective's file and names its function `f`."""

    def write(code: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(code), encoding="utf-8")
        return f"{path}:f"

    return write


@pytest.mark.parametrize("nll_weight", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["duels", "contests"])
def test_spin_as_a_function_of_ones_own_is_spin(kind: str, nll_weight: float, write) -> None:
    """Over duels, where SPIN counts a reply that equals the human one and this has it as a column, and over pairs of winners and losers."""
    duel = Duel("a", 0, (1,), (2, 9), ((3, 9), (2, 9)))
    contest = Contest("a", 0, (1,), ((2, 9),), ((3, 9),), ((0, 0),), 0.5)
    found = []
    for objective in (
        OwnObjective(loss=write(SPIN), beta=0.7, nll_weight=nll_weight),
        Spin(loss="logistic", beta=0.7, nll_weight=nll_weight),
    ):
        logps_DR = torch.tensor([[-2.5, -3.0]], dtype=torch.float64, requires_grad=True)
        losses = iteration_task([duel if kind == "duels" else contest], objective, {"a@0": [-3.0, -4.0]}, {}).losses([0], logps_DR)
        (slope,) = torch.autograd.grad(losses.loss_D.sum(), logps_DR)
        told = [losses.numbers[name] for name in ("margin", "accuracy", "reward_real", "real_logp")]
        found.append(torch.cat([losses.loss_D.detach(), slope[0], *told]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    assert found[0][3] == (-0.25 if kind == "duels" else -0.5)


@pytest.mark.parametrize("target", [{"kind": "verified", "checker": "number"}, {"kind": "majority", "checker": "number"}])
def test_it_learns_from_winners_and_losers(target: dict[str, str], zygote: Zygote, tmp_path: Path) -> None:
    game = small_game(tmp_path / "game", zygote, "ipo.py:ipo", target=target, sft=TINY["sft"] | {"epochs": 8})
    result = game.run("sampling.max_new_tokens=6", "sampling.replies_per_prompt=6", "objective.nll_weight=0.5", "target.human=mix")
    assert result.code == 0, result.err
    step = first_step(game.root)
    assert step["margin"] == 0.0 and step["nll"] > 0 and step["loss"] > 0


# ---------------------------------------------------------------------------------------------- what is refused

BODY = "def f(player, opponent, mask_DK, *, beta):\n    "


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def g(): pass", "has no function 'f'"),
        ("f = 3", "is not a function but of type int"),
        ("import no_such_module", "cannot be imported: line 1: ModuleNotFoundError"),
        ("def f(", "cannot be imported: line 1: SyntaxError"),
        ("raise SystemExit(0)", "cannot be imported: line 1: SystemExit"),
        ("def f(player, opponent): pass", "f in {path} takes (player, opponent)"),
        ("def f(player, opponent, mask_DK): pass", "takes (player, opponent, mask_DK)"),
        (BODY + "raise ValueError('no')", "line 2: ValueError: no"),
        (BODY + "return player.real", "line 2: AttributeError"),
        (BODY + "return 1.0", "it returned float instead of a tensor"),
        (BODY + "return player.real_D.mean()", "a tensor of shape [] instead of one loss per duel, [2]"),
        (BODY + "return player.generated_DK", "a tensor of shape [2, 2] instead"),
        (BODY + "return player.real_D * float('nan')", "its losses are nan, nan, and they or their gradient are not finite"),
        (BODY + "return (player.real_D - opponent.real_D).abs().sqrt()", "they or their gradient are not finite"),
        (BODY + "return player.real_D.detach()", "its losses have no gradient: compute them from the player's log-probs"),
        (BODY + "return opponent.real_D", "its losses have no gradient: compute them"),
        (BODY + "return player.real_D.sign()", "its losses have no gradient: it is 0"),
        (BODY + "return player.generated_DK.mean(1) - player.real_D", "it counts padding"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(code: str, words: str, write) -> None:
    name = write(code)
    with pytest.raises(UserError) as refused:
        OwnObjective(loss=name, beta=0.5).check()
    assert words.format(path=name.rpartition(":")[0]) in str(refused.value) and str(refused.value).startswith("objective.loss: ")


@pytest.mark.parametrize("code", [SPIN, FILE.replace("def ipo", "def f").partition("if __name__")[0]])
def test_what_is_taken(code: str, write) -> None:
    OwnObjective(loss=write(code), beta=0.5).check()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.loss=none.py:f", "objective.loss: the file none.py does not exist"),
        ("objective.loss=ipo.py:ip", "ipo.py has no function 'ip'\n  -> did you mean ipo?"),
        ("objective.loss=rows.jsonl:f", "not an objective; there are logistic, hinge"),
        ("objective.loss=ipo.py:mean_over_replies", "mean_over_replies in ipo.py takes (value_DK"),
    ],
)
def test_a_run_ends_with_2_before_anything_is_made(override: str, words: str, game: Game) -> None:
    (game.folder / "ipo.py").write_text(FILE, encoding="utf-8")
    result = game.run(override)
    assert result.code == 2 and words in result.err and "Traceback" not in result.err, result.err
    assert not (game.root / "data").exists() and not (game.root / "base").exists()


def test_a_loss_that_goes_wrong_in_training_names_its_rows(zygote: Zygote, tmp_path: Path) -> None:
    """As any loss does that is not finite; and what it raises then is told as before."""
    game = small_game(tmp_path / "game", zygote, "late.py:f")
    told = {"loss_D * float('nan')": "the loss is not finite at step 0 (rows ", "loss_D[:0]": "it returned a tensor of shape [0]"}
    for late, words in told.items():
        code = f"from ipo import ipo\n{BODY}loss_D = ipo(player, opponent, mask_DK, beta=beta)\n"
        (game.folder / "late.py").write_text(f"{code}    return loss_D if player.real_D[0] == -9 else {late}\n", encoding="utf-8")
        result = game.run()
        assert result.code == 2 and words in result.err and "Traceback" not in result.err, result.err
        shutil.rmtree(game.root)
