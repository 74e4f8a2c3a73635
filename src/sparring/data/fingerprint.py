"""What the rows of a run depend on, by content: the source's bytes, the tokenizer, the chat template."""

from __future__ import annotations

from typing import Any

from sparring.config import DataSection
from sparring.data.chat import Chat
from sparring.data.rows import Source
from sparring.data.sources import local_file
from sparring.errors import UserError
from sparring.rundir import digest, file_hash


def data_inputs(section: DataSection) -> dict[str, Any]:
    """What the prepared rows depend on; options that came later are left out at their default, so that earlier runs still open."""
    inputs = section.model_dump(exclude={"path", "prompts", "answer", "checker_columns"})
    if section.answer is not None:
        inputs["answer"] = section.answer
    if section.checker_columns:
        inputs["checker_columns"] = section.checker_columns
    if section.prompts is not None:
        inputs["prompts"] = {**section.prompts.model_dump(exclude={"path"}), "content": source_fingerprint(section.prompts)}
    return {**inputs, "content": source_fingerprint(section)}


def source_fingerprint(section: Source) -> str:
    """sha256 of a local file; for built-in data and Hub ids the name (the revision stands beside it in the recipe)."""
    path = local_file(section)
    if path is None:
        return section.path
    try:
        return file_hash(path)
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror}", where=f"{section.option}.path ({section.path})") from None


def chat_fingerprint(chat: Chat) -> str:
    """Hash of everything that turns messages into token ids."""
    return digest(
        [
            chat.template,
            chat.tokenizer.backend_tokenizer.to_str() if chat.tokenizer.is_fast else repr(chat.tokenizer),
            sorted(chat.stop_ids),
        ]
    )
