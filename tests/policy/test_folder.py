"""Model folders as other people make them: whatever is in one, it is a model or a sentence that names the file."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sparring.config import ModelSection
from sparring.data.chat import Chat
from sparring.errors import UserError, first_line
from sparring.policy.folder import MOST_DEPTH, MOST_JSON_BYTES, check_files, read_object
from sparring.policy.load import find_model, load_model, load_tokenizer, model_facts

JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
TURN = [{"role": "user", "content": "why"}]


def use(folder: Path) -> None:
    """All that a game does with a model before it trains it."""
    found = find_model(ModelSection(path=str(folder)), 0).folder
    assert found is not None
    _, ends = model_facts(found)
    ids = Chat(load_tokenizer(found), None, ends).prompt_ids(TURN)
    with torch.no_grad():
        assert load_model(found)(input_ids=torch.tensor([ids])).logits.isfinite().all()


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        use(folder)
    return str(error.value)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# ---------------------------------------------------------------------------------------------- any content of any file

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from([10**9, 10**30, -1, 0, 1e-300, "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways to everything in a JSON value, of long lists and vocabularies to the first few."""
    inside = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else [])[:12]
    return [at, *(way for key, child in inside for way in places(child, (*at, key)))]


def replaced(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    if not way:
        return new
    copied = value.copy()
    copied[way[0]] = replaced(value[way[0]], way[1:], new)
    return copied


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(JSON_FILES))
def test_any_value_anywhere_is_a_model_or_a_sentence(data: st.DataObject, name: str, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "any", dirs_exist_ok=True))
    content = json.loads((folder / name).read_text())
    way = data.draw(st.sampled_from(places(content)))
    (folder / name).write_text(json.dumps(replaced(content, way, data.draw(values))))
    sentence_or_nothing(folder)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from([*JSON_FILES, "model.safetensors", "chat_template.jinja"]))
def test_any_bytes_anywhere_are_a_model_or_a_sentence(data: st.DataObject, name: str, tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "any", dirs_exist_ok=True))
    content = (folder / name).read_bytes()
    start = data.draw(st.integers(0, min(len(content), 2000)))
    end = data.draw(st.sampled_from([start, start + 1, start + 10, len(content)]))
    (folder / name).write_bytes(content[:start] + data.draw(st.binary(max_size=4)) + content[end:])
    sentence_or_nothing(folder)


def sentence_or_nothing(folder: Path) -> None:
    try:
        find_model(ModelSection(path=str(folder)), 0)
        _, ends = model_facts(folder)
        Chat(load_tokenizer(folder), None, ends).prompt_ids(TURN)
        load_model(folder).save_pretrained(folder.with_name("saved"))  # as training does with what it has loaded
    except UserError as error:
        assert len(str(error)) < 2000


# ---------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize("name", [*JSON_FILES, "special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds a list, not an object"),
        ("null", "holds a NoneType"),
        ("", "Expecting value"),
        ("[" * 10_000 + "]" * 10_000, "recursion"),
        ('{"a":' * (MOST_DEPTH + 1) + "1" + "}" * (MOST_DEPTH + 1), f"nested more than {MOST_DEPTH} deep"),
        ("9" * 5000, "limit"),
    ],
    ids=["list", "null", "empty", "very deep", "deep", "long number"],
)
def test_json_that_is_no_object(name: str, content: str, said: str, model: Path) -> None:
    (model / name).write_text(content)
    message = refusal(model)
    assert message.startswith(f"{model / name}: not a valid JSON file of a model: ") and said in message and "save_pretrained" in message


