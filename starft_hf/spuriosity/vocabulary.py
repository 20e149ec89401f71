"""A vocabulary: words that images are compared with where no pool names what to look for."""

import importlib
import importlib.util
from collections.abc import Sequence
from os import PathLike, fspath

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from starft_hf.models.texts import TextEncoding
from starft_hf.utils.files import expanded, read_text
from starft_hf.utils.names import readable


# The words of the model's tokenizer.
TOKENIZER = "tokenizer"

Vocabulary = str | PathLike[str] | Sequence[str]

# How images are compared with a word, and what a pool adds of it to a caption.
WORD_CAPTION = "a photo of {}."
WORD_TEMPLATE = "{{}}, {}."

_MOST_WORDS = 20_000
_SHORTEST = 3
# Tells nouns and adjectives; in the extra "audit".
_LEXICON = "lemminflect"
# How tokenizers mark that a token begins a word, or ends one.
_MARKS = ("\u2581", "\u0120", "</w>")


def given_words(vocabulary: Vocabulary | None) -> list[str] | None:
    """The words of a list or of a file with one per line; None for those of the tokenizer, [] for none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there are no words in it, or a word is not a string.
    """
    if vocabulary is None:
        return []
    if isinstance(vocabulary, (str, PathLike)):
        if fspath(vocabulary) == TOKENIZER:
            return None
        path = expanded(vocabulary)
        if not path.is_file():
            raise FileNotFoundError(
                f"vocabulary is {fspath(vocabulary)!r}, and there is no such file; pass a file with a word per line, "
                f"a list of words, {TOKENIZER!r} for the words of the model's tokenizer, or None"
            )
        vocabulary = read_text(path).splitlines()
    words = list(dict.fromkeys(readable(word) for word in vocabulary if isinstance(word, str) and word.strip()))
    if not words or not all(isinstance(word, str) for word in vocabulary):
        raise ValueError("vocabulary must hold words, as strings, one per line of a file; or be None for no words")
    return words


def usable_words(words: Sequence[str] | None, encoding: TextEncoding, class_names: Sequence[str]) -> list[str]:
    """The words that images are compared with: those given, or else those of the tokenizer, without class names.

    A word of the tokenizer is one that it has as a single token, so that the text tower has seen it often. Of these,
    those that only connect others, such as "with", are left out, and with the extra "audit" all that are neither nouns
    nor adjectives. Words that the tokenizer does not know are left out in any case.
    """
    own = {part.lower() for name in class_names for part in (readable(name), *readable(name).split())}
    own |= {f"{name}s" for name in own}
    found = _words_of_tokenizer(encoding) if words is None else [word for word in words if encoding.knows(word)]
    return [word for word in found if word.lower() not in own][:_MOST_WORDS]


def has_lexicon() -> bool:
    """Whether the words of a tokenizer are reduced to nouns and adjectives."""
    return importlib.util.find_spec(_LEXICON) is not None


def _is_noun_or_adjective(word: str) -> bool:
    lemmas = importlib.import_module(_LEXICON).getAllLemmas(word)
    # Not plurals, which mean the same to the text tower.
    return any(word in lemmas.get(kind, ()) for kind in ("NOUN", "ADJ"))


def _words_of_tokenizer(encoding: TextEncoding) -> list[str]:
    """Its words in the order of their tokens; in most tokenizers the most frequent come first."""
    tokenizer = encoding.tokenizer
    special = set(tokenizer.all_special_tokens)
    candidates: dict[str, None] = {}
    for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        word = token
        for mark in _MARKS:
            word = word.replace(mark, "")
        if token not in special and len(word) >= _SHORTEST and word.isalpha() and word.islower():
            candidates[word] = None
    names = [word for word in candidates if word not in ENGLISH_STOP_WORDS]
    if not names:
        return []
    tokens = tokenizer(names, add_special_tokens=False, verbose=False)["input_ids"]
    found = [word for word, row in zip(names, tokens, strict=True) if len(row) == 1]
    return [word for word in found if _is_noun_or_adjective(word)] if has_lexicon() else found
