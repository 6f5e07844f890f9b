"""Several runs on one base, ready for `make_runs_train_step`: for sweeps over a model of your own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from lora_jax import partition
from lora_jax.method import Method
from lora_jax.partition import Labels, Params, Structure
from lora_jax.sweeps import padding
from lora_jax.sweeps.common_method import common_method
from lora_jax.sweeps.runs import RunValues, run_values, stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together:
    """Runs with one frozen base.

    Attributes:
      structure: of the model with the common method.
      labels: group of every parameter.
      trainable: of all runs, padded, with a first axis of runs.
      frozen: of the base.
      values: of all runs.
      shapes: of every run's parameters without padding.
    """

    structure: Structure[nnx.Module]
    labels: Labels
    trainable: dict[str, Any]
    frozen: Params
    values: RunValues
    shapes: tuple[dict[str, padding.Shape], ...]

    def run(self, trainable: Mapping[str, Any], number: int) -> dict[str, Any]:
        """One run's parameters out of the stacked ones, without padding: for the run's method."""
        padded = {path: leaf[number] for path, leaf in trainable.items()}
        return padding.cut(padded, self.shapes[number])


def together(
    model: nnx.Module,
    methods: Sequence[Method],
    learning_rates: Sequence[float],
    keys: Sequence[jax.Array] | jax.Array,
) -> Together:
    """Starts runs that share a model.

    Args:
      model: pre-trained; it is left as it is.
      methods: of every run; they may differ in rank, alpha, scaling, initial values and dropout.
      learning_rates: of every run.
      keys: one for each run, for what its method inserts.

    Raises:
      ValueError: methods that cannot share a program, or numbers of arguments that differ.
    """
    common = common_method(methods)
    adapted = common.insert(model, keys[0])
    labels = common.labels(adapted)
    structure, room, frozen = partition.split(adapted, labels)
    starts, values = [], []
    for method, rate, key in zip(methods, learning_rates, keys, strict=True):
        adapted_run = method.insert(model, key)
        starts.append(partition.split(adapted_run, method.labels(adapted_run))[1])
        values.append(run_values(adapted_run, rate))
    padded = [padding.padded(start, padding.shapes_of(room)) for start in starts]
    shapes = tuple(padding.shapes_of(start) for start in starts)
    return Together(
        structure=structure, labels=labels, trainable=padding.stacked(padded), frozen=frozen,
        values=stack(values), shapes=shapes,
    )  # fmt: skip
