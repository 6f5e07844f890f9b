"""Settings of hypothesis for tests that change files: the same cases in every run, whatever they take."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def fixed_settings(count: int) -> settings:
    """So many cases."""
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
