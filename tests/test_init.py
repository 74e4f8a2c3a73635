"""`sparring init`: the recipe that it writes loads for rows of every shape, says what the rows say, and plays."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from test_bad_input import refused
from zygote import Zygote

from sparring.checkers.grades import FORMS, propose
from sparring.config import ModelSection, load_recipe
from sparring.planning import lengths
from sparring.policy.tiny import byte_tokenizer

ROOT = Path(__file__).parent.parent


def turns(asked: str, answered: str, keys: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")) -> Any:
    return [{keys[0]: role, keys[1]: text} for role, text in zip(roles, (asked, answered), strict=True)]


# shape of the recipe, its data.columns, and a row as data sets have it
SHAPED = {
    "messages": ("messages", {}, lambda q, a: {"messages": turns(q, a)}),
    "sharegpt": ("sharegpt", {}, lambda q, a: {"conversations": turns(q, a, ("from", "value"), ("human", "gpt"))}),
    "spin": ("real_generated", {}, lambda q, a: {"real": turns(q, a), "generated": turns(q, "old")}),
    "prompt": ("prompt_completion", {}, lambda q, a: {"prompt": q, "completion": a}),
    "alpaca": ("alpaca", {}, lambda q, a: {"instruction": q, "input": "", "output": a}),
    "gsm8k": ("prompt_completion", {"prompt": "question", "completion": "answer"}, lambda q, a: {"question": q, "answer": a}),
    "capitals": ("prompt_completion", {"prompt": "Question", "completion": "Answer"}, lambda q, a: {"Question": q, "Answer": a}),
    "response": ("prompt_completion", {"completion": "response"}, lambda q, a: {"prompt": q, "response": a}),
    "dolly": ("alpaca", {"output": "response", "input": "context"}, lambda q, a: {"instruction": q, "context": "", "response": a}),
}


def sums(shape: str = "prompt", count: int = 24) -> list[dict[str, Any]]:
    return [SHAPED[shape][2](f"add {n} and {n}", f"{n} + {n} = {2 * n}") for n in range(count)]


def uncommented(text: str) -> str:
    """The recipe with its last suggestion switched on."""
    head, _, tail = text.rpartition("# to ")
    return head + "".join(f"{line.removeprefix('# ')}\n" for line in tail.splitlines()[1:])


@pytest.mark.parametrize("name", SHAPED)
def test_the_recipe_loads_for_every_shape(name: str, zygote: Zygote, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", sums(name))
    result = zygote.run(["init", "rows.jsonl", "--model", "builtin:tiny"], tmp_path)
    assert result.code == 0, result.err
    assert zygote.run(["recipe", "recipe.yaml"], tmp_path).code == 0
    recipe, text = load_recipe(tmp_path / "recipe.yaml"), (tmp_path / "recipe.yaml").read_text()
    shape, columns, _ = SHAPED[name]
    assert (recipe.data.shape, dict(recipe.data.columns), recipe.data.held_out) == (shape, columns, 8)
    assert recipe.run_dir == "runs/rows" and recipe.model.path == "builtin:tiny"
    assert re.findall(FORMS[5].pattern, "1 + 2 = 3") == ["3"] and recipe.evaluate.answer_pattern == FORMS[5].pattern
    found = "a number after = at the end: in 24 of 24 human replies"
    assert found in result.out and found in text
    # a byte is a token: "12 + 12 = 24" and the end of the turn
    assert recipe.sampling.max_new_tokens == 16 and "95% of the human replies have at most 13, counted" in text
    assert "sparring plan recipe.yaml" in result.out and "sparring run recipe.yaml" in result.out
    switched_on = tmp_path / "on.yaml"
    switched_on.write_text(uncommented(text))
    verified = load_recipe(switched_on)
    assert (verified.target.kind, verified.objective.beta, recipe.objective.beta) == ("verified", 0.5, 1.0)


def test_the_recipe_plays(zygote: Zygote, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", sums())
    assert zygote.run(["init", "rows.jsonl", "--model", "builtin:tiny"], tmp_path).code == 0
    played = zygote.run(["run", "recipe.yaml", "iterations=1", "report=false"], tmp_path)
    assert played.code == 0, played.err
    summary = json.loads((tmp_path / "runs/rows/summary.json").read_text())
    assert len(summary["iterations"]) == 1 and summary["start"]["scores"]["exact_match"]["n"] == 8


def test_a_tokenizer_that_is_not_there_is_made_up_for_by_words(zygote: Zygote, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"write {n}", "completion": "one two " * (n + 1)} for n in range(100)])
    result = zygote.run(["init", "rows.jsonl", "train.lr=1e-6", "data.held_out=0.25", "sft=null", "--output", "own.yaml"], tmp_path)
    recipe = load_recipe(tmp_path / "own.yaml")
    assert result.code == 0 and "beyond a to z: the model's tokenizer is not on this machine" in result.out
    assert recipe.sampling.max_new_tokens == 288  # 95 * 2 words, and the end of the turn: 286
    assert (recipe.train.lr, recipe.data.held_out, recipe.sft, recipe.evaluate.answer_pattern) == (1e-6, 0.25, None, None)
    assert "no usual answer format was found" in result.out
    switched_on = tmp_path / "on.yaml"
    switched_on.write_text(uncommented((tmp_path / "own.yaml").read_text()))
    assert load_recipe(switched_on).metric == "exact_match"


@pytest.mark.parametrize("reply, tokens", [("Adding 18 and 73 gives 91.\n#### 91", 21), ("答案是98。", 7)])
def test_estimated_limits_do_not_cut_numbers_and_rare_scripts(reply: str, tokens: int, zygote: Zygote, tmp_path: Path) -> None:
    """`tokens`: what SmolLM2's tokenizer, or one for Chinese, makes of the reply and its end."""
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"p{n}", "completion": reply} for n in range(9)])
    assert zygote.run(["init", "rows.jsonl"], tmp_path).code == 0
    assert load_recipe(tmp_path / "recipe.yaml").sampling.max_new_tokens >= tokens


