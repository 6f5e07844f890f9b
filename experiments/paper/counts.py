"""Counts of trained values: the method of every row of the paper inserted into its model, shapes only."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import jax
from flax import nnx

from experiments.paper.row import PaperRow
from lora_jax.errors import InputError
from lora_jax.methods import HEAD as HEAD_GROUP
from lora_jax.models import deberta_config, encoder, gpt2
from lora_jax.models.deberta import DebertaClassifier
from lora_jax.models.encoder import Classifier
from lora_jax.models.gpt2 import GPT2

CLASSES = 2  # outputs of the heads; MNLI would have three and STS-B one

MODELS: Mapping[str, Callable[[], nnx.Module]] = {
    **{
        name: functools.partial(lambda config: Classifier(config, CLASSES, nnx.Rngs(0)), config)
        for name, config in encoder.SIZES.items()
    },
    **{
        name: functools.partial(
            lambda config: DebertaClassifier(config, CLASSES, nnx.Rngs(0)), config
        )
        for name, config in deberta_config.SIZES.items()
    },
    **{
        name: functools.partial(lambda config: GPT2(config, nnx.Rngs(0)), config)
        for name, config in gpt2.SIZES.items()
    },
}


_UNITS = {"M": 10**6, "B": 10**9}


@dataclasses.dataclass(frozen=True)
class Count:
    """A row with its count.

    Attributes:
      paper_row: the row.
      trained: number of values that train, without the head.
      head: values of the task's head, which the paper's figures leave out; None without a head.
      total: values of the whole model, with the head and what the method inserted.
      agrees: whether `trained` rounds to the printed figure.
    """

    paper_row: PaperRow
    trained: int
    head: int | None
    total: int
    agrees: bool

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        row = self.paper_row
        return {
            "table": row.table,
            "row": row.row,
            "model": row.model,
            "method": row.method.to_json(),
            "trained": self.trained,
            "head": self.head,
            "total": self.total,
            "paper": row.paper,
            "paper_value": int(printed(row.paper)[0]),
            "agrees": self.agrees,
            "reason": row.reason,
            "settings_known": row.settings_known,
            "note": row.note,
        }


def printed(figure: str) -> tuple[Decimal, Decimal]:
    """The value of a printed figure and the unit of its last digit: 0.35M -> 350000, 10000.

    Raises:
      ValueError: the figure is not a number in millions (M) or billions (B).
    """
    match = re.fullmatch(r"(\d[\d,]*)(?:\.(\d+))?([MB])", figure)
    if not match:
        raise InputError(f"{figure!r} is not a printed figure such as 0.35M, 175,255.8M or 175B")
    whole, decimals, unit = match[1].replace(",", ""), match[2] or "", _UNITS[match[3]]
    step = Decimal(unit) / 10 ** len(decimals)
    return Decimal(whole + decimals) * step, step


def rounds_to(count: int, figure: str) -> bool:
    """Whether a count, rounded to the decimals of a printed figure (half up), is that figure."""
    value, step = printed(figure)
    return (Decimal(count) / step).quantize(Decimal(1), ROUND_HALF_UP) * step == value


@functools.cache
def abstract(model: str) -> nnx.Module:
    """The pre-trained model with shapes in place of its weights; `model` is a key of `MODELS`."""
    return nnx.eval_shape(MODELS[model])


def count(row: PaperRow) -> Count:
    """Inserts the row's method into its abstract model and counts the values that train."""
    adapted = nnx.eval_shape(
        lambda model: row.method.insert(model, jax.random.key(0)), abstract(row.model)
    )
    counts = row.method.summary(adapted).counts()
    head = counts.get(HEAD_GROUP)
    trained = counts["trainable"] - (head or 0)
    return Count(row, trained, head, counts["total"], rounds_to(trained, row.paper))
