"""Chat models that write templates: behind an OpenAI-compatible endpoint, or of `transformers` in this process."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers.utils import logging

from starft_hf.models.modes import evaluation_mode


logger = logging.get_logger(__name__)

Message = dict[str, str]

# Strict schemas need an object at the top. Answers are checked all the same: not every server applies the schema.
_SCHEMA = {
    "type": "object",
    "properties": {"templates": {"type": "array", "items": {"type": "string"}}},
    "required": ["templates"],
    "additionalProperties": False,
}
_JSON: Any = {"type": "json_schema", "json_schema": {"name": "templates", "strict": True, "schema": _SCHEMA}}
# With these, servers refuse an argument that they do not support.
_UNSUPPORTED = (400, 415, 422, 501)


class BackendError(RuntimeError):
    """A language model gave no answer."""


class ChatBackend(Protocol):
    """A language model that answers a conversation.

    Attributes:
        model_id: name of the model, for the record.
        address: distinguishes models of the same name; it is not recorded.
    """

    model_id: str
    address: str

    def __call__(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> str:
        """The answer, or a `BackendError`."""


class ChatEndpoint:
    """A model behind an OpenAI-compatible endpoint: a provider of the Hub, TGI, vLLM, `transformers serve`, Ollama.

    Structured answers are requested (`response_format`); an endpoint that refuses them is asked for plain text.

    Args:
        model: the model's id. Not needed where an endpoint serves one model only.
        base_url: URL of the endpoint, such as "http://localhost:8000/v1"; None uses a provider of the Hub.
        provider: which one, as in `huggingface_hub.InferenceClient`; None leaves it to the Hub.
        api_key: of the endpoint or the provider. The token of the Hub is used for its providers only, and never sent
            to a `base_url`.
        timeout: seconds to wait for an answer.
        retries: how often to retry after a timeout, a lost connection or an overload.

    Raises:
        ValueError: if neither a model nor a URL is given, or both a URL and a provider.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        base_url: str | None = None,
        provider: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        retries: int = 2,
    ):
        if model is None and base_url is None:
            raise ValueError("pass the id of a model, or the base_url of an endpoint, or both")
        if base_url is not None and provider is not None:
            raise ValueError(f"base_url={base_url!r} and provider={provider!r} are both given; pass one of them")
        self.model_id = model or "the endpoint's model"
        self.address = base_url or f"provider {provider}"
        self.retries = retries
        self._model = model
        self._response_format = _JSON
        # Without a key, the client would send the token of the Hub, wherever the endpoint is.
        place = {"provider": provider} if base_url is None else {"base_url": base_url}
        key = api_key or (None if base_url is None else "none")
        self._arguments: dict[str, Any] = {"timeout": timeout, "api_key": key, **place}

    def __call__(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> str:
        from huggingface_hub import InferenceClient

        client = InferenceClient(**self._arguments)
        sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        attempt = 1
        while True:
            try:
                answer: Any = client.chat_completion(
                    [*messages], model=self._model, response_format=self._response_format, **sampling
                )
                content = answer.choices[0].message.content
                return content if isinstance(content, str) else ""
            except Exception as error:
                words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                if self._response_format is not None and _status_of(error) in _UNSUPPORTED:
                    logger.warning("%r refused response_format; asking for plain text. %s", self.model_id, words)
                    self._response_format = None
                    continue
                if attempt > self.retries or not _is_transient(error):
                    times = f" (asked {attempt} times)" if attempt > 1 else ""
                    raise BackendError(
                        f"{self.model_id!r} at {self.address} gave no answer{times}: {words}. Check that it runs and "
                        "serves /v1/chat/completions. Earlier answers are cached: the same call resumes from there."
                    ) from error
                time.sleep(0.5 * 2 ** (attempt - 1))
                attempt += 1


def _status_of(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_transient(error: Exception) -> bool:
    """Whether a retry may help: after timeouts, lost connections, overloads and failures of the server."""
    status = _status_of(error)
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    names = {parent.__name__ for parent in type(error).__mro__}
    is_network = isinstance(error, (TimeoutError, ConnectionError)) or bool(names & {"TransportError", "NetworkError"})
    return is_network and not isinstance(error, OfflineModeIsEnabled)


class LocalChatModel:
    """A chat model of `transformers`, in this process.

    Args:
        model: its Hub id, its path or the loaded model.
        tokenizer: its tokenizer, with a chat template; None loads it from the source of the model.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any = None):
        from transformers import pipeline

        loaded = isinstance(model, torch.nn.Module)
        source = getattr(model.config, "_name_or_path", "") or type(model).__name__ if loaded else str(model)
        # A loaded model stays on its device; the others go to the first accelerator.
        stays = loaded and getattr(model, "hf_device_map", None) is None
        self._pipeline = pipeline(
            "text-generation",
            model=model if loaded else source,
            tokenizer=source if tokenizer is None else tokenizer,
            device=model.device if stays else None,
        )
        if not getattr(self._pipeline.tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {source!r} has no chat template, so it is not a chat model; choose one whose name "
                "ends in -Instruct or -it"
            )
        # Pools are shared, and a path of this machine means nothing to others.
        self.model_id = Path(source).name if Path(source).exists() else source
        self.address = f"this process, {source}"

    def __call__(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> str:
        model = self._pipeline.model
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature}
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), evaluation_mode(model):
            torch.manual_seed(seed)
            [output] = self._pipeline([*messages], return_full_text=False, max_new_tokens=max_tokens, **sampling)
        return str(output["generated_text"])


def as_backend(backend: Any) -> ChatBackend:
    """The argument of `generate_pool(backend=...)` as a backend: a backend, a URL, or a chat model's id or path.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(backend, str) and backend.startswith(("http://", "https://")):
        return ChatEndpoint(base_url=backend)
    if isinstance(backend, (str, torch.nn.Module)) or hasattr(backend, "__fspath__"):
        return LocalChatModel(backend)
    if callable(backend) and hasattr(backend, "model_id") and hasattr(backend, "address"):
        return backend
    raise ValueError(
        f"backend is a {type(backend).__name__}; pass the URL of an OpenAI-compatible endpoint, the id or path of a "
        "chat model, a ChatEndpoint or a LocalChatModel"
    )
