"""The head in chunks: how much of it exists at once, and inside the modules that distributed trainers wrap."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from zoo import COMMON

from sparring.policy import score
from sparring.policy.batches import Branches
from sparring.policy.head import logps_of
from sparring.policy.score import Scorer

VOCABULARY = 997
CHUNK = 7
TREES = [Branches((3, 4, 5), (tuple(range(10, 30)), tuple(range(40, 52)))), Branches((6,), (tuple(range(60, 85)),))]
TOKENS = sum(len(reply) for tree in TREES for reply in tree.replies)


def make(**changes: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**COMMON, "vocab_size": VOCABULARY, **changes})).eval()


class LiveLogits(TorchDispatchMode):
    """The most elements that tensors as wide as the vocabulary had at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            of_weight = COMMON["hidden_size"], VOCABULARY  # the weight, or its gradient
            if isinstance(tensor, Tensor) and tensor.shape[1:] == (VOCABULARY,) and tensor.shape != of_weight:
                self.add(tensor.untyped_storage(), tensor.numel())
        return out

    def add(self, storage: Any, size: int) -> None:
        if (place := storage.data_ptr()) in self.seen:
            return
        self.seen.add(place)
        self.live += size
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self.drop, place, size)

    def drop(self, place: int, size: int) -> None:
        self.seen.discard(place)
        self.live -= size


def most_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """In units of chunk x vocabulary, over a forward and a backward pass."""
    monkeypatch.setattr(score, "HEAD_CHUNK", chunk)
    scorer = Scorer(make())
    with LiveLogits() as found:
        scorer(scorer.collate(TREES)).sum().backward()
    return found.most / (chunk * VOCABULARY)


def test_no_more_than_a_chunk_of_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits, and one more of their size on the way: a float32 copy forward, the softmax backward."""
    assert TOKENS > 8 * CHUNK
    assert most_logits(CHUNK, monkeypatch) <= 3
    assert most_logits(TOKENS, monkeypatch) >= 1, "the counter counts"


def test_a_further_reply_costs_its_own_tokens() -> None:
    """Floating-point operations of the matrix products of layers and head: 12 tokens feed 11 more positions, whatever stands before."""
    scorer = Scorer(make())

    def operations(count: int) -> int:
        tree = Branches(tuple(range(3, 43)), tuple(tuple(range(50 + 20 * n, 62 + 20 * n)) for n in range(count)))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            scorer(scorer.collate([tree]))
        return counter.get_flop_counts()["Global"][torch.ops.aten.mm]

    costs = [operations(count) for count in (1, 2, 3, 4)]
    weights = sum(p.numel() for name, p in scorer.model.named_parameters() if p.ndim == 2 and "layers" in name)
    of_reply = 2 * 11 * weights + 2 * 12 * VOCABULARY * COMMON["hidden_size"]
    assert [later - sooner for sooner, later in pairwise(costs)] == [of_reply] * 3


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(scorer: Scorer) -> nn.Module:
    for layer in scorer.model.model.layers:
        fully_shard(layer)
    return fully_shard(scorer)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("wrap", [DistributedDataParallel, sharded])
def test_inside_a_wrapper_log_probs_and_gradients_are_the_same(
    wrap: Any, checkpointing: bool, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "HEAD_CHUNK", CHUNK)
    found = []
    for wrapper in (lambda scorer: scorer, wrap):
        scorer = Scorer(make(tie_word_embeddings=tied))
        if checkpointing:
            scorer.use_gradient_checkpointing()
        wrapped = wrapper(scorer)
        logps = wrapped(scorer.collate(TREES))
        logps.square().sum().backward()
        gradients = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in scorer.model.parameters()]
        found.append((logps.detach(), gradients))
    (expected, expected_gradients), (logps, gradients) = found
    assert torch.equal(logps, expected)
    for gradient, one in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, one, rtol=1e-6, atol=1e-6)


def test_the_gradient_at_a_sure_token_is_not_rounded_away() -> None:
    """p = 0.9995 is 1 in bfloat16, and 1 - p would be 0."""
    wide = torch.zeros(40, 50)
    wide[:, 3] = 11.5
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        logits = wide.to(dtype).requires_grad_()
        logps_of(logits, torch.full((40,), 3)).sum().backward()
        found.append(logits.grad.double())
    assert 0 < found[1][0, 3] < 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=0.01, atol=0)