def test_named_columns_are_kept_and_the_others_found(zygote: Zygote, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"rules": "be brief", "question": f"q{n}", "response": "r"} for n in range(9)])
    assert zygote.run(["init", "rows.jsonl", "data.columns={system: rules}"], tmp_path).code == 0
    expected = {"prompt": "question", "completion": "response", "system": "rules"}
    assert dict(load_recipe(tmp_path / "recipe.yaml").data.columns) == expected


def test_an_override_may_need_what_is_proposed(zygote: Zygote, tmp_path: Path) -> None:
    """The checker exact needs a pattern, a majority several replies; a target of the user's own is not followed by another as a comment."""
    write_rows(tmp_path / "rows.jsonl", [{"prompt": f"add {n}", "completion": f"it is #### {n}"} for n in range(24)])
    result = zygote.run(["init", "rows.jsonl", "target={kind: majority, checker: exact}"], tmp_path)
    assert result.code == 0, result.err
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.target.kind, recipe.target.checker, recipe.sampling.replies_per_prompt) == ("majority", "exact", 2)
    assert recipe.evaluate.answer_pattern and "# target:" not in (tmp_path / "recipe.yaml").read_text()
    write_rows(tmp_path / "texts.jsonl", [{"prompt": f"say {n}", "completion": "yes" * (n % 2) + " no"} for n in range(24)])
    result = zygote.run(["init", "texts.jsonl", "target={kind: verified, checker: exact}", "--output", "other.yaml"], tmp_path)
    assert result.code == 2 and "target.checker exact needs it to find the answer" in result.err


def test_without_rows_the_tiny_game_is_written(zygote: Zygote, tmp_path: Path) -> None:
    result = zygote.run(["init"], tmp_path)
    assert result.code == 0 and (tmp_path / "recipe.yaml").read_text() == (ROOT / "recipes/tiny.yaml").read_text()


