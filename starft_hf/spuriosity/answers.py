"""What a language model answered, read as templates. Nothing in an answer is trusted."""

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from starft_hf.spuriosity.pool import CAPTION_FIELD, CLASS_FIELD
from starft_hf.utils.names import readable


# Beyond that, an answer is cut: a list of templates is never so long.
LONGEST_ANSWER = 100_000
_MOST_ITEMS = 2_000
# Towers take 64 or 77 tokens; what is longer than this is no phrase either.
_MOST_WORDS = 16
_MOST_LETTERS = 120

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)(?:```|\Z)", re.DOTALL)
_BULLET = re.compile(r"\s*(?:[-*\u2022]|\(?\d{1,4}[.):])\s+(.+)")
_QUOTED = re.compile(r"\s*\"((?:[^\"\\]|\\.)+)\"\s*,?\s*")
# Letters of any script, and the signs that occur in phrases.
_PLAIN = re.compile(r"[^\W_]|[ .,'\u2019\-{}/&()%]")
_KEYS = ("template", "caption", "text", "phrase")
# What the end of a caption begins with.
_BEGINNINGS = frozenset(
    [
        *("above", "across", "against", "among", "amid", "around", "at", "atop", "before", "behind", "below"),
        *("beneath", "beside", "between", "by", "during", "from", "in", "inside", "near", "next", "on", "outside"),
        *("over", "through", "under", "underneath", "with", "within", "without"),
        *("covered", "framed", "held", "hidden", "lit", "seen", "shot", "surrounded", "taken", "wrapped"),
    ]
)


class UnusableError(ValueError):
    """An item of an answer is no template that can be used; the message is the reason, in a few words."""


def parse_answer(answer: str) -> list[str]:
    """The items of an answer: of JSON if there is any, also if it is cut off, else of a list with bullets or numbers.

    Args:
        answer: whatever a language model said.

    Returns:
        Strings that need to be checked; empty if there is no list.
    """
    text = _THOUGHTS.sub("", answer[:LONGEST_ANSWER])
    fenced = [block for block in _FENCE.findall(text) if "[" in block or "{" in block]
    for candidate in (text, *fenced):
        items = _items_of_json(candidate.strip())
        if items:
            return items[:_MOST_ITEMS]
    lines = [_BULLET.fullmatch(line) or _QUOTED.fullmatch(line) for line in text.splitlines()]
    return [match[1] for match in lines if match is not None][:_MOST_ITEMS]


def _items_of_json(text: str) -> list[str]:
    decoder = json.JSONDecoder()
    # A list is looked for where one may begin; of an answer of brackets, only the first few are tried.
    starts = [0, *(match.start() for _, match in zip(range(20), re.finditer(r"[\[{]", text), strict=False))]
    for start in starts:
        try:
            items = _strings(decoder.raw_decode(text, start)[0])
        except (ValueError, RecursionError):
            items = _items_of_truncated(decoder, text, start)
        if items:
            return items
    return []


def _items_of_truncated(decoder: json.JSONDecoder, text: str, start: int) -> list[str]:
    """The items before the place where a JSON list breaks off."""
    if text[start : start + 1] != "[":
        return []
    values: list[Any] = []
    place = start + 1
    while len(values) < _MOST_ITEMS and (match := re.compile(r"\s*,?\s*").match(text, place)):
        try:
            value, place = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            break
        values.append(value)
    return _strings(values)


def _strings(value: Any) -> list[str]:
    """The strings of a JSON list, or of the first list in a JSON object; items may be objects with a template."""
    if isinstance(value, dict):
        value = next((part for part in value.values() if isinstance(part, list)), [])
    if not isinstance(value, list):
        return []
    items = [
        next((item[key] for key in _KEYS if key in item), None) if isinstance(item, dict) else item for item in value
    ]
    return [item for item in items if isinstance(item, str)]


@lru_cache(maxsize=1)
def invisible_words() -> re.Pattern[str]:
    """Matches words that are not about what a photo looks like."""
    text = (files("starft_hf.spuriosity") / "prompts" / "not_visible.txt").read_text(encoding="utf-8")
    words = [re.escape(line.strip()) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [word.replace(r"\*", r"\w*") for word in words]
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


class TemplateCheck:
    """Turns items of an answer into templates, or says why they cannot be used.

    Args:
        class_names: a template must name none of them.
    """

    def __init__(self, class_names: Sequence[str]):
        names = sorted({readable(name) for name in class_names}, key=len, reverse=True)
        self._names = re.compile(rf"\b(?:{'|'.join(map(_as_written, names))})\b", re.IGNORECASE)

    def __call__(self, item: str) -> str:
        """The template that `item` is, or means.

        Raises:
            UnusableError: with the reason.
        """
        if len(item) > 4 * _MOST_LETTERS:
            raise UnusableError("too long")
        text = " ".join(unicodedata.normalize("NFKC", item).split()).strip(" \"'`,;*")
        text = text.replace("\u2019", "'")
        if not text or not all(_PLAIN.fullmatch(letter) for letter in text):
            raise UnusableError("not plain text")
        text = _with_field(text)
        words = text.replace(CAPTION_FIELD, " ").replace(CLASS_FIELD, " ")
        if "{" in words or "}" in words or text.count(CAPTION_FIELD) + text.count(CLASS_FIELD) != 1:
            raise UnusableError("without exactly one {} or {class}")
        if len(words.split()) > _MOST_WORDS or len(text) > _MOST_LETTERS:
            raise UnusableError("too long")
        if not re.search(r"[^\W\d_]{2}", words):
            raise UnusableError("says nothing")
        if self._names.search(words):
            raise UnusableError("names a class")
        if invisible_words().search(words):
            raise UnusableError("not about appearance")
        return text if text.endswith(".") else f"{text}."


def _as_written(name: str) -> str:
    """A pattern of a class name with the usual plurals, as one word, several or with hyphens."""
    words = "[ -]?".join(map(re.escape, re.split(r"[\s-]+", name)))
    return rf"(?:{words}(?:s|es)?|{words[:-1]}ies)" if words.lower().endswith("y") else rf"{words}(?:s|es)?"


def _with_field(text: str) -> str:
    if CAPTION_FIELD in text or CLASS_FIELD in text:
        return text
    first = text.split(maxsplit=1)[0].lower()
    # Models forget the field; where it goes is plain from how the phrase begins.
    return f"{CAPTION_FIELD} {text[0].lower()}{text[1:]}" if first in _BEGINNINGS else text
