"""Measures adapters as trained and converted: the structure of what they changed, the loss on a text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx
from tqdm import tqdm

from experiments.runs import bases, origins
from experiments.structure.forgetting import TextLoss
from lora_jax.adapters import UNKNOWN_BASE, Adapter
from lora_jax.analysis import structure
from lora_jax.analysis.structure import Directions, Side, Structure
from lora_jax.checks import integer
from lora_jax.conversion import to_lora
from lora_jax.errors import InputError
from lora_jax.method import Method
from lora_jax.models import architectures, hub
from lora_jax.models.encoder import EncoderConfig
from lora_jax.ranges import Number, check

NO_LOSS = (
    "an encoder with a classification head has no loss per token, so that its forgetting cannot be measured "
    "on a text"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line says.

    Attributes:
      rank: of the plain LoRA that adapters are converted to.
      text: file of a text that was not trained on; "" for none.
      length: tokens of its pieces, at most.
      k, epsilon, side: of intruder dimensions, see `lora_jax.analysis.structure`.
      model: name of the base, see `hub.find`; "" for the one that the adapters name.
    """

    rank: int = 8
    text: str = ""
    length: int = 512
    k: int = structure.TOP
    epsilon: float = structure.EPSILON
    side: Side = "outputs"
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One adapter, as it was trained or converted.

    Attributes:
      name: of the adapter.
      form: `as trained`, or `rank R`.
      method: in words.
      structures: by path of the layer (and part); {} if no weight matrix changed.
      loss: per token of the text; None without one.
    """

    name: str
    form: str
    method: str
    structures: Mapping[str, Structure]
    loss: float | None

    def of_changed(self, field: str) -> np.ndarray:
        """A number of `Structure` for every matrix that changed: an update may be zero in some layers."""
        return np.concatenate([getattr(s, field)[s.norm > 0] for s in self.structures.values()])

    def mean(self, field: str) -> float:
        """The mean of a number of `Structure` over the matrices that changed; NaN if none did."""
        return float(np.mean(self.of_changed(field))) if self.matrices else math.nan

    @property
    def matrices(self) -> int:
        """Number of weight matrices that changed."""
        return sum(int(np.sum(one.norm > 0)) for one in self.structures.values())

    @property
    def intruders(self) -> int:
        """Intruder dimensions of all matrices."""
        return structure.total_intruders(self.structures)


@dataclasses.dataclass(frozen=True)
class Results:
    """All adapters.

    Attributes:
      rows: every adapter as trained, and converted behind it where it can be.
      base_loss: of the base on the text; None without one.
      tokens: of the text that are predicted.
      notes: what could not be done, in words.
    """

    rows: list[Measured]
    base_loss: float | None
    tokens: int
    notes: list[str]

    def forgetting(self, row: Measured) -> float | None:
        """The rise of the loss per token against the base; None without a text."""
        if row.loss is None or self.base_loss is None:
            return None
        return row.loss - self.base_loss


def measure(adapters: Mapping[str, Adapter], settings: Settings) -> Results:
    """Measures adapters of one base.

    Args:
      adapters: by name.
      settings: of the command line.

    Raises:
      FileNotFoundError, ValueError: the base cannot be read or is another one, adapters are of several
        bases, none changes a weight matrix and there is no text, or a setting is out of range.
    """
    integer("--rank", settings.rank)
    integer("--length", settings.length, least=2)
    integer("--k", settings.k)
    check("--epsilon", settings.epsilon, Number(above=0, most=1))
    _check_bases(adapters)
    name = settings.model or _base_name(adapters)
    loss = _text_loss(adapters, name, settings)
    known: Directions = {}
    rows, notes = [], []
    base_loss = None
    for label, adapter in tqdm(adapters.items(), desc="adapters", disable=None):
        adapted = bases.adapted(name, adapter, label)
        base = bases.base(name, bases.head_outputs(adapter.values), origins.base_format(adapter))
        if loss and base_loss is None:
            base_loss = loss(base)
        forms: dict[str, tuple[nnx.Module, Method]] = {"as trained": (adapted, adapter.method)}
        try:
            forms[f"rank {settings.rank}"] = to_lora(adapted, adapter.method, rank=settings.rank)
        except InputError as error:
            notes.append(f"{label} is not converted: {error}.")
        for form, (model, method) in forms.items():
            found = structure.of_model(
                model, base, head=adapter.method.head or hub.HEAD, k=settings.k,
                epsilon=settings.epsilon, side=settings.side, known=known,
            )  # fmt: skip
            value = loss(model, method.special_tokens) if loss else None
            row = Measured(label, form, str(method), found, value)
            if not row.matrices:
                row = dataclasses.replace(row, structures={})
                notes.append(f"{label} ({form}) changes no weight matrix: it has no structure.")
            if row.matrices or loss:
                rows.append(row)
    if not rows:
        raise InputError(
            f"no weight matrix is changed by {', '.join(adapters)} (first method: "
            f"{next(iter(adapters.values())).method}), so that there is no structure to look at; give other "
            "adapters, or a --text for what they forgot"
        )
    if isinstance(architectures.read_config(hub.find(name)), EncoderConfig):
        notes.append(f"{name}: {NO_LOSS}.")
    return Results(rows, base_loss, loss.tokens if loss else 0, notes)


def _base_name(adapters: Mapping[str, Adapter]) -> str:
    """The name of the base that adapters name; InputError if one says nothing."""
    names = {name: adapter.notes.get("model") for name, adapter in adapters.items()}
    for name, noted in names.items():
        if not isinstance(noted, str) or not noted:
            raise InputError(f"{name} does not say what its base was: name it, --model=NAME")
    return str(next(iter(names.values())))


def _check_bases(adapters: Mapping[str, Adapter]) -> None:
    """Raises InputError for adapters of several bases, by their fingerprints."""
    first, *others = adapters
    for name in others:
        one, other = adapters[first].base, adapters[name].base
        if one != other and UNKNOWN_BASE not in (one, other):
            raise InputError(
                f"the adapters {first!r} and {name!r} are of different bases (fingerprints {one[:12]} and "
                f"{other[:12]}): their losses and ranks are not to be compared; give those of one base"
            )


def _text_loss(adapters: Mapping[str, Adapter], name: str, settings: Settings) -> TextLoss | None:
    """What measures the loss; None without a text. InputError for a base that has no such loss."""
    if not settings.text:
        return None
    folder, form = hub.find(name), origins.base_format(next(iter(adapters.values())))
    config = architectures.read_config(folder, base_format=form)
    if isinstance(config, EncoderConfig):
        raise InputError(
            f"--text={settings.text}: {name} is no decoder, and {NO_LOSS}; leave --text out"
        )
    special = [adapter.method.special_tokens for adapter in adapters.values()]
    return TextLoss(Path(settings.text), folder, config, length=settings.length, special=special)
