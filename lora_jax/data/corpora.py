"""Where the files of each corpus lie in a folder, and where to get them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

from lora_jax.data.text_files import find
from lora_jax.errors import MissingFileError


@dataclasses.dataclass(frozen=True)
class Layout:
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


LAYOUTS: Mapping[str, Layout] = {
    "e2e": Layout(
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
    "webnlg": Layout(
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
    "dart": Layout(
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
    "wikisql": Layout(
        ("wikisql", "WikiSQL"),
        {
            "train": ("train.jsonl",),
            "valid": ("dev.jsonl",),
            "test": ("test.jsonl",),
        },
        "GitHub repository salesforce/WikiSQL, data.tar.bz2 (of each split NAME.jsonl and "
        "NAME.tables.jsonl). Where only other splits can be had, train on 'test' and score 'valid' "
        "(config.data.train_split)",
        ("", "data"),
    ),
    "samsum": Layout(
        ("samsum", "samsum-corpus", "SAMSum"),
        {"train": ("train.json",), "valid": ("val.json",), "test": ("test.json",)},
        "https://arxiv.org/abs/1911.12237, ancillary file corpus.7z (train.json, val.json, test.json)",
        ("", "corpus"),
    ),
    "dialogsum": Layout(
        ("dialogsum", "DialogSum"),
        {
            "train": ("dialogsum.train.jsonl", "train.jsonl"),
            "valid": ("dialogsum.dev.jsonl", "dev.jsonl"),
            "test": ("dialogsum.test.jsonl", "test.jsonl"),
        },
        "GitHub repository cylnlp/dialogsum, folder DialogSum_Data. Where only other splits can be had, "
        "train on 'test' and score 'valid' (config.data.train_split)",
        ("", "DialogSum_Data"),
    ),
}


def find_split(dataset: str, split: str, root: pathlib.Path) -> list[pathlib.Path]:
    """The file of a split, or its XML files.

    Args:
      dataset: a key of `LAYOUTS`.
      split: train, valid or test.
      root: folder that holds the files, or the corpus's folder, or nlg/ with that folder inside.

    Raises:
      MissingFileError: no file of that split is there; the message says where to get it.
      InputError: see `text_files.find`.
    """
    layout = LAYOUTS[dataset]
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
