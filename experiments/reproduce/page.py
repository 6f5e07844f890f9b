"""docs/reproduce.md: every item with its command, the paper's score, the expected band, and what was made."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from experiments.reproduce import bands, cost
from experiments.reproduce.catalogue import catalogue
from experiments.reproduce.cost import Cost
from experiments.reproduce.items import Item, shown
from experiments.reproduce.manifest import Made, Manifest
from experiments.reproduce.outcome import Outcome

_HEAD = """# Every number from one command

Made by `python -m experiments.reproduce --page` from [reproduce.json](reproduce.json), the list of what
was made again, when and on what.

```bash
python -m experiments.reproduce --table=2 --model=minilm --glue=FOLDER --workdir=runs/reproduce
```

runs what belongs to Table 2 with MiniLM, one command after the other (`--only=sst2/` a part of it,
`--list` shows them, and the same command goes on after an interruption), and says of each score whether
it lies in the expected band. `--glue` names GLUE's original TSV files, without it they are downloaded;
`--nlg` the folders of E2E, WebNLG, DART and the others ([data_to_text.md](data_to_text.md)). Tables 9 to 12
and 17 are settings, which the configs have ([paper_tables.md](paper_tables.md)). Figures come with tables:
5 with Table 1; 3, 4, 6, 7 and 8 with Table 7; and 2 is drawn from Table 15's runs by
`python -m experiments.report runs/reproduce/table_15 --output=PAGE.md`.

A band is where the mean over as many new seeds lies in 95 of 100 cases: the mean measured here and t s
sqrt(2/n) to each side, with the standard deviation s of n seeds, but never less than what chance in the
scored examples or another processor may change. Slow-downs (Table 1) are of one device, and a measure of
subspaces (Table 7) is a median over layers, which has no band. A row of the paper that was not run has a
band around the paper's score, of twice the printed spread or the same least width; Table 2's are medians
over seeds. The command says where data or model are not those of the band.

**Send results back.** The command leaves `reproduced.json` in its folder, with the record of every run
and a digest of each. Open an issue with that file; `python -m experiments.report reproduced.json
--output=PAGE.md` puts it into the paper's tables, as it does folders of runs.
"""
_NOT_RUN = """
No number of these rows has been measured by this project, which has no accelerator and no hub. One
command fills them in: the group's, on a machine with a GPU. GPT-3 itself cannot be had: what the paper has
of it is here on GPT-2 XL. Memory is that of one device by XLA's compiler for it (bfloat16 base, batches
packed into rows of {length} tokens), nothing ran; hours are the products of all seeds at {efficiency:.0%}
of the device's peak, which is a guess. A dash: not compiled (`python -m experiments.reproduce --only=ITEM
--costs=a100-40:1` does it for a run whose data's mean length is known), or no single training.
"""
_MANY = 9  # of the paper's scores, the most that a cell shows


def page(manifest: Manifest) -> str:
    """The whole page."""
    items = list(catalogue().values())
    made = [item for item in items if item.id in manifest.made]
    rest = [item for item in items if item.id not in manifest.made]
    parts = [_HEAD, "\n## Made\n"]
    for (table, model), group in groupby(made, key=_group):
        parts += [_title(table, model), _made_table(list(group), manifest.made)]
    parts += [
        "\n## Not made yet, without an accelerator\n",
        _commands(i for i in rest if not i.accelerator),
    ]
    parts += [
        "\n## Not run: rows of the paper\n",
        _NOT_RUN.format(length=512, efficiency=cost.EFFICIENCY),
    ]
    far = [item for item in rest if item.accelerator]
    for (table, model), group in groupby(far, key=_group):
        parts += [_title(table, model), _not_run(list(group), manifest.costs)]
    return "\n".join(parts) + "\n"


def results(outcomes: Mapping[str, Outcome], manifest: Manifest) -> str:
    """What was made now beside the bands, as Markdown."""
    lines = ["| item | score | paper | expected | made now | |", "|---|---|---|---|---|---|"]
    for name, outcome in outcomes.items():
        item = catalogue()[name]
        for score, values in outcome.scores.items():
            expected = _expected(item, score, manifest)
            verdict = bands.verdict(values, expected, item.median)
            lines.append(
                f"| {name} | {score} | {item.paper.get(score, '-')} | {_band(item, score, expected)} | "
                f"{_shown(item, score, values)} | {verdict} |"
            )
    return "\n".join([*lines, "", *_other_inputs(outcomes, manifest), ""])


def _other_inputs(outcomes: Mapping[str, Outcome], manifest: Manifest) -> list[str]:
    """A line for each item whose data or model are not those of its band."""
    lines = []
    for name, outcome in outcomes.items():
        before = manifest.made[name].inputs if name in manifest.made else {}
        others = [
            key for key, digest in outcome.inputs.items() if before.get(key, digest) != digest
        ]
        if others:
            lines.append(f"- {name}: {', '.join(others)} are not those of the expected band.")
    return lines


def _expected(item: Item, score: str, manifest: Manifest) -> bands.Band | None:
    made = manifest.made.get(item.id)
    if made is not None and score in made.scores:
        return made.scores[score].band
    tolerance = item.tolerance(score)
    if tolerance and (printed := item.paper.get(score)):
        return bands.of_paper(printed, item.unit(score), tolerance)
    return None


def _group(item: Item) -> tuple[str, str]:
    return item.table, item.model


def _title(table: str, model: str) -> str:
    what = f"Table {table}" if table.isdigit() else table.capitalize()
    return f"\n### {what}, {model}\n"


def _made_table(items: Sequence[Item], made: Mapping[str, Made]) -> str:
    lines = [
        "| item | score | mean ± s of the seeds | expected band | seeds | minutes | made | on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for item in items:
        one = made[item.id]
        for name, score in one.scores.items():
            minutes = "-" if one.seconds is None else f"{one.seconds / 60:.0f}"
            lines.append(
                f"| `{item.name}` | {name} | {_shown(item, name, score.values)} | "
                f"{_band(item, name, score.band)} | "
                f"{len(score.values)} | {minutes} | {one.made} | {one.on}, jax {one.versions.get('jax')} |"
            )
    differs = dict.fromkeys(item.differs for item in items if item.differs)
    notes = "".join(f"\nWhat differs from the paper: {text}.\n" for text in differs)
    return "\n".join([*lines, notes])


def _commands(items: Iterable[Item]) -> str:
    lines = ["| item | command |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{item.id}` | `{shown(item)}` |" for item in items), ""])


