"""The transformers engine: the model's own code, with every token sampled by inverse CDF from the random stream of its row."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from sparring.config import SamplingSection
from sparring.console import log
from sparring.data.records import Reply
from sparring.opponent.decode import NOT_SAMPLED, DecodedRow, Decoder, packed_rows_agree, packed_rows_disagree, require_sampled
from sparring.opponent.protocol import Engine, Prompt, Stream, make_reply
from sparring.policy.head import logps_of, rows_at_once
from sparring.policy.packed import use_packed_attention

CDF_BLOCK = 256


def draw_by_inverse_cdf(scores_BV: Tensor, uniform_B1: Tensor) -> Tensor:
    """Tokens [B]: the position where the cumulative distribution passes the row's uniform.

    One uniform per token and row, instead of torch's one exponential per vocabulary entry from a generator that all rows share. Sums
    are in float64, in which they keep a large vocabulary's tail: first of blocks, then within the block that holds the token.
    NOT_SAMPLED if the scores are NaN; raising here would wait for the device (see `require_sampled`).
    """
    shares = torch.nn.functional.pad(scores_BV.float().softmax(-1), (0, -scores_BV.shape[-1] % CDF_BLOCK)).unflatten(-1, (-1, CDF_BLOCK))
    cumulative = shares.sum(-1, dtype=torch.float64).cumsum(-1)
    total = cumulative[:, -1:]
    threshold = torch.minimum(uniform_B1 * total, torch.nextafter(total, torch.zeros_like(total)))
    block = torch.searchsorted(cumulative, threshold, right=True).clamp(max=cumulative.shape[1] - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = shares[torch.arange(len(shares), device=shares.device), block[:, 0]]
    token = torch.searchsorted(before + inside.double().cumsum(-1), threshold, right=True)
    last_possible = CDF_BLOCK - 1 - (inside > 0).flip(-1).int().argmax(-1, keepdim=True)  # rounding must not select a token after it
    return torch.where(total.isfinite(), block * CDF_BLOCK + torch.minimum(token, last_possible), NOT_SAMPLED)[:, 0]


class InverseCdf(LogitsProcessor):
    """Leaves one finite logit, that of the sampled token, so that `generate` samples from our random streams."""

    def __init__(self, uniforms_BT: Tensor, prompt_length: int) -> None:
        self.uniforms_BT, self.prompt_length = uniforms_BT, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        token = draw_by_inverse_cdf(scores, self.uniforms_BT[:, step : step + 1])
        require_sampled(token.tolist())
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


class TransformersEngine(Engine):
    """Samples with a loaded model: by continuous batching (decode.py) if its code supports that, else padded batches of `generate`."""

    def __init__(self, model: PreTrainedModel, sampling: SamplingSection, stop_ids: Collection[int]) -> None:
        self.model, self.sampling, self.stop_ids = model, sampling, sorted(stop_ids)
        self._own_attention = model.config._attn_implementation
        self._takes_packed_rows: bool | None = None  # not known yet
        # a new one: the model's own may have penalties or a top-k, which would change the distribution silently
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.stop_ids[0],
        )

    @property
    def reads_prompts_again(self) -> bool:
        """Whether every reply computes its prompt again, as far as known; the same at every temperature."""
        return packed_rows_disagree(self.model)

    @contextlib.contextmanager
    def model_with_own_attention(self) -> Iterator[PreTrainedModel]:
        """The model with its own attention, for other uses than sampling."""
        ours = self.model.config._attn_implementation
        self.model.set_attn_implementation(self._own_attention)
        try:
            yield self.model
        finally:
            self.model.set_attn_implementation(ours)

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        """One reply per prompt, in the order of the prompts."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].token_ids), prompts[i].row_id, prompts[i].replica))
        if not order:
            return []
        self._choose_method([prompts[i].token_ids for i in (order[-1], order[0])])
        sample = self._decode if self._takes_packed_rows else self._generate
        found = sample(order, prompts, stream, logps)
        return [found[index] for index in range(len(prompts))]

    def _choose_method(self, probes: Sequence[tuple[int, ...]]) -> None:
        if self._takes_packed_rows is False:
            return
        if self._takes_packed_rows is None:
            use_packed_attention(self.model, self._own_attention)
        self._takes_packed_rows = packed_rows_agree(self.model, probes)
        if not self._takes_packed_rows:
            self.model.set_attn_implementation(self._own_attention)
            log.info("sampling: this model does not support packed rows; its replies are sampled in padded batches, which is slower")

    def _decode(self, order: Sequence[int], prompts: Sequence[Prompt], stream: Stream, logps: bool) -> dict[int, Reply]:
        limit = self.sampling.max_new_tokens
        rows = [DecodedRow(index, prompts[index].token_ids, stream.uniforms(prompts[index], limit)) for index in order]
        slots = max(1, self.sampling.batch_tokens // (len(rows[-1].prompt_ids) + limit))
        decoder = Decoder(self.model, self.stop_ids, limit, self._draw, logps)
        finished = decoder.run(rows, slots)
        return {row.number: make_reply(prompts[row.number], row.token_ids, self.stop_ids, row.logps or None) for row in finished}

    def _draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        if self.sampling.temperature == 0:
            return logits.argmax(-1)
        found = []
        for part, uniform in zip(*(each.split(rows_at_once(logits)) for each in (logits, uniforms)), strict=True):
            for warper in self._warpers():
                part = warper(None, part)
            found.append(draw_by_inverse_cdf(part, uniform))
        return torch.cat(found)

    def _generate(self, order: list[int], prompts: Sequence[Prompt], stream: Stream, logps: bool) -> dict[int, Reply]:
        batches: list[list[int]] = [[]]
        for index in order:  # rising lengths: the newest row is the longest of its batch
            row_tokens = len(prompts[index].token_ids) + self.sampling.max_new_tokens
            if batches[-1] and row_tokens * (len(batches[-1]) + 1) > self.sampling.batch_tokens:
                batches.append([])
            batches[-1].append(index)
        found: dict[int, Reply] = {}
        for batch in batches:
            found.update(zip(batch, self._sample_batch([prompts[i] for i in batch], stream, logps), strict=True))
        return found

    @torch.inference_mode()
    def _sample_batch(self, prompts: Sequence[Prompt], stream: Stream, logps: bool) -> list[Reply]:
        length = max(len(prompt.token_ids) for prompt in prompts)
        device = self.model.device
        # left padding: every row's next token is in the last column
        ids = torch.tensor([[self.stop_ids[0]] * (length - len(p.token_ids)) + list(p.token_ids) for p in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts], device=device)
        processors = self._processors(prompts, stream, length)
        generate: Any = self.model.generate  # every causal language model has it, but PreTrainedModel does not declare it
        out = generate(input_ids=ids, attention_mask=mask, logits_processor=processors, return_dict_in_generate=True, output_logits=logps)
        rows = out.sequences[:, length:]
        found: list[list[float] | None] = [None] * len(prompts)
        if logps:
            found = torch.stack([logps_of(raw, tokens) for raw, tokens in zip(out.logits, rows.T, strict=True)], 1).tolist()
        return [make_reply(prompt, row, self.stop_ids, own) for prompt, row, own in zip(prompts, rows.tolist(), found, strict=True)]

    def _processors(self, prompts: Sequence[Prompt], stream: Stream, length: int) -> LogitsProcessorList:
        if self.sampling.temperature == 0:
            return LogitsProcessorList()
        uniforms = np.stack([stream.uniforms(prompt, self.sampling.max_new_tokens) for prompt in prompts])
        return LogitsProcessorList([*self._warpers(), InverseCdf(torch.from_numpy(uniforms).to(self.model.device), length)])

    def _warpers(self) -> list[LogitsProcessor]:
        warpers: list[LogitsProcessor] = []
        if self.sampling.temperature != 1:
            warpers.append(TemperatureLogitsWarper(self.sampling.temperature))
        if self.sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(self.sampling.top_p))
        return warpers
