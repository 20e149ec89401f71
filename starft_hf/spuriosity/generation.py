"""Pools of templates that a language model writes for a task."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging

from starft_hf.data.captions import class_caption, inject
from starft_hf.models.modes import evaluation_mode
from starft_hf.objectives.losses import unit_rows
from starft_hf.spuriosity.answers import TemplateCheck, UnusableError, are_near, parse_answer
from starft_hf.spuriosity.backends import ChatEndpoint, LocalChatModel, Message, as_backend
from starft_hf.spuriosity.embedding import load_encoder
from starft_hf.spuriosity.pool import SpuriosityPool
from starft_hf.spuriosity.reading import packaged_text
from starft_hf.utils.files import write_text_atomically
from starft_hf.utils.hashing import digest
from starft_hf.utils.names import readable
from starft_hf.utils.store import default_folder
from starft_hf.utils.untrusted import read_json


logger = logging.get_logger(__name__)

ASPECTS = ("the background", "texture and material", "light and image quality", "other objects nearby", "style")

# Classes that a prompt names, and those that embeddings are averaged over.
_CLASSES_IN_PROMPT = 60
_CLASSES_EMBEDDED = 4
_TOKENS_PER_TEMPLATE = 40


def prompt(name: str) -> str:
    """The text of a prompt: "system", "ask" or "more"."""
    return packaged_text(f"prompts/{name}.txt")


def generate_pool(
    *,
    domain: str,
    class_names: Sequence[str],
    aspects: Sequence[str] = ASPECTS,
    n: int = 60,
    backend: ChatEndpoint | LocalChatModel | str | os.PathLike[str] | nn.Module,
    model: str | os.PathLike[str] | nn.Module | None = None,
    processor: Any = None,
    trust_remote_code: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    max_rounds: int = 4,
    similarity: float = 0.9,
    name: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> SpuriosityPool:
    """Generate a pool of templates for a task with a language model.

    Templates are kept if they have one field, are plain and short, are about appearance, name no class, and are not
    near-duplicates. Missing ones are requested again. Every answer is cached on disk, so that the same call gives the
    same pool without a request.

    Args:
        domain: purpose of the classifier, such as "birds in the wild".
        class_names: the classes.
        aspects: subjects of the templates; n is divided among them equally.
        n: number of templates, of all aspects together.
        backend: the URL of an OpenAI-compatible endpoint, the Hub id or path of a chat model, a `ChatEndpoint` or
            a `LocalChatModel`.
        model: the dual encoder to be fine-tuned, its Hub id or path. If given, templates are excluded that are too
            long for its text tower or nearly the same to it.
        processor: its processor; None loads it from the source of the model.
        trust_remote_code: whether to run code that comes with a model whose classes transformers does not have.
        temperature: sampling temperature; 0 makes the answers deterministic.
        seed: sampling seed, if the temperature is above 0.
        max_rounds: largest number of requests per aspect.
        similarity: templates are nearly the same if what they add to the plain caption has this cosine or more.
        name: name of the pool; None takes the domain.
        cache_dir: folder of the cached answers; None takes `starft/answers` under HF_HOME.
        progress: whether to show a progress bar.

    Returns:
        The pool, with model, prompts, date and answers in its `metadata`. If it has fewer than n templates, a warning
        is logged.

    Raises:
        ValueError: if a setting is out of range, or no answer held a usable template.
        BackendError: if the language model does not answer.
    """
    for what, values in (("class_names", class_names), ("aspects", aspects)):
        if isinstance(values, str) or not values or not all(isinstance(value, str) and value for value in values):
            raise ValueError(f"{what} is {values!r}; pass a list of names")
    names = list(dict.fromkeys(readable(class_name) for class_name in class_names))
    requirements = {
        "domain is empty; say in a few words what the classifier is for, as in 'birds in the wild'": domain.strip(),
        f"class_names is {list(class_names)!r}; there must be at least two classes": len(names) > 1,
        f"n is {n}; there must be at least one template for each of {len(aspects)} aspects": n >= len(aspects),
        f"max_rounds is {max_rounds}; it must be a positive integer": max_rounds >= 1,
        f"temperature is {temperature}; it must be 0 or above": temperature >= 0,
        f"similarity is {similarity}; it must be a cosine above 0 and at most 1": 0 < similarity <= 1,
    }
    for message, is_met in requirements.items():
        if not is_met:
            raise ValueError(message)
    writer = _Writer(
        domain=domain,
        class_names=names,
        backend=as_backend(backend),
        temperature=temperature,
        cache_dir=default_folder() / "answers" if cache_dir is None else Path(cache_dir),
        embed=None if model is None else _embedder(model, processor, names, trust_remote_code),
        similarity=similarity,
    )
    with tqdm(total=n, desc="Writing templates", unit=" templates", disable=not progress) as bar:
        for place, aspect in enumerate(aspects):
            wanted = n // len(aspects) + (place < n % len(aspects))
            writer.write(aspect, wanted, range(seed, seed + max_rounds), bar)
    model_id, reasons = writer.backend.model_id, _in_words(writer.rejected) or "there was no list"
    if not writer.templates:
        raise ValueError(
            f"{model_id!r} was asked {len(writer.rounds)} times, and no answer held a template that can be used: "
            f"{reasons}. Ask a larger model. The last answer: {writer.rounds[-1]['answer'][:200]!r}"
        )
    if len(writer.templates) < n:
        logger.warning(
            f"{len(writer.templates)} of {n} templates were written; of the others, {reasons}. Ask another model, "
            "raise max_rounds, or name other aspects."
        )
    return SpuriosityPool(
        list(writer.templates),
        name=name or domain,
        source=f"written by {model_id}",
        aspects=list(writer.templates.values()),
        description=f"What may be correlated with the classes of: {domain}.",
        metadata={
            "model": model_id,
            "domain": domain,
            "class_names": names,
            "temperature": temperature,
            "seed": seed,
            "rejected": dict(writer.rejected),
            "rounds": writer.rounds,
        },
    )


@dataclass
class _Writer:
    """Requests templates until there are enough, and keeps the usable ones. Settings are as in `generate_pool`."""

    domain: str
    class_names: Sequence[str]
    backend: ChatEndpoint | LocalChatModel
    temperature: float
    cache_dir: Path
    embed: Callable[[str], Tensor] | None
    similarity: float
    # The aspect of every template that is kept.
    templates: dict[str, str] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    _embeds: list[Tensor] = field(default_factory=list)

    def write(self, aspect: str, wanted: int, seeds: Sequence[int], bar: Any) -> None:
        """Request templates of an aspect until `wanted` are kept, at most once per seed."""
        check, complaint, end = TemplateCheck(self.class_names), "", len(self.templates) + wanted
        for attempt, seed in enumerate(seeds, 1):
            missing = end - len(self.templates)
            if not missing:
                return
            # A surplus, because some will be rejected.
            number = missing + max(2, missing // 4)
            messages = self._messages(aspect, number, attempt, complaint)
            answer = self._ask(messages, 200 + _TOKENS_PER_TEMPLATE * number, seed)
            self.rounds.append({"aspect": aspect, "prompt": messages, **answer})
            reasons: Counter[str] = Counter()
            for item in parse_answer(answer["answer"]):
                if len(self.templates) == end:
                    break
                try:
                    self._keep(check(item), aspect)
                    bar.update()
                except UnusableError as reason:
                    reasons[str(reason)] += 1
            self.rejected += reasons
            complaint = f"- Of your last answer, {_in_words(reasons)}." if reasons else ""

    def _messages(self, aspect: str, number: int, attempt: int, complaint: str) -> list[Message]:
        shown, more = self.class_names[:_CLASSES_IN_PROMPT], len(self.class_names) - _CLASSES_IN_PROMPT
        known = [f"- {template}" for template, own in self.templates.items() if own == aspect]
        content = Template(prompt("ask" if attempt == 1 else "more")).substitute(
            domain=self.domain,
            classes=", ".join(shown) + (f" and {more} others" if more > 0 else ""),
            aspect=aspect,
            number=number,
            known="\n".join(known) or "- nothing yet",
            complaint=complaint,
            attempt=attempt,
        )
        return [{"role": "system", "content": prompt("system")}, {"role": "user", "content": content}]

    def _keep(self, template: str, aspect: str) -> None:
        if any(are_near(template, other) for other in self.templates):
            raise UnusableError("repeats another")
        if self.embed is not None:
            embed = self.embed(template)
            if any(float(embed @ other) >= self.similarity for other in self._embeds):
                raise UnusableError("means the same as another to the model")
            self._embeds.append(embed)
        self.templates[template] = aspect

    def _ask(self, messages: list[Message], max_tokens: int, seed: int) -> dict[str, str]:
        """The answer and its date, from the cache if the same request was answered before."""
        backend, temperature = self.backend, self.temperature
        key = digest([backend.model_id, backend.address, messages, temperature, max_tokens, seed])
        file = self.cache_dir / f"answer-{key}.json"
        # A file that is missing, truncated or of another request is not used.
        with suppress(OSError, ValueError, KeyError, TypeError):
            cached = read_json(file)
            content = {name: cached[name] for name in ("date", "answer")}
            if cached["key"] == key and all(isinstance(value, str) for value in content.values()):
                return content
        answer = backend(messages, temperature=temperature, max_tokens=max_tokens, seed=seed)
        # Lone surrogates cannot be written to a file.
        answer = answer.encode("utf-8", "replace").decode("utf-8")
        content = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "answer": answer}
        try:
            write_text_atomically(file, json.dumps({"key": key, **content}, ensure_ascii=False))
        except OSError as error:
            logger.warning("Could not cache the answer in %s (%s); the next run asks again.", self.cache_dir, error)
        return content


def _in_words(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def _embedder(
    model: Any, processor: Any, class_names: Sequence[str], trust_remote_code: bool
) -> Callable[[str], Tensor]:
    """A function that embeds what a template adds to the plain caption, as a unit row `(D,)`."""
    model, encoder = load_encoder(model, processor, trust_remote_code=trust_remote_code)
    plain = [class_caption(name, "a photo of a {}.") for name in class_names]

    def embed(template: str) -> Tensor:
        texts = [inject(template, caption, name) for caption, name in zip(plain, class_names, strict=True)]
        if not all(map(encoder.encode_texts.fits, texts)):
            raise UnusableError("too long for the text tower")
        with evaluation_mode(model):
            embeds = encoder.encode(model, texts=[*plain[:_CLASSES_EMBEDDED], *texts[:_CLASSES_EMBEDDED]])
        before, after = embeds.float().cpu().chunk(2)
        return unit_rows(after.mean(0) - before.mean(0))

    return embed
