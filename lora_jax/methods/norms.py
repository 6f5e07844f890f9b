"""Layer-norm tuning (Zhao et al. 2023, arXiv 2312.11420): the scales and biases of a model's norms train."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from flax import linen, nnx
from jaxtyping import Array, Key

from lora_jax import patterns, surgery
from lora_jax.errors import InputError
from lora_jax.low_rank import targets as module_targets
from lora_jax.low_rank.targets import Exclude
from lora_jax.method import Insertion, LayerRule, Method
from lora_jax.methods import common
from lora_jax.summary import MatchedLayer

_OF_LINEN = (
    linen.LayerNorm, linen.RMSNorm, linen.BatchNorm, linen.GroupNorm, linen.InstanceNorm,
)  # fmt: skip
_LINEN_NAMES = {(kind.__module__, kind.__qualname__) for kind in _OF_LINEN}


@dataclasses.dataclass(frozen=True)
class NormChoice(Insertion):
    """Finds the norms of a model by their classes, and puts nothing into it.

    Attributes:
      targets: text of targets that norms must be named by; empty: all norms.
      exclude: text of targets that name norms which stay as they are.
    """

    targets: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def insert(self, model: nnx.Module, key: Key[Array, ""]) -> None:
        """Only looks whether there is something to train."""
        self.paths(model)

    def matches(self, model: nnx.Module) -> list[MatchedLayer]:
        """Nothing is inserted."""
        return []

    def paths(self, model: nnx.Module) -> list[str]:
        """The paths of the norms that train.

        Raises:
          ValueError: there is none, or a target or an exclusion names none.
        """
        modules = surgery.pretrained_modules(model)
        norms = {path for path, module in modules.items() if _trains(module)}
        if not norms:
            raise InputError(
                f"the {type(model).__name__} has no norm with a scale or a bias: no module of a class "
                f"{', '.join(kind.__name__ for kind in common.NORMS)}, or of a subclass of one. For norms of "
                "other classes name their parameters: lora_jax.leaves(r'.*/norm/.*')"
            )
        chosen = norms
        if self.targets:
            chosen = {p for text in self.targets for p in _named(text, modules, norms, "target")}
        for text in self.exclude:
            left_out = _named(text, modules, norms, "exclude")
            if not chosen & left_out:
                raise InputError(
                    f"the exclude rule {text!r} excludes nothing: no target names "
                    f"{patterns.some(sorted(left_out))}"
                )
            chosen = chosen - left_out
        if not chosen:
            raise InputError(
                "no norm is left: `exclude` leaves out all; leave it out, or narrow it"
            )
        return [path for path in modules if path in chosen]


def norms(head: str | None = None, *, targets: Exclude = None, exclude: Exclude = None) -> Method:
    """Layer-norm tuning: the scales and biases of the norms train whole. Group: `norms`.

    Norms are Flax's LayerNorm, RMSNorm, BatchNorm, GroupNorm and InstanceNorm and their subclasses, whatever
    their names; of a BatchNorm the statistics go on as ever. Nothing is inserted.

    Args:
      head: regular expression for the task head's leaves.
      targets: narrows the norms to those that are named, in the syntax of `lora`'s targets:
        `"attention/norm"`, a regular expression, `nnx.LayerNorm` for exactly this class. None: all.
      exclude: norms that stay as they are, in the same syntax.

    Raises:
      ValueError: an argument is no target. What depends on the model is checked by `insert`.
    """
    narrowing = {
        "targets": module_targets.several(targets, "targets"),
        "exclude": module_targets.several(exclude, "exclude"),
    }
    for name, texts in narrowing.items():
        for text in texts:
            if not module_targets.is_open(text):
                patterns.check(text, name, names=True)
    choice = NormChoice(**narrowing)
    arguments = {"head": head} | {name: texts for name, texts in narrowing.items() if texts}
    rule = LayerRule("[^/]+", "norms", "", insertion=choice)
    return common.method("norms", arguments, (choice,), rule)


def _trains(module: nnx.Module) -> bool:
    """Whether a module is a norm that has a scale or a bias."""
    kind = surgery.original_class(module)
    is_norm = issubclass(kind, common.NORMS) or (kind.__module__, kind.__qualname__) in _LINEN_NAMES
    return is_norm and any(isinstance(value, nnx.Param) for value in vars(module).values())


def _named(text: str, modules: Mapping[str, nnx.Module], norms: set[str], kind: str) -> set[str]:
    """The norms that a target names.

    Raises:
      ValueError: it names none.
    """
    remedy = "norms takes the modules that hold them: their paths, without the last name"
    named = module_targets.matching(text, modules, kind, remedy)
    if found := norms.intersection(named):
        return found
    raise InputError(
        f"the {kind} {text!r} names no norm, but {patterns.some(named)}; the norms of the model are "
        f"{patterns.some(sorted(norms), 5)}"
    )
