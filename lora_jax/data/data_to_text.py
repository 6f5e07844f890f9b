"""Corpora for decoders, from their original files in a folder.

Data to text, on which the paper trains GPT-2 (section 5.4, appendices C and F): E2E, WebNLG 2017 and DART. If
a folder has a corpus in several formats, the one that the paper's public code reads is taken: txt before csv
(E2E), json before XML (WebNLG, DART). And what it trains GPT-3 on (section 5.5, appendix C): WikiSQL, SAMSum,
with DialogSum beside, and MNLI as text, with GLUE's other pairs beside.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from lora_jax.data import dart, dialogues, e2e, glue_text, webnlg, wikisql
from lora_jax.data.corpora import LAYOUTS, find_split
from lora_jax.data.pairs import Pairs, Row
from lora_jax.data.text_files import find, folder
from lora_jax.errors import InputError

DATA_TO_TEXT = ("e2e", "webnlg", "dart")
DATASETS = (*DATA_TO_TEXT, "wikisql", "samsum", "dialogsum", *glue_text.OF_GLUE)
SPLITS = ("train", "valid", "test")

_DART_TEXTS = {"train": 62_659}  # number of texts in the official file
_OFFICIAL = {  # rows of the official files (paper, appendix C; their own repositories)
    "wikisql": {"train": 56_355, "valid": 8_421, "test": 15_878},
    "samsum": {"train": 14_732, "valid": 818, "test": 819},
    "dialogsum": {"train": 12_460, "valid": 500, "test": 1_500},
}


def read(dataset: str, split: str, source: str) -> Pairs:
    """Reads one split of a corpus.

    Args:
      dataset: one of `DATASETS`.
      split: 'train', 'valid' or 'test'.
      source: a folder that holds the corpus's files, or the corpus's folder (e2e/,
        webnlg_challenge_2017/ or webnlg_2017/, dart/, wikisql/, samsum/, dialogsum/), or nlg/ with that
        folder inside. Files may be gzipped (.gz). For GLUE's tasks see `glue.read`.

    Returns:
      The rows in the order of the file. `notes` says so if they are not the official split
      or not exactly what the public code reads; print and record it. `classes` are those of GLUE's tasks.

    Raises:
      FileNotFoundError: no file of that split is there; the message says where to get it.
      ValueError: an unknown dataset or split, or a malformed file.
    """
    if dataset not in DATASETS:
        raise InputError(f"Unknown dataset {dataset!r}. Use one of: {', '.join(DATASETS)}.")
    if split not in SPLITS:
        raise InputError(f"{dataset} has no split {split!r}. Use one of: {', '.join(SPLITS)}.")
    classes: tuple[str, ...] = ()
    if dataset in glue_text.OF_GLUE:
        rows, notes = glue_text.rows(dataset, split, source), ""
        classes = glue_text.classes(dataset)
    else:
        paths = find_split(dataset, split, folder(source))
        rows, notes = _rows(dataset, split, paths)
    contexts, completions, subsets = (list(column) for column in zip(*rows, strict=True))
    return Pairs(contexts, completions, subsets, notes, classes)


def questions(split: str, source: str) -> list[wikisql.Question]:
    """The questions of a split of WikiSQL, whose rows `read` gives; arguments and errors are its."""
    return wikisql.read(find_split("wikisql", split, folder(source))[0])


def _rows(dataset: str, split: str, paths: list[pathlib.Path]) -> tuple[list[Row], str]:
    """The rows of a corpus's files, and the notes on them."""
    path, notes = paths[0], ""
    if dataset == "webnlg":
        return webnlg.rows(paths), ""
    if dataset == "e2e":
        rows = e2e.rows(path, split)
        _check_other_forms(path, rows, split)
        if ".csv" in path.suffixes:
            notes = (
                f"{path.name}: blanks around punctuation are derived by rule; fewer than 1 "
                "reference in 100 differs in blanks from the txt that the paper's code reads"
            )
        return rows, notes
    if dataset == "dart":
        rows = dart.rows(path)
        if ".partial" in path.suffixes:
            official = _DART_TEXTS[split]
            notes = (
                f"partial {split} set: {path.name} has {len(rows):,} of the {official:,} texts "
                "of the official DART v1.1.1, so results do not compare with the paper's"
            )
        return rows, notes
    if dataset == "wikisql":
        rows = [question.row for question in wikisql.read(path)]
        if wikisql.tables_beside(path) is None:
            notes = (
                f"the tables of {path.name} are not there: as the schema of a table stand the columns that "
                "its queries name, without types; this is an easier task than the paper's, and execution is "
                "not scored"
            )
    else:
        rows = dialogues.rows(path)
    official = _OFFICIAL[dataset][split]
    if len(rows) != official:
        count = f"{path.name} has {len(rows):,} rows, the official {split} set has {official:,}"
        notes = "; ".join(filter(None, (count, notes)))
    return rows, notes


def _check_other_forms(path: pathlib.Path, rows: Sequence[Row], split: str) -> None:
    """Raises InputError if a csv of E2E beside the txt that is taken is not of the same inputs."""
    layout = LAYOUTS["e2e"]
    names = [name for name in layout.files[split] if ".csv" in name]
    if ".csv" in path.suffixes:
        return
    for other in find([path.parent / inner for inner in layout.inner], names):
        if e2e.contexts(other, split) != [row.context for row in rows]:
            raise InputError(
                f"{path} and {other} are both there, with different rows: which of them is meant is not "
                "known. Move one of them away"
            )
