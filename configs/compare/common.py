"""What all comparisons share: the methods with their sizes, their learning rates, and the sweep over both.

LoRA and what is built on it: rank 8, alpha 16, all linear layers. Every method has a grid of its own, so that
`--config.grids.dora.learning_rate="(1e-3,3e-3)"` changes the rates of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from configs.sweep.common import ConfigDict, sweep_config

SEEDS = (0, 1, 2)
# The middle one of five learning rates, by method. From the literature, for models of some hundred million
# parameters: LoRA's about ten times that of full fine-tuning (Hu et al. 2021, Tables 9 and 11: 2e-4 to 5e-4;
# small models and short runs like more). Methods that start from large factors (PiSSA, OLoRA, LoRA-GA), scale
# higher (rsLoRA) or speed up B (LoRA+) like less. Vectors like more: VeRA 1e-2 (Kopiczko et al. 2024,
# appendix), IA3 3e-3 and more (Liu et al. 2022), norms and biases 1e-3 to 1e-2. Measured on a small GPT-2
# the best ones lie at these or up to ten times higher, see docs/variants.md.
MIDDLE: Mapping[str, float] = {
    "lora": 1e-3, "rslora": 3e-4, "lora_plus": 3e-4, "dora": 1e-3, "pissa": 3e-4, "olora": 3e-4,
    "lora_ga": 3e-4, "lora_fa": 1e-3, "lora_pro": 1e-3, "vera": 1e-2, "adalora": 3e-3, "loha": 3e-3,
    "lokr": 3e-3, "ia3": 1e-2, "norms": 1e-2, "bitfit": 3e-3, "full": 1e-4,
}  # fmt: skip
# A factor of about 3 from one to the next.
_LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def rates(method: str, higher: int = 0) -> tuple[float, ...]:
    """The five learning rates at which a method is tried, from low to high.

    Args:
      method: its name.
      higher: by how many factors of about 3 they are higher than `MIDDLE` says, for a smaller model.
    """
    at = _LADDER.index(MIDDLE[method]) + higher
    return _LADDER[at - 2 : at + 3]


def methods(targets: str, updates: int, *, add_biases: bool = False) -> dict[str, dict[str, Any]]:
    """All methods of a comparison as configs have them, by name.

    Args:
      targets: all linear layers of the model.
      updates: of a run, to which the schedule of AdaLoRA is fitted: a tenth of them without pruning at the
        start, three tenths after it.
      add_biases: BitFit adds biases, for a model that has none.
    """
    lora = {"name": "lora", "targets": targets, "rank": 8, "alpha": 16.0}
    low_rank = {"targets": targets, "rank": 8, "alpha": 16.0}
    return {
        "lora": lora,
        "rslora": {**lora, "scaling": "alpha/sqrt(r)"},
        "lora_plus": {**lora, "b_rate": 16.0},
        "dora": {**lora, "magnitude": True},
        "pissa": {**lora, "init": "pissa", "svd_iterations": 16},
        "olora": {**lora, "init": "olora"},
        "lora_ga": {**lora, "init": "lora_ga"},
        "lora_fa": {**lora, "gradient": "lora_fa"},
        "lora_pro": {**lora, "gradient": "lora_pro"},
        "vera": {"name": "vera", "targets": targets, "rank": 256},
        # It starts with half as many directions again as remain, at LoRA's scale of 2.
        "adalora": {
            "name": "adalora", "targets": targets, "rank": 12, "target_rank": 8, "alpha": 24.0,
            "warm_up": updates // 10, "final": 3 * updates // 10,
        },
        "loha": {"name": "loha", **low_rank},
        "lokr": {"name": "lokr", **low_rank},
        # As its paper: keys, values, and the inputs of the feed-forward block's second layer.
        "ia3": {"name": "ia3", "targets": r".*/(key|value|down)", "feed_forward": r".*/down"},
        "norms": {"name": "norms"},
        "bitfit": {"name": "bitfit", **({"add": True} if add_biases else {})},
        "full": {"name": "full"},
    }  # fmt: skip


def split(argument: str, first: str) -> tuple[str, list[str]]:
    """Splits `TASK,METHOD+METHOD` (or either part alone) into the task and the methods; none named are all.

    Args:
      argument: behind the colon of --config.
      first: the task where none is named.

    Raises:
      ValueError: an unknown method, or one that is named twice.
    """
    task, comma, named = argument.partition(",")
    if not comma and set(task.split("+")) & set(MIDDLE):
        task, named = "", task
    chosen = named.split("+") if named else list(MIDDLE)
    if unknown := [name for name in chosen if name not in MIDDLE]:
        raise ValueError(f"unknown method {unknown[0]!r} in {argument!r}; known are {list(MIDDLE)}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{argument!r} names a method twice")
    return task or first, chosen


def of_one_task(argument: str, task: str, kind: str = "data set") -> list[str]:
    """The methods that `TASK,METHOD+METHOD` (or either part alone) names, of a config with one task.

    Args:
      argument: behind the colon of --config.
      task: the only one.
      kind: what it is, for the message.

    Raises:
      ValueError: another task, an unknown method, or one that is named twice.
    """
    name, chosen = split(argument, task)
    if name != task:
        known = f"known are {list(MIDDLE)}"
        raise ValueError(
            f"{name!r} in {argument!r} is no method, and no {kind} but {task}; {known}"
        )
    return chosen


def updates(run: ConfigDict, examples: int = 0) -> int:
    """Updates of a run with the config's number of training examples, or fewer if there are no more."""
    most = run.data.max_examples
    count = min(most, examples) if examples else most
    return -(-count // (run.batch_size * run.accumulate)) * run.epochs


def compare_config(
    experiment: str,
    run: ConfigDict,
    every: Mapping[str, Mapping[str, Any]],
    chosen: list[str],
    higher: int = 0,
) -> ConfigDict:
    """All fields of a comparison, which is a sweep with a grid for each method.

    Labels are those of all methods, so that further ones can be added to a folder later.

    Args:
      experiment: `glue`, `nlg` or `tune`.
      run: config of one run; method, learning rate and seed are the grids'.
      every: all methods, see `methods`.
      chosen: names of those to compare.
      higher: see `rates`.
    """
    run.method = dict(every["lora"])
    run.learning_rate = MIDDLE["lora"]
    grids = {
        name: {"method": (every[name],), "learning_rate": rates(name, higher), "seeds": SEEDS}
        for name in chosen
    }
    return sweep_config(experiment, run, grids, every)
