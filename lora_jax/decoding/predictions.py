"""Decodes many prompts in batches of few shapes, into a file that grows with every batch.

A decoding that was interrupted resumes from its file.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from lora_jax import json_lines, run_folder
from lora_jax.decoding.beam import Continuations
from lora_jax.errors import InputError
from lora_jax.files import set_aside, to_json, write_text
from lora_jax.sharding.hosts import from_main, is_main

Tokens = Int[np.ndarray, "n prompt"]
Lengths = Int[np.ndarray, " n"]
_LOG = logging.getLogger(__name__)
Decode = Callable[[Tokens, Lengths], Continuations]
_PROMPT_STEP = 16  # prompts are padded to a multiple of this, so that a run compiles few programs


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The decoded continuations of all prompts.

    Attributes:
      tokens: continuation of every prompt, its end token included, in the order of the prompts.
      scores: score of every continuation.
      seconds: time of all batches.
      compile_seconds: time of those batches that were the first of a new shape.
    """

    tokens: list[list[int]]
    scores: list[float]
    seconds: float
    compile_seconds: float

    def speed(self) -> dict[str, float]:
        """Times, and tokens of the chosen continuations per second, for a run record."""
        count = sum(map(len, self.tokens))
        return {
            "prompts": len(self.tokens),
            "tokens": count,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "tokens_per_second": count / self.seconds if self.seconds else 0.0,
        }


class _Line(TypedDict):
    """A finished batch, as a line of the file."""

    indices: list[int]
    tokens: list[list[int]]
    scores: list[float]
    seconds: float
    compiled: bool


def decode_all(
    decode: Decode,
    prompts: Sequence[np.ndarray],
    *,
    batch_size: int,
    path: Path,
    settings: Mapping[str, Any],
    label: str = "decode",
) -> Predictions:
    """Decodes every prompt once; called again with the same file, it goes on where it was stopped.

    Of several processes all call it, and the first one reads and writes the file.

    Args:
      decode: continues a batch of `batch_size` prompts: of token ids, padded behind, and lengths.
      prompts: token ids of each prompt.
      batch_size: number of prompts of a batch; the last batch repeats one to be full.
      path: JSON lines: the settings, then one line per finished batch.
      settings: JSON values that the results depend on; a file of other settings is refused.
      label: title of the progress bar.

    Raises:
      ValueError: the file belongs to other settings, or there is an empty prompt.
    """
    if empty := [i for i, prompt in enumerate(prompts) if not len(prompt)]:
        raise InputError(f"prompt {empty[0]} is empty; a prompt has at least one token")
    complete = {**settings, "prompts": len(prompts), "batch_size": batch_size}
    lines = from_main(lambda: _resume(path, complete))
    done = {index for line in lines for index in line["indices"]}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    todo = [i for i in by_length if i not in done]
    shapes: set[int] = set()
    with json_lines.Appender(path) if is_main() else nullcontext() as file, tqdm(
        total=len(prompts), initial=len(done), desc=label, unit="prompt", mininterval=1,
        disable=not is_main(),
    ) as bar:  # fmt: skip
        for indices, tokens, lengths in batches(prompts, todo, batch_size):
            begin = time.perf_counter()
            out = jax.device_get(decode(tokens, lengths))
            seconds = time.perf_counter() - begin
            line: _Line = {
                "indices": indices,
                "tokens": [out.tokens[i, : out.lengths[i]].tolist() for i in range(len(indices))],
                "scores": out.scores[: len(indices)].tolist(),
                "seconds": seconds,
                "compiled": tokens.shape[1] not in shapes,
            }
            shapes.add(tokens.shape[1])
            if file is not None:
                file.write(dict(line))
            lines.append(line)
            bar.update(len(indices))
    return _gather(lines, len(prompts))


