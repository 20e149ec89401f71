"""What people write into a model card, kept while the card is written again and again, here and on the Hub."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.utils import logging

from starft_hf.hub.record import public_id
from starft_hf.utils.files import read_text, write_text_atomically


logger = logging.get_logger(__name__)

CARD_FILE = "README.md"
BEGIN = "<!-- starft_hf: what follows is generated -->"
END = "<!-- starft_hf: end of what is generated -->"

# Beside the digest of the generated text, those of what people may change: metadata by their keys, and "published",
# what people had written when the card was last published.
_OPENING = re.compile(r"<!-- starft_hf: what follows is generated((?: \w+:\w+)*) -->\n")
_PUBLISHED, _TEXT = "published", "text"

# Metadata that say what a run is, which nobody but the run knows; PEFT writes some of them as well.
_OF_THE_RUN = ("base_model", "base_model_relation", "library_name", "model-index", "tags")

# What the cards of other libraries hold, which stand for nothing a person has written.
_GENERATED_ELSEWHERE = ("# Model Card for Model ID", "generated automatically according to the information the")


@dataclass(frozen=True)
class _Card:
    """The parts of a card.

    Attributes:
        metadata: in the order of the file.
        before: text before the generated part; all of it where there is none.
        generated: the generated part, or None.
        after: text after it.
        digests: what the opening comment says of what was generated, by name.
    """

    metadata: Mapping[str, Any]
    before: str
    generated: str | None = None
    after: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, where: str) -> "_Card":
        try:
            card = ModelCard(text, ignore_metadata_errors=True)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"the metadata of {where} cannot be read; correct or remove them: {error}") from error
        metadata = _without_paths(card.data.to_dict())
        opening = _OPENING.search(card.text)
        if opening is None or END not in card.text[opening.end() :]:
            return cls(metadata, card.text)
        generated, after = card.text[opening.end() :].split(END, 1)
        digests = dict(part.split(":") for part in opening.group(1).split())
        return cls(metadata, card.text[: opening.start()], generated, after, digests)

    def __str__(self) -> str:
        data = ModelCardData(**self.metadata, ignore_metadata_errors=True)
        return f"---\n{data.to_yaml()}\n---\n{self.text}"

    @property
    def text(self) -> str:
        """All but the metadata."""
        if self.generated is None:
            return self.before
        digests = "".join(f" {name}:{value}" for name, value in sorted(self.digests.items()))
        return f"{self.before}{BEGIN.replace(' -->', f'{digests} -->')}\n{self.generated}{END}{self.after}"

    @property
    def is_rewritten(self) -> bool:
        """Whether the generated part is no longer what was generated."""
        return self.generated is not None and _digest(self.generated) != self.digests.get(_TEXT)

    @property
    def own_metadata(self) -> dict[str, Any]:
        """Metadata that people have added or changed."""
        return {
            key: value
            for key, value in self.metadata.items()
            if key not in _OF_THE_RUN and _digest_of(value) != self.digests.get(key)
        }

    @property
    def edits(self) -> str:
        """A digest of all that people have written; empty where they have written nothing."""
        written = [self.before.strip(), self.after.strip(), self.generated if self.is_rewritten else ""]
        metadata = self.own_metadata
        if not any(written) and not metadata:
            return ""
        return _digest_of([*(_digest(part or "") for part in written), metadata])

    @property
    def is_edited_since_published(self) -> bool:
        return self.edits != self.digests.get(_PUBLISHED, "")


def signed(card: ModelCard, stated: Collection[str] = ()) -> ModelCard:
    """A generated card that tells what of it people change.

    Args:
        card: with the generated part between `BEGIN` and `END`; as a whole, if it has neither.
        stated: keys of metadata that the caller has stated rather than the package, which are kept like edits.

    Raises:
        ValueError: if it has but one of the two.
    """
    if (BEGIN in card.text) != (END in card.text):
        raise ValueError("the template of the card has one of {{ begin }} and {{ end }}; it needs both or neither")
    text = card.text if BEGIN in card.text else f"{BEGIN}\n{card.text.strip()}\n{END}\n"
    parts = _Card.parse(f"---\n{card.data.to_yaml()}\n---\n{text}", "the template")
    metadata = {key: value for key, value in parts.metadata.items() if key not in (*_OF_THE_RUN, *stated)}
    digests = {key: _digest_of(value) for key, value in metadata.items() if re.fullmatch(r"\w+", key)}
    return ModelCard(str(replace(parts, digests={**digests, _TEXT: _digest(parts.generated or "")})))


def update_card(folder: Path, card: ModelCard) -> None:
    """Write a generated card to `folder`, keeping what a person has written into the one that is there.

    What stands before and after the generated part stays. If the generated part itself was edited, all of the text
    stays, and only the metadata are brought up to date. Metadata that a person has added or changed stay as well.

    Args:
        folder: where the card goes.
        card: as `signed` gives it.

    Raises:
        ValueError: if the metadata of the one that is there cannot be read.
    """
    path = folder / CARD_FILE
    known = _read(read_text(path), str(path)) if path.is_file() else None
    fresh = _Card.parse(str(card), "the template")
    if known is not None:
        stated = fresh.own_metadata
        fresh = _with_edits(fresh, known)
        fresh = replace(fresh, metadata={**fresh.metadata, **stated})
    write_text_atomically(path, str(fresh))


def keep_published_edits(folder: Path, published: str | None) -> None:
    """Before a folder is published, bring what people have written into the card on the Hub into the one in it.

    Where a card was edited in both places, the one in the folder stays, and the other is in the history of the
    repository. A card in the folder that was not generated is left alone.

    Args:
        folder: that is to be published.
        published: the card on the Hub, or None.

    Raises:
        ValueError: if the metadata of either cannot be read.
    """
    path = folder / CARD_FILE
    local = _read(read_text(path), str(path)) if path.is_file() else None
    if local is None or local.generated is None:
        return
    other = _read(published, "the card on the Hub") if published is not None else None
    if other is not None:
        if not local.edits or (other.is_edited_since_published and not local.is_edited_since_published):
            local = _with_edits(local, other)
        else:
            if other.is_edited_since_published and other.edits != local.edits:
                logger.warning(
                    "The model card was edited on the Hub and in %s since it was published; the latter is published, "
                    "and the other is in the history of the repository.",
                    folder,
                )
            metadata = {**other.own_metadata, **local.metadata, "tags": _tags(other, local)}
            local = replace(local, metadata=metadata)
    digests = {name: value for name, value in local.digests.items() if name != _PUBLISHED}
    digests |= {_PUBLISHED: local.edits} if local.edits else {}
    write_text_atomically(path, str(replace(local, digests=digests)))


def _with_edits(fresh: _Card, known: _Card) -> _Card:
    """`fresh` with what people have written into `known`."""
    metadata = {**known.metadata, **fresh.metadata, **known.own_metadata, "tags": _tags(known, fresh)}
    digests = {**fresh.digests, **{name: known.digests[name] for name in (_PUBLISHED,) if name in known.digests}}
    if known.is_rewritten:
        logger.warning(
            "The text of the model card was edited by hand, so it stays as it is; only its metadata are brought up to "
            "date. Remove the generated part, with both of its comments, to have it written again."
        )
        return replace(known, metadata=metadata, digests={**digests, _TEXT: known.digests.get(_TEXT, "0")})
    before = known.before if known.generated is not None else f"{known.before.rstrip()}\n\n"
    return replace(fresh, metadata=metadata, before=before, after=known.after or "\n", digests=digests)


def _read(text: str, where: str) -> _Card | None:
    """A card that people may have written into; None for those that other libraries generate."""
    if _OPENING.search(text) is None and any(part in text for part in _GENERATED_ELSEWHERE):
        return None
    return _Card.parse(text, where)


def _tags(*cards: _Card) -> list[str]:
    return list(dict.fromkeys(tag for card in cards for tag in card.metadata.get("tags") or ()))


def _without_paths(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the local base models that PEFT writes into them, which the Hub refuses."""
    base, tags = metadata.get("base_model"), metadata.get("tags")
    if isinstance(base, str) and public_id(base) is None:
        metadata = {key: value for key, value in metadata.items() if key != "base_model"}
        if tags is not None:
            metadata["tags"] = [tag for tag in tags if base not in tag]
    return metadata


def _digest(text: str) -> str:
    # Line by line, because libraries that add something to a card write it anew.
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()


def _digest_of(value: Any) -> str:
    return _digest(json.dumps(value, sort_keys=True, default=str))
