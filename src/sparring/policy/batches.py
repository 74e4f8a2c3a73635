"""Duels as tensors: the two-branch (k-branch) tree, and how duels share a micro-batch.

Dimensions in names: B rows, L positions of a row, N scored reply tokens of the micro-batch, D duels, R = 1 + K replies of a duel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparring.data.records import Duel, TokenIds

Layout = Literal["tree", "rows"]


@dataclass(frozen=True)
class Branches:
    """One prompt and the replies to score after it. Column 0 of the scores is the first reply."""

    prompt_ids: TokenIds
    replies: tuple[TokenIds, ...]

    def tokens(self, layout: Layout) -> int:
        """Positions that are computed; the last token of a reply is only predicted, never fed."""
        replies = sum(len(reply) - 1 for reply in self.replies)
        return replies + len(self.prompt_ids) * (1 if layout == "tree" else len(self.replies))

    @property
    def longest_path(self) -> int:
        """Positions of the prompt and its longest reply: how far back a reply token may look."""
        return len(self.prompt_ids) + max(len(reply) - 1 for reply in self.replies)

    def shape(self, layout: Layout) -> tuple[int, int]:
        """(rows, positions of the longest row) that the tree takes in a micro-batch."""
        return (1, self.tokens("tree")) if layout == "tree" else (len(self.replies), self.longest_path)


@dataclass(frozen=True)
class TreeBatch:
    """A micro-batch. `source_N` are flat indices into [B * L] of the positions that predict `target_N`;
    `cell_N` is the flat index into [D, R] of the reply that the token belongs to."""

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    segment_BL: Tensor
    source_N: Tensor
    target_N: Tensor
    cell_N: Tensor
    duels: int
    replies: int
    layout: Layout

    def to(self, device: torch.device) -> TreeBatch:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return TreeBatch(**{**vars(self), **moved})

    @property
    def tokens(self) -> int:
        """Positions computed, without padding."""
        return int((self.segment_BL >= 0).sum())

    @property
    def attention_mask(self) -> Tensor:
        """Tree: [B, 1, L, L], true where a query may look: back, at the prompt or at its own branch. Rows: [B, L], true at tokens."""
        if self.layout == "rows":
            return (self.segment_BL >= 0).long()
        query, key = self.segment_BL[:, :, None], self.segment_BL[:, None, :]
        length = self.segment_BL.shape[1]
        back = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        # a padding query sees only itself: a row of the mask with nothing in it would make the softmax NaN
        own = torch.eye(length, dtype=torch.bool, device=query.device)
        return ((back & ((key == 0) | (key == query)) & (key >= 0)) | own)[:, None]


def branches_of(duel: Duel) -> Branches:
    """The replies that must be computed: the human one first, then the generated ones that differ from it."""
    return Branches(duel.prompt_ids, (duel.real_ids, *(ids for ids in duel.generated_ids if ids != duel.real_ids)))


def collate(trees: Sequence[Branches], layout: Layout) -> TreeBatch:
    """Lay out `trees` as padded rows: one row per tree, or (layout "rows") one row per reply."""
    columns = max(len(tree.replies) for tree in trees)
    rows = [row for index, tree in enumerate(trees) for row in _rows_of(tree, index * columns, layout)]
    length = max(len(row.ids) for row in rows)
    pad = [length - len(row.ids) for row in rows]
    return TreeBatch(
        input_ids_BL=torch.tensor([row.ids + [0] * p for row, p in zip(rows, pad, strict=True)]),
        position_ids_BL=torch.tensor([row.positions + [0] * p for row, p in zip(rows, pad, strict=True)]),
        segment_BL=torch.tensor([row.segments + [-1] * p for row, p in zip(rows, pad, strict=True)]),
        source_N=torch.tensor([index * length + source for index, row in enumerate(rows) for source in row.sources]),
        target_N=torch.tensor([target for row in rows for target in row.targets]),
        cell_N=torch.tensor([cell for row in rows for cell in row.cells]),
        duels=len(trees),
        replies=columns,
        layout=layout,
    )


def hardest(trees: Iterable[Branches]) -> list[Branches]:
    """The trees that show a wrong layout: the longest path (sliding windows), the most tokens beside the first branch (recurrences)."""
    trees = list(trees)
    beside_first = max(trees, key=lambda tree: sum(len(reply) - 1 for reply in tree.replies[1:]))
    return [max(trees, key=lambda tree: tree.longest_path), beside_first]


def micro_batches(items: Sequence[int], shape: Callable[[int], tuple[int, int]], max_tokens: int) -> Iterator[list[int]]:
    """Split `items` into groups of similar length, each padded to at most `max_tokens` (a single larger item stands alone).

    shape: item -> (rows, positions of its longest row).
    """
    group: list[int] = []
    group_rows = 0
    for item in sorted(items, key=lambda item: (shape(item)[1], item)):
        rows, length = shape(item)  # lengths rise: this item's is the group's
        if group and (group_rows + rows) * length > max_tokens:
            yield group
            group, group_rows = [], 0
        group.append(item)
        group_rows += rows
    if group:
        yield group


@dataclass
class _Row:
    ids: list[int]
    positions: list[int]
    segments: list[int]
    sources: list[int]
    targets: list[int]
    cells: list[int]


def _rows_of(tree: Branches, first_cell: int, layout: Layout) -> Iterator[_Row]:
    groups = [list(enumerate(tree.replies))] if layout == "tree" else [[pair] for pair in enumerate(tree.replies)]
    for group in groups:
        prompt = len(tree.prompt_ids)
        row = _Row(list(tree.prompt_ids), list(range(prompt)), [0] * prompt, [], [], [])
        for column, reply in group:
            start, fed = len(row.ids), list(reply[:-1])
            row.sources += [prompt - 1, *range(start, start + len(fed))]
            row.targets += list(reply)
            row.cells += [first_cell + column] * len(reply)
            row.ids += fed
            row.positions += range(prompt, prompt + len(fed))
            row.segments += [column + 1] * len(fed)
        yield row
