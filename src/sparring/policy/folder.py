"""Validation of a model folder before any library reads it: its files, its JSON files, and the headers of its weights.

Folders may come from anyone. With a broken one transformers may raise a TypeError, or even load a model without layers, so the folder is
checked here first; `reading` turns the errors that its code still raises into a message.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sparring.console import log
from sparring.errors import UserError, first_line
from sparring.policy.packed import is_out_of_memory

CARD = "README.md"  # fetched for its licence; not part of the model
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "*.txt")


def from_hub(repo: str, revision: str | None, where: str) -> Path:
    """The folder of a Hub model, fetched or cached. `where` is the option that gave it. Raises UserError that lists what was tried."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    where = f"{where} ({repo})"
    tried = f"tried the folder {repo}, then the Hub (revision {revision or 'main'}) and its local cache"
    if repo.startswith((".", "/", "~")):
        raise UserError("no such model folder", where=where, remedy="give a folder with config.json and safetensors, or a Hub id")
    try:
        log.info(f"model {repo}: fetching from the Hub (or its local cache)")
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*HUB_FILES, CARD]))
    except HFValidationError:
        raise UserError(f"neither a folder nor a valid Hub id; {tried}", where=where) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"cannot reach the Hub, and the model is not in the local cache; {tried}",
            where=where,
            remedy="check the network, or give a local folder",
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"cannot get the model: {first_line(error)}; {tried}",
            where=where,
            remedy="check the spelling, the revision and, for a private model, HF_TOKEN",
        ) from None


CONFIG, GENERATION, INDEX = "config.json", "generation_config.json", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
OBJECTS = (CONFIG, GENERATION, INDEX, ADAPTER_CONFIG, *TOKENIZER_FILES)
# the tokenizers with the largest vocabularies take some 35 MB
MOST_JSON_BYTES = 2**27
# configs and tokenizers are nested less than ten deep; Python's own limit is about a thousand, and much that copies them needs several
# frames a level
MOST_DEPTH = 50
# the names of sizes in the configs of all transformers architectures; each is a count of at least one
SIZES = (
    "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads max_position_embeddings head_dim "
    "n_embd n_layer n_head n_positions"
).split()
LAYERS = ("num_hidden_layers", "n_layer")
# number formats of trainable weights; others are of quantised weights
FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class WeightHeaders:
    """The headers of all weight files together: tensor name -> (safetensors number format, shape)."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def numbers(self) -> int:
        """How many numbers all tensors hold; quantised ones are counted as they are stored."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())

    @property
    def largest_side(self) -> int:
        """The largest dimension of any tensor, an upper bound for the rank of an adapter in these files."""
        return max((side for _, shape in self.tensors.values() for side in shape), default=0)


def check_folder(folder: Path) -> None:
    """Raise UserError with the file for a model or adapter folder that has an invalid file."""
    check_files(folder)
    found = {name: read_object(folder / name) for name in OBJECTS if (folder / name).exists()}
    if INDEX in found:
        _check_index(folder, found[INDEX])
    weights = read_headers(folder)
    if ADAPTER_CONFIG in found:
        _check_adapter(folder / ADAPTER_CONFIG, found[ADAPTER_CONFIG], weights)
        return
    if CONFIG in found:
        _check_config(folder / CONFIG, found[CONFIG], weights)
    _check_float(folder, weights)
    vocabulary = _text_part(found.get(CONFIG, {})).get("vocab_size")
    for name in (CONFIG, GENERATION):
        _check_ends(folder / name, found.get(name, {}), vocabulary)


