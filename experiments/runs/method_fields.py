"""The arguments of methods in configs (`method`), with what each may be, for the documents."""

from __future__ import annotations

from typing import get_args

from experiments.runs.fields import Field, Fields
from lora_jax.checks import WIDEST
from lora_jax.low_rank.contraction import Scaling
from lora_jax.methods.bottleneck import MOST_SIZE
from lora_jax.methods.cuts import MOST_LAYERS
from lora_jax.methods.prefix import MOST_TOKENS
from lora_jax.ranges import DROPOUT, Flag, Number, OneOf, OrNone, Whole

_STD = Field(Number(least=0, most=WIDEST), "standard deviation of normal initial values")
_TOO_LARGE = Field(
    OrNone(of=OneOf(("error", "cap", "skip")), none="the default of the targets"),
    "what becomes of a layer that is smaller than the rank",
)
_BIAS = Field(OneOf(("none", "all", "lora_only")), "which biases train too")
# Checked where the methods are made (`lora_jax.methods`), with the same bounds: a test holds them together.
METHOD: Fields = {
    "lora.rank": Field(Whole(), "r of every factor pair; no more than the smaller side of a matrix"),
    "lora.alpha": Field(OrNone(of=Number(above=0), none="the rank"), "the constant of section 4.1"),
    "lora.scaling": Field(OneOf(get_args(Scaling)), "of the update; the second one is rsLoRA's"),
    "lora.init": Field(OneOf(("kaiming", "gaussian")), "initial values of A"),
    "lora.std": _STD,
    "lora.dropout": Field(DROPOUT, "on the input of A"),
    "lora.magnitude": Field(Flag(), "whether the norms of columns train too (DoRA)"),
    "lora.b_bias": Field(Flag(), "whether B has a bias that trains"),
    "lora.lookup_only": Field(
        Flag(), "of a table that is the output layer too: whether the output layer stays as it is"
    ),
    "lora.too_large": _TOO_LARGE,
    "adalora.rank": Field(Whole(), "of every update at the start"),
    "adalora.target_rank": Field(Whole(), "what is left of it at the end, on average"),
    "adalora.alpha": Field(OrNone(of=Number(above=0), none="the rank"), "the scale is alpha / rank"),
    "adalora.warm_up": Field(Whole(least=0), "updates at the start without pruning"),
    "adalora.final": Field(Whole(least=0), "updates at the end without another choice of ranks"),
    "adalora.every": Field(Whole(), "updates from one choice of ranks to the next"),
    "adalora.beta1": Field(Number(above=0, below=1), "smoothing of the sensitivity"),
    "adalora.beta2": Field(Number(above=0, below=1), "smoothing of its uncertainty"),
    "adalora.orthogonal": Field(Number(least=0), "weight of the regulariser of A and B"),
    "adalora.dropout": Field(DROPOUT, "on the input of A"),
    "adalora.too_large": _TOO_LARGE,
    "adalora.bias": _BIAS,
    "bitfit.add": Field(Flag(), "linear layers without a bias get one"),
    "lora.bias": _BIAS,
    **{f"adapter_{kind}.size": Field(Whole(most=MOST_SIZE), "of the bottleneck") for kind in "hpld"},
    "adapter_d.layers": Field(Whole(most=MOST_LAYERS), "the last ones, which have adapters"),
    "top_layers.count": Field(Whole(most=MOST_LAYERS), "the last ones, which train"),
    **{
        f"{name}.{kind}": Field(Whole(least=0, most=MOST_TOKENS), f"tokens; not both 0 ({kind})")
        for name in ("prefix_embed", "prefix_layer")
        for kind in ("prefix", "infix")
    },
    "prefix_embed.init": Field(OneOf(("vocabulary", "normal")), "of the tokens"),
}  # fmt: skip
