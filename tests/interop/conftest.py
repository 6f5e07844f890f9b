"""The bases of the tests of PEFT's adapters, written and read once."""

from __future__ import annotations

import peft_models
import pytest

from experiments.convert import peft as convert


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    peft_models.write_bases(root)
    return root


@pytest.fixture
def read_once(monkeypatch):
    """A base is only read; its head would be compiled each time."""
    monkeypatch.setattr(convert, "Base", peft_models.read_base)
