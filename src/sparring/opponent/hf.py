"""The transformers engine: `generate`, with every token drawn by inverse CDF from its row's own random stream."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
from sparring.data.records import Reply
from sparring.opponent.protocol import Prompt, Stream


class InverseCdf(LogitsProcessor):
    """Leaves one finite logit: the token at which the cumulative distribution passes the row's uniform.

    One uniform per token and row, instead of torch's one exponential per vocabulary entry from a generator that all rows share.
    """

    def __init__(self, uniforms_BT: Tensor, prompt_length: int) -> None:
        self.uniforms_BT, self.prompt_length = uniforms_BT, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_length
        # float64: in float32 the sum over a large vocabulary would lose the tail
        cumulative = scores.float().softmax(-1).double().cumsum(-1)
        threshold = self.uniforms_BT[:, step : step + 1] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, threshold, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class TransformersEngine:
    """Samples with a loaded model. Rows are sorted by length and batched under a token budget."""

    def __init__(self, model: PreTrainedModel, sampling: SamplingSection, stop_ids: Collection[int]) -> None:
        self.model, self.sampling, self.stop_ids = model, sampling, sorted(stop_ids)
        # a fresh one: the model's own may carry penalties or a top-k, and they would change the distribution silently
        model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.stop_ids[0],
        )

    def sample(self, prompts: Sequence[Prompt], stream: Stream) -> list[Reply]:
        """One reply per prompt, in the order of the prompts."""
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].token_ids), prompts[i].row_id, prompts[i].replica))
        replies: dict[int, Reply] = {}
        for batch in self._batches(order, prompts):
            for index, reply in zip(batch, self._sample_batch([prompts[i] for i in batch], stream), strict=True):
                replies[index] = reply
        return [replies[index] for index in range(len(prompts))]

    def _batches(self, order: list[int], prompts: Sequence[Prompt]) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for index in order:  # rising lengths: the newest row is the longest of its batch
            row_tokens = len(prompts[index].token_ids) + self.sampling.max_new_tokens
            if batches[-1] and row_tokens * (len(batches[-1]) + 1) > self.sampling.batch_tokens:
                batches.append([])
            batches[-1].append(index)
        return [batch for batch in batches if batch]

    @torch.inference_mode()
    def _sample_batch(self, prompts: Sequence[Prompt], stream: Stream) -> list[Reply]:
        length = max(len(prompt.token_ids) for prompt in prompts)
        device = self.model.device
        # left padding: every row's next token stands in the last column
        ids = torch.tensor([[self.stop_ids[0]] * (length - len(p.token_ids)) + list(p.token_ids) for p in prompts], device=device)
        mask = torch.tensor([[0] * (length - len(p.token_ids)) + [1] * len(p.token_ids) for p in prompts], device=device)
        out = self.model.generate(input_ids=ids, attention_mask=mask, logits_processor=self._processors(prompts, stream, length))
        return [self._reply(prompt, row) for prompt, row in zip(prompts, out[:, length:].tolist(), strict=True)]

    def _processors(self, prompts: Sequence[Prompt], stream: Stream, length: int) -> LogitsProcessorList:
        processors = LogitsProcessorList()
        if self.sampling.temperature == 0:
            return processors
        if self.sampling.temperature != 1:
            processors.append(TemperatureLogitsWarper(self.sampling.temperature))
        if self.sampling.top_p < 1:
            processors.append(TopPLogitsWarper(self.sampling.top_p))
        uniforms = np.stack([stream.uniforms(prompt, self.sampling.max_new_tokens) for prompt in prompts])
        processors.append(InverseCdf(torch.from_numpy(uniforms).to(self.model.device), length))
        return processors

    def _reply(self, prompt: Prompt, row: list[int]) -> Reply:
        end = next((position for position, token in enumerate(row) if token in self.stop_ids), None)
        if end is None:
            return Reply(prompt.row_id, prompt.replica, tuple(row), "length")
        return Reply(prompt.row_id, prompt.replica, tuple(row[: end + 1]), "stop")
