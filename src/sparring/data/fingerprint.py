"""Everything that the rows of a run depend on, by content: the source's bytes, the tokenizer, the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparring.config import DataSection, PairsSection, PromptsSection
from sparring.data.chat import Chat
from sparring.data.rows import Source
from sparring.data.sources import local_files
from sparring.errors import UserError
from sparring.rundir import digest, file_hash

# Options that are newer than the first runs; the first of them apply to rows of any kind
ROW_OPTIONS = ("on_bad_row", "reasoning")
LATER_OPTIONS = (*ROW_OPTIONS, "answer", "checker_columns")


def data_inputs(section: DataSection) -> dict[str, Any]:
    """Everything that the prepared rows depend on; newer options are left out at their default, so that earlier runs remain valid."""
    inputs = {**section.model_dump(exclude={"path", "prompts", *LATER_OPTIONS}), **changed(section, LATER_OPTIONS)}
    if section.prompts is not None:
        inputs["prompts"] = rows_inputs(section.prompts)
    return {**inputs, "content": source_fingerprint(section)}


def rows_inputs(section: PromptsSection | PairsSection) -> dict[str, Any]:
    """Everything that prompts without replies, or pairs, depend on besides the limits of the data section."""
    return {**section.model_dump(exclude={"path"}), "content": source_fingerprint(section)}


def changed(section: DataSection, names: Sequence[str]) -> dict[str, Any]:
    """The options that are not at their default."""
    fields = type(section).model_fields
    return {name: value for name in names if (value := getattr(section, name)) != fields[name].default}


def source_fingerprint(section: Source) -> str:
    """sha256 of a local file, or of several files independent of their names; for built-in data and Hub ids the name (the recipe has the
    revision)."""
    files = local_files(section)
    if files is None:
        return section.named
    try:
        hashes = [file_hash(file) for file in files]
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror}", where=f"{section.option}.path ({error.filename})") from None
    return hashes[0] if len(hashes) == 1 else digest(sorted(hashes))


def chat_fingerprint(chat: Chat) -> str:
    """Hash of everything that turns messages into token ids."""
    return digest(
        [
            chat.template,
            chat.tokenizer.backend_tokenizer.to_str() if chat.tokenizer.is_fast else repr(chat.tokenizer),
            sorted(chat.stop_ids),
        ]
    )
