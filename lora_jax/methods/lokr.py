"""LoKr (Yeh et al. 2023, LyCORIS, arXiv 2309.14859): Kronecker products of two small matrices."""

from __future__ import annotations

from collections.abc import Sequence

from lora_jax.checks import Integer, Real
from lora_jax.low_rank.contraction import Scaling
from lora_jax.low_rank.lokr_settings import LoKrSettings
from lora_jax.low_rank.targets import Exclude, Layers, Targets
from lora_jax.low_rank.update_settings import TooLarge
from lora_jax.method import Method
from lora_jax.methods.updates import Bias, settings_by_target, update_method


def lokr(
    targets: Targets,
    *,
    rank: Integer = 8,
    alpha: Real | None = None,
    factor: Integer = -1,
    decompose_both: bool = False,
    scaling: Scaling = "alpha/r",
    dropout: Real = 0.0,
    parts: Sequence[str] = (),
    fused: Sequence[str] = (),
    fused_sizes: Sequence[int] = (),
    too_large: TooLarge | None = None,
    exclude: Exclude = None,
    layers: Layers = None,
    cut: Sequence[Integer] = (),
    bias: Bias = "none",
    head: str | None = None,
) -> Method:
    """LoKr: W + scale * kron(W1, W2), see `low_rank.lokr`. Groups as of `lora`.

    What PEFT's `LoKrConfig` gives without `use_effective_conv2d` (`factor` is its `decompose_factor`); but
    groups of a convolution each have matrices of their own here.

    Args:
      targets: the layers to adapt, as of `lora`; a mapping gives arguments per target.
      rank: r of a matrix that is a product of two. One whose larger side is at most 2r is whole.
      alpha: the update is scaled by alpha/rank, also where no matrix is a product; the default is the rank,
        which makes the scale 1.
      factor: the first of the two numbers that inputs and outputs each divide into: itself, where it divides
        them, else the largest divisor up to it and up to their square root; -1 is any divisor up to that.
      decompose_both: whether the first matrix is a product of two, too, where that is smaller.
      scaling: `alpha/r`, or rsLoRA's `alpha/sqrt(r)`.
      dropout: rate on the update's input; takes effect after `lora_jax.seed_dropout`. (PEFT's
        `rank_dropout` and `module_dropout` are others.)
      parts, fused, fused_sizes: of a fused projection, as of `lora`: each part has an update of its own.
      too_large: what becomes of a layer whose matrix is smaller than the rank, as of `lora`.
      exclude, layers, cut: what narrows the targets, as of `lora`.
      bias: which bias vectors train: none, all, or those of the adapted layers.
      head: regular expression for the task head's leaves.

    Raises:
      ValueError: an argument is out of range. What depends on the model is checked by `insert`.
    """
    shared = {
        "rank": rank, "alpha": alpha, "factor": factor, "decompose_both": decompose_both,
        "scaling": scaling, "dropout": dropout, "parts": parts,
        "fused": fused, "fused_sizes": fused_sizes, "too_large": too_large,
    }  # fmt: skip
    settings = settings_by_target("lokr", LoKrSettings, targets, shared)
    return update_method(
        "lokr", settings, exclude=exclude, layers=layers, cut=cut, bias=bias, head=head
    )
