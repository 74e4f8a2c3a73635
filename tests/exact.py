"""A tiny model whose distribution of replies is known exactly, and the chi-square test against it: for every sampling engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
import transformers
from scipy.stats import chisquare

from sparring.opponent.protocol import Prompt

VOCABULARY, STOP = 12, 11
LONG, SHORT = (1, 2, 3, 4, 5, 6, 7), (8, 9)
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.5}


def tiny(seed: int = 0, vocabulary: int = VOCABULARY, sharpness: float = 0.5, **more: int) -> transformers.PreTrainedModel:
    """A random model whose next-token distributions are far from uniform: a likeliest token of 0.29 or 0.43, a least likely of 0.01."""
    torch.manual_seed(seed)
    ids = {"bos_token_id": None, "eos_token_id": STOP, "pad_token_id": 0}
    config = transformers.LlamaConfig(vocab_size=vocabulary, intermediate_size=24, num_key_value_heads=1, **SHAPE, **ids, **more)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


def same_prompt(ids: tuple[int, ...], count: int) -> list[Prompt]:
    return [Prompt(f"{ids}-{index}", 0, ids) for index in range(count)]


def next_token(model: transformers.PreTrainedModel, ids: tuple[int, ...], temperature: float = 1.0, top_p: float = 1.0) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy() / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    likeliest_first = np.argsort(-p)
    count = int(np.searchsorted(np.cumsum(p[likeliest_first]), top_p)) + 1  # the smallest set that holds top_p
    nucleus = np.isin(np.arange(len(p)), likeliest_first[:count])
    return np.where(nucleus, p, 0) / p[nucleus].sum()


def sequences(model: transformers.PreTrainedModel, ids: tuple[int, ...], **shape: float) -> dict[tuple[int, ...], float]:
    """Probability of every reply of at most two tokens."""
    first = next_token(model, ids, **shape)
    found = {(STOP,): float(first[STOP])}
    for token in range(VOCABULARY):
        if token != STOP and first[token] > 0:
            second = next_token(model, (*ids, token), **shape)
            found |= {(token, other): float(first[token] * second[other]) for other in range(VOCABULARY) if second[other] > 0}
    return {reply: p for reply, p in found.items() if p > 0}


def p_value(replies: list[tuple[int, ...]], expected: Mapping[tuple[int, ...], float]) -> float:
    """Chi-square of the frequencies; outcomes expected fewer than ten times are taken together."""
    counts = Counter(replies)
    if not set(counts) <= set(expected):
        return 0.0
    common = [reply for reply, p in expected.items() if p * len(replies) >= 10]
    observed = [counts[reply] for reply in common]
    wanted = [expected[reply] * len(replies) for reply in common]
    if len(replies) - sum(wanted) > 1e-6:
        observed.append(len(replies) - sum(observed))
        wanted.append(len(replies) - sum(wanted))
    return float(chisquare(observed, wanted).pvalue)
