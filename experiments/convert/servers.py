"""Which programs that serve adapters take one of ours, and the adapter in a form that they take."""

from __future__ import annotations

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
    lines = []
    for server, rules in FINDINGS.items():
        found = _found(rules, made)
        lines += [f"{server}: {_verdict(server, found)}", *(f"  - {line(one)}" for one in found)]
    return lines


def _found(rules: Callable[..., list[Finding]], made: peft.AsPeft) -> list[Finding]:
    tied = isinstance(made.base, LlamaConfig) and made.base.tie_word_embeddings
    return rules(made.config, made.tensors, made.base.architecture, tied=tied)


def line(finding: Finding) -> str:
    """A finding in a line."""
    return f"{finding.what}. {finding.remedy[0].upper()}{finding.remedy[1:]}"


def _verdict(server: str, found: Sequence[Finding]) -> str:
    if any(not one.mended for one in found):
        return "no"
    command = f"python -m experiments.adapters export --server={server}"
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
    if server not in TARGETS:
        raise InputError(f"--server must be one of {', '.join(TARGETS)}; got {server!r}")
    _check_output(output, server)
    made = peft.as_peft(adapter, model=model, plain=server != PEFT)
    rules = FINDINGS.get(server)
    found = _found(rules, made) if rules else []
    if refused := [one for one in found if not one.mended]:
        raise InputError(f"{adapter}: " + "; ".join(map(line, refused)))
    config, tensors = made.config, made.tensors
    if rank is not None or (server == VLLM and not is_uniform(config, tensors)):
        config, tensors = uniform(config, tensors, rank)
    if server == LLAMA_CPP:
        assert isinstance(made.base, LlamaConfig)
        files.make_folder(output.parent)
        files.write_pieces(output, llama_cpp.adapter_file(config, tensors, made.base, type))
        how = f"llama-server --model BASE.gguf --lora {output}"
    else:
        peft.AsPeft(config=config, tensors=tensors, base=made.base).write(output)
        how = _how(server, output, max(len(tensors[n["A"]]) for n in factors(tensors).values()))
    return [f"{output}: r={config['r']}, lora_alpha={config['lora_alpha']:g}", f"  {how}",
            *(f"  - {line(one)}" for one in found)]  # fmt: skip


def _check_output(output: Path, server: str) -> None:
    if server != LLAMA_CPP:
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
        most = vllm.max_rank(rank)
        return f"vllm serve BASE --enable-lora --max-lora-rank={most} --lora-modules NAME={output}"
    if server == PEFT:
        return f"peft.PeftModel.from_pretrained(base, {str(output)!r})"
    return f"model.load_adapter({str(output)!r})"