def batches(
    prompts: Sequence[np.ndarray], todo: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], Tokens, Lengths]]:
    """Puts prompts into batches.

    Rows are padded behind to a multiple of 16, but not beyond the longest of all prompts. The last
    batch repeats its last prompt to be full.

    Args:
      prompts: token ids of each prompt.
      todo: indices of the prompts wanted, in the order of the batches.
      batch_size: number of rows of a batch.

    Yields:
      (indices of the prompts, their tokens, their lengths) of each batch.
    """
    longest = max(map(len, prompts), default=0)
    for start in range(0, len(todo), batch_size):
        indices = list(todo[start : start + batch_size])
        filled = indices + [indices[-1]] * (batch_size - len(indices))
        lengths = np.array([len(prompts[i]) for i in filled], np.int32)
        padded = min(-(-int(lengths.max()) // _PROMPT_STEP) * _PROMPT_STEP, longest)
        tokens = np.zeros((batch_size, padded), np.int32)
        for row, index in enumerate(filled):
            tokens[row, : lengths[row]] = prompts[index]
        yield indices, tokens, lengths


def _resume(path: Path, settings: Mapping[str, Any]) -> list[_Line]:
    """Reads the finished batches of the file, and writes it anew without a half-written line.

    Batches whose lines are damaged are decoded again; the damaged file is kept under another name.
    """
    complete = run_folder.plain(settings)
    lines = json_lines.read(path)
    there = lines.values[0] if lines.values and lines.bad[:1] != [1] else None
    if there is not None and there != complete:
        changed = sorted(
            k for k in there.keys() | complete.keys() if there.get(k) != complete.get(k)
        )
        raise InputError(
            f"{path} was decoded with other settings ({', '.join(changed)}). Use another --workdir, "
            "or delete the file to decode again"
        )
    batches: list[_Line] = []
    damaged = len(lines.bad)
    if there is not None:
        seen: set[int] = set()
        for value in lines.values[1:]:
            if (line := _line(value, complete["prompts"], seen)) is None:
                damaged += 1
            else:
                batches.append(line)
    elif lines.torn:  # the first line is written whole
        damaged += 1
    if damaged:
        what = "their inputs are" if there is not None else "without the settings above them all is"
        _LOG.warning(
            "%s: %d damaged lines; the file is kept as %s, and %s decoded again",
            path, damaged, set_aside(path), what,
        )  # fmt: skip
    texts = [to_json(line, indent=None) + "\n" for line in [complete, *batches]]
    write_text(path, "".join(texts))
    return batches


def _line(value: Mapping[str, Any], count: int, seen: set[int]) -> _Line | None:
    """A finished batch, if the value is one; `seen` are the prompts of those before, and gets its own."""
    try:
        indices, tokens, scores = value["indices"], value["tokens"], value["scores"]
        whole = (
            len(indices) == len(tokens) == len(scores)
            and all(type(i) is int and 0 <= i < count and i not in seen for i in indices)
            and len(set(indices)) == len(indices)
            and all(type(t) is int and 0 <= t < 2**31 for row in tokens for t in row)
            and all(s is None or math.isfinite(s) for s in scores)
            and math.isfinite(value["seconds"])
            and type(value["compiled"]) is bool
        )
    except (KeyError, TypeError, OverflowError):
        return None
    if not whole:
        return None
    seen.update(indices)
    return {
        "indices": indices,
        "tokens": tokens,
        "scores": [math.nan if score is None else float(score) for score in scores],
        "seconds": float(value["seconds"]),
        "compiled": value["compiled"],
    }


def _gather(lines: Sequence[_Line], count: int) -> Predictions:
    """Puts the lines of all batches into the order of the prompts."""
    tokens: list[list[int]] = [[] for _ in range(count)]
    scores = [0.0] * count
    for line in lines:
        for index, ids, score in zip(line["indices"], line["tokens"], line["scores"], strict=True):
            tokens[index], scores[index] = ids, score
    seconds = sum(line["seconds"] for line in lines)
    compiled = sum(line["seconds"] for line in lines if line["compiled"])
    return Predictions(tokens, scores, seconds, compiled)
