"""Adaptation methods: what is inserted into a pre-trained model, and which leaves train.

Every row of the paper's tables is one `Method`: a list of insertions and an ordered list of rules
that label each leaf `frozen` or with the name of a trainable group. Methods combine with `+`.
Training code never asks which method runs.

    method = lora(r".*/(query|value)", rank=8, alpha=16, head=r"head/.*")
    adapted = method.insert(model, jax.random.key(0))
    print(method.summary(adapted))
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from lora_jax import factors, layers, partition
from lora_jax import flax_forms as _flax_forms  # noqa: F401 - registers the Flax layers
from lora_jax.partition import Labels, Rule
from lora_jax.summary import MatchedLayer, Summary, summarise

HEAD = "head"


class Insertion(Protocol):
    """Something a method puts into a model."""

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Inserts, in place."""
        ...

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """What was inserted, for the summary."""
        ...


@dataclasses.dataclass(frozen=True)
class Method:
    """An adaptation method.

    Attributes:
      spec: constructor names and arguments, enough to build the method again (`to_json`).
      insertions: applied in order by `insert`.
      rules: the first rule whose pattern matches a leaf's path gives its group.
    """

    spec: tuple[tuple[str, Any], ...]
    insertions: tuple[Insertion, ...]
    rules: tuple[Rule, ...]

    def __add__(self, other: Method) -> Method:
        return Method(
            self.spec + other.spec, self.insertions + other.insertions, self.rules + other.rules
        )

    @property
    def name(self) -> str:
        """Names of the constructors, joined by +."""
        return "+".join(name for name, _ in self.spec)

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> nnx.Module:
        """Returns an adapted model that shares the arrays of `model`; `model` is left as it is.

        Works on abstract models too (inside `nnx.eval_shape`).

        Raises:
          ValueError: a rule matches no layer, or a rank or alpha does not fit.
          TypeError: a matched layer has no LoRA form.
        """
        adapted = nnx.clone(model)
        for index, insertion in enumerate(self.insertions):
            insertion.insert(adapted, jax.random.fold_in(key, index))
        return adapted

    def labels(self, adapted: nnx.Module) -> Labels:
        """The group of every parameter of an adapted model, by path."""
        return partition.labels(partition.parameters(adapted), self.rules)

    def summary(self, adapted: nnx.Module) -> Summary:
        """What the method did to a model: matched layers, groups, counts and bytes. Printable."""
        matched = [row for insertion in self.insertions for row in insertion.matches(adapted)]
        return summarise(self.name, matched, partition.parameters(adapted), self.labels(adapted))

    def to_json(self) -> list[dict[str, Any]]:
        """A description that `from_json` turns into an equal method."""
        return [{"name": name, "arguments": dict(arguments)} for name, arguments in self.spec]


