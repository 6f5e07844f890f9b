"""What a column of labels holds: classes by name, or numbers; and the way to outputs of a model and back."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from lora_jax.errors import InputError
from lora_jax.reading import Record

MOST_CLASSES = 1000
_BOOLEANS = ("true", "false")
_WHOLE = re.compile(r"-?[0-9]+")


def spelled(label: str) -> str:
    """A label as it is compared: without blanks around it, `True` and `FALSE` as JSON has them."""
    label = label.strip()
    return label.lower() if label.lower() in _BOOLEANS else label


def short_name(name: str, length: int = 24) -> str:
    """The name of a class in one line; a long one without its middle, as ends tell names apart."""
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    return f"{name[: length * 2 // 3 - 1]}…{name[-(length // 3) :]}"


def number(label: str) -> float | None:
    """The finite number that a label is; None if it is none."""
    try:
        value = float(label)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in label else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a data set.

    Attributes:
      classes: names in the order of the model's outputs; () for numbers.
      values: the classes as files write them, where these are not the names.
      mean, std: of numbers; the model learns (number - mean) / std, so that prices train as ratings do.
    """

    classes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    @property
    def regression(self) -> bool:
        """Whether labels are numbers."""
        return not self.classes

    @property
    def num_outputs(self) -> int:
        """Outputs of the model."""
        return len(self.classes) or 1

    def encoded(self, label: str) -> float | None:
        """The class id or number of a label; None for one that is not among the classes, or no number."""
        if self.regression:
            return number(label)
        for names in (self.values, self.classes):
            if label in names:
                return names.index(label)
        return None

    @property
    def expected(self) -> str:
        """What a label may be, for messages."""
        if self.regression:
            return "a finite number"
        shown = ", ".join(repr(name) for name in self.classes[:12])
        more = f" and {len(self.classes) - 12} more" if len(self.classes) > 12 else ""
        return f"one of the classes of the training file: {shown}{more}"

    def targets(self, values: Sequence[float]) -> Int[np.ndarray, " n"] | Float[np.ndarray, " n"]:
        """What the model learns of encoded labels: class ids (int32), or scaled numbers (float32)."""
        if not self.regression:
            return np.asarray(values, np.int32)
        return ((np.asarray(values, np.float64) - self.mean) / self.std).astype(np.float32)

    def numbers(self, outputs: Num[np.ndarray, "n 1"]) -> Float[np.ndarray, " n"]:
        """The numbers that a model's outputs stand for."""
        return np.asarray(outputs, np.float64)[:, 0] * self.std + self.mean

    def restored(self, targets: Num[np.ndarray, " n"]) -> list[float]:
        """Encoded labels of `targets`: class ids, or numbers to the seven digits of float32."""
        if not self.regression:
            return [float(target) for target in targets]
        return [float(f"{number:.7g}") for number in self.numbers(targets[:, None])]

    def to_json(self) -> dict[str, Any]:
        """As a record or an adapter's notes hold it."""
        if self.regression:
            return {"mean": self.mean, "std": self.std}
        return {"classes": list(self.classes)}


def from_json(record: Record) -> Labels:
    """What `Labels.to_json` gave, as a file has it; raises FileError for what is no labels."""
    if "classes" in record.values:
        return Labels(classes=tuple(record.strings("classes")))
    return Labels(mean=record.get("mean", float), std=record.get("std", float))


def found_classes(counts: Mapping[str, int]) -> Labels:
    """The classes of a training set: whole numbers in their order, other names in that of the alphabet.

    Args:
      counts: rows by label.

    Raises:
      InputError: a single class, or more than `MOST_CLASSES`.
    """
    _check_count(counts, "the labels of the training data are")
    whole = all(_WHOLE.fullmatch(label) for label in counts)
    order = sorted(counts, key=lambda label: (int(label) if whole else 0, label))
    return Labels(classes=tuple(order))


def given_classes(names: Sequence[str]) -> Labels:
    """The classes that a user names, in that order; InputError if they are too few, too many, or alike."""
    classes = tuple(map(spelled, names))
    if len(set(classes)) < len(classes):
        raise InputError(f"two of the classes {list(names)} have the same name")
    _check_count(classes, "config.data.classes names")
    return Labels(classes=classes)


def _check_count(classes: Collection[str], what: str) -> None:
    if not 2 <= len(classes) <= MOST_CLASSES:
        found = (
            f"one class, {next(iter(classes))!r}"
            if len(classes) == 1
            else f"{len(classes):,} classes"
        )
        raise InputError(
            f"{what} {found}; needed are 2 to {MOST_CLASSES:,}. Is it the right column "
            "(config.data.label)? Numbers to be predicted as such need config.labels=numbers"
        )


def found_numbers(values: Sequence[float]) -> Labels:
    """Mean and standard deviation of a training set's numbers; InputError if all are the same."""
    mean, std = float(np.mean(values)), float(np.std(values))
    if not std > 0 or not math.isfinite(std):
        raise InputError(
            f"the numbers of the training data have mean {mean:g} and standard deviation {std:g}: there is "
            "nothing to learn from them"
        )
    return Labels(mean=mean, std=std)
