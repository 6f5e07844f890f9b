"""Merged decoders as files of other programs: a GGUF file for llama.cpp, a folder for transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from experiments.convert import merged
from experiments.runs.folder import check_place
from lora_jax import files, partition
from lora_jax.data.tokenizer_files import FILES
from lora_jax.errors import InputError
from lora_jax.gguf.container import SUFFIX
from lora_jax.models import config_json, gguf_export, hub
from lora_jax.models.decoder import Decoder
from lora_jax.models.gguf_export import STORED, Written
from lora_jax.models.places import find
from lora_jax.quantisation.registry import FORMATS

_ENOUGH = 0.9  # of what an adapter changed
DTYPES = ("float32", "bfloat16", "float16")
# Beside a model's weights and config.json, for what reads the folder.
_BESIDE = (*FILES, "tokenizer.model", "chat_template.jinja", "generation_config.json")


def to_gguf(output: Path, *, run: str, adapter: str, model: str, type: str) -> list[str]:
    """Writes a decoder with its adapter merged as a GGUF file.

    Args:
      output: the file to write.
      run: folder of a run of experiments.tune; "" for none.
      adapter: folder of an adapter or of another run; "" for none.
      model: the base, a GGUF file; "" for the one that run or adapter name.
      type: see `gguf_export.TYPES`.

    Returns:
      What was written, in lines.

    Raises:
      FileNotFoundError, ValueError: the input is bad; nothing is written then.
    """
    if output.suffix != SUFFIX:
        raise InputError(f"--output={output} must end in {SUFFIX}")
    files.check_output(output, [find(model)] if model else [], "--output")
    if output.exists():
        raise InputError(f"--output={output} exists already; choose another file")
    if model:
        gguf_export.check(find(model), type)
    source = merged.source(run, adapter, model)
    gguf_export.check(source.folder, type)
    files.make_folder(output.parent)
    own = {"tokenizer.chat_template": source.chat_template} if source.chat_template else {}
    written = gguf_export.save(output, merged.load(source), source.folder, type, own)
    lines = [f"{output}: {merged.described(source)}", *table(written), *_template_note(source)]
    if any(not one.same and one.kind.lower() in FORMATS for one in written):
        lines.append("packing the merged weights was another quantisation, with the errors above")
    if (kept := _kept(written)) is not None and kept < _ENOUGH:
        lines.append(
            f"{kept:.0%} of what the adapter changed is left in this file: it is finer than the steps of "
            "these types. --type=f16 keeps it"
        )
    if type == STORED and all(one.same for one in written):
        lines.append("every tensor is the base's, byte by byte")
    return lines


def table(written: Sequence[Written]) -> list[str]:
    """What became of the tensors: a line for those of every name and type, and one for all."""
    groups: dict[tuple[str, str], list[Written]] = {}
    for one in written:
        groups.setdefault((one.group, one.kind), []).append(one)
    lines = [f"{'tensors':<32}  type   number  copied  change of base  of it kept  rounding error"]
    for (name, kind), members in groups.items():
        lines.append(_row(name, kind, members))
    return [*lines, _row("all", "", written)]


def _row(name: str, kind: str, members: Sequence[Written]) -> str:
    copied = sum(one.same for one in members)
    kept = _kept(members)
    change, error = (
        _relative((getattr(one, name), one.squares) for one in members)
        for name in ("changes", "errors")
    )
    return (
        f"{name:<32}  {kind:<6} {len(members):>6}  {copied:>6}  {_figure(change):>14}  "
        f"{'' if kept is None else f'{kept:.1%}':>10}  {_figure(error):>14}"
    )


def _figure(value: float) -> str:
    return f"{value:.6f}" if value else "0"


def _kept(members: Sequence[Written]) -> float | None:
    """The share of the change of the base that is in the file; None if there is no change."""
    changes = sum(one.changes for one in members)
    return sum(one.kept for one in members) / changes if changes else None


def _relative(pairs: Iterable[tuple[float, float]]) -> float:
    """Root of the sums of squares of something and of the weights that it is relative to."""
    parts, wholes = zip(*pairs, strict=True)
    return float(np.sqrt(sum(parts) / sum(wholes))) if sum(wholes) else 0.0


def to_hugging_face(output: Path, *, run: str, adapter: str, model: str, dtype: str) -> list[str]:
    """Writes a decoder with its adapter merged, and its tokenizer, as a folder of transformers.

    Args:
      output: the folder to write, which is not there yet.
      run: folder of a run of experiments.tune; "" for none.
      adapter: folder of an adapter or of another run; "" for none.
      model: the base; "" for the one that run or adapter name.
      dtype: of the weights, one of `DTYPES`.

    Returns:
      What was written, in lines.

    Raises:
      FileNotFoundError, ValueError: the input is bad; nothing is written then.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    check_place(output)
    if output.exists() and any(output.iterdir()):
        raise InputError(f"--output={output} is there and not empty; choose another folder")
    source = merged.source(run, adapter, model)
    cast = _cast(merged.load(source), dtype)
    there = config_json.read(source.folder).values
    ids = {name: there[name] for name in config_json.TOKEN_IDS if name in there}
    files.make_folder(output.parent)
    with files.replaced_folder(output) as new:
        hub.save_decoder(new, cast, **ids, dtype=dtype)
        _add_tokenizer(source, new)
    return [
        f"{output}: {merged.described(source)}, {dtype}; transformers reads it with from_pretrained",
        *_template_note(source),
    ]


def _cast(model: Decoder, dtype: str) -> Decoder:
    """The model with its weights in another type."""
    params = partition.parameters(model)
    structure, _, _ = partition.split(model, dict.fromkeys(params, partition.FROZEN))
    result = {}
    for path, value in params.items():
        result[path] = value.astype(jnp.dtype(dtype))
        if not jnp.isfinite(result[path]).all():
            raise InputError(f"{path} has values too large for {dtype}; choose bfloat16 or float32")
    cast = partition.join(structure, {}, result)
    assert isinstance(cast, Decoder)
    return cast


def _add_tokenizer(source: merged.Source, folder: Path) -> None:
    """The base's files of the tokenizer, or those made of a GGUF file's vocabulary."""
    if source.folder.suffix == SUFFIX or source.chat_template:
        if source.chat_template:
            source.tokenizer.chat_template = source.chat_template
        source.tokenizer.save_pretrained(folder)
    if source.folder.suffix != SUFFIX:
        for name in _BESIDE:
            if (source.folder / name).is_file() and not (folder / name).exists():
                shutil.copyfile(source.folder / name, folder / name)


def _template_note(source: merged.Source) -> list[str]:
    return ["the chat template is the run's own, not the base's"] if source.chat_template else []
