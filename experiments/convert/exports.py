"""Merged models as files of other programs: a GGUF file for llama.cpp, a folder for transformers."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from experiments.convert import merged, reports, sources
from experiments.convert.outputs import check_new_folder
from experiments.convert.sources import Named, Source
from lora_jax import files, partition
from lora_jax.data.tokenizer_files import FILES
from lora_jax.errors import InputError
from lora_jax.gguf.container import SUFFIX
from lora_jax.models import config_json, gguf_export, hub
from lora_jax.models.decoder import Decoder
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.parts import FLOAT, STORED
from lora_jax.models.places import find
from lora_jax.models.published import Published
from lora_jax.partition import Params
from lora_jax.quantisation import bitsandbytes
from lora_jax.quantisation.registry import FORMATS
from lora_jax.quantisation.weight import value_counts
from lora_jax.reading import read_object

SAME = "same"  # --packed: in the form of the base
PACKED = (SAME, *(name for name, form in FORMATS.items() if bitsandbytes.has(form)))
DTYPES = ("float32", "bfloat16", "float16")
# Beside a model's weights and config.json, for what reads the folder.
TOKENIZER_CONFIG = "tokenizer_config.json"
_BESIDE = (*FILES, "tokenizer.model", "chat_template.jinja", "generation_config.json")


def to_gguf(output: Path, named: Named, *, type: str) -> list[str]:
    """Writes a decoder with its adapter merged as a GGUF file.

    Args:
      output: the file to write.
      named: model, a GGUF file, and adapters.
      type: see `gguf_export.TYPES`.

    Returns:
      What was written, in lines.

    Raises:
      FileNotFoundError, ValueError: the input is bad; nothing is written then.
    """
    if output.suffix != SUFFIX:
        raise InputError(f"--output={output} must end in {SUFFIX}")
    base = find(named.model) if named.model else None
    files.check_output(output, [base] if base else [], "--output")
    if output.exists():
        raise InputError(f"--output={output} exists already; choose another file")
    if base:
        gguf_export.check(base, type)
    source = sources.source(named)
    gguf_export.check(source.folder, type)
    if not source.is_decoder:
        raise InputError(
            f"{source.where} has a head for classification, which GGUF files of decoders have no place for; "
            "write a folder (to_hugging_face)"
        )
    files.make_folder(output.parent)
    own = {"tokenizer.chat_template": source.chat_template} if source.chat_template else {}
    anew = source.form not in (FLOAT, STORED)  # the adapter's base is not the file's
    model, tuned = merged.load_both(source) if anew else (merged.load(source), None)
    assert isinstance(model, Decoder)
    written = gguf_export.save(output, model, source.folder, type, own, tuned=tuned)
    rows = reports.of_gguf(written)
    note = (
        f"the change is that of the base as it was held, {source.form}; what {source.form} had rounded off "
        f"the values of {source.folder} before is not in the table"
    )
    lines = [
        f"{output}: {merged.described(source)}",
        *reports.table(rows),
        *([note] if anew else []),
    ]
    lines += _template_note(source)
    if any(not one.same and one.kind.lower() in FORMATS for one in written):
        lines.append("packing the merged weights was another quantisation, with the errors above")
    lines += reports.too_little(rows, "--type=f16")
    if type == gguf_export.STORED and all(one.same for one in written):
        lines.append("every tensor is the base's, byte by byte")
    return lines


def to_hugging_face(output: Path, named: Named, *, dtype: str, packed: str = "") -> list[str]:
    """Writes a model with its adapter merged, and its tokenizer, as a folder of transformers.

    Args:
      output: the folder to write, which is not there yet.
      named: model and adapters.
      dtype: of the weights that are not packed, one of `DTYPES`.
      packed: form that merged matrices are packed in, one of `PACKED`; "" for none.

    Returns:
      What was written, in lines.

    Raises:
      FileNotFoundError, ValueError: the input is bad; nothing is written then.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    if packed and packed not in PACKED:
        raise InputError(
            f"--packed must be one of {', '.join(PACKED)}; got {packed!r}: folders of transformers have no "
            "other packed form. GGUF's blocks are written by to_gguf --type"
        )
    check_new_folder(output)
    source = sources.source(named)
    made, report = _made(source, dtype, packed)
    there = config_json.read(source.folder).values
    ids = {name: there[name] for name in config_json.TOKEN_IDS if name in there}
    files.make_folder(output.parent)
    with files.replaced_folder(output) as new:
        _save(new, made, source, {**ids, "dtype": dtype})
        _add_tokenizer(source, new)
    what = merged.described(source, unpacked=not packed)
    return [
        f"{output}: {what}, {dtype}; transformers reads it with from_pretrained",
        *report,
        *_template_note(source),
        *_class_notes(source, ids),
    ]


