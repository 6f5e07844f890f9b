"""What a path is that was given as an adapter and is none: a message that says what to do with it."""

from __future__ import annotations

from pathlib import Path

_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".safetensors")
_OF_PEFT = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_OF_MODEL = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)  # fmt: skip
_OWN = "An adapter of lora_jax is a folder with adapter.json and adapter.safetensors"


def what_else(path: Path) -> str | None:
    """What a path without adapter.json is, and the recipe; None if that cannot be told.

    Args:
      path: given as the folder of an adapter.
    """
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        return None
    names = {entry.name for entry in path.iterdir()}
    if found := [name for name in _OF_PEFT if name in names]:
        return (
            f"{path} is an adapter of PEFT (it holds {found[0]}), whose files are others. {_OWN}. Convert "
            f"it: python -m experiments.convert from_peft --adapter={path} --model=BASE --output=DIR"
        )
    if found := [name for name in _OF_MODEL if name in names]:
        loralib = f". If {found[0]} is a state dict of loralib, {_convert(path / found[0])}"
        return (
            f"{path} is the folder of a model (it holds {found[0]}), not of an adapter. {_OWN}. Name it as "
            f"the model instead{loralib if found[0].endswith('.bin') else ''}"
        )
    if found := sorted(name for name in names if name.endswith(_WEIGHTS) and name[0] != "."):
        if "adapter.safetensors" in names:
            return None
        return f"{path} holds {found[0]} and no adapter.json. {_OWN}. {_loralib(path / found[0])}"
    if (path / "model" / "model.safetensors").is_file():
        return f"{path} is a run that trained a whole model, {path / 'model'}; it has no adapter"
    seeds = sorted(str(folder) for folder in path.glob("seed_*/adapter"))
    if seeds or {"config.json", "result.json", "metrics.jsonl"} & names:
        finished = f"Adapters of its seeds: {', '.join(seeds[:5])}" if seeds else "It has none yet"
        return (
            f"{path} is the folder of a run without an adapter, which comes at its end. {finished}. Give "
            "the command of the run again to finish it"
        )
    # Of ranks, or of the points of a sweep.
    found = [str(place.parents[1]) for place in sorted(path.glob("*/adapter/adapter.json"))]
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        return f"{path} holds several runs; name one of them: {', '.join(found[:5])}{more}"
    return None


def _file(path: Path) -> str:
    if path.name in ("adapter.json", "adapter.safetensors"):
        return f"{path} is a file of an adapter; give the folder that holds it, {path.parent}"
    if path.suffix in _WEIGHTS:
        return f"{path} is a file of weights. {_OWN}. {_loralib(path)}"
    return f"{path} is a file. {_OWN}"


def _loralib(path: Path) -> str:
    return f"If {path.name} is a state dict of loralib, {_convert(path)}"


def _convert(path: Path) -> str:
    return (
        f"convert it: python -m experiments.convert from_loralib --checkpoint={path} --alpha=NUMBER "
        "--model=BASE --output=DIR"
    )
