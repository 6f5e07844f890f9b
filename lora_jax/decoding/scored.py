"""Scores the choices of many questions, batch by batch, into a file that grows; it resumes from there."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from tqdm import tqdm

from lora_jax import json_lines, run_folder
from lora_jax.data.batch import Batch
from lora_jax.data.batches import evaluation_batches
from lora_jax.decoding.likelihoods import ChoiceRows
from lora_jax.errors import InputError
from lora_jax.files import to_json, write_text
from lora_jax.sharding.hosts import from_main, is_main

_TOKENS = 2048  # of a batch, unless a row is longer
_LENGTHS = 64  # the longest rows are a multiple of this
_SETTINGS = "settings"


@dataclasses.dataclass(frozen=True)
class Scored:
    """The log likelihoods of all choices.

    Attributes:
      sums: of every choice, in the order of `ChoiceRows`.
      read: tokens that the model read.
      seconds: time of all batches, compilation included.
    """

    sums: Float64[np.ndarray, " choices"]
    read: int
    seconds: float


def score_all(
    score: Callable[[Batch], Float[np.ndarray, " slots"]],
    rows: ChoiceRows,
    *,
    width: int,
    max_length: int,
    path: Path,
    settings: Mapping[str, Any],
    label: str = "score",
) -> Scored:
    """Scores every choice once, in batches of one shape; called again, it goes on where it was stopped.

    Of several processes all call it, and the first one reads and writes the file.

    Args:
      score: log probabilities of a batch's slots, see `likelihoods.log_probabilities`.
      rows: of all questions.
      width: of the model, for the choice of the shape.
      max_length: longest row that the model can read, in tokens.
      path: JSON lines: the settings, then one line per finished batch.
      settings: JSON values that the results depend on; a file of other settings is refused.
      label: title of the progress bar.

    Raises:
      ValueError: a row is longer than `max_length`, or the file belongs to other settings.
    """
    check_room(rows, max_length)
    # Rows that are not much longer than the longest prompt: the model may read far longer ones.
    length = min(max_length, -(-int(rows.lengths.max()) // _LENGTHS) * _LENGTHS)
    batches = evaluation_batches(rows, width, length, _TOKENS)
    counts = [rows.outputs(indices) for indices, _ in batches]
    complete = {**settings, "rows": rows.digest, "batches": counts}
    done = from_main(lambda: _resumed(path, complete, counts))
    with json_lines.Appender(path) if is_main() else nullcontext() as file, tqdm(
        total=len(batches), initial=len(done), desc=label, unit="batch", mininterval=1,
        disable=not is_main(),
    ) as bar:  # fmt: skip
        for number, (_, batch) in enumerate(batches):
            if str(number) in done:
                continue
            begin = time.perf_counter()
            values = np.asarray(score(batch))[: counts[number]].tolist()
            line = {"batch": number, "values": values, "seconds": time.perf_counter() - begin}
            if file is not None:
                file.write(line)
            done[str(number)] = line
            bar.update()
    lines = [done[str(number)] for number in range(len(batches))]
    values = [np.array(line["values"], np.float64) for line in lines]  # null: no number
    sums = rows.sums([indices for indices, _ in batches], values)
    return Scored(sums, int(rows.lengths.sum()), sum(line["seconds"] for line in lines))


def check_room(rows: ChoiceRows, max_length: int) -> None:
    """Raises InputError if a row is longer than the longest that the model can read."""
    longest = int(rows.lengths.max())
    if longest > max_length:
        raise InputError(
            f"the longest prompt has {longest:,} tokens with its choices, and the model reads at most "
            f"{max_length:,}: give fewer or shorter demonstrations"
        )


def _resumed(path: Path, settings: Mapping[str, Any], counts: list[int]) -> dict[str, Any]:
    """The finished batches of the file by number (as text, for JSON); it is begun where there is none."""
    here = run_folder.plain(settings)

    def whole(value: dict[str, Any]) -> bool:
        return _SETTINGS in value or _is_batch(value, counts)

    lines = json_lines.mended(path, whole, "their batches are scored again")
    there = next((line[_SETTINGS] for line in lines if _SETTINGS in line), None)
    if there is None:
        write_text(path, to_json({_SETTINGS: here}, indent=None) + "\n")
        return {}
    if there != here:
        changed = sorted(k for k in {*there, *here} if there.get(k) != here.get(k))
        raise InputError(
            f"{path} was scored with other settings ({', '.join(changed)}). Use another --workdir, or "
            "delete the file to score again"
        )
    return {str(line["batch"]): line for line in lines if _SETTINGS not in line}


def _is_batch(value: Mapping[str, Any], counts: list[int]) -> bool:
    """Whether a line is one of a finished batch."""
    number, values, seconds = (value.get(name) for name in ("batch", "values", "seconds"))
    return (
        type(number) is int
        and 0 <= number < len(counts)
        and isinstance(values, list)
        and len(values) == counts[number]
        and all(v is None or (type(v) in (int, float) and math.isfinite(v)) for v in values)
        and type(seconds) in (int, float)
    )