def _made(source: Source, dtype: str, packed: str) -> tuple[Published, list[str]]:
    """The model as it is written, and what packing or rounding did, in lines."""
    if packed:
        form = None if packed == SAME else packed
        merged.check_packed(source, form, PACKED[1:])
        model, again = merged.load_packed(source, form)
        return _cast(model, dtype)[0], _packing(reports.of_packed(again))
    if dtype == "float32":  # the merged type
        return _cast(merged.load(source), dtype)[0], []
    model, base = merged.load_both(source)
    cast, rounded = _cast(model, dtype, base)
    if not rounded:
        return cast, []
    return cast, [
        f"what the adapter changed, in {dtype}; all other weights are rounded to it, too:",
        *reports.table(rounded),
        *reports.too_little(rounded, "--dtype=float32"),
    ]


def _save(folder: Path, model: Published, source: Source, settings: dict[str, Any]) -> None:
    if isinstance(model, Decoder):
        hub.save_decoder(folder, model, **settings)
    elif source.outputs is not None:
        hub.save_classifier(folder, model, classes=source.classes()[0], **settings)
    else:
        assert isinstance(model, Classifier)
        hub.save_encoder(folder, model, **settings)


def _packing(report: list[reports.Matrix]) -> list[str]:
    """What packing did, and that it was done."""
    return [
        *reports.table(report),
        "packing the merged weights was another quantisation, with the errors above; a float merge, the "
        "default, has none",
        *reports.too_little(report, "Leaving --packed out"),
    ]


def _cast(
    model: Published, dtype: str, base: Params | None = None
) -> tuple[Published, list[reports.Matrix]]:
    """The model with its weights in another type, but for those that are packed.

    Returns:
      The model, and what rounding did to each weight that differs from the base's.
    """
    params, packed = partition.parameters(model), value_counts(model)
    structure, _, _ = partition.split(model, dict.fromkeys(params, partition.FROZEN))
    result, rows = {}, []
    for path, value in params.items():
        result[path] = value if path in packed else value.astype(jnp.dtype(dtype))
        if not jnp.isfinite(result[path]).all():
            raise InputError(f"{path} has values too large for {dtype}; choose bfloat16 or float32")
        if base and path in base and not jnp.array_equal(base[path], value):
            rows += reports.of_rounded(path, dtype, value, base[path], result[path])
    cast = partition.join(structure, {}, result)
    assert isinstance(cast, Published)
    return cast, rows


def _add_tokenizer(source: Source, folder: Path) -> None:
    """The base's files of the tokenizer, or those made of a GGUF file's vocabulary."""
    if source.folder.suffix == SUFFIX or source.chat_template:
        if source.chat_template:
            source.tokenizer.chat_template = source.chat_template
        source.tokenizer.save_pretrained(folder)
    if source.folder.suffix != SUFFIX:
        for name in _BESIDE:
            if (source.folder / name).is_file() and not (folder / name).exists():
                shutil.copyfile(source.folder / name, folder / name)
    path = folder / TOKENIZER_CONFIG
    if source.outputs is not None and source.max_length is not None:
        values = read_object(path).values if path.is_file() else {}
        text = files.to_json({**values, "model_max_length": source.max_length}) + "\n"
        files.write_bytes(path, text.encode())


def _class_notes(source: Source, ids: Mapping[str, Any]) -> list[str]:
    """What to know of a classifier."""
    notes = [source.classes()[1]]
    if source.outputs is not None:
        cut = f"to {source.max_length} tokens, as the run does (model_max_length)"
        unknown = (
            "as long as the base's tokenizer says: nothing says to what length its run cut them"
        )
        notes.append(f"with truncation=True texts are cut {cut if source.max_length else unknown}")
    of_decoder = source.outputs is not None and not isinstance(source.config, EncoderConfig)
    if of_decoder and ids.get("pad_token_id") is None:
        notes.append(
            "its config.json has no pad_token_id, so transformers takes one text at a time: set "
            "model.config.pad_token_id for more"
        )
    return [note for note in notes if note]


def _template_note(source: Source) -> list[str]:
    return ["the chat template is the run's own, not the base's"] if source.chat_template else []
