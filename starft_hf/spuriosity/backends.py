"""Language models that can be asked: one of `transformers` in this process, or one behind an endpoint."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers.utils import logging


logger = logging.get_logger(__name__)

Message = dict[str, str]


class BackendError(RuntimeError):
    """A language model could not be asked."""


class ChatBackend(Protocol):
    """A language model that can be asked.

    Attributes:
        model_id: what the model is called, for the record.
        address: tells it from models of the same name elsewhere; it is not recorded.
    """

    model_id: str
    address: str

    def __call__(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> str:
        """The answer to a conversation.

        Raises:
            BackendError: if there is none.
        """


class ChatEndpoint:
    """A model behind an OpenAI-compatible endpoint: a provider of the Hub, TGI, vLLM, `transformers serve`, Ollama.

    Args:
        model: the model's id. Not needed where an endpoint serves one model only.
        base_url: where the endpoint is, such as "http://localhost:8000/v1"; None asks a provider of the Hub.
        provider: which one, as of `huggingface_hub.InferenceClient`; None leaves it to the Hub.
        api_key: of the endpoint or the provider. The token of the Hub is used for its providers only, and never sent
            to a `base_url`.
        timeout: seconds to wait for an answer.
        retries: how often to ask again after a timeout, a lost connection or an overload.

    Raises:
        ValueError: if neither a model nor an address is given, or both an address and a provider.
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
        self._arguments: dict[str, Any] = {"timeout": timeout}
        if base_url is not None:
            # Without a key, the client would send the token of the Hub, wherever the endpoint is.
            self._arguments |= {"base_url": base_url, "api_key": api_key or "none"}
        else:
            self._arguments |= {"provider": provider, "api_key": api_key}

    def __call__(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> str:
        from huggingface_hub import InferenceClient

        client = InferenceClient(**self._arguments)
        for attempt in range(self.retries + 1):
            try:
                answer = client.chat_completion(
                    [*messages], model=self._model, temperature=temperature, max_tokens=max_tokens, seed=seed
                )
                return _content(answer)
            except Exception as error:
                if attempt == self.retries or not _may_pass(error):
                    raise BackendError(self._message(error, attempt + 1)) from error
                time.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable")

    def _message(self, error: Exception, attempts: int) -> str:
        times = f" (asked {attempts} times)" if attempts > 1 else ""
        first = " ".join(str(error).split())[:300]
        return (
            f"{self.model_id!r} at {self.address} gave no answer{times}: {type(error).__name__}: {first}. Check that "
            "it runs and serves /v1/chat/completions. Earlier answers are kept: the same call goes on from there."
        )


def _content(answer: Any) -> str:
    content = answer.choices[0].message.content
    return content if isinstance(content, str) else ""


def _may_pass(error: Exception) -> bool:
    """Whether asking again may help: timeouts, lost connections, overloads and failures of the server."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return bool(status in (408, 425, 429) or status >= 500)
    names = {parent.__name__ for parent in type(error).__mro__}
    return isinstance(error, (TimeoutError, ConnectionError)) or bool(names & {"TransportError", "NetworkError"})


class LocalChatModel:
    """A chat model of `transformers`, in this process.

    Args:
        model: its Hub id, its path or the loaded model.
        tokenizer: its tokenizer, with a chat template; None loads it from where the model is from.

    Raises:
        ValueError: if the tokenizer has no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any = None):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if isinstance(model, torch.nn.Module):
            self.model: Any = model
            name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        else:
            name = str(model)
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype="auto", device_map=None)
        self.tokenizer = tokenizer if tokenizer is not None else AutoTokenizer.from_pretrained(name)
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {name!r} has no chat template, so it is no chat model; choose one whose name ends "
                "in -Instruct or -it"
            )
        # A pool is for others as well, whom a path tells nothing.
        self.model_id = Path(name).name if Path(name).exists() else name
        self.address = f"this process, {name}"

    def __call__(self, messages: Sequence[Message], *, temperature: float, max_tokens: int, seed: int) -> str:
        inputs = self.tokenizer.apply_chat_template(
            [*messages], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=devices), torch.no_grad():
                torch.manual_seed(seed)
                output = self.model.generate(
                    **inputs,
                    max_new_tokens=max_tokens,
                    pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                    **sampling,
                )
        finally:
            self.model.train(was_training)
        answer: str = self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return answer


def as_backend(backend: Any) -> ChatBackend:
    """What `generate_pool(backend=...)` takes: a backend, the address of an endpoint, or a chat model's id or path.

    Raises:
        ValueError: if it is nothing of the kind.
    """
    if isinstance(backend, str) and backend.startswith(("http://", "https://")):
        return ChatEndpoint(base_url=backend)
    if isinstance(backend, (str, torch.nn.Module)) or hasattr(backend, "__fspath__"):
        return LocalChatModel(backend)
    if callable(backend) and hasattr(backend, "model_id") and hasattr(backend, "address"):
        return backend
    raise ValueError(
        f"backend is a {type(backend).__name__}; pass the address of an OpenAI-compatible endpoint, the id or path of "
        "a chat model, a ChatEndpoint or a LocalChatModel"
    )
