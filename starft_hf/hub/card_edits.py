"""Model cards of which one part is generated again at every save and push; what people write around it stays."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import yaml_dump
from transformers.utils import logging

from starft_hf.hub.record import public_id
from starft_hf.utils.files import read_text, write_text_atomically


logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
BEGIN = "<!-- starft_hf: begin of the generated part; write above or below it -->"
END = "<!-- starft_hf: end of the generated part -->"

# The mark at the beginning has digests: of the generated part as it was written, and of the text and the metadata that
# people may change, as they were last published.
_GENERATED = re.compile(rf"(.*?){BEGIN.removesuffix(' -->')}((?: \w+:\w+)*) -->\n(.*?){END}(.*)", re.DOTALL)

# Metadata that only the run knows; PEFT writes some of them as well.
_OF_THE_RUN = ("base_model", "base_model_relation", "library_name", "model-index", "tags")

# Found in cards that other libraries generate, which hold nothing that a person has written.
_GENERATED_ELSEWHERE = ("# Model Card for Model ID", "generated automatically according to the information the")


@dataclass(frozen=True)
class _Card:
    metadata: dict[str, Any]
    before: str
    generated: str | None = None
    after: str = ""
    marked: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, where: str) -> "_Card":
        try:
            card = ModelCard(text, ignore_metadata_errors=True)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"the metadata of {where} cannot be read; correct or remove them: {error}") from error
        metadata = _without_paths(card.data.to_dict())
        match = _GENERATED.fullmatch(card.text)
        if match is None:
            return cls(metadata, card.text)
        before, digests, generated, after = match.groups()
        return cls(metadata, before, generated, after, dict(digest.split(":") for digest in digests.split()))

    def __str__(self) -> str:
        text = self.before
        if self.generated is not None:
            digests = "".join(f" {name}:{value}" for name, value in sorted(self.marked.items()))
            text += f"{BEGIN.removesuffix(' -->')}{digests} -->\n{self.generated}{END}{self.after}"
        return f"---\n{yaml_dump(self.metadata, sort_keys=False)}---\n{text}"

    @property
    def is_edited_inside(self) -> bool:
        return "generated" in self.marked and self.marked["generated"] != _digest(self.generated or "")

    def written(self, but: Collection[str] = ()) -> dict[str, str]:
        """Digests of what people may have written: the text, and the metadata but for some keys."""
        inside = self.generated or "" if self.is_edited_inside else ""
        metadata = {key: value for key, value in self.metadata.items() if key not in (*_OF_THE_RUN, *but)}
        return {
            "text": _digest(f"{self.before.strip()}\n{END}\n{self.after.strip()}\n{END}\n{inside}"),
            "metadata": _digest(json.dumps(metadata, sort_keys=True, default=str)),
        }

    def with_text_of(self, other: "_Card") -> "_Card":
        """This card with the text that people wrote into another."""
        if other.is_edited_inside:
            logger.warning(
                "The generated part of the model card was edited by hand, so it is not generated again; only the "
                "metadata are updated. Remove that part, with both of its marks, to have it generated."
            )
            marked = {**self.marked, "generated": other.marked["generated"]}
            return replace(self, before=other.before, generated=other.generated, after=other.after, marked=marked)
        before = other.before if other.generated is not None else f"{other.before.rstrip()}\n\n"
        return replace(self, before=before, after=other.after or "\n")

    def with_metadata_of(self, other: "_Card", keep: Collection[str] = ()) -> "_Card":
        """This card with the tags and metadata of another, but for keys of the run and those to keep."""
        own = {key: value for key, value in self.metadata.items() if key in (*_OF_THE_RUN, *keep)}
        tags = [tag for card in (other, self) for tag in card.metadata.get("tags") or ()]
        return replace(self, metadata={**self.metadata, **other.metadata, **own, "tags": list(dict.fromkeys(tags))})


def update_card(folder: Path, card: ModelCard, stated: Collection[str] = ()) -> None:
    """Write a generated card into `folder`, keeping what a person has written into the one there.

    The text around the generated part, further tags and metadata that are not of the run stay. If the generated part
    was edited by hand, it stays too, with a warning.

    Args:
        folder: where the card goes.
        card: with the generated part between `BEGIN` and `END`; all of it is generated if it has neither.
        stated: keys of metadata that the caller stated, which replace those in the folder.

    Raises:
        ValueError: if `card` has only one of the two marks, or the metadata in the folder cannot be read.
    """
    if (BEGIN in card.text) != (END in card.text):
        raise ValueError("the template of the card has one of {{ begin }} and {{ end }}; it needs both or neither")
    if BEGIN not in card.text:
        card.text = f"{BEGIN}\n{card.text.strip()}\n{END}\n"
    fresh = _Card.parse(str(card), "the template")
    generated = {"generated": _digest(fresh.generated or "")}
    fresh = replace(fresh, marked={**fresh.written(but=stated), **generated})
    known = _in_folder(folder)
    if known is not None:
        fresh = replace(fresh, marked={**fresh.marked, **known.marked, **generated})
        fresh = fresh.with_text_of(known).with_metadata_of(known, keep=stated)
    write_text_atomically(folder / CARD_FILE, str(fresh))


def keep_published_edits(folder: Path, published: str | None) -> None:
    """Before a folder is published, bring what people have written into the card on the Hub into the one in it.

    A card in the folder that was not generated is left alone. Where both were edited, the one in the folder wins.

    Args:
        folder: to be published.
        published: the card on the Hub, or None.

    Raises:
        ValueError: if the metadata of either cannot be read.
    """
    local = _in_folder(folder)
    if local is None or local.generated is None:
        return
    other = None if published is None else _read(published, "the card on the Hub")
    if other is not None:
        last, here, there = local.marked, local.written(), other.written()
        edited = {part for part in here if here[part] != last.get(part)}
        if any(there[part] not in (here[part], last.get(part)) for part in edited):
            logger.warning(
                "The model card was edited both in %s and on the Hub; the former is published, and the latter stays "
                "in the history of the repository.",
                folder,
            )
        merged = local if "text" in edited else local.with_text_of(other)
        local = merged.with_metadata_of(other, keep=local.metadata if "metadata" in edited else ())
    write_text_atomically(folder / CARD_FILE, str(replace(local, marked={**local.marked, **local.written()})))


def _in_folder(folder: Path) -> _Card | None:
    path = folder / CARD_FILE
    return _read(read_text(path), str(path)) if path.is_file() else None


def _read(text: str, where: str) -> _Card | None:
    """A card that people may have written into; None for one that another library generated."""
    if "<!-- starft_hf:" not in text and any(part in text for part in _GENERATED_ELSEWHERE):
        return None
    return _Card.parse(text, where)


def _without_paths(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the local base models that PEFT writes into them, which the Hub refuses."""
    base = metadata.get("base_model")
    if not isinstance(base, str) or public_id(base) is not None:
        return metadata
    tags = [tag for tag in metadata.get("tags") or () if base not in tag]
    return {key: value for key, value in metadata.items() if key != "base_model"} | {"tags": tags}


def _digest(text: str) -> str:
    # Without spaces at the ends of lines, which other libraries that rewrite the card remove.
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()
