"""Converts LoRA checkpoints of loralib, the code of the paper's authors, to our adapters.

A loralib state dict holds for each adapted layer `lora_A` (r, d_in) and `lora_B` (d_out, r). For
GPT-2's fused `c_attn` it holds the factors of the g adapted parts, stacked along the first axis:
(g*r, d) and (g*d, r). Ours are transposed, with one leaf for all layers: `a` (layers, d_in, r) and `b`
(layers, r, d_out); the `b` of a part of `c_attn` is (layers, r, 1, d).
Sources: paper.md, sections 1.3 and 1.4. Three things to know:

* A state dict does not hold alpha, and the released RoBERTa-base MNLI file needs 16 where the paper's
  Table 9 says 8. So alpha is a required argument.
* A state dict of the whole model also holds base weights, and the update may have been merged into
  them: loralib merges in eval mode, the file does not say so, and loading it then counts the update
  twice (microsoft/LoRA issue #190). The factors are stored separately and are right in both cases. So
  base weights are never used: such a file is refused, or with `ignore_base` only its factors and head
  are read, to be put onto the published base.
* `loralib.lora_state_dict` leaves the head out. Without keys of a head the method has no head either.

Pure functions on dicts of numpy arrays; `loralib_export` has the inverse, and `experiments.convert`
reads and writes the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from lora_jax import checks, methods
from lora_jax.errors import InputError
from lora_jax.interop import loralib_factors as checked
from lora_jax.interop.loralib_factors import Arrays
from lora_jax.interop.loralib_names import FUSED, find, plain_name
from lora_jax.method import Method
from lora_jax.partition import Labels

HEAD = r"head/.*"


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted state dict: what `adapters.save_adapter` takes.

    Attributes:
      architecture: `roberta`, `bert`, `deberta-v2` or `gpt2`.
      method: LoRA whose insertion into the model makes exactly the factors in `values`.
      values: path to array, float32.
      groups: path to `lora` or `head`.
      layers: number of layers.
    """

    architecture: str
    method: Method
    values: Arrays
    groups: Labels
    layers: int


def from_state_dict(
    state: Mapping[str, np.ndarray],
    *,
    alpha: float | None,
    dropout: float = 0.0,
    parts: Sequence[str] = ("q", "v"),
    layers: int | None = None,
    ignore_base: bool = False,
) -> Converted:
    """Converts a loralib state dict of RoBERTa, BERT, DeBERTa or GPT-2.

    Args:
      state: key to array, as saved.
      alpha: `lora_alpha` of the run, which the file does not hold.
      dropout: `lora_dropout` of the run; it matters only if training goes on.
      parts: the parts of GPT-2's `c_attn` whose `enable_lora` is True.
      layers: number of layers of the model; checked unless None.
      ignore_base: leave out everything that is neither a factor nor the head.

    Raises:
      ValueError: alpha is missing, keys are unknown or missing, or shapes do not fit; the message
        names the keys.
    """
    if alpha is None:
        raise InputError(
            "alpha is needed: loralib does not store it. The released RoBERTa-base MNLI file has 16 "
            "(with 8 it scores 66.55 instead of 87.5), the GPT-2 files have 32"
        )
    checks.positive("alpha", alpha)
    plain = {plain_name(key): np.asarray(value) for key, value in state.items()}
    if len(plain) != len(state):
        raise InputError(
            "the file holds some keys twice, with and without `module.` or `transformer.`"
        )
    architecture = find(plain)
    by_module, head = checked.sort_out(plain, architecture, ignore_base)
    depth = checked.depth(by_module, architecture, layers)
    values: Arrays = {}
    targets: dict[str, _Target] = {}
    for theirs, ours in architecture.modules.items():
        if theirs not in by_module:
            continue
        stem = f"{architecture.root}.{{}}.{theirs}"
        a, b = checked.stack(by_module[theirs], stem, depth)
        fused = theirs in architecture.fused
        pairs = _split(a, b, parts, stem) if fused else {"": _checked_pair(a, b, stem)}
        for part, pair in pairs.items():
            for side, value in zip("ab", pair, strict=True):
                path = f"{architecture.block}/{ours}/lora/{part}/{side}".replace("//", "/")
                leaf = checked.transposed(value)
                # The outputs of one part are (1, width): see `Attention` in models/gpt2.py.
                values[path] = leaf[:, :, None] if fused and side == "b" else leaf
        targets[ours] = _Target(b.shape[-1], tuple(pairs) if fused else ())
    for key, value in head.items():
        values[architecture.head[key]] = checked.transposed(value) if value.ndim == 2 else value
    groups = {path: "lora" if "/lora/" in path else methods.HEAD for path in values}
    method = _method(targets, alpha=alpha, dropout=dropout, head=HEAD if head else None)
    return Converted(architecture.name, method, values, groups, depth)


A = Shaped[np.ndarray, "layers rows inputs"]  # in loralib's layout
B = Shaped[np.ndarray, "layers outputs r"]


def _checked_pair(a: A, b: B, stem: str) -> tuple[np.ndarray, np.ndarray]:
    if a.shape[1] != b.shape[2]:
        raise InputError(
            f"{stem.format(0)}: lora_A is {a.shape[1:]} and lora_B {b.shape[1:]}, expected "
            "(r, inputs) and (outputs, r)"
        )
    return a, b


def _split(a: A, b: B, parts: Sequence[str], stem: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The factor pairs of the parts of a MergedLinear."""
    chosen = [part for part in FUSED if part in parts]
    if len(chosen) != len(parts) or not chosen:
        raise InputError(f"parts must be some of {', '.join(FUSED)}, got {tuple(parts)}")
    count, rank, width = len(chosen), b.shape[2], a.shape[2]
    if a.shape[1] != count * rank or b.shape[1] != count * width:
        raise InputError(
            f"{stem.format(0)}: lora_A is {a.shape[1:]} and lora_B {b.shape[1:]}, but a MergedLinear "
            f"with the parts {', '.join(chosen)} has ({count}*r, {width}) and ({count * width}, r). "
            f"Name in `parts` (--parts) those whose enable_lora was True; by lora_B they are "
            f"{b.shape[1] / width:g}"
        )
    pairs = zip(np.split(a, count, axis=1), np.split(b, count, axis=1), strict=True)
    return dict(zip(chosen, pairs, strict=True))


@dataclasses.dataclass(frozen=True)
class _Target:
    """How a layer is adapted: its rank, and the adapted parts if it is fused."""

    rank: int
    parts: tuple[str, ...] = ()


def _method(
    targets: Mapping[str, _Target], *, alpha: float, dropout: float, head: str | None
) -> Method:
    """The method as configs write it: evaluation requires that of the config and the adapter equal."""
    ranks = {target.rank for target in targets.values()}
    if len(ranks) > 1 or any(target.parts for target in targets.values()):
        settings = {
            f".*/{ours}": {"rank": target.rank}
            | ({"parts": target.parts, "fused": FUSED} if target.parts else {})
            for ours, target in targets.items()
        }
        return methods.lora(settings, alpha=alpha, dropout=dropout, head=head)
    by_parent: dict[str, list[str]] = {}
    for ours in targets:
        parent, _, name = ours.rpartition("/")
        by_parent.setdefault(parent, []).append(name)
    patterns = [
        f".*/{parent}/" + (names[0] if len(names) == 1 else f"({'|'.join(names)})")
        for parent, names in by_parent.items()
    ]
    return methods.lora(patterns, rank=ranks.pop(), alpha=alpha, dropout=dropout, head=head)
