"""Small training sets with as many examples of each class, as the paper's Table 16 has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lora_jax.errors import InputError


def first_of_each(
    labels: Int[np.ndarray, " examples"], limit: int, names: Sequence[str] = ()
) -> Int[np.ndarray, " chosen"]:
    """The first examples of each class, `limit` in all and as many of each; their indices, in order.

    Where the classes do not divide `limit`, the first ones have one more.

    Args:
      labels: class ids.
      limit: number of examples; if it is not positive, as many as the rarest class has of each.
      names: of the classes, by id, for messages.

    Raises:
      ValueError: a class has too few examples.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if limit <= 0:
        limit = len(classes) * int(counts.min())
    each, rest = divmod(limit, len(classes))
    chosen = []
    for number, (label, count) in enumerate(zip(classes, counts, strict=True)):
        wanted = each + (number < rest)
        if wanted > count:
            name = repr(names[label]) if names else label
            raise InputError(
                f"{limit} balanced examples need {wanted} of class {name}, and there are {count}: at "
                f"most {len(classes) * int(counts.min())} can be balanced; lower data.max_examples"
            )
        chosen.append(np.flatnonzero(labels == label)[:wanted])
    return np.sort(np.concatenate(chosen))
