"""What the rows of a run depend on, by content: the source's bytes, the tokenizer, the chat template."""

from __future__ import annotations

from sparring.data.chat import Chat
from sparring.data.rows import Source
from sparring.data.sources import local_file
from sparring.errors import UserError
from sparring.rundir import digest, file_hash


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
