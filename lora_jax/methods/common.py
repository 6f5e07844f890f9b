"""What methods share: names of groups, patterns of paths and what they match, and the head's rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from lora_jax import patterns, surgery
from lora_jax.checks import json_values
from lora_jax.method import Insertion, Method
from lora_jax.partition import HEAD, Rule

EMBEDDING = r"(.*/)?embeddings/(word|token)"  # of the encoders and the decoder here
FEED_FORWARD = r"(.*/)?feed_forward"
SUBLAYERS = r"(.*/)?(attention|feed_forward)"
NORMS = (nnx.LayerNorm, nnx.RMSNorm, nnx.BatchNorm, nnx.GroupNorm, nnx.InstanceNorm)
BIAS = Rule(r"(.*/)?bias", "bias", inserted="")  # every pre-trained bias


def method(
    name: str, arguments: Mapping[str, Any], insertions: tuple[Insertion, ...], *rules: Rule
) -> Method:
    """A method of one constructor.

    Args:
      name: of the constructor.
      arguments: of the call, `head` among them: its leaves are a group of their own.
      insertions: what it inserts.
      *rules: groups of the leaves that are not the head's.
    """
    head: tuple[Rule, ...] = ()
    if arguments["head"] not in (None, ""):
        patterns.check(arguments["head"], "'head'")
        head = (Rule(arguments["head"], HEAD),)
    return Method(((name, json_values(arguments)),), insertions, head + rules)


def matching(model: nnx.Module, pattern: str, kind: str) -> dict[str, Any]:
    """The pre-trained modules whose whole paths match, by path.

    Args:
      model: pre-trained or adapted.
      pattern: regular expression for whole paths, or the last names of paths.
      kind: what the pattern is for, for the message.

    Raises:
      ValueError: it matches no path.
    """
    modules = surgery.pretrained_modules(model)
    return {path: modules[path] for path in patterns.matching(pattern, list(modules), kind)}
