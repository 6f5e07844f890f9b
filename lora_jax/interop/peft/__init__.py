"""Adapters of PEFT's LORA, as they are published: to ours and back.

PEFT saves adapter_config.json and adapter_model.safetensors, with a tensor for every factor of every
layer, under the names that transformers gives the layers. `names` knows these names, `config` what the
settings mean, `targets` which modules they choose. `tensors` and `saved` sort the tensors, `reading` makes
our leaves of them; `modules`, `whole` and `new_config` are the way back, which `writing` puts together. Where
layers differ, see `layers`; initialisations that changed the base, see `initial`.

Pure functions on dicts of numpy arrays; `experiments.convert` reads and writes the files.
"""

from lora_jax.interop.peft.config import CONFIG
from lora_jax.interop.peft.config import read as read_config
from lora_jax.interop.peft.names import Names, is_bare, names
from lora_jax.interop.peft.reading import NOTE, Converted, from_tensors
from lora_jax.interop.peft.writing import to_tensors

__all__ = [
    "CONFIG",
    "NOTE",
    "Converted",
    "Names",
    "from_tensors",
    "is_bare",
    "names",
    "read_config",
    "to_tensors",
]
