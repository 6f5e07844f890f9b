"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): updates whose ranks are pruned while they train."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from flax import nnx

from lora_jax.checks import Integer, Real, integer, not_negative
from lora_jax.errors import InputError
from lora_jax.low_rank.adalora import AdaLoRAUpdate
from lora_jax.low_rank.adalora_settings import AdaLoRASettings
from lora_jax.low_rank.layers import adapted_layers, factor_path
from lora_jax.low_rank.targets import Exclude, Layers, Targets
from lora_jax.low_rank.update_settings import TooLarge
from lora_jax.method import Around, Method
from lora_jax.methods.updates import Bias, UpdateInsertion, settings_by_target, update_method
from lora_jax.optimizers.adalora import Schedule, allocated_ranks
from lora_jax.ranges import LARGEST, Number, check


@dataclasses.dataclass(frozen=True)
class AdaLoRAInsertion(UpdateInsertion):
    """Adapts the layers that its targets choose, and prunes their ranks in training.

    Attributes:
      warm_up, final, every, beta1, beta2, orthogonal: as of `adalora`.
    """

    warm_up: int = 0
    final: int = 0
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonal: float = 0.5

    def around(self, model: nnx.Module, updates: int | None) -> Around | None:
        """The regulariser and the schedule, see `lora_jax.optimizers.adalora`."""
        if updates is None:
            raise InputError(
                "adalora prunes ranks by a schedule, and needs the number of updates of the whole run: "
                "around=method.around(adapted, updates=N). The trainer knows it by itself"
            )
        updates = integer("updates", updates, most=LARGEST)
        places, start, target = [], 0, 0
        adapted = adapted_layers(model)
        for path, chosen in self.choose_in(model).layers.items():
            settings = chosen.settings
            assert isinstance(settings, AdaLoRASettings)
            for part, update in adapted[path].lora.members().items():
                assert isinstance(update, AdaLoRAUpdate)
                places.append(factor_path(path, adapted[path], part))
                start += update.e.size
                target += update.e.size // update.rank * settings.target_rank
        schedule = Schedule(start, target, updates, self.warm_up, self.final, self.every)
        return allocated_ranks(
            places, schedule, beta1=self.beta1, beta2=self.beta2, orthogonal=self.orthogonal
        )


def adalora(
    targets: Targets,
    *,
    rank: Integer = 12,
    target_rank: Integer = 8,
    alpha: Real | None = None,
    warm_up: Integer = 0,
    final: Integer = 0,
    every: Integer = 1,
    beta1: Real = 0.85,
    beta2: Real = 0.85,
    orthogonal: Real = 0.5,
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
    """AdaLoRA (Zhang et al. 2023): W + scale * A diag(e) B, of which training prunes singular values.

    It prunes by the optimizer, which must know the number of updates of the run. The trainer sees to it; by
    hand:

        tx = lora_jax.optimizer(labels, optax.adamw(1e-3), around=method.around(adapted, updates=1000))

    Without `around` nothing is pruned, and A and B are not kept orthonormal.

    Groups: `lora`, and `bias` and `head` if asked for.

    Args:
      targets: the layers to adapt, as of `lora`; a target's own arguments are `rank`, `target_rank`, `alpha`,
        `dropout`, `too_large` and those of fused projections.
      rank: of every update at the start.
      target_rank: what is left of it at the end, on average: unimportant layers keep less, others more.
      alpha: the scale is alpha / rank, of the rank at the start; the default is the rank.
      warm_up: updates at the start without pruning; PEFT's `tinit`.
      final: updates at the end without another choice; PEFT's `tfinal`.
      every: updates from one choice to the next; PEFT's `deltaT`.
      beta1: smoothing of the sensitivity.
      beta2: smoothing of its uncertainty.
      orthogonal: weight of the regulariser that keeps A and B orthonormal; PEFT's `orth_reg_weight`. The
        optimizer adds its gradient, and the loss does not show it. In the trainer that is after
        `max_grad_norm`, which is of the gradient of the loss.
      dropout: rate on the branch's input; takes effect after `lora_jax.seed_dropout`.
      parts, fused, fused_sizes, too_large, exclude, layers, cut, bias, head: as of `lora`.

    Raises:
      ValueError: an argument is out of range. What depends on the model is checked by `insert`, and whether
        the run is long enough for the schedule by `Method.around`.
    """
    shared = {
        "rank": rank, "alpha": alpha, "target_rank": target_rank, "dropout": dropout, "parts": parts,
        "fused": fused, "fused_sizes": fused_sizes, "too_large": too_large,
    }  # fmt: skip
    settings = settings_by_target("adalora", AdaLoRASettings, targets, shared)
    schedule = {
        "warm_up": integer("warm_up", warm_up, least=0, most=LARGEST),
        "final": integer("final", final, least=0, most=LARGEST),
        "every": integer("every", every, most=LARGEST),
        "beta1": check("beta1", beta1, Number(above=0, below=1)),
        "beta2": check("beta2", beta2, Number(above=0, below=1)),
        "orthogonal": not_negative("orthogonal", orthogonal),
    }
    return update_method(
        "adalora", settings, insertion=functools.partial(AdaLoRAInsertion, **schedule),
        exclude=exclude, layers=layers, cut=cut, bias=bias, head=head, own=schedule,
    )  # fmt: skip
