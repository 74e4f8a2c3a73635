"""Memory: how many tokens are computed at once, and that it stays flat."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import types

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from zoo import COMMON

from sparring.policy.compute import KERNEL_CACHES, free_memory, in_float32, layer_sizes, make_accelerator, token_budget
from sparring.policy.footprint import Parallel
from sparring.policy.machine import fast_precision

pytestmark = pytest.mark.long


def model(parameters: int) -> types.SimpleNamespace:
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "vocab_size": 49152}
    config = transformers.LlamaConfig(**shape)
    return types.SimpleNamespace(config=config, num_parameters=lambda: parameters)


@pytest.mark.parametrize(
    ("gigabytes", "parameters", "device", "precision", "tokens"),
    [
        (24, 135_000_000, "cpu", "bf16", 1024),  # no more on a CPU
        (24, 135_000_000, "cpu", "fp32", 512),
        (24, 135_000_000, "cuda", "bf16", 8192),  # (0.8 * 24 - 2.43 - 0.40) GB / (1.244 + 0.553) MB are 9,109
        (24, 135_000_000, "cuda", "fp32", 8192),
        (4.6, 135_000_000, "cpu", "bf16", 256),  # 471
        (5.0, 135_000_000, "cpu", "bf16", 512),  # 649
        (1, 135_000_000, "cpu", "bf16", 256),  # less than the weights need: still something
    ],
)
def test_the_budget_by_hand(gigabytes: float, parameters: int, device: str, precision: str, tokens: int) -> None:
    assert token_budget(model(parameters), gigabytes * 1e9, device, False, Parallel(), precision) == tokens


@pytest.mark.parametrize(
    ("parallel", "adapter", "held"),
    [
        (Parallel(8, "ddp"), False, 18),
        (Parallel(8, "fsdp2"), False, 16 / 8),  # no copy in bfloat16 beside the float32 shards
        (Parallel(8, "fsdp2"), True, 4 / 8),
        (Parallel(8, "ddp"), True, 4),
    ],
    ids=lambda value: value.strategy if isinstance(value, Parallel) else None,
)
def test_what_a_rank_holds_is_what_the_strategy_leaves_it(parallel: Parallel, adapter: bool, held: float) -> None:
    """And where it cuts the weights, two layers and what is outside of the layers, put together in float32."""
    with torch.device("meta"):
        made = transformers.LlamaForCausalLM(model(0).config)
    weights, layer = made.num_parameters(), 4 * 576**2 + 3 * 576 * 1536 + 2 * 576
    together = 4 * (2 * layer + weights - 30 * layer) if parallel.is_sharded else 0
    assert layer_sizes(made) == (layer, weights - 30 * layer)
    # room for this many tokens and half as many again, by the numbers of the first test
    free = (held * weights + together + 0.40e9 + 1.5 * 2048 * (1.244e6 + 0.553e6)) / 0.8
    assert token_budget(made, free, "cuda", adapter, parallel, "bf16") == 2048
    assert token_budget(made, free - 3e9, "cuda", adapter, parallel, "bf16") < 2048
    assert token_budget(made, free + 1.2 * 2048 * 2e6, "cuda", adapter, parallel, "bf16") == 4096


def test_free_memory_is_some_of_the_machine() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


SHAPES = """
import ctypes, sys, torch
from sparring.policy.compute import bound_kernel_caches
class Heap(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]
library = ctypes.CDLL(None)
library.mallinfo2.restype = Heap
if sys.argv[1] == "flat":
    bound_kernel_caches()
a, b = torch.randn(2000, 256).bfloat16(), torch.randn(256, 256).bfloat16()
def used(lengths):
    for length in lengths:
        torch.mm(a[:length], b)
    return library.mallinfo2().field7
before = used(range(1, 201))
print(used(range(201, 501)) - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later to count")
@pytest.mark.skipif(fast_precision("cpu") != "bf16", reason="no fast bfloat16 products on this processor: oneDNN makes no kernels for them")
def test_kernels_of_new_shapes_do_not_pile_up() -> None:
    """300 more shapes. Without the limits each stays."""
    # a run's own threads: one alone keeps a fifth more
    environment = {name: value for name, value in os.environ.items() if name not in (*KERNEL_CACHES, "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    grown = {
        how: int(subprocess.run([sys.executable, "-c", SHAPES, how], env=environment, capture_output=True, check=True).stdout)
        for how in ("flat", "as it is")
    }
    assert grown["flat"] < 300 * 20_000
    assert grown["as it is"] > 300 * 100_000, "the limits have become needless"


def test_another_precision_in_the_process_is_no_hindrance() -> None:
    """A notebook may have trained with autocast before."""
    AcceleratorState._reset_state()
    assert Accelerator(mixed_precision="bf16").mixed_precision == "bf16"
    assert make_accelerator().mixed_precision == "no"


def test_in_float32_one_layer_at_a_time() -> None:
    """So that a model that just fits its device can be checked there. An error on the way leaves the weights as they were."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON)).bfloat16().eval()
    layers, seen = model.model.layers, []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append([next(each.parameters()).dtype for each in layers]))
    with torch.no_grad(), in_float32(model):
        assert model.lm_head.weight.dtype == torch.float32
        assert model(input_ids=torch.tensor([[3, 4, 5]])).logits.dtype == torch.float32
    wide, narrow = torch.float32, torch.bfloat16
    assert seen == [[wide, narrow], [narrow, wide]]
    layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), in_float32(model):
        model(input_ids=torch.tensor([[3, 4, 5]]))
    after = model.state_dict()
    assert all(after[name].dtype == narrow and torch.equal(after[name], tensor) for name, tensor in before.items())


def test_cudnn_attention_is_not_used() -> None:
    """It compiles for every shape that it has not seen, and packed rows have another one at every token."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    make_accelerator()
    assert not torch.backends.cuda.cudnn_sdp_enabled()
