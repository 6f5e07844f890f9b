"""The lists of set-ups below the tables: what runs have in common, and what each group has for itself."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.report.record import Record, model_label
from experiments.report.settings import differing_inputs, setting

_NAMED = 12  # runs; more are shown as a range


def set_up_lines(records: Sequence[Record]) -> list[str]:
    """A Markdown list: what runs had in common and, indented, what each group of them had for itself."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        alike = groups.setdefault(common(record), {}).setdefault(_details(record), [])
        if record not in alike:
            alike.append(record)
    lines = []
    for shared, parts in groups.items():
        lines.append(f"- {shared}")
        lines += [
            f"  - {text}" for text in _other_inputs([r for runs in parts.values() for r in runs])
        ]
        for text, runs in parts.items():
            lines.append(f"  - {_who(runs)}: {text}{_course(runs)}")
    return lines


def _other_inputs(records: Sequence[Record]) -> list[str]:
    """Which runs of one setting were made from other data, models or tokenizers."""
    lines = []
    for number, record in enumerate(records):
        for other in records[:number]:
            differing = differing_inputs(other, record)
            if differing and setting(other) == setting(record):
                names = ", ".join(differing)
                lines.append(
                    f"`{record.workdir}` and `{other.workdir}` differ in {names}: not pooled"
                )
                break
    return lines


def common(record: Record) -> str:
    """What many runs share: model, task, data and device."""
    config, data, device = record.config, record.config["data"], record.raw[0].get("device", {})
    epochs = config.get("epochs", 0)
    machine = f"{device.get('count', 1)} x {device.get('kind', 'unknown device')}"
    if record.examples is None:
        return f"{record.model} on {record.task}: not trained; {machine}"
    batch = config.get("batch_size", 0) * config.get("accumulate", 1)
    valid = data.get("max_eval_examples", 0) if record.split else 0
    scored = f"; validation loss on {valid:,} rows" * bool(valid)
    scored += f"; scored on {record.evaluated_on}" * bool(record.evaluated_on)
    return (
        f"{record.model} on {record.task}: {epochs} epoch{'s' * (epochs != 1)}, batch {batch}, "
        f"{record.examples:,} training examples{'' if record.trained_on_part else ' (all)'}, "
        f"length up to {data.get('max_length')}{scored}; {machine}"
    )


def _details(record: Record) -> str:
    """What groups runs: learning rate, seeds, warm start, and the run's remarks."""
    config, raw = record.config, record.raw[0]
    parts = [f"seed{'s' * (len(record.seeds) > 1)} {', '.join(record.seeds)}"]
    if config.get("epochs"):
        parts.insert(0, f"learning rate {config.get('learning_rate'):g}")
    if start := config.get("init_adapter"):
        parts.append(f"starts from {model_label(start)}")
    parts += [f"{name} missing ({why})" for name, why in raw.get("missing", {}).items()]
    parts += [f"{name}: {note}" for name, note in raw.get("notes", {}).items() if note]
    return "; ".join(parts)


def _who(runs: Sequence[Record]) -> str:
    if len(runs) > _NAMED:
        return f"{len(runs)} runs, `{runs[0].workdir}` to `{runs[-1].workdir}`"
    return ", ".join(f"{run.label} (`{run.workdir}`)" for run in runs)


def _course(runs: Sequence[Record]) -> str:
    """Best epochs of the seeds, and the time."""
    raws = [raw for run in runs for raw in run.raw]
    seeds = [seed for raw in raws for seed in raw["seeds"].values()]
    best = [seed["best_epoch"] for seed in seeds if "best_epoch" in seed]
    seconds = sorted(raw["seconds"] for raw in raws if raw.get("seconds"))
    text = ""
    if best:
        epochs = runs[0].config["epochs"]
        text += f"; best epoch {_range(min(best), max(best))} of {epochs}"
    if seconds:
        text += f"; {_range(round(seconds[0]), round(seconds[-1]))} s of training"
    return text


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
