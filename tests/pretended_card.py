"""A CUDA device for machines that have none: its tensors say that they are on `cuda:0`, and their numbers are on the CPU.

torch's own FakeTensorMode cannot pretend one in a build for CPUs: indexing (`x[0]`) and the backward pass ask that build for a device guard
and a stream of CUDA, which it does not have. It has no numbers either, so that a loop that goes by them - sampling, a checkpoint that is
read again - could not be run. Here C++ is told that a tensor is on `meta`, Python that it is on `cuda:0`, and every operation runs on the
numbers held.

Refused, as a GPU refuses it: an operation that mixes tensors of the card and of the CPU (numbers of no dimension may stand beside them).
Noted in `waits`: what makes a processor wait until the card has done all that it was asked for.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import sparring

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
aten = torch.ops.aten
NUMBER, READ, SENT, NONZERO = "number read", "copy to the CPU", "copy from the CPU", "size from numbers"
# The size of what they give depends on numbers of the card; or they give a number to Python.
WAITING = {
    aten._local_scalar_dense.default: NUMBER,
    aten.equal.default: NUMBER,
    aten.nonzero.default: NONZERO,
    aten.masked_select.default: NONZERO,
    aten.repeat_interleave.Tensor: NONZERO,
    aten.unique_consecutive.default: NONZERO,
    aten._unique2.default: NONZERO,
    aten.bincount.default: NONZERO,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
OURS = str(Path(sparring.__file__).parent)


class Card(Tensor):
    """A tensor on the pretended card."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Card:
        card = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device="meta"
        )
        card.held = held
        return card

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, other: Tensor) -> None:
        assert isinstance(other, Card), "weights of the card were replaced by some of the CPU"
        Tensor.data.__set__(self, other)
        self.held = other.held

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"Card({self.held!r})"

    # what torch asks of a tensor that holds another
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> Card:
        return Card(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return PretendedCard.running[-1].compute(func, args, kwargs or {})


class PretendedCard(TorchDispatchMode):
    """While it is entered there is a CUDA device. `waits` counts (what, function of ours that asked for it)."""

    running: list[PretendedCard] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self._lifted: list[bool] = []

    def __enter__(self) -> PretendedCard:
        self.running.append(self)
        self._lifted.append(torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) makes its copy where it is seen
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifted.pop())
        self.running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(func, args, kwargs or {})

    @contextlib.contextmanager
    def watched(self) -> Iterator[Counter[tuple[str, str]]]:
        """The waits of this while alone."""
        before, found = self.waits.copy(), Counter[tuple[str, str]]()
        yield found
        found.update(self.waits - before)

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        cards = [tensor for tensor in tensors if isinstance(tensor, Card)]
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            pinned.is_in_pinned_memory = True
            return pinned
        target = self._target(func, kwargs, bool(cards))
        if func is aten._fused_sdp_choice.default and cards:
            return 0  # the plain one, which is made of operations that are seen here
        if func is aten.histc.default and cards and not args[0].is_floating_point():  # CPUs have none of whole numbers
            return func(args[0].float(), *args[1:]).to(args[0].dtype)
        self._check(func, args, kwargs, tensors, cards, target)
        return self._run(func, args, kwargs, cards, target)

    @staticmethod
    def _target(func: Any, kwargs: dict[str, Any], has_cards: bool) -> torch.device:
        """Where the result will be."""
        asked = kwargs.get("device")
        if asked is None:
            return CUDA if has_cards else CPU
        if asked.type == "meta" and asked != torch.utils._device.CURRENT_DEVICE:  # C++ has asked a tensor of the card where it is
            return CUDA
        return asked

    def _check(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], cards: list[Card], target: torch.device) -> None:
        """Note a wait; raise where a GPU would."""
        others = [tensor for tensor in tensors if not isinstance(tensor, Card)]
        if func in (aten._to_copy.default, aten.copy_.default):
            source, to_card = (args[1], isinstance(args[0], Card)) if func is aten.copy_.default else (args[0], target.type == "cuda")
            if isinstance(source, Card) and not to_card:
                self.note(READ)
            if not isinstance(source, Card) and to_card:
                unblocked = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
                if not (unblocked and getattr(source, "is_in_pinned_memory", False)):
                    self.note(SENT)
            return
        if not cards:
            return
        if func in WAITING:
            self.note(WAITING[func])
        if func in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.note(NONZERO)
            if any(not isinstance(index, Card) for index in indices):
                self.note(SENT)
            others = [tensor for tensor in others if not any(tensor is index for index in indices)]
        if any(tensor.ndim or torch.Tag.pointwise not in func.tags for tensor in others) and "fused_adam" not in str(func):
            raise RuntimeError(f"{func}: some of its tensors are on cuda:0 and some on the CPU, of shapes {[t.shape for t in others]}")

    @staticmethod
    def _run(func: Any, args: Any, kwargs: dict[str, Any], cards: list[Card], target: torch.device) -> Any:
        if "device" in kwargs:
            kwargs = {**kwargs, "device": CPU if target.type == "cuda" else target}
        args, kwargs = tree_map_only(Card, lambda card: card.held, (args, kwargs))
        found = func(*args, **kwargs)
        if target.type != "cuda":
            return found
        known = {id(card.held): card for card in cards}  # what is changed in place stays itself
        return tree_map_only(Tensor, lambda tensor: known.get(id(tensor)) if id(tensor) in known else Card(tensor), found)

    def note(self, what: str) -> None:
        self.waits[what, _asker()] += 1


