"""Adapters for programs that serve them: what each takes, what would have to change, and the changed form.

All of them start from PEFT's form of an adapter (`interop.peft.to_tensors`) with the settings of a plain
LoRA. The rules are those of the programs' own code, named in the modules.
"""

from collections.abc import Callable, Mapping

from lora_jax.interop.servers import llama_cpp, transformers, vllm
from lora_jax.interop.servers.findings import Config, Finding, Tensors
from lora_jax.interop.servers.uniform import is_uniform, uniform

FINDINGS: Mapping[str, Callable[..., list[Finding]]] = {
    "transformers": transformers.findings,
    "vllm": vllm.findings,
    "llama.cpp": llama_cpp.findings,
}

__all__ = ["FINDINGS", "Config", "Finding", "Tensors", "is_uniform", "uniform"]
