"""Templates that say the same in nearly the same words."""

import re
from collections.abc import Iterable, Sequence


# Words that do not tell one scene from another. Prepositions that do ("under", "behind") are not among them.
_FILLING = frozenset(
    """a an the of in on at by to with and or from for near beside next close some its it is are being very quite
    photo picture image photograph shot class""".split()
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


def says_the_same(words: frozenset[str], others: frozenset[str]) -> bool:
    """Whether two sets of content words differ in at most one word that one of them has on top of the other's."""
    if not words or not others:
        return words == others
    fewer, more = sorted((words, others), key=len)
    return fewer <= more and len(more) - len(fewer) <= 1


def near_duplicates(templates: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of templates that say the same in nearly the same words, in order."""
    words = [content_words(template) for template in templates]
    return [
        (templates[first], templates[second])
        for second in range(len(templates))
        for first in range(second)
        if says_the_same(words[first], words[second])
    ]


def without_near_duplicates(templates: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """`templates` less those that say the same as an earlier one, or as one of `known`."""
    seen = [content_words(template) for template in known]
    kept = []
    for template in templates:
        words = content_words(template)
        if not any(says_the_same(words, other) for other in seen):
            seen.append(words)
            kept.append(template)
    return kept
