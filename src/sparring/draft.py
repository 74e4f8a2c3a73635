"""`sparring init`: a first recipe, with values that the rows suggest and a comment on each."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.checkers.grades import PatternProposal, propose
from sparring.config import DataSection, ModelSection, Recipe, builtin_recipes, load_recipe
from sparring.config.load import apply_override
from sparring.config.yaml_dialect import dump_yaml
from sparring.console import printable, quoted
from sparring.data.conversations import is_empty, load_conversations
from sparring.data.records import Conversation
from sparring.data.shapes import BadRows, choose_shape
from sparring.data.sources import open_table
from sparring.errors import UserError
from sparring.planning.lengths import SAMPLE_ROWS, local_chat
from sparring.rundir import write_text

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Usual column names of rows that have no known shape; the standard names are included, since a row may have one of them
USUAL_COLUMNS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"output": ("output", "response", "answer", "completion"), "input": ("input", "context")},
    {
        "prompt": ("prompt", "question", "query", "problem", "instruction", "input", "text"),
        "completion": ("completion", "response", "output", "solution", "answer", "target", "reply", "label"),
    },
)
WIDTH = 100  # of a line with its comment
TOKENS_PER_WORD, BYTES_PER_TOKEN = 1.5, 4  # without a tokenizer; bytes for long texts without blanks
REPLIES = 2  # to each prompt: the fewest that can vote
WHOLE_REPLY = {"evaluate": {"answer_pattern": "(?s).+"}}
LONGEST = 2048  # tokens: the highest limit of prompts or replies that is proposed

COMMENTS = {
    "run_dir": "everything that the run writes; rerunning the same command resumes it",
    "model.path": "a folder, a Hub id or a .gguf file",
    "sft": "fine-tune the model on these rows first; delete this section if it already is",
    "sampling.replies_per_prompt": "more make the gradient less noisy",
    "objective.window": "train on the newest replies and those of the iteration before",
    "train.lr": "one value, or one per iteration",
    "controls": "control: the same compute spent on more SFT",
}


@dataclass(frozen=True)
class RowLengths:
    """Tokens of some rows' prompts and replies; `source`: how they were counted."""

    prompts: list[int]
    replies: list[int]
    source: str
    are_counted: bool

    @property
    def usual_reply(self) -> int:
        """The 95th percentile."""
        return sorted(self.replies)[math.ceil(0.95 * len(self.replies)) - 1]


@dataclass(frozen=True)
class Rows:
    """Rows without repetitions and blank ones, each with its place, in the order of their ids."""

    shape: str
    columns: Mapping[str, str]
    located: list[tuple[str, Conversation]]
    held_out: int | float
    notices: tuple[str, ...]


def write_example(output: Path, force: bool) -> None:
    """Write the built-in tiny game."""
    _require_free(output, force)
    _write(output, builtin_recipes()["builtin:tiny"].read_text(encoding="utf-8"))


def write_recipe(data: str, model: str, overrides: Sequence[str], output: Path, force: bool) -> None:
    """Look at the rows, write a recipe for them and print what was found. Raises UserError for rows that no game can be played with."""
    _require_free(output, force)
    values: dict[str, Any] = {"run_dir": f"runs/{_name_of(data)}", "model": {"path": model}, "data": {"path": data}}
    # in the place of what is proposed below, without which an override could be refused
    wanted = load_recipe({**values, **WHOLE_REPLY, "sampling": {"replies_per_prompt": REPLIES}}, overrides)
    rows = _look(wanted)
    sample = rows.located[:SAMPLE_ROWS]
    lengths = _lengths(sample, wanted.model)
    proposal = propose([row.reply for _, row in sample])
    values, comments = _proposed(values, rows, lengths, proposal)
    for override in overrides:
        values = apply_override(values, override)
    if rows.columns:  # an override of some columns would drop those that were found
        values["data"] = {**values["data"], "columns": dict(rows.columns)}
    load_recipe(values)  # an override may contradict a proposed value
    text = "\n".join(["# A first recipe, by `sparring init`. `sparring docs recipe` lists every key.", *_lines(values, comments)])
    for line in (*rows.notices, *_findings(lengths, proposal)):
        print(printable(line))
    _write(output, f"{text}\n{'' if 'target' in values else _suggestion(proposal)}")


