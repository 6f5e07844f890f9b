"""What all tests with random files share."""

from __future__ import annotations

import logging

import pytest


@pytest.fixture(autouse=True)
def _no_warnings():
    """The library and transformers warn of odd files, which here are thousands."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)
