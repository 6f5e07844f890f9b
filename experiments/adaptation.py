"""A pre-trained model with a method inserted: what every experiment trains, saves and loads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lora_jax import adapters, partition
from lora_jax.costs import chips, flops
from lora_jax.data.batches import TrainingBatches
from lora_jax.method import Method
from lora_jax.partition import Labels, Params
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import check_heads, make_mesh
from lora_jax.sharding.placement import Placement, in_host_memory
from lora_jax.training import loop, optimizer, step
from lora_jax.training.records import environment, peak_memory, spread


def base_dtype(config: ConfigDict) -> str:
    """Type of the frozen base and of computation: as configured, or the backend's."""
    if config.base_dtype != "auto":
        return str(jnp.dtype(config.base_dtype))
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def model_settings(config: ConfigDict) -> dict[str, Any]:
    """What the config says of the model besides its name, and the type of computation."""
    given = {k: v for k, v in config.model.to_dict().items() if k != "name" and v is not None}
    return {**given, "compute_dtype": base_dtype(config)}


def mesh_for(config: ConfigDict, heads: int) -> Mesh:
    """The config's mesh; ValueError if devices or attention heads do not divide by it."""
    mesh = make_mesh(config.mesh)
    check_heads(heads, mesh)
    return mesh


def optimizer_for(
    config: ConfigDict, labels: Labels, updates: int
) -> tuple[optax.Schedule, optax.GradientTransformationExtraArgs]:
    """The config's learning rate by update, and its AdamW for the labelled parameters."""
    schedule = optimizer.linear_schedule(
        config.learning_rate, updates, config.warmup_ratio, config.warmup_steps
    )
    tx = optimizer.adamw(
        labels, schedule, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        accumulate=config.accumulate, **config.adam,
    )  # fmt: skip
    return schedule, tx


@dataclasses.dataclass(frozen=True)
class Goal:
    """How a run is judged after every epoch.

    Attributes:
      label: shown at the progress bar.
      headline: the metric that chooses the best epoch.
      evaluate: metrics of the trainable parameters.
      on_best: called after each epoch that is the best so far.
      smaller_is_better: of the headline.
    """

    label: str
    headline: str
    evaluate: Callable[[Params], dict[str, float]]
    on_best: Callable[[Params, loop.Progress], None]
    smaller_is_better: bool = False


