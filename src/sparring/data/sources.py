"""SFT rows from a file, the Hub or the built-in tasks, every known row shape turned into a Conversation.

Text formats are parsed here rather than by `datasets`: its JSON reader turns text that looks like a date into a timestamp,
its CSV reader turns empty cells into nulls, neither says in which line a fault stands, and both copy the file into a cache.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparring.config import DataSection, PairsSection
from sparring.data.records import Conversation, Message
from sparring.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]
LocatedRow = tuple[str, Row]
Source = DataSection | PairsSection


class Shape(NamedTuple):
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


# In the order in which `auto` tries them: a row that keeps whole conversations says more than its flattened columns do.
SHAPES: dict[str, Shape] = {
    "messages": Shape(("messages",)),
    "real_generated": Shape(("real",), ("generated",)),
    "sharegpt": Shape(("conversations",)),
    "prompt_completion": Shape(("prompt", "completion")),
    "alpaca": Shape(("instruction", "output"), ("input",)),
}
PAIR_COLUMNS = ("prompt", "chosen", "rejected")
STANDARD_COLUMNS = frozenset(name for shape in SHAPES.values() for name in (*shape.required, *shape.optional))

ROLES = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "ai", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}


@dataclass(frozen=True)
class Rows:
    """The rows of one source. `columns` names all that exist; the rows may hold only those that a shape can use."""

    source: str
    columns: tuple[str, ...]
    items: tuple[LocatedRow, ...]


@dataclass(frozen=True)
class Loaded:
    """Conversations with the place they came from. `counts`: read, trailing_turns_dropped, surrogates_replaced (in rows)."""

    rows: list[tuple[str, Conversation]]
    counts: dict[str, int]
    notices: list[str]


def load_conversations(section: DataSection, seed: int) -> Loaded:
    """Read every row of the recipe's data and turn it into a Conversation, blank ones included (`is_empty` tells them).

    `seed` reaches only the built-in tasks. Raises UserError for anything that cannot be read, with its file and line or row.
    """
    rows = read_rows(section, seed)
    shape = choose_shape(section.shape, section.columns, rows.columns, rows.source)
    counts = Counter({"read": len(rows.items), "trailing_turns_dropped": 0, "surrogates_replaced": 0})
    conversations = [(where, to_conversation(row, shape, section.columns, where, counts)) for where, row in rows.items]
    notices = []
    if section.shape == "auto":
        notices.append(f"data.shape: {shape}, by the columns {', '.join(rows.columns)}")
    return Loaded(conversations, dict(counts), notices)


def is_empty(conversation: Conversation) -> bool:
    """Nothing was asked (only system turns have text) or nothing but blanks was answered."""
    asked = any(m["role"] != "system" and m["content"].strip() for m in conversation.prompt)
    return not asked or not conversation.reply.strip()


# --- where rows come from -------------------------------------------------------------------------------------------------


def read_rows(section: Source, seed: int) -> Rows:
    """All rows of `section.path`, each with its place ("FILE, line 3"; rows count from 1). A local file wins over a Hub id."""
    rows = _read(section, seed)
    if not rows.items:
        option = section.option
        raise UserError("the data is empty: it holds no row", where=rows.source, remedy=f"check {option}.path (and {option}.split)")
    return rows


def _read(section: Source, seed: int) -> Rows:
    if section.path.startswith("builtin:"):
        _refuse_hub_options(section, "the built-in tasks")
        return _read_builtin(section.path, seed)
    path = local_file(section)
    if path is None:
        return _read_hub(section)
    _refuse_hub_options(section, "a local file")
    return READERS[path.suffix.lower()](path, section)


def local_file(section: Source) -> Path | None:
    """The file that the section's `path` names, None for a Hub id or built-in data. Raises UserError when it is missing or no data file."""
    path = Path(section.path).expanduser()
    if section.path.startswith("builtin:") or (not _exists(path) and _may_be_hub_id(section.path)):
        return None
    if not _exists(path):
        raise UserError("no such data file", where=str(path), remedy=_other_files(path) or f"check {section.option}.path")
    if path.is_dir():
        raise UserError("is a folder, not a data file", where=str(path), remedy=_other_files(path / "x") or "name one file")
    if path.suffix.lower() not in READERS:
        known = ", ".join(READERS)
        raise UserError(f"unknown kind of file {path.suffix or '(no extension)'!r}; known: {known}", where=str(path), remedy="convert it")
    return path


def _read_builtin(path: str, seed: int) -> Rows:
    if path != "builtin:tasks":
        raise UserError(f"{path!r} is not built in", where="data.path", remedy="the built-in data is builtin:tasks")
    from sparring.data.tasks import task_rows

    return _rows(path, ((f"row {n}", row) for n, row in enumerate(task_rows(seed), 1)))


