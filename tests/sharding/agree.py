"""One of two processes, which agree on values, failures and configs; writes what it saw as JSON.

python agree.py FOLDER --hosts=HOST:PORT,INDEX/2
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from experiments.runs import command_line
from experiments.runs import folder as workdirs
from lora_jax.sharding import hosts


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def fail(on: int) -> str:
    with hosts.together():
        if jax.process_index() == on:
            raise FileNotFoundError("no data here")
    return "went on"


def main(folder: Path) -> dict[str, Any]:
    index = jax.process_index()
    calls: list[int] = []

    def broken() -> None:
        raise OSError("disk full")

    def value() -> dict[str, Any]:
        calls.append(index)
        return {"text": "é" * 70000, "number": index}

    def config(rate: float, data: int) -> ConfigDict:
        return ConfigDict({"rate": rate, "mesh": {"data": data}})

    found = hosts.from_main(value)
    return {
        "value": [len(found["text"]), found["number"], calls],
        "error": outcome(lambda: hosts.from_main(broken)),
        "everywhere": [
            hosts.everywhere(True),
            hosts.everywhere(index == 0),
            hosts.everywhere(False),
        ],
        "together": [fail(on=2), *(outcome(lambda on=on: fail(on)) for on in (0, 1))],
        "same config": outcome(lambda: workdirs.finished(folder, config(0.1, 2))),
        "other config": outcome(lambda: workdirs.finished(folder, config(0.1 + index, 2))),
        "claimed": outcome(lambda: workdirs.claim(folder, config(0.1, 2))),
        "another mesh": outcome(lambda: workdirs.finished(folder, config(0.1, 1))),
        "another run": outcome(lambda: workdirs.finished(folder, config(0.2, 2))),
        "after all this": hosts.from_main(lambda: "in step"),
    }


if __name__ == "__main__":
    command_line.join_hosts(sys.argv[2].removeprefix("--hosts="))
    seen = main(Path(sys.argv[1]) / "run")
    (Path(sys.argv[1]) / f"{jax.process_index()}.json").write_text(json.dumps(seen))
    hosts.finish()