def check_files(folder: Path) -> None:
    """Raise UserError for a link that leads out of the folder, and for a file of the model that is not a regular file.

    In the Hub's cache, files are links into `blobs` two folders above; those are allowed.
    """
    home = folder.resolve()
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    for place, folders, files in os.walk(home):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() and not any(path.resolve().is_relative_to(inside) for inside in homes):
                raise UserError(
                    "this link leads out of the model folder, to a file that is not part of the model",
                    where=str(path),
                    remedy="put the file itself in its place; a link to the whole folder is fine",
                )
    for path in (path for pattern in HUB_FILES for path in home.glob(pattern)):
        if not path.is_file():
            raise UserError("this is not a regular file", where=str(path), remedy="put the file itself in its place, or delete it")


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model. Raises UserError for anything else, for one too large and one nested too deep."""
    try:
        if file.stat().st_size > MOST_JSON_BYTES:
            raise ValueError(f"it has {file.stat().st_size:,} bytes; at most {MOST_JSON_BYTES:,} are allowed")
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not an object")
        _check_depth(found)
    except (OSError, ValueError, RecursionError) as error:
        what = f"not a valid JSON file of a model: {first_line(error)}"
        raise UserError(what, where=str(file), remedy="download the file again, or write it again with save_pretrained") from None
    return found


def read_headers(folder: Path) -> WeightHeaders:
    """The names, formats and shapes in all weight files; no weight is read. Raises UserError for a broken file."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  no mapping
                tensors |= {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read the weights: {first_line(error)}", where=str(path), remedy="fetch the file again") from None
    return WeightHeaders(tensors)


@contextlib.contextmanager
def reading(what: str, where: Path, remedy: str | None = None) -> Iterator[None]:
    """Turn any error that a library raises for a model's files into a UserError: broken files can cause errors of any type.

    Use it only around calls into such a library, and for ValueErrors about those files. Out-of-memory errors are handled elsewhere.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        raise UserError(f"{what}: {_error_text(error, where)}", where=str(where), remedy=remedy) from error


def _error_text(error: Exception, folder: Path) -> str:
    """The error's first line, with its type if the line is not a sentence; a missing key that is a value of config.json is named."""
    if isinstance(error, KeyError) and error.args and (folder / CONFIG).is_file():
        named = [name for name, value in _leaves(read_object(folder / CONFIG)) if value == error.args[0]]
        if named:
            return f"{CONFIG} has {named[0]}: {error.args[0]!r}, which transformers does not know"
    return first_line(error) if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {first_line(error)}"


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _check_depth(found: Any) -> None:
    level, depth = [found], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
        children: Iterator[Any] = (child for value in level for child in (value.values() if isinstance(value, dict) else value))
        level = [child for child in children if isinstance(child, (dict, list))]


def _check_index(folder: Path, index: Mapping[str, Any]) -> None:
    where, shards = str(folder / INDEX), index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError("weight_map is not a mapping from tensors to files", where=where, remedy="fetch the file again")
    missing = next((name for name in sorted(set(shards.values())) if Path(name).name != name or not (folder / name).is_file()), None)
    if missing is not None:
        raise UserError(f"it names the file {missing!r}, which is not in this folder", where=where, remedy="fetch all files of the model")


def _check_config(file: Path, config: Mapping[str, Any], weights: WeightHeaders) -> None:
    if config.get("quantization_config") is not None:
        method = config["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise _quantised(f"quantization_config ({method!r})", file)
    for part in (config, _text_part(config)):
        for name in SIZES:
            value = part.get(name)
            if isinstance(value, (bool, float, str, dict)) or (isinstance(value, int) and value < 1):
                raise UserError(f"{name} is {value!r}, and must be a whole number of at least 1", where=str(file), remedy=_FITS)
    for name in LAYERS:
        layers = _text_part(config).get(name)
        if isinstance(layers, list):  # other sizes may be lists, of one for every layer
            raise UserError(f"{name} is {layers!r}, and must be a whole number of at least 1", where=str(file), remedy=_FITS)
        if layers is not None and weights.tensors and layers > len(weights.tensors):
            what = f"{name} is {layers}, and the weights have {len(weights.tensors)} tensors in all"
            raise UserError(what, where=str(file), remedy=_FITS)


def _check_float(folder: Path, weights: WeightHeaders) -> None:
    wrong = next(((name, kind) for name, (kind, shape) in weights.tensors.items() if kind not in FLOATS and len(shape) > 1), None)
    if wrong is not None:
        raise _quantised(f"the tensor {wrong[0]} of type {wrong[1]}", folder)


def _quantised(sign: str, where: Path) -> UserError:
    return UserError(
        f"this model is quantised already: {sign}; training needs weights in float32, bfloat16 or float16",
        where=str(where),
        remedy="use the model before quantisation (train.lora.quantize: 4bit quantises it), or dequantise this one",
    )


def _check_ends(file: Path, config: Mapping[str, Any], vocabulary: Any) -> None:
    """The ids that end a sequence must be tokens: sampling stops at them, and an exported model contains them."""
    ends = config.get("eos_token_id")
    for end in ends if isinstance(ends, list) else [] if ends is None else [ends]:
        if type(end) is not int or end < 0 or (isinstance(vocabulary, int) and end >= vocabulary):
            known = f"a token from 0 to {vocabulary - 1}" if isinstance(vocabulary, int) else "a token's number"
            raise UserError(f"eos_token_id is {ends!r}, and {end!r} is not {known}", where=str(file), remedy="correct or remove it")


def _check_adapter(file: Path, config: Mapping[str, Any], weights: WeightHeaders) -> None:
    if config.get("megatron_config") is not None:
        raise UserError("with megatron_config PEFT would import a module that the adapter names", where=str(file), remedy="set it to null")
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r", 8), *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    wrong = next((rank for rank in ranks if type(rank) is not int or not 1 <= rank <= weights.largest_side), None)
    if wrong is not None and weights.tensors:
        what = f"the rank {wrong!r} does not fit its weights, which have no dimension larger than {weights.largest_side}"
        raise UserError(what, where=str(file), remedy="download the adapter again")


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model, if it has others too."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


_FITS = "check that config.json belongs to these weights"
