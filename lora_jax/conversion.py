"""Updates of every kind as LoRA's: for tools that know W + scale * A B only, and for comparisons.

    plain, method = lora_jax.to_lora(adapted, method)          # exact, where factors are multiplied
    plain, method = lora_jax.to_lora(adapted, method, rank=8)  # the nearest update of this rank

PiSSA, OLoRA and LoRA-GA become pairs of twice their rank (A B - A_0 B_0), VeRA, AdaLoRA, LoHa and LoKr pairs
of the rank of their factors. DoRA and IA3 have no rank: they need one.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from lora_jax.arguments import MODEL, Model, takes
from lora_jax.checks import integer
from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import as_matrices
from lora_jax.low_rank.dora import DoRAUpdate
from lora_jax.low_rank.fused import FusedUpdate
from lora_jax.low_rank.layers import AdaptedLayer, adapted_layers
from lora_jax.low_rank.merge import check_enabled, strip
from lora_jax.low_rank.pairs import LowRankUpdate, pairs_with_weights
from lora_jax.low_rank.parameters import AdaptedParameter
from lora_jax.low_rank.updates import FactorsUpdate, PartUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.method import METHOD, Insertion, Method
from lora_jax.methods.norms import NormChoice
from lora_jax.methods.parameters import ParameterInsertion
from lora_jax.methods.registry import from_json
from lora_jax.methods.updates import UpdateInsertion

Matrices = tuple[Float[np.ndarray, "maps inputs rank"], Float[np.ndarray, "maps rank outputs"]]


@dataclasses.dataclass(frozen=True)
class _Converted:
    """The factors of one part of a layer, and the bias that goes with them."""

    a: Float[np.ndarray, "maps inputs rank"]
    b: Float[np.ndarray, "maps rank outputs"]
    bias: np.ndarray | None


@takes(adapted=MODEL, method=METHOD)
def to_lora(adapted: Model, method: Method, rank: int | None = None) -> tuple[Model, Method]:
    """The same model with LoRA in the place of its updates, and the method that it then has; a copy.

    Dropout of the updates is not taken over.

    Args:
      adapted: with the method.
      method: whose updates change weights, with whatever trains of the base besides.
      rank: of the new updates, which are then the nearest ones of this rank; layers whose update has a
        smaller rank keep that. None: the exact updates.

    Raises:
      ValueError: the method inserts other things (bottleneck adapters, special tokens, cuts), an update
        that has no rank of its own meets rank=None, or one is switched off.
    """
    if rank is not None:
        integer("rank", rank)
    insertions = [i for i in method.insertions if not isinstance(i, NormChoice)]  # these only look
    odd = [i for i in insertions if not isinstance(i, UpdateInsertion | ParameterInsertion)]
    if odd or not insertions:
        raise InputError(
            f"{method.name} cannot become LoRA: it inserts {_words(odd[0]) if odd else 'nothing'}, and only "
            "updates of weights can"
        )
    found = {path: _converted(layer, path, rank) for path, layer in adapted_layers(adapted).items()}
    targets = {
        path: _arguments(adapted_layers(adapted)[path], parts) for path, parts in found.items()
    }
    plain = _method(method, adapted, targets)
    model = plain.insert(strip(adapted), jax.random.key(0))
    for path, layer in adapted_layers(model).items():
        for part, (pair, _) in pairs_with_weights(layer.lora, WeightView(layer)).items():
            _set(pair, found[path][part])
    return model, plain


def _words(insertion: Insertion) -> str:
    """What an insertion is, for a message: `CutInsertion` is a cut."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(insertion).__name__).lower()


def _converted(layer: AdaptedLayer, path: str, rank: int | None) -> dict[str, _Converted]:
    """The factors of every part of a layer, each of its own rank."""
    check_enabled(layer, path, "converting it")
    result = {}
    for part, (member, weight) in layer.lora.members_with_weights(WeightView(layer)).items():
        a, b = _factors(member, weight, path, rank)
        bias = member.bias_delta(weight)
        result[part] = _Converted(a, b, None if bias is None else np.asarray(bias))
    needed = max(own.a.shape[2] for own in result.values())
    allowed = min(min(own.a.shape[1], own.b.shape[2]) for own in result.values())
    if needed > allowed:  # parts of unequal sizes have one rank in LoRA
        raise InputError(
            f"the update of {path} needs rank {needed}, and the smallest of its parts {', '.join(result)} "
            f"allows {allowed}: to_lora(model, method, rank={allowed}) gives the nearest update. For the "
            "exact one adapt parts of one size only"
        )
    return result


