"""The attention that a GPU takes, run on a CPU: torch traces it there too, and computes it in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations.flex_attention import WrappedFlexAttention

from sparring.policy.batches import Branches, collate
from sparring.policy.packed import Attention
from sparring.policy.tree_attention import TreeIndex, by_groups


def index_of(longest: int) -> TreeIndex:
    """Three trees, one with three branches and one of a single token."""
    ids = tuple(range(longest))
    bushy, single, forked = Branches(ids, (ids, ids[: longest // 2], ids[:3])), Branches((1,), ((2,),)), Branches(ids[:5], (ids[:9], ids))
    return collate([bushy, single, forked], "tree").index


def asked_of(index: TreeIndex, dtype: torch.dtype, window: int | None, softcap: float | None) -> Attention:
    """Six query heads over two of keys."""
    torch.manual_seed(0)
    states = (torch.randn(len(index.tree_T), heads, 16, dtype=dtype) for heads in (6, 2, 2))
    return Attention(*states, 0.3, window, softcap)


@pytest.fixture
def compiled_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def use(function: Any) -> None:
        monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda self: function)

    torch._dynamo.reset()
    return use


@torch.no_grad()
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (7, None), (7, 2.0)])
def test_flex_attention_finds_what_the_blocks_find(window: int | None, softcap: float | None, compiled_by: Callable[[Any], None]) -> None:
    compiled_by(flex_attention)
    index = index_of(60)
    asked = asked_of(index, torch.float32, window, softcap)
    torch.testing.assert_close(index.by_squares(torch.nn.Identity().eval(), asked), by_groups(index, asked), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_new_sizes_compile_nothing_new_and_torchs_limit_is_no_limit(
    compiled_by: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the limit torch runs flex attention as it is written, with all scores, as if nothing were wrong."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    counter, counts = CompileCounter(), []
    compiled_by(torch.compile(flex_attention, backend=counter))
    for longest in (20, 45, 70, 100):
        index = index_of(longest)
        index.by_squares(torch.nn.Identity().eval(), asked_of(index, torch.float32, None, None))
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2], "for the first size, then for all"