def _asker() -> str:
    """file.function of the innermost frame of ours; else of the innermost that is not torch's."""
    frame, outside = sys._getframe(2), ""
    while frame is not None:
        name, file = frame.f_code.co_qualname, frame.f_code.co_filename
        if file.startswith(OURS):
            return f"{Path(file).stem}.{name.split('.<locals>')[0]}"
        if not outside and "/torch/" not in file and file != __file__:
            outside = f"{Path(file).stem}.{name}"
        frame = frame.f_back
    return outside


def flex_by_hand(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float, softcap: float | None, **_: Any
) -> tuple[Tensor, None]:
    """In the place of flex attention, whose kernels are compiled for the card: the rule of the mask, all scores held.

    query [1, H, T, D], key and value [1, G, T, D] -> [1, T, H, D]
    """
    listed = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    assert all(isinstance(tensor, Card) for tensor in (query, key, value, *listed)), "flex attention was given a tensor of the CPU"
    assert query.dtype == key.dtype == value.dtype, "flex attention takes one number format"
    places = torch.arange(query.shape[2], device=query.device)
    seen_TT = mask.mask_mod(None, None, places[:, None], places[None])
    groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    shares = scores.float().masked_fill(~seen_TT, -torch.inf).softmax(-1).to(value.dtype)
    return (shares @ value).transpose(1, 2), None


def _no_grad_instead(self: Any) -> None:
    """A tensor that holds another cannot change between inference mode and the world outside of it."""
    self.instead = torch.no_grad()
    self.instead.__enter__()


@contextlib.contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch, free: int = 80 * 2**30) -> Iterator[PretendedCard]:
    """A machine whose only accelerator is a pretended card with `free` bytes."""
    patched: dict[tuple[Any, str], Callable[..., Any] | property] = {
        (torch.cuda, "_lazy_init"): lambda: None,
        (torch.cuda, "get_device_capability"): lambda *_: (9, 0),  # what kernels go by
        (torch.cuda, "mem_get_info"): lambda *_: (free, free),
        (torch.inference_mode, "__enter__"): _no_grad_instead,
        (torch.inference_mode, "__exit__"): lambda self, *error: self.instead.__exit__(*error),
        (accelerate.Accelerator, "device"): property(lambda _: CUDA),
        (sparring.policy.tree_attention, "flex_attention_forward"): flex_by_hand,
    }
    with monkeypatch.context() as here, PretendedCard() as card:
        for (owner, name), value in patched.items():
            here.setattr(owner, name, value)
        yield card
