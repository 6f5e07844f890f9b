"""LoRA (Hu et al. 2021): low-rank updates of the layers that its targets name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flax import nnx

from lora_jax.checks import Integer, Real
from lora_jax.errors import InputError
from lora_jax.low_rank.contraction import Init, Scaling
from lora_jax.low_rank.settings import Gradient, LoRASettings
from lora_jax.low_rank.targets import Exclude, Layers, Targets, is_open
from lora_jax.low_rank.update_settings import TooLarge
from lora_jax.method import Around, Method
from lora_jax.methods.parameters import ParameterInsertion
from lora_jax.methods.rates import faster_b
from lora_jax.methods.updates import Bias, UpdateInsertion, settings_by_target, update_method


@dataclasses.dataclass(frozen=True)
class LoRAInsertion(UpdateInsertion):
    """Adapts the layers that its targets choose with factor pairs."""

    def around(self, model: nnx.Module, updates: int | None) -> Around | None:
        """LoRA+: the updates of B are larger than those of A."""
        return faster_b(self.choose_in(model).layers, model)


def lora(
    targets: Targets,
    *,
    rank: Integer = 8,
    alpha: Real | None = None,
    scaling: Scaling = "alpha/r",
    init: Init = "kaiming",
    std: Real = 0.02,
    dropout: Real = 0.0,
    parts: Sequence[str] = (),
    fused: Sequence[str] = (),
    fused_sizes: Sequence[int] = (),
    magnitude: bool = False,
    b_bias: bool = False,
    lookup_only: bool = False,
    axes: str = "",
    too_large: TooLarge | None = None,
    exclude: Exclude = None,
    layers: Layers = None,
    cut: Sequence[Integer] = (),
    bias: Bias = "none",
    head: str | None = None,
    b_rate: Real = 1.0,
    gradient: Gradient = "plain",
    svd_iterations: Integer = 0,
    gamma: Real = 16.0,
    seed: Integer = 0,
) -> Method:
    """LoRA (Hu et al. 2021, section 4.1). Groups: `lora`, and `bias` and `head` if asked for.

    Args:
      targets: the layers to adapt, as one or several of: a path or the end of paths (`"q_proj"`,
        `"attention/query"`), a regular expression for whole paths, a class of layers (`nnx.Linear`; in
        configs `"type:Linear"`), or `"all-linear"`: every supported layer whose weight is a matrix,
        but heads (`head`, and the names in `targets.HEADS`) and layers that can have no update, which
        the summary lists. The first target that names a layer counts. A mapping gives arguments per
        target that replace those below:
        `{".*/qkv": {"rank": 4, "parts": ("q", "v"), "fused": ("q", "k", "v")}, ".*/output": {}}`.
      rank: r, per matrix, and per part of a fused one.
      alpha: the constant of section 4.1; the default is the rank, which makes the scale 1.
      scaling: `alpha/r`, or rsLoRA's `alpha/sqrt(r)`.
      init: start of A; `kaiming` as loralib, `gaussian` N(0, std^2) as the paper. B starts at zero. Or a
        start of both factors, whose product is taken off again: `pissa` from the principal part of the
        weight, `olora` from its orthonormal decomposition, `lora_ga` from its gradient, which
        `start_from_gradients` (and the trainer) computes; see `low_rank.starts`.
      std: standard deviation of `gaussian`.
      dropout: rate on the branch's input; takes effect after `lora_jax.seed_dropout`.
      parts: of a fused projection, the parts to adapt; each has factors of its own.
      fused: names of all its parts, in order.
      fused_sizes: sizes of the parts where they are not equal.
      magnitude: trains the norm of every output's weights too: DoRA, see `low_rank.dora`.
      b_bias: B has a bias, so that the update is scale * (x A B + bias): PEFT's `lora_bias`.
      lookup_only: of a table of embeddings that is the output layer too, adapts the lookups only. PEFT
        does so unless `ensure_weight_tying`; such an update cannot be merged.
      axes: makes the targets parameters that a module contracts in its own code, such as tensors of
        experts, and tells the roles of their axes: `bio` for (experts, inputs, outputs), `io` for a
        matrix, also of a table (rows, features) that is used in two ways. The targets then are paths of
        parameters; what reads one reads W + scale * A B, formed at each read.
      too_large: what becomes of a layer whose matrix is smaller than the rank: `error`; `cap`: it gets
        the largest rank that it allows, with the same scale (alpha follows the rank); `skip`: no update.
        Both are in the summary. The default is `skip` for `"all-linear"`, else `error`.
      exclude: what the targets shall not mean, in the same syntax.
      layers: numbers of the layers to adapt, where a number is the first integer of a path;
        negative ones count from the end. None is all layers.
      cut: where to cut a scanned stack of layers so that its parts have updates of their own: a cut
        before the last N layers for every N. The parts are `first` and `last_N`, so a target such as
        `last_2/block/attention/query` means the query of the last two layers only.
      bias: which bias vectors train: none, all, or those of the adapted layers.
      head: regular expression for the task head's leaves.
      b_rate: learning rate of B and its bias, and of magnitudes, as times that of A; 16 is LoRA+
        (Hayou et al. 2024). Takes effect in the trainer, or by `Method.around`.
      gradient: `lora_fa` freezes A and corrects the gradient of B, `lora_pro` corrects both, see
        `low_rank.gradients`.
      svd_iterations: of a randomised decomposition for `pissa`, much faster on large matrices; PEFT's
        `pissa_niter_16` is 16. 0 is the exact one.
      gamma: of `lora_ga`: larger is a smaller start.
      seed: from which `lora_fa` draws A, of all runs alike, so that folders need not hold it.

    Raises:
      ValueError: an argument is out of range. What depends on the model is checked by `insert`: ranks,
        and whether every target, exclusion and number of a layer has an effect.
    """
    shared = {
        "rank": rank, "alpha": alpha, "scaling": scaling, "init": init, "std": std,
        "dropout": dropout, "parts": parts, "fused": fused, "fused_sizes": fused_sizes,
        "magnitude": magnitude, "b_bias": b_bias, "lookup_only": lookup_only, "axes": axes,
        "b_rate": b_rate, "gradient": gradient, "svd_iterations": svd_iterations, "gamma": gamma,
        "seed": seed, "too_large": too_large,
    }  # fmt: skip
    settings = settings_by_target("lora", LoRASettings, targets, shared)
    of_parameters = ParameterInsertion(
        tuple((target, own) for target, own in settings.items() if own.axes)
    )
    if of_parameters.targets:
        alone = len(of_parameters.targets) == len(settings)
        _check_parameters(
            of_parameters, narrowed=bool(exclude or layers is not None), alone=alone, bias=bias
        )
    return update_method(
        "lora", settings, insertion=LoRAInsertion, exclude=exclude, layers=layers, cut=cut, bias=bias,
        head=head, others=(of_parameters,) if of_parameters.targets else (),
    )  # fmt: skip


def _check_parameters(
    insertion: ParameterInsertion, *, narrowed: bool, alone: bool, bias: str
) -> None:
    """Raises ValueError for arguments about layers beside targets that are parameters."""
    if narrowed:
        raise InputError(
            f"exclude and layers are about layers, and {insertion.targets[0][0]!r} names parameters (it has "
            "axes); say it in the pattern of that target, or write lora(...) + lora(...)"
        )
    if alone and bias == "lora_only":
        raise InputError("bias='lora_only' is about layers, and all targets here are parameters")
    for target, _ in insertion.targets:
        if is_open(target):
            raise InputError(
                f"axes takes paths of parameters, such as 'experts/w_in', as targets; got {target!r}"
            )
