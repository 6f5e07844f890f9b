"""Runs the commands of items, one after the other."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from experiments.reproduce import outcome
from experiments.reproduce.items import Item, command, folder
from experiments.reproduce.outcome import Outcome
from lora_jax.errors import InputError

_ROOT = Path(__file__).resolve().parents[2]  # of the project, where configs lie


def run(
    items: Sequence[Item],
    root: Path,
    sources: Mapping[str, str],
    say: Callable[[object], None],
    done: Callable[[Mapping[str, Outcome]], None],
) -> None:
    """Runs every command and reads what it left.

    An item's command is a program of its own: it goes on where it was interrupted, reads back what is
    finished, and refuses a folder of other settings or data.

    Args:
      items: what an item needs stands before it.
      root: the folder of all items.
      sources: folders of data, see `items.SOURCES`.
      say: prints a line.
      done: is given all outcomes so far after every item.

    Raises:
      InputError: data are not named (before anything is run), or a command failed.
    """
    root = root.absolute()
    named = {name: str(Path(path).absolute()) for name, path in sources.items()}
    commands = {item.id: command(item, root, named) for item in items}
    results: dict[str, Outcome] = {}
    for item in (bar := tqdm(items, desc="items", disable=None)):
        bar.set_postfix_str(item.id)
        say(f"{item.id}: python {shlex.join(commands[item.id])}")
        _call(item, commands[item.id])
        results[item.id] = outcome.read(item, folder(root, item.id))
        done(results)


def _call(item: Item, arguments: Sequence[str]) -> None:
    paths = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    if ended.returncode < 0 or ended.returncode == 130:
        raise KeyboardInterrupt
    if ended.returncode:
        raise InputError(
            f"{item.id} ended with status {ended.returncode}: its own message stands above. Mend that and "
            "give the same command again; what is finished is kept"
        )
