"""Writes the results of an analysis: analysis.md, tables/*.csv and analysis.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from experiments.runs import folder, text_tables
from experiments.subspace.figures import FigureFolder
from experiments.subspace.tables import Row, summarise_layers
from lora_jax import files, run_files
from lora_jax.adapters import Adapter
from lora_jax.training.records import environment


@dataclasses.dataclass(frozen=True)
class Section:
    """What the page says about a table.

    Attributes:
      heading: heading of the section.
      note: what the columns mean.
      keys: columns that name a row; the others are summarised over the layers.
    """

    heading: str
    note: str
    keys: tuple[str, ...]


SECTIONS: Mapping[str, Section] = {
    "spectra": Section(
        "Spectra of the effective updates",
        """\
The effective update is (alpha/r) B A. `rank_for_90`: directions that hold 90% of the energy.""",
        ("adapter", "weight", "rank"),
    ),
    "similarity": Section(
        "Similarity of subspaces (Figures 3, 4, 6, 7)",
        """\
`phi` of the first i and the first j directions, its mean for random subspaces (`chance`), and how many
standard deviations it is above that; `shared` = min(i, j) phi.""",
        ("pair", "directions", "weight", "i", "j"),
    ),
    "amplification": Section(
        "Projections of W and amplification (Table 7)",
        """\
`in_delta`, `in_weight`, `in_random`: norm of U^T W V^T with the directions of the update, of W, and random
ones; `factor` = norm of the effective update, alpha/r included, over `in_delta`.""",
        ("adapter", "weight", "rank"),
    ),
    "weight_directions": Section(
        "W's top directions and the update's (Figure 8)",
        """\
phi of all `of_W` top right-singular vectors of W and all of A's; `gaussian`: a random matrix for A.""",
        ("adapter", "weight", "of_W", "of_update"),
    ),
}


def write(
    workdir: Path,
    *,
    config: ConfigDict,
    adapters: Mapping[str, Adapter],
    tables: Mapping[str, list[Row]],
    figures: FigureFolder,
) -> None:
    """Writes the page, the tables and the record.

    Args:
      workdir: the folder to write to.
      config: config of the analysis, stored with the tables.
      adapters: the adapters by name.
      tables: rows by table, with keys of SECTIONS.
      figures: the figures, already drawn.
    """
    about = [
        {
            "adapter": name,
            "method": str(adapter.method),
            **{key: adapter.notes.get(key, "") for key in ("task", "model", "seed")},
        }
        for name, adapter in adapters.items()
    ]
    parts = ["# Subspaces of low-rank updates", "Values: median (smallest to largest) over layers."]
    parts.append(text_tables.markdown(about))
    if any("dora" in adapter.method.name for adapter in adapters.values()):
        parts.append(
            "DoRA's update is not (alpha/r) B A alone: it also scales every output. The tables below are of "
            "its factors."
        )
    for name, rows in tables.items():
        section = SECTIONS[name]
        parts += [f"## {section.heading}", section.note]
        parts.append(text_tables.markdown(summarise_layers(rows, section.keys)))
        parts += [f"![{caption}](figures/{file})" for file, caption in figures.of_table(name)]
        files.write_text(workdir / "tables" / f"{name}.csv", text_tables.csv_text(rows))
    files.write_text(workdir / "analysis.md", "\n\n".join(parts) + "\n")
    record = {
        "config": folder.plain(config),
        "adapters": about,
        "tables": dict(tables),
        **environment(),
    }
    files.write_json(workdir / "analysis.json", run_files.signed(workdir, record))
