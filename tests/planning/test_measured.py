"""The plan's memory against what a process of this machine takes at its peak. Two stages, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from sparring.config import load_recipe
from sparring.planning import memory
from sparring.planning.hardware import GB, Hardware
from sparring.planning.lengths import Lengths
from sparring.planning.parallel import Parallel, Samplers
from sparring.planning.shape import measure
from sparring.policy.tiny import make_tiny

TOLERANCE = 0.15
# SmolLM2-135M with a third of its layers
SHAPE = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 10,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
ROWS, NEW = 24, 24
PROMPT, REPLY = (50, 150), (60, 180)  # tokens, as varied as real ones are: every shape has kernels of its own
CPU = Hardware("cpu", "cpu", 1e12, 1e10, 24 * GB, "by hand")

TRAIN = """
from sparring.training.fit import fit
from sparring.training.plan import make_plan
from sparring.training.tasks import SpinTask
duels = [Duel(str(n), 0, ids(n, PROMPT), ids(n + 100, REPLY), (ids(n + 200, REPLY),)) for n in range(ROWS)]
plan = make_plan(recipe.train, ROWS, lr=1e-6, epochs=1, seed=0, name="x")
task = SpinTask(duels, {duel.duel_id: [0.0, 0.0] for duel in duels}, 1.0, "logistic")
fit(folder / "stage", folder, task, plan, recipe.train, phase="x", labels={})
"""
SAMPLE = """
from sparring.opponent.engines import load_sampler
from sparring.opponent.hf import TransformersEngine
from sparring.opponent.protocol import Prompt, Stream
engine = TransformersEngine(load_sampler(recipe, folder), recipe.sampling, [2])
engine.sample([Prompt(str(n), 0, ids(n, PROMPT)) for n in range(ROWS)], Stream(0, 0))
"""
PROCESS = """
import json, random, re, sys
from pathlib import Path
import sparring.one_stage  # as a run does
from sparring.config import load_recipe
from sparring.data.records import Duel
folder, values = Path(sys.argv[1]), json.loads(sys.argv[2])
recipe, ROWS, PROMPT, REPLY = load_recipe(values["recipe"]), *values["lengths"]
(folder / "stage").mkdir(exist_ok=True)
def ids(seed, count):
    draw = random.Random(seed)
    return tuple(draw.choices(range(3, 40_000), k=draw.randint(*count)))
{work}
# not getrusage's maximum: a process begins with that of the one that started it
print("PEAK", int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, with random weights."""
    folder = tmp_path_factory.mktemp("model")
    make_tiny(folder, 0)  # for the tokenizer
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).save_pretrained(folder)
    return folder


def values(folder: Path) -> dict:
    return {
        "run_dir": "run",
        "model": {"path": str(folder)},
        "data": {"path": "none.jsonl"},
        "train": {"batch_size": 6, "micro_batch_tokens": 1024},
        "sampling": {"max_new_tokens": NEW},
    }


def peak_of(work: str, folder: Path) -> int:
    """Bytes that a fresh process has held at most while it did `work`."""
    told = json.dumps({"recipe": values(folder), "lengths": [ROWS, PROMPT, REPLY]})
    code = PROCESS.replace("{work}", work)
    done = subprocess.run([sys.executable, "-c", code, str(folder), told], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("PEAK ")[2])


def planned(folder: Path, stage: str) -> memory.Memory:
    recipe = load_recipe(values(folder))
    shape = measure("mine", "a test", transformers.LlamaConfig(**SHAPE))
    prompt, reply = sum(PROMPT) / 2, sum(REPLY) / 2
    lengths = Lengths(ROWS, 1, prompt, reply, reply, PROMPT[1], REPLY[1], REPLY[1], "a test")
    if stage == "train":
        return memory.training(shape, recipe.train, lengths, 2, 1024, "cpu", Parallel())
    return memory.sampling(shape, recipe, lengths, ROWS, 1, CPU, Samplers())


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries' own memory is that of Linux")
@pytest.mark.parametrize(("stage", "work"), [("train", TRAIN), ("sample", SAMPLE)])
def test_the_peak_of_a_stage_is_what_the_plan_says(stage: str, work: str, folder: Path) -> None:
    found = planned(folder, stage)
    assert memory.PROCESS["cpu"] < 0.5 * found.total, "it is the model that is measured here, not the libraries"
    assert peak_of(work, folder) == pytest.approx(found.total, rel=TOLERANCE)
