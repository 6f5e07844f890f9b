"""Several adapters of one base as one: sums, concatenation, SVD, and the rules that resolve conflicts.

`combine` makes one adapter of several, `reduce` one of a smaller rank; both work on adapter folders alone, no
base is needed. `rules` has the rules (PEFT's definitions), `pairs` the updates as matrices.
"""

from lora_jax.combination.combining import WAYS, combine, reduce
from lora_jax.combination.exactness import distances

__all__ = ["WAYS", "combine", "distances", "reduce"]
