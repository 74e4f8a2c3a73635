"""Attention over trees packed end to end into one row: every branch sees its prompt and itself, and no tree sees another.

On a CPU a tree is split into blocks: the path of its first branch, then every further branch after the keys of the prompt. So the prompt is
computed once, a further reply costs only its own queries, and no masked scores are computed. On a GPU flex attention skips masked blocks.

Dimensions in names: T tokens of the row, H query heads, G key and value heads, D size of a head, F = heads x D;
N blocks of a group, Q queries and K keys of its longest block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint
from transformers.integrations.flex_attention import flex_attention_forward

from sparring.policy.compute import tensor_on, to_device
from sparring.policy.footprint import KEPT_SCORES
from sparring.policy.packed import Attention

# Blocks of similar size are computed as a group, padded to its longest. Limits of a group: the share of padding in its scores (groups with
# fewer scores than FEW_SCORES may have more, since another group would cost more than it saves), and the scores of one head.
MAX_PADDING = 0.15
FEW_SCORES = 2**17
MAX_SCORES = 2**21
# Side of the blocks of scores that flex attention computes or skips as a whole
FLEX_BLOCK = 128
# Variants of flex attention that a process may compile: by number format, gradient, window and soft cap, each for its first size and for
# dynamic sizes. Above torch's own limit of 8, which a model with alternating windows reaches, it would silently compute all scores.
COMPILED_KINDS = 64
# Most queries of a block. A longer path is split, so that early queries skip late keys, and the scores fit into a group.
MAX_QUERIES = 512


@dataclass(frozen=True)
class Block:
    """Places in the row of a block's keys, in the order of their positions; the last `queries` of them are its queries."""

    keys: Sequence[int]
    queries: int

    @property
    def size(self) -> tuple[int, int]:
        """(number of keys, number of queries)."""
        return len(self.keys), self.queries

    def pieces(self) -> Iterator[Block]:
        """The block split into parts of at most `MAX_QUERIES` queries, each with the keys up to its last query."""
        for start in range(len(self.keys) - self.queries, len(self.keys), MAX_QUERIES):
            end = min(start + MAX_QUERIES, len(self.keys))
            yield Block(self.keys[:end], end - start)


@dataclass(frozen=True)
class Gather:
    """Rows of a [T, F] tensor laid out in groups of M places, and back again.

    `index_M` is the token of every place (any token for padding, whose places are in `padding`). `first_T` is the first place of a token;
    `further` has one entry for second places, one for third places and so on: the tokens that have such a place, and these places.
    """

    index_M: Tensor
    padding: Tensor
    first_T: Tensor
    further: tuple[tuple[Tensor, Tensor], ...]

    def take(self, values_TF: Tensor) -> Tensor:
        """Values [M, F] of all places."""
        return _Take.apply(values_TF, self)

    def put_back(self, values_MF: Tensor) -> Tensor:
        """Values [T, F] of all tokens, from their first places: the inverse of `take`."""
        return _PutBack.apply(values_MF, self)


# Row selection whose backward pass is row selection too: torch's own adds row by row, which takes several times longer.


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_TF: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather
        return values_TF.index_select(0, gather.index_M)

    @staticmethod
    def backward(ctx: Any, grad_MF: Tensor) -> tuple[Tensor, None]:
        total_TF = grad_MF.index_select(0, ctx.gather.first_T)
        if ctx.gather.further:
            total_TF = total_TF.to(torch.promote_types(total_TF.dtype, torch.float32))
        for token_E, place_E in ctx.gather.further:
            more = total_TF.index_select(0, token_E) + grad_MF.index_select(0, place_E)
            total_TF.index_copy_(0, token_E, more)
        return total_TF.to(grad_MF.dtype), None


class _PutBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_MF: Tensor, gather: Gather) -> Tensor:
        ctx.gather = gather
        return values_MF.index_select(0, gather.first_T)

    @staticmethod
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, None]:
        return grad_TF.index_select(0, ctx.gather.index_M).index_fill_(0, ctx.gather.padding, 0.0), None