def _not_run(items: Sequence[Item], costs: Mapping[str, Cost]) -> str:
    table, model = _group(items[0])
    sources = dict.fromkeys(item.source for item in items if item.source)
    flag = "".join(f" --{name}=FOLDER" for name in sources if name != "glue" or len(sources) > 1)
    lines = [
        f"`python -m experiments.reproduce --table={table} --model={model}{flag} --workdir=runs/reproduce`\n",
        "| item | paper | device | memory, GiB | hours |",
        "|---|---|---|---|---|",
    ]
    for item in items:
        lines.append(f"| `{item.name}` | {_paper(item)} | {_cost(costs.get(item.id))} |")
    return "\n".join([*lines, ""])


def _paper(item: Item) -> str:
    """What the paper prints; what differs from it where no cell is this item's."""
    if len(item.paper) > _MANY:
        return f"{len(item.paper)} numbers, in the head of `{item.config.partition(':')[0]}`"
    return ", ".join(f"{name} {score}" for name, score in item.paper.items()) or item.differs


def _cost(known: Cost | None) -> str:
    if known is None:
        return "- | - | -"
    fits = "" if known.fits else " (does not fit)"
    hours = known.seconds / 3600
    return f"{known.topology} | {known.peak / 2**30:.1f}{fits} | {hours:.2g}"


def _shown(item: Item, score: str, values: Sequence[float]) -> str:
    if not values or any(math.isnan(value) for value in values):
        return "diverged"
    middle = _number(item, score, bands.center(values, item.median))
    spread = f" ± {_number(item, score, statistics.stdev(values))}" if len(values) > 1 else ""
    return middle + spread


def _band(item: Item, score: str, band: bands.Band | None) -> str:
    if band is None:
        return "-"
    return f"{_number(item, score, band[0])} to {_number(item, score, band[1])}"


def _number(item: Item, score: str, value: float) -> str:
    unit = item.unit(score)
    return f"{unit * value:.{2 if unit == 100 else 4}f}"
