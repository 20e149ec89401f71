"""Rows of tensors on disk: published atomically, and used only if every byte is as it was written."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from starft_hf.utils.collectives import all_processes_agree, is_local_main_process, rank, world_size
from starft_hf.utils.files import expanded, file_in_place_of, remove_abandoned
from starft_hf.utils.hashing import tensors_digest


logger = logging.get_logger(__name__)

FORMAT = "starft-features-1"
_TENSOR = "embeds"


def default_folder() -> Path:
    """The default folder of features, under HF_HOME."""
    return Path(HF_HOME) / "starft"


class FeatureStore:
    """Files of features in a folder, each named by its kind and by a key of everything it depends on.

    Features are any tensor with a row per text or image. `setting` is what names the folder, for messages.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, setting: str = "reference_cache_dir"):
        self.setting = setting
        self.folder = default_folder() if folder is None else expanded(folder)
        # A folder that may not be read is not a file; saving warns if it cannot be written to.
        if os.path.exists(self.folder) and not os.path.isdir(self.folder):
            raise ValueError(
                f"{setting} is {str(self.folder)!r}, which is a file; pass a folder, or None for the default"
            )

    def path(self, kind: str, key: str) -> Path:
        """The file of the features of a kind under a key."""
        return self.folder / f"{kind}-{key}.safetensors"

    def load_or_build(
        self,
        kind: str,
        key: str,
        rows: int,
        device: torch.device,
        build: Callable[["FeaturePieces"], Tensor],
        is_up_to_date: Callable[[Tensor], bool] | None = None,
    ) -> tuple[Tensor, Path | None]:
        """The features `(rows, D)` under a key, and the file they are in, or None if they could not be written.

        If they are missing, damaged or not up to date in any process, all processes, which agree on this over
        `device`, build them together. What `build` keeps in the pieces it gets is there when an interrupted build is
        repeated.
        """

        def from_file() -> Tensor | None:
            embeds = self.load(kind, key, rows)
            return embeds if embeds is None or is_up_to_date is None or is_up_to_date(embeds) else None

        embeds, pieces = from_file(), FeaturePieces(self, kind, key)
        # Processes may see different files, on machines of their own or while another run is writing them.
        if not all_processes_agree(embeds is not None, device):
            # Autocast would make them less exact than their key says.
            with torch.autocast(device.type, enabled=False):
                built = build(pieces).cpu()
            written = not is_local_main_process() or self.save(kind, key, built)
            all_processes_agree(True, device)
            embeds = from_file() if written else None
        # Where nothing was built, those of a process that was killed before it could.
        pieces.remove()
        return (built, None) if embeds is None else (embeds, self.path(kind, key))

    def load(self, kind: str, key: str, rows: int | None) -> Tensor | None:
        """The features `(rows, D)`, memory-mapped, or None, with a warning if their file is damaged or another's.

        Of a piece, `rows` is None: it has any number.
        """
        path = self.path(kind, key)
        found = _file_state(path)
        if found is None:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                rows = int(header.get("rows", 0)) if rows is None else rows
                expected = {"format": FORMAT, "kind": kind, "key": key, "rows": str(rows)}
                wrong = [name for name, value in expected.items() if header.get(name) != value]
                if wrong:
                    raise ValueError(f"its header has another {wrong[0]}")
                embeds = file.get_tensor(_TENSOR)
            if embeds.ndim != 2:
                raise ValueError(f"it holds a tensor of shape {tuple(embeds.shape)} instead of rows of features")
            if len(embeds) != rows or tensors_digest({_TENSOR: embeds}) != header.get("checksum"):
                raise ValueError("its checksum is wrong")
        except (OSError, ValueError, SafetensorError) as error:
            if _file_state(path) != found:
                # Another process has replaced the file in between, and half of each was read: safetensors opens a file
                # once for the header and once for the tensor.
                return self.load(kind, key, rows)
            logger.warning("The cached features in %s are not used (%s); they are rebuilt.", path, error)
            return None
        return embeds

    def save(self, kind: str, key: str, embeds: Tensor) -> bool:
        """Publish features under a key; returns whether they could be written, and warns if not."""
        header = {"format": FORMAT, "kind": kind, "key": key, "rows": str(len(embeds))}
        header["checksum"] = tensors_digest({_TENSOR: embeds})
        try:
            with file_in_place_of(self.path(kind, key)) as temporary:
                save_file({_TENSOR: embeds.contiguous()}, temporary, metadata=header)
        except (OSError, SafetensorError) as error:
            logger.warning(
                "The features could not be written to %s (%s). This run keeps them in memory; the next one computes "
                "them again. Set %s to a writable folder with enough space.",
                self.folder,
                error,
                self.setting,
            )
            return False
        return True


class FeaturePieces:
    """The features that one process has built so far, in files of their own, until all of them are built.

    Those of another number of processes are not used, since every process builds every n-th row.
    """

    # A minute or so of work on a CPU.
    size = 2048

    def __init__(self, store: FeatureStore, kind: str, key: str):
        self._store = store
        self._kind, self._key, self._whole = f"{kind}-piece", key, store.path(kind, key).name
        self._can_write = True

    def load(self) -> list[Tensor]:
        """The pieces that are there, from the first one."""
        pieces: list[Tensor] = []
        while _file_state(self._path(len(pieces))) is not None and (piece := self._load(len(pieces))) is not None:
            pieces.append(piece)
        if pieces:
            logger.info("Resuming with %d rows of cached features.", sum(map(len, pieces)))
        return pieces

    def save(self, number: int, rows: Tensor) -> None:
        """Keep the piece of this number; a folder that cannot be written to is warned of once."""
        if self._can_write:
            self._can_write = self._store.save(self._kind, self._key_of(number), rows.cpu())

    def remove(self) -> None:
        """Remove all pieces of these features, which nothing needs any more, and what killed processes have left."""
        folder = self._store.folder
        # A folder that cannot be read has been warned of.
        with suppress(OSError):
            for path in folder.glob(f"{self._kind}-{self._key}-*.safetensors"):
                path.unlink(missing_ok=True)
            for pattern in (f"{self._kind}-{self._key}-*", f"{self._whole}.*"):
                remove_abandoned(folder, pattern)

    def _load(self, number: int) -> Tensor | None:
        piece = self._store.load(self._kind, self._key_of(number), None)
        # Rows of zeros are images that could not be read, which may have changed.
        return None if piece is None or bool((piece == 0).all(-1).any()) else piece

    def _path(self, number: int) -> Path:
        return self._store.path(self._kind, self._key_of(number))

    def _key_of(self, number: int) -> str:
        return f"{self._key}-{rank()}of{world_size()}-{number}"


def _file_state(path: Path) -> tuple[int, ...] | None:
    """What distinguishes a file from one that replaces it; None if it does not exist."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size
