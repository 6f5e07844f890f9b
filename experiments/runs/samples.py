"""Samples of every epoch: what a model in training writes to a few held-out prompts, from epoch 0 on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.runs import command_line
from experiments.runs.run import Run
from experiments.runs.tune import TuneTask
from lora_jax import json_lines
from lora_jax.decoding import predictions
from lora_jax.decoding.sampling import Sampling, sample
from lora_jax.files import to_json, write_text
from lora_jax.models.decoder import Decoder
from lora_jax.partition import Params
from lora_jax.sharding.hosts import from_main, is_main
from lora_jax.sharding.mesh import shares
from lora_jax.training import Progress

FILE = "samples.jsonl"


class SampledRun(Run):
    """A run that is evaluated before training too, and writes samples each time it is.

    The file samples.jsonl in its folder has a line for every epoch: the metrics, prompts, references and
    greedy continuations. A run that goes on after it was killed writes the lines that it would have.
    """

    def __init__(self, task: TuneTask, seed: int, workdir: Path | None):
        """Loads the model, see `Run`."""
        super().__init__(task, seed, workdir)
        self._task, self._epoch = task, 0
        self._decode = self._compiled()

    def prepare(self) -> Callable[[], dict[str, Any]]:
        """See `Run.prepare`; the record has the metrics before training, and the samples."""
        train = super().prepare()

        def run() -> dict[str, Any]:
            if not (there := self._lines()):
                begin = self.trainer.started(self.trainer.settings.init_adapter)
                self.evaluated(self.trainer.placement.put(begin))
                there = self._lines()
            self._epoch = max(self._epoch, 1)
            record = train()
            return {**record, "start": there[0]["metrics"], "samples": self._lines()}

        return run

    def resumed(self, progress: Progress) -> None:
        """See `Run.resumed`; the next evaluation is that of the epoch behind."""
        super().resumed(progress)
        self._epoch = len(progress.history) + 1

    def evaluated(self, trainable: Params) -> dict[str, float]:
        """See `Run.evaluated`; writes the samples, and prints them."""
        metrics = super().evaluated(trainable)
        texts = self._texts(trainable)
        samples = [
            {"prompt": example.text, "reference": example.reference, "text": text}
            for example, text in zip(self._task.samples, texts, strict=True)
        ]
        line = {"epoch": self._epoch, "metrics": metrics, "samples": samples}
        before = [there for there in self._lines() if there["epoch"] < self._epoch]
        if is_main():
            content = "".join(to_json(each, indent=None) + "\n" for each in [*before, line])
            write_text(self.folder / FILE, content)
        command_line.say(shown(line, self.seed))
        self._epoch += 1
        return metrics

    def _lines(self) -> list[dict[str, Any]]:
        """The lines of the file; those of a damaged one up to the damage."""

        def read() -> list[dict[str, Any]]:
            values = json_lines.read(self.folder / FILE).values
            numbered = enumerate(values)
            return [value for number, value in numbered if value.get("epoch") == number]

        return from_main(read)

    def _compiled(self) -> Callable[[Params], Callable[[Any], np.ndarray]]:
        task = self._task
        settings = Sampling(task.format.ends, max_tokens=task.settings.config.samples.max_tokens)

        def function(model: nnx.Module, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            assert isinstance(model, Decoder)
            found = sample(model, *batch, settings, jax.random.key(0))  # greedy: the key is unused
            return jnp.concatenate([found.lengths, found.tokens[:, 0]], axis=1)

        return self.trainer.predictor(function)

    def _texts(self, trainable: Params) -> list[str]:
        """The continuation of every prompt."""
        task, prompts = self._task, self._task.sample_prompts
        if not prompts:
            return []
        size = -(-len(prompts) // shares(task.mesh)) * shares(task.mesh)
        ((_, tokens, lengths),) = predictions.batches(prompts, range(len(prompts)), size)
        found = self._decode(trainable)((tokens, lengths))[: len(prompts)]
        kept = [[i for i in row[1 : 1 + row[0]] if i not in task.format.ends] for row in found]
        return [str(text).strip() for text in
                task.tokenizer.batch_decode(kept, skip_special_tokens=True)]  # fmt: skip


def shown(line: dict[str, Any], seed: int) -> str:
    """A line of the file for a person to read: prompts (>), texts (<), references (=) if there are any."""
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in line["metrics"].items())
    parts = [f"seed {seed} epoch {line['epoch']}: {metrics}"]
    for each in line["samples"]:
        parts.append(f"  > {_brief(each['prompt'])}\n  < {_brief(each['text'])}")
        if each["reference"]:
            parts.append(f"  = {_brief(each['reference'])}")
    return "\n".join(parts)


def _brief(text: str, most: int = 300) -> str:
    """A text, its further lines indented; a long one up to the end of a word."""
    text = text.strip()
    if len(text) > most:
        kept = text[:most]
        text = f"{kept[: kept.rfind(' ')] if ' ' in kept[most // 2 :] else kept}..."
    return text.replace("\n", "\n    ")