def test_a_json_file_without_end(model: Path) -> None:
    with open(model / "config.json", "wb") as file:
        file.truncate(MOST_JSON_BYTES + 1)
    assert f"{MOST_JSON_BYTES + 1:,} bytes; at most {MOST_JSON_BYTES:,} are allowed" in refusal(model)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("config.json", {"num_hidden_layers": -1}, "num_hidden_layers is -1, and must be a whole number of at least 1"),
        ("config.json", {"num_hidden_layers": [1, 1]}, r"num_hidden_layers is \[1, 1\], and must be"),
        ("config.json", {"output_attentions": True}, "transformers reads this model but cannot write it again: .*correct config.json"),
        ("config.json", {"num_hidden_layers": 1}, "the weights have 9 tensors that the model does not use, such as model.layers.1."),
        ("config.json", {"num_hidden_layers": 3}, "describes a model|are missing from its weights"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and the weights have 20 tensors in all"),
        ("config.json", {"hidden_size": 10**9}, r"describes a model of 1,415,000,000,000 weights, but the files have 90,560"),
        ("config.json", {"vocab_size": 0}, "vocab_size is 0, and must be"),
        ("config.json", {"vocab_size": 100}, "it numbers 258 tokens up to 257, and vocab_size in config.json is 100"),
        ("config.json", {"num_attention_heads": True}, "num_attention_heads is True"),
        ("config.json", {"hidden_act": "nope"}, "config.json has hidden_act: 'nope', which transformers does not know"),
        ("config.json", {"eos_token_id": 258}, "eos_token_id is 258, and 258 is not a token from 0 to 257"),
        ("generation_config.json", {"eos_token_id": "x"}, "eos_token_id is 'x', and 'x' is not a token"),
        ("generation_config.json", {"eos_token_id": [1, -3]}, r"-3 is not a token from 0 to 257"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantised already: .*'bitsandbytes'.*4bit"),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised already: .*'gptq'"),
        ("config.json", {"quantization_config": {"quant_method": "awq"}}, r"quantised already: .*'awq'"),
        ("config.json", {"rms_norm_eps": "x"}, r"Field 'rms_norm_eps' expected float, got str"),
    ],
)
def test_values_that_cannot_be(name: str, values: dict[str, Any], said: str, model: Path) -> None:
    change(model / name, **values)
    message = refusal(model)
    assert re.search(said, message, re.DOTALL), message
    assert message.startswith(str(model)) and "config.json" in message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "values",
    [
        {"pad_token_id": -1},
        {"temperature": 0.6},
        {"do_sample": False, "top_p": 0.9},
        {"num_beams": 4},
        {"max_length": 20},
        {"early_stopping": True},
    ],
    ids=str,
)
def test_what_transformers_will_not_write_again_is_left_out(name: str, values: dict[str, Any], model: Path, tmp_path: Path) -> None:
    """Released models have such generation settings; a checkpoint must not fail on them after hours."""
    change(model / name, **values)
    loaded = load_model(model)
    loaded.save_pretrained(tmp_path / "saved")
    assert load_model(tmp_path / "saved").generation_config.eos_token_id == loaded.config.eos_token_id == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantised_weights_without_a_word_in_the_config(dtype: torch.dtype, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: torch.zeros(weights[name].shape).to(dtype)}, model / "model.safetensors", metadata={"format": "pt"})
    assert f"quantised already: the tensor {name} of type" in refusal(model)


def test_a_special_token_beyond_the_embedding_is_no_harm(model: Path) -> None:
    """Gemma-3's text models list a token for images, of which no text is made."""
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(model)
    use(model)
    tokenizer.add_tokens(["word"])
    tokenizer.save_pretrained(model)
    assert "has 1 tokens that the model does not know" in refusal(model)


# ---------------------------------------------------------------------------------------------- shards


