"""Secrets in no message, no log, no file: by their look, by where they stand, and by the environment that holds them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import Game
from hypothesis import given
from hypothesis import strategies as st
from zygote import ADVANCE, Sabotage

from sparring.config import load_recipe
from sparring.console import log, log_file
from sparring.errors import UserError, without_secrets

SECRET = "Zx9-plain-secret-value-4711"
HF = "hf_" + "aB3dE5gH7jK9" * 3
KEYS = [HF, "sk-proj-" + "x1Y2" * 10, "sk-ant-" + "x1Y2" * 10, "ghp_" + "a1B2" * 9, "nvapi-" + "a1B2" * 9, "AKIA" + "AB2D" * 4]
secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/\"'<>\\@&#?[]{}()*"), min_size=8)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("around", ["{}", "key {}.", '"{}"', "Authorization: Bearer {}", "--token={}", "https://x/{}/y", "[{}]"])
def test_keys_are_known_by_their_look(key: str, around: str) -> None:
    told = without_secrets(around.format(key))
    assert key not in told and key[8:] not in told and "***" in told


@given(secrets, secrets)
def test_a_password_in_a_url(user: str, password: str) -> None:
    told = without_secrets(f"http://{user}:{password}@host:8000/v1 or ws://{password}@h, or h?api_key={password}&x=1")
    assert told == "http://***@host:8000/v1 or ws://***@h, or h?api_key=***&x=1"


@given(secrets)
def test_what_the_environment_holds_as_a_secret(value: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "MY_API_KEY", "DB_PASSWORD", "client_secret"):
            patch.setenv(name, value)
            assert value not in without_secrets(f"an error with {value} in it")
            patch.delenv(name)
        patch.setenv("MY_WORD", value)


@pytest.mark.parametrize(
    "text",
    [
        "run runs/sk-learn: cannot read hf_hub, HF_TOKEN is not set; see https://huggingface.co/me/model?x=1",
        "skills-and-more-than-sixteen-letters",
        "eos_token_id: 3, max_new_tokens=256 (token: 5)",
        "me@example.org at http://host/v1",
        "C:/models/me@work, file:/home/me@work/x",
        "pk",
    ],
)
def test_plain_words_stay(text: str) -> None:
    assert without_secrets(text) == text


# ---------------------------------------------------------------------------------------------- recipes and overrides

OVERRIDES = [
    'sampling.server.urls=["http://u:{}@h/v1"]',
    'sampling.server.urls=["http://u:{}@h/v1"',
    "sampling.server.urls=http://u:{}@h/v1",
    "sampling.server.urll={}",
    "sampling.server.api_key_env={}!",
    "sampling.server.api_key={}",
    "sampling.server.api_key_env=[{}",
    "hf_token={}",
    "sampling.server.update_command=[{}",
    "run_dir=http://u:{}@h/run",
    "run_dir=http:/u:{}@h/run",
    "model.path=https://u:{}@h/model",
    "model.chat_template=https://h/t.jinja?access_token={}",
    "data.path=hf://u:{}@h/rows.jsonl",
    'data.path=[a.jsonl, "s3://u:{}@h/rows.jsonl"]',
    "launcher.config_file=ssh://u:{}@h/accelerate.yaml",
]


@pytest.mark.parametrize("override", OVERRIDES)
def test_no_refused_override_shows_its_secret(override: str) -> None:
    base = {"run_dir": "r", "model": {"path": "m"}, "data": {"path": "d"}, "sampling": {"engine": "server"}}
    with pytest.raises(UserError) as error:
        load_recipe(base, [override.format(SECRET)])
    assert SECRET not in str(error.value), error.value
    assert override.partition("=")[0] in str(error.value).replace("[0]", "") or "urls" in str(error.value)


@pytest.mark.parametrize("key", [KEYS[0], "hf_" + "aBcDe0" * 5, "sk_live_" + "a1" * 12])
def test_a_key_is_not_the_name_of_a_variable(key: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe({"run_dir": "r", "model": {"path": "m"}, "data": {"path": "d"}, "sampling": {"server": {"api_key_env": key}}})
    assert "not the name of an environment variable" in str(error.value) and key not in str(error.value)


# ---------------------------------------------------------------------------------------------- logs and errors


def test_the_log_and_its_tracebacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_TOKEN", SECRET)
    with log_file(tmp_path / "run.log"):
        log.info("a server says %s and %s", SECRET, HF)
        try:
            raise RuntimeError(f"GET http://u:{SECRET}@h failed, {HF}")
        except RuntimeError:
            log.debug("the run ended here", exc_info=True)
    text = (tmp_path / "run.log").read_text()
    assert SECRET not in text and HF not in text and "RuntimeError: GET http://***@h failed" in text and text.count("***") >= 4


def test_a_log_line_is_formatted_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sparring"):
        log.info("%d%% of %s", 50, "x%s")
    assert caplog.messages == ["50% of x%s"]


# ---------------------------------------------------------------------------------------------- a whole game

ENVIRONMENT = {"HF_TOKEN": HF, "HUGGING_FACE_HUB_TOKEN": HF, "WANDB_API_KEY": SECRET, "OPENAI_API_KEY": SECRET}


def leaks(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return [str(file) for file in files if any(secret.encode() in file.read_bytes() for secret in (SECRET, HF))]


def command_lines() -> str:
    found = (Path("/proc") / name / "cmdline" for name in map(str, Path("/proc").glob("[0-9]*")))
    return "\0".join(path.read_bytes().decode(errors="replace") for path in found if path.exists())


def test_a_whole_game_and_what_is_made_of_it(game: Game) -> None:
    game.write(iterations=1, controls=None, report=True)
    running = game.start(environment=ENVIRONMENT)
    running.wait_for(lambda: (game.root / "sft.partial").exists())
    seen = command_lines()
    results = [running.wait()]
    assert results[0].code == 0, results[0].err
    commands: list[list[str]] = [["export", "run", "out"], ["report", "run"], ["status", "run"], ["sample", "run", "say ab"]]
    commands += [["push", "run", "--repo", "me/it", "--dataset-repo", "me/data", "--dry-run", "card"], ["recipe", "recipe.yaml"]]
    results += [game.command(*command, environment=ENVIRONMENT) for command in commands]
    assert [result.code for result in results] == [0] * 7, [result.err for result in results]
    said = seen + "".join(result.out + result.err for result in results)
    assert SECRET not in said and HF not in said and not leaks(game.folder)


@pytest.mark.parametrize("where", [ADVANCE, "sparring.selfplay:play"])
def test_a_fault_that_repeats_the_secret(where: str, game: Game) -> None:
    result = game.run(environment=ENVIRONMENT, sabotage=[Sabotage(where, do="leak HF_TOKEN")])
    assert result.code == 1 and "fault: RuntimeError: 401 for the key ***" in result.err
    assert HF not in result.err + result.out and not leaks(game.folder)
    assert "401 for the key ***" in (game.root / "run.log").read_text()


def test_an_error_that_is_no_runs(copy: Game) -> None:
    result: Any = copy.command(
        "export", "run", "out", environment=ENVIRONMENT, sabotage=[Sabotage("sparring.export:model_card", do="leak HF_TOKEN")]
    )
    assert result.code == 1 and "Traceback" in result.err and "401 for the key ***" in result.err and HF not in result.err
