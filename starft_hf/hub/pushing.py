"""Publishing folders on the Hub, with errors that say what failed and how to try again."""

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from starft_hf.hub.card_edits import CARD_FILE, keep_published_edits, remove_local_base
from starft_hf.hub.record import public_id
from starft_hf.utils.files import read_text, write_text_atomically


logger = logging.get_logger(__name__)

# Not to be published: the last one holds paths and the token.
_IGNORED = ["_*", ".*", f"{PREFIX_CHECKPOINT_DIR}-*", "training_args.bin"]

# What a checkpoint holds to resume from, and not of the model.
OF_THE_RUN = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|trainer_state|training_args|ema|starft_checkpoint)\b|rng_state_"
)

_REASONS: dict[int | None, str] = {
    401: "nobody is logged in, or the token is not valid. Log in with `hf auth login` or set HF_TOKEN.",
    403: "the token has no write access there. Use one that has, or another owner.",
    429: "the Hub received too many requests. Wait some minutes.",
}


class PushError(RuntimeError):
    """A folder could not be published; the message says where it is kept and how to try again."""


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
    """Publish a folder that a run has saved; a repository and a branch that do not exist are created.

    What people have written into the card on the Hub is brought into the folder first.

    Args:
        folder: with the model, its processor, `starft.json` and its card. Checkpoints in it are not published.
        repo_id: "name" or "organization/name".
        private: whether a new repository is private; None is the account's default.
        revision: the branch; None is main.
        tag: a tag for the commit.
        token: with write access; None is the one that is logged in.
        message: of the commit.
        path_in_repo: the folder in the repository; None is its root.
        blocking: whether to wait until it is done.

    Returns:
        The commit, as `HfApi.upload_folder` does, or with `blocking=False` a future of it.

    Raises:
        PushError: if it could not be published.
    """
    try:
        repo_id = open_repository(repo_id, private=private, revision=revision, token=token)
        if path_in_repo is None and (Path(folder) / CARD_FILE).is_file():
            keep_published_edits(Path(folder), _published_card(repo_id, revision, token), repo_id)
        api = HfApi(token=token)

        def upload() -> Any:
            with _without_local_base(Path(folder)) as published:
                commit = api.upload_folder(
                    repo_id=repo_id,
                    folder_path=published,
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


@contextmanager
def _without_local_base(folder: Path) -> Iterator[Path]:
    """The folder to upload: a copy of that of an adapter whose base model is a local folder, without its path."""
    file = folder / ADAPTER_CONFIG
    content = json.loads(read_text(file)) if file.is_file() else {}
    base = content.get("base_model_name_or_path")
    if base is None or public_id(base) is not None:
        yield folder
        return
    logger.warning(
        "The base model of the adapter in %s is %s, which nobody else has: it is published without that path. Set "
        "base_model_name_or_path in its %s to the id of the base model on the Hub, or publish the merged model.",
        folder,
        base,
        ADAPTER_CONFIG,
    )
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*_IGNORED))
        write_text_atomically(
            copy / ADAPTER_CONFIG, json.dumps(content | {"base_model_name_or_path": None}, indent=2) + "\n"
        )
        if (copy / CARD_FILE).is_file():
            remove_local_base(copy)
        yield copy


def open_repository(
    repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> str:
    """Create a model repository and a branch if they do not exist; returns the full id, with the owner."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def _published_card(repo_id: str, revision: str | None, token: str | None) -> str | None:
    """The current card on the Hub, downloaded again even if cached; None if there is none."""
    try:
        path = HfApi(token=token).hf_hub_download(repo_id, CARD_FILE, revision=revision, force_download=True)
    except errors.LocalEntryNotFoundError:
        raise  # the Hub does not answer, so a card that may be there would be overwritten
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        return None
    return read_text(Path(path))


def reason(error: BaseException, repo_id: str | None) -> str:
    """Why a folder could not be published, in words."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    known = _REASONS.get(401 if isinstance(error, errors.LocalTokenNotFoundError) else status)
    known = known or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}."
    return f"{repo_id!r} could not be published: {known}"


def advice(folder: str | PathLike[str], repo_id: str | None, *, private: bool | None = None, **options: Any) -> str:
    """Where the folder is kept, and the command that publishes it to the same place, with `revision` and `tag`."""
    command = ["starft", "push", os.fspath(folder), "--repo-id", str(repo_id)]
    # Without it, a repository that could not be created yet would be created public.
    command += ["--private"] if private else []
    command += [part for name, value in options.items() if value for part in (f"--{name}", value)]
    return f"Everything is kept in {shlex.quote(os.fspath(folder))}; publish it with: {shlex.join(command)}"
