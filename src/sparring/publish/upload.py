"""Uploads to the Hugging Face Hub by its own client. The token is the client's, and is never in a message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError: its HTTP library's, whichever that is
from huggingface_hub.utils import HFValidationError, disable_progress_bars, validate_repo_id

from sparring.console import console
from sparring.errors import UserError, first_line

REMEDIES = {
    401: "the token is not valid (any more): `hf auth login`, or set HF_TOKEN",
    403: "the token may not do this: it needs write access, and to this user or organisation",
    404: "check the spelling of the user or organisation",
    413: "a file is larger than the Hub allows",
    429: "too many requests to the Hub: push again later",
}
TRY_AGAIN = "push again later: files that were uploaded are not sent again"


def check_repo_id(repo: str, option: str) -> None:
    """Raises UserError for anything but a valid name of a repository, USER/NAME."""
    try:
        if repo.count("/") != 1:
            raise HFValidationError("the user or organisation is part of its name")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} cannot be a repository: {first_line(error)}", where=option, remedy="write it as USER/NAME") from None


class Hub:
    """The requests of `push` to the Hub. Raises UserError for errors of the Hub, the network or the token."""

    def __init__(self) -> None:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                "HF_HUB_OFFLINE is set, so nothing can be uploaded",
                where="push",
                remedy="unset it, or write a folder with --dry-run and upload that from elsewhere",
            )
        token = get_token()
        if token is None:
            raise UserError("no token for the Hub", where="push", remedy="`hf auth login`, or set HF_TOKEN to a token with write access")
        self._token, self._api = token, HfApi(token=token)
        if not console.is_terminal or console.quiet:
            disable_progress_bars()

    def create(self, repo: str, kind: str, private: bool) -> None:
        """Create the repository if it does not exist. private: for a new one only."""
        with self._plain("create the repository", repo):
            self._api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)

    def upload(self, folder: Path, repo: str, kind: str, revision: str | None, message: str, replaces: tuple[str, ...]) -> None:
        """Upload the files of `folder` to the branch `revision`, and delete its other files that match `replaces`."""
        if revision is not None:
            with self._plain(f"create the branch {revision}", repo):
                self._api.create_branch(repo, repo_type=kind, branch=revision, exist_ok=True)
        with self._plain("upload", repo):
            self._api.upload_folder(
                repo_id=repo, folder_path=folder, repo_type=kind, revision=revision, commit_message=message, delete_patterns=list(replaces)
            )

    @contextmanager
    def _plain(self, doing: str, repo: str) -> Iterator[None]:
        """Convert the client's errors to UserError, without the token, which a server may echo."""
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code
            said = first_line(ValueError(error.server_message)) if error.server_message else first_line(error)
            raise UserError(
                f"the Hub refused to {doing}: {self._without_token(said)} (status {status})",
                where=repo,
                remedy=REMEDIES.get(status, TRY_AGAIN),
            ) from None
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            said = self._without_token(first_line(error))
            raise UserError(f"could not {doing}: {said}", where=repo, remedy=f"check the network and the token; {TRY_AGAIN}") from None

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "(token)")
