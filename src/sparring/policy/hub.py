"""Models from the Hugging Face Hub, or from its cache on this machine."""

from __future__ import annotations

from pathlib import Path

from sparring.console import log
from sparring.errors import UserError, first_line

CARD = "README.md"  # fetched for the licence that it names; no part of a model
HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "*.txt")


def from_hub(repo: str, revision: str | None, where: str) -> Path:
    """The folder of a Hub model, fetched or cached. `where` is the option that named it. Raises UserError saying what was tried."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    where = f"{where} ({repo})"
    tried = f"tried the folder {repo}, then the Hub (revision {revision or 'main'}) and its local cache"
    if repo.startswith((".", "/", "~")):
        raise UserError("no such model folder", where=where, remedy="give a folder with config.json and safetensors, or a Hub id")
    try:
        log.info(f"model {repo}: fetching from the Hub (or its local cache)")
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*HUB_FILES, CARD]))
    except HFValidationError:
        raise UserError(f"neither a folder nor a valid Hub id; {tried}", where=where) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"cannot reach the Hub, and the model is not in the local cache; {tried}",
            where=where,
            remedy="check the network, or give a local folder",
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"cannot get the model: {first_line(error)}; {tried}",
            where=where,
            remedy="check the spelling, the revision and, for a private model, HF_TOKEN",
        ) from None
