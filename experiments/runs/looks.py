"""How many things look in one plot: colours and markers that readers can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from matplotlib.markers import MarkerStyle

from lora_jax.analysis.plots import COLOURS

# With 7 colours that readers can tell apart, colours come again: every one with another marker.
_MARKERS: tuple[str | tuple[int, Literal[1], int], ...] = (
    "o", "s", "^", "D", "v", "P", "X", "*", "h", "<", ">", "p", "d", (3, 1, 0), (4, 1, 0), (6, 1, 0),
    (8, 1, 0), "H", "8",
)  # fmt: skip


class Style(NamedTuple):
    """How one of them looks."""

    colour: str
    marker: MarkerStyle

    def size(self, points: float) -> float:
        """The marker's size for one that looks as large as a circle of so many points."""
        thin = isinstance(self.marker.get_marker(), tuple) or self.marker.get_marker() in ("*", "d")
        return 1.4 * points if thin else points


def styles(names: Sequence[str], first: str | None = None) -> dict[str, Style]:
    """A style for each name, in their order; no two of a hundred are alike.

    Args:
      names: what is drawn.
      first: what all others are compared with, a black circle, drawn or not.
    """
    reserved = int(first is not None)
    colours, markers = COLOURS[: len(COLOURS) - reserved], _MARKERS[reserved:]
    found = {} if first is None else {first: Style(COLOURS[-1], MarkerStyle(_MARKERS[0]))}
    for n, name in enumerate(name for name in names if name != first):
        rounds, colour = divmod(n, len(colours))
        found[name] = Style(colours[colour], MarkerStyle(markers[(n + rounds) % len(markers)]))
    return found
