"""The program behind `verify`: it runs a model adapted, merged and pre-trained, and compares the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import partition
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import adapted_layers, factor_path
from lora_jax.low_rank.merge import merge
from lora_jax.low_rank.seeding import seed_dropout
from lora_jax.low_rank.switching import enable
from lora_jax.low_rank.weights import WeightView
from lora_jax.partition import Params
from lora_jax.verification.outputs import Measured, differences, moderate, numbers, ratio, sizes
from lora_jax.verification.precision import epsilons, raised

Call = Callable[..., Any]  # of the model and the inputs


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
        prepared = raised if in_float32 else nnx.clone
        self.adapted, self.base = prepared(adapted), prepared(model)
        for copy in (self.adapted, self.base):
            copy.eval()  # one mode for both
        seed_dropout(self.adapted, None)
        enable(self.adapted)
        self.layers = adapted_layers(self.adapted)
        self._structure, everything = partition.all_frozen(self.adapted)
        self._base_structure, of_base = partition.all_frozen(self.base)
        # Where training changed the pre-trained part (a head, biases), the base is compared with it.
        shared = {path for path, leaf in of_base.items() if _same(leaf, everything.get(path))}
        self._of_base = {path: leaf for path, leaf in of_base.items() if path not in shared}
        self._shared = shared
        self.inserted = _leaves_of_updates(self.adapted)
        self._owners = {
            f"{self.prefix(name)}/{leaf}": name
            for name, layer in self.layers.items()
            for leaf in partition.parameters(layer.lora)
        }
        self._rest = {p: leaf for p, leaf in everything.items() if p not in self.inserted}
        self.start = self._changed(lambda member, weight, key: member.restart(weight))
        self._random: dict[float, Params] = {}
        self._compiled = jax.jit(self._measure)
        traced = jax.make_jaxpr(self._outputs_of_base)(self._rest, self._of_base, self._arrays)
        self.epsilon = max(epsilons(traced), default=0.0)

    def random(self, share: float) -> Params:
        """Random values of all factors, whose products are this share of their weights."""
        if share not in self._random:
            self._random[share] = self._changed(
                lambda member, weight, key: member.randomise(weight, key, share)
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
        kept = [moderate(leaf) for leaf in base]
        change = sizes(differences(run(switched, self._arrays), base), kept)
        return float(np.max(ratio(np.asarray(change), np.asarray(sizes(base, kept)))))

    def layer_of(self, path: str) -> str:
        """The path of the layer that a factor belongs to."""
        return self._owners[path]

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
        kept = [moderate(leaf) for leaf in base]
        directions = [  # with the sharding of the outputs
            jnp.where(where, zeros + jax.random.normal(key, leaf.shape, leaf.dtype), zeros)
            for key, leaf, where in zip(keys, unmerged, kept, strict=True)
            for zeros in (jnp.zeros_like(leaf),)
        ]
        return {
            "base": sizes(base, kept), "unmerged": sizes(unmerged, kept),
            "change": sizes(differences(unmerged, base), kept),
            "difference": sizes(differences(unmerged, merged), kept),
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
        leaves = list(numbers(self._call(model, *args, **kwargs)))
        floating: list[Array] = []
        for leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                floating += [leaf.real, leaf.imag]
            elif jnp.issubdtype(leaf.dtype, jnp.floating):
                floating.append(leaf)
        if not floating:
            kinds = sorted({str(leaf.dtype) for leaf in leaves})
            raise InputError(
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
            members = layer.lora.members_with_weights(WeightView(layer)).values()
            for part, (member, weight) in enumerate(members):
                change(member, weight, jax.random.fold_in(self._key, 1000 * number + part))
        return _leaves_of_updates(copy)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _same(leaf: Any, other: Any) -> bool:
    return other is not None and leaf.shape == other.shape and leaf.dtype == other.dtype


def _leaves_of_updates(adapted: nnx.Module) -> Params:
    return {
        f"{factor_path(path, layer)}/{name}": value
        for path, layer in adapted_layers(adapted).items()
        for name, value in partition.parameters(layer.lora).items()
    }
