"""GLUE from TensorFlow Datasets, on generated files: the same examples as from the original files."""

from __future__ import annotations

import pathlib
import sys

import pytest
from glue_files import assert_equal, write_folder, write_mrpc_sources

from lora_jax.data import glue, glue_tasks


@pytest.fixture
def offline_tfds(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """Generated GLUE files in place of TFDS's downloads; everything after the download is real."""
    download = pytest.importorskip("tensorflow_datasets").core.download
    raw = tmp_path / "raw"
    for task in glue_tasks.TASKS.values():
        if task.name != "mrpc":
            write_folder(task, raw)
    mrpc = write_mrpc_sources(raw)
    manager = download.DownloadManager
    monkeypatch.setattr(manager, "download_and_extract", lambda self, url: str(raw))
    monkeypatch.setattr(manager, "download", lambda self, urls: {k: str(mrpc[k]) for k in urls})
    return raw


@pytest.mark.parametrize("name", glue_tasks.TASKS)
def test_tfds_and_folder_give_equal_examples(name, offline_tfds, tmp_path):
    task = glue_tasks.task(name)
    before = set(sys.modules)
    for split in ("train", *task.evaluations):
        from_folder = glue.read(task, split, str(offline_tfds))
        assert_equal(from_folder, glue.read(task, split, f"tfds:{tmp_path / 'tfds'}"))
        assert len(from_folder) >= 10
        assert len(set(from_folder.labels.tolist())) > 1
    assert "tensorflow" not in set(sys.modules) - before


def test_tfds_download_failure_names_the_folder_source(offline_tfds, monkeypatch, tmp_path):
    from tensorflow_datasets.core import download

    def refuse(self, url):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(download.DownloadManager, "download_and_extract", refuse)
    with pytest.raises(OSError, match=r"glue/rte .*no route to host.*source=FOLDER"):
        glue.read(glue_tasks.task("rte"), "train", f"tfds:{tmp_path / 'tfds'}")


def test_missing_tfds_names_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.text", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets .*source=FOLDER"):
        glue.read(glue_tasks.task("rte"), "train", "tfds")


def test_tfds_without_labels_is_refused(offline_tfds, tmp_path):
    path = offline_tfds / "SST-2" / "train.tsv"
    path.write_text("sentence\nno label here\n")  # TFDS gives -1 where there is no label column.
    with pytest.raises(ValueError, match="idx 0 has no valid label"):
        glue.read(glue_tasks.task("sst2"), "train", f"tfds:{tmp_path / 'tfds'}")


def test_class_ids_agree_with_tfds():
    tfds_glue = pytest.importorskip("tensorflow_datasets.text.glue")
    configs = {config.name: config for config in tfds_glue.Glue.BUILDER_CONFIGS}
    for name, task in glue_tasks.TASKS.items():
        assert task.labels == tuple(configs[name].label_classes or ())
        assert task.num_outputs == (len(task.labels) if task.labels else 1)
        assert task.folder == configs[name].data_dir


def test_damaged_tfds_data_are_refused(offline_tfds, tmp_path):
    task, root = glue_tasks.task("rte"), tmp_path / "tfds"
    glue.read(task, "train", f"tfds:{root}")
    for name in ("dataset_info.json", "glue-train.array_record-00000-of-00001"):
        (path,) = root.rglob(name)
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"\xff" * len(whole), b"[" * 100_000):
            path.write_bytes(content)
            with pytest.raises(
                OSError, match=f"TFDS could not (prepare|read) .*glue/rte in {root}"
            ):
                glue.read(task, "train", f"tfds:{root}")
        path.write_bytes(whole)
    glue.read(task, "train", f"tfds:{root}")
