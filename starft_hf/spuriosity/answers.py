"""Parsing and checking of a language model's answers. Nothing in an answer is trusted."""

import json
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from typing import Any

from starft_hf.spuriosity.pool import CAPTION_FIELD, CLASS_FIELD
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
_QUOTED = re.compile(r"(\"(?:[^\"\\]|\\.){1,500}\")[ \t]*(?:[,\]]|$)", re.MULTILINE)
# Letters of any script, and the signs that occur in phrases.
_PLAIN = re.compile(r"(?:[^\W_]|[ .,'\u2019\-{}/&()%])+")
_KEYS = ("template", "caption", "text", "phrase")
# First words of the end of a caption.
_BEGINNINGS = frozenset(
    re.findall(
        r"\w+",
        "above across against among amid around at atop before behind below beneath beside between by during from in "
        "inside near next on outside over through under underneath with within without covered framed held hidden "
        "lit seen shot surrounded taken wrapped",
    )
)


class UnusableError(ValueError):
    """An item of an answer cannot be used as a template; the message is the reason, in a few words."""


def parse_answer(answer: str) -> list[str]:
    """The items of an answer: of its JSON, else of a list with bullets or numbers, else of JSON that was cut off.

    Args:
        answer: what a language model answered.

    Returns:
        Strings that still have to be checked; empty if there is no list.
    """
    text = _THOUGHTS.sub("", answer[:LONGEST_ANSWER])
    decoder = json.JSONDecoder()
    for match in islice(re.finditer(r"[\[{]", text), _MOST_STARTS):
        try:
            items = _strings(decoder.raw_decode(text, match.start())[0])
        except (ValueError, RecursionError):
            continue
        if items:
            return items[:_MOST_ITEMS]
    items = [match[1] for match in _BULLET.finditer(text)] or [match[1] for match in _QUOTED.finditer(text)]
    return [_unquoted(item) for item in items[:_MOST_ITEMS]]


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


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except (ValueError, RecursionError):
        return text


@lru_cache(maxsize=1)
def invisible_words() -> re.Pattern[str]:
    """Matches words that are not about appearance."""
    text = (files("starft_hf.spuriosity") / "prompts" / "not_visible.txt").read_text(encoding="utf-8")
    words = [re.escape(line.strip()) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [word.replace(r"\*", r"\w*") for word in words]
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


class TemplateCheck:
    """Turns items of an answer into templates, or raises with the reason why they cannot be used.

    Args:
        class_names: names that must not occur in a template.
    """

    def __init__(self, class_names: Sequence[str]):
        names = sorted({readable(name) for name in class_names}, key=len, reverse=True)
        self._names = re.compile(rf"\b(?:{'|'.join(map(_as_written, names))})\b", re.IGNORECASE)

    def __call__(self, item: str) -> str:
        """The template that `item` is or means.

        Raises:
            UnusableError: with the reason.
        """
        if len(item) > 4 * _MOST_LETTERS:
            raise UnusableError("too long")
        text = " ".join(unicodedata.normalize("NFKC", item).split()).strip(" \"'`,;*")
        text = text.replace("\u2019", "'")
        if not text or not _PLAIN.fullmatch(text):
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
    # Models forget the field; the first word of the phrase shows where it goes.
    return f"{CAPTION_FIELD} {text[0].lower()}{text[1:]}" if first in _BEGINNINGS else text
