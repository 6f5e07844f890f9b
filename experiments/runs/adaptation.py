"""A pre-trained model with a method inserted: what every experiment trains, saves and loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.runs.record import seed_record
from lora_jax import adapters, partition
from lora_jax.costs import flops
from lora_jax.data.batch import Batch
from lora_jax.data.batches import BatchesOfRuns, TrainingBatches
from lora_jax.data.packing import Packable
from lora_jax.method import Method
from lora_jax.partition import Labels, Params
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import RUN, check_heads, make_mesh, shares
from lora_jax.sharding.placement import Placement, in_host_memory
from lora_jax.training import loop, optimizer, step


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


def training_batches(
    config: ConfigDict, examples: Packable, seeds: Sequence[int], width: int, max_length: int,
    mesh: Mesh,
) -> TrainingBatches:  # fmt: skip
    """The batches of a run, or of several whose arrays have a first axis of runs.

    Runs whose examples come in one order have the same batches: no axis.

    Args:
      config: of the run; of several, what they have in common.
      examples: tokenised.
      seeds: of every run's order, see `order_seed`.
      width: of the model, for the choice of shapes.
      max_length: longest possible example.
      mesh: whose devices share the rows out.
    """
    given, parts = config.data.row_length, shares(mesh)
    row_length = 0 if given is None else given or max_length
    if len(set(seeds)) == 1:
        return TrainingBatches(
            examples,
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=seeds[0],
            hidden_size=width,
            max_length=max_length,
            parts=parts,
            row_length=row_length,
        )
    return BatchesOfRuns(
        examples,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seeds=seeds,
        hidden_size=width,
        row_length=row_length or max_length,
        parts=parts,
    )


def order_seed(config: ConfigDict, seed: int) -> int:
    """Seed of the order of a run's examples."""
    own = config.data.order_seed
    return seed if own is None else own


def optimizer_for(
    config: ConfigDict, labels: Labels, updates: int, learning_rate: Any = None
) -> tuple[optax.Schedule, optax.GradientTransformationExtraArgs]:
    """The config's learning rate by update, and its AdamW for the labelled parameters.

    Args:
      config: of the run.
      labels: group of every parameter that trains.
      updates: of the whole run.
      learning_rate: instead of the config's; it may be traced.
    """
    peak = config.learning_rate if learning_rate is None else learning_rate
    schedule = optimizer.linear_schedule(peak, updates, config.warmup_ratio, config.warmup_steps)
    tx = optimizer.adamw(
        labels, schedule, weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        accumulate=config.accumulate, **config.adam,
    )  # fmt: skip
    return schedule, tx


# Of a packed batch on this host: what the models of one run or several give for it, with a first axis
# of runs.
Predict = Callable[[Batch], np.ndarray]


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
        like: Adaptation | None = None,
    ):
        """Inserts the method; `model` should have been made `in_host_memory`.

        Another adaptation of the same model on the same mesh, `like`, shares its frozen part.
        """
        self.method = method
        self.base: str
        with in_host_memory():
            params = adapters.base_parameters(model, head)
            self.base = adapters.fingerprint(params) if like is None else like.base
            adapted = method.insert(model, key)
            self.labels = method.labels(adapted)
            self.summary = method.summary(adapted)
            self.structure, trainable, frozen = partition.split(adapted, self.labels)
            self.placement = Placement(mesh, axes.of_model(adapted))
            self.placement.shardings(trainable)  # a mesh that does not fit is refused here
            self.trainable: Params = {k: jnp.asarray(v, jnp.float32) for k, v in trainable.items()}
            dtype = base_dtype(config)
            self.frozen: Params
            if like is not None:
                self.frozen = {path: like.frozen[path] for path in frozen}
                return
            self.frozen = self.placement.put(
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

        Raises:
          ValueError: the mesh has an axis of runs.
        """
        if (ways := self.placement.mesh.shape[RUN]) > 1:
            raise ValueError(
                f"mesh: run={ways} splits the runs of a sweep (experiments.sweep); this is one run: use "
                "data, fsdp or model"
            )
        trainable = warm_started(config, self.trainable, self.labels)
        updates = config.epochs * data.per_epoch // config.accumulate
        schedule, tx = optimizer_for(config, {p: self.labels[p] for p in trainable}, updates)
        plan = plan_of(config, schedule, goal.headline, goal.label, goal.smaller_is_better)
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
            return seed_record(progress, data)

        return train

    def predictor(
        self, function: Callable[[nnx.Module, Any], Any] | None = None
    ) -> Callable[[Params], Predict]:
        """Builds a predict step; of trainable parameters it gives what a `Predict` says, for one run.

        Args:
          function: of (model, batch); the default gives the model's outputs, one per slot.
        """
        predict = step.make_predict_step(self.structure, function, self.placement)

        def of(trainable: Params) -> Predict:
            return lambda batch: np.asarray(
                predict(trainable, self.frozen, self.placement.batch(batch))
            )[None]

        return of

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


def warm_started(config: ConfigDict, trainable: Params, labels: Labels) -> Params:
    """The trainable parameters, LoRA's from the run that the config names, if it names one."""
    if not config.init_adapter:
        return trainable
    start = adapters.load_adapter(adapter_folder(Path(config.init_adapter)))
    return adapters.transfer_group(start, trainable, labels, "lora", config.init_adapter)


def plan_of(
    config: ConfigDict, schedule: optax.Schedule, headline: str, label: str, smaller: bool
) -> loop.Plan:
    """The loop's settings."""
    return loop.Plan(
        config.epochs, headline, schedule, config.accumulate, config.log_every,
        config.checkpoint_every, label, smaller,
    )  # fmt: skip


def adapter_notes(
    config: ConfigDict, task: str, seed: int, progress: loop.Progress
) -> dict[str, Any]:
    """What the folder of a run's adapter says of where it comes from."""
    return {
        "task": task, "model": config.model.name, "seed": seed, "epoch": progress.best,
        "metrics": progress.history[progress.best - 1],
    }  # fmt: skip


def adapter_folder(path: Path) -> Path:
    """A run folder's adapter, or the folder itself."""
    return path / "adapter" if (path / "adapter").is_dir() else path