def _refuse_hub_options(section: Source, what: str) -> None:
    for key in ("name", "revision"):
        if (value := getattr(section, key)) is not None:
            raise UserError(
                f"{value!r} is for Hub data sets, but {section.path} is {what}", where=f"{section.option}.{key}", remedy="leave it out"
            )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a parent folder that may not be searched, a name that is too long: reading it will say so
        return True


_NOT_ON_HUB = (".txt", ".tsv", ".gz", ".zst", ".zip", ".arrow", ".xlsx", ".yaml", ".yml")


def _may_be_hub_id(path: str) -> bool:
    has_form = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path)
    return bool(has_form) and not path.lower().endswith((*READERS, *_NOT_ON_HUB))


def _other_files(path: Path) -> str | None:
    """A hint that names the data files beside a missing one, the closest name first."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix.lower() in READERS)
    except OSError:
        return f"the folder {path.parent} does not exist either, or cannot be read"
    guess = nearest(path.name, names)
    if guess:
        return f"did you mean {path.parent / guess}?"
    return f"data files in that folder: {', '.join(names[:8])}" if names else None


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", where=str(path), remedy="check its permissions") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8: byte 0x{data[error.start]:02x}"
        raise UserError(what, where=f"{path}, line {line}", remedy="save the file in UTF-8") from None


def _read_jsonl(path: Path, section: Source) -> Rows:
    return _rows(str(path), _json_lines(_text_of(path), path))


def _json_lines(text: str, path: Path) -> Iterator[LocatedRow]:
    # Only "\n" ends a line: str.splitlines would also break at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parse_json(line, f"{path}, line {number}", "a .jsonl file holds one JSON object per line")


def _read_json(path: Path, section: Source) -> Rows:
    """A list of rows, one row, or JSON Lines under the wrong extension, which is common."""
    text = _text_of(path)
    try:
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        first_line = text.lstrip().split("\n", 1)[0]
        if _is_json_object(first_line):
            return _rows(str(path), _json_lines(text, path))
        what = f"broken JSON: {error.msg} (column {error.colno})"
        raise UserError(what, where=f"{path}, line {error.lineno}", remedy="a .json file holds a list of rows") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"broken JSON: {error}", where=str(path)) from None
    rows = value if isinstance(value, list) else [value]
    return _rows(str(path), ((f"row {n}", row) for n, row in enumerate(rows, 1)))


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse_json(line: str, where: str, remedy: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        near = line[max(0, error.pos - 20) : error.pos + 20].strip()
        raise UserError(f"broken JSON: {error.msg} (column {error.colno}, near {near!r})", where=where, remedy=remedy) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"broken JSON: {error}", where=where, remedy=remedy) from None


def _read_csv(path: Path, section: Source) -> Rows:
    """Every cell is text; an empty cell is ""."""
    csv.field_size_limit(2**31 - 1)  # the standard limit of 128 KiB is less than a long conversation
    lines = _csv_lines(csv.reader(io.StringIO(_text_of(path), newline=""), strict=True), path)
    _, header = next(lines, (1, []))
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise UserError(f"the header names {', '.join(map(repr, repeated))} more than once", where=f"{path}, line 1")
    rows = _rows(str(path), _csv_rows(lines, header, path))
    return Rows(rows.source, tuple(header), rows.items)


def _csv_lines(reader: Iterator[list[str]], path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records that hold a cell, with the line in which each starts."""
    start = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "close every quote, and write a quote inside a quoted cell twice"
            raise UserError(f"broken CSV: {error}", where=f"{path}, line {start}", remedy=remedy) from None
        if cells:
            yield start, cells
        start = reader.line_num + 1  # type: ignore[attr-defined]


def _csv_rows(lines: Iterable[tuple[int, list[str]]], header: list[str], path: Path) -> Iterator[LocatedRow]:
    for line, cells in lines:
        if len(cells) != len(header):
            what = f"broken CSV: {len(cells)} cells, but the header names {len(header)} columns"
            raise UserError(what, where=f"{path}, line {line}", remedy="put cells that hold commas or line breaks in quotes")
        yield f"line {line}", dict(zip(header, cells, strict=True))


def _read_parquet(path: Path, section: Source) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        # Dataset understands the column types that `Dataset.to_parquet` wrote into the file.
        return _from_dataset(Dataset(InMemoryTable(pq.read_table(path))), str(path), section)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read the parquet file: {first_line(error)}", where=str(path)) from None


def _read_hub(section: Source) -> Rows:
    dataset, source = hub_dataset(section)
    return _from_dataset(dataset, source, section)


