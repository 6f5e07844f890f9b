"""The comparison behind `verify`: one program that runs a model adapted, merged and pre-trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax import partition
from lora_jax.low_rank.layers import adapted_layers, factor_path
from lora_jax.low_rank.merge import merge
from lora_jax.low_rank.weights import WeightView
from lora_jax.partition import Params, Structure
from lora_jax.verification.report import Failure, Verification

# The random update is this share of the weight, as root mean squares: its effect is as large as what
# training does at most, so that a fault shows, and small enough that no activation overflows.
SHARE = 0.3


class Trial:
    """An adapted model, its base, and the one program that compares them."""

    def __init__(
        self,
        model: nnx.Module,
        adapted: nnx.Module,
        call: Callable[..., Any],
        inputs: tuple[Sequence[Any], Mapping[str, Any]],
        key: Key[Array, ""],
    ):
        """Prepares the program.

        Args:
          model: the base.
          adapted: the same with updates.
          call: of a model, with `inputs` behind it.
          inputs: positional and named ones.
          key: for random factors.
        """
        self.layers = adapted_layers(adapted)
        leaves, self.inputs = jax.tree.flatten(inputs)
        # Numbers and words are part of the program, arrays are its arguments.
        self.arrays = {i: leaf for i, leaf in enumerate(leaves) if _is_array(leaf)}
        self.static = {i: leaf for i, leaf in enumerate(leaves) if not _is_array(leaf)}
        self.call = call
        self.adapted, self.base = _in_float32(adapted), _in_float32(model)
        structure, everything = _split(self.adapted)
        self.base_structure, base_values = _split(self.base)
        # Where training changed the pre-trained part (a head, biases), the base is compared with it.
        shared = {path for path, leaf in base_values.items() if _same(leaf, everything.get(path))}
        self.of_base = {path: leaf for path, leaf in base_values.items() if path not in shared}
        self.shared = shared
        self.structure = structure
        self.random, self.start = _random(self.adapted, key), _without_effect(self.adapted)
        self.inserted = {path: everything[path] for path in self.random}
        self.rest = {path: leaf for path, leaf in everything.items() if path not in self.random}
        self.key = key
        self.measure = jax.jit(self._measure)

    def result(self, fresh: bool) -> Verification:
        """Runs all checks; `fresh` says that the factors are as inserted, and not trained."""
        start = self.measure(
            self.inserted if fresh else self.start, self.rest, self.of_base, self.arrays
        )
        random = self.measure(self.random, self.rest, self.of_base, self.arrays)
        if not (math.isfinite(start["base"]) and math.isfinite(random["unmerged"])):
            raise ValueError(
                "the outputs are not finite, so nothing can be compared; give other inputs"
            )
        loose = max(1e-4, 6 * float(random["epsilon"]))  # of the output: other fusions, other bits
        tolerance = max(1e-3, 12 * float(random["epsilon"]))  # of the change
        moved, effect = _share(start, "change", "base"), _share(random, "change", "base")
        differs = _share(random, "difference", "change")
        failures = []
        if effect <= loose:
            failures.append(Failure("effect", "", f"by {effect:.1e} of it"))
        if moved > loose:
            failures += self._name_start(moved, loose)
        elif effect > loose and differs > tolerance:
            failures += self._name_merge(differs, tolerance)
        failures += self._name_gradient(random["gradients"])
        return Verification(tuple(self.layers), tuple(failures), moved, effect, differs)

    def _measure(
        self, values: Params, rest: Params, of_base: Params, arrays: Mapping[int, Any]
    ) -> dict[str, Any]:
        """Norms of outputs and of their differences, and the largest gradient of every factor."""

        def outputs(values: Params) -> list[Array]:
            return self._outputs(partition.join(self.structure, values, rest), arrays)

        unmerged, back = jax.vjp(outputs, values)
        merged = self._outputs(merge(partition.join(self.structure, values, rest)), arrays)
        of_model = {path: rest[path] for path in self.shared} | of_base
        base = self._outputs(partition.join(self.base_structure, {}, of_model), arrays)
        keys = jax.random.split(self.key, len(unmerged))
        directions = [
            jax.random.normal(key, leaf.shape, leaf.dtype)
            for key, leaf in zip(keys, unmerged, strict=True)
        ]
        return {
            "base": _norm(base),
            "unmerged": _norm(unmerged),
            "change": _norm(unmerged, base),
            "difference": _norm(unmerged, merged),
            "gradients": self._by_stack(back(directions)[0]),
            "epsilon": max(float(jnp.finfo(leaf.dtype).eps) for leaf in unmerged),
        }

    def _outputs(self, model: nnx.Module, arrays: Mapping[int, Any]) -> list[Array]:
        both = {**self.static, **arrays}
        args, kwargs = jax.tree.unflatten(self.inputs, [both[i] for i in range(len(both))])
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(self.call(model, *args, **kwargs))]
        floating = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not floating:
            kinds = sorted({str(leaf.dtype) for leaf in leaves})
            raise ValueError(
                f"the outputs hold no floating-point numbers (types {kinds}); give `call`, a function "
                "of (model, *inputs) that returns some"
            )
        return floating

    def _by_stack(self, gradients: Params) -> dict[str, Array]:
        """The largest size of each leaf's gradient, for every layer of a stack."""
        largest = {}
        for path, leaf in gradients.items():
            stacked = len(self.layers[self._layer_of(path)].stack_shape())
            largest[path] = jnp.max(jnp.abs(leaf), axis=tuple(range(stacked, leaf.ndim)))
        return largest

    def _layer_of(self, path: str) -> str:
        return next(
            name
            for name, layer in self.layers.items()
            if path.startswith(f"{factor_path(name, layer)}/")
        )

    def _name_merge(self, together: float, tolerance: float) -> list[Failure]:
        """Merges with random factors in one layer after the other."""
        failures = []
        for layer in self.layers:
            alone = {p: v for p, v in self.random.items() if self._layer_of(p) == layer}
            found = self.measure(self.start | alone, self.rest, self.of_base, self.arrays)
            differs = _share(found, "difference", "change")
            # Without any change there is nothing to share: such a layer gets no gradient either.
            if differs > tolerance and float(found["difference"]) > 1e-5 * float(found["base"]):
                failures.append(Failure("merge", layer, _times(differs)))
        return failures or [Failure("merge", "", _times(together))]

    def _name_start(self, together: float, tolerance: float) -> list[Failure]:
        """Compares with the base where only one layer's update is on."""
        failures = []
        run = nnx.jit(self._outputs)
        base = run(self.base, self.arrays)
        for layer in self.layers:
            alone = nnx.clone(self.adapted)
            for path, other in adapted_layers(alone).items():
                if path != layer:
                    other.lora.enabled = False
            outputs = run(alone, self.arrays)
            differs = float(_norm(outputs, base)) / max(float(_norm(base)), 1e-30)
            if differs > tolerance:
                failures.append(Failure("start", layer, f"by {differs:.1e} of the output"))
        return failures or [Failure("start", "", f"by {together:.1e} of the output")]

    def _name_gradient(self, largest: Mapping[str, Any]) -> list[Failure]:
        found: dict[str, list[str]] = {}
        for path, sizes in largest.items():
            zero = np.argwhere(np.asarray(sizes) == 0)
            if len(zero):
                layer = self._layer_of(path)
                name = path.removeprefix(f"{layer}/")
                if len(zero) < sizes.size:
                    numbers = ", ".join("/".join(map(str, index)) for index in zero)
                    name += f" in layers {numbers} of the stack"
                found.setdefault(layer, []).append(name)
        return [Failure("gradient", layer, ", ".join(names)) for layer, names in found.items()]


