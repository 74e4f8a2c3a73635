"""A base model whose own end of sequence is not its template's end of turn: whatever is taken out of the run stops at both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import Game
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, PreTrainedTokenizerFast

from sparring.policy.tiny import tiny_config

TEMPLATES = Path(__file__).parent / "data"
# template -> (its end of turn, the base model's own end of sequence, other special tokens that it writes), as the models have them
ENDS = {
    "chatml": ("<|im_end|>", "<|endoftext|>", ["<|im_start|>"]),
    "llama3": ("<|eot_id|>", "<|end_of_text|>", ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]),
    "gemma3": ("<end_of_turn>", "<eos>", ["<bos>", "<start_of_turn>"]),
}


def make_base(folder: Path, name: str, generation: bool) -> None:
    """A base model with the template's tokens, which ends a text by its own; `generation`: in a generation_config.json as well."""
    turn_end, text_end, others = ENDS[name]
    special = [text_end, turn_end, *others]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(special + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=(others or special)[0], eos_token=text_end, pad_token=text_end)
    config = tiny_config(len(special) + len(alphabet))
    config.eos_token_id = config.pad_token_id = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    if not generation:
        (folder / "generation_config.json").unlink()


class Say(LogitsProcessor):
    """Has a model say these tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([next(self._tokens)]), 0.0)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("chatml", {}), ("llama3", {"train__lora": {"rank": 2, "alpha": 4.0}}), ("gemma3", {"sft": None})],
    ids=["chatml", "llama3, adapters", "gemma3, not fine-tuned before"],
)
def test_what_is_exported_stops_at_the_end_of_a_turn(name: str, changes: dict[str, Any], game: Game) -> None:
    make_base(game.folder / "model", name, generation=name != "llama3")
    template = TEMPLATES / f"{name}.jinja"
    game.write(model__path="model", model__chat_template=str(template), iterations=1, controls=None, **changes)
    result = game.run()
    assert result.code == 0, result.err
    for player in ("0", "start"):
        result = game.command("export", "run", player, "--iteration", player)
        assert result.code == 0, result.err
        stops(game.folder / player)


def stops(folder: Path) -> None:
    """At the end of a turn (1), and at the model's own end of sequence (0), in the hands of somebody who knows nothing of the game."""
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [0, 1]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    turns = [{"role": "user", "content": "say ab"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    for end in (0, 1):
        said = model.generate(**prompt, max_new_tokens=6, do_sample=False, logits_processor=[Say([40, 41, end, 42, 43, 44])])
        assert said[0, prompt["input_ids"].shape[1] :].tolist() == [40, 41, end]
