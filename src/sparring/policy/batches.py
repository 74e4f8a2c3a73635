"""Duels as tensors: a tree with one branch per reply, and how trees share a micro-batch.

Dimensions in names: B rows, L positions of a row, N scored reply tokens of the micro-batch, D duels, R = 1 + K replies of a duel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor

from sparring.data.records import Contest, Duel, TokenIds
from sparring.policy.compute import to_device
from sparring.policy.packed import no_mask
from sparring.policy.tree_attention import Block, TreeIndex

Layout = Literal["tree", "rows"]


@dataclass(frozen=True)
class Branches:
    """One prompt and the replies to score after it. Column 0 of the scores is the first reply."""

    prompt_ids: TokenIds
    replies: tuple[TokenIds, ...]

    def __post_init__(self) -> None:
        # the prompt's last token predicts a reply's first one; without a prompt, the token of another tree would
        assert self.prompt_ids and self.replies and all(self.replies), "an empty prompt or reply"

    def tokens(self, layout: Layout) -> int:
        """Positions that are computed; the last token of a reply is only predicted, never fed."""
        replies = sum(len(reply) - 1 for reply in self.replies)
        return replies + len(self.prompt_ids) * (1 if layout == "tree" else len(self.replies))

    @property
    def longest_path(self) -> int:
        """Positions of the prompt and its longest reply, which is the longest context of a token."""
        return len(self.prompt_ids) + max(len(reply) - 1 for reply in self.replies)

    @property
    def shortest_path(self) -> int:
        """Positions of the prompt and its shortest reply."""
        return len(self.prompt_ids) + min(len(reply) - 1 for reply in self.replies)

    @property
    def sibling_tokens(self) -> int:
        """Tokens between the first branch and the end of the tree."""
        return sum(len(reply) - 1 for reply in self.replies[1:])

    def shape(self, layout: Layout) -> tuple[int, int]:
        """(rows, positions of the longest row) that the tree takes in a micro-batch."""
        return (1, self.tokens("tree")) if layout == "tree" else (len(self.replies), self.longest_path)


@dataclass(frozen=True)
class TreeBatch:
    """A micro-batch. `source_N` are flat indices into [B * L] of the positions that predict `target_N`;
    `cell_N` is the flat index into [D, R] of the reply that the token belongs to. `real_BL` is true at tokens, false at padding.
    `index` defines the attention mask of trees that are packed in one row (layout "tree"); separate rows have none."""

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    real_BL: Tensor
    source_N: Tensor
    target_N: Tensor
    cell_N: Tensor
    duels: int
    replies: int
    tokens: int
    index: TreeIndex | None

    def to(self, device: torch.device) -> TreeBatch:
        """A copy with all tensors on `device`."""
        moved: dict[str, Any] = {name: to_device(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, index=None if self.index is None else self.index.to(device))

    @property
    def positions(self) -> int:
        """Positions that are computed: `tokens` and padding."""
        return self.input_ids_BL.numel()

    @property
    def attention_mask(self) -> Tensor:
        """Rows: [B, L], 1 at tokens. Packed trees: a placeholder that keeps the model from building its own mask."""
        return self.real_BL.long() if self.index is None else no_mask(self.input_ids_BL)


def branches_of(duel: Duel | Contest) -> Branches:
    """The replies that must be computed: the human one first, then the generated ones that differ from it; the winners of a contest, then
    its losers."""
    if isinstance(duel, Contest):
        return Branches(duel.prompt_ids, duel.winners + duel.losers)
    return Branches(duel.prompt_ids, (duel.real_ids, *(ids for ids in duel.generated_ids if ids != duel.real_ids)))


def collate(trees: Sequence[Branches], layout: Layout) -> TreeBatch:
    """Arrange `trees` end to end in one row, or (layout "rows") as one padded row per reply."""
    columns = max(len(tree.replies) for tree in trees)
    rows = [row for index, tree in enumerate(trees) for row in _rows_of(tree, index * columns, layout)]
    lengths = [len(row.ids) for row in rows]
    shape = (1, sum(lengths)) if layout == "tree" else (len(rows), max(lengths))
    starts = list(accumulate(lengths[:-1], initial=0)) if layout == "tree" else [index * shape[1] for index in range(len(rows))]
    place_T = torch.tensor([start + offset for start, length in zip(starts, lengths, strict=True) for offset in range(length)])

    def laid_out(values: Iterable[int]) -> Tensor:
        return torch.zeros(math.prod(shape), dtype=torch.long).index_copy(0, place_T, torch.tensor(list(values))).view(shape)

    return TreeBatch(
        input_ids_BL=laid_out(token for row in rows for token in row.ids),
        position_ids_BL=laid_out(position for row in rows for position in row.positions),
        real_BL=laid_out(1 for length in lengths for _ in range(length)).bool(),
        source_N=torch.tensor([start + source for start, row in zip(starts, rows, strict=True) for source in row.sources]),
        target_N=torch.tensor([target for row in rows for target in row.targets]),
        cell_N=torch.tensor([cell for row in rows for cell in row.cells]),
        duels=len(trees),
        replies=columns,
        tokens=sum(lengths),
        index=_index_of(rows, starts) if layout == "tree" else None,
    )


def layout_probe_trees(trees: Sequence[Branches]) -> list[Branches]:
    """The trees that reveal a wrong layout: the longest path (sliding windows), the most tokens outside the first branch (recurrences), the
    shortest path (rotary embeddings that depend on the longest row of a batch)."""
    longest, bushiest = (max(trees, key=attrgetter(name)) for name in ("longest_path", "sibling_tokens"))
    return list(dict.fromkeys([longest, bushiest, min(trees, key=attrgetter("shortest_path"))]))


def assign_to_ranks(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices 0 .. len(sizes) - 1 assigned to the ranks so that the sums of their sizes are close: the largest first, each to the rank that
    has least so far (Graham's LPT rule, at most 4/3 of the optimum). Deterministic, so that all ranks compute the same assignment."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        lightest = min(range(ranks), key=lambda rank: loads[rank])
        shares[lightest].append(place)
        loads[lightest] += sizes[place]
    return shares


def micro_batches_of_ranks(shapes: Sequence[tuple[int, int]], max_tokens: int, layout: Layout, ranks: int) -> list[list[list[int]]]:
    """The micro-batches of every rank, as places in `shapes`, which are those of the trees of an optimizer step."""
    shares = assign_to_ranks([rows * length for rows, length in shapes], ranks)
    return [list(micro_batches(share, shapes.__getitem__, max_tokens, layout)) for share in shares]


def micro_batches(items: Sequence[int], shape: Callable[[int], tuple[int, int]], max_tokens: int, layout: Layout) -> Iterator[list[int]]:
    """Split `items` into groups of similar length that compute at most `max_tokens` positions (a single larger item has its own group).

    shape: item -> (rows, positions of its longest row). Trees are packed end to end; rows are padded to the longest of the group.
    """
    group: list[int] = []
    group_rows = group_tokens = 0
    for item in sorted(items, key=lambda item: (shape(item)[1], item)):
        rows, length = shape(item)  # lengths rise: this item's is the group's
        computed = group_tokens + length if layout == "tree" else (group_rows + rows) * length
        if group and computed > max_tokens:
            yield group
            group, group_rows, group_tokens = [], 0, 0
        group.append(item)
        group_rows, group_tokens = group_rows + rows, group_tokens + length
    if group:
        yield group


@dataclass
class _PackedRow:
    """A tree, or one of its branches: tokens with their positions and branches (0 is the prompt), and the tokens to predict."""

    ids: list[int]
    positions: list[int]
    branches: list[int]
    sources: list[int]
    targets: list[int]
    cells: list[int]


def _rows_of(tree: Branches, first_cell: int, layout: Layout) -> Iterator[_PackedRow]:
    groups = [list(enumerate(tree.replies))] if layout == "tree" else [[pair] for pair in enumerate(tree.replies)]
    prompt = len(tree.prompt_ids)
    for group in groups:
        row = _PackedRow(list(tree.prompt_ids), list(range(prompt)), [0] * prompt, [], [], [])
        for column, reply in group:
            start, fed = len(row.ids), list(reply[:-1])
            row.sources += [prompt - 1, *range(start, start + len(fed))]
            row.targets += list(reply)
            row.cells += [first_cell + column] * len(reply)
            row.ids += fed
            row.positions += range(prompt, prompt + len(fed))
            row.branches += [column + 1] * len(fed)
        yield row


def _index_of(rows: Sequence[_PackedRow], starts: Sequence[int]) -> TreeIndex:
    blocks = [block for row, start in zip(rows, starts, strict=True) for block in _blocks_of(row.branches, start)]
    trees = torch.tensor([number for number, row in enumerate(rows) for _ in row.ids])
    branches, positions = (torch.tensor([x for row in rows for x in getattr(row, name)]) for name in ("branches", "positions"))
    return TreeIndex(blocks, trees, branches, positions)


def _blocks_of(branches: Sequence[int], start: int) -> Iterator[Block]:
    """The prompt with the first branch that has fed tokens as one block, every other branch as one behind the prompt's keys."""
    places: dict[int, list[int]] = {}
    for place, branch in enumerate(branches, start):
        places.setdefault(branch, []).append(place)
    prompt = places.pop(0)
    first, *others = places.values() or [[]]
    yield Block([*prompt, *first], len(prompt) + len(first))
    for other in others:
        yield Block([*prompt, *other], len(other))
