"""What a row of the paper takes on an accelerator: memory by its compiler, time by its products."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math

import jax
from ml_collections import ConfigDict

from configs.plan.common import plan_config
from experiments.plan.figures import StepFigures
from experiments.plan.models import head_pattern
from experiments.plan.planner import Planner
from experiments.plan.variants import configured
from experiments.reproduce.items import Item
from lora_jax.costs import topologies

# Mean tokens of an example, measured with the tokenizers of MiniLM (GLUE) and GPT-2 (texts): of DART 51,584
# training rows, of MNLI as text the first 9,999. QNLI, QQP and SAMSum were not to be had.
MEAN_TOKENS = {
    "cola": 11.3, "sst2": 13.3, "rte": 70.2, "mrpc": 53.2, "stsb": 27.8, "mnli": 40.2, "e2e": 54.3,
    "webnlg": 76.6, "dart": 66.0, "mnli_text": 47.8, "rte_text": 80.2,
}  # fmt: skip
_PACKED = 0.9  # useful share of packed rows
_ROWS = 512  # tokens of a row
# What of a run's training decides what a step needs; rates and lengths of training do not.
_OF_STEP = ("accumulate", "max_grad_norm", "adam", "prng")
EFFICIENCY = 0.4  # of the chip's peak, which is a guess


@dataclasses.dataclass(frozen=True)
class Cost:
    """What all seeds of an item take on one accelerator.

    Attributes:
      topology: for which it was compiled, such as `a100-40:1`.
      rows, length: of the compiled batch.
      peak: bytes of a step.
      fits: whether that is within its memory.
      flops: of a step.
      steps: of all seeds.
      seconds: of all steps at `EFFICIENCY` of the chip's peak.
      jax: version of the compiler's package.
    """

    topology: str
    rows: int
    length: int
    peak: int
    fits: bool
    flops: int
    steps: int
    seconds: float
    jax: str


def can_be_planned(item: Item) -> bool:
    """Whether the length of the item's training is known."""
    return (
        bool(item.examples)
        and item.kind == "run"
        and item.name.split("/")[_task(item)] in MEAN_TOKENS
    )


def planned(item: Item, topology: str) -> Cost:
    """Compiles a training step of an item for an accelerator that need not be there.

    Args:
      item: see `can_be_planned`.
      topology: one device, see `experiments.plan`.

    Raises:
      ValueError: an unknown topology, or a model that cannot be planned.
    """
    run = config_of(item)
    tokens = MEAN_TOKENS[item.name.split("/")[_task(item)]]
    rows = max(1, math.ceil(run.batch_size * tokens / (_PACKED * _ROWS)))
    figures = _compiled(plan_of(run, rows).to_json(), topology)
    steps = run.epochs * math.ceil(item.examples / run.batch_size) * len(run.seeds)
    peak = topologies.check(topology).peak_flops
    return Cost(
        topology=topology, rows=rows, length=_ROWS, peak=figures.peak, fits=figures.fits,
        flops=figures.flops, steps=steps, seconds=steps * figures.flops / (EFFICIENCY * peak),
        jax=jax.__version__,
    )  # fmt: skip


@functools.cache
def _compiled(plan: str, topology: str) -> StepFigures:
    """The figures of a plan, given as JSON: tasks often have the same."""
    config = ConfigDict(json.loads(plan))
    return Planner(config, topology, None).figures(
        configured(config, head_pattern(config)), {"data": 1, "fsdp": 1, "model": 1}, config.rows
    )


def config_of(item: Item) -> ConfigDict:
    """The config of an item's runs, without what the command line changes."""
    path, _, argument = item.config.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    config: ConfigDict = module.get_config(argument) if argument else module.get_config()
    return config


def plan_of(run: ConfigDict, rows: int) -> ConfigDict:
    """A plan of a training step of runs.

    Args:
      run: config of the runs.
      rows: of a batch, each of 512 tokens.
    """
    training = {name: run[name] for name in _OF_STEP}
    outputs = max(1, run.batch_size // rows) if "task" in run else _ROWS
    return plan_config(
        run.model.name, run.method.to_dict(), mesh={"data": 1, "fsdp": 1, "model": 1}, rows=rows,
        length=_ROWS, outputs=outputs, **training,
    )  # fmt: skip


def _task(item: Item) -> int:
    """Which part of an item's name is the task: the last of Table 2, the first of texts."""
    return -1 if item.table == "2" else 0
