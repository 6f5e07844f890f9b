"""Options of a run that contradict each other: refused, where one of them would be ignored."""

from __future__ import annotations

from ml_collections import ConfigDict

from lora_jax.errors import InputError
from lora_jax.models.parts import FLOAT, STORED


def check_together(config: ConfigDict) -> None:
    """Raises InputError if an option of a run would have no effect because of another one.

    Args:
      config: of `experiments.glue` or `experiments.nlg`, whose values are checked one by one.
    """
    evaluates, adapter, start = (
        config.get(name) for name in ("eval_only", "adapter", "init_adapter")
    )
    if evaluates and not (adapter and adapter.strip()):
        raise InputError(
            'config.eval_only is True and config.adapter is "": there is nothing to evaluate. Set '
            "config.adapter to a run's folder"
        )
    if adapter and not evaluates:
        raise InputError(
            f"config.adapter is {adapter!r}, which a run that trains ignores. Set config.eval_only=True to "
            'evaluate it, config.init_adapter to start from its factors, or config.adapter=""'
        )
    if evaluates and start:
        raise InputError(
            f"config.init_adapter is {start!r}, which config.eval_only ignores: nothing is trained. Set one "
            "of the two"
        )
    if config.get("loftq"):
        _check_loftq(config)
    if config.get("adapter_task") and not evaluates:
        raise InputError(
            f"config.adapter_task is {config.adapter_task!r}, which is for config.eval_only: it says what "
            "task config.adapter was trained on. Leave it out"
        )


def _check_loftq(config: ConfigDict) -> None:
    """Raises InputError where LoRA's factors cannot start at what packing lost."""
    form, method = config.model.base_format, config.method.get("name")
    if form in (FLOAT, STORED):
        lost = (
            "no matrix is packed" if form == FLOAT else "the file has no values but the packed ones"
        )
        raise InputError(
            f"config.loftq starts LoRA at what packing lost, and with config.model.base_format={form!r} "
            f"{lost}. Set config.model.base_format='nf4' (or another form that packs), or config.loftq=False"
        )
    if method != "lora":
        raise InputError(
            f"config.loftq starts the factors of LoRA, and config.method is {method!r}, which has none. Set "
            "config.loftq=False, or take LoRA or DoRA (config.method.name='lora')"
        )
    for name in ("init_adapter", "eval_only"):
        if config.get(name):
            raise InputError(
                f"config.loftq=True and config.{name}={config[name]!r} contradict each other: the factors "
                "would be those of the adapter. Set one of the two"
            )
