"""Writes small files in the formats of GLUE's original distribution, and compares examples."""

from __future__ import annotations

import pathlib

import numpy as np

from lora_jax.data import glue, glue_tasks

# Characters that a careless reader would take for quoting or for the end of a line.
ODD = ['"', 'say "no" ', "a\x85b", "c\u2028d", "\u00e9t\u00e9", "it 's ", " lead", "'", 'end"']
HEADERS = {
    "cola": ["source", "label", "mark", "sentence"],
    "sst2": ["sentence", "label"],
    "mrpc": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "stsb": [*"abcdefg", "sentence1", "sentence2", "score"],
    "qqp": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "mnli": ["index", "promptID", "sentence1", "sentence2", "label1", "gold_label"],
    "qnli": ["index", "question", "sentence", "label"],
    "rte": ["index", "sentence1", "sentence2", "label"],
    "wnli": ["index", "sentence1", "sentence2", "label"],
}


def write_rows(
    task: glue_tasks.Task, path: pathlib.Path, rows: int, seed: int, extra: str = ""
) -> str:
    """Writes a file in the task's original format and returns its text."""
    generator = np.random.default_rng(seed)
    lines = [] if task.header else ["\t".join(HEADERS[task.name])]
    for number in range(rows):
        row = dict.fromkeys(HEADERS[task.name], f"{seed}{number}")
        for column in task.columns:
            row[column] = f"{ODD[generator.integers(len(ODD))]} {column} {number}"
        score = f"{generator.integers(0, 26) / 5:.3f}"
        row[task.label_column] = (
            score if task.regression else str(generator.choice(task.label_values))
        )
        lines.append("\t".join(row.values()))
    text = "\n".join(lines) + "\n" + extra
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return text


def write_folder(task: glue_tasks.Task, root: pathlib.Path) -> None:
    """Writes the labelled files of a task and, where TFDS needs one, its test files."""
    folder = root / task.folder
    extra = "7\t8\t9\tcut here\nrest\tsecond\t0\n" if task.skip_short_rows else ""
    for seed, split in enumerate(("train", *task.evaluations)):
        name = split.replace("validation", "dev")
        write_rows(task, folder / f"{name}.tsv", 23 + seed, seed, extra)
        if name != "train":
            test = folder / f"{name.replace('dev', 'test')}.tsv"
            columns = task.columns
            test.write_text("\t".join(columns) + "\n" + "\t".join(columns) + "\n")


def write_mrpc_sources(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes the files that TFDS makes MRPC from, and the original GLUE files of the same rows."""
    task = glue_tasks.task("mrpc")
    text = "\ufeff" + write_rows(task, root / "msr_paraphrase_train.txt", 40, 3)
    header, *rows = text.removesuffix("\n").split("\n")
    dev = rows[1::4]
    files = {
        "msr_paraphrase_train.txt": text,
        "dev_ids.tsv": "".join("\t".join(row.split("\t")[1:3]) + "\n" for row in dev),
        "MRPC/train.tsv": "\n".join([header, *(row for row in rows if row not in dev)]) + "\n",
        "MRPC/dev.tsv": "\n".join([header, *dev]) + "\n",
    }
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content.encode())
    train = root / "msr_paraphrase_train.txt"
    return {"train": train, "test": train, "dev_ids": root / "dev_ids.tsv"}


def assert_equal(one: glue.Examples, two: glue.Examples) -> None:
    assert one.first == two.first
    assert one.second == two.second
    assert one.labels.dtype == two.labels.dtype
    np.testing.assert_array_equal(one.labels, two.labels)
