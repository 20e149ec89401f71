"""Chat models that write templates: behind an OpenAI-compatible endpoint, or of `transformers` in this process."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers.utils import logging

from starft_hf.models.modes import evaluation_mode
from starft_hf.spuriosity.reading import packaged_text
from starft_hf.utils.bounded import bounded
from starft_hf.utils.files import local_or_hub
from starft_hf.utils.untrusted import parse_json
from starft_hf.utils.waiting import answered


logger = logging.get_logger(__name__)

Message = dict[str, str]

# Answers with some hundred templates are far smaller.
_MOST_BYTES = 4 * 2**20

# With these, servers refuse an argument that they do not support.
_UNSUPPORTED = (400, 415, 422, 501)


class BackendError(RuntimeError):
    """A language model gave no answer."""


class ChatEndpoint:
    """A model behind an OpenAI-compatible endpoint: a provider of the Hub, TGI, vLLM, `transformers serve`, Ollama.

    Structured answers are requested (`response_format`); an endpoint that refuses them is asked for plain text.

    Args:
        model: the model's id. Not needed where an endpoint serves one model only.
        base_url: URL of the endpoint, such as "http://localhost:8000/v1"; None uses a provider of the Hub.
        provider: which one, as in `huggingface_hub.InferenceClient`; None leaves it to the Hub.
        api_key: of the endpoint or the provider. The token of the Hub is used for its providers only, and never sent
            to a `base_url`.
        timeout: seconds to wait for a whole answer.
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
        # Distinguishes models of the same name; it is not recorded.
        self.address = base_url or f"provider {provider}"
        self.retries = retries
        self._model = model
        # Answers are checked all the same: not every server applies the schema.
        self._response_format: Any = parse_json(packaged_text("prompts/response_format.json"))
        self._arguments: dict[str, Any] = {"timeout": timeout, "api_key": api_key, "provider": provider}
        if base_url is not None:
            # Without a key, the client would send the token of the Hub, wherever the endpoint is.
            self._arguments = {"timeout": timeout, "api_key": api_key or "none", "base_url": base_url}

    def __call__(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> str:
        from huggingface_hub import InferenceClient

        # Encoded answers could unpack to anything.
        client = InferenceClient(**self._arguments, headers={"Accept-Encoding": "identity"})
        sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        attempt = 0
        while True:
            attempt += 1
            try:
                ask = partial(
                    client.chat_completion,
                    [*messages],
                    model=self._model,
                    response_format=self._response_format,
                    **sampling,
                )
                within = partial(bounded, ask, _MOST_BYTES, self._arguments["timeout"])
                answer: Any = answered(within, self.address, self._arguments["timeout"])
                content = answer.choices[0].message.content
                return content if isinstance(content, str) else ""
            except Exception as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                if status in _UNSUPPORTED and self._response_format is not None:
                    logger.warning("%r refused response_format; asking for plain text. %s", self.model_id, words)
                    self._response_format, attempt = None, 0
                elif attempt <= self.retries and _is_transient(error, status):
                    time.sleep(0.5 * 2 ** (attempt - 1))
                else:
                    raise BackendError(
                        f"{self.model_id!r} at {self.address} gave no answer (asked {attempt} times): {words}. Check "
                        "that it serves /v1/chat/completions. Answers are cached: the same call resumes from there."
                    ) from error


def _is_transient(error: Exception, status: int | None) -> bool:
    """Whether a retry may help: after timeouts, lost connections, overloads and failures of the server."""
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    # By its name, because versions of huggingface_hub differ in the HTTP library that they use.
    lost = isinstance(error, (TimeoutError, ConnectionError)) and not isinstance(error, OfflineModeIsEnabled)
    return lost or any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


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
        if loaded:
            source = getattr(model.config, "_name_or_path", "") or type(model).__name__
        else:
            source = local_or_hub(model, "model")
        # A loaded model stays on its device; the others go to the first accelerator.
        device = model.device if loaded and getattr(model, "hf_device_map", None) is None else None
        tokenizer = source if tokenizer is None else tokenizer
        model = model if loaded else source
        # None, the default, asks on the terminal.
        settings = {"tokenizer": tokenizer, "device": device, "trust_remote_code": False}
        self._pipeline = pipeline("text-generation", model, **settings)
        if not getattr(self._pipeline.tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {source!r} has no chat template; choose a chat model, often named -Instruct or -it"
            )
        # Pools are shared, and a path of this machine means nothing to others.
        self.model_id = Path(source).name if Path(source).exists() else source
        self.address = f"this process, {source}"

    def __call__(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> str:
        model = self._pipeline.model
        greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else greedy
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), evaluation_mode(model):
            torch.manual_seed(seed)
            [output] = self._pipeline([*messages], return_full_text=False, max_new_tokens=max_tokens, **sampling)
        return str(output["generated_text"])


def as_backend(backend: Any) -> ChatEndpoint | LocalChatModel:
    """The argument of `generate_pool(backend=...)` as a backend."""
    if isinstance(backend, str) and backend.startswith(("http://", "https://")):
        return ChatEndpoint(base_url=backend)
    if isinstance(backend, (str, torch.nn.Module)) or hasattr(backend, "__fspath__"):
        return LocalChatModel(backend)
    if callable(backend) and hasattr(backend, "model_id") and hasattr(backend, "address"):
        return backend
    raise ValueError(
        f"backend is a {type(backend).__name__}; pass a URL, the id or path of a chat model, a ChatEndpoint or a "
        "LocalChatModel"
    )
