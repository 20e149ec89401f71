"""Pools written by a language model for a user's own task."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging

from starft_hf.models.adapters import base_model_of
from starft_hf.models.encoder import DualEncoder, unit_rows
from starft_hf.models.loading import load_model, load_processor
from starft_hf.models.modes import evaluation_mode
from starft_hf.reference.store import default_folder
from starft_hf.spuriosity.answers import TemplateCheck, UnusableError, parse_answer
from starft_hf.spuriosity.backends import ChatBackend, Message, as_backend
from starft_hf.spuriosity.duplicates import Gist
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.hashing import digest
from starft_hf.utils.names import readable


logger = logging.get_logger(__name__)

ASPECTS = ("the background", "texture and material", "light and image quality", "other objects nearby", "style")

# Classes that a prompt names, and those that embeddings are averaged over.
_CLASSES_IN_PROMPT = 60
_CLASSES_EMBEDDED = 4
_TOKENS_PER_TEMPLATE = 40


@dataclass(frozen=True)
class _Request:
    """What is asked for."""

    domain: str
    class_names: tuple[str, ...]
    temperature: float
    seed: int

    def messages(self, aspect: str, number: int, known: Sequence[str], attempt: int, complaint: str) -> list[Message]:
        shown = ", ".join(self.class_names[:_CLASSES_IN_PROMPT])
        more = len(self.class_names) - _CLASSES_IN_PROMPT
        content = Template(prompt("ask" if attempt == 1 else "more")).substitute(
            domain=self.domain,
            classes=f"{shown} and {more} others" if more > 0 else shown,
            aspect=aspect,
            number=number,
            known="\n".join(f"- {template}" for template in known) or "- nothing yet",
            complaint=complaint,
            attempt=attempt,
        )
        return [{"role": "system", "content": prompt("system")}, {"role": "user", "content": content}]


def prompt(name: str) -> str:
    """The text of a prompt: "system", "ask" or "more"."""
    text = (files("starft_hf.spuriosity") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return text.strip()


def generate_pool(
    *,
    domain: str,
    class_names: Sequence[str],
    aspects: Sequence[str] = ASPECTS,
    n: int = 60,
    backend: ChatBackend | str | os.PathLike[str] | nn.Module,
    model: str | os.PathLike[str] | nn.Module | None = None,
    processor: Any = None,
    temperature: float = 0.0,
    seed: int = 0,
    max_rounds: int = 4,
    similarity: float = 0.9,
    name: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SpuriosityPool:
    """Have a language model name what may go together with the classes of a task, as a pool of templates.

    Of its answers, which are read as JSON or else as a list, templates are kept that can be used: with one field,
    plain and short, about appearance, naming no class, and unlike each other. What is missing is asked for again.

    Every answer is kept on disk, so that the same call gives the same pool again without asking.

    Args:
        domain: what the classifier is for, such as "birds in the wild".
        class_names: the classes.
        aspects: what the templates are about; as many are asked for of each.
        n: templates wanted, of all aspects together.
        backend: the address of an OpenAI-compatible endpoint, the Hub id or path of a chat model, a `ChatEndpoint` or
            a `LocalChatModel`.
        model: the dual encoder that is to be fine-tuned, its Hub id or path. With it, templates are left out that are
            too long for its text tower or nearly the same to it.
        processor: its processor; None loads it from where the model is from.
        temperature: of the language model; 0 makes it deterministic.
        seed: of the language model, where the temperature is above 0.
        max_rounds: how often at most to ask about an aspect.
        similarity: cosine of what two templates add to the plain caption, from which they are nearly the same.
        name: what the pool is called; None takes the domain.
        cache_dir: folder of the answers; None takes `starft/answers` under HF_HOME.
        progress: whether to show a progress bar.

    Returns:
        The pool, with model, prompts, date and answers in its `metadata`. It may be smaller than wanted, of which a
        warning tells.

    Raises:
        ValueError: if a setting is out of range, or no answer held a template that can be used.
        BackendError: if the language model cannot be asked.
    """
    names = tuple(dict.fromkeys(readable(class_name) for class_name in class_names))
    _check(domain, class_names, names, aspects, n, max_rounds, temperature, similarity)
    asked = as_backend(backend)
    folder = default_folder() / "answers" if cache_dir is None else Path(cache_dir)
    writer = _Writer(
        request=_Request(domain, names, temperature, seed),
        ask=_Answers(asked, folder),
        check=TemplateCheck(names),
        encoder=None if model is None else _Embeddings.of(model, processor, names),
        similarity=similarity,
    )
    with tqdm(total=n, desc="Writing templates", unit=" templates", disable=not progress) as bar:
        for place, aspect in enumerate(aspects):
            wanted = n // len(aspects) + (place < n % len(aspects))
            writer.write(aspect, wanted, max_rounds, bar.update)
    if not writer.templates:
        raise ValueError(writer.nothing())
    if len(writer.templates) < n:
        logger.warning(
            "%d of %d templates were written; of the others, %s. Ask another model, raise max_rounds, or name other "
            "aspects.",
            len(writer.templates),
            n,
            _in_words(writer.rejected) or "none were answered",
        )
    return SpuriosityPool(
        writer.templates,
        name=name or domain,
        source=f"written by {asked.model_id}",
        aspects=writer.aspects,
        description=f"What may go together with the classes of: {domain}.",
        metadata={
            "model": asked.model_id,
            "domain": domain,
            "class_names": list(names),
            "temperature": temperature,
            "seed": seed,
            "rejected": dict(writer.rejected),
            "rounds": writer.rounds,
        },
    )


def _check(
    domain: str,
    class_names: Sequence[str],
    names: Sequence[str],
    aspects: Sequence[str],
    n: int,
    max_rounds: int,
    temperature: float,
    similarity: float,
) -> None:
    if not domain.strip():
        raise ValueError("domain is empty; say in a few words what the classifier is for, as in 'birds in the wild'")
    for what, values in (("class_names", class_names), ("aspects", aspects)):
        if isinstance(values, str) or not values or not all(isinstance(value, str) and value for value in values):
            raise ValueError(f"{what} is {values!r}; pass a list of names")
    if len(names) < 2:
        raise ValueError(f"class_names is {list(class_names)!r}; there must be at least two classes")
    if n < len(aspects):
        raise ValueError(f"n is {n}, which is less than one template for each of {len(aspects)} aspects")
    if max_rounds < 1:
        raise ValueError(f"max_rounds is {max_rounds}; it is a number from 1")
    if temperature < 0:
        raise ValueError(f"temperature is {temperature}; it is 0 or above")
    if not 0 < similarity <= 1:
        raise ValueError(f"similarity is {similarity}; it is a cosine above 0, to 1")


@dataclass
class _Writer:
    """Asks until there are enough templates, and keeps those that can be used."""

    request: _Request
    ask: "_Answers"
    check: TemplateCheck
    encoder: "_Embeddings | None"
    similarity: float
    templates: list[str] = field(default_factory=list)
    aspects: list[str] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    _gists: list[Gist] = field(default_factory=list)
    _embeds: list[Tensor] = field(default_factory=list)

    def write(self, aspect: str, wanted: int, max_rounds: int, on_template: Callable[[int], Any]) -> None:
        """Ask about an aspect until `wanted` templates are kept, at most `max_rounds` times."""
        kept, complaint = 0, ""
        for attempt in range(1, max_rounds + 1):
            if kept >= wanted:
                return
            # Some of what is answered will not do.
            number = wanted - kept + max(2, (wanted - kept) // 4)
            known = [name for name, own in zip(self.templates, self.aspects, strict=True) if own == aspect]
            messages = self.request.messages(aspect, number, known, attempt, complaint)
            tokens = 200 + _TOKENS_PER_TEMPLATE * number
            answer, date = self.ask(messages, self.request.temperature, tokens, self.request.seed + attempt - 1)
            self.rounds.append({"aspect": aspect, "date": date, "prompt": messages, "answer": answer})
            reasons: Counter[str] = Counter()
            for item in parse_answer(answer):
                if kept >= wanted:
                    break
                try:
                    self._keep(item, aspect)
                except UnusableError as reason:
                    reasons[str(reason)] += 1
                    continue
                kept += 1
                on_template(1)
            self.rejected += reasons
            complaint = f"- Of your last answer, {_in_words(reasons)}." if reasons else ""

    def _keep(self, item: str, aspect: str) -> None:
        template = self.check(item)
        gist = Gist.of(template)
        if any(gist.is_near(other) for other in self._gists):
            raise UnusableError("repeats another")
        if self.encoder is not None:
            embed = self.encoder(template)
            if any(float(embed @ other) >= self.similarity for other in self._embeds):
                raise UnusableError("means the same as another to the model")
            self._embeds.append(embed)
        self._gists.append(gist)
        self.templates.append(template)
        self.aspects.append(aspect)

    def nothing(self) -> str:
        """Why there is no template at all."""
        why = _in_words(self.rejected) or "nothing in them was a list"
        last = self.rounds[-1]["answer"][:200]
        return (
            f"{self.ask.backend.model_id!r} was asked {len(self.rounds)} times, and no answer held a template that "
            f"can be used: {why}. The last answer began {last!r}. Ask a larger model."
        )


def _in_words(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


@dataclass
class _Answers:
    """Asks a language model what it has not been asked before; answers are kept on disk."""

    backend: ChatBackend
    folder: Path

    def __call__(self, messages: list[Message], temperature: float, max_tokens: int, seed: int) -> tuple[str, str]:
        """The answer, and the day it was given."""
        key = digest([self.backend.model_id, self.backend.address, messages, temperature, max_tokens, seed])
        file = self.folder / f"answer-{key}.json"
        kept = _read(file, key)
        if kept is not None:
            return kept
        # Lone surrogates cannot be written to a file.
        answer = self.backend(messages, temperature=temperature, max_tokens=max_tokens, seed=seed)
        answer = answer.encode("utf-8", "replace").decode("utf-8")
        date = time.strftime("%Y-%m-%d", time.gmtime())
        try:
            write_text_atomically(file, json.dumps({"key": key, "date": date, "answer": answer}, ensure_ascii=False))
        except OSError as error:
            logger.warning("The answer could not be kept in %s (%s); the next run asks again.", self.folder, error)
        return answer, date


def _read(file: Path, key: str) -> tuple[str, str] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        answer, date = content["answer"], content["date"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = content.get("key") == key and isinstance(answer, str) and isinstance(date, str)
    return (answer, date) if whole else None


@dataclass
class _Embeddings:
    """What a template adds to the plain caption, to the dual encoder that is to be fine-tuned."""

    model: nn.Module
    encoder: DualEncoder
    class_names: Sequence[str]
    longest: str

    @classmethod
    def of(cls, model: Any, processor: Any, class_names: Sequence[str]) -> "_Embeddings":
        model = load_model(model)
        encoder = DualEncoder.of(model, load_processor(base_model_of(model), processor))
        tokenizer = encoder.encode_texts.tokenizer
        longest = max(class_names, key=lambda name: len(tokenizer(name)["input_ids"]))
        return cls(model, encoder, class_names[:_CLASSES_EMBEDDED], longest)

    def __call__(self, template: str) -> Tensor:
        """A unit row `(D,)`.

        Raises:
            UnusableError: if it is too long for the text tower.
        """
        pool = SpuriosityPool([template])
        encoding = self.encoder.encode_texts
        text = pool.inject(f"a photo of a {self.longest}.", self.longest, 0)
        if len(encoding.tokenizer(text)["input_ids"]) > encoding.max_length:
            raise UnusableError("too long for the text tower")
        plain = [f"a photo of a {name}." for name in self.class_names]
        texts = [pool.inject(caption, name, 0) for caption, name in zip(plain, self.class_names, strict=True)]
        with evaluation_mode(self.model):
            embeds = self.encoder.encode(self.model, texts=[*plain, *texts]).float().cpu()
        before, after = embeds[: len(plain)].mean(0), embeds[len(plain) :].mean(0)
        return unit_rows(after - before)