def hub_dataset(section: Source) -> tuple[Dataset, str]:
    """A data set of the Hub, or of its cache, and its name with what was asked for. Raises UserError where it cannot be had."""
    import datasets
    from huggingface_hub.errors import HTTPError

    asked = ", ".join(f"{key} {value}" for key in ("name", "split", "revision") if (value := getattr(section, key)))
    source = f"{section.path} ({asked})"
    try:
        dataset = datasets.load_dataset(section.path, section.name, split=section.split, revision=section.revision)
    except (datasets.exceptions.DatasetsError, HTTPError, OSError, ValueError, RuntimeError) as error:
        what = f"cannot load the data set: {type(error).__name__}: {first_line(error)}"
        tried = f"tried: the local path {Path(section.path).absolute()} (does not exist), then the Hugging Face Hub and its cache"
        remedy = f"{tried}; check the path, name, split and revision of {section.option}, and the network"
        raise UserError(what, where=f"{section.option}.path: {source}", remedy=remedy) from error
    return dataset, source


def _from_dataset(dataset: Dataset, source: str, section: Source) -> Rows:
    columns = dataset.column_names
    known = PAIR_COLUMNS if isinstance(section, PairsSection) else STANDARD_COLUMNS
    usable = [name for name in columns if name in known or name in section.columns.values()]
    # Columns that no shape reads (images, embeddings) are never decoded.
    rows = dataset.select_columns(usable) if usable else ({} for _ in range(len(dataset)))
    return Rows(source, tuple(columns), tuple((f"{source}, row {n}", row) for n, row in enumerate(rows, 1)))


def _rows(source: str, items: Iterable[tuple[str, Any]]) -> Rows:
    """Rows whose places get the source's name in front and whose columns are all that any row has."""
    columns: dict[str, None] = {}
    located = []
    for place, row in items:
        where = f"{source}, {place}"
        if not isinstance(row, dict):
            raise UserError(f"a row is an object with named columns, not {_kind(row)}", where=where)
        columns.update(dict.fromkeys(row))
        located.append((where, row))
    return Rows(source, tuple(columns), tuple(located))


