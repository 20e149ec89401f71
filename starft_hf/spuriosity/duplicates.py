"""Templates that say the same in nearly the same words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


# Words that do not tell one scene from another. Prepositions that do ("under", "behind") are not among them.
_FILLING = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "by",
        "to",
        "with",
        "and",
        "or",
        "from",
        "for",
        "near",
        "beside",
        "next",
        "close",
        "some",
        "its",
        "it",
        "is",
        "are",
        "being",
        "very",
        "quite",
        "photo",
        "picture",
        "image",
        "photograph",
        "shot",
        "class",
        "covered",
    ]
)
_ENDINGS = ("ing", "ed", "es", "s", "y")


def content_words(template: str) -> frozenset[str]:
    """The words of a template that say something, without their endings: "{} on sandy beaches." is {sand, beach}."""
    words = re.findall(r"[^\W_]+", template.casefold())
    return frozenset(_stem(word) for word in words if word not in _FILLING)


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


@dataclass(frozen=True)
class Gist:
    """What a template says.

    Attributes:
        words: its content words.
        describes_class: whether it puts the class name into words of its own, so that they describe the subject.
    """

    words: frozenset[str]
    describes_class: bool

    @classmethod
    def of(cls, template: str) -> "Gist":
        return cls(content_words(template), "{class}" in template)

    def is_near(self, other: "Gist") -> bool:
        """Whether the words are the same, or of templates of one kind one has a single word on top of the other's."""
        fewer, more = sorted((self.words, other.words), key=len)
        if fewer == more:
            return True
        alike = self.describes_class == other.describes_class
        return alike and bool(fewer) and fewer <= more and len(more) - len(fewer) == 1


def near_duplicates(templates: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of templates that say the same in nearly the same words, in order."""
    gists = [Gist.of(template) for template in templates]
    return [
        (templates[first], templates[second])
        for second in range(len(templates))
        for first in range(second)
        if gists[first].is_near(gists[second])
    ]
