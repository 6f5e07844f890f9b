"""Small training sets with as many examples of each class, as the paper's Table 16 has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lora_jax.errors import InputError


def first_of_each(
    labels: Int[np.ndarray, " examples"], limit: int, names: Sequence[str]
) -> Int[np.ndarray, " chosen"]:
    """The first examples of each class, `limit` in all and as many of each; their indices, in order.

    Where the classes do not divide `limit`, the first ones have one more.

    Args:
      labels: class ids.
      limit: number of examples; if it is not positive, as many as the rarest class has of each.
      names: of all classes, by id.

    Raises:
      ValueError: a class has too few examples, or `limit` leaves it none.
    """
    counts = np.bincount(labels, minlength=len(names))
    least = int(counts.min())
    if not least:
        raise InputError(
            f"the training set has no example of class {names[int(counts.argmin())]!r}, so it cannot be "
            "balanced: leave data.balanced out, or name another file"
        )
    if limit <= 0:
        limit = len(names) * least
    each, rest = divmod(limit, len(names))
    if not each:
        raise InputError(
            f"{limit} balanced examples of {len(names)} classes leave some without any: raise "
            "data.max_examples"
        )
    chosen = []
    for label, name in enumerate(names):
        wanted = each + (label < rest)
        if wanted > counts[label]:
            raise InputError(
                f"{limit} balanced examples need {wanted} of class {name!r}, and there are "
                f"{counts[label]}: at most {len(names) * least} can be balanced; lower data.max_examples"
            )
        chosen.append(np.flatnonzero(labels == label)[:wanted])
    return np.sort(np.concatenate(chosen))
