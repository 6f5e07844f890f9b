"""Which runs have the same settings: pooling of seeds, and what sets runs apart."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from experiments.report.record import Record, model_label
from lora_jax.run_folder import flat

# Fields that may differ between runs of one setting.
_NOT_A_SETTING = (
    "seeds", "mesh", "verify", "data.source", "data.row_length", "workdir", "log_every", "checkpoint_every",
    "decode.batch_size",
)  # fmt: skip
# Fields that a sweep over weights and ranks varies.
_SWEPT = (
    "method.rank", "method.targets", "method.alpha", "method.parts", "method.fused"
)  # fmt: skip


def setting(record: Record, without: Sequence[str] = ()) -> str:
    """The settings of a run as text, equal for runs that differ in nothing but chance.

    Seeds, paths, logging, and fields that are None are left out.

    Args:
      record: of the run.
      without: further fields to leave out, each with everything below it: `method`, `method.rank`.
    """
    left_out = (*_NOT_A_SETTING, *without)
    kept = {
        key: value
        for key, value in flat(record.config).items()
        if value is not None
        and not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    return json.dumps(kept, sort_keys=True)


def swept_setting(record: Record) -> tuple[str, str, str]:
    """A key that the runs of one sweep over weights and ranks share."""
    return record.task, record.model, setting(record, _SWEPT)


def distinctions(records: Sequence[Record]) -> list[str]:
    """What sets each record apart from the others, in few fields; "" for a single record.

    The lists of set-ups show all fields; here the first ones that tell the records apart are enough.
    """
    configs = [json.loads(setting(record, _SWEPT)) for record in records]
    names = sorted({key for config in configs for key in config})
    first = [name for name in ("data.max_examples", "epochs", "learning_rate") if name in names]
    chosen: list[str] = []

    def texts() -> list[str]:
        return [", ".join(f"{n}={_short(c[n])}" for n in chosen if n in c) for c in configs]

    for name in dict.fromkeys([*first, *names]):
        before = len(set(texts()))
        chosen.append(name)
        if len(set(texts())) == before:
            chosen.pop()
    return texts()


def _short(value: Any) -> str:
    return model_label(value) if isinstance(value, str) and "/" in value else str(value)


def pooled(records: Iterable[Record]) -> list[Record]:
    """Joins records of one setting and the same inputs that have no seed in common."""
    result: list[Record] = []
    settings: list[str] = []  # of the results; joining keeps them
    for new in records:
        of_new = setting(new)
        for i, old in enumerate(result):
            same = settings[i] == of_new and not differing_inputs(old, new)
            if same and not set(old.seeds) & set(new.seeds):
                result[i] = _joined(old, new)
                break
        else:
            result.append(new)
            settings.append(of_new)
    return result


def differing_inputs(one: Record, other: Record) -> list[str]:
    """What two records were made from that differs, such as `train data`; of what both of them say."""
    pairs = [(a.get("inputs", {}), b.get("inputs", {})) for a in one.raw for b in other.raw]
    return sorted({name for a, b in pairs for name in a.keys() & b.keys() if a[name] != b[name]})


def groups(
    records: Iterable[Record], key: Callable[[Record], Hashable]
) -> list[tuple[Hashable, list[Record]]]:
    """The records of one key and of the same inputs, in groups, each with its key.

    A record that does not say what it was made from joins the first group of its key.
    """
    result: list[tuple[Hashable, list[Record]]] = []
    for record in records:
        of_record = key(record)
        for other, group in result:
            if other == of_record and not any(differing_inputs(r, record) for r in group):
                group.append(record)
                break
        else:
            result.append((of_record, [record]))
    return result


def _joined(old: Record, new: Record) -> Record:
    """One record with the seeds of both and the scores that both have."""
    metrics = [name for name in old.scores if name in new.scores]
    return dataclasses.replace(
        old,
        workdirs=old.workdirs + new.workdirs,
        seeds=old.seeds + new.seeds,
        scores={name: old.scores[name] + new.scores[name] for name in metrics},
        raw=old.raw + new.raw,
    )