@pytest.mark.parametrize(
    "args, parts",
    [
        (["none.jsonl"], ["none.jsonl: no such data file", "did you mean one.jsonl?"]),
        (["odd.jsonl"], ["no known shape fits the columns: a, b", "data.columns: {prompt: question"]),
        (["pairs.jsonl"], ["columns: prompt, chosen, rejected", "data.columns: {completion: chosen}, or {messages: chosen}"]),
        (["odd.jsonl", "data.columns={prompt: a, completion: c}"], ["there is no column 'c'", "the columns are: a, b"]),
        (["one.jsonl"], ["one.jsonl: different prompts with a reply: 1; a game needs at least 2", "add rows with other prompts"]),
        (["spaced.jsonl"], ["spaced.jsonl: different prompts with a reply: 1"]),
        (["bad.jsonl"], ["bad.jsonl, line 2: row without a reply", "fix the row"]),
        (["bad.jsonl", "data.on_bad_rows=drop"], ["data.on_bad_rows: unknown key; did you mean data.on_bad_row?"]),
        (["one.jsonl", "--output", "no/where.yaml"], ["--output (no/where.yaml): its folder does not exist"]),
        (["one.jsonl", "--output", ".", "--force"], ["--output (.): is a folder"]),
        (["--model", "x"], ["--model (x): without rows the recipe of the built-in tiny game is written", "sparring init DATA --model ID"]),
    ],
)
def test_what_cannot_be_used_is_refused(args: list[str], parts: list[str], zygote: Zygote, tmp_path: Path) -> None:
    write_rows(tmp_path / "odd.jsonl", [{"a": 1, "b": 2}])
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    write_rows(tmp_path / "one.jsonl", [{"prompt": "p", "completion": f"c {n}"} for n in range(9)])
    write_rows(tmp_path / "spaced.jsonl", [{"prompt": f"p{' ' * n} q", "completion": "c"} for n in range(9)])
    write_rows(tmp_path / "bad.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": "q"}])
    refused(zygote.run(["init", *args], tmp_path), *parts)
    assert not list(tmp_path.rglob("*.yaml"))


def test_a_file_is_replaced_on_demand_alone(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    refused(zygote.run(["init", "builtin:tasks"], tmp_path), "--output (recipe.yaml): exists already", "--force to replace it")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert zygote.run(["init", "builtin:tasks", "--force"], tmp_path).code == 0
    assert load_recipe(tmp_path / "recipe.yaml").data.path == "builtin:tasks"


# ---------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "replies, words, example",
    [
        (["so 1 + 1 = 2\n#### 1,234", "#### $-5", "x #### 7.5 apples"], "a number after ####", "1,234"),
        ([r"hence \boxed{\frac{1}{\sqrt{2}}}", r"\boxed{7}."], "the content of \\boxed{}", r"\frac{1}{\sqrt{2}}"),
        (["The answer is (B).", "Answer: C", "the answer is D"], "a letter after the word answer", "B"),
        (["The answer is 12.", "answer: $7"], "a number after the word answer", "12"),
        (["B", "(C) a dog", "D. a cat", "A)"], "a letter at the start", "B"),
        (["1 + 2 = 3", "1 = 1, so x = -2.5."], "a number after = at the end", "3"),
        (["it makes 12", "5-3 makes 2.", "100%"], "a number at the end", "12"),
        (["答案是98。", "答案是 1,234", "x=5"], "a number at the end", "98"),
        (["A dog barks", "I like it", "see chapter 3 of it", "v2"], None, None),
    ],
)
def test_the_form_of_the_answers(replies: list[str], words: str | None, example: str | None) -> None:
    found = propose(replies)
    if words is None:
        assert found is None
    else:
        assert found is not None and found.is_usual and (found.form.words, found.example) == (words, example)


def test_a_form_that_some_replies_lack_is_only_mentioned() -> None:
    found = propose(["= 1", "= 2", "= 3", "who knows"])
    assert found is not None and not found.is_usual and (found.found, found.replies) == (3, 4)
    assert propose(["= 1", "no", "no"]) is None
    assert propose([]) is None


# ---------------------------------------------------------------------------------------------- tokenizer


def test_a_tokenizer_in_the_hubs_cache_is_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = ModelSection(path="someone/small")
    assert lengths.local_chat(model) is None and lengths.local_chat(ModelSection(path="no/such/folder")) is None
    folder = tmp_path / "models--someone--small"
    byte_tokenizer().save_pretrained(folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    chat = lengths.local_chat(model)
    assert chat is not None and len(chat.prompt_ids([{"role": "user", "content": "hello"}])) > 5