def _split(model: nnx.Module) -> tuple[Structure, Params]:
    structure, _, values = partition.split(
        model, dict.fromkeys(partition.parameters(model), partition.FROZEN)
    )
    return structure, values


def _in_float32(model: nnx.Module) -> nnx.Module:
    """A copy that holds and computes numbers of lower precision in float32."""
    copy = nnx.clone(model)
    for _, module in nnx.iter_modules(copy):
        if _is_low(getattr(module, "dtype", None)):
            setattr(module, "dtype", jnp.float32)  # noqa: B010 - not every module has one
        for value in vars(module).values():
            if isinstance(value, nnx.Variable) and _is_low(getattr(value, "dtype", None)):
                value.set_value(value.get_raw_value().astype(jnp.float32))
    return copy


def _is_low(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    except TypeError:
        return False


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _same(leaf: Any, other: Any) -> bool:
    return other is not None and leaf.shape == other.shape and leaf.dtype == other.dtype


def _random(adapted: nnx.Module, key: Array) -> Params:
    """Random values of every factor, by path; see `SHARE`."""
    copy = nnx.clone(adapted)
    for number, (_, layer) in enumerate(adapted_layers(copy).items()):
        pairs = layer.lora.pairs_with_weights(WeightView(layer))
        for part, (pair, weight) in enumerate(pairs.values()):
            pair_key = jax.random.fold_in(jax.random.fold_in(key, number), part)
            pair.randomise(weight, pair_key, SHARE)
    return _leaves_of_updates(copy)


def _without_effect(adapted: nnx.Module) -> Params:
    """Values of every factor that leave the model as it was pre-trained, by path."""
    copy = nnx.clone(adapted)
    for layer in adapted_layers(copy).values():
        for pair, weight in layer.lora.pairs_with_weights(WeightView(layer)).values():
            pair.restart(weight)
    return _leaves_of_updates(copy)


def _leaves_of_updates(adapted: nnx.Module) -> Params:
    return {
        f"{factor_path(path, layer)}/{name}": value
        for path, layer in adapted_layers(adapted).items()
        for name, value in partition.parameters(layer.lora).items()
    }


def _norm(values: list[Array], others: list[Array] | None = None) -> Float[Array, ""]:
    """The norm of all values, or of their differences from the others, in float32."""
    total = jnp.zeros(())
    for value, other in zip(values, others or [jnp.zeros(())] * len(values), strict=True):
        total += jnp.sum((value.astype(jnp.float32) - other.astype(jnp.float32)) ** 2)
    return jnp.sqrt(total)


def _times(share: float) -> str:
    if math.isinf(share):
        return "merging alone changes the output"
    return f"by {share:.1e} of the change that the update makes"


def _share(norms: Mapping[str, Any], name: str, of: str) -> float:
    whole = float(norms[of])
    return float(norms[name]) / whole if whole > 0 else (math.inf if norms[name] > 0 else 0.0)
