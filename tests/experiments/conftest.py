"""What the tests of commands share."""

import pytest

from lora_jax.training import AdaptedModel

VERIFY = AdaptedModel.verify


@pytest.fixture(autouse=True, scope="module")
def _verified_elsewhere():
    """Runs inside a test's own process are not verified, which compiles a program for each.

    Runs that a test starts as a command are, and so are those of tests that use `verified`.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdaptedModel, "verify", lambda *_: None)
        yield


@pytest.fixture
def verified(monkeypatch):
    """Runs are verified as by default."""
    monkeypatch.setattr(AdaptedModel, "verify", VERIFY)
