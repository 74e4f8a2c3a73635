"""The scorer: log p(reply | prompt), summed over the reply's tokens, for every reply of a micro-batch.

The opponent pass, training and evaluation all call this one module, on the same micro-batches, so that the first-step margin is 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sparring.console import log
from sparring.errors import UserError
from sparring.policy.batches import Branches, Layout, TreeBatch, collate, dealt, shortest
from sparring.policy.compute import in_float32, keep_soft_caps
from sparring.policy.footprint import HEAD_CHUNK
from sparring.policy.head import ChunkedHead, logits_of, logps_of
from sparring.policy.packed import FOREIGN_ERRORS, current_row, is_out_of_memory, kind_of, packed, use_packed_attention
from sparring.policy.ranks import from_main, gathered, rank, rank_count

CHECK_TOLERANCE = 1e-4


@dataclass(frozen=True)
class _Checked:
    """A layout that was found right for trees of this reach: (longest path, tokens beside the first branch)."""

    reach: tuple[int, int]
    layout: str

    def covers(self, reach: tuple[int, int]) -> bool:
        return reach[0] <= self.reach[0] and reach[1] <= self.reach[1]


_checked: dict[str, _Checked] = {}


class Scorer(nn.Module):
    """Wraps a causal language model so that its forward is the log-probs of a micro-batch.

    The whole vocabulary is only ever held for `HEAD_CHUNK` reply tokens at once, forward and backward.
    `layout` is "tree" (replies share their prompt, trees stand packed in one row), "rows" (one padded row per reply) or "plain" (the
    same rows, and the model's own full logits).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = keep_soft_caps(model)
        self.head = ChunkedHead(self.model)
        self._own_attention = model.config._attn_implementation
        self.layout = "tree"
        self.eval()

    @property
    def layout(self) -> str:
        return self._layout

    @layout.setter
    def layout(self, layout: str) -> None:
        """Also gives the model the attention that the layout needs; where it cannot take it, `choose_layout` will find out."""
        self._layout = layout
        if layout == "tree":
            use_packed_attention(self.model, self._own_attention)
        else:
            self.model.set_attn_implementation(self._own_attention)

    def forward(self, batch: TreeBatch) -> Tensor:
        """Log-probs [D, R] in float64, columns in the order of each tree's replies; 0 where a tree has fewer."""
        with packed(batch.index):
            logps_N = self._plain(batch) if self.layout == "plain" else self.head(self._hidden(batch), batch.target_N, HEAD_CHUNK)
        # cloned: FSDP hangs its hooks on what a module returns, and may lose them on a view
        return _per_reply(logps_N, batch).clone()

    @torch.no_grad()
    def with_greedy(self, batch: TreeBatch) -> tuple[Tensor, Tensor]:
        """Log-probs [D, R] as `forward` gives them, and whether every token of a reply is the likeliest at its place [D, R]."""
        with packed(batch.index):
            parts = [(logps_of(logits, target), logits.argmax(1) != target) for logits, target in self._logits(batch)]
        logps, misses = (torch.cat(column) for column in zip(*parts, strict=True))
        return _per_reply(logps, batch), _per_reply(misses, batch) == 0

    def collate(self, trees: Sequence[Branches]) -> TreeBatch:
        """The micro-batch in this scorer's layout, on the model's device."""
        return collate(trees, self.row_layout).to(self.model.device)

    @property
    def _no_split_modules(self) -> list[str] | None:
        """The layers, by the name under which Accelerate asks a model for them."""
        return self.model._no_split_modules

    def tie_weights(self) -> None:
        """Asked for by Accelerate after it has moved parameters."""
        self.model.tie_weights()

    @property
    def row_layout(self) -> Layout:
        return "tree" if self.layout == "tree" else "rows"

    def use_gradient_checkpointing(self) -> None:
        """Recompute layers in the backward pass. A layer looks trained only while it decides that: dropout stays off inside it."""
        where = "gradient_checkpointing"
        try:
            self.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": _same_trees_again}
            )
        except ValueError as error:
            raise UserError(str(error), where=where, remedy=f"set {where} to false and lower micro_batch_tokens") from error
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            log.warning(f"{where}: {type(self.model).__name__} has no layers that can be recomputed; it has no effect")
        for layer in layers:
            layer.training = True
            layer.register_forward_pre_hook(lambda layer, _: setattr(layer, "training", False))
            layer.register_forward_hook(lambda layer, *_: setattr(layer, "training", True), always_call=True)

    def choose_layout_on_main(self, *trees: Branches) -> None:
        """`choose_layout` by rank 0, for all ranks: it alone may have read the weights."""

        def choose() -> str:
            self.choose_layout(*trees)
            return self.layout

        self.layout = from_main(choose)

    def choose_layout(self, *trees: Branches) -> None:
        """Compare the fast layouts with the model's own unbatched logits on some trees; keep the fastest that agrees. In one process
        this is done once for models of one kind, and again for longer trees.

        State-space and linear-attention models cannot take the tree mask, and some heads scale their logits in ways that only the
        model's own forward knows: a wrong layout must never score silently. All in float32: bfloat16's noise would hide much.
        """
        self.layout = "plain"
        reach = (max(tree.longest_path for tree in trees), max(tree.beside_first for tree in trees))
        if (known := _checked.get(kind_of(self.model))) and known.covers(reach):
            _finite_logps(self.model, min(trees, key=lambda tree: tree.longest_path))
            self.layout = known.layout
            return
        with in_float32(self.model):
            self._check_layouts(trees)
        _checked[kind_of(self.model)] = _Checked(reach, self.layout)

    def _check_layouts(self, trees: Sequence[Branches]) -> None:
        expected = [_finite_logps(self.model, tree) for tree in trees]
        for layout in ("tree", "rows", "plain"):
            self.layout = layout
            gap = self._gap(trees, expected)
            if gap <= CHECK_TOLERANCE:
                return
            log.info(f"scorer: this model cannot take the {layout} layout (log-probs differ by {gap:.2g} relative); trying the next")
        raise RuntimeError("the scorer does not agree with the model's own log-probs in any layout")

    @torch.no_grad()
    def _gap(self, trees: Sequence[Branches], expected: Sequence[Tensor]) -> float:
        try:
            found = self(self.collate([*trees, trees[0]]))
        except FOREIGN_ERRORS as error:
            if is_out_of_memory(error):  # the next would be slower, and need no less
                raise
            return float("inf")
        pairs = [(row[: len(logps)], logps) for row, logps in zip(found, [*expected, expected[0]], strict=True)]
        gap = max(((row - logps).abs() / logps.abs().clamp(min=1)).max().item() for row, logps in pairs)
        return gap if gap == gap else float("inf")

    @torch.no_grad()
    def token_logits(self, tree: Branches) -> Tensor:
        """Logits [N, V] that predict every token of a tree's replies, one reply after the other. All at once: for few trees."""
        batch = self.collate([tree])
        with packed(batch.index):
            return self._plain_logits(batch) if self.layout == "plain" else logits_of(self.model, self._hidden(batch))

    def _hidden(self, batch: TreeBatch) -> Tensor:
        """Last hidden states [N, H] of the positions that predict."""
        hidden = self.model.base_model(
            input_ids=batch.input_ids_BL,
            position_ids=batch.position_ids_BL if batch.index is not None else None,
            attention_mask=batch.attention_mask,
            use_cache=False,
        ).last_hidden_state
        # index_select: its gradient is summed in a fixed order, where a prompt's last token predicts several replies
        return hidden.flatten(0, 1).index_select(0, batch.source_N)

    def _logits(self, batch: TreeBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits [n, V], targets [n]) of the tokens of the replies, a chunk at a time."""
        if self.layout == "plain":
            yield self._plain_logits(batch), batch.target_N
            return
        for hidden_NH, target_N in zip(self._hidden(batch).split(HEAD_CHUNK), batch.target_N.split(HEAD_CHUNK), strict=True):
            yield logits_of(self.model, hidden_NH), target_N

    def _plain(self, batch: TreeBatch) -> Tensor:
        return logps_of(self._plain_logits(batch), batch.target_N)

    def _plain_logits(self, batch: TreeBatch) -> Tensor:
        logits = self.model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask, use_cache=False).logits
        return logits.flatten(0, 1)[batch.source_N]


def _per_reply(values_N: Tensor, batch: TreeBatch) -> Tensor:
    """Sums [D, R] in float64 over the tokens of each reply."""
    sums = torch.zeros(batch.duels * batch.replies, dtype=torch.float64, device=values_N.device)
    return sums.index_add(0, batch.cell_N, values_N.double()).view(batch.duels, batch.replies)


def _same_trees_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed forward and of its repetition in the backward pass, which must see the trees of the first."""
    return contextlib.nullcontext(), packed(current_row())


