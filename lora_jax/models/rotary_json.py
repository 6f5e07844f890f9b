"""Rotary positions in config.json: `rope_parameters` of today, `rope_theta` and `rope_scaling` of before."""

from __future__ import annotations

import math
from typing import Any

from lora_jax.errors import InputError, SettingError
from lora_jax.models.rotary import Rotary
from lora_jax.reading import Record

_PARAMETERS, _SCALING = "rope_parameters", "rope_scaling"
_UNUSED = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "factor"}
_KEYS = {
    "default": {"original_max_position_embeddings"},  # which transformers leaves there, unread
    "linear": {"original_max_position_embeddings"},
    "llama3": {"original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": {
        "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale",
        "mscale_all_dim", "truncate",
    },
}  # fmt: skip


def read_rotary(
    record: Record, theta: tuple[float, float], names: tuple[str, str]
) -> tuple[Rotary, Rotary]:
    """The frequencies of layers that see all tokens, and of sliding ones.

    Args:
      record: of config.json.
      theta: of both, where the file does not say.
      names: of both kinds of layers, as keys of `rope_parameters`.

    Raises:
      FileError: a scaling or a key that is not implemented, or a value of another type or out of its range.
    """
    wide, narrow = theta
    nested = record.values.get(_PARAMETERS)
    if isinstance(nested, dict) and any(name in nested for name in names):
        parameters = record.record(_PARAMETERS)
        if others := set(nested) - set(names):
            raise parameters.error(sorted(others)[0], "a key", " and ".join(names))
        read = [
            _rotary(parameters.record(name), base, record)
            if nested.get(name) is not None
            else Rotary(theta=base)
            for name, base in zip(names, theta, strict=True)
        ]
        return read[0], read[1]
    base = record.get("rope_theta", float, wide)
    given = [key for key in (_PARAMETERS, _SCALING) if record.values.get(key) is not None]
    if len(given) > 1 and record.values[given[0]] != record.values[given[1]]:
        raise record.error(_SCALING, "another scaling", f"that of {_PARAMETERS}")
    first = _rotary(record.record(given[0]), base, record) if given else _plain(record, base)
    if narrow == wide:
        return first, first
    local = record.get("rope_local_base_freq", float, narrow)
    return first, _plain(record, local)


def _plain(record: Record, theta: float) -> Rotary:
    try:
        return Rotary(theta=theta)
    except InputError as error:
        raise SettingError(record.path, "rope_theta", error) from error


def _rotary(values: Record, theta: float, config: Record) -> Rotary:
    """One object of parameters; `config` is the whole file."""
    kind = values.get("rope_type", str, values.get("type", str, "default"))
    if kind not in _KEYS:
        raise values.error("rope_type", repr(kind), f"one of {', '.join(_KEYS)}")
    for key in sorted(set(values.values) - _UNUSED - _KEYS[kind]):
        raise values.error(key, "a key", f"none of this name in {kind!r} rotary positions")
    if values.values.get("partial_rotary_factor", 1) not in (None, 1):
        raise values.error(
            "partial_rotary_factor", repr(values.values["partial_rotary_factor"]), "1"
        )
    arguments: dict[str, Any] = {"theta": values.get("rope_theta", float, theta), "scaling": kind}
    if kind != "default":
        arguments["factor"] = values.get("factor", float)
    if kind in ("llama3", "yarn"):
        arguments["original_length"] = values.get("original_max_position_embeddings", int)
    if kind == "llama3":
        arguments["low"] = values.get("low_freq_factor", float)
        arguments["high"] = values.get("high_freq_factor", float)
    if kind == "yarn":
        arguments |= _yarn(values, arguments["factor"])
    try:
        return Rotary(**arguments)
    except InputError as error:
        raise SettingError(values.path, values.where.removesuffix("."), error) from error


def _yarn(values: Record, factor: float) -> dict[str, Any]:
    def optional(key: str) -> float | None:
        return None if values.values.get(key) is None else values.get(key, float)

    attention, scale, scale_all = map(optional, ("attention_factor", "mscale", "mscale_all_dim"))
    if attention is None:
        attention = _grown(factor)
        if scale and scale_all:
            attention = _grown(factor, scale) / _grown(factor, scale_all)
    return {
        "high": optional("beta_fast") or 32.0,
        "low": optional("beta_slow") or 1.0,
        "attention_factor": attention,
        "whole": values.get("truncate", bool, True),
    }


def _grown(factor: float, scale: float = 1.0) -> float:
    """The growth of scores with the length (Peng et al. 2023, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def written_rotary(rotary: Rotary) -> dict[str, Any]:
    """The object of parameters that `read_rotary` reads as this."""
    values: dict[str, Any] = {"rope_type": rotary.scaling, "rope_theta": rotary.theta}
    if rotary.scaling != "default":
        values["factor"] = rotary.factor
    if rotary.scaling in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = rotary.original_length
    if rotary.scaling == "llama3":
        values |= {"low_freq_factor": rotary.low, "high_freq_factor": rotary.high}
    if rotary.scaling == "yarn":
        values |= {
            "beta_fast": rotary.high, "beta_slow": rotary.low, "truncate": rotary.whole,
            "attention_factor": rotary.attention_factor,
        }  # fmt: skip
    return values
