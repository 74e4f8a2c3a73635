"""The scorer: log p(reply | prompt), summed over the reply's tokens, for every reply of a micro-batch.

The opponent pass, training and evaluation all call this one module, on the same micro-batches, so that the first-step margin is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sparring.console import log
from sparring.errors import UserError, first_line
from sparring.policy.batches import Branches, Layout, TreeBatch, collate, layout_probe_trees, micro_batches_of_ranks
from sparring.policy.compute import in_float32, keep_soft_caps
from sparring.policy.footprint import HEAD_CHUNK, MOST_TOKENS
from sparring.policy.fused import fuse
from sparring.policy.head import chunked_logps, logits_of, logps_of
from sparring.policy.packed import FOREIGN_ERRORS, checkpoint_contexts, is_out_of_memory, kind_of, packed, use_packed_attention
from sparring.policy.ranks import AgreedError, from_main, gathered, is_sharded, rank, rank_count

# Tolerance of one token's log-prob, relative above 1 nat: rounding is below 1e-4, and any wrong mask far above
TOKEN_TOLERANCE = 1e-3
# Tolerance of a reply's log-prob with a mixture of experts: rounding may change a close routing choice, which affects single tokens more
# than their sum
REPLY_TOLERANCE = 1e-4


def _reach(trees: Sequence[Branches], row_tokens: int) -> tuple[int, ...]:
    """(longest path, tokens outside the first branch, minus the shortest path, tokens of a packed row). A check covers trees that are not
    larger in any of these."""
    return (
        max(tree.longest_path for tree in trees),
        max(tree.sibling_tokens for tree in trees),
        -min(tree.shortest_path for tree in trees),
        row_tokens,
    )


# kind of model -> (the `_reach` of the trees for which its layout was found correct, the layout)
_checked: dict[str, tuple[tuple[int, ...], str]] = {}


class Scorer(nn.Module):
    """Wraps a causal language model so that its forward is the log-probs of a micro-batch.

    Logits over the vocabulary exist for at most `HEAD_CHUNK` reply tokens at once, forward and backward.
    `layout` is "tree" (replies share their prompt, trees are packed in one row), "rows" (one padded row per reply), "plain" (the same
    rows, and the model's own full logits) or "alone" (the same, but every row in a forward of its own, without padding).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = keep_soft_caps(model)
        fuse(self.model)
        self._own_attention = model.config._attn_implementation
        self.layout = "tree"
        self.eval()

    @property
    def layout(self) -> str:
        """How the trees of a micro-batch are arranged: "tree", "rows", "plain" or "alone"."""
        return self._layout

    @layout.setter
    def layout(self, layout: str) -> None:
        """Also sets the model's attention for the layout; `choose_layout` detects models that do not support it."""
        self._layout = layout
        if layout == "tree":
            use_packed_attention(self.model, self._own_attention)
        else:
            self.model.set_attn_implementation(self._own_attention)

    def forward(self, batch: TreeBatch) -> Tensor:
        """Log-probs [D, R] in float64, columns in the order of each tree's replies; 0 where a tree has fewer."""
        # cloned: FSDP attaches hooks to the output of a module, and may lose them on a view
        return _per_reply(self._token_logps(batch), batch).clone()

    @torch.no_grad()
    def with_greedy(self, batch: TreeBatch) -> tuple[Tensor, Tensor]:
        """Log-probs [D, R] as `forward` gives them, and whether every token of a reply is the likeliest at its position [D, R]."""
        with packed(batch.index):
            parts = [(logps_of(logits, target), logits.argmax(1) != target) for logits, target in self._logits(batch)]
        logps, misses = (torch.cat(column) for column in zip(*parts, strict=True))
        return _per_reply(logps, batch), _per_reply(misses, batch) == 0

    def collate(self, trees: Sequence[Branches]) -> TreeBatch:
        """The micro-batch in this scorer's layout, on the model's device."""
        return collate(trees, self.row_layout).to(self.model.device)

    @property
    def _no_split_modules(self) -> set[str] | list[str] | None:
        """The layers, by the name under which Accelerate asks a model for them."""
        return self.model._no_split_modules

    def tie_weights(self) -> None:
        """Called by Accelerate after it has moved parameters."""
        self.model.tie_weights()

    @property
    def row_layout(self) -> Layout:
        """How `collate` arranges a micro-batch: "tree", or "rows" for the three other layouts."""
        return "tree" if self.layout == "tree" else "rows"

    @property
    def takes_whole_logits(self) -> bool:
        """Whether the model calls its head itself, at all positions."""
        return self.layout in ("plain", "alone")

    def groups_of_rank(self, trees: Sequence[Branches], max_tokens: int, needs_all_ranks: bool) -> tuple[list[list[int]], list[list[int]]]:
        """This rank's micro-batches of the trees, by their places, so that opponent pass and training group and round alike; then dummy
        ones, of the cheapest tree, if every pass needs all ranks and others have more."""
        shapes = [tree.shape(self.row_layout) for tree in trees]
        groups = micro_batches_of_ranks(shapes, max_tokens, self.row_layout, rank_count())
        mine = groups[rank()]
        missing = max(map(len, groups)) - len(mine) if needs_all_ranks else 0
        return mine, [[min(range(len(shapes)), key=lambda place: math.prod(shapes[place]))] for _ in range(missing)]

    def use_gradient_checkpointing(self) -> None:
        """Recompute layers in the backward pass. A layer is in training mode only while it checks that, so dropout stays off inside it."""
        where = "gradient_checkpointing"
        try:
            self.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": checkpoint_contexts}
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

    def choose_layout_on_main(self, trees: Sequence[Branches], max_tokens: int) -> None:
        """`choose_layout` on rank 0, for all ranks, since only rank 0 may have read the weights."""

        def choose() -> str:
            self.choose_layout(trees, max_tokens)
            return self.layout

        self.layout = from_main(choose)
        if self.layout == "alone" and is_sharded():
            name = type(self.model).__name__
            what = f"{name} needs a separate forward pass for every reply, but all ranks with sharded weights must make equally many"
            raise AgreedError(what, where="launcher.strategy", remedy="use ddp, with the whole model on every rank")

    def choose_layout(self, trees: Sequence[Branches], max_tokens: int = 0) -> None:
        """Compare the fast layouts with the model's own unbatched logits on some of the trees (`layout_probe_trees`), repeated in a packed
        row as long as those in micro-batches of `max_tokens`; keep the fastest that agrees. The result is cached per process and kind of
        model, and checked again for larger trees (`_reach`).

        State-space and linear-attention models cannot use the tree mask, some heads scale their logits in ways that only the model's own
        forward knows, some rotary embeddings depend on the longest row of a batch, and some attention on the place in the row: a wrong
        layout must never score silently. All in float32, since the noise of bfloat16 would hide errors.
        """
        self.layout = "plain"
        # weights that will be sharded are checked on rank 0's CPU, where a GPU's long rows would take minutes
        most = min(max_tokens, MOST_TOKENS["cpu"]) if self.model.device.type == "cpu" else max_tokens
        row_tokens = min(most, sum(tree.tokens("tree") for tree in trees))
        trees = layout_probe_trees(trees)
        reach = _reach(trees, row_tokens)
        known, layout = _checked.get(kind_of(self.model), ((), ""))
        if known and all(asked <= most for asked, most in zip(reach, known, strict=True)):
            _finite_logps(self.model, min(trees, key=lambda tree: tree.longest_path))
            self.layout = layout
            return
        with in_float32(self.model):
            self._check_layouts(trees, row_tokens)
        _checked[kind_of(self.model)] = reach, self.layout

    def _check_layouts(self, trees: Sequence[Branches], row_tokens: int) -> None:
        expected = {tree: _finite_logps(self.model, tree) for tree in trees}
        for layout in ("tree", "rows", "plain", "alone"):
            self.layout = layout
            if (wrong := self._wrong(expected, row_tokens)) is None:
                return
            log.info(f"scorer: this model does not support the {layout} layout ({wrong}); trying the next")
        raise UserError(
            f"the log-probs of {type(self.model).__name__} depend on later tokens, or change from one forward pass to the next: "
            f"a reply alone in its row has different ones ({wrong})",
            where="model.path",
            remedy="use a causal language model (a decoder)",
        )

    @torch.no_grad()
    def _wrong(self, expected: Mapping[Branches, Tensor], row_tokens: int) -> str | None:
        """Why the current layout is wrong, or None. Compared token by token, since an error may vanish in the sum over a long reply."""
        routed = any("expert" in name for name, _ in self.model.named_modules())
        trees = list(_filling(list(expected), row_tokens if self.layout == "tree" and not routed else 0))
        batch = self.collate(trees)
        try:
            found = self._token_logps(batch)
        except FOREIGN_ERRORS as error:
            if is_out_of_memory(error):  # the next layout would be slower, and need no less memory
                raise
            return f"{type(error).__name__}: {first_line(error)}"
        right = torch.cat([expected[tree] for tree in trees])
        if routed:
            found, right = _per_reply(found, batch), _per_reply(right, batch)
        gap = ((found - right).abs() / right.abs().clamp(min=1)).max().item()
        tolerance = REPLY_TOLERANCE if routed else TOKEN_TOLERANCE
        return None if gap <= tolerance else f"log-probs differ by {gap:.2g} relative"  # NaN too

    @torch.no_grad()
    def token_logits(self, tree: Branches) -> Tensor:
        """Logits [N, V] that predict every token of a tree's replies, one reply after the other; not chunked, so only for small trees."""
        batch = self.collate([tree])
        with packed(batch.index):
            return torch.cat([logits for logits, _ in self._logits(batch)])

    def _hidden(self, batch: TreeBatch) -> Tensor:
        """Last hidden states [N, H] of the positions that predict."""
        hidden = self.model.base_model(
            input_ids=batch.input_ids_BL,
            position_ids=batch.position_ids_BL if batch.index is not None else None,
            attention_mask=batch.attention_mask,
            use_cache=False,
        ).last_hidden_state
        # index_select sums its gradient in a fixed order, which matters for a prompt's last token: it predicts several replies
        return hidden.flatten(0, 1).index_select(0, batch.source_N)

    def _logits(self, batch: TreeBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits [n, V], targets [n]) of the tokens of the replies, a chunk at a time."""
        if self.takes_whole_logits:
            yield self._plain_logits(batch), batch.target_N
            return
        for hidden_NH, target_N in zip(self._hidden(batch).split(HEAD_CHUNK), batch.target_N.split(HEAD_CHUNK), strict=True):
            yield logits_of(self.model, hidden_NH), target_N

    def _token_logps(self, batch: TreeBatch) -> Tensor:
        """Log-probs [N] of the tokens of the replies."""
        with packed(batch.index):
            if self.takes_whole_logits:
                return logps_of(self._plain_logits(batch), batch.target_N)
            return chunked_logps(self.model, self._hidden(batch), batch.target_N, HEAD_CHUNK)

    def _plain_logits(self, batch: TreeBatch) -> Tensor:
        """The model's own logits [N, V] of the tokens of the replies."""
        if self.layout == "alone":
            rows = [ids_L[real_L][None] for ids_L, real_L in zip(batch.input_ids_BL, batch.real_BL, strict=True)]
            logits = pad_sequence([self.model(input_ids=ids_1L, use_cache=False).logits[0] for ids_1L in rows], batch_first=True)
        else:
            logits = self.model(input_ids=batch.input_ids_BL, attention_mask=batch.attention_mask, use_cache=False).logits
        return logits.flatten(0, 1)[batch.source_N]


def _per_reply(values_N: Tensor, batch: TreeBatch) -> Tensor:
    """Sums [D, R] in float64 over the tokens of each reply."""
    sums = torch.zeros(batch.duels * batch.replies, dtype=torch.float64, device=values_N.device)
    # on a GPU index_add sums in a different order each time, and the first-step margin would not be exactly 0
    return sums.index_put((batch.cell_N,), values_N.double(), accumulate=True).view(batch.duels, batch.replies)


@torch.no_grad()
def score_trees(
    scorer: Scorer, trees: Sequence[Branches], max_tokens: int, wrapped: nn.Module | None = None, needs_all_ranks: bool = False
) -> list[list[float]]:
    """Log-probs of each tree's replies, in the order of the trees, in micro-batches of at most `max_tokens`; ranks share the trees.

    wrapped: the module that wraps the scorer, if any; needs_all_ranks: every pass needs all ranks, so that some compute dummy trees.
    """
    mine, dummies = scorer.groups_of_rank(trees, max_tokens, needs_all_ranks)
    logps = [(wrapped or scorer)(scorer.collate([trees[index] for index in group])) for group in [*mine, *dummies]]
    # all passes are launched before the first result is read
    found = {index: row for group, rows in zip(mine, logps, strict=False) for index, row in zip(group, rows.tolist(), strict=True)}
    scored = {index: row for part in gathered(found) for index, row in part.items()}
    return [scored[index][: len(tree.replies)] for index, tree in enumerate(trees)]


def _filling(trees: Sequence[Branches], row_tokens: int) -> Iterator[Branches]:
    """All of the trees, the first one again, and then repetitions of them while they fit into a packed row of `row_tokens`."""
    tokens = 0
    for number, tree in enumerate(cycle(trees)):
        tokens += tree.tokens("tree")
        if number > len(trees) and tokens > row_tokens:
            return
        yield tree


def _finite_logps(model: PreTrainedModel, tree: Branches) -> Tensor:
    """Log-probs [N] of a tree's reply tokens by the model's own forward. Raises UserError if any is not finite."""
    logps_N = torch.cat(plain_token_logps(model, tree))
    if not logps_N.isfinite().all():
        raise UserError("the model's log-probs are not finite numbers", remedy="its weights are damaged, or its training diverged")
    return logps_N


def plain_logps(model: PreTrainedModel, tree: Branches) -> Tensor:
    """Log-probs [R] of each reply by the model's own unbatched forward, as a reference for tests."""
    return torch.stack([logps.double().sum() for logps in plain_token_logps(model, tree)])


@torch.no_grad()
def plain_token_logps(model: PreTrainedModel, tree: Branches) -> list[Tensor]:
    """Log-probs of each reply's tokens by an unbatched forward over prompt + reply and the model's own logits."""
    found = []
    for reply in tree.replies:
        ids = torch.tensor([[*tree.prompt_ids, *reply]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(tree.prompt_ids) - 1 : -1]
        found.append(logps_of(logits, ids[0, len(tree.prompt_ids) :]))
    return found
