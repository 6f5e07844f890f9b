"""The arguments of methods in configs (`method`), with what each may be, for the documents."""

from __future__ import annotations

from typing import get_args

from experiments.runs.fields import Field, Fields
from lora_jax.checks import WIDEST
from lora_jax.low_rank.contraction import Init, Scaling
from lora_jax.low_rank.settings import Gradient
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
    "lora.init": Field(OneOf(get_args(Init)), "initial values of A, or of both factors"),
    "lora.std": _STD,
    "lora.dropout": Field(DROPOUT, "on the input of A"),
    "lora.magnitude": Field(Flag(), "whether the norms of columns train too (DoRA)"),
    "lora.b_rate": Field(Number(above=0), "learning rate of B, as times that of A (LoRA+: 16)"),
    "lora.gradient": Field(OneOf(get_args(Gradient)), "what becomes of the gradients of A and B"),
    "lora.svd_iterations": Field(
        Whole(least=0, most=1000), "of an approximate decomposition for pissa; 0 is the exact one"
    ),
    "lora.gamma": Field(Number(above=0), "of lora_ga: a larger one is a smaller start"),
    "lora.seed": Field(Whole(least=0), "of the frozen A of lora_fa"),
    "lora.b_bias": Field(Flag(), "whether B has a bias that trains"),
    "lora.lookup_only": Field(
        Flag(), "of a table that is the output layer too: whether the output layer stays as it is"
    ),
    **{
        f"{name}.{field}": allowed
        for name in ("loha", "lokr")
        for field, allowed in (
            ("rank", Field(Whole(), "r of every product")),
            ("alpha", Field(OrNone(of=Number(above=0), none="the rank"), "the update is scaled by alpha/r")),
            ("scaling", Field(OneOf(get_args(Scaling)), "of the update")),
            ("dropout", Field(DROPOUT, "on the input of the update")),
            ("too_large", _TOO_LARGE),
            ("bias", _BIAS),
        )
    },
    "lokr.factor": Field(Whole(least=-1), "first of the two numbers that inputs divide into; -1: any"),
    "lokr.decompose_both": Field(Flag(), "whether the first matrix is a product of two, too"),
    "vera.rank": Field(Whole(), "length of the vector d; it may be larger than a matrix"),
    "vera.d_initial": Field(Number(above=0), "what the vector d starts with"),
    "vera.seed": Field(Whole(least=0), "from which the shared matrices are drawn"),
    "vera.fan_in": Field(
        Whole(least=0), "number of inputs that the size of A is for; 0 is the largest of the layers"
    ),
    "vera.dropout": Field(DROPOUT, "on the input of A"),
    "vera.bias": _BIAS,
    "ia3.bias": _BIAS,
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
