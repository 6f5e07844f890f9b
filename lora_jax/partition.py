"""Labels by path, the optimizer they define, and the split of a model into trainable and frozen.

Parameters are a flat dict from path to array, `{"encoder/layers/block/attention/query/kernel": w}`.
Labels are a dict with the same keys whose values name a trainable group, or `FROZEN`. Two routes
train a partitioned model, and give bit-equal updates:

* split: the train step differentiates and updates the trainable dict; the frozen dict is an
  argument that is neither returned nor differentiated. This is the route the experiments use.
* labels over the whole tree: `optimizer(labels, ...)` updates all parameters, frozen ones by zero.

Trap: clipping, accumulation, decay or a norm placed around the partition instead of inside it reads
the frozen gradients and brings their whole cost back. `optimizer` keeps them inside.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import PyTree

from lora_jax import patterns
from lora_jax.arguments import BY_PATH, LABELS, MODEL, Model, takes
from lora_jax.errors import InputError
from lora_jax.expressions import Expression
from lora_jax.state import value, without_sown

FROZEN = "frozen"
TRAINABLE = "trainable"
HEAD = "head"  # group of the task head, which is not of the base

if TYPE_CHECKING:
    Params = dict[str, jax.Array]
else:  # on a host they may be numpy's; an abstract model (`nnx.eval_shape`) has shapes with a dtype
    Params = dict[str, jax.Array | np.ndarray | jax.ShapeDtypeStruct]
Labels = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Leaves whose whole path matches the regular expression `pattern` belong to `group`.

    Attributes:
      pattern: for whole paths.
      group: of the leaves.
      inserted: None for any leaf; "" for pre-trained leaves only; a name such as `lora` for leaves of
        the modules only that a method inserted under that name. A module of the user's own that has
        such a name is pre-trained.
    """

    pattern: str
    group: str
    inserted: str | None = None


def labels(
    params: Mapping[str, Any], rules: Sequence[Rule], inserted: Collection[str] = ()
) -> Labels:
    """Labels every parameter with the group of the first rule that matches, else FROZEN.

    Args:
      params: by path; only the paths count.
      rules: in order.
      inserted: paths of the modules that methods inserted, such as `layers/0/query/lora`. What is
        below them is not pre-trained.

    Raises:
      ValueError: a rule matches no path at all (a typo must not silently freeze a group), or never
        applies (see `patterns.first_matches`).
    """
    modules = frozenset(inserted)
    names = {path: _inserted_name(path, modules) for path in params}
    ordered = []
    for rule in rules:
        kind, pattern = repr(rule.group), Expression(rule.pattern, repr(rule.group))
        found = pattern.among(p for p in params if rule.inserted in (None, names[p]))
        if not found and rule.inserted:
            raise InputError(
                f"the {kind} rule {rule.pattern!r} matches no path: it is for what a method inserts as "
                f"`{rule.inserted}`, and the model holds no such module; insert the method first"
            )
        if not found:
            raise patterns.no_match_error(kind, rule.pattern, list(params))
        ordered.append(patterns.Ordered(kind, rule.pattern, rule.group, found))
    owners = patterns.first_matches(ordered)
    return {path: owners[path].outcome if path in owners else FROZEN for path in params}


def _inserted_name(path: str, inserted: frozenset[str]) -> str:
    """Name of the outermost inserted module that holds a leaf; "" for a pre-trained leaf."""
    parts = path.split("/")
    for count in range(1, len(parts)):
        if "/".join(parts[:count]) in inserted:
            return parts[count - 1]
    return ""