class TreeIndex:
    """The blocks of a packed row. Derived tensors are computed on first use and kept for all layers."""

    def __init__(self, blocks: Sequence[Block], tree_T: Tensor, branch_T: Tensor, position_T: Tensor) -> None:
        self.tree_T, self.branch_T, self.position_T = tree_T, branch_T, position_T
        self.blocks = blocks
        self._masks: dict[Any, Any] = {}

    def to(self, device: torch.device) -> TreeIndex:
        """The index on `device`; a copy computes its masks and groups again."""
        if device == self.tree_T.device:
            return self
        return TreeIndex(self.blocks, *(to_device(tensor, device) for tensor in (self.tree_T, self.branch_T, self.position_T)))

    @cached_property
    def groups(self) -> list[list[Block]]:
        """Blocks that are computed together."""
        return list(_groups(sorted((piece for block in self.blocks for piece in block.pieces()), key=lambda block: block.size)))

    @cached_property
    def scores(self) -> int:
        """Scores of a head that are computed, padding included."""
        return sum(len(group) * keys * queries for group in self.groups for keys, queries in [_longest(group)])

    @cached_property
    def queries(self) -> Gather:
        """Places of the queries of all groups, padded to the longest block of each."""
        return self._gather([[block.keys[len(block.keys) - block.queries :] for block in group] for group in self.groups])

    @cached_property
    def keys(self) -> Gather:
        """Places of the keys of all groups, padded likewise."""
        return self._gather([[block.keys for block in group] for group in self.groups])

    def _gather(self, groups: Sequence[Sequence[Sequence[int]]]) -> Gather:
        index: list[int] = []
        padding: list[int] = []
        places: list[list[int]] = [[] for _ in self.tree_T]
        for group in groups:
            longest = max(len(block) for block in group)
            for block in group:
                for place, token in enumerate(block, len(index)):
                    places[token].append(place)
                padding += range(len(index) + len(block), len(index) + longest)
                index += [*block, *[block[-1]] * (longest - len(block))]  # its own: NaN must not reach another tree
        tensor = partial(tensor_on, self.tree_T.device, dtype=torch.long)
        further = []
        for number in range(1, max(map(len, places))):
            having = [token for token, found in enumerate(places) if len(found) > number]
            further.append((tensor(having), tensor([places[token][number] for token in having])))
        return Gather(tensor(index), tensor(padding), tensor([found[0] for found in places]), tuple(further))

    def bias(self, number: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """The attention bias [N, 1, Q, K] of group `number`: 0 where a query sees a key (earlier, less than `window` away), minus infinity
        elsewhere.

        Padding comes last, so that no real query sees it; a padding query sees some key, since it would be NaN otherwise.
        """
        if (found := self._masks.get((number, window, dtype))) is None:
            group = self.groups[number]
            keys, queries = _longest(group)
            offset_N = torch.tensor([len(block.keys) - block.queries for block in group])
            key_K = torch.arange(keys)
            query_NQ1 = (offset_N[:, None] + torch.arange(queries)).clamp(max=keys - 1)[:, :, None]
            seen = key_K <= query_NQ1 if window is None else (key_K <= query_NQ1) & (key_K > query_NQ1 - window)
            found = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)[:, None]
            found = self._masks[number, window, dtype] = to_device(found, self.tree_T.device)
        return found

    def attend(self, module: nn.Module, asked: Attention) -> Tensor:
        """The attention output [1, T, H, D]."""
        if asked.query_THD.device.type == "cuda":
            return self.by_squares(module, asked)
        if torch.is_grad_enabled() and self.scores > KEPT_SCORES * len(self.tree_T):
            rest = asked[3:]  # tensors as arguments, so that checkpoints of whole layers do not keep them
            return checkpoint(
                lambda query, key, value: by_groups(self, Attention(query, key, value, *rest)),
                *asked[:3],
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return by_groups(self, asked)

    def by_squares(self, module: nn.Module, asked: Attention) -> Tensor:
        """The attention output [1, T, H, D] by flex attention, which skips blocks of scores that are masked entirely."""
        dynamo.recompile_limit = max(dynamo.recompile_limit, COMPILED_KINDS)
        query, key, value = (states.transpose(0, 1)[None] for states in asked[:3])
        mask = self.block_mask(asked.window)
        return flex_attention_forward(module, query, key, value, mask, scaling=asked.scaling, softcap=asked.softcap)[0]

    def block_mask(self, window: int | None) -> BlockMask:
        """The same mask for flex attention."""

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            on_path = (self.branch_T[key] == 0) | (self.branch_T[key] == self.branch_T[query])
            distance = self.position_T[query] - self.position_T[key]
            seen = (self.tree_T[query] == self.tree_T[key]) & on_path & (distance >= 0)
            return seen if window is None else seen & (distance < window)

        if window not in self._masks:
            some, full = self._squares(window)
            listed = (to_device(tensor, self.tree_T.device) for squares in (some & ~full, full) for tensor in _listed(squares))
            partly, partly_at, whole, whole_at = listed
            tokens = len(self.tree_T)
            self._masks[window] = BlockMask.from_kv_blocks(
                partly, partly_at, whole, whole_at, BLOCK_SIZE=FLEX_BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens)
            )
        return self._masks[window]

    def _squares(self, window: int | None) -> tuple[Tensor, Tensor]:
        """For blocks of `FLEX_BLOCK` queries and keys: whether any query sees any key, and whether all queries see all keys.

        Computed from the tree's blocks, since a whole [T, T] mask of a large micro-batch would not fit in memory.
        """
        count = -(-len(self.tree_T) // FLEX_BLOCK)
        some, pairs = torch.zeros(count, count, dtype=torch.bool), torch.zeros(count, count, dtype=torch.long)
        for block in self.blocks:
            square = torch.tensor(block.keys) // FLEX_BLOCK  # by position
            first_query = len(square) - block.queries
            keys, key_count = square.unique_consecutive(return_counts=True)
            queries, query_count = square[first_query:].unique_consecutive(return_counts=True)
            last_key, first = key_count.cumsum(0) - 1, first_query + query_count.cumsum(0) - query_count
            near = torch.ones(len(queries), len(keys), dtype=torch.bool) if window is None else first[:, None] - last_key < window
            some[queries[:, None], keys] |= near
            pairs[queries[:, None], keys] += query_count[:, None] * key_count
        # keys come before their queries, except for some on the diagonal; with a window the mask function decides
        full = (pairs == FLEX_BLOCK**2).tril(-1) if window is None else torch.zeros_like(some)
        return some.tril(), full


def _listed(squares: Tensor) -> tuple[Tensor, Tensor]:
    """For every block of queries the number of its selected blocks of keys, and their indices first, in rising order."""
    order = (~squares).int().argsort(dim=1, stable=True)
    return squares.sum(1).int()[None, None], order.int()[None, None]


def _longest(group: Sequence[Block]) -> tuple[int, int]:
    """(keys, queries) to which the blocks of a group are padded."""
    return max(len(block.keys) for block in group), max(block.queries for block in group)


def _groups(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Group blocks of rising size, with a new group where padding or scores would exceed the limits."""
    group: list[Block] = []
    needed = longest = 0
    for block in blocks:
        keys, queries = block.size
        most = max(longest, queries)
        padded = (len(group) + 1) * keys * most
        wasteful = padded > FEW_SCORES and needed + keys * queries < (1 - MAX_PADDING) * padded
        if group and (padded > MAX_SCORES or wasteful):
            yield group
            group, needed, most = [], 0, queries
        group.append(block)
        needed += keys * queries
        longest = most
    if group:
        yield group


def by_groups(index: TreeIndex, asked: Attention) -> Tensor:
    """The attention output [1, T, H, D], group by group."""
    query_THD, key_TGD, value_TGD, scaling, window, softcap = asked
    query_MF = index.queries.take(query_THD.flatten(1))
    key_MF, value_MF = index.keys.take(key_TGD.flatten(1)), index.keys.take(value_TGD.flatten(1))
    out, first_query, first_key = [], 0, 0
    for number, group in enumerate(index.groups):
        count = len(group)
        keys, queries = _longest(group)
        query = query_MF[first_query : first_query + count * queries].view(count, queries, *query_THD.shape[1:])
        key, value = (states[first_key : first_key + count * keys].view(count, keys, *key_TGD.shape[1:]) for states in (key_MF, value_MF))
        first_query, first_key = first_query + count * queries, first_key + count * keys
        found = _products(query, key, value, index.bias(number, window, query.dtype), scaling, softcap)
        out.append(found.reshape(count * queries, -1))
    return index.queries.put_back(torch.cat(out)).view(1, *query_THD.shape)


def _products(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """query [N, Q, H, D], key and value [N, K, G, D] -> [N, Q, H, D]; the heads of a group share their keys without a copy.

    Plain products: on a CPU they are faster than torch's fused attention on paths of up to 256 positions, and with a bias instead of a
    causal mask on longer ones too (docs/negative-results.md, benchmarks/attention_speed.py).
    """
    count, queries, heads, size = query.shape
    keys, groups = key.shape[1:3]
    query = (query * scaling).view(count, queries, groups, -1, size).permute(0, 2, 3, 1, 4).reshape(count * groups, -1, size)
    scores = torch.bmm(query, key.permute(0, 2, 3, 1).reshape(count * groups, size, keys))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    shares = (scores.view(count, heads, queries, keys) + bias).softmax(-1).view_as(scores)
    found = torch.bmm(shares, value.transpose(1, 2).reshape(count * groups, keys, size))
    return found.view(count, groups, -1, queries, size).permute(0, 3, 1, 2, 4).reshape(count, queries, heads, size)
