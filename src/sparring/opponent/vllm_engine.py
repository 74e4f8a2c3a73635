"""The vllm engine: vLLM inside the run, token ids in and out, its log-probs before any temperature.

Its start takes a minute; it is started for every stage that samples, and its memory is freed before training. If the run is killed, a
separate process kills what vLLM started: it waits for the end of its input, which comes when the run ends in any way, and then kills
every process whose environment holds the mark. Children inherit the mark when they are created, so all of them are found."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from sparring.config import SamplerSettings, SamplingSection
from sparring.console import log
from sparring.data.chat import Chat
from sparring.data.records import Reply
from sparring.errors import UserError
from sparring.opponent.protocol import Engine, Prompt, Stream, make_reply
from sparring.policy import adapters
from sparring.rundir import read_json

WHERE = "sampling.vllm"
# spawn: a forked worker would inherit the run's lock, and CUDA. SPT_NOENV: the titles that vLLM gives its processes would overwrite the
# environment in which the reaper looks for its mark. Variables that are already set are kept.
ENVIRONMENT = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn", "SPT_NOENV": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}


def make_vllm(settings: SamplerSettings, chat: Chat, folder: Path) -> VllmEngine:
    """The vLLM engine, loaded in the recipe's sampling dtype."""
    return VllmEngine(folder, settings.sampling, settings.dtype, chat.stop_ids)


class VllmEngine(Engine):
    """Samples with vLLM; every row has the seed of its own stream."""

    def __init__(self, folder: Path, sampling: SamplingSection, dtype: str, stop_ids: Collection[int]) -> None:
        self.sampling, self.stop_ids = sampling, sorted(stop_ids)
        base, rank = _base_and_rank(folder)
        self._reaper = Reaper()
        with self._reaper.marking():
            self._llm = _start(_options(base, rank, sampling, dtype))
        self._adapter = _lora_request(folder) if rank else None

    def close(self) -> None:
        """Stop vLLM's processes, which frees the device's memory."""
        self._llm.llm_engine.engine_core.shutdown()
        self._reaper.dismiss()

    def sample(self, prompts: Sequence[Prompt], stream: Stream, logps: bool = False) -> list[Reply]:
        """One reply per prompt, in the order of the prompts. Raises UserError if one is too long, or vLLM has ended."""
        if not prompts:
            return []
        self._require_room(prompts)
        settings = [self._settings(stream.seed_of(prompt), logps) for prompt in prompts]
        asked = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts]
        with _as_user_errors():
            found = self._llm.generate(asked, settings, use_tqdm=False, lora_request=self._adapter)
        return [self._reply(prompt, one.outputs[0], logps) for prompt, one in zip(prompts, found, strict=True)]

    def _require_room(self, prompts: Sequence[Prompt]) -> None:
        longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
        asked, room = len(longest.token_ids) + self.sampling.max_new_tokens, self._llm.llm_engine.model_config.max_model_len
        if asked > room:
            raise UserError(
                f"the prompt of row {longest.row_id} has {len(longest.token_ids)} tokens, and with {self.sampling.max_new_tokens} of a "
                f"reply that is more than vLLM's limit of {room}",
                where=f"{WHERE}.max_model_len",
                remedy="raise it up to the model's own context, or lower data.max_prompt_tokens or sampling.max_new_tokens",
            )

    def _settings(self, seed: int, logps: bool) -> Any:
        from vllm import SamplingParams

        sampling = self.sampling
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature else 1.0,
            top_k=0,
            max_tokens=sampling.max_new_tokens,
            seed=seed,
            stop_token_ids=self.stop_ids,
            ignore_eos=True,  # ours are the only tokens that end a turn
            logprobs=0 if logps else None,  # 0: only of the sampled token
            detokenize=False,
        )

    def _reply(self, prompt: Prompt, output: Any, logps: bool) -> Reply:
        tokens = list(output.token_ids)
        own = [place[token].logprob for token, place in zip(tokens, output.logprobs, strict=True)] if logps else None
        reply = make_reply(prompt, tokens, self.stop_ids, own)
        if reply.finish_reason == "length" and len(tokens) != self.sampling.max_new_tokens:
            what = f"vLLM ended a reply after {len(tokens)} tokens without an end of turn ({output.finish_reason})"
            raise UserError(what, where=WHERE, remedy="raise sampling.vllm.max_model_len, or leave it out")
        return reply


