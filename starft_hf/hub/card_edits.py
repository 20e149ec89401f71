"""Model cards of which one part is generated again at every save and push; what people write around it stays."""

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
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
# Stands in snippets for the model until it is known where it is published.
FOLDER = "path/to/this/folder"

# The first mark also holds digests: of the generated part as it was written, and of the text around it, with that part
# if a person has edited it, and the metadata as they were last published. They show what was edited since.
_BEGIN = BEGIN.removesuffix(" -->")
_GENERATED = re.compile(rf"(.*?){_BEGIN}((?: \w+:\w+)*) -->\n(.*?){END}(.*)", re.DOTALL)

_HEADING = re.compile(r"#{1,3} ")
_AFTER_RESULTS = "## How to use"

# Metadata that only the run knows; PEFT writes some of them as well.
_OF_THE_RUN = ("base_model", "base_model_relation", "library_name", "model-index", "tags")

# Found in cards that other libraries generate, which hold nothing that a person has written.
_GENERATED_ELSEWHERE = ("# Model Card for Model ID", "generated automatically according to the information the")


@dataclass
class _Card:
    metadata: dict[str, Any]
    before: str
    generated: str | None
    after: str
    digests: dict[str, str]

    @classmethod
    def parse(cls, text: str, where: str) -> "_Card | None":
        """The card, or None if another library generated it."""
        if _BEGIN not in text and any(part in text for part in _GENERATED_ELSEWHERE):
            return None
        try:
            card = ModelCard(text, ignore_metadata_errors=True)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"the metadata of {where} cannot be read; correct or remove them: {error}") from error
        metadata = _without_local_base(card.data.to_dict())
        match = _GENERATED.fullmatch(card.text)
        before, digests, generated, after = match.groups() if match else (card.text, "", None, "")
        return cls(metadata, before, generated, after, dict(digest.split(":") for digest in digests.split()))

    def write(self, folder: Path) -> None:
        digests = "".join(f" {name}:{value}" for name, value in sorted(self.digests.items()))
        text = f"{self.before}{_BEGIN}{digests} -->\n{self.generated}{END}{self.after}"
        write_text_atomically(folder / CARD_FILE, f"---\n{yaml_dump(self.metadata, sort_keys=False)}---\n{text}")

    def current_digests(self, but: Collection[str] = ()) -> dict[str, str]:
        """Digests of what people may edit: the text around the generated part, and the metadata but for some keys."""
        metadata = {key: value for key, value in self.metadata.items() if key not in (*_OF_THE_RUN, *but)}
        written, edited = self.digests.get("generated"), self.generated or ""
        # The generated part counts once a person has edited it.
        if written is None or written == _digest(edited):
            edited = ""
        return {
            "text": _digest(f"{self.before.strip()}\n{END}\n{self.after.strip()}\n{END}\n{edited}"),
            "metadata": _digest(json.dumps(metadata, sort_keys=True, default=str)),
        }

    def take_text(self, other: "_Card") -> None:
        """Replace the text around the generated part by another card's; the part itself only if it was edited."""
        self.before = other.before if other.generated is not None else f"{other.before.rstrip()}\n\n"
        self.after = other.after or "\n"
        written = other.digests.get("generated")
        if written is not None and written != _digest(other.generated or ""):
            logger.warning(
                "The generated part of the model card was edited by hand, so it is not generated again; only the "
                "metadata are updated. Remove that part, with both of its marks, to have it generated."
            )
            self.generated, self.digests["generated"] = other.generated, written

    def take_metadata(self, other: "_Card", keep: Collection[str] = ()) -> None:
        """Add another card's tags, and its metadata but for keys of the run and those to keep."""
        own = {key: value for key, value in self.metadata.items() if key in (*_OF_THE_RUN, *keep)}
        tags = [tag for card in (other, self) for tag in card.metadata.get("tags") or ()]
        self.metadata |= other.metadata | own | {"tags": list(dict.fromkeys(tags))}


