"""Publishing folders on the Hub, with errors that say what failed and how to try again."""

import glob
import json
import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from transformers.utils import logging

from starft_hf.hub.audits import take_audit
from starft_hf.hub.card_edits import CARD_FILE, keep_published_edits, remove_local_base
from starft_hf.hub.publishable import left_out, publishable
from starft_hf.hub.record import public_id
from starft_hf.utils.files import expanded, read_text, write_text_atomically
from starft_hf.utils.untrusted import read_json
from starft_hf.utils.waiting import answered, in_background, upload_limit


logger = logging.get_logger(__name__)

# Two commits at once to the same branch would be in each other's way.
_ONE_UPLOAD = threading.Lock()

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
    include: Sequence[str] | None = None,
    blocking: bool = True,
    timeout: float | None = None,
) -> Any:
    """Publish the model in a folder that a run has saved; a repository and a branch that do not exist are created.

    What people have written into the card on the Hub is brought into the folder first, and what an audit in its folder
    "audit" says into the card and the record.

    Args:
        folder: with the model, its processor, `starft.json` and its card. Only these files are published, and which
            others are not is logged; links that leave the folder are not followed.
        repo_id: "name" or "organization/name".
        private: whether a new repository is private; None is the account's default.
        revision: the branch; None is main.
        tag: a tag for the commit.
        token: with write access; None is the one that is logged in.
        message: of the commit.
        path_in_repo: the folder in the repository; None is its root.
        include: further files, as paths or patterns relative to the folder, such as `"notes/*.md"`.
        blocking: whether to wait until it is done.
        timeout: seconds that the Hub may take to answer a request, 60 by default; an upload may take a second more for
            every 100 KB.

    Returns:
        The commit, as `HfApi.upload_folder` does, or with `blocking=False` a future of it.

    Raises:
        PushError: if it could not be published.
    """
    folder = expanded(folder)
    try:
        if path_in_repo is None:
            take_audit(folder)
        names, others = publishable(folder, include or ())
        if others and path_in_repo is None:
            logger.warning_once(left_out(folder, others))
        if not names:
            raise FileNotFoundError("there is no file of a model in the folder")
        repo_id = open_repository(repo_id, private=private, revision=revision, token=token, timeout=timeout)
        if path_in_repo is None and CARD_FILE in names:
            card = partial(_published_card, repo_id, revision, token)
            keep_published_edits(folder, answered(card, "the Hub, for the model card", timeout), repo_id)
        api, limit = HfApi(token=token), upload_limit(sum((folder / name).stat().st_size for name in names), timeout)

        def upload() -> Any:
            if not _ONE_UPLOAD.acquire(timeout=limit):
                raise TimeoutError("an earlier upload has not ended")
            try:
                with _without_local_base(folder, names) as published:
                    commit = api.upload_folder(
                        repo_id=repo_id,
                        folder_path=published,
                        path_in_repo=path_in_repo,
                        commit_message=message,
                        revision=revision,
                        allow_patterns=[glob.escape(name) for name in names],
                    )
                if tag is not None:
                    api.create_tag(repo_id, tag=tag, revision=commit.oid)
            finally:
                _ONE_UPLOAD.release()
            return commit

        if not blocking:
            return in_background(upload)
        return answered(upload, f"the Hub, for the upload of {folder.name}", limit)
    except Exception as error:
        kept = advice(folder, repo_id, private=private, revision=revision, tag=tag)
        raise PushError(f"{reason(error, repo_id)} {kept}") from error


@contextmanager
def _without_local_base(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """The folder to upload: a copy of that of an adapter whose base model is a local folder, without its path."""
    file = folder / ADAPTER_CONFIG
    content = read_json(file) if file.is_file() else {}
    base = content.get("base_model_name_or_path")
    if base is None or public_id(base) is not None:
        yield folder
        return
    logger.warning(
        "The base model of the adapter in %s is %s, which is a local path: it is published without that path. Set "
        "base_model_name_or_path in its %s to the id of the base model on the Hub, or publish the merged model.",
        folder,
        base,
        ADAPTER_CONFIG,
    )
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / folder.name
        for name in names:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, copy / name)
        write_text_atomically(
            copy / ADAPTER_CONFIG, json.dumps(content | {"base_model_name_or_path": None}, indent=2) + "\n"
        )
        if (copy / CARD_FILE).is_file():
            remove_local_base(copy)
        yield copy


def open_repository(
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    timeout: float | None = None,
) -> str:
    """Create a model repository and a branch if they do not exist; returns the full id, with the owner.

    Raises:
        NoAnswerError: if the Hub does not answer within `timeout` seconds.
    """
    api = HfApi(token=token)

    def create() -> str:
        full_id = str(api.create_repo(repo_id, private=private, exist_ok=True).repo_id)
        if revision is not None:
            api.create_branch(full_id, branch=revision, exist_ok=True)
        return full_id

    return answered(create, f"the Hub, for the repository {repo_id}", timeout)


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
