"""Data-to-text corpora: E2E, WebNLG 2017 and DART, from their original files in a folder.

The paper trains GPT-2 on them (section 5.4, appendices C and F). If a folder has a corpus in several
formats, the one that the paper's public code reads is taken: txt before csv (E2E), json before XML
(WebNLG, DART).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from lora_jax.data import dart, e2e, webnlg
from lora_jax.data.pairs import Pairs, Row
from lora_jax.data.text_files import find, folder
from lora_jax.errors import InputError, MissingFileError

DATASETS = ("e2e", "webnlg", "dart")
SPLITS = ("train", "valid", "test")

_DART_TEXTS = {"train": 62_659}  # number of texts in the official file


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where a corpus lies.

    Attributes:
      folders: usual names of the corpus's folder.
      files: for each split, the names of its files, best first.
      home: where to get the corpus.
      inner: folders inside the corpus's folder in which the files may be.
    """

    folders: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    home: str
    inner: tuple[str, ...] = ("",)


_LAYOUTS = {
    "e2e": _Layout(
        ("e2e", "e2e-dataset", "e2e_data"),
        {
            "train": ("train.txt", "trainset.csv"),
            "valid": ("valid.txt", "devset.csv"),
            "test": ("test.txt", "testset_w_refs.csv"),
        },
        "GitHub repository microsoft/LoRA, folder examples/NLG/data/e2e (train.txt, valid.txt, "
        "test.txt), or tuetschek/e2e-dataset (trainset.csv, devset.csv, testset_w_refs.csv)",
        ("", "csv"),
    ),
    "webnlg": _Layout(
        ("webnlg_challenge_2017", "webnlg_2017", "webnlg"),
        {
            "train": ("train.json", "train/*triples/*.xml"),
            "valid": ("dev.json", "dev/*triples/*.xml"),
            "test": ("test.json", "testdata_with_lex.xml", "test/testdata_with_lex.xml"),
        },
        "GitHub repository microsoft/LoRA, folder examples/NLG/data/webnlg_challenge_2017 "
        "(train.json, dev.json, test.json); the XML files of the challenge are in "
        "ThiagoCF05/webnlg and in XiangLi1999/PrefixTuning, folder data/webnlg_challenge_2017",
    ),
    "dart": _Layout(
        ("dart",),
        {
            "train": (
                *("dart-v1.1.1-full-train.json", "train.json"),
                *("dart-v1.1.1-full-train.xml", "train.xml", "train.partial.json"),
            ),
            "valid": (
                "dart-v1.1.1-full-dev.json",
                "dev.json",
                "dart-v1.1.1-full-dev.xml",
                "dev.xml",
            ),
            "test": (
                *("dart-v1.1.1-full-test.json", "test.json"),
                *("dart-v1.1.1-full-test.xml", "test.xml"),
            ),
        },
        "GitHub repository Yale-LILY/dart, folder data/v1.1.1 (dart-v1.1.1-full-train.json or .xml "
        "and the same with dev, test), or microsoft/LoRA, folder examples/NLG/data/dart",
        ("", "v1.1.1", "data/v1.1.1"),
    ),
}


def read(dataset: str, split: str, source: str) -> Pairs:
    """Reads one split of a corpus.

    Args:
      dataset: one of `DATASETS`.
      split: 'train', 'valid' or 'test'.
      source: a folder that holds the corpus's files, or the corpus's folder (e2e/,
        webnlg_challenge_2017/ or webnlg_2017/, dart/), or nlg/ with that folder inside. Files may be
        gzipped (.gz).

    Returns:
      The rows in the order of the file. `notes` says so if they are not the official split
      or not exactly what the public code reads; print and record it.

    Raises:
      FileNotFoundError: no file of that split is there; the message says where to get it.
      ValueError: an unknown dataset or split, or a malformed file.
    """
    if dataset not in DATASETS:
        raise InputError(f"Unknown dataset {dataset!r}. Use one of: {', '.join(DATASETS)}.")
    if split not in SPLITS:
        raise InputError(f"{dataset} has no split {split!r}. Use one of: {', '.join(SPLITS)}.")
    paths = _find(dataset, split, folder(source))
    notes = ""
    if dataset == "webnlg":
        rows = webnlg.rows(paths)
    elif dataset == "e2e":
        rows = e2e.rows(paths[0], split)
        _check_other_forms(paths[0], rows, split)
        if ".csv" in paths[0].suffixes:
            notes = (
                f"{paths[0].name}: blanks around punctuation are derived by rule; fewer than 1 "
                "reference in 100 differs in blanks from the txt that the paper's code reads"
            )
    else:
        rows = dart.rows(paths[0])
        if ".partial" in paths[0].suffixes:
            official = _DART_TEXTS[split]
            notes = (
                f"partial {split} set: {paths[0].name} has {len(rows):,} of the {official:,} texts "
                "of the official DART v1.1.1, so results do not compare with the paper's"
            )
    contexts, completions, subsets = (list(column) for column in zip(*rows, strict=True))
    return Pairs(contexts, completions, subsets, notes)


def _check_other_forms(path: pathlib.Path, rows: Sequence[Row], split: str) -> None:
    """Raises InputError if a csv of E2E beside the txt that is taken is not of the same inputs."""
    layout = _LAYOUTS["e2e"]
    names = [name for name in layout.files[split] if ".csv" in name]
    if ".csv" in path.suffixes:
        return
    for other in find([path.parent / inner for inner in layout.inner], names):
        if e2e.contexts(other, split) != [row.context for row in rows]:
            raise InputError(
                f"{path} and {other} are both there, with different rows: which of them is meant is not "
                "known. Move one of them away"
            )


def _find(dataset: str, split: str, root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the split's file, or its XML files, or raises FileNotFoundError."""
    layout = _LAYOUTS[dataset]
    outer = [root / name for name in layout.folders]
    outer += [root / "nlg" / name for name in layout.folders]
    folders = [path / inner for path in (*outer, root) for inner in layout.inner]
    paths = find(folders, layout.files[split])
    if paths:
        return paths
    if root.is_dir():
        names = sorted(path.name for path in root.iterdir())
        there = f"{root} holds: {', '.join(names[:20]) or 'nothing'}"
    else:
        there = f"{root} is not a folder"
    raise MissingFileError(
        f"No {dataset} {split} file. Looked for {', '.join(layout.files[split])} (or .gz) in: "
        f"{', '.join(map(str, folders))}; {there}. Get the data from: {layout.home}. Then give the "
        "folder as source."
    )
