"""Attention of one SmolLM2 layer over paths of several lengths on a CPU, forward and backward: plain products compared with torch's own.

    python benchmarks/attention_speed.py [runs=9]

9 heads, 3 of keys and values, 64 wide, bfloat16, 2,048 positions in all; plain products once with their scores kept for the backward pass
and once with them recomputed. Prints milliseconds, median and spread, and writes benchmarks/results/attention_speed.json.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from common import options_of, print_origin, save
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparring.policy import tree_attention
from sparring.policy.compute import bound_kernel_caches
from sparring.policy.packed import Attention
from sparring.policy.tree_attention import Block, TreeIndex

POSITIONS = 2048


def plain(paths: int, kept: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    length = POSITIONS // paths
    blocks = [Block(range(start, start + length), length) for start in range(0, POSITIONS, length)]
    place = torch.arange(POSITIONS)
    index = TreeIndex(blocks, place // length, torch.zeros_like(place), place % length)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tree_attention.KEPT_SCORES = POSITIONS if kept else 0
        return index.attend(torch.nn.Identity(), Attention(query, key, value, 0.125, None, None))

    return attend


def fused(paths: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def attend(*states: Tensor) -> Tensor:
        rows = (state.view(paths, POSITIONS // paths, -1, 64).transpose(1, 2) for state in states)
        found = scaled_dot_product_attention(*rows, is_causal=True, scale=0.125, enable_gqa=True)
        return found.transpose(1, 2).reshape(1, POSITIONS, 9, 64)

    return attend


def milliseconds(attend: Callable[[Tensor, Tensor, Tensor], Tensor], runs: int) -> list[float]:
    torch.manual_seed(0)
    states = [torch.randn(POSITIONS, heads, 64, dtype=torch.bfloat16, requires_grad=True) for heads in (9, 3, 3)]
    gradient = torch.randn(1, POSITIONS, 9, 64, dtype=torch.bfloat16)
    found = []
    for _ in range(runs + 2):
        began = time.perf_counter()
        torch.autograd.grad(attend(*states), states, gradient)
        found.append(1e3 * (time.perf_counter() - began))
    return found[2:]


def main(runs: int) -> None:
    bound_kernel_caches()
    results = {}
    print_origin()
    print("| paths | plain, scores kept | plain, recomputed | torch's own |\n|---|---|---|---|")
    for paths in (16, 8, 4, 2, 1):
        ways = {"kept": plain(paths, True), "again": plain(paths, False), "fused": fused(paths)}
        results[f"{paths} x {POSITIONS // paths}"] = found = {name: milliseconds(way, runs) for name, way in ways.items()}
        cells = (f"{statistics.median(ms):.0f} ({min(ms):.0f} to {max(ms):.0f})" for ms in found.values())
        print(f"| {paths} x {POSITIONS // paths} | " + " | ".join(cells) + " |")
    save("attention_speed", {"runs": runs, "milliseconds": results})


if __name__ == "__main__":
    main(int(options_of({"runs": "9"}, sys.argv[1:])["runs"]))
