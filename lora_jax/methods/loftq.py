"""Factors that start from what packing lost: LoftQ (Li et al. 2023, arXiv 2310.08659, algorithm 1).

Packing and the best low-rank matrix for its error take turns: Q = pack(W - AB), AB = SVD_r(W - Q). After
one step Q is pack(W), the base that `quantise` gives; after more it is a base of its own, made for these
factors, and has to be saved with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from lora_jax import surgery
from lora_jax.arguments import KEY, MODEL, takes
from lora_jax.checks import integer
from lora_jax.errors import InputError
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.layers import LoRALayer, adapted_layers
from lora_jax.low_rank.pairs import LowRankUpdate, pairs_with_weights
from lora_jax.low_rank.targets import ALL_LINEAR, Exclude, Target
from lora_jax.low_rank.weights import WeightView
from lora_jax.method import Method
from lora_jax.partition import Params, parameters
from lora_jax.quantisation.formats import Format
from lora_jax.quantisation.layers import is_quantised, packed_weight
from lora_jax.quantisation.packing import fill, packed_arrays
from lora_jax.quantisation.quantise import quantise
from lora_jax.quantisation.weight import float_matrices


@takes(model=MODEL, key=KEY)
def loftq(
    model: nnx.Module,
    method: Method,
    key: Key[Array, ""],
    targets: Target | Sequence[Target] = ALL_LINEAR,
    format: str | Format = "nf4",
    *,
    exclude: Exclude = None,
    steps: int = 1,
) -> nnx.Module:
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

    Raises:
      ValueError: no layer is both quantised and adapted; for others see `quantise` and `Method.insert`.
    """
    integer("steps", steps, least=1, most=1000)
    adapted = method.insert(quantise(model, targets, format, exclude=exclude), key)
    held = surgery.parameters_of(surgery.pretrained_modules(model))

    def original(path: str) -> Array:
        module, name = held[path]
        value: Array = getattr(module, name)[...]
        return value

    _correct(adapted, method, original, steps)
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
    adapted = method.insert(base, key)
    changed = _correct(adapted, method, original, 1)
    return {
        path: value
        for path, value in parameters(adapted).items()
        if any(path.startswith(f"{layer}/lora/".removeprefix("/")) for layer in changed)
    }


def _correct(
    adapted: nnx.Module, method: Method, original: Callable[[str], Array], steps: int
) -> list[str]:
    """Lets packing and updates take turns in every layer that has both, in place; paths of these."""
    changed = []
    for path, layer in adapted_layers(adapted).items():
        if not isinstance(layer, LoRALayer) or not is_quantised(layer):
            continue
        name, _ = packed_weight(layer)
        whole = jnp.asarray(original(f"{path}/{name}".removeprefix("/")), jnp.float32)
        for step in range(steps):
            _take_turns(layer, whole, path, pack=step > 0)
        changed.append(path)
    if not changed:
        raise InputError(
            f"{method.name} adapts no layer that is quantised, so there is no error of packing to start "
            "from: let its targets name quantised layers"
        )
    return changed


def _take_turns(layer: LoRALayer, whole: Float[Array, ...], path: str, *, pack: bool) -> None:
    """Packs what the update leaves of the weight, and sets the update to what packing lost, in place."""
    view, (_, weight) = WeightView(layer), packed_weight(layer)
    if pack:
        left = np.asarray(whole - layer.lora.delta(view).reshape(whole.shape))
        fill(weight, packed_arrays(weight, float_matrices(weight, left), f"what is left of {path}"))
    lost = (whole - weight.values()).reshape(view.shape)
    axis = view.roles.outputs[0]
    for pair, part in pairs_with_weights(layer.lora, view).values():
        _set_nearest(pair, part, part.sliced(lost, axis))
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
