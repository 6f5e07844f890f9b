"""The program behind `verify`: it runs a model adapted, merged and pre-trained, and compares the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core
from jaxtyping import Array, Float, Key

from lora_jax import partition
from lora_jax.costs.flops import inner_jaxprs
from lora_jax.low_rank.layers import adapted_layers, factor_path
from lora_jax.low_rank.merge import merge
from lora_jax.low_rank.seeding import seed_dropout
from lora_jax.low_rank.switching import enable
from lora_jax.low_rank.weights import WeightView
from lora_jax.partition import Params, Structure

Call = Callable[..., Any]  # of the model and the inputs


@dataclasses.dataclass(frozen=True)
class Measured:
    """Root mean squares of every output array, and the sizes of gradients.

    Attributes:
      base: of the pre-trained model's outputs.
      unmerged: of the adapted model's.
      change: of the difference of the two.
      difference: of the difference between the merged and the unmerged model's.
      gradients: the largest size in each factor's gradient, for every layer of a stack.
    """

    base: np.ndarray
    unmerged: np.ndarray
    change: np.ndarray
    difference: np.ndarray
    gradients: dict[str, np.ndarray]

    @property
    def size(self) -> np.ndarray:
        """Of the outputs."""
        larger: np.ndarray = np.maximum(self.base, self.unmerged)
        return larger

    @property
    def is_finite(self) -> bool:
        """Whether all outputs are numbers."""
        compared = np.isfinite(self.base)  # others are masks throughout
        sizes = (self.unmerged + self.difference)[compared]
        return bool(len(sizes) and np.all(np.isfinite(sizes)))

    @property
    def effect(self) -> float:
        """The change as a share of the outputs, of the array where it is largest."""
        return float(np.max(_ratio(self.change, self.size)))

    def disagreement(self, noise: float) -> float:
        """The difference as a share of the change, of the array where it is largest.

        Args:
          noise: a share of the outputs; smaller differences are rounding.
        """
        shares = _ratio(self.difference, self.change)
        return float(np.max(np.where(self.difference > noise * self.size, shares, 0.0)))


class Comparison:
    """An adapted model and its base, on example inputs.

    Attributes:
      layers: the adapted layers by path.
      inserted: values of all factors as they are, by path.
      start: values that leave the model as it was pre-trained.
      epsilon: of the lowest precision in which the pre-trained model computes anything.
    """

    def __init__(
        self,
        model: nnx.Module,
        adapted: nnx.Module,
        call: Call,
        inputs: tuple[Sequence[Any], Mapping[str, Any]],
        *,
        key: Key[Array, ""],
        in_float32: bool,
    ):
        """Prepares the program.

        Args:
          model: the base.
          adapted: the same with updates.
          call: of a model, with `inputs` behind it.
          inputs: positional and named ones.
          key: for random factors.
          in_float32: whether weights, and layers that say their type, of lower precision are taken in
            float32.
        """
        leaves, self._inputs = jax.tree.flatten(inputs)
        # Numbers and words are part of the program, arrays are its arguments.
        self._arrays = {i: leaf for i, leaf in enumerate(leaves) if _is_array(leaf)}
        self._static = {i: leaf for i, leaf in enumerate(leaves) if not _is_array(leaf)}
        self._call, self._key = call, key
        prepared = _raised if in_float32 else nnx.clone
        self.adapted, self.base = prepared(adapted), prepared(model)
        for copy in (self.adapted, self.base):
            copy.eval()  # one mode for both
        seed_dropout(self.adapted, None)
        enable(self.adapted)
        self.layers = adapted_layers(self.adapted)
        self._structure, everything = _split(self.adapted)
        self._base_structure, of_base = _split(self.base)
        # Where training changed the pre-trained part (a head, biases), the base is compared with it.
        shared = {path for path, leaf in of_base.items() if _same(leaf, everything.get(path))}
        self._of_base = {path: leaf for path, leaf in of_base.items() if path not in shared}
        self._shared = shared
        self.inserted = _leaves_of_updates(self.adapted)
        self._rest = {p: leaf for p, leaf in everything.items() if p not in self.inserted}
        self.start = self._changed(lambda pair, weight, key: pair.restart(weight))
        self._random: dict[float, Params] = {}
        self._compiled = jax.jit(self._measure)
        traced = jax.make_jaxpr(self._outputs_of_base)(self._rest, self._of_base, self._arrays)
        self.epsilon = max(_epsilons(traced), default=0.0)

    def random(self, share: float) -> Params:
        """Random values of all factors, whose products are this share of their weights."""
        if share not in self._random:
            self._random[share] = self._changed(
                lambda pair, weight, key: pair.randomise(weight, key, share)
            )
        return self._random[share]

    def measure(self, values: Params) -> Measured:
        """Runs the models with these values of the factors."""
        found = self._compiled(values, self._rest, self._of_base, self._arrays)
        gradients = {path: np.asarray(sizes) for path, sizes in found.pop("gradients").items()}
        norms = {name: np.asarray(norm, np.float64) for name, norm in found.items()}
        return Measured(**norms, gradients=gradients)

    def alone(self, layer: str) -> float:
        """The change where only this layer's update is on, as a share of the outputs."""
        switched = nnx.clone(self.adapted)
        for path, other in adapted_layers(switched).items():
            if path != layer:
                other.lora.enabled = False
        run = nnx.jit(self._outputs)
        base = run(self.base, self._arrays)
        moderate = [_moderate(leaf) for leaf in base]
        change = _sizes(_differences(run(switched, self._arrays), base), moderate)
        return float(np.max(_ratio(np.asarray(change), np.asarray(_sizes(base, moderate)))))

    def layer_of(self, path: str) -> str:
        """The path of the layer that a factor belongs to."""
        return next(name for name in self.layers if path.startswith(f"{self.prefix(name)}/"))

    def prefix(self, layer: str) -> str:
        """The path of what is inserted into a layer."""
        return factor_path(layer, self.layers[layer])

    def _measure(
        self, values: Params, rest: Params, of_base: Params, arrays: Mapping[int, Any]
    ) -> dict[str, Any]:
        def outputs(values: Params) -> list[Array]:
            return self._outputs(partition.join(self._structure, values, rest), arrays)

        unmerged, back = jax.vjp(outputs, values)
        merged = self._outputs(merge(partition.join(self._structure, values, rest)), arrays)
        base = self._outputs_of_base(rest, of_base, arrays)
        keys = jax.random.split(self._key, len(unmerged))
        moderate = [_moderate(leaf) for leaf in base]
        directions = [  # with the sharding of the outputs
            jnp.where(kept, zeros + jax.random.normal(key, leaf.shape, leaf.dtype), zeros)
            for key, leaf, kept in zip(keys, unmerged, moderate, strict=True)
            for zeros in (jnp.zeros_like(leaf),)
        ]
        return {
            "base": _sizes(base, moderate), "unmerged": _sizes(unmerged, moderate),
            "change": _sizes(_differences(unmerged, base), moderate),
            "difference": _sizes(_differences(unmerged, merged), moderate),
            "gradients": self._by_stack(back(directions)[0]),
        }  # fmt: skip

    def _outputs_of_base(
        self, rest: Params, of_base: Params, arrays: Mapping[int, Any]
    ) -> list[Array]:
        values = {path: rest[path] for path in self._shared} | of_base
        return self._outputs(partition.join(self._base_structure, {}, values), arrays)

    def _outputs(self, model: nnx.Module, arrays: Mapping[int, Any]) -> list[Array]:
        both = {**self._static, **arrays}
        args, kwargs = jax.tree.unflatten(self._inputs, [both[i] for i in range(len(both))])
        leaves = list(_numbers(self._call(model, *args, **kwargs)))
        floating: list[Array] = []
        for leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                floating += [leaf.real, leaf.imag]
            elif jnp.issubdtype(leaf.dtype, jnp.floating):
                floating.append(leaf)
        if not floating:
            kinds = sorted({str(leaf.dtype) for leaf in leaves})
            raise ValueError(
                f"the outputs hold no floating-point numbers (types {kinds}); give `call`, a function "
                "of (model, *inputs) that returns some"
            )
        return floating

    def _by_stack(self, gradients: Params) -> dict[str, Array]:
        largest = {}
        for path, leaf in gradients.items():
            stacked = len(self.layers[self.layer_of(path)].stack_shape())
            largest[path] = jnp.max(jnp.abs(leaf), axis=tuple(range(stacked, leaf.ndim)))
        return largest

    def _changed(self, change: Callable[..., None]) -> Params:
        copy = nnx.clone(self.adapted)
        for number, layer in enumerate(adapted_layers(copy).values()):
            pairs = layer.lora.pairs_with_weights(WeightView(layer)).values()
            for part, (pair, weight) in enumerate(pairs):
                change(pair, weight, jax.random.fold_in(self._key, 1000 * number + part))
        return _leaves_of_updates(copy)


