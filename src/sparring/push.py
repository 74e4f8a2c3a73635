"""`sparring push`: players and generated data of a run as repositories on the Hugging Face Hub, or as the folders that would go there.

Uploads use the Hub's own client. The token is the client's, and is never in a message."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # HTTPError: its HTTP library's, whichever that is
from huggingface_hub.utils import HFValidationError, disable_progress_bars, validate_repo_id

from sparring.console import console, log
from sparring.errors import UserError, first_line
from sparring.export import PLOTS, export, new_folder
from sparring.locks import hold
from sparring.players import Players
from sparring.policy.folder import HUB_FILES
from sparring.publish.cards import About, dataset_card, model_title
from sparring.publish.pairs import write_pairs
from sparring.stage_names import title_of_player

ASIDE, LOCK = ".push", ".lock-push"  # in the run directory: the folders that are being uploaded, and the lock of the push


@dataclass(frozen=True)
class PushOptions:
    """What is to be published: the options of the command.

    repo: of the model; dataset_repo: of the replies; at least one of them. revision: the branch of the player that is chosen.
    all_iterations: every iteration's player too, in the branch iteration-N. licences: see `About.of`.
    """

    repo: str | None
    dataset_repo: str | None = None
    iteration: str = "best"
    dtype: str | None = None
    adapter: bool = False
    private: bool = False
    revision: str | None = None
    all_iterations: bool = False
    licences: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """One folder of a push: `make` writes it; `name` is what a dry run calls it, `title` what the commit is called."""

    name: str
    title: str
    kind: str
    repo: str
    revision: str | None
    make: Callable[[Path], object]


def push(root: Path, options: PushOptions, dry_run: Path | None = None) -> Iterator[str]:
    """Publish, or write the folders to the new folder `dry_run` and upload nothing. Yields a line for each one that is done."""

    for repo, option in ((options.repo, "--repo"), (options.dataset_repo, "--dataset-repo")):
        if repo is not None:
            check_repo_id(repo, option)
    uploads = _uploads(Players(root), options)
    if dry_run is not None:
        target = new_folder(dry_run)
        for upload in uploads:
            upload.make(target / upload.name)
            yield f"wrote {upload.title} to {target / upload.name}"
        return
    hub = Hub()
    with hold(root, LOCK):
        yield from (_send(upload, hub, root, options.private) for upload in uploads)


def _uploads(players: Players, options: PushOptions) -> list[Upload]:
    if options.repo is None and options.dataset_repo is None:
        raise UserError(
            "nothing to push", where="push", remedy="give --repo for the model, --dataset-repo for the generated replies, or both"
        )
    revisions = [name for name in players.stages if name.isdigit()] if options.all_iterations else []
    about = About.of(
        players.recipe,
        options.licences,
        unanswered=players.unanswered,
        repo=options.repo,
        dataset_repo=options.dataset_repo,
        revisions=tuple(f"iteration-{name}" for name in revisions),
    )
    uploads = []
    if options.repo is not None:
        uploads = [_model(players, options, about, players.find(options.iteration), "model", options.revision)]
        uploads += [_model(players, options, about, *named) for named in zip(revisions, about.revisions, about.revisions, strict=True)]
    if options.dataset_repo is not None:
        uploads.append(Upload("data", "the generated replies", "dataset", options.dataset_repo, None, partial(_data, players, about)))
    return uploads


def _model(players: Players, options: PushOptions, about: About, player: str, name: str, revision: str | None) -> Upload:
    def make(folder: Path) -> None:
        export(players.run.root, folder, player, options.dtype, options.adapter, replace(about, revision=revision))

    assert options.repo is not None
    title = model_title(players.summary, player) if players.summary else title_of_player(player)
    return Upload(name, title, "model", options.repo, revision, make)


def _data(players: Players, about: About, folder: Path) -> None:
    counts = write_pairs(players, folder)
    if not about.is_of_one_licence:
        found = f"data has the licence {about.data}, data.prompts {about.prompts}"
        hint = "; --data-licence and --prompts-licence name them" if None in (about.data.name, about.prompts and about.prompts.name) else ""
        log.warning(f"the data set's card names no licence, because {found}{hint}")
    (folder / "README.md").write_text(dataset_card(players.recipe, counts, about), encoding="utf-8")


def _send(upload: Upload, hub: Hub, root: Path, private: bool) -> str:
    """Write the folder inside the run directory, whose disk has room for a model, then upload it. The repository is created last, so that
    none is created for a folder that cannot be written. The folder that a killed push leaves is replaced by the next push.
    """
    folder = root / ASIDE
    shutil.rmtree(folder, ignore_errors=True)
    try:
        upload.make(made := folder / upload.name)
        hub.create(upload.repo, upload.kind, private)
        replaces = (*HUB_FILES, f"{PLOTS}/*.svg") if upload.kind == "model" else ("*.parquet",)
        hub.upload(made, upload.repo, upload.kind, upload.revision, upload.title, replaces)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return f"pushed {upload.title} to {upload.repo}{f' ({upload.revision})' if upload.revision else ''}"


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