@dataclasses.dataclass(frozen=True)
class LowRankInsertion:
    """Adapts every layer whose path matches one of the targets (first match wins)."""

    targets: tuple[tuple[str, layers.Update], ...]

    def _assign(self, paths: Sequence[str]) -> dict[str, tuple[str, layers.Update]]:
        found = {}
        for path in paths:
            for pattern, update in self.targets:
                if re.fullmatch(pattern, path):
                    found[path] = (pattern, update)
                    break
        for pattern, _ in self.targets:
            if not any(re.fullmatch(pattern, path) for path in paths):
                raise partition.no_match_error("target", pattern, paths)
        return found

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Turns the matched layers into their LoRA forms, in place."""
        modules = {
            "/".join(map(str, path)): module
            for path, module in nnx.iter_modules(model)
            if not isinstance(module, layers.LowRank | layers.FusedLowRank)
        }
        assigned = self._assign(sorted(modules))
        _refuse_shared_weights(modules, assigned)
        for path, (_, update) in assigned.items():
            own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
            layers.adapt(modules[path], update, own_key, path)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """One row per adapted layer."""
        adapted = layers.adapted_layers(model)
        rows = []
        for path, (pattern, update) in self._assign(sorted(adapted)).items():
            layer = adapted[path]
            values = partition.count(partition.parameters(layer.lora))
            rows.append(MatchedLayer(pattern, path, layer.weight_shape(), update, values))
        return rows


def _refuse_shared_weights(modules: Mapping[str, nnx.Module], targets: Mapping[str, Any]) -> None:
    """A Variable that two layers share would be merged twice; a layer used twice is fine."""
    owners: dict[int, list[str]] = {}
    for path, module in modules.items():
        for name, value in vars(module).items():
            if isinstance(value, nnx.Variable):
                owners.setdefault(id(value), []).append(f"{path}/{name}")
    for shared in owners.values():
        if len(shared) > 1 and any(name.rpartition("/")[0] in targets for name in shared):
            raise ValueError(
                f"{' and '.join(sorted(shared))} are one Variable, so their layers cannot have "
                "updates of their own; share the whole layer instead of its weight"
            )


def _with_head(head: str | None, *rules: Rule) -> tuple[Rule, ...]:
    return ((Rule(head, HEAD),) if head else ()) + rules


def full(head: str | None = None) -> Method:
    """Full fine-tuning: every parameter trains. Groups: `base`, and `head` if given.

    Args:
      head: regular expression for the paths of the task head's leaves; the head is a group of its
        own in every method, because the paper's counts leave it out (Table 2).
    """
    return Method((("full", {"head": head}),), (), _with_head(head, Rule(".*", "base")))


def head_only(head: str) -> Method:
    """Trains the task head on the frozen encoder. Group: `head`."""
    return Method((("head_only", {"head": head}),), (), _with_head(head))


def bitfit(head: str | None = None) -> Method:
    """BitFit (Zaken et al. 2021; paper, section 5.1): every bias vector trains. Group: `bias`."""
    return Method((("bitfit", {"head": head}),), (), _with_head(head, Rule(r"(.*/)?bias", "bias")))


def lora(
    targets: str | Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    rank: int = 8,
    alpha: float | None = None,
    scaling: Literal["alpha/r", "alpha/sqrt(r)"] = "alpha/r",
    init: Literal["kaiming", "gaussian"] = "kaiming",
    std: float = 0.02,
    dropout: float = 0.0,
    parts: Sequence[str] = (),
    fused: Sequence[str] = (),
    fused_sizes: Sequence[int] = (),
    bias: Literal["none", "all", "lora_only"] = "none",
    head: str | None = None,
) -> Method:
    """LoRA (Hu et al. 2021, section 4.1). Groups: `lora`, and `bias` and `head` if asked for.

    Args:
      targets: regular expressions for the whole paths of the layers to adapt. A mapping gives
        arguments per expression that replace those below:
        `{".*/qkv": {"rank": 4, "parts": ("q", "v"), "fused": ("q", "k", "v")}, ".*/output": {}}`.
      rank: r, per matrix, and per part of a fused one.
      alpha: the constant of section 4.1; the default is the rank, which makes the scale 1.
      scaling: `alpha/r`, or rsLoRA's `alpha/sqrt(r)`.
      init: start of A; `kaiming` as loralib, `gaussian` N(0, std^2) as the paper. B starts at zero.
      std: standard deviation of `gaussian`.
      dropout: rate on the branch's input; takes effect after `layers.seed_dropout`.
      parts, fused: of a fused projection, the parts to adapt and the names of all, in order; each
        adapted part has factors of its own.
      fused_sizes: sizes of the parts where they are not equal.
      bias: which bias vectors train: none, all, or those of the adapted layers.
      head: regular expression for the task head's leaves.

    Raises:
      ValueError: an argument is out of range (rank and alpha are checked again against each layer).
    """
    if isinstance(targets, str):
        targets = [targets]
    if not targets:
        raise ValueError("lora needs at least one target pattern")
    per_target = dict(targets) if isinstance(targets, Mapping) else {t: {} for t in targets}
    shared = {
        "rank": rank, "alpha": alpha, "scaling": scaling, "init": init, "std": std,
        "dropout": dropout, "parts": parts, "fused": fused, "fused_sizes": fused_sizes,
    }  # fmt: skip
    updates = tuple((p, _update({**shared, **own}, p)) for p, own in per_target.items())
    rules = [Rule(r"(.*/)?lora/(.*/)?[ab]", "lora")]
    if bias == "all":
        rules.append(Rule(r"(.*/)?bias", "bias"))
    elif bias == "lora_only":
        whole = ["bias"] * any(re.fullmatch(p, "") for p in per_target)  # the root is a layer
        rules.append(Rule("|".join([*(f"(?:{p})/bias" for p in per_target), *whole]), "bias"))
    elif bias != "none":
        raise ValueError(f"bias must be 'none', 'all' or 'lora_only', got {bias!r}")
    resolved = {pattern: dataclasses.asdict(update) for pattern, update in updates}
    spec = ("lora", _plain({"targets": resolved, "bias": bias, "head": head}))
    return Method((spec,), (LowRankInsertion(updates),), _with_head(head, *rules))


def _plain(value: Any) -> Any:
    """The value as JSON has it: lists for tuples, Python numbers for numpy's."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _update(arguments: Mapping[str, Any], pattern: str) -> layers.Update:
    known = {field.name for field in dataclasses.fields(layers.Update)}
    if unknown := sorted(set(arguments) - known):
        raise ValueError(f"target {pattern!r}: unknown {unknown}; known are {sorted(known)}")
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in _plain(arguments).items()
    }
    rank = factors.check_rank(values["rank"], where=f"target {pattern!r}")
    values["alpha"] = rank if values["alpha"] is None else values["alpha"]
    factors.check_alpha(values["alpha"])
    factors.scale(rank, values["alpha"], values["scaling"])
    if values["init"] not in ("kaiming", "gaussian"):
        raise ValueError(f"init must be 'kaiming' or 'gaussian', got {values['init']!r}")
    return layers.Update(**values)


CONSTRUCTORS: Mapping[str, Callable[..., Method]] = {
    "full": full,
    "head_only": head_only,
    "bitfit": bitfit,
    "lora": lora,
}


def create(name: str, **arguments: Any) -> Method:
    """Builds a method by the name of its constructor, as configs name it.

    Raises:
      ValueError: unknown name; the message lists the known ones.
    """
    if name not in CONSTRUCTORS:
        raise ValueError(f"unknown method {name!r}; known methods are {sorted(CONSTRUCTORS)}")
    return CONSTRUCTORS[name](**arguments)


def from_json(description: Sequence[Mapping[str, Any]]) -> Method:
    """The inverse of `Method.to_json`."""
    method = create(description[0]["name"], **description[0]["arguments"])
    for part in description[1:]:
        method = method + create(part["name"], **part["arguments"])
    return method
