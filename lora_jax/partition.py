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
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from flax import nnx

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
    """Leaves whose whole path matches the regular expression `pattern` belong to `group`."""

    pattern: str
    group: str


def nearest(pattern: str, paths: Sequence[str], count: int = 5) -> list[str]:
    """The paths most like a pattern that matched none of them, for an error message.

    Every word of the pattern is compared with the components of a path; long paths come first among
    equals, because they name layers and not containers.
    """
    words = [word for word in re.split(r"\W+", pattern) if word] or [pattern]

    def likeness(path: str) -> float:
        parts = path.split("/")
        return sum(max(difflib.SequenceMatcher(None, w, p).ratio() for p in parts) for w in words)

    return sorted(paths, key=lambda path: (-likeness(path), -len(path)))[:count]


def no_match_error(kind: str, pattern: str, paths: Sequence[str]) -> ValueError:
    """The error for a rule that matches nothing: it shows the nearest paths."""
    lines = "\n  ".join(nearest(pattern, paths)) or "(the model has none)"
    return ValueError(
        f"the {kind} rule {pattern!r} matches no path. Patterns are regular expressions for the "
        f"whole path. Nearest paths:\n  {lines}"
    )


def labels(params: Mapping[str, Any], rules: Sequence[Rule]) -> Labels:
    """Labels every parameter with the group of the first rule that matches, else FROZEN.

    Raises:
      ValueError: a rule matches no path at all; a typo must not silently freeze a group.
    """
    for rule in rules:
        if not any(re.fullmatch(rule.pattern, path) for path in params):
            raise no_match_error(f"{rule.group!r}", rule.pattern, list(params))
    return {
        path: next((r.group for r in rules if re.fullmatch(r.pattern, path)), FROZEN)
        for path in params
    }


def optimizer(
    labels: Mapping[str, str],
    groups: Mapping[str, optax.GradientTransformation] | optax.GradientTransformation,
    around: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a partitioned model; no state for, and no change of, frozen leaves.

    Args:
      labels: path to group, over the tree the optimizer will see: all parameters, or only the
        trainable ones.
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
        raise ValueError(
            f"transformations are given for groups {sorted(groups)}, the labels hold {present}"
        )
    inside: optax.GradientTransformation = optax.partition(
        {**groups, FROZEN: optax.set_to_zero()}, dict(labels)
    )
    if around is not None:
        inside = around(inside)
    outer = {path: FROZEN if group == FROZEN else TRAINABLE for path, group in labels.items()}
    return optax.partition({TRAINABLE: inside, FROZEN: optax.set_to_zero()}, outer)


@dataclasses.dataclass(frozen=True)
class Structure:
    """A model without its arrays: static and hashable, so it can be closed over by a jitted step."""

    graphdef: nnx.GraphDef[nnx.Module]
    paths: tuple[tuple[Any, ...], ...]


def parameters(model: nnx.Module) -> Params:
    """All `nnx.Param` values of a model by path (arrays, or shapes if the model is abstract)."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): leaf.get_raw_value() for path, leaf in flat}


def split(model: nnx.Module, labels: Mapping[str, str]) -> tuple[Structure, Params, Params]:
    """Splits a model into (structure, trainable, frozen).

    State, the Variables that are no `nnx.Param` (batch statistics, random state), is in `frozen`; what
    a forward pass writes of it is `moved`, see `state`. Sown values are left out.

    Raises:
      ValueError: the labels are not those of this model's parameters.
    """
    paths_of_model = set(parameters(model))
    if paths_of_model != set(labels):
        odd = sorted(paths_of_model ^ set(labels))
        raise ValueError(f"labels and parameters differ, for example at {odd[:5]}")
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


def join(
    structure: Structure, trainable: Mapping[str, Any], frozen: Mapping[str, Any]
) -> nnx.Module:
    """The inverse of `split`: a model that holds the given arrays.

    Args:
      structure: of the model.
      trainable: arrays by path; they stand before those of `frozen`.
      frozen: the other arrays.
    """
    both = {**frozen, **trainable}
    flat = {path: both["/".join(map(str, path))] for path in structure.paths}
    model: nnx.Module = nnx.merge(structure.graphdef, nnx.from_flat_state(flat))
    return model


def count(params: Mapping[str, Any]) -> int:
    """Number of values in a dict of arrays or shapes."""
    return sum(int(leaf.size) for leaf in params.values())


def size_bytes(params: Mapping[str, Any]) -> int:
    """Bytes of a dict of arrays or shapes."""
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in params.values())
