"""Rows that `datasets` holds: parquet files, and data sets of the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparring.config import PairsSection
from sparring.data.rows import Rows, Source
from sparring.data.shapes import PAIR_COLUMNS, STANDARD_COLUMNS
from sparring.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset


def read_parquet(path: Path, section: Source, further: Sequence[str] = ()) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.table import InMemoryTable

    try:
        # Dataset understands the column types that `Dataset.to_parquet` wrote into the file.
        return _from_dataset(Dataset(InMemoryTable(pq.read_table(path))), str(path), section, further)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read the parquet file: {first_line(error)}", where=str(path)) from None


def read_hub(section: Source, further: Sequence[str] = ()) -> Rows:
    dataset, source = hub_dataset(section)
    return _from_dataset(dataset, source, section, further)


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


def _from_dataset(dataset: Dataset, source: str, section: Source, further: Sequence[str]) -> Rows:
    columns = dataset.column_names
    known = PAIR_COLUMNS if isinstance(section, PairsSection) else STANDARD_COLUMNS
    usable = [name for name in columns if name in known or name in further or name in section.columns.values()]
    # Columns that no shape reads (images, embeddings) are never decoded.
    rows = dataset.select_columns(usable) if usable else ({} for _ in range(len(dataset)))
    return Rows(source, tuple(columns), tuple((f"{source}, row {n}", row) for n, row in enumerate(rows, 1)))
