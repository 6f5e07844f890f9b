"""Adapters of PEFT, as they are published: to ours and back.

PEFT saves adapter_config.json and adapter_model.safetensors, with a tensor for every factor of every
layer, under the names that transformers gives the layers. `names` knows these names, `config` what the
settings mean, `targets` which modules they choose. `tensors` and `saved` sort the tensors, `reading` makes
our leaves of them; `modules`, `whole` and `new_config` are the way back, which `writing` puts together. Where
layers differ, see `layers`; initialisations that changed the base, see `initial`. All this is LORA's; what
other methods have of their own is in `variants` and the files of their names.

Pure functions on dicts of numpy arrays; `experiments.convert` reads and writes the files.
"""

from lora_jax.interop.peft.any_config import read as read_config
from lora_jax.interop.peft.config import CONFIG
from lora_jax.interop.peft.inserted import Inserted, inserted_of
from lora_jax.interop.peft.names import Names, is_bare, names
from lora_jax.interop.peft.reading import NOTE, Converted, from_tensors
from lora_jax.interop.peft.writing import to_tensors

__all__ = [
    "CONFIG",
    "NOTE",
    "Converted",
    "Inserted",
    "Names",
    "from_tensors",
    "inserted_of",
    "is_bare",
    "names",
    "read_config",
    "to_tensors",
]
