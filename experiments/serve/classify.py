"""The route of classifiers: classes with their probabilities, or numbers, in the form of vLLM's API."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from experiments.runs.answers import probabilities
from experiments.serve import bodies
from experiments.serve.classifier import ServedClassifier, Texts
from experiments.serve.replies import Events, check_answered, json_of
from lora_jax.data.labels import Labels
from lora_jax.errors import InputError, brief
from lora_jax.serving.adapters import Version
from lora_jax.serving.examples import Ticket

PATHS = ("/v1/classify", "/classify")
# Fields of the API that have no effect here, and the values that say so.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "truncate_prompt_tokens": (None,), "priority": (0, None), "add_special_tokens": (True, None),
    "activation": (True, None), "use_activation": (True, None), "softmax": (True, None),
}  # fmt: skip
_WHAT = "a text, a list of texts, or a list of pairs of texts"


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A request for classes or numbers.

    Attributes:
      model: name of an adapter.
      inputs: all of them texts, or all of them pairs.
    """

    model: str
    inputs: tuple[Texts, ...]


def wanted(body: Any) -> Wanted:
    """The body of /v1/classify.

    Raises:
      InputError: a field is missing, unknown or wrong.
    """
    values = bodies.fields(body, {"model", "input", "user"}, _WITHOUT_EFFECT)
    model, given = bodies.model_of(values), values.get("input")
    items = given if isinstance(given, list) else [given]
    if not items:
        raise InputError(f"'input' is empty; it must be {_WHAT}")
    inputs = tuple(_texts(item, number) for number, item in enumerate(items))
    if len({len(texts) for texts in inputs}) > 1:
        raise InputError(f"'input' has texts and pairs together; it must be {_WHAT}")
    return Wanted(model, inputs)


def _texts(item: Any, number: int) -> Texts:
    """A text, or the two of a pair; what `experiments.predict` refuses in a table is refused here."""
    where = f"'input', item {number}"
    texts = item if isinstance(item, list) and len(item) == 2 else [item]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"'input' must be {_WHAT}; item {number} is {brief(item)}")
    for text in texts:
        if not text.strip() or "\0" in text:
            found = "a NUL character" if text.strip() else "an empty text"
            raise InputError(f"{where} has {found}")
    return tuple(bodies.text_of(text, where) for text in texts)


def routes(served: ServedClassifier, seconds: float) -> list[Route]:
    """The routes.

    Args:
      served: the models.
      seconds: until a request is given up.
    """

    async def classify(request: Request) -> Response:
        asked = wanted(await json_of(request))
        if asked.model not in served.names:
            await run_in_threadpool(served.scan)
        answer = Answer()
        version = await run_in_threadpool(answer.submit, served, asked, seconds)
        tickets = await answer.tickets(request)
        labels: Labels = version.about.labels
        data = _data(labels, [ticket.outputs for ticket in tickets if ticket.outputs is not None])
        return JSONResponse({**_head(asked.model), "data": data, "usage": answer.usage()})

    return [Route(path, classify, methods=["POST"]) for path in PATHS]


class Answer:
    """The inputs of one request, from the engine's thread to the event loop."""

    def __init__(self) -> None:
        self._events = Events()
        self._tickets: list[Ticket] = []
        self._left = 0

    def submit(self, served: ServedClassifier, asked: Wanted, seconds: float) -> Version:
        """Reads the texts and hands them to the engine; it takes a while, so not in the event loop.

        Returns:
          What the name of the model stood for.

        Raises:
          InputError: an unknown adapter, or texts that it does not read.
          QueueFullError, ClosedError: too many texts wait, or none are taken any more.
        """
        self._left = len(asked.inputs)
        with served.using(asked.model) as version:
            examples = served.examples(version, asked.inputs)
            self._tickets = served.engine.submit(examples, version, self._tell, seconds)
        return version

    def _tell(self, ticket: Ticket) -> None:
        """Tells of the last input, and of one that failed; the engine's thread calls it."""
        self._left -= 1
        if not self._left or ticket.reason != "done":
            self._events.tell(0)

    async def tickets(self, request: Request) -> list[Ticket]:
        """All inputs with their outputs, or some of them without if the client is gone.

        Raises:
          FailedError: the engine failed with one of them, or its time was over.
        """
        try:
            await self._events.next(request.is_disconnected)
            for ticket in self._tickets:
                check_answered(ticket)
            return self._tickets
        finally:
            for ticket in self._tickets:
                ticket.cancel()

    def usage(self) -> dict[str, int]:
        """The tokens of the inputs."""
        tokens = sum(len(ticket.example.tokens) for ticket in self._tickets)
        return {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def _head(model: str) -> dict[str, Any]:
    made = f"classify-{secrets.token_hex(12)}"
    return {"id": made, "object": "list", "created": int(time.time()), "model": model}


def _data(labels: Labels, outputs: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """An answer for every input."""
    if not outputs:
        return []
    rows = np.stack(outputs)
    if labels.regression:
        return [
            {"index": i, "label": None, "probs": None, "num_classes": 1, "value": float(number)}
            for i, number in enumerate(labels.numbers(rows))
        ]
    return [
        {
            "index": i, "label": labels.classes[int(own.argmax())], "probs": own.tolist(),
            "num_classes": len(own),
        }
        for i, own in enumerate(probabilities(rows))
    ]  # fmt: skip
