"""How a model is trained: optimisation, types, the log and checkpoints, as checked, frozen settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from lora_jax.checks import instance
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.method import Around
from lora_jax.partition import Labels
from lora_jax.ranges import Number, OneOf, Text, Whole, check_settings, setting
from lora_jax.training import optimizer
from lora_jax.training.optimizer import Epsilon
from lora_jax.training.progress import LoopSettings

AUTO, KEEP = "auto", "keep"  # of `TrainSettings.base_dtype`
Prng = Literal["threefry2x32", "rbg", "unsafe_rbg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamSettings:
    """Constants of AdamW; see `optimizer.adamw`, whose defaults these are.

    Attributes:
      b1, b2: decay of the first and of the second moment, in [0, 1).
      eps: added to the root of the second moment.
      epsilon: whether that happens `after` the moment's bias correction or `before` it.
      no_decay: regular expression of the paths that are exempt from weight decay; "" exempts none.
    """

    b1: float = setting(0.9, Number(least=0, below=1))
    b2: float = setting(0.999, Number(least=0, below=1))
    eps: float = setting(1e-8, Number(above=0))
    epsilon: Epsilon = setting("after", OneOf(get_args(Epsilon)))
    no_decay: str = setting(optimizer.NO_DECAY, Text(empty="none"))

    def __post_init__(self) -> None:
        check_settings(self, "adam.")
        Expression(self.no_decay, "adam.no_decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of a run that do not depend on its task, its model or its method.

    Attributes:
      epochs: passes over the data.
      learning_rate: peak of the schedule, which rises linearly from 0 and falls linearly to 0.
      warmup_ratio: share of the updates during which the learning rate rises.
      warmup_steps: number of these updates, where `warmup_ratio` is 0; not both.
      weight_decay: decoupled decay, see `AdamSettings.no_decay`.
      max_grad_norm: gradients are clipped to this global norm; 0 is off.
      accumulate: batches per update, which trains as one batch of all their examples (or tokens) would;
        the last update of an epoch takes what is left.
      adam: further constants of AdamW.
      base_dtype: type of the frozen parameters: `keep` leaves them as the model has them, `auto` is float32
        on CPUs and bfloat16 on accelerators, or the name of a type. What trains, and the optimizer's
        state, is float32.
      prng: generator of the random bits of dropout; `rbg` is faster on accelerators.
      log_every: steps between two lines of the log.
      checkpoint_every: steps between two checkpoints; there is one after every epoch, too.
      init_adapter: folder of a run on the same base whose LoRA factors start this one, of the same rank and
        scale, or at a larger rank with the same update; "" for none.
      gradient_batches: batches whose mean gradient starts the factors of `init="lora_ga"`.
    """

    epochs: int = setting(3, Whole(least=0))
    learning_rate: float = setting(1e-3, Number(least=0))
    warmup_ratio: float = setting(0.06, Number(least=0, most=1))
    warmup_steps: int = setting(0, Whole(least=0))
    weight_decay: float = setting(0.0, Number(least=0))
    max_grad_norm: float = setting(1.0, Number(least=0))
    accumulate: int = setting(1, Whole())
    adam: AdamSettings = dataclasses.field(default_factory=AdamSettings)
    base_dtype: str = setting(KEEP, Text())
    prng: Prng = setting("threefry2x32", OneOf(get_args(Prng)))
    log_every: int = setting(50, Whole())
    checkpoint_every: int = setting(500, Whole())
    init_adapter: str = setting("", Text(empty="none"))
    gradient_batches: int = setting(8, Whole())

    def __post_init__(self) -> None:
        check_settings(self)
        if self.warmup_steps and self.warmup_ratio:
            raise InputError(
                f"warmup_ratio is {self.warmup_ratio:g} and warmup_steps is {self.warmup_steps}, of which "
                "the second would be ignored: set the other one to 0"
            )
        instance("adam", self.adam, AdamSettings, "AdamSettings(eps=1e-8)")
        if self.base_dtype not in (AUTO, KEEP):
            _check_dtype(self.base_dtype)

    @property
    def dtype(self) -> str | None:
        """Name of the base's type on this backend; None leaves the model's."""
        if self.base_dtype == KEEP:
            return None
        if self.base_dtype != AUTO:
            return str(jnp.dtype(self.base_dtype))
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"

    def updates(self, per_epoch: int) -> int:
        """Updates of a whole run with so many batches per epoch."""
        return self.epochs * -(-per_epoch // self.accumulate)

    def optimizer(
        self,
        labels: Labels,
        per_epoch: int,
        learning_rate: float | jax.Array | None = None,
        of_method: Callable[[int], Around | None] = lambda updates: None,
    ) -> tuple[optax.Schedule, optax.GradientTransformationExtraArgs]:
        """The learning rate by update, and AdamW for the labelled parameters.

        Args:
          labels: group of every parameter that trains.
          per_epoch: batches of an epoch.
          learning_rate: replaces that of the settings; it may be traced.
          of_method: of the number of updates, what the method does to its optimizer (`Method.around`).

        Raises:
          ValueError: the warm-up does not end before the run, or an epoch has fewer batches than an update.
        """
        if self.accumulate > per_epoch:
            raise InputError(
                f"accumulate is {self.accumulate}, but an epoch has {per_epoch} batches only; lower "
                "accumulate or batch_size"
            )
        updates = self.updates(per_epoch)
        peak = self.learning_rate if learning_rate is None else learning_rate
        schedule = optimizer.linear_schedule(peak, updates, self.warmup_ratio, self.warmup_steps)
        adam = self.adam
        transformation = optimizer.adamw(
            labels, schedule, weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm,
            accumulate=self.accumulate, per_epoch=per_epoch, b1=adam.b1, b2=adam.b2, eps=adam.eps,
            epsilon=adam.epsilon, no_decay=adam.no_decay, of_method=of_method(updates),
        )  # fmt: skip
        return schedule, transformation

    def loop(
        self,
        schedule: optax.Schedule,
        per_epoch: int,
        *,
        headline: str,
        smaller_is_better: bool = False,
        label: str = "",
    ) -> LoopSettings:
        """The settings of the loop.

        Args:
          schedule: learning rate by update, see `optimizer`.
          per_epoch: batches of an epoch.
          headline: the metric that chooses the best epoch.
          smaller_is_better: whether a smaller headline is the better one.
          label: shown at the progress bar.
        """
        return LoopSettings(
            epochs=self.epochs, per_epoch=per_epoch, headline=headline, schedule=schedule,
            accumulate=self.accumulate, log_every=self.log_every,
            checkpoint_every=self.checkpoint_every, label=label,
            smaller_is_better=smaller_is_better,
        )  # fmt: skip


def _check_dtype(name: str) -> None:
    try:
        floating = jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise InputError(
            f"base_dtype must be {KEEP!r}, {AUTO!r} or a floating-point type such as 'bfloat16', got "
            f"{name!r}"
        )
