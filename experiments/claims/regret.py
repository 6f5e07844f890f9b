"""The comparisons of configs/compare/regret.py: what their methods are, and which belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.compare.record import NAME, Comparison
from experiments.compare.record import read as read_comparison
from experiments.compare.statistics import REFERENCE, Row
from lora_jax.errors import FileError

FULL = "full"
_COMMAND = (
    "`python -m experiments.compare --config=configs/compare/regret.py:e2e --workdir={} "
    "--config.run.data.source=FOLDER` (210 runs; behind a comma some of them, such as "
    "regret.py:e2e,rank_1+rank_64+full)"
)
REFERENCE_RANK = 8  # of the method `lora`
ALIKE = 0.02  # share by which numbers of trained values may differ where they are said to be equal
_LARGER = "Train it with --config.run.batch_size=LARGER, in a folder of its own"
_SHORTER = "Train it with --config.run.data.max_examples=FEWER, in a folder of its own"
_OTHER = "Name the comparison of the same task with another budget, such as fewer examples"


def read(folder: Path, flag: str) -> Comparison:
    """The comparison in a folder.

    Args:
      folder: of the comparison.
      flag: that names it.

    Raises:
      MissingFileError, FileError: it has not ended, or has not the methods of the config.
    """
    found = read_comparison(folder, f"{_COMMAND.format(folder)} ({flag})")
    if FULL not in _by_name(found) or not ranks(found):
        other = f"{_COMMAND.format('ANOTHER_FOLDER')} ({flag})"
        raise FileError(
            folder / NAME, "methods", f"{[*_by_name(found)]}", f"`{FULL}` and LoRA at some rank",
            f"It must be a comparison of configs/compare/regret.py: {other}",
        )  # fmt: skip
    return found


def check_alike(main: Comparison, other: Comparison, folder: Path, flag: str) -> None:
    """Checks that two comparisons differ in their budget alone, as far as their files say.

    Args:
      main: the first one.
      other: the second one.
      folder: of the second one.
      flag: that names it, `--large_batch` or `--short`.

    Raises:
      FileError: they differ in something else, or not in their budget; it names the second file.
    """
    path = folder / NAME
    for name in ("experiment", "headline", "smaller_is_better", "task", "model"):
        own, first = getattr(other, name), getattr(main, name)
        if own != first and "" not in (own, first):
            raise FileError(path, name, f"{own!r}", f"{first!r}, as in --main", _OTHER)
    if main.budget and other.budget:
        _check_budgets(main.budget, other.budget, path, flag)


def _check_budgets(
    main: Mapping[str, int], other: Mapping[str, int], path: Path, flag: str
) -> None:
    """Raises FileError unless one has larger batches of the same data, or is shorter with equal batches."""

    def check(name: str, right: bool, wanted: str, remedy: str) -> None:
        if not right:
            raise FileError(path, f"budget.{name}", f"{other[name]}", wanted, remedy)

    def equal(*names: str, remedy: str) -> None:
        for name in names:
            check(name, other[name] == main[name], f"{main[name]}, as in --main", remedy)

    if flag == "--large_batch":
        size = main["batch_size"]
        check("batch_size", other["batch_size"] > size, f"more than {size}", _LARGER)
        equal("examples", "epochs", remedy=_LARGER)
        return
    equal("batch_size", remedy=_SHORTER)
    longest = main["examples"] * main["epochs"]
    shorter = other["examples"] * other["epochs"] < longest
    wanted = f"fewer in all than {longest} (examples times epochs)"
    check("examples", shorter, wanted, _SHORTER)


def ranks(comparison: Comparison) -> dict[int, Row]:
    """LoRA on all layers by rank, from low to high."""
    found = _numbered(comparison, "rank")
    if (lora := _by_name(comparison).get(REFERENCE)) is not None:
        found[REFERENCE_RANK] = lora
    return dict(sorted(found.items()))


def full(comparison: Comparison) -> Row:
    """Full fine-tuning."""
    return _by_name(comparison)[FULL]


def parts(comparison: Comparison) -> dict[str, Row]:
    """LoRA at equal numbers of trained values, by what it is called on pages, from low ranks to high."""
    titles = {
        "all": "all layers, rank {}",
        "attention": "attention, rank {}",
        "mlp": "feed-forward, rank {}",
    }
    return {
        title.format(rank): row
        for prefix, title in titles.items()
        for rank, row in _numbered(comparison, prefix).items()
    }


def alike(comparison: Comparison, prefix: str) -> list[tuple[Row, Row]] | str:
    """LoRA on all layers and on some of them, in pairs with equal numbers of trained values.

    Args:
      comparison: with methods `all_N`.
      prefix: of the methods that adapt some layers.

    Returns:
      The pairs; if there is none, why.
    """
    whole = list(_numbered(comparison, "all").values())
    some = list(_numbered(comparison, prefix).values())
    for name, found in (("all", whole), (prefix, some)):
        if not found:
            return f"there is no method `{name}_N`"
    pairs = [(a, b) for a in whole for b in some if abs(a.trained - b.trained) <= ALIKE * a.trained]
    if pairs:
        return pairs
    return f"no two methods are within {ALIKE:.0%} of trained values: {_counts(whole)}; {_counts(some)}"


def _counts(rows: Sequence[Row]) -> str:
    return ", ".join(f"`{row.name}` {row.trained:,}" for row in rows)


def _numbered(comparison: Comparison, prefix: str) -> dict[int, Row]:
    """The methods `PREFIX_N` by N, from low to high."""
    found = [(re.fullmatch(rf"{prefix}_([0-9]+)", row.name), row) for row in comparison.rows]
    return dict(sorted((int(match[1]), row) for match, row in found if match))


def _by_name(comparison: Comparison) -> dict[str, Row]:
    return {row.name: row for row in comparison.rows}
