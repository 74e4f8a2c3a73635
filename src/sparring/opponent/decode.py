"""Continuous batching: a finished row makes room for the next, nothing is padded, a prompt is computed once.

Every active row has a slot of the key-value cache and is at its own position. One forward takes the newest token of every row and the
prompts of the rows that just came in, as one packed row. Dimensions in names: S slots, A active rows, T tokens of the packed row, H
query heads, G heads of keys and values, D size of a head, C cached positions, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparring.console import log
from sparring.data.records import TokenIds
from sparring.errors import UserError
from sparring.policy.compute import in_float32, tensor_on, to_device
from sparring.policy.footprint import PREFILL_TOKENS
from sparring.policy.head import logits_of, logps_of
from sparring.policy.packed import FOREIGN_ERRORS, Attention, is_out_of_memory, kind_of, no_mask, packed
from sparring.policy.tree_attention import Block, TreeIndex, by_groups

NOT_SAMPLED = -1  # no token
# Largest distance (see _gap) of correct packed rows: rounding is below 1e-4, the mildest wrong mask far above.
AGREEMENT = 1e-3


@dataclass
class DecodedRow:
    """A reply being sampled: `number` is the caller's index, `uniforms` has one number for every possible token."""

    number: int
    prompt_ids: TokenIds
    uniforms: np.ndarray
    token_ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # of the tokens, if requested


