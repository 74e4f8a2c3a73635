"""To the Hugging Face Hub, by its own client. The token comes from where that client keeps it, and no message of ours ever holds it."""

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
    413: "a file is larger than the Hub takes",
    429: "too many requests to the Hub: push again later",
}
TRY_AGAIN = "push again later: what has arrived is not sent twice"


def check_repo_id(repo: str, option: str) -> None:
    """Raises UserError for what is no whole name of a repository, USER/NAME, or one that the Hub would not take."""
    try:
        if repo.count("/") != 1:
            raise HFValidationError("the user or organisation is part of its name")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} cannot be a repository: {first_line(error)}", where=option, remedy="write it as USER/NAME") from None


class Hub:
    """What `push` does there. Raises UserError where the Hub, the network or the token will not have it."""

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
        """Have the repository there; it may exist already. private: only for a new one."""
        with self._plain("create the repository", repo):
            self._api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)

    def upload(self, folder: Path, repo: str, kind: str, revision: str | None, message: str, replaces: tuple[str, ...]) -> None:
        """Make the files of `folder` the repository's, in the branch `revision`; of its others, those that match `replaces` go."""
        if revision is not None:
            with self._plain(f"create the branch {revision}", repo):
                self._api.create_branch(repo, repo_type=kind, branch=revision, exist_ok=True)
        with self._plain("upload", repo):
            self._api.upload_folder(
                repo_id=repo, folder_path=folder, repo_type=kind, revision=revision, commit_message=message, delete_patterns=list(replaces)
            )

    @contextmanager
    def _plain(self, doing: str, repo: str) -> Iterator[None]:
        """Turn what the client raises into a message that a person can act on, without the token that a server may echo."""
        try:
            yield
        except HfHubHTTPError as error:
            status = error.response.status_code
            said = first_line(ValueError(error.server_message)) if error.server_message else first_line(error)
            raise UserError(
                f"the Hub would not {doing}: {self._without_token(said)} (status {status})",
                where=repo,
                remedy=REMEDIES.get(status, TRY_AGAIN),
            ) from None
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            said = self._without_token(first_line(error))
            raise UserError(f"could not {doing}: {said}", where=repo, remedy=f"check the network and the token; {TRY_AGAIN}") from None

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "(token)")
