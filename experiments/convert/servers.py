"""Which programs that serve adapters take one of ours, and the adapter in a form that they take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.convert import peft
from experiments.convert.outputs import check_new_folder
from lora_jax import files
from lora_jax.errors import InputError
from lora_jax.gguf.container import SUFFIX
from lora_jax.interop.servers import FINDINGS, Finding, is_uniform, llama_cpp, uniform, vllm
from lora_jax.interop.servers.uniform import factors
from lora_jax.models.llama_config import LlamaConfig
from lora_jax.models.parts import FLOAT

PEFT, LLAMA_CPP, VLLM = "peft", "llama.cpp", "vllm"
TARGETS = (PEFT, *FINDINGS)


def profile(adapter: Path, model: str | None = None) -> list[str]:
    """Whether each program takes the adapter, what would have to change, and what the export changes.

    Args:
      adapter: an adapter folder, or a run folder with one.
      model: folder or hub name of the base; None for the one that the adapter names.

    Raises:
      FileNotFoundError, ValueError: the input is bad, or not even PEFT has a place for it.
    """
    made = peft.as_peft(adapter, model=model, plain=True)
    lines = [note.strip(" -") for note in _notes(made)]
    for server, rules in FINDINGS.items():
        found = _found(rules, made)
        verdict = _verdict(adapter, server, found)
        lines += [f"{server}: {verdict}", *(f"  - {line(one)}" for one in found)]
    return lines


def _found(rules: Callable[..., list[Finding]], made: peft.AsPeft) -> list[Finding]:
    tied = isinstance(made.base, LlamaConfig) and made.base.tie_word_embeddings
    return rules(made.config, made.tensors, made.base.architecture, tied=tied)


def line(finding: Finding) -> str:
    """A finding in a line."""
    return f"{finding.what}. {finding.remedy[0].upper()}{finding.remedy[1:]}"


def _verdict(adapter: Path, server: str, found: Sequence[Finding]) -> str:
    if any(not one.mended for one in found):
        return "no"
    output = "FILE.gguf" if server == LLAMA_CPP else "DIR"
    command = f"python -m experiments.adapters export {adapter} --server={server} --output={output}"
    if server == LLAMA_CPP:
        return f"yes, as a GGUF file: {command}"
    return f"with these changes: {command}" if found else f"yes: {command}"


def export(
    adapter: Path,
    output: Path,
    server: str,
    *,
    model: str | None = None,
    rank: int | None = None,
    type: str = "f32",
) -> list[str]:
    """Writes the adapter in the form of a program, with the same logits; what was written, in lines.

    Args:
      adapter: an adapter folder, or a run folder with one.
      output: the folder to write, or the GGUF file for llama.cpp.
      server: one of `TARGETS`.
      model: folder or hub name of the base; None for the one that the adapter names.
      rank: pads all factors to it; None leaves them, but for vLLM, which gets the largest for all.
      type: of the factors in a GGUF file, f32 or f16.

    Raises:
      FileNotFoundError, ValueError: the input is bad, or the program cannot take the adapter; the message
        says why, and nothing is written.
    """
    _check_arguments(output, server, type)
    made = peft.as_peft(adapter, model=model, plain=server != PEFT or rank is not None)
    if made.config["peft_type"] != "LORA":
        raise InputError(
            f"{adapter} is {made.config['peft_type']} in PEFT, and the exports for programs are of LoRA: "
            f"python -m experiments.convert to_peft --adapter={adapter} --output=DIR"
        )
    found = _refused(adapter, server, made)
    if rank is not None or (server == VLLM and not is_uniform(made.config, made.tensors)):
        config, tensors = uniform(made.config, made.tensors, rank)
        made = dataclasses.replace(made, config=config, tensors=tensors)
        found += [one for one in _refused(adapter, server, made) if one not in found]
    how = _how(
        server, output, max(len(made.tensors[n["A"]]) for n in factors(made.tensors).values())
    )
    if server == LLAMA_CPP:
        assert isinstance(made.base, LlamaConfig)
        pieces = llama_cpp.adapter_file(made.config, made.tensors, made.base, type)
        files.make_folder(output.parent)
        files.write_pieces(output, pieces)
    else:
        made.write(output)
    return [f"{output}: r={made.config['r']}, lora_alpha={made.config['lora_alpha']:g}", f"  {how}",
            *_notes(made), *(f"  - {line(one)}" for one in found)]  # fmt: skip


def _refused(adapter: Path, server: str, made: peft.AsPeft) -> list[Finding]:
    """What the export mends; raises InputError where there is something else."""
    rules = FINDINGS.get(server)
    found = _found(rules, made) if rules else []
    if refused := [one for one in found if not one.mended]:
        raise InputError(f"{adapter}: " + "; ".join(map(line, refused)))
    return found


def _notes(made: peft.AsPeft) -> list[str]:
    """What else there is to know."""
    name = str(made.config.get("base_model_name_or_path"))
    lines = []
    if name.startswith("package:") or name.endswith(SUFFIX):
        lines.append(
            f"  - BASE is {name}; as a folder: python -m experiments.convert to_hugging_face --model={name} "
            "--output=BASE"
        )
    if made.base.base_format == FLOAT:
        return lines
    return [
        *lines,
        f"  - it was trained over its base held as {made.base.base_format}: over another form of it the "
        "logits are those of that form",
    ]


def _check_arguments(output: Path, server: str, type: str) -> None:
    if server not in TARGETS:
        raise InputError(f"--server must be one of {', '.join(TARGETS)}; got {server!r}")
    if server != LLAMA_CPP:
        if type != "f32":
            raise InputError(
                f"--type={type} is of GGUF files (--server=llama.cpp); folders keep the adapter's type"
            )
        check_new_folder(output)
        return
    if output.suffix != SUFFIX:
        raise InputError(f"--output={output} must end in {SUFFIX}")
    files.check_output(output, [], "--output")
    if output.exists():
        raise InputError(f"--output={output} exists already; choose another file")


def _how(server: str, output: Path, rank: int) -> str:
    """How the program is given the folder."""
    if server == VLLM:
        most = vllm.max_rank(rank)  # raises for a rank that is too large
        return f"vllm serve BASE --enable-lora --max-lora-rank={most} --lora-modules NAME={output}"
    if server == LLAMA_CPP:
        return f"llama-server --model BASE.gguf --lora {output}"
    if server == PEFT:
        return f"peft.PeftModel.from_pretrained(base, {str(output)!r})"
    return f"model.load_adapter({str(output)!r})"
