"""An adaptation method: what is inserted into a pre-trained model, and which leaves train.

Every row of the paper's tables is one `Method`: a list of insertions and an ordered list of rules
that label each leaf `frozen` or with the name of a trainable group. Methods combine with `+`.
Training code never asks which method runs. The constructors are in `methods`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx
from jaxtyping import Array, Key

from lora_jax import partition, surgery
from lora_jax.arguments import KEY, MODEL, Kind, Model, takes
from lora_jax.arguments import check as check_argument
from lora_jax.errors import InputError, InputTypeError
from lora_jax.partition import Labels, Params, Rule
from lora_jax.quantisation.weight import PackedPart, value_counts
from lora_jax.state import leaves, without_sown
from lora_jax.summary import MatchedLayer, SkippedLayer, Summary, summarise

# Wraps the optimizer of what trains, see `partition.optimizer`.
Around = Callable[[optax.GradientTransformation], optax.GradientTransformation]


class Insertion:
    """Base class of what a method puts into a model.

    Attributes:
      changes_paths: whether it moves leaves to other paths; such insertions come first.
      special_tokens: numbers of special tokens, before and behind the input, that examples must have.
    """

    changes_paths: ClassVar[bool] = False

    @property
    def special_tokens(self) -> tuple[int, int]:
        """None, unless a subclass says otherwise."""
        return 0, 0

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Inserts, in place.

        Args:
          model: a copy of the pre-trained model, which shares its arrays.
          key: for initial values.
        """
        raise NotImplementedError

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """What was inserted into an adapted model, for the summary."""
        raise NotImplementedError

    def paths(self, model: nnx.Module) -> list[str]:
        """The paths of the layers that were changed in an adapted model."""
        return [row.path for row in self.matches(model)]

    def around(self, model: nnx.Module, updates: int | None) -> Around | None:
        """What the method does to the optimizer, see `Method.around`; None: nothing."""
        return None

    def skipped(self, model: nnx.Module) -> list[SkippedLayer]:
        """Layers of an adapted model that the method was to change and did not, for the summary."""
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRule(Rule):
    """A rule for leaves of the layers that an insertion changed, whatever chose them.

    Attributes:
      pattern: regular expression for the path of a leaf below its layer.
      insertion: that changed the layers; a method compares its insertions themselves.
    """

    insertion: Insertion = dataclasses.field(compare=False)

    def on(self, layers: Sequence[str]) -> Rule:
        """The rule for layers of these paths."""
        below = "|".join(f"{re.escape(path)}/" if path else "" for path in layers)
        return Rule(f"(?:{below})(?:{self.pattern})", self.group, self.inserted)


