"""LoRA adapters, by PEFT, with a mark of the base model that they belong to.

An adapter player is a folder with `adapter_config.json` and `adapter_model.safetensors`. It is never merged to compute: sampling, scoring
and training use the same arithmetic on an unmerged base.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, PreTrainedModel

from sparring.config import LoraSection
from sparring.errors import UserError, first_line
from sparring.policy.folder import ADAPTER_CONFIG, from_hub, read_object, reading

KEY = "base"
MATRICES, ROWS = 8, 2


def marks_of(base: Path) -> dict[str, str]:
    """Name of a matrix -> its first numbers, for some matrices spread over the model in `base`."""
    places = _matrices(base)
    names = sorted(places)
    return {name: _mark(places[name], name) for name in names[:: -(-len(names) // MATRICES) or 1]}


def require_marks(file: Path, base: Path) -> None:
    """Raise ValueError if the adapter in `file` has the numbers of another base."""
    stored = json.loads(stored_marks(file))
    places = _matrices(base)
    for name in sorted(stored.keys() & places.keys()):  # a base in another layout has other names
        if _mark(places[name], name) != stored[name]:
            raise ValueError(f"its base has other weights than the one that it was trained on, such as {name}")


def save_with_marks(tensors: dict[str, torch.Tensor], file: Path, marks: str) -> None:
    """Write an adapter's file. The metadata is sorted so that equal adapters give equal files; safetensors writes it in random order."""
    save_file(tensors, file, metadata={"format": "pt", KEY: marks})
    with open(file, "r+b") as found:
        length = int.from_bytes(found.read(8), "little")
        header = json.loads(found.read(length))
        header = {**header, "__metadata__": dict(sorted(header["__metadata__"].items()))}
        found.seek(8)
        again = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(again) <= length, "the numbers come right after it"
        found.write(again.ljust(length))


def stored_marks(file: Path) -> str:
    """The marks in an adapter's file, as JSON; an empty mapping in files of other programs."""
    with safe_open(file, "pt") as stored:
        return (stored.metadata() or {}).get(KEY, "{}")


def _matrices(base: Path) -> dict[str, Path]:
    """Name of every matrix of a model -> its file."""
    found: dict[str, Path] = {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= {name: file for name in tensors.keys() if len(tensors.get_slice(name).get_shape()) == 2}  # noqa: SIM118  no mapping
    return found


def _mark(file: Path, name: str) -> str:
    with safe_open(file, "pt") as tensors:
        rows = tensors.get_slice(name)[:ROWS].to(torch.bfloat16).view(torch.int16)
    return hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]


CONFIG, WEIGHTS = ADAPTER_CONFIG, "adapter_model.safetensors"
BASE = "base_model_name_or_path"


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter instead of a full model."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> Path:
    """The folder of an adapter's base model: a path from the adapter's own folder, any other path, or a Hub id."""
    config = _config(folder)
    name = config.get(BASE)
    if not isinstance(name, str) or not name:
        raise UserError(f"this adapter does not name its base model: no {BASE}", where=str(folder / CONFIG))
    local = (path.absolute() for path in (folder / name, Path(name).expanduser()) if path.is_dir())  # not resolved: a run has a link
    found = next(local, None) or from_hub(name, config.get("revision"), f"{BASE} of {folder / CONFIG}")
    if is_adapter(found):
        raise UserError("the base of this adapter is an adapter itself", where=str(folder / CONFIG), remedy="merge the base first")
    return found