def update_card(folder: Path, card: ModelCard, stated: Collection[str] = ()) -> None:
    """Write a generated card into `folder`; text around its marks, tags and metadata that are not the run's stay.

    `stated` are keys of metadata that the caller stated, which replace those in the folder. Raises ValueError if
    `card` has only one of the marks `BEGIN` and `END`, or the metadata in the folder cannot be read.
    """
    if (BEGIN in card.text) != (END in card.text):
        raise ValueError("the template of the card has one of {{ begin }} and {{ end }}; it needs both or neither")
    if BEGIN not in card.text:
        card.text = f"{BEGIN}\n{card.text.strip()}\n{END}\n"
    fresh, known = _Card.parse(str(card), "the template"), _in_folder(folder)
    assert fresh is not None
    fresh.digests = fresh.current_digests(but=stated) | (known.digests if known is not None else {})
    fresh.digests["generated"] = _digest(fresh.generated or "")
    if known is not None:
        fresh.take_text(known)
        fresh.take_metadata(known, keep=stated)
    fresh.write(folder)


def keep_published_edits(folder: Path, published: str | None, repo_id: str | None = None) -> None:
    """Before `folder` is published, bring what people wrote into the card on the Hub, or None, into the one in it.

    Snippets that were written before it was known where they are published load `repo_id` then. A card in the folder
    that was not generated is left alone. Where both were edited, the one in the folder wins.
    """
    local = _in_folder(folder)
    if local is None or local.generated is None:
        return
    other = None if published is None else _Card.parse(published, "the card on the Hub")
    if other is not None:
        last, here, there = local.digests, local.current_digests(), other.current_digests()
        edited = {part for part in here if here[part] != last.get(part)}
        if any(there[part] not in (here[part], last.get(part)) for part in edited):
            logger.warning(
                "The model card was edited both in %s and on the Hub; the former is published, and the latter stays "
                "in the history of the repository.",
                folder,
            )
        if "text" not in edited:
            local.take_text(other)
        local.take_metadata(other, keep=local.metadata if "metadata" in edited else ())
    if (
        repo_id is not None
        and local.generated is not None
        and local.digests.get("generated") == _digest(local.generated)
    ):
        local.generated = local.generated.replace(repr(FOLDER), repr(repo_id))
        local.digests["generated"] = _digest(local.generated)
    local.digests |= local.current_digests()
    local.write(folder)


def update_section(folder: Path, heading: str, text: str) -> None:
    """Put a section into the generated part of the card in `folder`, in place of the one with its heading, if any.

    It follows the results. An empty text removes it. A card that was not generated, or whose generated part a person
    has edited, is left alone.
    """
    card = _in_folder(folder)
    if card is None or card.generated is None or card.digests.get("generated") != _digest(card.generated):
        return
    lines = card.generated.splitlines(keepends=True)
    tops = [place for place, line in enumerate(lines) if _HEADING.match(line)]
    own = next((place for place in tops if lines[place].strip() == heading), None)
    if own is None:
        first = own = next((place for place in tops if lines[place].strip() == _AFTER_RESULTS), len(lines))
    else:
        first, own = own, next((place for place in tops if place > own), len(lines))
    card.generated = "".join([*lines[:first], *([f"{text.rstrip()}\n\n"] if text else []), *lines[own:]])
    card.digests["generated"] = _digest(card.generated)
    card.write(folder)


def remove_local_base(folder: Path) -> None:
    """Remove the path of a local base model, which PEFT writes and the Hub refuses, from the card in `folder`."""
    card = ModelCard(read_text(folder / CARD_FILE), ignore_metadata_errors=True)
    metadata = _without_local_base(card.data.to_dict())
    write_text_atomically(folder / CARD_FILE, f"---\n{yaml_dump(metadata, sort_keys=False)}---\n{card.text}")


def _without_local_base(metadata: dict[str, Any]) -> dict[str, Any]:
    base = metadata.get("base_model")
    if not isinstance(base, str) or public_id(base) is not None:
        return metadata
    tags = [tag for tag in metadata.get("tags") or () if base not in tag]
    return {key: value for key, value in metadata.items() if key != "base_model"} | {"tags": tags}


def _in_folder(folder: Path) -> _Card | None:
    path = folder / CARD_FILE
    return _Card.parse(read_text(path), str(path)) if path.is_file() else None


def _digest(text: str) -> str:
    # Without spaces at the ends of lines, which other libraries that rewrite the card remove.
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()
