"""The loop over all rows: blocks of consecutive rows, shared by processes, and kept on disk until all are there."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm
from transformers.utils import logging

from starft_hf.data.collator import stack_examples
from starft_hf.data.decoding import Row, SkippedImages
from starft_hf.data.examples import Example, IndexedExamples, IterableExamples
from starft_hf.data.fingerprint import file_state
from starft_hf.utils.collectives import rank, world_size
from starft_hf.utils.files import archive_of
from starft_hf.utils.hashing import digest
from starft_hf.utils.store import FeatureStore


logger = logging.get_logger(__name__)

# Rows of a block, at least: a second or so of a GPU, which is what a killed process loses.
_BLOCK = 256
_KIND = "predictions"

# What a row of a block is: `(width,)` numbers, all of them NaN for an image that cannot be read.
Score = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class StreamedRow:
    """A row of an iterable dataset whose image is not decoded yet, and its number in the dataset."""

    examples: IterableExamples
    index: int
    row: Row

    @property
    def image(self) -> Any:
        """The image as it is stored."""
        return self.row[self.examples.columns.image]

    def example(self) -> Example:
        """Its example."""
        return self.examples.example(self.row, self.index)


class Pieces:
    """The blocks of one run that are finished, in a folder beside its output. Nothing is kept without a key.

    Args:
        output: the file that is written once all blocks are there.
        key: what the numbers depend on: model, data and settings; None if that is unknown.
    """

    def __init__(self, output: Path | None, key: str | None):
        self.key = key
        self.folder = None if output is None or key is None else pieces_folder(output)
        self.store = None if self.folder is None else FeatureStore(self.folder, setting="output")
        found = [] if self.folder is None else [path.name for path in self.folder.glob(f"{_KIND}-*")]
        others = [name for name in found if not name.startswith(f"{_KIND}-{key}-")]
        if others and rank() == 0:
            logger.warning(
                "%s has %d blocks of predictions of another model, other images or other settings; they are not used.",
                self.folder,
                len(others),
            )

    def load(self, number: int, rows: int, content: str = "") -> Tensor | None:
        """The block of this number, of so many rows; None if it is not there, or has images that could not be read."""
        if self.store is None:
            return None
        found = self.store.load(_KIND, self._key(number, content), rows)
        # Such images may have been repaired, or the package that reads them installed.
        return None if found is None or bool(found.isnan().any()) else found

    def save(self, number: int, rows: Tensor, content: str = "") -> None:
        """Keep a block; `content` identifies its rows where the key does not."""
        if self.store is not None:
            self.store.save(_KIND, self._key(number, content), rows)

    def _key(self, number: int, content: str) -> str:
        return f"{self.key}-{number}{content and f'-{content}'}"


def pieces_folder(output: Path) -> Path:
    """The folder of the blocks of an unfinished output."""
    return output.with_name(f"{output.name}.unfinished")


def remove_pieces(output: Path) -> None:
    """Remove the blocks of an output that is finished."""
    folder = pieces_folder(output)
    for path in folder.glob(f"*{_KIND}-*"):
        path.unlink(missing_ok=True)
    # Something else may have been put there.
    with suppress(OSError):
        folder.rmdir()


@dataclass(frozen=True)
class Blocks:
    """How rows are divided: into blocks, and these into batches, whatever the number of processes.

    Every process scores every n-th block, so that the batches, and with them all digits, are those of one process.
    """

    pieces: Pieces
    batch_size: int
    num_workers: int = 0
    progress: bool = True

    @property
    def size(self) -> int:
        """Rows of a block."""
        return self.batch_size * -(-_BLOCK // self.batch_size)

    def score(self, examples: IndexedExamples, score: Score) -> Tensor:
        """The numbers of all examples, `(N, width)` in float64, in every process."""
        total = len(examples)
        rows = {
            number: range(number * self.size, min(total, (number + 1) * self.size))
            for number in range(rank(), -(-total // self.size), world_size())
        }
        found = {number: self.pieces.load(number, len(own)) for number, own in rows.items()}
        done = {number: block for number, block in found.items() if block is not None}
        missing = [number for number in rows if number not in done]
        _log_resumed(sum(map(len, done.values())))
        loader = DataLoader(
            Subset(examples, [row for number in missing for row in rows[number]]),
            self.batch_size,
            num_workers=self.num_workers,
            collate_fn=stack_examples,
            # A loader draws a seed for its workers; from a generator of its own, it leaves the global one alone.
            generator=torch.Generator(),
        )
        batches = iter(self._scored(loader, score, sum(map(len, rows.values())), sum(map(len, done.values()))))
        for number in missing:
            parts = list(islice(batches, -(-len(rows[number]) // self.batch_size)))
            done[number] = torch.cat(parts)
            self.pieces.save(number, done[number])
        return _gathered({rows[number].start: block for number, block in done.items()}, total)

    def score_stream(self, rows: Iterator[StreamedRow], score: Score) -> Tensor:
        """The same for rows that are read in order; every process passes over all of them and decodes its own."""
        done: dict[int, Tensor] = {}
        first = resumed = 0
        skipped = SkippedImages()
        with self._bar(None, 0) as bar:
            for number in count():
                block = list(islice(rows, self.size))
                if block and number % world_size() == rank():
                    content = _content_of(block) or ""
                    loaded = self.pieces.load(number, len(block), content) if content else None
                    resumed += 0 if loaded is None else len(block)
                    if loaded is None:
                        loaded = torch.cat(list(self._scored_rows(block, score, skipped)))
                        if content:
                            self.pieces.save(number, loaded, content)
                    done[first] = loaded
                first += len(block)
                bar.update(len(block))
                if len(block) < self.size:
                    break
        _log_resumed(resumed)
        return _gathered(done, first)

    def _scored(self, batches: Any, score: Score, total: int, done: int) -> Iterator[Tensor]:
        skipped = SkippedImages()
        with self._bar(total, done) as bar:
            for batch in batches if total > done else ():
                skipped.record(batch)
                rows = _of_batch(batch, score)
                bar.update(len(rows))
                yield rows

    def _scored_rows(self, block: list[StreamedRow], score: Score, skipped: SkippedImages) -> Iterator[Tensor]:
        for start in range(0, len(block), self.batch_size):
            batch = stack_examples([part.example() for part in block[start : start + self.batch_size]])
            skipped.record(batch)
            yield _of_batch(batch, score)

    def _bar(self, total: int | None, done: int) -> Any:
        shown = self.progress and rank() == 0
        return tqdm(total=total, initial=done, desc="Predicting", unit=" images", disable=not shown)


def _of_batch(batch: Mapping[str, Any], score: Score) -> Tensor:
    rows = score({name: value for name, value in batch.items() if isinstance(value, Tensor)}).double().cpu()
    if bool(rows.isnan().any()):
        raise ValueError("the model gives probabilities that are NaN; its weights are damaged, or its dtype overflows")
    return rows.masked_fill(~batch["valid"][:, None], torch.nan) if "valid" in batch else rows


def _content_of(block: list[StreamedRow]) -> str | None:
    """What identifies the images of a block; None if they are not stored as files or bytes."""
    parts: list[Any] = []
    for image in (part.image for part in block):
        if not isinstance(image, dict) or not (image.get("bytes") or image.get("path")):
            return None
        content = image.get("bytes")
        parts.append([image.get("path"), content and hashlib.blake2b(content, digest_size=16).hexdigest()])
        if content is None:
            path = str(image["path"])
            parts.append(file_state(Path(archive_of(path) or path)))
    return digest(parts)


def _log_resumed(rows: int) -> None:
    if rows:
        logger.warning("Resuming: %d predictions of an interrupted run are used.", rows)


def _gathered(blocks: Mapping[int, Tensor], total: int) -> Tensor:
    """The rows of all processes, `(total, width)`, of blocks by their first row."""
    width = max((block.shape[1] for block in blocks.values()), default=0)
    if world_size() > 1:
        # A process may have no block.
        widths = [0] * world_size()
        dist.all_gather_object(widths, width)
        width = max(widths)
    rows = torch.zeros(total, width, dtype=torch.float64)
    for first, block in blocks.items():
        rows[first : first + len(block)] = block
    if world_size() > 1:
        rows = rows.cuda() if dist.get_backend() == "nccl" else rows
        # Of every row, all processes but one have zeros.
        dist.all_reduce(rows)
    return rows.cpu()