def in_shards(folder: Path) -> dict[str, str]:
    """Cut the weights in two files with an index; returns its map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:7], "model-00002-of-00002.safetensors": names[7:]}
    for file, inside in parts.items():
        save_file({name: weights[name] for name in inside}, folder / file, metadata={"format": "pt"})
    index = {name: file for file, inside in parts.items() for name in inside}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def test_shards(model: Path) -> None:
    in_shards(model)
    use(model)
    (model / "model-00002-of-00002.safetensors").unlink()
    assert "it names the file 'model-00002-of-00002.safetensors', which is not in this folder" in refusal(model)


@pytest.mark.parametrize("shard", ["../other.safetensors", "/etc/passwd", "none.safetensors", 3, None])
def test_an_index_leads_nowhere_else(shard: Any, model: Path) -> None:
    index = in_shards(model)
    shutil.copy(model / "model-00001-of-00002.safetensors", model.parent / "other.safetensors")
    change(model / "model.safetensors.index.json", weight_map={**index, "model.norm.weight": shard})
    assert "model.safetensors.index.json" in refusal(model)


# ---------------------------------------------------------------------------------------------- links and special files


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "notes.txt", "sub"])
def test_a_link_out_of_the_folder(name: str, model: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(model, outside)
    (outside / "notes.txt").write_text("secret")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(outside / name if name != "sub" else outside)
    assert refusal(model).startswith(f"{model / name}: this link leads out of the model folder")


def test_links_that_stay(model: Path, tmp_path: Path) -> None:
    (model / "real.json").write_text("{}")
    (model / "same.json").symlink_to("real.json")
    (tmp_path / "way").symlink_to(model)
    use(tmp_path / "way")


def test_the_cache_of_the_hub(model: Path, tmp_path: Path) -> None:
    """Its files are links into `blobs`, and nowhere else."""
    snapshot, blobs = tmp_path / "models--me--it/snapshots/abc", tmp_path / "models--me--it/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    use(snapshot)
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    (snapshot / "notes.txt").symlink_to(secret)
    assert "leads out of the model folder" in refusal(snapshot)
    (snapshot / "notes.txt").unlink()
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="leads out of the model folder"):
        check_files(snapshot)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "x.safetensors", "template.jinja"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_regular_file(name: str, make: Callable[[Path], None], model: Path) -> None:
    (model / name).unlink(missing_ok=True)
    make(model / name)
    assert refusal(model) == f"{model / name}: this is not a regular file\n  -> put the file itself in its place, or delete it"


# ---------------------------------------------------------------------------------------------- adapters


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "adapter"
    wrapped = get_peft_model(load_model(tiny), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(folder)
    change(folder / "adapter_config.json", base_model_name_or_path=str(tiny))
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": 10**9}, "the rank 1000000000 does not fit its weights"),
        ({"r": "2"}, "the rank '2' does not fit"),
        ({"rank_pattern": {"q_proj": 10**7}}, "the rank 10000000 does not fit"),
        ({"megatron_config": {"x": 1}, "megatron_core": "os"}, "with megatron_config PEFT would import a module"),
    ],
)
def test_adapters_that_cannot_be(values: dict[str, Any], said: str, adapter: Path) -> None:
    change(adapter / "adapter_config.json", **values)
    with pytest.raises(UserError) as error:
        find_model(ModelSection(path=str(adapter)), 0)
    assert said in str(error.value) and "adapter_config.json" in str(error.value)


def test_an_adapters_base_is_looked_at_too(adapter: Path, model: Path) -> None:
    change(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    change(model / "config.json", num_hidden_layers=-1)
    with pytest.raises(UserError, match="num_hidden_layers is -1"):
        find_model(ModelSection(path=str(adapter)), 0)


def test_an_adapter_that_brings_a_head_of_its_own_over_tied_weights(adapter: Path, tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    get_peft_model(load_model(tiny), config).save_pretrained(adapter)
    change(adapter / "adapter_config.json", base_model_name_or_path=str(tiny))
    source = find_model(ModelSection(path=str(adapter)), 0)
    assert source.make is not None
    with pytest.raises(UserError, match="embedding and head of this model share their weights"):
        source.make(tmp_path / "merged")


# ---------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one\ntwo", "one"),
        ("Validation error:\n    expected int\nmore", "Validation error: expected int"),
        ("", "ValueError"),
        ("x:", "x:"),
    ],
)
def test_a_foreign_error_in_one_line(text: str, said: str) -> None:
    assert first_line(ValueError(text)) == said


def test_read_object_gives_the_object(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1, {"b": null}]}')
    assert read_object(tmp_path / "x.json") == {"a": [1, {"b": None}]}
