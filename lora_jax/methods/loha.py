"""LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098): elementwise products of two low-rank products."""

from __future__ import annotations

from collections.abc import Sequence

from lora_jax.checks import Integer, Real
from lora_jax.low_rank.contraction import Scaling
from lora_jax.low_rank.loha_settings import LoHaSettings
from lora_jax.low_rank.targets import Exclude, Layers, Targets
from lora_jax.low_rank.update_settings import TooLarge
from lora_jax.method import Method
from lora_jax.methods.updates import Bias, settings_by_target, update_method


def loha(
    targets: Targets,
    *,
    rank: Integer = 8,
    alpha: Real | None = None,
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
    """LoHa: W + scale * (A1 B1) * (A2 B2), see `low_rank.loha`. Groups as of `lora`.

    What PEFT's `LoHaConfig` gives without `use_effective_conv2d`; but groups of a convolution each have
    matrices of their own here.

    Args:
      targets: the layers to adapt, as of `lora`; a mapping gives arguments per target.
      rank: r of each of the two products; that of the update is up to r^2.
      alpha: the update is scaled by alpha/rank; the default is the rank, which makes the scale 1.
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
        "rank": rank, "alpha": alpha, "scaling": scaling, "dropout": dropout, "parts": parts,
        "fused": fused, "fused_sizes": fused_sizes, "too_large": too_large,
    }  # fmt: skip
    settings = settings_by_target("loha", LoHaSettings, targets, shared)
    return update_method(
        "loha", settings, exclude=exclude, layers=layers, cut=cut, bias=bias, head=head
    )
