"""Decoding many prompts: batches of few shapes, a file that grows batch by batch and resumes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lora_jax.decoding.beam import Continuations
from lora_jax.files import to_json, write_bytes
from lora_jax.sharding.hosts import from_main, is_main

Decode = Callable[[np.ndarray, np.ndarray], Continuations]  # (prompts, lengths) -> (n, ...)
_PROMPT_STEP = 16  # prompts are padded to a multiple of this, so a run compiles few programs


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was decoded.

    Attributes:
      tokens: continuation of every prompt, its end token included, in the order of the prompts.
      scores: their scores.
      seconds, compile_seconds: of all batches, and of the first batch of each new shape.
    """

    tokens: list[list[int]]
    scores: list[float]
    seconds: float
    compile_seconds: float

    def speed(self) -> dict[str, float]:
        """Seconds, and tokens of the chosen continuations per second, for a run record."""
        count = sum(map(len, self.tokens))
        return {
            "prompts": len(self.tokens),
            "tokens": count,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "tokens_per_second": count / self.seconds if self.seconds else 0.0,
        }


def decode_all(
    decode: Decode,
    prompts: Sequence[np.ndarray],
    batch_size: int,
    path: Path,
    settings: Mapping[str, Any],
    label: str = "decode",
) -> Predictions:
    """Decodes every prompt once; with the same file an interrupted call goes on.

    Several processes all call it; the first one reads and writes the file.

    Args:
      decode: continues a batch of `batch_size` prompts, padded behind.
      prompts: token ids of each.
      batch_size: prompts per batch; the last batch repeats one.
      path: JSON lines: the settings, then one line per finished batch.
      settings: what the results depend on; a file of other settings is refused.
      label: shown at the progress bar.

    Raises:
      ValueError: the file belongs to other settings, or there is an empty prompt.
    """
    if empty := [i for i, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} is empty; a prompt has at least one token")
    wanted = {**settings, "prompts": len(prompts), "batch_size": batch_size}
    lines = from_main(lambda: _resume(path, wanted))
    done = {index for line in lines for index in line["indices"]}
    todo = [i for i in np.argsort([len(p) for p in prompts], kind="stable") if i not in done]
    shapes: set[int] = set()
    with path.open("a") if is_main() else nullcontext() as file, tqdm(
        total=len(prompts), initial=len(done), desc=label, unit="prompt", mininterval=1,
        disable=not is_main(),
    ) as bar:  # fmt: skip
        for indices, tokens, lengths in batches(prompts, todo, batch_size):
            begin = time.perf_counter()
            found = jax.device_get(decode(tokens, lengths))
            seconds = time.perf_counter() - begin
            line = {
                "indices": indices,
                "tokens": [
                    found.tokens[i, : found.lengths[i]].tolist() for i in range(len(indices))
                ],
                "scores": found.scores[: len(indices)].tolist(),
                "seconds": seconds,
                "compiled": tokens.shape[1] not in shapes,
            }
            shapes.add(tokens.shape[1])
            if file is not None:
                file.write(to_json(line, indent=None) + "\n")
                file.flush()
            lines.append(line)
            bar.update(len(indices))
    return _gather(lines, len(prompts))


def batches(
    prompts: Sequence[np.ndarray], todo: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """The prompts at `todo` in batches: (indices, tokens padded behind, lengths).

    Rows are padded to a multiple of 16 or the longest prompt of all; the last batch repeats its last
    prompt.
    """
    longest = max(map(len, prompts), default=0)
    for start in range(0, len(todo), batch_size):
        indices = [int(i) for i in todo[start : start + batch_size]]
        filled = indices + [indices[-1]] * (batch_size - len(indices))
        lengths = np.array([len(prompts[i]) for i in filled], np.int32)
        padded = min(-(-int(lengths.max()) // _PROMPT_STEP) * _PROMPT_STEP, longest)
        tokens = np.zeros((batch_size, padded), np.int32)
        for row, index in enumerate(filled):
            tokens[row, : lengths[row]] = prompts[index]
        yield indices, tokens, lengths


def _resume(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The finished batches of the file; makes it hold the settings and these, and nothing half."""
    wanted = json.loads(to_json(settings))
    lines = []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break  # the line a killed run was writing
    if lines and lines[0] != wanted:
        changed = sorted(
            k for k in lines[0].keys() | wanted.keys() if lines[0].get(k) != wanted.get(k)
        )
        raise ValueError(
            f"{path} was decoded with other settings ({', '.join(changed)}). Use another --workdir, "
            "or delete the file to decode again"
        )
    texts = [to_json(line, indent=None) + "\n" for line in [wanted, *lines[1:]]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(texts).encode())
    return lines[1:]


def _gather(lines: Sequence[Mapping[str, Any]], count: int) -> Predictions:
    tokens: list[list[int]] = [[] for _ in range(count)]
    scores = [0.0] * count
    for line in lines:
        for index, ids, score in zip(line["indices"], line["tokens"], line["scores"], strict=True):
            tokens[index], scores[index] = ids, score
    seconds = sum(line["seconds"] for line in lines)
    compiled = sum(line["seconds"] for line in lines if line["compiled"])
    return Predictions(tokens, scores, seconds, compiled)
