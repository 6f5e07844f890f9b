"""adapter_config.json for an adapter that did not come from PEFT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from lora_jax.adapter_files import Adapter
from lora_jax.errors import InputError
from lora_jax.interop.peft import targets
from lora_jax.interop.peft.modules import REMEDY, Module
from lora_jax.interop.peft.names import Names
from lora_jax.interop.peft.tensors import Arrays
from lora_jax.interop.peft.variants import TO_LORA, Update, Variant, whole_number
from lora_jax.low_rank.settings import LoRASettings
from lora_jax.models.architectures import ARCHITECTURES
from lora_jax.models.encoder import EncoderConfig


def new_config(
    adapter: Adapter,
    names: Names,
    modules: Mapping[str, Module],
    whole: Arrays,
    rows: Mapping[str, list[int]],
    model: str,
) -> dict[str, Any]:
    """The settings; of keys that not all versions of PEFT know those that are needed.

    Args:
      adapter: ours.
      names: of its base.
      modules: its updates.
      whole: its whole parameters.
      rows: its trained rows.
      model: name of the base; "" if there is none.

    Raises:
      InputError: PEFT has one setting for all layers where the adapter has several.
    """
    every = {name: module.settings for name, module in modules.items()}
    bias = _bias_mode(adapter)
    saved = _modules_to_save(whole, names, modules, bias)
    matrices = [s for name, s in every.items() if not names.weights[name].is_table]
    _check_one("DoRA's magnitudes (magnitude)", {s.magnitude for s in every.values()})
    _check_one("biases of B (b_bias)", {s.b_bias for s in matrices})
    _check_one("dropout", {s.dropout for s in matrices})
    scaling, alphas = _alphas(every)
    ranks = {name: s.rank for name, s in every.items()}
    rank, alpha = (Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
    first = next(iter(every.values()))
    config: dict[str, Any] = {
        **_common("LORA", names, whole, saved, model),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": (matrices or list(every.values()))[0].dropout,
        "bias": bias,
        "target_modules": targets.name_all(modules, all_modules(names)),
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "use_rslora": scaling != "alpha/r",
        "use_dora": first.magnitude,
        "fan_in_fan_out": names.architecture == "gpt2",
        "init_lora_weights": True,
    }
    if any(s.b_bias for s in matrices):
        config["lora_bias"] = True
    for theirs, table in names.tied.items():
        if table in saved:
            config["ensure_weight_tying"] = True
        elif table in every and not every[table].lookup_only:
            config["ensure_weight_tying"] = True
            config["target_modules"].append(theirs)  # GPT-2's table alone would not tell PEFT
    if rows:
        config["trainable_token_indices"] = dict(rows)
    return config


def variant_config(
    variant: Variant,
    adapter: Adapter,
    names: Names,
    updates: Mapping[str, Update],
    modules: Collection[str],
    *,
    whole: Arrays,
    model: str,
) -> dict[str, Any]:
    """The settings of another method.

    Args:
      variant: the method.
      adapter: ours.
      names: of its base.
      updates: by module.
      modules: names of those that the method is for.
      whole: its whole parameters, without those that the method itself trains.
      model: name of the base; "" if there is none.

    Raises:
      InputError: PEFT has one setting for all layers where the adapter has several.
    """
    bias, own = _bias_mode(adapter), adapter.method.spec
    if bias != "none" and not variant.own_bias:
        raise InputError(f"bias={bias!r}: PEFT's {variant.peft_type} trains no biases. {TO_LORA}")
    arguments = [dict(given) for name, given in own if name == variant.method]
    if len(arguments) > 1:
        raise InputError(
            f"{adapter.method} has {variant.method} several times; PEFT has it once. {TO_LORA}"
        )
    saved, every = _modules_to_save(whole, names, modules, bias), all_modules(names)
    config = {
        **_common(variant.peft_type, names, whole, saved, model),
        "target_modules": targets.name_all(modules, every),
        **variant.config(updates, arguments[0], every),
    }
    if variant.own_bias:
        config["bias"] = variant.own_bias if bias == "lora_only" else bias
    if "fan_in_fan_out" in variant.keys:
        config["fan_in_fan_out"] = names.architecture == "gpt2"
    return config


def _common(kind: str, names: Names, whole: Arrays, saved: list[str], model: str) -> dict[str, Any]:
    """What all methods have."""
    return {
        "peft_type": kind,
        "task_type": _task(names, whole),
        "base_model_name_or_path": model or None,
        "inference_mode": True,
        "modules_to_save": saved or None,
    }


def _check_one(what: str, values: set[Any]) -> None:
    if len(values) > 1:
        raise InputError(
            f"the layers differ in {what} ({sorted(values)}); PEFT has one setting for all. {REMEDY}"
        )


def _alphas(every: Mapping[str, LoRASettings]) -> tuple[str, dict[str, float]]:
    """`use_rslora` in our words, and the alpha of every module that gives its scale then."""
    kinds = {s.scaling for s in every.values()}
    if len(kinds) == 1:
        return kinds.pop(), {name: whole_number(s.alpha) for name, s in every.items()}
    return "alpha/r", {name: whole_number(s.plain_alpha) for name, s in every.items()}


def _bias_mode(adapter: Adapter) -> str:
    modes = {a["bias"] for _, a in adapter.method.spec if "bias" in a} - {"none"}
    if len(modes) > 1:
        raise InputError(f"several modes of bias, {sorted(modes)}; PEFT has one. {REMEDY}")
    return modes.pop() if modes else "none"


def _modules_to_save(whole: Arrays, names: Names, modules: Collection[str], bias: str) -> list[str]:
    """Modules with whole parameters: all of a head, and others that no mode of bias means."""
    found: dict[str, None] = {}
    for name in whole:
        module, _, leaf = name.rpartition(".")
        if names.of_head(name):
            found[name.partition(".")[0]] = None
        elif not (
            leaf == "bias" and (bias == "all" or (bias == "lora_only" and module in modules))
        ):
            found[module] = None
    if clash := [module for module in found if module in modules]:
        raise InputError(
            f"{clash[0]} has an update and trains whole as well; PEFT does one of both. {REMEDY}"
        )
    return list(found)


def _task(names: Names, whole: Arrays) -> str | None:
    if any(names.of_head(name) for name in whole):
        return "SEQ_CLS"
    if issubclass(ARCHITECTURES[names.architecture].config, EncoderConfig):
        return None if names.prefix else "FEATURE_EXTRACTION"
    return "CAUSAL_LM" if names.prefix else None


def all_modules(names: Names) -> set[str]:
    """All modules; also those without a weight to adapt, whose names could be taken for others'."""
    own = {name.rpartition(".")[0] for name in names.leaves}
    return {*names.weights, *own, *names.tied}
