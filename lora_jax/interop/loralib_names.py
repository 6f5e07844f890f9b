"""What loralib's state dicts call the layers of our models, and how their keys are read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from lora_jax.models.layouts import LAYOUTS

Name = Literal["roberta", "bert", "gpt2"]
FUSED = ("q", "k", "v")  # order of GPT-2's c_attn along its output axis (paper.md, section 1.4)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Names of one architecture in both worlds.

    Attributes:
      name: as in Hugging Face's model_type.
      root: their name of the list of layers; a key is `{root}.{layer}.{module}.lora_A`.
      block: our path of the stacked block.
      modules: their module to our path below `block`, in our order.
      head: their leaf to our leaf, for the task head (all of them or none).
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
    """The linear layers of a stack are those of the published base weights."""
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
ARCHITECTURES: Mapping[str, Architecture] = {
    "roberta": _architecture("roberta", "encoder/layers/block", _ROBERTA_HEAD),
    "bert": _architecture("bert", "encoder/layers/block", {"classifier": "head/output"}),
    "gpt2": _architecture("gpt2", "layers/block", {}, ("attn.c_attn",)),
}


def plain_name(key: str) -> str:
    """A key without what saving added or left out.

    `DistributedDataParallel` puts `module.` in front (the released GPT-2 files have it), and a state
    dict of the inner GPT-2 model starts at `h.`.
    """
    key = key.removeprefix("module.")
    return f"transformer.{key}" if re.match(r"h\.\d+\.", key) else key


def find(keys: Iterable[str]) -> Architecture:
    """The architecture whose layers the factors of a state dict belong to.

    Args:
      keys: plain names.

    Raises:
      ValueError: no factors, or those of a layer that none of ours has; says what it may be.
    """
    factors = [key for key in keys if "lora_" in key]
    if not factors:
        raise ValueError(
            "no key holds lora_A or lora_B, so this is no loralib state dict with factors (a merged "
            f"model has none left); its keys begin {sorted(keys)[:3]}"
        )
    for architecture in ARCHITECTURES.values():
        if any(key.startswith(f"{architecture.root}.") for key in factors):
            return architecture
    if any(re.search(r"\.lora_(embedding_)?[AB]\.", key) for key in factors):
        hint = "; keys like lora_A.weight are PEFT's, which is another format than loralib's"
    else:
        hint = ""
    roots = ", ".join(f"{a.root}.N ({a.name})" for a in ARCHITECTURES.values())
    raise ValueError(
        f"the factors, for example {factors[0]}, belong to no supported layer; supported are the "
        f"layers of {roots}{hint}"
    )


def guess(paths: Iterable[str]) -> Architecture:
    """The architecture of our adapter's leaves; encoders differ in their heads only.

    Raises:
      ValueError: the leaves do not tell.
    """
    paths = set(paths)
    if any(path.startswith(f"{ARCHITECTURES['gpt2'].block}/") for path in paths):
        return ARCHITECTURES["gpt2"]
    for name in ("roberta", "bert"):
        if set(ARCHITECTURES[name].head.values()) <= paths:
            return ARCHITECTURES[name]
    raise ValueError(
        "the adapter holds no head, which would tell RoBERTa from BERT: give the architecture, one "
        f"of {sorted(ARCHITECTURES)}"
    )
