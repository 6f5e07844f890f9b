"""Training: settings, the trainer, its loop and optimizer, checkpoints, run records.

Importing `lora_jax` does not import this package: it needs Orbax, tensorboardX and tqdm.
"""

from lora_jax.data.arrays import ArrayBatches
from lora_jax.data.counts import Counts
from lora_jax.training.adapted_model import AdaptedModel
from lora_jax.training.goal import FitResult, Goal
from lora_jax.training.loop import Batches
from lora_jax.training.progress import Progress
from lora_jax.training.settings import AdamSettings, TrainSettings
from lora_jax.training.trainer import Trainer

__all__ = [
    "AdamSettings",
    "AdaptedModel",
    "ArrayBatches",
    "Batches",
    "Counts",
    "FitResult",
    "Goal",
    "Progress",
    "TrainSettings",
    "Trainer",
]
