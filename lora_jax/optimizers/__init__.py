"""What methods do to the optimizer of their factors: wrappers, as `Method.around` gives them."""

from lora_jax.optimizers.adalora import Schedule, allocated_ranks
from lora_jax.optimizers.scaled import scaled_updates

__all__ = ["Schedule", "allocated_ranks", "scaled_updates"]
