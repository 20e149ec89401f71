"""Parsing and checking of a language model's answers, which are not trusted."""

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from starft_hf.spuriosity.reading import packaged_text
from starft_hf.utils.names import readable


# Longer answers are cut: no list of templates takes as much.
LONGEST_ANSWER = 100_000
_MOST_ITEMS = 2_000
# Places in an answer where JSON may begin that are tried.
_MOST_STARTS = 20
# Towers take 64 or 77 tokens; anything longer is not a phrase either.
_MOST_WORDS = 16
_MOST_LETTERS = 120

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_BULLET = re.compile(r"^[ \t]*(?:[-*\u2022]|\(?\d{1,4}[.):])[ \t]+(.+)$", re.MULTILINE)
# A string of a list whose end is missing, or on a line of its own.
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.){1,500})\"[ \t]*(?:[,\]}]|$)", re.MULTILINE)
# Letters of any script, and the signs that occur in phrases.
_PLAIN = re.compile(r"(?:[^\W_]|[ .,'\u2019\-{}/&()%])+")
_FIELD = re.compile(r"\{(?:class)?\}")
_KEYS = ("template", "caption", "text", "phrase")
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s|y)$")


@lru_cache
def _words(kind: str) -> list[str]:
    """Words that are "invisible", not being about appearance (* stands for any ending); "beginnings" of the end of a
    caption; and "fillers", which do not distinguish scenes. Prepositions that do ("under", "behind") are not fillers.
    """
    return list(json.loads(packaged_text("prompts/words.json"))[kind])


class UnusableError(ValueError):
    """An item of an answer cannot be used as a template; the message is the reason, in a few words."""


def parse_answer(answer: str) -> list[str]:
    """The items of its JSON, else of a list with bullets or numbers, else of JSON that was cut off, or none."""
    text = _THOUGHTS.sub("", answer[:LONGEST_ANSWER])
    decoder = json.JSONDecoder()
    for match in islice(re.finditer(r"[\[{]", text), _MOST_STARTS):
        try:
            items = _strings(decoder.raw_decode(text, match.start())[0])
        except (ValueError, RecursionError):
            continue
        if items:
            return items[:_MOST_ITEMS]
    matches = list(_BULLET.finditer(text)) or list(_QUOTED.finditer(text))
    return [match[1] for match in matches[:_MOST_ITEMS]]


def _strings(value: Any) -> list[str]:
    """The strings of a JSON list, or of the first list in a JSON object; items may be objects with a template."""
    if isinstance(value, dict):
        value = next((part for part in value.values() if isinstance(part, list)), [])
    if not isinstance(value, list):
        return []
    items = (
        next((item[key] for key in _KEYS if key in item), None) if isinstance(item, dict) else item for item in value
    )
    return [item for item in items if isinstance(item, str)]


class TemplateCheck:
    """Turns items of an answer into templates that name no class, or raises with the reason why it cannot."""

    def __init__(self, class_names: Sequence[str]):
        names = sorted({readable(name) for name in class_names}, key=len, reverse=True)
        self._names = _any_of(map(_as_written, names))
        self._invisible = _any_of(re.escape(word).replace(r"\*", r"\w*") for word in _words("invisible"))

    def __call__(self, item: str) -> str:
        """The template that `item` is or means, or an `UnusableError`."""
        if len(item) > 4 * _MOST_LETTERS:
            raise UnusableError("too long")
        text = " ".join(unicodedata.normalize("NFKC", item).split()).strip(" \"'`,;*").replace("\u2019", "'")
        if not text or not _PLAIN.fullmatch(text):
            raise UnusableError("not plain text")
        words, number = _FIELD.subn(" ", text)
        # Models forget the field; the first word of the phrase shows where it goes.
        if number == 0 and words.split()[0].lower() in _words("beginnings"):
            text, number = f"{{}} {text[0].lower()}{text[1:]}", 1
        if number != 1 or set("{}") & set(words):
            raise UnusableError("without exactly one {} or {class}")
        if len(words.split()) > _MOST_WORDS or len(text) > _MOST_LETTERS:
            raise UnusableError("too long")
        if not re.search(r"[^\W\d_]{2}", words):
            raise UnusableError("says nothing")
        if self._names.search(words):
            raise UnusableError("names a class")
        if self._invisible.search(words):
            raise UnusableError("not about appearance")
        return text if text.endswith(".") else f"{text}."


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)


def _as_written(name: str) -> str:
    """A pattern of a class name with the usual plurals, as one word, several or with hyphens."""
    words = "[ -]?".join(map(re.escape, re.split(r"[\s-]+", name)))
    return rf"(?:{words}(?:s|es)?|{words[:-1]}ies)" if words.lower().endswith("y") else rf"{words}(?:s|es)?"


def _content_words(template: str) -> frozenset[str]:
    """Its words without fillers and endings: "{} on sandy beaches." has {sand, beach}."""
    words = re.findall(r"[^\W_]+", template.casefold())
    return frozenset(_ENDING.sub("", word) for word in words if word not in _words("fillers"))


def are_near(one: str, other: str) -> bool:
    """Whether the content words are the same, or one template of the same kind has a single word more."""
    fewer, more = sorted(map(_content_words, (one, other)), key=len)
    # A word beside {class} describes the subject, and elsewhere the scene.
    alike = ("{class}" in one) == ("{class}" in other)
    return fewer == more or (alike and bool(fewer) and fewer <= more and len(more) - len(fewer) == 1)