def _ratio(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, values / others, 0.0)


def has_low_precision(model: nnx.Module) -> bool:
    """Whether any Variable of a model is of a lower precision than float32."""
    return any(_is_low(getattr(leaf, "dtype", None)) for leaf in jax.tree.leaves(nnx.state(model)))


def _raised(model: nnx.Module) -> nnx.Module:
    """A copy that holds and computes numbers of lower precision in float32."""
    copy = nnx.clone(model)
    for _, module in nnx.iter_modules(copy):
        if _is_low(vars(module).get("dtype")):
            setattr(module, "dtype", jnp.float32)  # noqa: B010 - not every module has one
        for value in vars(module).values():
            if isinstance(value, nnx.Variable) and _is_low(getattr(value, "dtype", None)):
                value.set_value(value.get_raw_value().astype(jnp.float32))
    return copy


def _is_low(dtype: Any) -> bool:
    try:
        return bool(jnp.issubdtype(dtype, jnp.floating)) and jnp.finfo(dtype).bits < 32
    except TypeError:
        return False


def _epsilons(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> set[float]:
    """The precisions of all floating-point values that a jaxpr computes."""
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    found: set[float] = set()
    for equation in inner.eqns:
        for variable in equation.outvars:
            dtype = getattr(variable.aval, "dtype", None)
            if dtype is not None and jnp.issubdtype(dtype, jnp.floating):
                found.add(float(jnp.finfo(dtype).eps))
        for part in inner_jaxprs(list(equation.params.values())):
            found |= _epsilons(part)
    return found


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _same(leaf: Any, other: Any) -> bool:
    return other is not None and leaf.shape == other.shape and leaf.dtype == other.dtype


def _split(model: nnx.Module) -> tuple[Structure, Params]:
    frozen = dict.fromkeys(partition.parameters(model), partition.FROZEN)
    structure, _, values = partition.split(model, frozen)
    return structure, values


def _leaves_of_updates(adapted: nnx.Module) -> Params:
    return {
        f"{factor_path(path, layer)}/{name}": value
        for path, layer in adapted_layers(adapted).items()
        for name, value in partition.parameters(layer.lora).items()
    }


def _numbers(outputs: Any) -> Iterator[Array]:
    """The arrays and numbers of an output, also in dataclasses that JAX does not know."""
    for leaf in jax.tree.leaves(outputs):
        if dataclasses.is_dataclass(leaf):
            for value in vars(leaf).values():
                yield from _numbers(value)
        elif isinstance(leaf, jax.Array | np.ndarray | bool | int | float | complex):
            yield jnp.asarray(leaf)


def _moderate(values: Array) -> Array:
    """Where outputs are numbers, and not the very small ones that masks put in."""
    return jnp.isfinite(values) & (jnp.abs(values) < 1e8)


def _differences(values: list[Array], others: list[Array]) -> list[Array]:
    return [one - other for one, other in zip(values, others, strict=True)]


def _sizes(values: list[Array], kept: list[Array]) -> Float[Array, " outputs"]:
    """Root mean squares of arrays where they are kept; no number for one that is kept nowhere."""

    def size(leaf: Array, where: Array) -> Array:
        single = leaf.astype(jnp.float32)
        squares = jnp.where(where, single, jnp.zeros_like(single)) ** 2
        return jnp.sqrt(jnp.sum(squares) / jnp.sum(where))

    return jnp.stack([size(leaf, where) for leaf, where in zip(values, kept, strict=True)])
