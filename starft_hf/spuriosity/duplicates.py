"""Near-duplicates of templates: nearly the same words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations


# Words that do not distinguish scenes. Prepositions that do ("under", "behind") are not among them.
_FILLER = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at by to with and or from for near beside next close some its it is are being very quite "
        "photo picture image photograph shot class covered",
    )
)
_ENDINGS = ("ing", "ed", "es", "s", "y")


def _stem(word: str) -> str:
    ending = next((ending for ending in _ENDINGS if word.endswith(ending) and len(word) - len(ending) >= 3), "")
    return word.removesuffix(ending)


@dataclass(frozen=True)
class Gist:
    """What a template says.

    Attributes:
        words: its content words without their endings: "{} on sandy beaches." is {sand, beach}.
        describes_class: whether it puts the class name into words of its own, so that they describe the subject.
    """

    words: frozenset[str]
    describes_class: bool

    @classmethod
    def of(cls, template: str) -> "Gist":
        words = re.findall(r"[^\W_]+", template.casefold())
        return cls(frozenset(_stem(word) for word in words if word not in _FILLER), "{class}" in template)

    def is_near(self, other: "Gist") -> bool:
        """Whether the words are the same, or one has a single word more than the other, of templates of one kind."""
        fewer, more = sorted((self.words, other.words), key=len)
        if fewer == more:
            return True
        alike = self.describes_class == other.describes_class
        return alike and bool(fewer) and fewer <= more and len(more) - len(fewer) == 1


def near_duplicates(templates: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of templates that say the same in nearly the same words."""
    gists = [(template, Gist.of(template)) for template in templates]
    return [(one, other) for (one, gist), (other, near) in combinations(gists, 2) if gist.is_near(near)]