def _base_and_rank(folder: Path) -> tuple[Path, int]:
    """The folder that vLLM loads, and the rank of the adapter on it (0: there is none)."""
    if not adapters.is_adapter(folder):
        return folder, 0
    return adapters.base_of(folder), read_json(folder / adapters.CONFIG)["r"]


def _options(model: Path, rank: int, sampling: SamplingSection, dtype: str) -> dict[str, Any]:
    section = sampling.vllm
    eager = section.enforce_eager if section.enforce_eager is not None else not torch.cuda.is_available()
    options = {
        "model": str(model),
        "dtype": dtype,
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "generation_config": "vllm",  # not the model's own, which may have penalties or a top-k
        "logprobs_mode": "raw_logprobs",
        "tensor_parallel_size": section.tensor_parallel,
        "gpu_memory_utilization": section.gpu_memory_utilization,
        "enforce_eager": eager,
        "disable_log_stats": True,
        "seed": 0,
    }
    bounds = {"max_model_len": section.max_model_len, "max_num_seqs": section.max_num_seqs}
    options |= {name: value for name, value in bounds.items() if value is not None}
    # vLLM supports only certain ranks of adapters
    return {**options, "enable_lora": True, "max_lora_rank": max(8, 1 << (rank - 1).bit_length())} if rank else options


def _start(options: dict[str, Any]) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # read when vLLM is imported
    from vllm import LLM

    log.info("sampling: vLLM starts, which takes a minute")
    try:
        return LLM(**options)
    except (ValueError, RuntimeError) as error:  # errors of its own process are only printed
        raise UserError(
            f"vLLM does not start: {' '.join(str(error).split())[:400]}",
            where=WHERE,
            remedy="see its own messages above; if memory is short, change gpu_memory_utilization, max_model_len or tensor_parallel; for "
            "a model that it does not support, set sampling.engine: transformers",
        ) from error


@contextlib.contextmanager
def _as_user_errors() -> Iterator[None]:
    """Convert the death of a vLLM process to UserError."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise UserError(
            "a process of vLLM ended while it sampled: see its own messages above; an unexplained SIGKILL usually means out of memory",
            where=WHERE,
            remedy="lower gpu_memory_utilization, max_num_seqs or max_model_len, or shard the model by tensor_parallel; then rerun: "
            "the run resumes, and nothing finished is lost",
        ) from error


def _lora_request(folder: Path) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("player", 1, str(folder.absolute()))


MARK = "SPARRING_ENDS_WITH"
SWEEPS, PAUSE_SECONDS = 20, 0.1  # a process that is just being started is found in a later sweep
# Python's resource tracker frees shared memory and ends after the others
SPARED = "resource_tracker"


class Reaper:
    """Watches this process. Processes started under `marking`, and their descendants, end with this process."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # -P: does not import from this folder; a separate session receives no Ctrl-C
        command = [sys.executable, "-P", __file__, self._mark]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @contextlib.contextmanager
    def marking(self) -> Iterator[None]:
        """Mark processes that are started in this context. If it fails, those already started are killed at once."""
        os.environ[MARK] = self._mark
        try:
            yield
        except BaseException:
            self.reap()
            raise
        finally:
            del os.environ[MARK]

    def reap(self) -> None:
        """Kill the marked processes; returns after they have ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def dismiss(self) -> None:
        """Stop watching, after the processes have ended."""
        self._process.kill()
        self._process.wait()


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            if process.environ().get(MARK) == mark and SPARED not in " ".join(process.cmdline()):
                yield process


def main(mark: str) -> None:
    """Wait until stdin closes, then kill the processes with this mark in several sweeps."""
    sys.stdin.read()
    for _ in range(SWEEPS):
        for process in _marked(mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
