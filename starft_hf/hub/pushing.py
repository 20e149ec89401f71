"""Publishing folders on the Hub, and saying what went wrong and how to go on."""

import os
import shlex
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RevisionNotFoundError,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from starft_hf.hub.card_edits import CARD_FILE, keep_published_edits
from starft_hf.utils.files import read_text


# Not for publication: what the last holds of the arguments are paths and the token.
_IGNORED = ["_*", ".*", f"{PREFIX_CHECKPOINT_DIR}-*", "training_args.bin"]


class PushError(RuntimeError):
    """Something could not be published; the message says where it is kept and how to try again."""


def push_folder(
    folder: str | PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    message: str = "Upload model",
    path_in_repo: str | None = None,
    blocking: bool = True,
) -> Any:
    """Publish a folder that a run has saved; the repository and the branch are made where they do not exist.

    What people have written into the card on the Hub is brought into the folder first.

    Args:
        folder: with the model, its processor, `starft.json` and its card. Checkpoints in it stay where they are.
        repo_id: "name" or "organisation/name".
        private: whether a new repository is private; None leaves it to the account's default.
        revision: the branch; None is main.
        tag: a tag for the commit.
        token: with the right to write; None takes the one that is logged in.
        message: of the commit.
        path_in_repo: the folder in the repository; None is its root.
        blocking: whether to wait until it is done.

    Returns:
        What `HfApi.upload_folder` does.

    Raises:
        PushError: if it could not be published.
    """
    try:
        repo_id = open_repository(repo_id, private=private, revision=revision, token=token)
        if path_in_repo is None and (Path(folder) / CARD_FILE).is_file():
            keep_published_edits(Path(folder), _published_card(repo_id, revision, token))
        api = HfApi(token=token)

        def upload() -> Any:
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=Path(folder),
                path_in_repo=path_in_repo,
                commit_message=message,
                revision=revision,
                ignore_patterns=_IGNORED,
            )
            if tag is not None:
                api.create_tag(repo_id, tag=tag, revision=commit.oid)
            return commit

        return upload() if blocking else api.run_as_future(upload)
    except Exception as error:
        kept = advice(folder, repo_id, private=private, revision=revision, tag=tag)
        raise PushError(f"{reason(error, repo_id)} {kept}") from error


def open_repository(
    repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> str:
    """Make a model repository and a branch of it where they do not exist; returns the whole id, owner included."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def _published_card(repo_id: str, revision: str | None, token: str | None) -> str | None:
    """The card on the Hub, or None where there is none. One that was downloaded before may be out of date."""
    try:
        path = HfApi(token=token).hf_hub_download(repo_id, CARD_FILE, revision=revision, force_download=True)
    except LocalEntryNotFoundError:
        # The Hub does not answer: what is not known would be overwritten.
        raise
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    return read_text(Path(path))


def reason(error: BaseException, repo_id: str | None) -> str:
    """Why something could not be published, in words."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    what = f"{repo_id!r} could not be published: "
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return what + "nobody is logged in, or the token is not valid. Log in with `hf auth login` or set HF_TOKEN."
    if status == 403:
        return what + "the token may not write there. Take one with write access, or another owner."
    if status == 429:
        return what + "the Hub asks for fewer requests. Wait some minutes."
    return what + f"{type(error).__name__}: {' '.join(str(error).split())[:300]}."


def advice(
    folder: str | PathLike[str],
    repo_id: str | None,
    *,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
) -> str:
    """Where everything is kept, and how to publish it to the same place."""
    where = shlex.quote(os.fspath(folder))
    command = ["starft", "push", where, "--repo-id", str(repo_id)]
    # Without it, a repository that could not be made yet would be made for all to see.
    command += ["--private"] if private else []
    command += ["--revision", shlex.quote(revision)] if revision else []
    command += ["--tag", shlex.quote(tag)] if tag else []
    return f"Everything is kept in {where}; publish it with: {' '.join(command)}"