def _factors(member: PartUpdate, weight: WeightView, path: str, rank: int | None) -> Matrices:
    roles = weight.roles
    if isinstance(member, FactorsUpdate) and not isinstance(member, DoRAUpdate):
        a, b = as_matrices(roles, *map(jnp.asarray, member.factors(weight)))
        pair = np.asarray(a, np.float64) * member.scale, np.asarray(b, np.float64)
        smaller = min(pair[0].shape[1], pair[1].shape[2])
        most = min(smaller, pair[0].shape[2]) if rank is None else min(rank, smaller)
        return pair if pair[0].shape[2] <= most else nearest(*pair, most)
    if rank is None:
        raise InputError(
            f"the update of {path or 'the layer'} ({type(member).__name__}) has no rank of its own; "
            "to_lora(model, method, rank=R) gives the nearest one of a rank"
        )
    delta = np.asarray(roles.to_matrices(member.delta(weight)), np.float64)
    u, s, v = np.linalg.svd(delta, full_matrices=False)
    return u[..., :rank] * s[:, None, :rank], v[:, :rank]


def nearest(a: np.ndarray, b: np.ndarray, rank: int) -> Matrices:
    """The factors of the nearest matrices of a rank, without the matrices themselves.

    Args:
      a, b: factors of a larger rank, (maps, inputs, rank) and (maps, rank, outputs).
      rank: at most the smaller side of the matrices, of which the nearest ones are the matrices themselves.
    """
    basis_a, small_a = np.linalg.qr(a)
    basis_b, small_b = np.linalg.qr(np.swapaxes(b, 1, 2))
    u, s, v = np.linalg.svd(small_a @ np.swapaxes(small_b, 1, 2), full_matrices=False)
    wide = basis_a @ (u[..., :rank] * s[:, None, :rank])
    return wide, v[:, :rank] @ np.swapaxes(basis_b, 1, 2)


def _padded(factor: np.ndarray, rank: int, axis: int) -> np.ndarray:
    widths = [(0, 0)] * factor.ndim
    widths[axis] = (0, rank - factor.shape[axis])
    return np.pad(factor, widths)


def _arguments(layer: AdaptedLayer, parts: dict[str, _Converted]) -> dict[str, Any]:
    """LoRA's arguments for one layer."""
    rank = max(part.a.shape[-1] for part in parts.values())
    arguments: dict[str, Any] = {"rank": rank, "alpha": rank}
    update = layer.lora
    if isinstance(update, FusedUpdate):
        arguments |= {"parts": tuple(parts), "fused": update.names, "fused_sizes": update.sizes}
    if any(part.bias is not None for part in parts.values()):
        arguments["b_bias"] = True
    if any(getattr(member, "lookup_only", False) for member in update.members().values()):
        arguments["lookup_only"] = True
    if isinstance(layer, AdaptedParameter):
        arguments["axes"] = layer.axes
    return arguments


def _method(method: Method, adapted: nnx.Module, targets: dict[str, dict[str, Any]]) -> Method:
    """LoRA in the place of each part that inserts updates, with those of the targets that it chose."""
    spec = []
    for part in method.to_json():
        own, insertions = part["arguments"], from_json([part]).insertions
        if all(isinstance(insertion, NormChoice) for insertion in insertions):
            # It only trains what is there.
            spec.append(part)
            continue
        chosen = [path for insertion in insertions for path in insertion.paths(adapted)]
        kept = {name: own[name] for name in ("bias", "head") if name in own}
        arguments = {"targets": {path: targets[path] for path in chosen}, **kept}
        spec.append({"name": "lora", "arguments": arguments})
    return from_json(spec)


def _set(pair: LowRankUpdate, values: _Converted) -> None:
    rank = pair.a.shape[-1]
    a, b = _padded(values.a, rank, 2), _padded(values.b, rank, 1)
    pair.a[...] = jnp.asarray(a.reshape(pair.a.shape), jnp.float32)
    pair.b[...] = jnp.asarray(b.reshape(pair.b.shape), jnp.float32)
    if hasattr(pair, "b_bias"):
        bias = np.zeros(pair.b_bias.shape) if values.bias is None else values.bias
        pair.b_bias[...] = jnp.asarray(bias.reshape(pair.b_bias.shape), jnp.float32)
