"""Digests of data: what tells texts, arrays and files from others of the same size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lora_jax.errors import InputError


def of_texts(texts: Iterable[str], labels: Any = None) -> str:
    """The digest of texts in their order, and of an array of labels beside them."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d " % len(content))
        digest.update(content)
    if labels is not None:
        _add_array(digest, np.asarray(labels))
    return digest.hexdigest()


def of_arrays(tree: Any) -> str:
    """The digest of a tree of arrays: paths, types, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{jax.tree_util.keystr(path)} ".encode())
        _add_array(digest, np.asarray(leaf))
    return digest.hexdigest()


def of_sequences(sequences: Sequence[np.ndarray]) -> str:
    """The digest of arrays of different lengths, such as token ids."""
    digest = hashlib.sha256()
    for sequence in sequences:
        _add_array(digest, np.asarray(sequence))
    return digest.hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(paths: Iterable[Path]) -> str:
    """The digest of files: names and contents, in the order of their names."""
    ordered = sorted(paths, key=lambda path: path.name)
    return of_texts(part for path in ordered for part in (path.name, of_file(path)))


def _add_array(digest: hashlib._Hash, array: np.ndarray) -> None:
    digest.update(f"{array.dtype} {array.shape} ".encode())
    if array.dtype == object:
        raise InputError(
            f"arrays of Python objects ({array.shape}) cannot be told apart by a digest"
        )
    digest.update(np.ascontiguousarray(array).tobytes())
