"""A model for lm-evaluation-harness that scores with our own scorer and batches by tokens.

The harness's own transformers model does everything else: tokenisation, truncation, chat template, generation. The answers to one question
are branches of one tree here, so that a prompt of 25 shots is computed once and not for every answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparring.data.records import TokenIds
from sparring.errors import UserError
from sparring.policy.batches import Branches, micro_batches
from sparring.policy.score import Scorer
from sparring.progress import progress

Request = tuple[Any, list[int], list[int]]  # key in the cache, tokens of the context, tokens of the continuation
ScoredContinuation = tuple[float, bool]  # log-prob of the continuation, whether greedy decoding would give it
DEFAULT_NEW_TOKENS = 256  # the harness's default


class PackedLM(HFLM):  # type: ignore[misc]  # lm_eval is an extra, and Any where it is not installed
    """The harness's model whose log-probs come from `Scorer`, in micro-batches of `batch_tokens`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=1)
        self.batch_tokens = batch_tokens
        self._scorer = Scorer(model)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[ScoredContinuation]:
        """As in the harness, without its own progress bar by default."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[ScoredContinuation]:
        """The answers to all requests, in their order. Replaces the harness's batches of rows; every answer goes into its cache."""
        trees = self._trees(requests)
        layouts = [tree for tree, _ in trees]
        self._scorer.choose_layout(layouts, self.batch_tokens)
        shapes = [tree.shape(self._scorer.row_layout) for tree in layouts]
        answers: dict[int, ScoredContinuation] = {}
        with progress("benchmarks: answers scored", len(requests), "answers") as shown:
            for group in micro_batches(range(len(trees)), shapes.__getitem__, self.batch_tokens, self._scorer.row_layout):
                logps, greedy = self._scorer.with_greedy(self._scorer.collate([layouts[index] for index in group]))
                for tree, row, likeliest in zip(group, logps.tolist(), greedy.tolist(), strict=True):
                    for column, index in enumerate(trees[tree][1]):
                        answers[index] = row[column], likeliest[column]
                        self._keep(requests[index], answers[index])
                        shown.advance()
        return [answers[index] for index in range(len(requests))]

    def _keep(self, request: Request, answer: ScoredContinuation) -> None:
        if request[0] is not None:  # parts of a longer text are kept by the harness itself, as one
            self.cache_hook.add_partial("loglikelihood", request[0], answer)

    def _trees(self, requests: list[Request]) -> list[tuple[Branches, list[int]]]:
        """Requests with the same context as branches of one tree, with their places; a tree of several is no larger than a batch."""
        by_context: dict[TokenIds, list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            by_context.setdefault(self._cut(context, continuation), []).append(index)
        trees = []
        for prompt, indices in by_context.items():
            for part in micro_batches(indices, lambda index: (1, len(requests[index][2]) - 1), self.batch_tokens - len(prompt), "tree"):
                trees.append((Branches(prompt, tuple(tuple(requests[index][2]) for index in part)), part))
        return trees

    def _cut(self, context: list[int], continuation: list[int]) -> TokenIds:
        """The context as far as it fits, cut from the left as the harness cuts it. The last token of a continuation is never fed."""
        if not continuation:
            raise UserError("the harness requests the probability of an empty answer", remedy="fix the task's choices")
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            what = f"an answer of {len(continuation)} tokens does not fit the model's context of {self.max_length}"
            raise UserError(what, remedy="leave this task out")
        return tuple(context[-room:])

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The harness's own generation, in batches with as many rows as fit into `batch_tokens`."""
        self._scorer.layout = "rows"  # the model's own attention
        replies: dict[int, str] = {}
        with progress("benchmarks: replies", len(requests), "replies") as shown:
            for group in self._groups(requests):
                self.batch_size_per_gpu = len(group)
                found = super().generate_until([requests[index] for index in group], disable_tqdm=disable_tqdm)
                replies |= zip(group, found, strict=True)
                shown.advance(len(group))
        return [replies[index] for index in range(len(requests))]

    def _groups(self, requests: list[Instance]) -> Iterator[list[int]]:
        """Requests of similar length with equal settings: rows times the longest context with new tokens is at most `batch_tokens`."""
        lengths = [len(self.tok_encode(request.args[0])) + self._new_tokens(request) for request in requests]
        settings: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            settings.setdefault(repr(request.args[1]), []).append(index)
        for indices in settings.values():
            yield from micro_batches(indices, lambda index: (1, lengths[index]), self.batch_tokens, "rows")

    def _new_tokens(self, request: Instance) -> int:
        new = int(request.args[1].get("max_gen_toks", DEFAULT_NEW_TOKENS))
        if new >= self.max_length:
            what = f"the task {request.task_name} requests {new} new tokens, but the model's context has {self.max_length}"
            raise UserError(what, remedy="leave this task out, or use a model with a longer context")
        return new
