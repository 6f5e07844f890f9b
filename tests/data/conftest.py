"""Fixtures of the data tests."""

from __future__ import annotations

import functools

import pytest

from lora_jax.data import data_to_text


@pytest.fixture(scope="session")
def corpus(real_data):
    """Reads a split of a real corpus: each once, as WebNLG's take seconds."""
    return functools.cache(lambda dataset, split: data_to_text.read(dataset, split, str(real_data)))
