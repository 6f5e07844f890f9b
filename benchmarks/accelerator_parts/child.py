"""One part in a process of its own: its memory is freed whatever happens, and its peak is its own.

    python -m benchmarks.accelerator_parts.child --target=MODULE:FUNCTION [--argument=TEXT] --output=FILE.json

`benchmarks.accelerator` starts it. The function gets a `Setting` and the argument, if there is one.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
import traceback
from pathlib import Path

from absl import app, flags

# tensorboardX imports PyTorch where it finds it, which nothing here needs: seconds of each part.
sys.modules.setdefault("torch", None)  # type: ignore[arg-type]

_TARGET = flags.DEFINE_string("target", None, "module:function of the part.", required=True)
_ARGUMENT = flags.DEFINE_string("argument", "", "Its argument.")
_SIZE = flags.DEFINE_string("size", "full", "Size of the models.")
_LIMIT = flags.DEFINE_float("limit", 600, "Seconds that the part may take.")
_SECONDS = flags.DEFINE_float("seconds", 5, "Seconds of every timed loop.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for what it finds.", required=True)


def main(_: list[str]) -> None:
    """Runs the part; an error is part of what it found."""
    begin = time.monotonic()
    # Whoever started this may be gone: no part holds an accelerator for longer than it was given.
    signal.alarm(int(_LIMIT.value) + 10)
    from benchmarks.accelerator_parts import device
    from benchmarks.accelerator_parts.setting import Setting

    setting = Setting(_SIZE.value, begin + _LIMIT.value, _SECONDS.value, Path(_OUTPUT.value))
    try:
        setting.report(device=device.description())
        device.check(setting)
        module, name = _TARGET.value.split(":")
        arguments = [_ARGUMENT.value] if _ARGUMENT.value else []
        getattr(importlib.import_module(module), name)(setting, *arguments)
    except Exception as error:
        trace = "".join(traceback.format_exception(error)[-1:])
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        setting.report(error=trace.strip()[:4000], where=where[:4000])
        raise SystemExit(1) from error


if __name__ == "__main__":
    app.run(main)