class Adaptation:
    """A model split into what trains and what is frozen.

    Attributes:
      method: what was inserted.
      base: fingerprint of the pre-trained parameters.
      labels: group of every parameter.
      summary: what the method did to the model; printable.
      structure, trainable, frozen: from `partition.split`. The trainable part is float32, in this
        host's memory; what is frozen has the type the config asks for and lies on the mesh.
      placement: where everything goes.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: nnx.Module,
        method: Method,
        key: jax.Array,
        mesh: Mesh,
        head: str | None = None,
    ):
        """Inserts the method; `model` should have been made `in_host_memory`."""
        self.method = method
        with in_host_memory():
            self.base = adapters.fingerprint(adapters.base_parameters(model, head))
            adapted = method.insert(model, key)
            self.labels = method.labels(adapted)
            self.summary = method.summary(adapted)
            self.structure, trainable, frozen = partition.split(adapted, self.labels)
            self.placement = Placement(mesh, axes.of_model(adapted))
            self.placement.shardings(trainable)  # a mesh that does not fit is refused here
            self.trainable: Params = {k: jnp.asarray(v, jnp.float32) for k, v in trainable.items()}
            dtype = base_dtype(config)
            self.frozen: Params = self.placement.put(
                {
                    k: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v
                    for k, v in frozen.items()
                }
            )

    def prepare(
        self, config: ConfigDict, data: TrainingBatches, loss: step.Loss, goal: Goal, seed: int,
        folder: Path,
    ) -> Callable[[], dict[str, Any]]:  # fmt: skip
        """Checks and builds all that the training of one seed needs, and touches no file.

        Returns:
          A function that trains, or resumes, in `folder` and returns the seed's run record.
        """
        trainable = self.trainable
        if config.init_adapter:
            start = adapters.load_adapter(adapter_folder(Path(config.init_adapter)))
            trainable = adapters.transfer_group(
                start, trainable, self.labels, "lora", config.init_adapter
            )
        updates = config.epochs * data.per_epoch // config.accumulate
        schedule, tx = optimizer_for(config, {p: self.labels[p] for p in trainable}, updates)
        plan = loop.Plan(
            config.epochs, goal.headline, schedule, config.accumulate, config.log_every,
            config.checkpoint_every, goal.label, goal.smaller_is_better,
        )  # fmt: skip
        dropout_key = jax.random.key(seed + 1, impl=config.prng)
        train_step = step.make_train_step(self.structure, loss, tx, self.placement, trainable)

        objective = step.make_objective(self.structure, loss)

        def count(batch: Any) -> int:
            return flops.training(objective, trainable, self.frozen, batch, dropout_key)

        def train() -> dict[str, Any]:
            placed = self.placement.put(trainable)
            state = self.placement.initial_state(tx.init, placed)
            key = self.placement.replicate(dropout_key)
            _, progress = loop.fit(
                plan, train_step, data, goal.evaluate, placed, state, self.frozen, key, folder,
                goal.on_best, self.placement.batch, count,
            )  # fmt: skip
            return {
                **dataclasses.asdict(progress),
                "best": progress.history[progress.best - 1],
                "best_epoch": progress.best,
                "last": progress.history[-1],
                "shapes": data.menu.shapes,
            }

        return train

    def save(self, folder: Path, trainable: Params, notes: Mapping[str, Any]) -> None:
        """Writes the trainable parameters as an adapter folder."""
        adapters.save_adapter(folder, trainable, self.labels, self.method, self.base, dict(notes))

    def load(self, path: Path) -> Params:
        """The trainable parameters of an adapter folder (or of a run's), loaded strictly."""
        adapter = adapters.load_adapter(adapter_folder(path))
        if adapter.method != self.method:
            raise ValueError(
                f"{path} was trained by another method than the config names:\n"
                f"  adapter {adapter.method.to_json()}\n"
                f"  config  {self.method.to_json()}\n"
                "Use the config (and overrides) of that run"
            )
        with in_host_memory():
            values = adapters.apply_adapter(adapter, self.trainable, self.base, str(path))
        return self.placement.put(values)


def adapter_folder(path: Path) -> Path:
    """A run folder's adapter, or the folder itself."""
    return path / "adapter" if (path / "adapter").is_dir() else path


def speed(result: Mapping[str, Any]) -> str:
    """The speed of a run record's training, in words."""
    rate, share = result["flops_per_second_and_device"], result["mfu"]
    parts = [
        f"{result['seconds']:.0f} s of training",
        f"{result['examples_per_second']:.1f} examples/s",
        f"{result['tokens_per_second']:.0f} tokens/s",
        f"{100 * result['padding_efficiency']:.0f}% real tokens",
    ]
    if rate:
        parts.append(f"{rate / 1e9:,.0f} GFLOP/s per device")
    if share is not None:
        parts.append(f"MFU {100 * share:.1f}%")
    return ", ".join(parts)


def best_seed(runs: Mapping[int, Mapping[str, Any]], headline: str, smaller: bool = False) -> int:
    """The seed whose best epoch has the best headline; one that diverged only if all did."""
    sign = 1 if smaller else -1
    scores = {seed: run["best"][headline] for seed, run in runs.items()}
    return min(scores, key=lambda seed: (math.isnan(scores[seed]), sign * scores[seed]))


def training_record(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all seeds give together: scores at best and last epoch, speed, memory, versions."""

    def over_seeds(which: str) -> dict[str, Any]:
        return {m: spread([r[which][m] for r in runs]) for m in runs[0][which]}

    names = ("examples", "tokens", "slots", "seconds", "compile_seconds", "flops")
    total = {name: sum(run[name] for run in runs) for name in names}
    devices, chip = jax.device_count(), chips.by_device_kind(jax.devices()[0].device_kind)
    stepping = total["seconds"] - total["compile_seconds"]
    return {
        "best": over_seeds("best"),
        "last": over_seeds("last"),
        "steps": runs[0]["step"],
        "seconds": total["seconds"],
        "examples_per_second": total["examples"] / total["seconds"],
        "tokens_per_second": total["tokens"] / total["seconds"],
        "padding_efficiency": total["tokens"] / total["slots"],
        # Without compilation; recomputation does not count. MFU is null where the peak is not known.
        "flops": total["flops"],
        "flops_per_second_and_device": total["flops"] / stepping / devices if stepping else None,
        "mfu": chips.mfu(total["flops"], stepping, devices, chip) if stepping else None,
        "memory": peak_memory(),
        **environment(),
    }