def attach(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
    """The PEFT model of the adapter in `folder` on its base; the adapter's weights are float32. Raises UserError if it does not fit."""
    _silence_bitsandbytes()
    from peft import PeftModel

    require_weights(folder)
    remedy = f"check that {BASE} in its {CONFIG} names the model that it was trained on"
    with reading("this adapter does not fit its base model", folder, remedy):
        found = PeftModel.from_pretrained(model, folder, is_trainable=trainable, use_safetensors=True)
        _require_all(found, folder)
        _require_untied(found)
        require_marks(folder / WEIGHTS, base_of(folder))
        return found


def new_adapter(model: PreTrainedModel, lora: LoraSection, seed: int, where: str = "lora.targets") -> Any:
    """A new adapter on `model`. It does not change the outputs yet: its second factor is 0, the first is random from `seed`.

    Raises UserError, naming `where`, if the model has none of the targets.
    """
    _silence_bitsandbytes()
    from peft import LoraConfig, get_peft_model

    _require_rank(model, lora.rank, where.replace("targets", "rank"))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT declares an int, and multiplies by any number
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            found = get_peft_model(model, config)
            _require_untied(found)
            return found
        except (ValueError, re.error) as error:
            raise UserError(
                f"PEFT cannot put this adapter on {type(model).__name__}: {first_line(error)}",
                where=where,
                remedy="`all-linear` selects every linear layer but the head; names are those of the model's modules, such as q_proj",
            ) from error


def _silence_bitsandbytes() -> None:
    """Silence bitsandbytes on a CPU: PEFT imports it if installed, and it warns there; 4-bit bases are for CUDA only."""
    if not torch.cuda.is_available():
        logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)


def _require_rank(model: PreTrainedModel, rank: int, where: str) -> None:
    """Raise UserError for a rank above that of every matrix: it would only waste memory."""
    most = max((min(weight.shape) for weight in model.parameters() if weight.ndim == 2), default=rank)
    if rank > most:
        what = f"{rank} is more than the largest rank of any matrix of {type(model).__name__}, {most}"
        raise UserError(what, where=where, remedy="8 to 64 is usual")


def require_weights(folder: Path) -> None:
    """Raises UserError if an adapter has no safetensors weights."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"an adapter without {WEIGHTS}; pickled weights are not loaded", where=str(folder))


def convert(folder: Path, dtype: torch.dtype) -> None:
    """Round an adapter's own weights, in place."""
    file = folder / WEIGHTS
    save_with_marks({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, stored_marks(file))


def save_adapter(model: Any, folder: Path, base: str, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write a PEFT model's adapter; `base` is the base model that its config will name. Equal adapters give equal files.

    state: the adapter's weights by the model's names, if the model holds only a part of them (sharded).
    """
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    model.peft_config["default"].save_pretrained(folder)
    config = _config(folder)
    config |= {name: sorted(value) for name, value in config.items() if isinstance(value, list)}  # PEFT keeps sets
    name_base(folder, base, config)
    weights = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    own = {name: weight.detach().contiguous() for name, weight in weights.items()}
    save_with_marks(own, folder / WEIGHTS, json.dumps(marks_of(base_of(folder))))


def name_base(folder: Path, base: str, config: dict[str, Any] | None = None, revision: str | None = None) -> None:
    """Set `base`, a path or a Hub id, as the base model of the adapter in `folder`."""
    config = {**(config or _config(folder)), BASE: base, "revision": revision, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's format: NormalFloat of 4 bits with quantised constants, computing in `dtype`."""
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)


def start_dropout(model: torch.nn.Module, seed: int) -> int:
    """Turn on the dropout of the adapters in `model`, seeded by `seed`; all other dropout stays off. Returns the number of modules."""
    named = (module for name, module in model.named_modules() if ".lora_dropout." in name)
    layers = [module for module in named if isinstance(module, torch.nn.Dropout)]
    for layer in layers:
        layer.train()
    if layers:
        torch.manual_seed(seed)
    return len(layers)


def _require_all(model: Any, folder: Path) -> None:
    """Raise ValueError for missing tensors, which PEFT silently leaves at their random initialisation."""
    from peft import get_peft_model_state_dict

    with safe_open(folder / WEIGHTS, "pt") as file:
        stored = set(file.keys())
    wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if wrong := sorted(wanted ^ stored):
        raise ValueError(f"{len(wrong)} tensors are only in the adapter or only in the model, such as {wrong[0]}")


def _require_untied(model: Any) -> None:
    """Raise ValueError for an adapter on one of two tied matrices, since it would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = model.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if getattr(base.config.get_text_config(), "tie_word_embeddings", False) and any(
        isinstance(end, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for end in ends
    ):
        raise ValueError("embedding and head of this model share their weights, and an adapter on one of them cannot be merged")


def _config(folder: Path) -> dict[str, Any]:
    found = read_object(folder / CONFIG)
    if found.get("peft_type") != "LORA":
        raise UserError("not a LoRA adapter; other kinds of adapters are not supported", where=str(folder / CONFIG))
    return found
