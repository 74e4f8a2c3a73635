"""The plan's memory against what a process of this machine takes at its peak: every kind of stage, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from sparring.config import load_recipe
from sparring.planning import memory
from sparring.planning.estimate import estimate
from sparring.planning.hardware import GB, Hardware
from sparring.planning.lengths import Lengths
from sparring.planning.memory import Memory
from sparring.planning.shape import measure
from sparring.policy.machine import fast_precision
from sparring.policy.tiny import make_tiny

pytestmark = pytest.mark.long

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
ROWS, NEW = 12, 24
PROMPT, REPLY = (50, 150), (60, 180)  # tokens, as varied as real ones are: every shape has kernels of its own
CPU = Hardware("cpu", "cpu", 1e12, 1e10, 24 * GB, "by hand")

# What every kind of stage computes, as sparring/stages/ has it computed
WORK = {
    "sft": """
from sparring.training.fit import fit
from sparring.training.plan import make_plan
from sparring.training.tasks import SftTask
plan = make_plan(recipe.sft, ROWS, lr=1e-6, epochs=1, seed=0, name="x")
fit(stage, folder, SftTask(examples), plan, recipe.sft, phase="x", labels={})
""",
    "generate": """
from sparring.opponent.engines import Sampler
from sparring.opponent.protocol import Stream
from sparring.opponent.replies import sample_examples
with Sampler(recipe.sampler, chat, folder) as sampler:
    sample_examples(stage, examples, lambda: sampler.engine(1.0), Stream(0, 0), 1, ROWS, "x", partial(sampler.check, 1.0))
""",
    "score": """
from sparring.training.opponent_pass import score_duels
from sparring.training.plan import make_plan
score_duels(stage, folder, duels, make_plan(recipe.train, ROWS, lr=1e-6, epochs=1, seed=0, name="x"), recipe.train, "x")
""",
    "train": """
from sparring.training.fit import fit
from sparring.training.plan import make_plan
from sparring.training.tasks import SpinTask
plan = make_plan(recipe.train, ROWS, lr=1e-6, epochs=1, seed=0, name="x")
task = SpinTask(duels, {duel.duel_id: [0.0, 0.0] for duel in duels}, 1.0, "logistic")
fit(stage, folder, task, plan, recipe.train, phase="x", labels={})
""",
    # the start of a game, and then a player against it
    "measure": """
from sparring.evaluation.measure import Measurer
from sparring.policy.player import Player
from sparring.training.ranked import score_player
measurer = Measurer(recipe.sampler, chat, examples, partial(score_player, settings=recipe.train), seed=0)
measurer.measure(stage, folder, None, 0, "x")
later = stage / "later"
later.mkdir()
measurer.measure(later, folder, Player("start", folder, "hash", stage), 1, "y")
""",
}
ADAPTERS = {"lora": {"rank": 8}}
# the formula of training again, that of the two stages before it, and what differs for adapters: a minute and a half together
SLOW = [("sft", {}), ("measure", {}), ("train", ADAPTERS), ("score", ADAPTERS)]
STAGES = [("generate", {}), ("score", {}), ("train", {}), *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
PROCESS = """
import json, random, re, sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import sparring.one_stage  # as a run does
from sparring.config import load_recipe
from sparring.data.records import Conversation, Duel, Example
folder, stage, values = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
recipe, ROWS, PROMPT, REPLY = load_recipe(values["recipe"]), *values["lengths"]
def ids(seed, count):
    draw = random.Random(seed)
    return tuple(draw.choices(range(3, 40_000), k=draw.randint(*count)))
chat = SimpleNamespace(stop_ids=frozenset({2}), decode=str)
asked = Conversation(({"role": "user", "content": "?"},), "")
examples = [Example(str(n), asked, ids(n, PROMPT), ids(n + 100, REPLY)) for n in range(ROWS)]
duels = [Duel(str(n), 0, ids(n, PROMPT), ids(n + 100, REPLY), (ids(n + 200, REPLY),)) for n in range(ROWS)]
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


def values(folder: Path, **train: Any) -> dict[str, Any]:
    sizes = {"batch_size": 6, "micro_batch_tokens": 1024, "precision": fast_precision("cpu")}
    return {
        "run_dir": "run",
        "model": {"path": str(folder)},
        "data": {"path": "none.jsonl"},
        "sft": sizes,
        "iterations": 1,
        "controls": None,
        "train": {**sizes, **train},
        "sampling": {"max_new_tokens": NEW},
    }


def peak_of(kind: str, folder: Path, stage: Path, **train: Any) -> int:
    """Bytes that a fresh process has held at most while it computed a stage of this kind."""
    told = json.dumps({"recipe": values(folder, **train), "lengths": [ROWS, PROMPT, REPLY]})
    code = PROCESS.replace("{work}", WORK[kind])
    done = subprocess.run([sys.executable, "-c", code, str(folder), str(stage), told], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("PEAK ")[2])


def planned(kind: str, folder: Path, **train: Any) -> Memory:
    """The last stage of this kind in the plan of the game."""
    prompt, reply = sum(PROMPT) / 2, sum(REPLY) / 2
    drawn = REPLY if kind in ("score", "train") else (NEW, NEW)
    lengths = Lengths(ROWS, ROWS, prompt, reply, sum(drawn) / 2, PROMPT[1], REPLY[1], drawn[1], "a test")
    shape = measure("mine", "a test", transformers.LlamaConfig(**SHAPE))
    stages = estimate(load_recipe(values(folder, **train)), shape, lengths, CPU).stages
    return [stage.memory for stage in stages if kind in (stage.kind, stage.owner)][-1]


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries' own memory is that of Linux")
@pytest.mark.parametrize(("kind", "train"), STAGES, ids=str)
def test_the_peak_of_a_stage_is_what_the_plan_says(kind: str, train: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    found = planned(kind, folder, **train)
    assert memory.PROCESS["cpu"] < 0.5 * found.total, "it is the model that is measured here, not the libraries"
    peak = peak_of(kind, folder, tmp_path, **train)
    print(f"{kind} {train or ''}: planned {found.total / GB:.2f} GB, measured {peak / GB:.2f} GB")
    assert peak == pytest.approx(found.total, rel=TOLERANCE)
