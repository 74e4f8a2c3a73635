"""A model's sizes from its config alone: no weights are read or allocated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparring.config import ModelSection
from sparring.errors import UserError, first_line, nearest
from sparring.planning.given_shape import KNOWN_SHAPES, GivenShape, given_config
from sparring.policy.footprint import HeadSizes, head_sizes

# Kinds of layers in a config's `layer_types` that keep no keys and values of every position
WITHOUT_ATTENTION = {"linear_attention", "conv", "moe"}


@dataclass(frozen=True)
class Linear:
    """A linear layer: one of the modules that may get an adapter."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Shape:
    """Numbers of weights. `passed` are those of the matrices that every token is multiplied with, except for the head."""

    name: str
    source: str
    config: Any
    parameters: int
    passed: float
    head: int
    largest_layer: int
    outside_layers: int
    linears: tuple[Linear, ...]

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.config.num_hidden_layers

    @property
    def largest_matrix(self) -> int:
        """Weights of the largest matrix: the embedding or the head, in all known models."""
        return self.config.vocab_size * self.config.hidden_size

    @property
    def attending(self) -> int:
        """Layers with attention."""
        kinds = getattr(self.config, "layer_types", None) or [""] * self.layers
        return sum(kind not in WITHOUT_ATTENTION for kind in kinds)

    @property
    def heads(self) -> HeadSizes:
        """Widths of the attention heads."""
        return head_sizes(self.config)

    @property
    def in_linears(self) -> int:
        """Weights of the linear layers except for the head; these are quantised to 4 bits."""
        return sum(linear.inputs * linear.outputs for linear in self.linears)


def find_shape(model: ModelSection, given: GivenShape | None = None) -> Shape:
    """The shape of the recipe's model, or of the options that replace it. Raises UserError if its config cannot be found."""
    config, source = given_config(given or GivenShape()) or _config(model)
    return measure(model.path, source, config)


def measure(name: str, source: str, config: Any) -> Shape:
    """Count the parameters of a model that is built without memory for them (torch's "meta" device)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    from sparring.policy.compute import layer_sizes

    text = config.get_text_config()
    _require_decoder(name, text)
    model = _without_memory(name, config)
    head = model.get_output_embeddings()
    largest_layer, outside_layers = layer_sizes(model)
    tables = (module for module in model.modules() if isinstance(module, torch.nn.Embedding) or module is head)  # of positions, too
    ends = {id(p) for module in tables for p in module.parameters()}
    passed = sum(_used(path, p, text) for path, p in model.named_parameters() if p.ndim >= 2 and id(p) not in ends)
    linears = [  # GPT-2 has its own class of matrices, which are transposed
        Linear(path, *(module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)))
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    ]
    return Shape(
        name=name,
        source=source,
        config=text,
        parameters=sum(p.numel() for p in model.parameters()),
        passed=passed,
        head=text.vocab_size * text.hidden_size,
        largest_layer=largest_layer,
        outside_layers=outside_layers,
        linears=tuple(linears),
    )


def _without_memory(name: str, config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # a model's own code may raise anything
        raise UserError(
            f"its config is not that of a causal language model ({getattr(config, 'model_type', 'unknown')}): {first_line(error)}",
            where=f"model.path ({name})",
            remedy="check its config.json; a decoder that transformers supports is needed",
        ) from None


def _used(path: str, parameter: Any, config: Any) -> float:
    """Weights that a token is multiplied with: in a mixture of experts, those of the chosen experts. Experts that share a parameter are its
    first dimension."""
    chosen = getattr(config, "num_experts_per_tok", None)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    of_experts = ".experts" in path or (parameter.ndim == 3 and parameter.shape[0] == experts)
    return parameter.numel() * (chosen / experts if chosen and experts and of_experts else 1)


def _require_decoder(name: str, config: Any) -> None:
    missing = [key for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size") if not hasattr(config, key)]
    if missing:
        kind = getattr(config, "model_type", "unknown")
        raise UserError(f"a plan needs {', '.join(missing)} in the config of a {kind} model, which has none", where=f"model.path ({name})")


# --- where a config comes from --------------------------------------------------------------------------------------------------


def _config(model: ModelSection) -> tuple[Any, str]:
    """(config, where it was found)"""
    path = model.path
    from sparring.policy.load import find_model, load_config, local_path
    from sparring.policy.tiny import byte_tokenizer, tiny_config

    if path.startswith("builtin:"):
        find_model(model, seed=0)  # refuses a name that does not exist
        return tiny_config(len(byte_tokenizer())), "built in"
    local = local_path(path)
    if path.startswith("package:") or (local.suffix == ".gguf" and local.is_file()):
        return _of_gguf(local), "the GGUF file's header"
    if local.is_dir():
        return load_config(local), "config.json in the folder"
    return _of_hub(path, model.revision)


def _of_gguf(file: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(f"cannot read the GGUF file's header: {first_line(error)}", where=str(file)) from error


def _of_hub(path: str, revision: str | None) -> tuple[Any, str]:
    """The sizes of a public model that sparring knows; else the Hub's (or its cache's) config.json alone."""
    from transformers import AutoConfig

    where = f"model.path ({path})"
    if path.startswith((".", "/", "~")):
        raise UserError("no such model folder", where=where, remedy="give a folder with a config.json, or a Hub id")
    if known := KNOWN_SHAPES.get(path):
        return AutoConfig.for_model(**known), "sizes that sparring knows"
    reached = _hub_answers(path, revision)
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False, local_files_only=not reached)
        return config, "config.json of the Hub"
    except (OSError, ValueError, KeyError) as error:
        why = first_line(error) if reached else "the Hub does not answer"
        near = nearest(path, KNOWN_SHAPES)
        raise UserError(
            f"cannot get its config.json: {why}; tried the folder {path}, then the Hub (revision {revision or 'main'}) and its local cache",
            where=where,
            remedy="check the spelling and the network, or give --config FILE, or --params 8B; the sizes of "
            f"{len(KNOWN_SHAPES)} public models are known without the Hub{f', among them {near}' if near else ''}: `sparring docs plan`",
        ) from None


def _hub_answers(path: str, revision: str | None) -> bool:
    """Whether the Hub answers, in one request of a few seconds: downloads by the Hub's own client retry five times and print each."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        get_hf_file_metadata(hf_hub_url(path, "config.json", revision=revision), timeout=10)
    except (HfHubHTTPError, HFValidationError):
        return True  # a refusal is an answer too, for which transformers has a message
    except Exception:  # errors of the HTTP library, which depends on the client's version
        return False
    return True
