"""The set-up of a LoRA run: what a rank sweep searches beside weights and rank."""

from __future__ import annotations

from typing import Any

from experiments.report.record import Record, weights_label
from experiments.report.tables import MISSING
from lora_jax.low_rank.targets import by_target

# Arguments of `lora` beside targets and rank; a record without a field had the default.
_DEFAULTS = {"alpha": None, "scaling": "alpha/r", "dropout": 0.0, "init": "kaiming", "std": 0.02}
FIELDS = ("learning_rate", *_DEFAULTS)

Value = float | str | None
SetUp = tuple[Value, ...]  # values of FIELDS; text with slashes where the targets differ in one


def set_up_of(record: Record) -> SetUp:
    """The values of `FIELDS` of a LoRA run."""
    targets = [arguments for _, arguments in _per_target(record)]
    for arguments in targets:
        if arguments["alpha"] is None:
            arguments["alpha"] = record.rank
        if arguments["init"] != "gaussian":
            arguments["std"] = None  # of no effect
    values = [list(dict.fromkeys(arguments[name] for arguments in targets)) for name in _DEFAULTS]
    shown = (
        different[0] if len(different) == 1 else " / ".join(map(value_text, different))
        for different in values
    )
    return record.config["learning_rate"], *shown


def weights_of(record: Record) -> str:
    """Letters of the adapted attention weights, or the targets as text if others are adapted."""
    if record.weights:
        return record.weights
    # The ranks of one choice must have one text, so of the arguments only the parts count.
    parts = [
        (pattern, "".join(arguments.get("parts") or ()))
        for pattern, arguments in _per_target(record)
    ]
    return ", ".join(f"{pattern} ({part})" if part else pattern for pattern, part in parts)


def _per_target(record: Record) -> list[tuple[str, dict[str, Any]]]:
    """The arguments of every target, as `methods.lora` reads them."""
    method = record.config["method"]
    return [
        (pattern, {**_DEFAULTS, **method, **arguments})
        for pattern, arguments in by_target(method["targets"]).items()
    ]


def weights_order(weights: str) -> tuple[int, list[int], str]:
    """A sort key: few weights before many, in the order q, k, v, o; other targets last."""
    if not _are_letters(weights):
        return 5, [], weights
    return len(weights), ["qkvo".index(letter) for letter in weights], ""


def weights_text(weights: str) -> str:
    """`qv` -> `W_q, W_v`; other targets stay."""
    return weights_label(weights) if _are_letters(weights) else weights


def _are_letters(weights: str) -> bool:
    return set(weights) <= set("qkvo")


def value_text(value: Value) -> str:
    """A value of a set-up as a table shows it."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:g}"
