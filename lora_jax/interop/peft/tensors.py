"""Sorts the tensors of an adapter of PEFT: factors by module, trained rows, whole parameters, copies."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lora_jax.errors import InputError
from lora_jax.interop.peft.names import Leaf, Names, outputs
from lora_jax.patterns import some
from lora_jax.tensor_files import not_finite

PREFIX = "base_model.model."
Arrays = dict[str, np.ndarray]
# Ends of names in the files, and ours. DoRA's magnitudes have `.weight` in some versions of PEFT.
_LINEAR = {
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_B.bias": "b_bias",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
_TABLE = {
    "lora_embedding_A": "a", "lora_embedding_B": "b", "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<end>lora_[AB]\.(weight|bias)|lora_embedding_[AB]"
    r"|lora_magnitude_vector(\.weight)?)"
)
_ROWS = ".token_adapter.trainable_tokens_delta"
_WRAPPED = re.compile(r"(?P<module>.+)\.(modules_to_save|original_module)\.(?P<leaf>.+)")


@dataclasses.dataclass
class Sorted:
    """The tensors of an adapter by what they are.

    Attributes:
      factors: of each module by our names, `a`, `b`, `b_bias`, `magnitude`, as PEFT has them.
      tied: the same of modules that are another one.
      rows: trained rows of tables and of output embeddings, by module.
      whole: whole parameters by plain name.
      stored_as: of those of `whole` the names in the file that have `base_layer` in them.
      copies: names in the file of second copies of whole parameters.
      inert: what no function depends on, such as the head that a new one replaced.
    """

    factors: dict[str, Arrays] = dataclasses.field(default_factory=dict)
    tied: dict[str, Arrays] = dataclasses.field(default_factory=dict)
    rows: Arrays = dataclasses.field(default_factory=dict)
    whole: Arrays = dataclasses.field(default_factory=dict)
    stored_as: dict[str, str] = dataclasses.field(default_factory=dict)
    copies: list[str] = dataclasses.field(default_factory=list)
    inert: Arrays = dataclasses.field(default_factory=dict)


def plain(tensors: Mapping[str, np.ndarray]) -> Arrays:
    """The tensors without PEFT's prefix of all names.

    Raises:
      InputError: a name without it.
    """
    if odd := [name for name in tensors if not name.startswith(PREFIX)]:
        raise InputError(
            f"{len(odd)} tensors have names that do not begin with {PREFIX}, as all have that PEFT saves: "
            f"{some(odd)}. Perhaps this is another program's adapter"
        )
    return {name.removeprefix(PREFIX): np.asarray(value) for name, value in tensors.items()}


def sort_out(
    tensors: Mapping[str, np.ndarray],
    names: Names,
    ignore: Sequence[str] = (),
    ends: Mapping[str, str] | None = None,
) -> Sorted:
    """Sorts tensors, without PEFT's prefix.

    Args:
      tensors: by name.
      names: of the base.
      ignore: regular expressions for names that may be left out although they are not known.
      ends: ends of the names of factors and what they are called here; None: those of LoRA.

    Raises:
      InputError: tensors of unknown names, of wrong shapes or types, or not finite.
    """
    found, unknown = Sorted(), []
    for name, value in tensors.items():
        _check_numbers(name, value)
        if not _place(name, value, names, found, ends):
            unknown.append(name)
    left = [name for name in unknown if not any(re.fullmatch(p, name) for p in ignore)]
    if left:
        raise InputError(_unknown(left, names))
    for name in found.copies:
        same = wrapped_parameter(name, names)
        if same not in found.whole or not np.array_equal(found.whole[same], tensors[name]):
            raise InputError(
                f"{name} is not what {same} is; the file is broken. Save it again in PEFT"
            )
    for module, factors in (found.factors | found.tied).items():
        if ends is None:
            _check_factors(module, factors, names)
        _check_type(module, factors)
    return found


def _place(
    name: str,
    value: np.ndarray,
    names: Names,
    found: Sorted,
    ends_of_factors: Mapping[str, str] | None,
) -> bool:
    """Puts a tensor where it belongs; False for one of an unknown name."""
    if ends_of_factors is not None:
        module, _, end = name.rpartition(".")
        if end in ends_of_factors:
            weight = names.weights.get(module)
            if weight is None or weight.is_table:
                return False
            found.factors.setdefault(module, {})[ends_of_factors[end]] = value
            return True
    elif match := _FACTOR.fullmatch(name):
        module, end = match["module"], match["end"]
        tied = module in names.tied
        weight = names.weights.get(names.tied.get(module, module))
        ends = _TABLE if weight and weight.is_table and not tied else _LINEAR
        if weight is None or end not in ends:
            return False
        place = found.tied if tied else found.factors
        place.setdefault(module, {})[ends[end]] = value
        return True
    if name.endswith(_ROWS) and name.removesuffix(_ROWS) in names.weights:
        found.rows[name.removesuffix(_ROWS)] = value
        return True
    if wrapped_parameter(name, names):
        if ".original_module." in name:
            found.inert[name] = value
        else:
            found.copies.append(name)
        return True
    bare = name.replace(".base_layer.", ".")
    if bare not in names.leaves and bare.removesuffix(".weight") not in names.tied:
        return False
    if bare != name:
        found.stored_as[bare] = name
    if bare in names.leaves and value.shape != names.leaves[bare].published:
        raise InputError(
            f"{name} has shape {value.shape}, the base's {names.leaves[bare].published}: it is of another "
            "model, or its vocabulary was resized. For the latter save the resized base in PEFT "
            "(model.get_base_model().save_pretrained(DIR)) and name DIR as the model"
        )
    found.whole[bare] = value
    return True


def wrapped_parameter(name: str, names: Names) -> str | None:
    """The parameter that a name means in which PEFT left its wrapper; None if it means none.

    With bias="all" the file has such names besides the plain ones: `classifier.original_module.bias`,
    `classifier.modules_to_save.bias`, `pooler.modules_to_save.default.dense.bias`.
    """
    match = _WRAPPED.fullmatch(name)
    if match is None:
        return None
    leaf = match["leaf"]
    found = (f"{match['module']}.{end}" for end in (leaf, leaf.partition(".")[2]))
    return next((plain for plain in found if plain in names.leaves), None)


def _check_numbers(name: str, value: np.ndarray) -> None:
    if str(value.dtype) not in ("float64", "float32", "float16", "bfloat16"):
        raise InputError(f"{name} has type {value.dtype}, expected floating-point numbers")
    if odd := not_finite(value):
        raise InputError(f"{name}: {odd:,} of {value.size:,} values are not finite numbers")


def _check_factors(module: str, factors: Arrays, names: Names) -> None:
    """Raises InputError for factors that are missing or do not fit each other or the base."""
    weight = names.weights[names.tied.get(module, module)]
    if missing := [side for side in "ab" if side not in factors]:
        raise InputError(f"{module} lacks lora_{missing[0].upper()}; the file is incomplete")
    a, b = factors["a"], factors["b"]
    inputs, out = weight.shape[0], int(np.prod(outputs(weight)))
    if module in names.tied:
        inputs, out = out, inputs
    if (
        a.ndim != 2
        or b.ndim != 2
        or (a.shape[1], b.shape[0]) != (inputs, out)
        or len(a) != b.shape[1]
    ):
        raise InputError(
            f"{module}: lora_A is {a.shape} and lora_B {b.shape}, the base needs (r, {inputs}) and "
            f"({out}, r): the adapter is of another model"
        )
    for side in ("b_bias", "magnitude"):
        if side in factors and factors[side].shape != (out,):
            raise InputError(f"{module}: {side} has shape {factors[side].shape}, expected ({out},)")


def _check_type(module: str, factors: Arrays) -> None:
    if len({value.dtype for value in factors.values()}) > 1:
        raise InputError(
            f"{module}: its factors have several types, {sorted({str(v.dtype) for v in factors.values()})}; "
            "save the adapter in one type"
        )


def _unknown(left: Sequence[str], names: Names) -> str:
    heads = [name for name in left if "lora_" not in name]
    what = (
        f"{len(left)} tensors have no place in a {names.architecture} model here: {some(left)}. Here are the "
        f"modules {', '.join(dict.fromkeys(_kind(module) for module in names.weights))}"
    )
    if heads:
        what += (
            ". Of heads there are those for classification of whole texts (classifier of encoders, score of "
            "decoders) and a language model's lm_head, none for tokens or spans"
        )
    return f"{what}. To read the rest without them: ignore=[...] (--ignore=...), regular expressions of names"


def _kind(module: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", module)


def factor_names(leaf: Leaf, *, tied: bool = False) -> dict[str, str]:
    """Ends of the names of the factors of a module by ours."""
    ends = _TABLE if leaf.is_table and not tied else _LINEAR
    return {ours: end for end, ours in reversed(ends.items())}


def rows_name(module: str) -> str:
    """Name of the trained rows of a module."""
    return module + _ROWS
