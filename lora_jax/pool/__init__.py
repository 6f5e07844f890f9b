"""Many adapters in one batch: a pool of slots on one base, and batches that name a slot for every row."""

from lora_jax.pool.pool import AdapterPool as AdapterPool
from lora_jax.pool.routes import packed_slots as packed_slots
from lora_jax.pool.routing import route as route