READERS: dict[str, Callable[[Path, Source], Rows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


# --- which shape they have ------------------------------------------------------------------------------------------------


def choose_shape(shape: str, columns: Mapping[str, str], present: Iterable[str], source: str) -> str:
    """The shape to read rows with. `auto` takes the first one (in the order of SHAPES) whose columns are `present`.

    `columns` maps standard names to the rows' own; a shape is only considered if it uses all of them.
    """
    present = list(present)
    _check_mapping(columns, present, source)
    candidates = list(SHAPES) if shape == "auto" else [shape]
    for name in candidates:
        needed = SHAPES[name].required
        if name == "real_generated" and shape == "auto":
            needed = (*needed, *SHAPES[name].optional)  # a lone column `real` may mean anything
        own = {columns.get(column, column) for column in needed}
        if own <= set(present) and set(columns) <= {*SHAPES[name].required, *SHAPES[name].optional}:
            return name
    raise _no_shape(shape, columns, present, source)


def _check_mapping(columns: Mapping[str, str], present: list[str], source: str) -> None:
    for standard, own in columns.items():
        if own not in present:
            guess = nearest(own, present)
            what = f"there is no column {own!r} (data.columns.{standard}); the columns are: {', '.join(present)}"
            raise UserError(what, where=source, remedy=f"did you mean {guess}?" if guess else "correct data.columns")


def _no_shape(shape: str, columns: Mapping[str, str], present: list[str], source: str) -> UserError:
    known = "; ".join(f"{name} ({', '.join(spec.required)})" for name, spec in SHAPES.items())
    mapped = f" with data.columns {', '.join(f'{k}: {v}' for k, v in columns.items())}" if columns else ""
    wanted = "no known shape fits" if shape == "auto" else f"data.shape {shape} needs {', '.join(SHAPES[shape].required)} and does not fit"
    return UserError(
        f"{wanted} the columns: {', '.join(present) or '(none)'}{mapped}",
        where=source,
        remedy=f"known shapes: {known}; or name your own columns, for example data.columns: {{prompt: question, completion: answer}}",
    )


# --- how a row becomes a conversation ---------------------------------------------------------------------------------------


def to_conversation(row: Row, shape: str, columns: Mapping[str, str], where: str, counts: Counter[str] | None = None) -> Conversation:
    """One row as the turns up to its last assistant turn, and that turn.

    Keys of a turn other than its role and text are ignored. Lone surrogates, which no tokenizer takes, become U+FFFD. `counts`,
    when given, learns in how many rows that happened, and in how many turns after the last assistant turn were dropped.
    Raises UserError, naming `where`, for a row without a reply or with anything but text in a turn.
    """
    counts = Counter() if counts is None else counts
    cells = {standard: row.get(columns.get(standard, standard)) for standard in (*SHAPES[shape].required, *SHAPES[shape].optional)}
    prompt, answer = TURNS_OF[shape](cells, columns, where)
    last = max((n for n, turn in enumerate(answer) if turn["role"] == "assistant"), default=None)
    if last is None:
        roles = ", ".join(turn["role"] for turn in (*prompt, *answer)) or "none"
        raise UserError(f"row without a reply: it has no assistant turn (its turns: {roles})", where=where, remedy=_MEND_ROW)
    turns = [Message(role=turn["role"], content=without_surrogates(turn["content"])) for turn in (*prompt, *answer[: last + 1])]
    counts["trailing_turns_dropped"] += last + 1 < len(answer)
    counts["surrogates_replaced"] += turns != [*prompt, *answer[: last + 1]]
    return Conversation(tuple(turns[:-1]), turns[-1]["content"])


_MEND_ROW = "mend the row or take it out of the file"
Turns = list[Message]


def _from_turns(column: str) -> Callable[[Row, Mapping[str, str], str], tuple[Turns, Turns]]:
    def read(cells: Row, columns: Mapping[str, str], where: str) -> tuple[Turns, Turns]:
        return [], _turns(cells[column], columns.get(column, column), where)

    return read


def _from_prompt_completion(cells: Row, columns: Mapping[str, str], where: str) -> tuple[Turns, Turns]:
    return _side(cells, "prompt", "user", columns, where), _side(cells, "completion", "assistant", columns, where)


def _from_alpaca(cells: Row, columns: Mapping[str, str], where: str) -> tuple[Turns, Turns]:
    asked = _text(cells["instruction"], columns.get("instruction", "instruction"), where)
    extra = "" if cells["input"] is None else _text(cells["input"], columns.get("input", "input"), where)
    prompt = Message(role="user", content=f"{asked}\n\n{extra}" if extra.strip() else asked)
    return [prompt], _side(cells, "output", "assistant", columns, where)


TURNS_OF = {
    "messages": _from_turns("messages"),
    "real_generated": _from_turns("real"),
    "sharegpt": _from_turns("conversations"),
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
}


def _side(cells: Row, column: str, role: str, columns: Mapping[str, str], where: str) -> Turns:
    """A column that holds text or turns. A list counts as turns when its members have roles, else as parts of one text."""
    value, name = cells[column], columns.get(column, column)
    if value is None and role == "assistant":
        raise UserError(f"row without a reply: {name} is missing or null", where=where, remedy=_MEND_ROW)
    if isinstance(value, list) and any(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value):
        return _turns(value, name, where)
    return [Message(role=role, content=_text(value, name, where))]


def _turns(value: Any, column: str, where: str) -> Turns:
    if not isinstance(value, list):
        raise UserError(f"{column} is {_kind(value)}, not a list of turns", where=where, remedy=_MEND_ROW)
    return [_turn(turn, f"{column}[{n}]", where) for n, turn in enumerate(value)]


def _turn(turn: Any, name: str, where: str) -> Message:
    """A turn in either spelling: role/content or from/value."""
    if not isinstance(turn, dict):
        raise UserError(f"{name} is {_kind(turn)}, not a turn with role and content", where=where, remedy=_MEND_ROW)
    role = turn.get("role") if turn.get("role") is not None else turn.get("from")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise UserError(f"{name} has the role {role!r}; known roles: {', '.join(ROLES)}", where=where, remedy=_MEND_ROW)
    if turn.get("tool_calls"):
        raise UserError(f"{name} calls a tool, which cannot be trained on here", where=where, remedy=_MEND_ROW)
    key = "content" if turn.get("content") is not None or "value" not in turn else "value"
    return Message(role=known, content=_text(turn.get(key), f"{name}.{key}", where))


def _text(value: Any, name: str, where: str) -> str:
    """Text, or the list of text parts that multimodal chat formats use."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        return "".join(part["text"] for part in value)
    raise UserError(f"{name} is {_kind(value)}, not text", where=where, remedy=_MEND_ROW)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for every lone surrogate, which can be neither written as UTF-8 nor tokenised."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # By way of UTF-16, so that two halves of one character that were escaped separately come together.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _kind(value: Any) -> str:
    """How a person would name a JSON value, with the value where it is short."""
    if value is None:
        return "missing or null"
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    shown = repr(value)
    return f"{kinds.get(type(value), type(value).__name__)} ({shown if len(shown) <= 40 else shown[:37] + '...'})"
