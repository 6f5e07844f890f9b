"""Factors that start from what packing lost: LoftQ (Li et al. 2023, arXiv 2310.08659, algorithm 1).

Packing and the best low-rank matrix for its error take turns: Q = pack(W - AB), AB = SVD_r(W - Q). After
one step Q is pack(W), the base that `quantise` gives; after more it is a base of its own, made for these
factors, and has to be saved with them.

QPiSSA (Meng et al. 2024, arXiv 2404.02948) begins with the factors: AB = SVD_r(W), Q = pack(W - AB).
Its base is one of its own, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax import surgery
from lora_jax.arguments import KEY, MODEL, Model, takes
from lora_jax.checks import integer, one_of
from lora_jax.errors import InputError
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.layers import LoRALayer, adapted_layers
from lora_jax.low_rank.pairs import LowRankUpdate, pairs_with_weights
from lora_jax.low_rank.targets import ALL_LINEAR, Exclude, Target
from lora_jax.low_rank.weights import WeightView
from lora_jax.method import Method
from lora_jax.methods.stored_settings import are_factor_pairs
from lora_jax.partition import Params, parameters
from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.layers import is_quantised, packed_weight
from lora_jax.quantisation.packing import fill, packed_arrays
from lora_jax.quantisation.quantise import quantise
from lora_jax.quantisation.weight import float_matrices

First = Literal["packing", "factors"]


@takes(model=MODEL, key=KEY)
def loftq(
    model: Model,
    method: Method,
    key: Key[Array, ""],
    targets: Target | Sequence[Target] = ALL_LINEAR,
    format: str | Format = "nf4",
    *,
    exclude: Exclude = None,
    steps: int = 1,
    first: First = "packing",
) -> Model:
    """Returns the quantised and adapted model, whose updates start at the error of packing.

    The first output is not that of the quantised base but nearer to that of `model`.

    Args:
      model: pre-trained, in floating-point numbers.
      method: with low-rank updates.
      key: for what the method inserts besides.
      targets: the layers to quantise, see `quantise`.
      format: of their weights, see `quantise`.
      exclude: see `quantise`.
      steps: how often both take turns; the paper's T, of 1 and 5 there.
      first: what a turn begins with: `packing` as LoftQ, `factors` as QPiSSA (1 or 5 steps there).

    Raises:
      ValueError: no layer is both quantised and adapted; for others see `quantise` and `Method.insert`.
    """
    _refuse_starts(method)
    integer("steps", steps, least=1, most=1000)
    one_of("first", first, get_args(First))
    adapted = method.insert(quantise(model, targets, format, exclude=exclude), key)
    held = surgery.parameters_of(surgery.pretrained_modules(model))

    def original(path: str) -> Array:
        module, name = held[path]
        value: Array = getattr(module, name)[...]
        return value

    _correct(adapted, method, original, steps, first)
    return adapted


def start(
    base: nnx.Module, method: Method, key: Key[Array, ""], original: Callable[[str], Array]
) -> Params:
    """The parameters of low-rank updates after one step, by path, over a base that is packed already.

    One step leaves the base as it is: adapters over it are read back onto the same base, packed anew.

    Args:
      base: quantised, without a method.
      method: with low-rank updates.
      key: for what the method inserts besides.
      original: gives a weight of floating-point numbers by its path; called for one after the other.

    Raises:
      ValueError: no layer is both quantised and adapted; for others see `Method.insert`.
    """
    _refuse_starts(method)
    adapted = method.insert(base, key)
    changed = _correct(adapted, method, original, 1, "packing")
    return {
        path: value
        for path, value in parameters(adapted).items()
        if any(path.startswith(f"{layer}/lora/".removeprefix("/")) for layer in changed)
    }


def _refuse_starts(method: Method) -> None:
    """Raises ValueError for factors that have a start, or a frozen one, of another kind."""
    if not are_factor_pairs(method):
        raise InputError(
            f"factors that start from packing are LoRA's (or DoRA's) own, and those of {method.name} start "
            "otherwise; take lora(...) without init, QPiSSA is loftq(..., first='factors')"
        )


def _correct(
    adapted: nnx.Module, method: Method, original: Callable[[str], Array], steps: int, first: First
) -> list[str]:
    """Lets packing and updates take turns in every layer that has both, in place; paths of these."""
    changed = []
    for path, layer in adapted_layers(adapted).items():
        if not isinstance(layer, LoRALayer) or not is_quantised(layer):
            continue
        name, _ = packed_weight(layer)
        whole = jnp.asarray(original(f"{path}/{name}".removeprefix("/")), jnp.float32)
        if first == "factors":
            _approach(layer, whole)
        for step in range(steps):
            if first == "factors" or step:
                _pack_rest(layer, whole, path)
            if first == "packing" or step + 1 < steps:
                _approach(layer, whole - packed_weight(layer)[1].values())
        changed.append(path)
    if not changed:
        raise InputError(
            f"{method.name} adapts no layer that is quantised, so there is no error of packing to start "
            "from: let its targets name quantised layers"
        )
    return changed


def _pack_rest(layer: LoRALayer, whole: Float[Array, ...], path: str) -> None:
    """Packs what the update leaves of the weight, in place."""
    view, (_, weight) = WeightView(layer), packed_weight(layer)
    left = np.asarray(whole - layer.lora.delta(view).reshape(whole.shape))
    fill(weight, packed_arrays(weight, float_matrices(weight, left), f"what is left of {path}"))


def _approach(layer: LoRALayer, target: Float[Array, ...]) -> None:
    """Sets the update to the nearest one to what it is to add to the weight, in place."""
    view = WeightView(layer)
    axis = view.roles.outputs[0]
    for pair, part in pairs_with_weights(layer.lora, view).values():
        _set_nearest(pair, part, part.sliced(target.reshape(view.shape), axis))
        if isinstance(pair, DoRAUpdate):
            pair.magnitude[...] = pair.norms(part)


def _set_nearest(pair: LowRankUpdate, weight: WeightView, target: Float[Array, ...]) -> None:
    """Sets the factors so that scale A B is the matrix of their rank nearest to a target, in place."""
    matrices, rank = weight.roles.to_matrices(target), pair.rank
    u, s, v = jnp.linalg.svd(matrices, full_matrices=False)
    root = jnp.sqrt(s[:, None, :rank])
    pair.a[...] = (u[..., :rank] * root).reshape(pair.a.shape)
    b = jnp.swapaxes(root, 1, 2) * v[:, :rank] / pair.scale
    pair.b[...] = b.reshape(pair.b.shape)
