"""Rows of chosen tokens that train, in a table of embeddings or an output embedding; the others stay.

PEFT's `trainable_token_indices`: for new tokens, of which the whole table would be far too much to train and
to store. A trained row stands in the place of the pre-trained one, for lookups and for logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Num

from lora_jax import patterns, surgery
from lora_jax.checks import Integer, integer
from lora_jax.errors import InputError, InputTypeError, brief
from lora_jax.low_rank.merge import cast
from lora_jax.method import Insertion, Method
from lora_jax.methods import common
from lora_jax.partition import Rule
from lora_jax.quantisation.layers import refuse_packed
from lora_jax.sharding.axes import named, names
from lora_jax.summary import MatchedLayer

NAME = "rows"  # of the module that a layer gets
_MOST = 10**6  # rows


class TokenRows(surgery.Absorbable):
    """Rows that stand in the places of pre-trained ones.

    Attributes:
      values: (rows, features), at first the pre-trained ones.
      numbers: of the rows.
    """

    def __init__(
        self, values: Float[Array, "rows features"], numbers: tuple[int, ...], axis: str | None
    ):
        self.values = nnx.Param(values, **named(None, axis))
        self.numbers = numbers

    def put_into(self, module: Any, dtype: DTypeLike | None) -> None:
        """Gives the rows their places in the table, or the columns of the output embedding."""
        numbers, is_table = jnp.array(self.numbers), isinstance(module, nnx.Embed)
        weight = module.embedding if is_table else module.kernel
        values = weight[...].astype(weight.dtype if dtype is None else dtype)
        rows = cast(self.values[...], values.dtype, "rows of tokens")
        new = values.at[numbers].set(rows) if is_table else values.at[:, numbers].set(rows.T)
        weight.set_value(new)

    def looked_up(
        self, x: Float[Array, "*n features"], tokens: Int[Array, "*n"]
    ) -> Float[Array, "*n features"]:
        """What was looked up, with the rows in their places."""
        same = tokens[..., None] == jnp.array(self.numbers)
        chosen = jnp.take(self.values[...], jnp.argmax(same, axis=-1), axis=0).astype(x.dtype)
        return jnp.where(jnp.any(same, axis=-1)[..., None], chosen, x)

    def scored(
        self, logits: Float[Array, "*n tokens"], x: Float[Array, "*n features"]
    ) -> Float[Array, "*n tokens"]:
        """The logits, those of the rows by their own values."""
        own = x.astype(logits.dtype) @ self.values[...].astype(logits.dtype).T
        return logits.at[..., jnp.array(self.numbers)].set(own)


class TableWithRows(nnx.Module):
    """Mixin of a table of embeddings."""

    rows: TokenRows

    def __call__(self, inputs: Int[Array, ...], *args: Any, **kwargs: Any) -> Array:
        """Looks up rows."""
        base = super().__call__  # type: ignore[misc]
        return self.rows.looked_up(base(inputs, *args, **kwargs), inputs)

    def attend(self, query: Num[Array, ...], *args: Any, **kwargs: Any) -> Array:
        """Logits of a query against the rows."""
        base = super().attend  # type: ignore[misc]
        return self.rows.scored(base(query, *args, **kwargs), query)


class OutputWithRows(nnx.Module):
    """Mixin of a linear layer whose outputs are tokens."""

    rows: TokenRows

    def __call__(self, inputs: Num[Array, ...], *args: Any, **kwargs: Any) -> Array:
        """Logits."""
        base = super().__call__  # type: ignore[misc]
        return self.rows.scored(base(inputs, *args, **kwargs), inputs)


@dataclasses.dataclass(frozen=True)
class RowsInsertion(Insertion):
    """Gives tables and output embeddings rows that train.

    Attributes:
      chosen: a target (a path, the end of paths, or a regular expression) and the numbers of its rows.
    """

    chosen: tuple[tuple[str, tuple[int, ...]], ...]

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Adds the rows, in place; they start as they were pre-trained."""
        for path, (module, numbers) in self._modules(model).items():
            mixin: Any
            refuse_packed(module, path, "token_rows")
            if type(module) is nnx.Embed:
                weight, mixin = module.embedding, TableWithRows
                values, axis = weight[...], names(weight)[-1]
            elif type(module) is nnx.Linear and module.bias is None:
                weight, mixin = module.kernel, OutputWithRows
                values, axis = weight[...].T, names(weight)[0]
            else:
                raise InputTypeError(
                    f"{path} is a {type(module).__name__}; rows of tokens are those of an nnx.Embed, or of "
                    "an nnx.Linear without a bias, that no other method changes"
                )
            if values.ndim != 2 or max(numbers) >= len(values):
                raise InputError(
                    f"{path} has {len(values)} rows, and row {max(numbers)} is asked for"
                )
            rows = values[jnp.array(numbers)].astype(jnp.float32)
            module.rows = TokenRows(rows, numbers, axis)
            original: Any = type(module)
            surgery.become(module, surgery.extended(mixin, original))

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per table."""
        return [
            MatchedLayer(
                rule="token_rows",
                path=path,
                shape=(len(numbers), module.rows.values.shape[1]),
                how=f"rows of {len(numbers)} tokens",
                parameters=module.rows.values.size,
            )
            for path, (module, numbers) in self._modules(model).items()
        ]

    def _modules(self, model: nnx.Module) -> dict[str, tuple[Any, tuple[int, ...]]]:
        modules = surgery.pretrained_modules(model)
        found: dict[str, tuple[Any, tuple[int, ...]]] = {}
        named: dict[str, str] = {}
        for target, numbers in self.chosen:
            for path in patterns.matching(target, list(modules), "token_rows"):
                if path in found:
                    raise InputError(
                        f"token_rows: {named[path]!r} and {target!r} both name {path}; give its rows in one "
                        "list"
                    )
                found[path], named[path] = (modules[path], numbers), target
        return found


def token_rows(rows: Mapping[str, Sequence[Integer]], head: str | None = None) -> Method:
    """Rows of chosen tokens train (PEFT's `trainable_token_indices`). Group: `rows`.

    Args:
      rows: numbers of tokens, by the table of embeddings (`"embeddings/token"`) or output embedding
        (`"lm_head"`) that has them.
      head: regular expression for the task head's leaves.
    """
    if not isinstance(rows, Mapping) or not rows:
        raise InputError(f"rows must be numbers of tokens by table, got {brief(rows)}")
    chosen = []
    for target, numbers in rows.items():
        patterns.check(target, "token_rows", names=True)
        if (
            not isinstance(numbers, Sequence)
            or isinstance(numbers, str)
            or not 0 < len(numbers) <= _MOST
        ):
            raise InputError(
                f"token_rows of {target!r} must be a list of numbers, got {brief(numbers)}"
            )
        checked = tuple(integer("the number of a token", n, least=0) for n in numbers)
        if len(set(checked)) < len(checked):
            raise InputError(f"token_rows of {target!r} names a token twice")
        chosen.append((target, checked))
    arguments = {"rows": {target: list(numbers) for target, numbers in chosen}, "head": head}
    rule = Rule(".*", "rows", inserted=NAME)
    return common.method("token_rows", arguments, (RowsInsertion(tuple(chosen)),), rule)
