"""What the Variables of a model are, and which of them a training run keeps: decided here, once.

    kind       of the base,   a train step keeps    checkpoints     adapter folders
               in its print   what the model writes hold            hold
    parameter  yes            (trains by its label) what trains     what trains
    statistic  yes            yes                   what moved      what differs from the base
    random     no             yes                   what moved      nothing
    cache      no             no                    nothing         nothing
    temporary  no             no                    nothing         nothing
    fixed      no             no                    nothing         all (seeded: what differs)

* parameter: `nnx.Param` and its subclasses.
* statistic: `nnx.BatchStat`, arrays without a Variable, and every class that is not named here: a
  Variable of the user's own may be a table or a kernel, so it makes the base what it is.
* random: `nnx.RngState`, the keys and counts of `nnx.Rngs`, and whatever holds a typed random key.
* cache: `nnx.Cache`, the scratch of decoding.
* temporary: `nnx.Intermediate` and `nnx.Perturbation`, which calls sow, and `Temporary`.
* fixed: `Fixed`, what a method inserts besides that does not train; `Seeded` comes from its settings.

All that is no parameter is state. State is in the frozen part of a model (`partition.split`); `moved` is
what a forward pass wrote of it, and stands before the frozen values from then on. Sown values are not
even in the frozen part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.arguments import BY_PATH, MODEL, Model, takes
from lora_jax.errors import InputError

Kind = Literal["parameter", "statistic", "random", "cache", "temporary", "fixed"]
KEPT: tuple[Kind, ...] = ("statistic", "random")  # what a train step keeps of what the model writes
_Sown = (nnx.Intermediate, nnx.Perturbation)
_Value = TypeVar("_Value")


class Temporary(nnx.Variable[_Value]):
    """Base of Variables that are set for the calls that follow, and belong to no run and no base."""


class Fixed(nnx.Variable[_Value]):
    """What a method inserts and never trains, such as the start of factors; adapter folders hold it."""


class Seeded(Fixed[_Value]):
    """The same, drawn from a seed in the method's settings: folders hold it only where it is another one."""


def kind(leaf: Any) -> Kind:
    """What a leaf of a model's state is: a Variable, or an array without one."""
    if isinstance(leaf, nnx.Param):
        return "parameter"
    if isinstance(leaf, (*_Sown, Temporary)):
        return "temporary"
    if isinstance(leaf, nnx.Cache):
        return "cache"
    if isinstance(leaf, Fixed):
        return "fixed"
    if isinstance(leaf, nnx.RngState) or is_key(value(leaf)):
        return "random"
    return "statistic"


def value(leaf: Any) -> Any:
    """The array of a leaf (or its shape, if the model is abstract); Python's numbers become arrays."""
    raw = leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
    return jnp.asarray(raw) if isinstance(raw, bool | int | float | complex) else raw


def leaves(model: nnx.Module) -> dict[str, Any]:
    """The leaves of a model by path; what several modules share is at its first path only."""
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}


def values(model: nnx.Module, *kinds: Kind) -> dict[str, Any]:
    """The arrays of these kinds by path (shapes, if the model is abstract)."""
    return {path: value(leaf) for path, leaf in leaves(model).items() if kind(leaf) in kinds}


@takes(frozen=BY_PATH, model=MODEL)
def moved(frozen: Mapping[str, Any], model: nnx.Module) -> dict[str, Any]:
    """The state that a model has written since it was joined, by path; {} for most models.

    A step returns it beside the loss, and the next one runs with it:

        def loss(trainable, frozen):
            model = lora_jax.join(structure, trainable, frozen)
            value = ...  # calls the model
            return value, lora_jax.moved(frozen, model)

        gradients, moved = jax.grad(loss, has_aux=True)(trainable, frozen)
        frozen = {**frozen, **moved}

    It is statistics and random state (see the table above). A value counts as written if it is
    another array than before; `nnx.jit` and `nnx.remat` inside a model write all that passes through.

    Parameters that a model writes itself (as `nnx.SpectralNorm` does) are not kept.

    Args:
      frozen: the values that the model was joined from.
      model: after its forward pass.

    Raises:
      ValueError: the model made state that it did not have before.
    """
    kept = {path: value(leaf) for path, leaf in leaves(model).items() if kind(leaf) in KEPT}
    if new := sorted(kept.keys() - frozen.keys()):
        raise InputError(
            f"the model made new state in its forward pass, which no step could keep: {new[:5]}. Call it "
            "once before a method is inserted, so that it has all its state"
        )
    return {path: new for path, new in kept.items() if new is not frozen[path]}


def fixed(model: nnx.Module, fresh: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What an adapter folder holds of the values that a method inserted and that never train, by path.

    Args:
      model: adapted.
      fresh: such values of the same model after a new insertion; of those that a seed gives, only what
        differs from it is kept. None keeps none of them.
    """
    kept = {}
    for path, leaf in leaves(model).items():
        if not isinstance(leaf, Fixed):
            continue
        new = value(leaf)
        if isinstance(leaf, Seeded) and (fresh is None or same_bits(new, fresh[path])):
            continue
        kept[path] = new
    return kept


def seeded(model: nnx.Module) -> dict[str, Any]:
    """The values that a method drew from a seed in its settings, by path."""
    return {path: value(leaf) for path, leaf in leaves(model).items() if isinstance(leaf, Seeded)}


def write(model: nnx.Module, values: Mapping[str, Any]) -> None:
    """Puts values by path into a model, in place."""
    flat = nnx.to_flat_state(nnx.state(model))
    named = [(path, "/".join(map(str, path))) for path, _ in flat]
    chosen = {path: values[name] for path, name in named if name in values}
    nnx.update(model, nnx.from_flat_state(chosen))


def without_sown(model: Model) -> Model:
    """The model without what its calls have sown; a copy that shares its arrays if there is any."""
    if not any(isinstance(leaf, _Sown) for leaf in leaves(model).values()):
        return model
    copy = nnx.clone(model)
    nnx.pop(copy, _Sown)
    return copy


def differing(values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some whole arrays whose type, shape or bits are not those of the base."""
    return {
        path: new
        for path, new in values.items()
        if new is not base[path] and not same_bits(new, base[path])
    }


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays of this host are equal bit for bit."""
    one, other = np.asarray(one), np.asarray(other)
    same: bool = one.dtype == other.dtype and one.shape == other.shape
    return same and one.tobytes() == other.tobytes()


def is_key(value: Any) -> bool:
    """Whether a value is an array of typed random keys (or the shape of one)."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def without_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with the numbers of random keys in place of typed keys, for files."""
    return {path: jax.random.key_data(v) if is_key(v) else v for path, v in values.items()}


def with_types(numbers: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `without_types`; `like` has typed keys at the same paths."""
    return {
        path: jax.random.wrap_key_data(v, impl=jax.random.key_impl(like[path]))
        if is_key(like[path])
        else v
        for path, v in numbers.items()
    }