class Cache:
    """Keys and values [S, G, C, D] of every layer, allocated on the layer's first write."""

    def __init__(self, slots: int, positions: int) -> None:
        self.slots, self.positions = slots, positions
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def of_layer(self, layer: int, like_TGD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [S, G, C, D]; allocated like `like_TGD` on the first call."""
        if layer not in self._layers:
            shape = (self.slots, like_TGD.shape[1], self.positions, like_TGD.shape[2])
            # zeros, since unwritten entries are multiplied by a weight of 0, which NaN would survive
            self._layers[layer] = (like_TGD.new_zeros(shape), like_TGD.new_zeros(shape))
        return self._layers[layer]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first `positions` of one slot to another, in all layers."""
        for states in self._layers.values():
            for tensor in states:
                tensor[target, :, :positions] = tensor[source, :, :positions]


@dataclass(frozen=True)
class NewPrompt:
    """A prompt in the packed row, its tokens from place `start` on, and the slots whose rows start with it."""

    token_ids: TokenIds
    start: int
    slots: Sequence[int]


class DecodeStep:
    """The packed row of one forward: the newest tokens of the rows in slots 0 to A - 1, then whole prompts."""

    def __init__(self, cache: Cache, positions: Sequence[int], prompts: Sequence[NewPrompt], device: torch.device) -> None:
        """positions: of the newest tokens, on the CPU, so that nothing has to be read back from the device."""
        self.cache, self.prompts, self.rows = cache, prompts, len(positions)
        self.position_A = tensor_on(device, positions, dtype=torch.long)
        self.positions = max(positions, default=-1) + 1
        self._bias: dict[int | None, Tensor] = {}
        self._index = self._prompts_index() if prompts else None

    def attend(self, module: nn.Module, asked: Attention) -> Tensor:
        """[1, T, H, D]. Also writes the keys and values of all tokens to the cache."""
        key_SGCD, value_SGCD = self.cache.of_layer(cast(int, module.layer_idx), asked.key_TGD)
        out = []
        if self.rows:
            old = asked.part(slice(self.rows))
            place = torch.arange(self.rows, device=self.position_A.device)
            key_SGCD[place, :, self.position_A] = old.key_TGD
            value_SGCD[place, :, self.position_A] = old.value_TGD
            keys, values = (states[: self.rows, :, : self.positions] for states in (key_SGCD, value_SGCD))
            mask = self._mask(old.window, old.query_THD.dtype)
            out.append(_attend_to_cache(old.query_THD, keys, values, mask, old.scaling, old.softcap))
        if self._index is not None:
            out.append(by_groups(self._index, asked.part(slice(self.rows, None)))[0])
            for prompt in self.prompts:
                new = asked.part(slice(prompt.start, prompt.start + len(prompt.token_ids)))
                for slot in prompt.slots:
                    key_SGCD[slot, :, : len(prompt.token_ids)] = new.key_TGD.transpose(0, 1)
                    value_SGCD[slot, :, : len(prompt.token_ids)] = new.value_TGD.transpose(0, 1)
        return torch.cat(out)[None]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[A, 1, 1, C], 0 at the positions that a row sees, minus infinity elsewhere."""
        if window not in self._bias:
            key_C = torch.arange(self.positions, device=self.position_A.device)
            seen_AC = key_C <= self.position_A[:, None]
            if window is not None:
                seen_AC &= key_C > self.position_A[:, None] - window
            bias = torch.zeros(seen_AC.shape, dtype=dtype, device=key_C.device).masked_fill(~seen_AC, -torch.inf)
            self._bias[window] = bias[:, None, None]
        return self._bias[window]

    def _prompts_index(self) -> TreeIndex:
        lengths = torch.tensor([len(prompt.token_ids) for prompt in self.prompts])
        starts = lengths.cumsum(0) - lengths
        blocks = [Block(range(start, start + length), length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
        tree_T = torch.arange(len(lengths)).repeat_interleave(lengths)
        position_T = torch.cat([torch.arange(length) for length in lengths.tolist()])
        return TreeIndex(blocks, tree_T, torch.zeros_like(tree_T), position_T).to(self.position_A.device)


def _attend_to_cache(
    query_AHD: Tensor, key_AGCD: Tensor, value_AGCD: Tensor, bias: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    """[A, H, D]; the heads of a group share their keys without a copy, as if they were that many queries at one position."""
    rows, heads, size = query_AHD.shape
    query = query_AHD.view(rows, key_AGCD.shape[1], -1, size)
    if softcap is None:  # half the time of the plain products on a CPU
        mask = bias.expand(rows, 1, query.shape[2], key_AGCD.shape[2])
        found = nn.functional.scaled_dot_product_attention(query, key_AGCD, value_AGCD, attn_mask=mask, scale=scaling)
        return found.reshape(rows, heads, size)
    scores = torch.tanh(query * scaling @ key_AGCD.transpose(2, 3) / softcap) * softcap
    return ((scores + bias).softmax(-1) @ value_AGCD).reshape(rows, heads, size)


_agreed: dict[str, tuple[int, bool]] = {}


def packed_rows_agree(model: PreTrainedModel, prompts: Sequence[TokenIds]) -> bool:
    """Whether the model's code supports packed rows; `model` has the packed attention. `prompts` should contain the longest, which shows
    a sliding window. The result is cached per process and kind of model, and checked again for longer prompts."""
    longest = max(map(len, prompts))
    known, agrees = _agreed.get(kind_of(model), (0, False))
    if longest > known:
        agrees = _gap(model, prompts) <= AGREEMENT  # False for NaN
        _agreed[kind_of(model)] = (longest, agrees)
    return agrees


def packed_rows_disagree(model: PreTrainedModel) -> bool:
    """Whether this process has found that models of this kind do not support packed rows."""
    return not _agreed.get(kind_of(model), (0, True))[1]


def _gap(model: PreTrainedModel, prompts: Sequence[TokenIds]) -> float:
    """Largest distance between next-token distributions after a prompt, and after one token more from the cache, of packed rows and of
    the model's own unbatched forward: the mean difference of log-probs. In float32, since bfloat16 alone has a noise of 0.05 here."""
    decoder = Decoder(model, (), 1, lambda logits, _: logits.argmax(-1))
    rows = [DecodedRow(number, prompt_ids, np.zeros(1)) for number, prompt_ids in enumerate(prompts)]
    cache = Cache(len(rows), max(len(row.prompt_ids) for row in rows) + 1)
    try:
        with torch.inference_mode(), in_float32(model):
            found = [decoder.logits([], decoder.admit(deque(rows), [], len(rows), sum(map(len, prompts))), cache)]
            for row, token in zip(rows, found[0].argmax(-1).tolist(), strict=True):
                row.token_ids.append(token)
            found.append(decoder.logits(rows, [], cache))
            distances = [_distance(model, row, fed, logits[i]) for fed, logits in enumerate(found) for i, row in enumerate(rows)]
            return float(np.max(distances))  # NaN if one of them is NaN
    except FOREIGN_ERRORS as error:
        if is_out_of_memory(error):
            log.warning("sampling: not enough memory to check packed rows in float32")
        return float("inf")


def _distance(model: PreTrainedModel, row: DecodedRow, fed: int, logits_V: Tensor) -> float:
    ids = torch.tensor([[*row.prompt_ids, *row.token_ids[:fed]]], device=model.device)
    expected_V = model(input_ids=ids, use_cache=False).logits[0, -1].float().log_softmax(-1)
    return float((expected_V.exp() * (logits_V.float().log_softmax(-1) - expected_V).abs()).sum())


def require_sampled(tokens: Sequence[int]) -> list[int]:
    """The tokens. Raises UserError if one could not be sampled because its logits were NaN."""
    if NOT_SAMPLED in tokens:
        remedy = "check its weights and config.json; for a float16 model set model.dtype: bfloat16; for a trained player lower train.lr"
        raise UserError("the model's logits of the next token are not finite (NaN), so no token can be sampled", remedy=remedy)
    return list(tokens)


class Decoder:
    """Samples rows with a model whose attention was set by `use_packed_attention`."""

    def __init__(
        self,
        model: PreTrainedModel,
        stop_ids: Iterable[int],
        max_new_tokens: int,
        draw: Callable[[Tensor, Tensor], Tensor],
        logps: bool = False,
    ) -> None:
        """`draw` samples tokens [A] from logits [A, V] and uniforms [A, 1]. logps: keep the tokens' log-probs too."""
        self.model, self.stop_ids, self.max_new_tokens, self.draw = model, frozenset(stop_ids), max_new_tokens, draw
        self.logps = logps

    @torch.inference_mode()
    def run(self, rows: Sequence[DecodedRow], slots: int) -> Iterator[DecodedRow]:
        """Yield every row when it is finished. At most `slots` rows are active at once; they start in the given order."""
        waiting, active = deque(rows), list[DecodedRow]()
        cache = Cache(min(slots, len(rows)), max(len(row.prompt_ids) for row in rows) + self.max_new_tokens)
        while waiting or active:
            prompts = self.admit(waiting, active, cache.slots, PREFILL_TOKENS)
            self._step(active, prompts, cache)
            for slot in reversed(range(len(active))):
                row = active[slot]
                if row.token_ids[-1] in self.stop_ids or len(row.token_ids) == self.max_new_tokens:
                    yield row
                    self._leave(active, slot, cache)

    @staticmethod
    def admit(waiting: deque[DecodedRow], active: list[DecodedRow], slots: int, max_tokens: int) -> list[NewPrompt]:
        """Move waiting rows into free slots; equal prompts next to each other are computed once."""
        found: list[tuple[TokenIds, list[int]]] = []
        tokens, first = 0, len(active)
        while waiting and len(active) < slots:
            prompt_ids = waiting[0].prompt_ids
            if not found or found[-1][0] != prompt_ids:
                if found and tokens + len(prompt_ids) > max_tokens:
                    break
                found.append((prompt_ids, []))
                tokens += len(prompt_ids)
            found[-1][1].append(len(active))
            active.append(waiting.popleft())
        starts = np.cumsum([first, *(len(prompt_ids) for prompt_ids, _ in found)])
        return [NewPrompt(prompt_ids, int(start), taken) for (prompt_ids, taken), start in zip(found, starts, strict=False)]

    def _step(self, active: list[DecodedRow], prompts: Sequence[NewPrompt], cache: Cache) -> None:
        """One more token for every active row."""
        old = active[: len(active) - sum(len(prompt.slots) for prompt in prompts)]
        logits = self.logits(old, prompts, cache)
        uniforms = np.array([row.uniforms[len(row.token_ids)] for row in active])[:, None]
        tokens = self.draw(logits, to_device(torch.from_numpy(uniforms), logits.device))
        for row, token in zip(active, require_sampled(tokens.tolist()), strict=True):
            row.token_ids.append(token)
        if self.logps:
            for row, logp in zip(active, logps_of(logits, tokens).tolist(), strict=True):
                row.logps.append(logp)

    def logits(self, old: Sequence[DecodedRow], prompts: Sequence[NewPrompt], cache: Cache) -> Tensor:
        """[A, V] after the newest token of the rows `old` and after the new prompts, once for each of their rows."""
        device = self.model.device
        positions = [len(row.prompt_ids) + len(row.token_ids) - 1 for row in old]
        ids = [row.token_ids[-1] for row in old] + [token for prompt in prompts for token in prompt.token_ids]
        all_positions = positions + [place for prompt in prompts for place in range(len(prompt.token_ids))]
        input_ids = tensor_on(device, [ids])
        last = [prompt.start + len(prompt.token_ids) - 1 for prompt in prompts for _ in prompt.slots]
        step = DecodeStep(cache, positions, prompts, device)
        with packed(step):
            hidden_TH = self.model.base_model(
                input_ids=input_ids,
                position_ids=tensor_on(device, [all_positions]),
                attention_mask=no_mask(input_ids),
                use_cache=False,
            ).last_hidden_state[0]
        return logits_of(self.model, hidden_TH[tensor_on(device, [*range(len(old)), *last])])

    @staticmethod
    def _leave(active: list[DecodedRow], slot: int, cache: Cache) -> None:
        """Free a slot by moving the last row into it."""
        last = active.pop()
        if slot < len(active):
            cache.move(len(active), slot, len(last.prompt_ids) + len(last.token_ids) - 1)
            active[slot] = last
