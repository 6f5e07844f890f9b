"""What methods do to the optimizer of their factors: wrappers, as `Method.around` gives them."""

from lora_jax.optimizers.scaled import scaled_updates

__all__ = ["scaled_updates"]