@dataclasses.dataclass(frozen=True)
class Method:
    """An adaptation method.

    Attributes:
      spec: constructor names and arguments, enough to build the method again (`to_json`).
      insertions: applied in order by `insert`, those that change paths (cuts) first.
      rules: the first rule whose pattern matches a leaf's path gives its group.
    """

    spec: tuple[tuple[str, Any], ...]
    insertions: tuple[Insertion, ...]
    rules: tuple[Rule, ...]

    def __add__(self, other: Method) -> Method:
        check_argument("+", "the other side", other, METHOD)
        return Method(
            self.spec + other.spec, self.insertions + other.insertions, self.rules + other.rules
        )

    def __hash__(self) -> int:
        """Of the description, whose arguments are mappings and lists."""
        return hash(json.dumps(self.to_json(), sort_keys=True, default=str))

    @property
    def special_tokens(self) -> tuple[int, int]:
        """Numbers of special tokens, before and behind the input, that examples must have.

        Raises:
          ValueError: two combined methods have special tokens.
        """
        counts = [i.special_tokens for i in self.insertions if any(i.special_tokens)]
        if len(counts) > 1:
            raise InputError(f"{self.name}: two methods have special tokens; a method takes one")
        return counts[0] if counts else (0, 0)

    @property
    def name(self) -> str:
        """Names of the combined methods, joined by +: those of their constructors, or of a kind of LoRA."""
        return "+".join(_name(name, arguments) for name, arguments in self.spec)

    @property
    def head(self) -> str | None:
        """Regular expression for the leaves of the task head, which are not of the base; None: no head."""
        patterns = list(dict.fromkeys(r.pattern for r in self.rules if r.group == partition.HEAD))
        if len(patterns) < 2:
            return patterns[0] if patterns else None
        return "|".join(f"(?:{pattern})" for pattern in patterns)

    def __str__(self) -> str:
        """Constructor calls with their arguments, joined by +."""
        return " + ".join(f"{name}({_shown(arguments)})" for name, arguments in self.spec)

    def insert(self, model: Model, key: Key[Array, ""]) -> Model:
        """Returns an adapted model that shares the arrays of `model`; `model` is left as it is.

        Works on abstract models too (inside `nnx.eval_shape`).

        Args:
          model: pre-trained.
          key: for the initial values of what is inserted.

        Raises:
          ValueError: a rule matches no layer, or a rank or alpha does not fit.
          TypeError: the method cannot adapt a layer of that class, or the model is Flax Linen's.
        """
        _refuse_linen(model, self)
        check_argument("insert", "key", key, KEY)
        adapted = without_sown(nnx.clone(model))
        numbered = sorted(enumerate(self.insertions), key=lambda item: not item[1].changes_paths)
        for number, insertion in numbered:
            insertion.insert(adapted, jax.random.fold_in(key, number))
        return adapted

    @takes(adapted=MODEL)
    def labels(self, adapted: nnx.Module) -> Labels:
        """The group of every parameter of an adapted model, by path.

        Raises:
          ValueError: a rule matches no leaf, or earlier rules leave it none; or a leaf would train that
            is of integers.
        """
        rules = [
            rule.on(rule.insertion.paths(adapted)) if isinstance(rule, LayerRule) else rule
            for rule in self.rules
        ]
        params, inserted = partition.parameters(adapted), surgery.inserted_modules(adapted)
        labels = partition.labels(params, rules, list(inserted))
        _refuse_packed(adapted, labels)
        _refuse_integers(params, labels)
        return labels

    @takes(adapted=MODEL)
    def around(self, adapted: nnx.Module, updates: int | None = None) -> Around | None:
        """What the method does to its optimizer (LoRA+, AdaLoRA); None for the methods that do nothing.

            tx = lora_jax.optimizer(labels, optax.adamw(1e-3), around=method.around(adapted, updates=1000))

        The trainer does this by itself.

        Args:
          adapted: the model.
          updates: of the whole run, for what has a schedule.

        Raises:
          ValueError: the method has a schedule, and there are no `updates` or too few.
        """
        found = [w for i in self.insertions if (w := i.around(adapted, updates)) is not None]
        if not found:
            return None
        return lambda inside: functools.reduce(lambda tx, wrap: wrap(tx), found, inside)

    @takes(adapted=MODEL)
    def summary(self, adapted: nnx.Module) -> Summary:
        """What the method did to a model: matched layers, groups, state, counts, bytes. Printable."""
        matched = [row for insertion in self.insertions for row in insertion.matches(adapted)]
        skipped = [row for insertion in self.insertions for row in insertion.skipped(adapted)]
        params, labels = partition.parameters(adapted), self.labels(adapted)
        packed = value_counts(adapted)
        return summarise(self.name, matched, params, labels, skipped, leaves(adapted), packed)

    def to_json(self) -> list[dict[str, Any]]:
        """A description that `methods.from_json` turns into an equal method."""
        return [{"name": name, "arguments": dict(arguments)} for name, arguments in self.spec]


_KNOWN_AS = ("pissa", "olora", "lora_ga", "lora_fa", "lora_pro")
METHOD = Kind((Method,), 'a Method, such as lora_jax.lora("all-linear")')


