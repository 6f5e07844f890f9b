"""The adaptation methods of the paper, by name.

    method = lora(r".*/(query|value)", rank=8, alpha=16, head=r"head/.*")
    adapted = method.insert(model, jax.random.key(0))
    print(method.summary(adapted))

Every constructor takes `head`, a regular expression for the paths of the task head's leaves. The head
is a group of its own in every method, because the paper's counts leave it out (Table 2).
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lora_jax.checks import integer
from lora_jax.insertions.bottleneck import Activation, BottleneckInsertion
from lora_jax.insertions.cut import CutInsertion, last_layers
from lora_jax.insertions.low_rank import LowRankInsertion, plain, update
from lora_jax.insertions.special_tokens import Init, PrefixEmbedInsertion, PrefixLayerInsertion
from lora_jax.method import Insertion, Method
from lora_jax.partition import Rule

HEAD = "head"
EMBEDDING = r"(.*/)?embeddings/(word|token)"  # of the encoders and the decoder here
FEED_FORWARD = r"(.*/)?feed_forward"
SUBLAYERS = r"(.*/)?(attention|feed_forward)"
_OWN = r"(?!(.*/)?(lora|adapter|special)/)"  # of the model, not what another method put in
_BIAS = _OWN + r"(.*/)?bias"
_ADAPTER = Rule(r"(.*/)?adapter/(norm|down|up)/.*", "adapter")
_PREFIX = Rule(r"(.*/)?special/embedding", "prefix")


def _method(
    name: str, arguments: Mapping[str, Any], insertions: tuple[Insertion, ...], *rules: Rule
) -> Method:
    head = (Rule(arguments["head"], HEAD),) if arguments["head"] else ()
    return Method(((name, plain(arguments)),), insertions, head + rules)


def full(head: str | None = None) -> Method:
    """Full fine-tuning: every parameter trains. Groups: `base`, and `head` if given."""
    return _method("full", {"head": head}, (), Rule(".*", "base"))


def head_only(head: str) -> Method:
    """Trains the task head on the frozen encoder. Group: `head`."""
    return _method("head_only", {"head": head}, ())


def bitfit(head: str | None = None) -> Method:
    """BitFit (Zaken et al. 2021; paper, section 5.1): every pre-trained bias trains. Group: `bias`."""
    return _method("bitfit", {"head": head}, (), Rule(_BIAS, "bias"))


def lora(
    targets: str | Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    rank: int = 8,
    alpha: float | None = None,
    scaling: Literal["alpha/r", "alpha/sqrt(r)"] = "alpha/r",
    init: Literal["kaiming", "gaussian"] = "kaiming",
    std: float = 0.02,
    dropout: float = 0.0,
    parts: Sequence[str] = (),
    fused: Sequence[str] = (),
    fused_sizes: Sequence[int] = (),
    bias: Literal["none", "all", "lora_only"] = "none",
    head: str | None = None,
) -> Method:
    """LoRA (Hu et al. 2021, section 4.1). Groups: `lora`, and `bias` and `head` if asked for.

    Args:
      targets: regular expressions for the whole paths of the layers to adapt. A mapping gives
        arguments per expression that replace those below:
        `{".*/qkv": {"rank": 4, "parts": ("q", "v"), "fused": ("q", "k", "v")}, ".*/output": {}}`.
      rank: r, per matrix, and per part of a fused one.
      alpha: the constant of section 4.1; the default is the rank, which makes the scale 1.
      scaling: `alpha/r`, or rsLoRA's `alpha/sqrt(r)`.
      init: start of A; `kaiming` as loralib, `gaussian` N(0, std^2) as the paper. B starts at zero.
      std: standard deviation of `gaussian`.
      dropout: rate on the branch's input; takes effect after `layers.seed_dropout`.
      parts, fused: of a fused projection, the parts to adapt and the names of all, in order; each
        adapted part has factors of its own.
      fused_sizes: sizes of the parts where they are not equal.
      bias: which bias vectors train: none, all, or those of the adapted layers.
      head: regular expression for the task head's leaves.

    Raises:
      ValueError: an argument is out of range (rank and alpha are checked again against each layer).
    """
    if isinstance(targets, str):
        targets = [targets]
    if not targets:
        raise ValueError("lora needs at least one target pattern")
    per_target = dict(targets) if isinstance(targets, Mapping) else {t: {} for t in targets}
    shared = {
        "rank": rank, "alpha": alpha, "scaling": scaling, "init": init, "std": std,
        "dropout": dropout, "parts": parts, "fused": fused, "fused_sizes": fused_sizes,
    }  # fmt: skip
    updates = tuple((p, update({**shared, **own}, p)) for p, own in per_target.items())
    rules = [Rule(r"(.*/)?lora/(.*/)?[ab]", "lora")]
    if bias == "all":
        rules.append(Rule(_BIAS, "bias"))
    elif bias == "lora_only":
        whole = ["bias"] * any(re.fullmatch(p, "") for p in per_target)  # the root is a layer
        rules.append(Rule("|".join([*(f"(?:{p})/bias" for p in per_target), *whole]), "bias"))
    elif bias != "none":
        raise ValueError(f"bias must be 'none', 'all' or 'lora_only', got {bias!r}")
    resolved = {pattern: dataclasses.asdict(own) for pattern, own in updates}
    arguments = {"targets": resolved, "bias": bias, "head": head}
    return _method("lora", arguments, (LowRankInsertion(updates),), *rules)


def top_layers(count: int = 2, head: str | None = None) -> Method:
    """The last `count` layers train (FT-Top2 of Tables 3, 13 and 14). Group: `top`.

    The final LayerNorm and the embeddings stay frozen, which gives the paper's count.
    """
    count = integer("count", count)
    top = Rule(_OWN + last_layers(count) + "/.*", "top")
    return _method("top_layers", {"count": count, "head": head}, (CutInsertion(count),), top)


def adapter_h(
    size: int,
    *,
    activation: Activation = "swish",
    std: float = 0.02,
    targets: str = SUBLAYERS,
    head: str | None = None,
) -> Method:
    """Adapter H (Houlsby et al. 2019): after attention and after feed-forward. Group: `adapter`.

    Args:
      size: width of the bottleneck.
      activation: its nonlinearity; the public code has swish.
      std: of the kernels' initial values, see `insertions.bottleneck`.
      targets: paths of the sublayers.
      head: see the module's docstring.
    """
    own = BottleneckInsertion(targets, "houlsby", size, activation, std)
    return _adapter("adapter_h", own, head)


def adapter_p(
    size: int,
    *,
    activation: Activation = "relu",
    std: float = 0.02,
    targets: str = FEED_FORWARD,
    head: str | None = None,
) -> Method:
    """Adapter P (Pfeiffer et al. 2021): after feed-forward. Group: `adapter`; see `adapter_h`."""
    own = BottleneckInsertion(targets, "pfeiffer", size, activation, std)
    return _adapter("adapter_p", own, head)


def adapter_l(
    size: int,
    *,
    activation: Activation = "relu",
    std: float = 0.02,
    targets: str = FEED_FORWARD,
    head: str | None = None,
) -> Method:
    """Adapter L (Lin et al. 2020): after the block, with a LayerNorm of its own; see `adapter_h`."""
    own = BottleneckInsertion(targets, "lin", size, activation, std)
    return _adapter("adapter_l", own, head)


def _adapter(name: str, own: BottleneckInsertion, head: str | None) -> Method:
    arguments = {
        "size": own.size, "activation": own.activation, "std": own.std, "targets": own.targets,
        "head": head,
    }  # fmt: skip
    return _method(name, arguments, (own,), _ADAPTER)


def adapter_d(
    size: int,
    layers: int,
    *,
    activation: Activation = "relu",
    std: float = 0.02,
    head: str | None = None,
) -> Method:
    """Adapter D (AdapterDrop, Rücklé et al. 2021): Adapter P in the last `layers` layers only.

    The layers below have no adapter, so neither does training compute gradients in them.
    """
    layers = integer("layers", layers)
    arguments = {
        "size": size, "layers": layers, "activation": activation, "std": std, "head": head
    }  # fmt: skip
    targets = last_layers(layers) + "/feed_forward"
    own = BottleneckInsertion(targets, "pfeiffer", size, activation, std)
    return _method("adapter_d", arguments, (CutInsertion(layers), own), _ADAPTER)


def prefix_embed(
    prefix: int,
    infix: int = 0,
    *,
    init: Init = "vocabulary",
    std: float = 0.02,
    tokens: str = EMBEDDING,
    head: str | None = None,
) -> Method:
    """Prefix-embedding tuning (paper, section 5.1): special tokens' embeddings. Group: `prefix`.

    Args:
      prefix: tokens before every example (l_p).
      infix: tokens behind its input (l_i). The data must have both, see `Method.special`.
      init: rows of the vocabulary at random, or `normal`; the paper does not say.
      std: of `normal`.
      tokens: path of the word embedding.
      head: see the module's docstring.
    """
    own = PrefixEmbedInsertion(prefix, infix, tokens, std, init)
    arguments = {
        "prefix": prefix, "infix": infix, "init": init, "std": std, "tokens": tokens, "head": head
    }  # fmt: skip
    return _method("prefix_embed", arguments, (own,), _PREFIX)


def prefix_layer(
    prefix: int,
    infix: int = 0,
    *,
    std: float = 0.02,
    tokens: str = EMBEDDING,
    head: str | None = None,
) -> Method:
    """Prefix-layer tuning (paper, section 5.1): special tokens' activations in every layer.

    Group: `prefix`. Arguments as in `prefix_embed`; initial values are N(0, std^2).
    """
    own = PrefixLayerInsertion(prefix, infix, tokens, std)
    arguments = {"prefix": prefix, "infix": infix, "std": std, "tokens": tokens, "head": head}
    return _method("prefix_layer", arguments, (own,), _PREFIX)


CONSTRUCTORS: Mapping[str, Callable[..., Method]] = {
    "full": full,
    "head_only": head_only,
    "bitfit": bitfit,
    "top_layers": top_layers,
    "lora": lora,
    "adapter_h": adapter_h,
    "adapter_p": adapter_p,
    "adapter_l": adapter_l,
    "adapter_d": adapter_d,
    "prefix_embed": prefix_embed,
    "prefix_layer": prefix_layer,
}


def create(name: str, plus: Mapping[str, Any] | None = None, **arguments: Any) -> Method:
    """Builds a method by the name of its constructor, as configs name it.

    Args:
      name: of the constructor.
      plus: name and arguments of a second method, for a combination.
      arguments: of the constructor.

    Raises:
      ValueError: unknown name; the message lists the known ones.
      TypeError: unknown or missing arguments.
    """
    if name not in CONSTRUCTORS:
        raise ValueError(f"unknown method {name!r}; known methods are {sorted(CONSTRUCTORS)}")
    known = inspect.signature(CONSTRUCTORS[name]).parameters
    unknown = sorted(set(arguments) - set(known))
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in arguments]
    if unknown or missing:
        raise TypeError(
            f"method {name!r} takes {list(known)}; unknown {unknown}, missing {missing}"
        )
    method = CONSTRUCTORS[name](**arguments)
    return method + create(**plus) if plus else method


def from_json(description: Sequence[Mapping[str, Any]]) -> Method:
    """The inverse of `Method.to_json`."""
    method = create(description[0]["name"], **description[0]["arguments"])
    for part in description[1:]:
        method = method + create(part["name"], **part["arguments"])
    return method