@torch.no_grad()
def score_trees(
    scorer: Scorer, trees: Sequence[Branches], max_tokens: int, passes: nn.Module | None = None, in_step: bool = False
) -> list[list[float]]:
    """Log-probs of each tree's replies, in the order of the trees, in micro-batches of at most `max_tokens`; ranks share the trees.

    passes: what the scorer is wrapped in, if it is; in_step: every pass needs all ranks, so that some compute a tree for nothing.
    """
    shapes = [tree.shape(scorer.row_layout) for tree in trees]
    groups = dealt(shapes, max_tokens, scorer.row_layout, rank_count())
    mine = groups[rank()]
    idle = [[shortest(shapes)]] * (max(map(len, groups)) - len(mine)) if in_step else []
    logps = [(passes or scorer)(scorer.collate([trees[index] for index in group])) for group in [*mine, *idle]]
    # all are on their way before the first is waited for
    found = {index: row for group, rows in zip(mine, logps, strict=False) for index, row in zip(group, rows.tolist(), strict=True)}
    scored = {index: row for part in gathered(found) for index, row in part.items()}
    return [scored[index][: len(tree.replies)] for index, tree in enumerate(trees)]


def _finite_logps(model: PreTrainedModel, tree: Branches) -> Tensor:
    logps = plain_logps(model, tree)
    if not logps.isfinite().all():
        raise UserError("the model's log-probs are not finite numbers", remedy="its weights are damaged, or its training diverged")
    return logps


@torch.no_grad()
def plain_logps(model: PreTrainedModel, tree: Branches) -> Tensor:
    """Log-probs [R] of each reply by an unbatched forward over prompt + reply and the model's own logits: the reference."""
    sums = []
    for reply in tree.replies:
        ids = torch.tensor([[*tree.prompt_ids, *reply]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(tree.prompt_ids) - 1 : -1]
        sums.append(logps_of(logits, ids[0, len(tree.prompt_ids) :]).double().sum())
    return torch.stack(sums)
