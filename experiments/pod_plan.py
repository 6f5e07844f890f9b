"""The name that `experiments.plan` had when it planned TPU slices only; it takes the same options."""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    runpy.run_module("experiments.plan", run_name="__main__", alter_sys=True)
