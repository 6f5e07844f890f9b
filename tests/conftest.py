"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import pathlib

import pytest

_BESIDE_REPOSITORY = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data sets: $LORA_JAX_DATA, else ../shared/data beside the repository."""
    folder = pathlib.Path(os.environ.get("LORA_JAX_DATA") or _BESIDE_REPOSITORY)
    if not folder.is_dir():
        pytest.skip(f"real data are not at {folder}; set LORA_JAX_DATA to their folder")
    return folder
