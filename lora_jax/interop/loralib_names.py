"""The names of our models' layers in loralib's state dicts, and how to read their keys."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from lora_jax.errors import InputError
from lora_jax.models.layouts import LAYOUTS

Name = Literal["roberta", "bert", "deberta-v2", "gpt2"]
FUSED = ("q", "k", "v")  # order of GPT-2's c_attn along its output axis (paper.md, section 1.4)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Names of one architecture's layers, in loralib's state dicts (theirs) and in our models (ours).

    Attributes:
      name: the model_type of Hugging Face.
      root: their name of the list of layers; a key is `{root}.{layer}.{module}.lora_A`.
      block: our path of the stacked block.
      modules: their modules to our paths below `block`, in our order.
      head: their leaves of the task head to our leaves; a file has all of them or none.
      fused: their modules that are a `MergedLinear` of the parts `FUSED`.
    """

    name: Name
    root: str
    block: str
    modules: Mapping[str, str]
    head: Mapping[str, str]
    fused: tuple[str, ...] = ()


def _architecture(
    name: Name, block: str, head: Mapping[str, str], fused: tuple[str, ...] = ()
) -> Architecture:
    """Takes the linear layers of the block from the layout of the published base weights."""
    layout = LAYOUTS[name]
    modules, roots = {}, set()
    for path, template in layout.names.items():
        root, layered, module = template.partition(".{}.")
        if layered and not path.endswith("/norm"):
            modules[module] = path.removeprefix(f"{block}/")
            roots.add(layout.prefix + root)
    (root,) = roots
    leaves = {
        f"{theirs}.{leaf}": f"{ours}/{'kernel' if leaf == 'weight' else leaf}"
        for theirs, ours in head.items()
        for leaf in ("weight", "bias")
    }
    return Architecture(name, root, block, modules, leaves, fused)


_ROBERTA_HEAD = {"classifier.dense": "head/dense", "classifier.out_proj": "head/output"}
_DEBERTA_HEAD = {"pooler.dense": "head/dense", "classifier": "head/output"}
ARCHITECTURES: Mapping[str, Architecture] = {
    "roberta": _architecture("roberta", "encoder/layers/block", _ROBERTA_HEAD),
    "bert": _architecture("bert", "encoder/layers/block", {"classifier": "head/output"}),
    "deberta-v2": _architecture("deberta-v2", "encoder/layers/block", _DEBERTA_HEAD),
    "gpt2": _architecture("gpt2", "layers/block", {}, ("attn.c_attn",)),
}


def plain_name(key: str) -> str:
    """The key of a parameter whatever the way in which the model was saved.

    `DistributedDataParallel` puts `module.` in front (the released GPT-2 files have it), and a state
    dict of the inner GPT-2 model starts at `h.`.
    """
    key = key.removeprefix("module.")
    return f"transformer.{key}" if re.match(r"h\.[0-9]+\.", key) else key


def find(keys: Iterable[str]) -> Architecture:
    """The architecture whose layers the factors of a state dict belong to.

    Args:
      keys: plain names (see `plain_name`).

    Raises:
      ValueError: there are no factors, or they belong to layers of none of our models; the message
        says what the file may be.
    """
    keys = sorted(keys)
    factors = [key for key in keys if "lora_" in key]
    if not factors:
        raise InputError(
            "no key contains lora_A or lora_B, so this is not a loralib state dict with factors (a "
            f"merged model has none); the first keys are {keys[:3]}"
        )
    for architecture in ARCHITECTURES.values():
        if any(key.startswith(f"{architecture.root}.") for key in factors):
            return architecture
    if any(re.search(r"\.lora_(embedding_)?[AB]\.", key) for key in factors):
        hint = "; keys like lora_A.weight are PEFT's, whose format is not loralib's"
    else:
        hint = ""
    roots = ", ".join(f"{a.root}.N ({a.name})" for a in ARCHITECTURES.values())
    raise InputError(
        f"the factors, for example {factors[0]}, belong to no supported layer; supported are the "
        f"layers of {roots}{hint}"
    )


def guess(paths: Iterable[str]) -> Architecture:
    """The architecture of an adapter of ours, by the names of its head, in which encoders differ.

    Those of DeBERTa's are RoBERTa's, so it is never found: it must be said.

    Args:
      paths: paths of the adapter's leaves.

    Raises:
      ValueError: the paths fit both encoders.
    """
    paths = set(paths)
    if any(path.startswith(f"{ARCHITECTURES['gpt2'].block}/") for path in paths):
        return ARCHITECTURES["gpt2"]
    for name in ("roberta", "bert"):
        if set(ARCHITECTURES[name].head.values()) <= paths:
            return ARCHITECTURES[name]
    raise InputError(
        "the adapter holds no head, which would tell RoBERTa from BERT: give the architecture, one "
        f"of {sorted(ARCHITECTURES)}"
    )
