"""What clients may ask for: the bodies of requests in the OpenAI form, checked field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora_jax.checks import one_of
from lora_jax.data.conversations import ROLES, SYSTEM, Message
from lora_jax.errors import InputError, brief
from lora_jax.ranges import SEED, Number, Whole, check

_COMMON = {
    "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "n", "stream",
    "stream_options", "stop", "seed", "user",
}  # fmt: skip
# Fields of the API that have no effect here, and the values that say so.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0, None), "frequency_penalty": (0, None), "logit_bias": ({}, None),
    "echo": (False, None), "best_of": (1, None), "logprobs": (False, None, 0), "suffix": ("", None),
    "top_logprobs": (None, 0), "store": (False, None), "metadata": ({}, None),
    "response_format": ({"type": "text"}, None), "tools": ([], None),
    "parallel_tool_calls": (True, False, None),
}  # fmt: skip
MOST_CHOICES = 16
MOST_STOPS = 4


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A request for continuations.

    Attributes:
      model: name of the base or of an adapter.
      prompts: texts, lists of token ids, or one conversation.
      max_tokens: length of the longest continuation; None: as long as there is room.
      temperature: see `Sampling`, as the next two.
      top_p: at most 1.
      top_k: 0 is all.
      choices: continuations of every prompt.
      stream: whether pieces are sent as they come.
      usage: whether a stream ends with the numbers of tokens.
      stop: texts that end a continuation.
      seed: of the draws; None for any.
    """

    model: str
    prompts: tuple[str | tuple[int, ...] | tuple[Message, ...], ...]
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    choices: int
    stream: bool
    usage: bool
    stop: tuple[str, ...]
    seed: int | None


def completion(body: Any) -> Wanted:
    """The body of /v1/completions.

    Raises:
      InputError: a field is missing, unknown or wrong.
    """
    values = fields(body, {*_COMMON, "prompt"})
    prompt = values.get("prompt")
    several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    prompts = tuple(_prompt(one) for one in (prompt if several else [prompt]))  # type: ignore[union-attr]
    if len(prompts) > MOST_CHOICES:
        raise InputError(f"'prompt' has {len(prompts)} texts, at most {MOST_CHOICES} are taken")
    return _wanted(values, prompts, 16)


def chat(body: Any) -> Wanted:
    """The body of /v1/chat/completions.

    Raises:
      InputError: a field is missing, unknown or wrong.
    """
    values = fields(body, {*_COMMON, "messages"})
    messages = values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError("'messages' must be a list of at least one message")
    conversation = tuple(_message(message, number) for number, message in enumerate(messages))
    return _wanted(values, (conversation,), None)


def fields(
    body: Any, known: set[str], without_effect: Mapping[str, tuple[Any, ...]] = _WITHOUT_EFFECT
) -> dict[str, Any]:
    """The fields of a body.

    Args:
      body: JSON.
      known: names of fields.
      without_effect: fields that may be there with values that ask for nothing.

    Raises:
      InputError: no object, or a field is unknown or not supported.
    """
    if not isinstance(body, dict):
        raise InputError(f"the body must be a JSON object, got {brief(body)}")
    values = dict(body)
    for name, allowed in without_effect.items():
        if name in values and values[name] not in allowed:
            raise InputError(f"{name!r} is not supported by this server; leave it out")
        values.pop(name, None)
    if unknown := sorted(values.keys() - known):
        raise InputError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    return values


def _prompt(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return text_of(value, "'prompt'")
    if isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value):
        return tuple(value)
    raise InputError(f"'prompt' must be a text, token ids, or a list of these; got {brief(value)}")


def _message(value: Any, number: int) -> Message:
    where = f"messages[{number}]"
    if not isinstance(value, dict):
        raise InputError(f"{where} must be an object, got {brief(value)}")
    given = {
        key for key, part in value.items() if part is not None
    }  # clients send back what they got
    if unknown := sorted(given - {"role", "content", "name"}):
        raise InputError(f"{where}: {unknown[0]!r} is not supported by this server")
    role, content = value.get("role"), value.get("content")
    role = SYSTEM if role == "developer" else role  # its newer name
    one_of(f"{where}.role", role, ROLES)
    if isinstance(content, list):  # parts, of which texts are understood
        parts = [
            p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None
            for p in content
        ]
        if any(not isinstance(part, str) for part in parts):
            raise InputError(f"{where}.content: parts must be texts")
        content = "".join(map(str, parts))
    if not isinstance(content, str):
        raise InputError(f"{where}.content must be a text, got {brief(content)}")
    return Message(str(role), text_of(content, f"{where}.content"))


def model_of(values: Mapping[str, Any]) -> str:
    """The field `model`; raises InputError if it is no text."""
    model = values.get("model")
    if not isinstance(model, str):
        raise InputError(
            f"'model' must be the name of the base or of an adapter, got {brief(model)}"
        )
    return model


def text_of(value: str, where: str) -> str:
    """A text of whole characters; JSON can hold half of a pair, which is none."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is no text: {error}") from error
    return value


def _wanted(values: Mapping[str, Any], prompts: tuple[Any, ...], most: int | None) -> Wanted:

    def number(name: str, default: Any, allowed: Any) -> Any:
        value = values.get(name)
        return default if value is None else check(name, value, allowed)

    def flag(name: str, value: Any) -> bool:
        if value not in (None, True, False) or (
            isinstance(value, int | float) and type(value) is not bool
        ):
            raise InputError(f"{name!r} must be true or false, got {brief(value)}")
        return bool(value)

    options = values.get("stream_options") or {}
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise InputError("'stream_options' may have 'include_usage' only")
    longest = number("max_completion_tokens", None, Whole(least=1, most=2**20))
    return Wanted(
        model_of(values), prompts,
        longest or number("max_tokens", most, Whole(least=1, most=2**20)),
        float(number("temperature", 1.0, Number(least=0, most=100))),
        float(number("top_p", 1.0, Number(above=0, most=1))),
        number("top_k", 0, Whole(least=0)),
        number("n", 1, Whole(least=1, most=MOST_CHOICES)),
        flag("stream", values.get("stream")),
        flag("stream_options.include_usage", options.get("include_usage")),
        _stop(values.get("stop")),
        number("seed", None, SEED),
    )  # fmt: skip


def _stop(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
        raise InputError(f"'stop' must be a text or a list of texts, got {brief(value)}")
    if len(texts) > MOST_STOPS:
        raise InputError(f"'stop' has {len(texts)} texts, at most {MOST_STOPS} are taken")
    return tuple(texts)
