"""LoRA for layers that are one einsum of their inputs with one weight: the letters tell the roles of axes."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Inexact, Num

from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Contraction, on_axes
from lora_jax.low_rank.kinds import TwoProducts
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.low_rank.products import with_factor
from lora_jax.low_rank.update_settings import UpdateSettings


class EinsumKind(TwoProducts):
    """An einsum of inputs and kernel, in this order.

    A letter of the kernel that the inputs and the result have is a batch axis; one that only the inputs
    have is contracted; one that only the result has is an output.
    """

    def einsum_equation(self) -> str | None:
        """The layer's equation; None if it is not known."""
        equation: str | None = self.configured().einsum_str
        return equation

    def check(self, settings: UpdateSettings) -> None:
        """Raises ValueError for layers that cannot be adapted."""
        equation = self.einsum_equation()
        if equation is None:
            raise InputError(
                "an Einsum without einsum_str gets its equation only when called, so the roles "
                "of its axes are unknown; give einsum_str to its constructor"
            )
        if equation.count("->") != 1 or equation.count(",") != 1:
            raise InputError(
                f"einsum {equation!r} must have two operands, the inputs and the weight, and '->'"
            )
        inputs, weight, outputs = self._letters()
        lost = [c for c in weight if c not in inputs and c not in outputs]
        repeated = len(set(weight)) != len(weight)
        if "..." in weight or lost or repeated:
            raise InputError(
                f"the weight of einsum {equation!r} must have plain letters, each in the "
                "input or in the result"
            )

    def _letters(self) -> tuple[str, str, str]:
        equation = self.einsum_equation()
        assert equation is not None  # see `check`
        operands, outputs = equation.replace(" ", "").split("->")
        inputs, weight = operands.split(",")
        return inputs, weight, outputs

    def roles(self) -> Contraction:
        """Roles of the axes of the kernel."""
        inputs, weight, outputs = self._letters()
        where = list(enumerate(weight))
        return Contraction(
            batch=tuple(i for i, c in where if c in inputs and c in outputs),
            inputs=tuple(i for i, c in where if c in inputs and c not in outputs),
            outputs=tuple(i for i, c in where if c not in inputs),
        )

    def output_axis(self, ndim: int) -> int:
        """Axis of a result with `ndim` axes that holds the kernel's first output axis."""
        return self._result_axes(ndim)[len(self.roles().batch)]

    def on_outputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *outputs) in a shape that broadcasts against a result with `ndim` axes."""
        return on_axes(values, tuple(self._result_axes(ndim)), ndim)

    def on_inputs(self, values: Inexact[Array, ...], ndim: int) -> Inexact[Array, ...]:
        """Values (*batch, *inputs) in a shape that broadcasts against inputs with `ndim` axes."""
        letters, kernel, _ = self._letters()
        roles = self.roles()
        kept = [kernel[axis] for axis in roles.batch + roles.inputs]
        return on_axes(values, tuple(_places(letters, kept, ndim)), ndim)

    def bias_in_order_of_roles(
        self, bias: Num[Array, ...], view: tuple[int, ...]
    ) -> Num[Array, ...]:
        """The bias as (*batch, *outputs); its own axes are in the order of the result."""
        _, kernel, result = self._letters()
        sizes = dict(zip(kernel, view, strict=True))
        ordered = [letter for letter in result if letter in sizes]
        bias = bias.reshape([sizes[letter] for letter in ordered])
        return jnp.transpose(bias, [ordered.index(letter) for letter in self._kept_letters()])

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """The plain einsum, by the equation in `changes`."""
        return jnp.einsum(changes["einsum_str"], inputs, kernel, precision=self.second_precision())

    def _kept_letters(self) -> list[str]:
        """Letters of the kernel's batch and output axes."""
        kernel, roles = self._letters()[1], self.roles()
        return [kernel[axis] for axis in roles.batch + roles.outputs]

    def _result_axes(self, ndim: int) -> list[int]:
        """Axes of a result with `ndim` axes that hold the kernel's batch and output axes."""
        return _places(self._letters()[2], self._kept_letters(), ndim)

    def by_token(self) -> bool:
        """Whether inputs (rows, tokens, ...) are treated token by token."""
        letters_in, weight, letters_out = self._letters()
        first = letters_in[:2]
        return first == letters_out[:2] and not set(first) & set(weight)

    def first_product(
        self, inputs: Num[Array, ...], a: Inexact[Array, ...]
    ) -> Inexact[Array, "... rank"]:
        """The layer's own product."""
        letters_in, kernel, _ = self._letters()
        roles = self.roles()
        of_a = "".join(kernel[axis] for axis in roles.batch + roles.inputs) + self._rank_letter()
        equation = f"{letters_in},{of_a}->{self._low_letters()}"
        product = functools.partial(self.own_product, einsum_str=equation)
        return with_factor(product, inputs, a, apart=True)

    def second_product(
        self, low: Inexact[Array, "... rank"], b: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """A plain einsum."""
        _, kernel, letters_out = self._letters()
        roles = self.roles()
        batch, outputs = ("".join(kernel[i] for i in axes) for axes in (roles.batch, roles.outputs))
        equation = f"{self._low_letters()},{batch}{self._rank_letter()}{outputs}->{letters_out}"
        return jnp.einsum(equation, low, b, precision=self.second_precision())

    def _rank_letter(self) -> str:
        used = "".join(self._letters())
        return next(c for c in "rstuvwxyzabcdefghijklmnopq" if c not in used)

    def _low_letters(self) -> str:
        """Of the inputs with the contracted axes replaced by the rank."""
        letters_in, kernel, _ = self._letters()
        contracted = {kernel[axis] for axis in self.roles().inputs}
        return "".join(c for c in letters_in if c not in contracted) + self._rank_letter()


def _places(operand: str, letters: list[str], ndim: int) -> list[int]:
    """Axes of an operand with `ndim` axes that have these letters; `...` stands for some of its axes."""
    before, _, after = operand.partition("...")
    return [
        before.index(letter) if letter in before else ndim - len(after) + after.index(letter)
        for letter in letters
    ]


class EinsumLoRALayer(LoRALayer, EinsumKind):
    """The LoRA layer of a class of your own that is one einsum: an `einsum_str` and a weight.

        @lora_jax.register(MyEinsum)
        class LoRAMyEinsum(lora_jax.EinsumLoRALayer, MyEinsum):
            weight = "w"

    The call must be `jnp.einsum(self.einsum_str, inputs, self.w)`, inputs first; what else it does to the
    result has to be said, see docs/layers.md.
    """
