"""Where the converters of adapters may write."""

from __future__ import annotations

from pathlib import Path

from experiments.runs.folder import check_place, is_run
from lora_jax.adapters import DESCRIPTION
from lora_jax.errors import InputError


def check_adapter_folder(output: Path) -> None:
    """Raises InputError if an adapter cannot be written there, or something would be lost."""
    check_place(output)
    if is_run(output):
        raise InputError(f"{output} is the folder of a run; choose another --output")
    if (output / DESCRIPTION).exists():
        raise InputError(
            f"--output={output} exists already and holds an adapter; choose another folder"
        )


def check_new_folder(output: Path) -> None:
    """Raises InputError unless the folder is not there yet, or empty, and may be written."""
    check_place(output)
    if output.exists() and any(output.iterdir()):
        raise InputError(
            f"--output={output} exists already and is not empty; choose another folder"
        )