def trainable(method: Method, adapted: nnx.Module) -> Callable[[Sequence[Any], Any], bool]:
    """A filter for Flax's own transformations: what the method trains, heads and biases included.

        wrt = lora_jax.trainable(method, adapted)
        optimizer = nnx.Optimizer(adapted, lora_jax.optimizer(method.labels(adapted), tx), wrt=wrt)
        loss, gradients = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, wrt))(adapted)

    Args:
      method: that was inserted.
      adapted: the model.
    """
    check_argument("trainable", "method", method, METHOD)
    trained = {path for path, group in method.labels(adapted).items() if group != partition.FROZEN}
    return lambda path, _: "/".join(map(str, path)) in trained


def _refuse_packed(adapted: nnx.Module, labels: Labels) -> None:
    """A packed weight is of integers and their scales."""
    for path, leaf in leaves(adapted).items():
        if isinstance(leaf, PackedPart) and labels[path] != partition.FROZEN:
            weight = path.rpartition("/")[0]
            layer = weight.rpartition("/")[0]
            raise InputError(
                f"{weight} is quantised, and the method would train it; a packed weight stays as it is. "
                f"Leave the layer as it is, lora_jax.quantise(model, exclude={layer!r}), take a method that "
                "inserts something (lora), or train the whole model in floating-point numbers: "
                "lora_jax.dequantise(model), or in a config model.base_format='float'"
            )


def _refuse_integers(params: Params, labels: Labels) -> None:
    """An integer has no gradient, and its update would be rounded away."""
    for path, group in labels.items():
        dtype = getattr(params[path], "dtype", np.float32)
        if group != partition.FROZEN and not jnp.issubdtype(dtype, jnp.inexact):
            raise InputError(
                f"{path} has type {dtype} and would train in the group {group!r}; only floating-point "
                "numbers can train. Convert it to a floating-point type first, or leave it to no rule of "
                "the method; what is no parameter belongs in another Variable than an nnx.Param"
            )


def _refuse_linen(model: Any, method: Method) -> None:
    """A Linen module holds no parameters, its parameters hold no layers, and ToNNX shows none."""
    if isinstance(model, linen.Module):
        call = "lora_jax.linen.as_nnx(module, variables, *example_inputs)"
    elif isinstance(model, nnx.bridge.ToNNX) and method.insertions:
        call = (
            "lora_jax.linen.as_nnx(wrapper.to_nnx__module, lora_jax.linen.variables(wrapper), "
            "*example_inputs)"
        )
    elif isinstance(model, Mapping) and not isinstance(model, nnx.Module):
        call = 'lora_jax.linen.as_nnx(module, {"params": params}, *example_inputs)'
    else:
        check_argument("insert", "model", model, MODEL)
        return
    raise InputTypeError(
        f"insert takes an nnx.Module, and this is a {type(model).__name__}. For a model of Flax Linen, "
        f"insert into {call}; see docs/linen.md"
    )


def _name(constructor: str, arguments: Mapping[str, Any]) -> str:
    """The name under which a kind of LoRA is known; that of the constructor for all else."""
    targets = arguments.get("targets")
    if constructor != "lora" or not isinstance(targets, Mapping):
        return constructor
    found = []
    for target in targets.values():
        found += [target[key] for key in ("init", "gradient") if target.get(key) in _KNOWN_AS]
        found += ["lora_plus"] if target.get("b_rate", 1) != 1 else []
        found += ["dora"] if target.get("magnitude") else []
    return "_".join(dict.fromkeys(found)) or constructor


def _shown(arguments: Mapping[str, Any]) -> str:
    """name=value, without what is empty; a mapping's values by key."""
    parts = []
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            inner = {k: _shown(v) if isinstance(v, Mapping) else v for k, v in value.items()}
            parts += [f"{key!r}: {text}" for key, text in inner.items()]
        elif value is not None and value != []:
            parts.append(f"{name}={value}")
    return ", ".join(parts)