@takes(labels=LABELS)
def optimizer(
    labels: Mapping[str, str],
    groups: Mapping[str, optax.GradientTransformation] | optax.GradientTransformation,
    around: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a partitioned model; no state for, and no change of, frozen leaves.

    Args:
      labels: path to group, of the parameters that the optimizer will see, or of more: all of a model
        for its trainable ones. What it sees may be a dict by path, or the state of a model.
      groups: one transformation per trainable group, or one for all of them.
      around: wraps the whole trainable part, for what spans groups: a global-norm clip
        (`lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx)`) or gradient accumulation.

    Raises:
      ValueError: a group has no transformation, or a transformation names no group.
    """
    present = sorted(set(labels.values()) - {FROZEN})
    if isinstance(groups, optax.GradientTransformation):
        groups = dict.fromkeys(present, groups)
    if sorted(groups) != present:
        raise InputError(
            f"transformations are given for groups {sorted(groups)}, the labels hold {present}"
        )

    def group_of(path: str) -> str:
        if path not in labels:
            raise InputError(
                f"the optimizer has no label for {path!r}; give the labels of the model"
            )
        return labels[path]

    def side_of(path: str) -> str:
        return FROZEN if group_of(path) == FROZEN else TRAINABLE

    inside: optax.GradientTransformation = optax.partition(
        {**groups, FROZEN: optax.set_to_zero()}, functools.partial(by_path, group_of)
    )
    if around is not None:
        inside = around(inside)
    return optax.partition(
        {TRAINABLE: inside, FROZEN: optax.set_to_zero()}, functools.partial(by_path, side_of)
    )


def by_path(function: Callable[[str], Any], params: Any) -> Any:
    """A tree with the structure of `params` that holds `function(path)` for every parameter.

    Args:
      function: of a parameter's path.
      params: a dict by path, or the nested state of a model (`nnx.state`).
    """

    def at(keys: Sequence[Any], leaf: Any) -> Any:
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        names = (
            getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in keys
        )
        return function("/".join(map(str, names)))

    return jax.tree_util.tree_map_with_path(at, params, is_leaf=_is_parameter)


def _is_parameter(node: Any) -> bool:
    return isinstance(node, nnx.Variable | optax.MaskedNode)


@dataclasses.dataclass(frozen=True)
class Structure(Generic[Model]):
    """A model without its arrays: static and hashable, so it can be closed over by a jitted step."""

    graphdef: nnx.GraphDef[Model]
    paths: tuple[tuple[Any, ...], ...]


@takes(model=MODEL)
def parameters(model: nnx.Module) -> Params:
    """All `nnx.Param` values of a model by path (arrays, or shapes if the model is abstract)."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): leaf.get_raw_value() for path, leaf in flat}


@takes(model=MODEL, labels=LABELS)
def split(model: Model, labels: Mapping[str, str]) -> tuple[Structure[Model], Params, Params]:
    """Splits a model into (structure, trainable, frozen).

    State, the Variables that are no `nnx.Param` (batch statistics, random state), is in `frozen`; what
    a forward pass writes of it is `moved`, see `state`. Sown values are left out.

    Raises:
      ValueError: the labels are not those of this model's parameters.
    """
    paths_of_model = set(parameters(model))
    if paths_of_model != set(labels):
        odd = sorted(paths_of_model ^ set(labels))
        raise InputError(f"labels and parameters differ, for example at {odd[:5]}")
    graphdef, state = nnx.split(without_sown(model))
    trainable: Params = {}
    frozen: Params = {}
    paths = []
    for path, leaf in nnx.to_flat_state(state):
        name = "/".join(map(str, path))
        paths.append(path)
        side = frozen if labels.get(name, FROZEN) == FROZEN else trainable
        side[name] = value(leaf)
    return Structure(graphdef, tuple(paths)), trainable, frozen


@takes(model=MODEL)
def all_frozen(model: Model) -> tuple[Structure[Model], Params]:
    """A model that does not train, as (structure, leaves): for programs whose argument the leaves are."""
    structure, _, leaves = split(model, dict.fromkeys(parameters(model), FROZEN))
    return structure, leaves


@takes(trainable=BY_PATH, frozen=BY_PATH)
def join(
    structure: Structure[Model], trainable: Mapping[str, Any], frozen: Mapping[str, Any]
) -> Model:
    """The inverse of `split`: a model that holds the given arrays.

    Args:
      structure: of the model.
      trainable: arrays by path; they stand before those of `frozen`.
      frozen: the other arrays.
    """
    both = {**frozen, **trainable}
    flat = {path: both["/".join(map(str, path))] for path in structure.paths}
    model: Model = nnx.merge(structure.graphdef, nnx.from_flat_state(flat))
    return model


def count(params: Mapping[str, Any], packed: Mapping[str, int] | None = None) -> int:
    """Number of values in a dict of arrays or shapes.

    Args:
      params: by path.
      packed: how many values arrays of packed weights stand for, see `quantisation.weight.value_counts`.
    """
    return sum(int((packed or {}).get(path, leaf.size)) for path, leaf in params.items())


def size_bytes(tree: PyTree) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