def _require_free(output: Path, force: bool) -> None:
    if output.is_dir() or not output.absolute().parent.is_dir():
        what = "is a folder" if output.is_dir() else "its folder does not exist"
        raise UserError(what, where=f"--output ({output})", remedy="name a file in a folder that exists")
    if output.exists() and not force:
        raise UserError("exists already", where=f"--output ({output})", remedy="name another file, or --force to replace it")


def _write(output: Path, text: str) -> None:
    write_text(output, text)
    name = shlex.quote(str(output))
    print(printable(f"wrote {output}. Next:\n  sparring plan {name}   # time and memory\n  sparring run {name}    # play"))


def _name_of(data: str) -> str:
    """A folder name made from the name of the data."""
    stem = Path(data).name.partition(".")[0]
    return re.sub(r"[^\w-]+", "-", stem.removeprefix("builtin:"), flags=re.ASCII).strip("-") or "mine"


def _look(recipe: Recipe) -> Rows:
    columns = _columns(recipe.data)
    section = recipe.data.model_copy(update={"columns": columns})
    loaded = load_conversations(section, recipe.seed)
    shape = choose_shape(section.shape, columns, loaded.columns, section.named)
    rows = {row.row_id: (where, row) for where, row in loaded.rows if not is_empty(row)}
    notices = (f"{section.named}: {len(rows)} rows of the shape {shape}", *loaded.notices, *loaded.bad.notices)
    prompts = len({row.prompt_words for _, row in rows.values()})
    if prompts < 2:
        what = f"different prompts with a reply: {prompts}; a game needs at least 2, one to train on and one held out"
        raise UserError(what, where=section.named, remedy="add rows with other prompts")
    # a third of the prompts at most, so that a small file has rows to train on
    held_out = section.held_out or max(1, min(section.held_out_of(len(rows)), prompts // 3))
    return Rows(shape, columns, [rows[row_id] for row_id in sorted(rows)], held_out, notices)


def _columns(section: DataSection) -> dict[str, str]:
    """The columns that the user named; for rows that fit no known shape with them, those that usually hold prompts and replies too."""
    named = dict(section.columns)
    table = open_table(section, 0, BadRows(drop=True))
    own = {name.lower(): name for name in table.columns}
    for usual in ({}, *(_renamed(usual, own) for usual in USUAL_COLUMNS)):
        columns = {**usual, **named}
        with contextlib.suppress(UserError):
            choose_shape(section.shape, columns, table.columns, table.source)
            return columns
    return named  # the reader reports what is wrong with them


def _renamed(usual: Mapping[str, Sequence[str]], own: Mapping[str, str]) -> dict[str, str]:
    """Standard name -> the rows' name for it, where they differ; `own`: lower-case name -> the rows' name."""
    found = {standard: next((own[word] for word in words if word in own), standard) for standard, words in usual.items()}
    return {standard: name for standard, name in found.items() if name != standard}


def _lengths(rows: Sequence[tuple[str, Conversation]], model: ModelSection) -> RowLengths:
    try:
        chat = local_chat(model)
        if chat is not None:
            encoded = [chat.encode(row, where) for where, row in rows]
            return RowLengths([len(ids) for ids, _ in encoded], [len(ids) for _, ids in encoded], "counted by the model's tokenizer", True)
        why = "the model's tokenizer is not on this machine"
    except UserError as error:  # a game would stop at it; it can be fixed in the recipe
        why = f"a run would refuse the rows as they are: {error}"
    prompts = [_estimated("\n".join(turn["content"] for turn in row.prompt)) for _, row in rows]
    replies = [_estimated(row.text) for _, row in rows]
    how = f"estimated as {TOKENS_PER_WORD} a word and 1 for every digit, sign and letter beyond a to z"
    return RowLengths(prompts, replies, f"{how}: {why}", False)


def _estimated(text: str) -> int:
    """Tokens of a text and its end. Tokenizers split numbers into digits and rare scripts into characters; too few would cut replies."""
    size = len(text.encode("utf-8", "replace"))
    by_words = TOKENS_PER_WORD * len(text.split()) + len(re.findall(r"[^A-Za-z\s]", text))
    return math.ceil(max(by_words, size / BYTES_PER_TOKEN)) + 1


def _proposed(
    values: Mapping[str, Any], rows: Rows, lengths: RowLengths, proposal: PatternProposal | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """(the whole recipe, comments on its values)."""
    count = len(rows.located)
    longest = {"max_prompt_tokens": max(lengths.prompts), "max_reply_tokens": max(lengths.replies)}
    limits = {key: max(DataSection.model_fields[key].default, min(LONGEST, _rounded(tokens))) for key, tokens in longest.items()}
    columns = {"columns": dict(rows.columns)} if rows.columns else {}
    data = {**values["data"], "shape": rows.shape, **columns, "held_out": rows.held_out, **limits}
    # batches of a size that gives some eight steps an epoch or more
    batch = max(4, min(64, 2 ** int(math.log2(max(count, 8) / 8))))
    found = {
        **values,
        "data": data,
        "sft": {"lr": 2e-5, "epochs": 1, "batch_size": batch},
        "iterations": 3,
        "sampling": {"max_new_tokens": _rounded(lengths.usual_reply), "replies_per_prompt": REPLIES},
        "objective": {"window": 2},  # beta has its default, which the target decides
        "train": {"optimizer": "adamw", "lr": 1e-5, "epochs": 1, "batch_size": batch},
        "controls": "continued-sft",
    }
    comments = {f"data.{key}": f"the longest of {len(lengths.replies)} rows has {tokens}" for key, tokens in longest.items()}
    comments["data.held_out"] = f"of {count} rows: for evaluation only"
    how = "counted" if lengths.are_counted else "estimated from the text"
    comments["sampling.max_new_tokens"] = f"95% of the human replies have at most {lengths.usual_reply}, {how}"
    if proposal is not None and proposal.is_usual:
        found["evaluate"] = {"answer_pattern": proposal.form.pattern}
        comments["evaluate.answer_pattern"] = _in_words(proposal)
    return found, {**COMMENTS, **comments}


def _rounded(tokens: int) -> int:
    return 8 * math.ceil(tokens / 8)


def _in_words(proposal: PatternProposal) -> str:
    example = quoted(proposal.example, 30)
    return f"{proposal.form.words}: in {proposal.found} of {proposal.replies} human replies, such as {example}"


def _findings(lengths: RowLengths, proposal: PatternProposal | None) -> Iterator[str]:
    usual, longest = lengths.usual_reply, max(lengths.replies)
    yield f"tokens of {len(lengths.replies)} rows, {lengths.source}"
    yield f"  prompts: at most {max(lengths.prompts)}; human replies: at most {longest}, 95% of them at most {usual}"
    if proposal is None:
        yield "answers: no usual answer format was found in the human replies; the recipe has no answer_pattern"
    else:
        yield f"answers: {_in_words(proposal)}{'' if proposal.is_usual else '; too few, so the pattern is commented out'}"


def _suggestion(proposal: PatternProposal | None) -> str:
    """An option that the user may want, as a comment."""
    if proposal is not None and proposal.is_usual:
        said = "to let the model's own replies win where their answer is right (`sparring docs targets`):"
        values: dict[str, Any] = {"target": {"kind": "verified", "checker": proposal.form.checker}}
    elif proposal is not None:
        said, values = f"to measure exact matches: {_in_words(proposal)}", {"evaluate": {"answer_pattern": proposal.form.pattern}}
    else:
        said, values = "to measure exact matches: a regular expression for the answer; this one takes the whole reply", WHOLE_REPLY
    return textwrap.indent(f"{said}\n{dump_yaml(values)}", "# ")


def _lines(values: Mapping[str, Any], comments: Mapping[str, str], above: str = "") -> Iterator[str]:
    """The values as YAML, each with its comment: on the same line, or above a value of several lines."""
    for key, value in values.items():
        name = f"{above}{key}"
        is_section = isinstance(value, dict) and bool(value)
        text = f"{key}:" if is_section else dump_yaml({key: value}).rstrip("\n")
        comment = f"# {comments[name]}" if name in comments else ""
        one_line = f"{text}   {comment}".rstrip()
        yield one_line if "\n" not in text and len(one_line) <= WIDTH else f"{comment}\n{text}".lstrip()
        if is_section:
            yield from (textwrap.indent(line, "  ") for line in _lines(value, comments, f"{name}."))
