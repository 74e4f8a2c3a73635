"""The shape of a model that is not available: from its config.json, or a standard decoder with a given number of parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.errors import UserError, first_line

_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9}
_HEAD = 128  # width of an attention head
_WIDTHS = range(_HEAD, 32_769, _HEAD)
_SMALL_VOCABULARY, _VOCABULARY = 49_152, 128_256  # SmolLM2's below a billion parameters, Llama 3's above
_RATIO = 3.5
MOST_PARAMETERS = 1e15  # a thousand times what the largest models have
_TIED_BELOW = 4e9  # where embedding and head are usually one


@dataclass(frozen=True)
class GivenShape:
    """What the command line says of the model in place of what model.path names: its config, or its number of parameters."""

    config: Path | None = None
    params: str | None = None
    layers: int | None = None


def given_config(given: GivenShape) -> tuple[Any, str] | None:
    """(config, where it is from), None where nothing is given. Raises UserError for options that contradict each other."""
    if given.config is not None:
        if given.params is not None or given.layers is not None:
            raise UserError("a config says the sizes; --params and --layers are for a model without one", where="--config")
        return _of_file(given.config), f"given: {given.config}"
    if given.params is None:
        if given.layers is not None:
            raise UserError("says nothing without the number of parameters", where="--layers", remedy="add --params, such as 8B")
        return None
    config = decoder_of(_parameters(given.params), given.layers)
    return config, f"given: {given.params}; {config.num_hidden_layers} layers of width {config.hidden_size}, built as a Llama is"


def _of_file(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        remedy = "give a model's config.json, or the folder that holds it"
        raise UserError(f"no config that transformers knows: {first_line(error)}", where=f"--config ({path})", remedy=remedy) from None


def _parameters(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    parameters = 0.0 if found is None else float(found[1]) * _UNITS.get(found[2], 1.0)
    if not 0 < parameters <= MOST_PARAMETERS:
        what = f"{text[:100]!r} is not a number of parameters, {MOST_PARAMETERS:.0e} at most"
        raise UserError(what, where="--params", remedy="for example 8B, 1.5B or 135M")
    return parameters


def decoder_of(parameters: float, layers: int | None) -> Any:
    """The config of a Llama with about so many parameters; a layer for every 128 of its width where `layers` is None.

    As Llama 3 has them, a quarter as many heads for keys as for queries, and layers about 3.5 times as wide inside as the model.
    """
    from transformers import AutoConfig

    vocabulary = _VOCABULARY if parameters >= 1e9 else _SMALL_VOCABULARY
    tied = parameters < _TIED_BELOW
    tables = vocabulary * (1 if tied else 2)

    def ratio(width: int) -> float:
        """How much wider than the model its layers are inside, from what embeddings, attention and norms leave to them."""
        depth = layers or width // _HEAD
        return ((parameters - tables * width - width) / depth - _attention(width) - 2 * width) / (3 * width**2)

    width = min(_WIDTHS, key=lambda width: abs(ratio(width) - _RATIO))
    if ratio(width) < 1:
        what = f"{parameters:.3g} parameters are too few for {layers or 1} layers and a vocabulary of {vocabulary:,}"
        raise UserError(what, where="--params", remedy="give more, fewer --layers, or the model's --config")
    heads = width // _HEAD
    return AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=round(ratio(width) * width),
        num_hidden_layers=layers or heads,
        num_attention_heads=heads,
        num_key_value_heads=_key_heads(heads),
        head_dim=_HEAD,
        tie_word_embeddings=tied,
    )


def _key_heads(heads: int) -> int:
    """A quarter of the heads, or the next more that divides them."""
    return next(number for number in range(max(1, heads // 4), heads + 1) if heads % number == 0)


def _attention(width: int) -> float:
    return 2 * width * (width + _key_heads(width // _HEAD) * _HEAD)
