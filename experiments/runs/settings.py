"""The door for configs: what experiments read of a ConfigDict, as frozen settings.

Beyond the door a ConfigDict is read for two purposes only: a task reads the fields of its data, and a
record holds the whole config.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lora_jax.models.attention.attend import check_platform
from lora_jax.sharding.mesh import check_heads, make_mesh
from lora_jax.training.settings import AdamSettings, TrainSettings

_TRAIN = tuple(field.name for field in dataclasses.fields(TrainSettings) if field.name != "adam")


def train_settings(config: ConfigDict) -> TrainSettings:
    """The settings of the library's trainer.

    Raises:
      ValueError: a value is out of its range.
    """
    adam = AdamSettings(**config.adam.to_dict())
    return TrainSettings(adam=adam, **{name: config[name] for name in _TRAIN})


def model_arguments(config: ConfigDict) -> dict[str, Any]:
    """What the config says of the model besides its name, and the type of computation.

    Raises:
      InputError: attention is to be computed by a kernel for other devices.
    """
    chosen = {k: v for k, v in config.model.to_dict().items() if k != "name" and v is not None}
    check_platform(chosen.get("attention", "auto"), jax.default_backend())
    return {**chosen, "compute_dtype": train_settings(config).dtype}


def mesh_for(config: ConfigDict, heads: int) -> Mesh:
    """The config's mesh; ValueError if devices or attention heads do not divide by it."""
    mesh = make_mesh(config.mesh.to_dict())
    check_heads(heads, mesh)
    return mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the runs of a task have, whatever the task is.

    Attributes:
      train: of the trainer.
      model: name of the pre-trained model, see `hub.find`.
      seeds: one run each.
      batch_size: examples of a batch, on all devices together.
      order_seed: of the order of the examples; None: the run's seed.
      row_length: tokens of a packed row; None: what each batch asks for, 0: the longest example possible.
      adapter: the run to evaluate, where nothing is trained.
      verify: whether the adapted model is verified before training.
      config: the whole config, for records.
    """

    train: TrainSettings
    model: str
    seeds: tuple[int, ...]
    batch_size: int
    order_seed: int | None
    row_length: int | None
    adapter: str
    verify: bool
    config: ConfigDict

    def order(self, seed: int) -> int:
        """Seed of the order of a run's examples."""
        return seed if self.order_seed is None else self.order_seed


def run_settings(config: ConfigDict) -> RunSettings:
    """The settings of a task's runs.

    Raises:
      ValueError: a value is out of its range.
    """
    return RunSettings(
        train=train_settings(config),
        model=config.model.name,
        seeds=tuple(config.seeds),
        batch_size=config.batch_size,
        order_seed=config.data.order_seed,
        row_length=config.data.row_length,
        adapter=config.adapter,
        verify=config.verify,
        config=config,
    )
