"""The bytes of a data file, which may be compressed."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path

from sparring.errors import UserError, first_line

# Limit after decompression: more than the largest public SFT sets, and still small enough to hold as rows in memory.
MAX_DECOMPRESSED = 16 * 2**30
_PIECE = 2**24


def _zstd(data: bytes) -> io.BufferedIOBase:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.BufferReader(data), "zstd")


UNPACKERS: dict[str, Callable[[bytes], io.BufferedIOBase]] = {".gz": lambda data: gzip.GzipFile(fileobj=io.BytesIO(data)), ".zst": _zstd}


def bytes_of(path: Path) -> bytes:
    """The content of the file, decompressed according to its name. Raises UserError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror or error}", where=str(path), remedy="check its permissions") from None
    unpacker = UNPACKERS.get(path.suffix.lower())
    if unpacker is None:
        return data
    try:
        text = _bounded(unpacker(data), path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot decompress the file: {first_line(error)}", where=str(path), remedy="write it again") from None
    return text


def _bounded(stream: io.BufferedIOBase, path: Path) -> bytes:
    text = bytearray()
    while piece := stream.read(_PIECE):
        text += piece
        if len(text) > MAX_DECOMPRESSED:
            what = f"holds more than {MAX_DECOMPRESSED:,} bytes when it is decompressed"
            raise UserError(what, where=str(path), remedy="split it into several files")
    return bytes(text)
