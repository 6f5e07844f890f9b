"""The key/value cache of decoding."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Cache(NamedTuple):
    """Keys and values of all layers while `beams` continuations per prompt are generated.

    Continuations do not move in memory when a beam search reorders them: the entry of step t and beam
    j stays where it was written, and `paths` says which entries are a beam's own past.

    Attributes:
      prompt: keys and values of the prompts, (layers, n, prompt, heads, size) each.
      lengths: tokens of each prompt; what lies behind is padding.
      generated: keys and values written so far, (layers, n, steps, beams, heads, size) each.
      paths: (n, beams, steps): the beam in which a continuation's token of that step was written.
      step: number of steps written.
    """

    prompt: tuple[Float[Array, "layers n prompt heads size"], ...]
    lengths: Int[Array, " n"]
    generated: tuple[Float[Array, "layers n steps beams heads size"], ...]
    paths: Int[Array, "n beams steps"]
    step: Int[Array, ""]
