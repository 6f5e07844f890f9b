"""The train step of a U-Net of Stable Diffusion in shapes, which can be compiled for what is not there.

step = build(UNetConfig(cross_attention_dim=768), lora(r".*/to_[qkv]"), make_mesh({}, devices))
compiled.needs(step.function, step.arguments, chip)  # memory and traffic, see lora_jax.costs
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from experiments.plan.abstract_step import AbstractStep
from experiments.plan.shapes import placed
from lora_jax import partition
from lora_jax.costs import flops
from lora_jax.method import Method
from lora_jax.models.diffusion.layers import in_shapes
from lora_jax.models.diffusion.unet import UNet
from lora_jax.models.diffusion.unet_config import UNetConfig
from lora_jax.sharding import axes
from lora_jax.sharding.placement import Placement
from lora_jax.training import step

_TOKENS = 77  # of CLIP's text encoder


class NoisyLatents(NamedTuple):
    """A batch of a U-Net: what it reads, and what it should predict.

    Attributes:
      sample: noisy latent images.
      timesteps: of each.
      context: hidden states of the texts, which are the same in every epoch, as the latent images are.
      target: the noise, or what else is predicted.
    """

    sample: Float[Array, "batch height width inputs"]
    timesteps: Float[Array, " batch"]
    context: Float[Array, "batch length context"]
    target: Float[Array, "batch height width outputs"]


def loss(model: nnx.Module, batch: NoisyLatents, key: jax.Array | None) -> Float[Array, ""]:
    """Mean squared error of the prediction (Ho et al. 2020, arXiv:2006.11239, equation 14)."""
    predicted = model(batch.sample, batch.timesteps, batch.context)  # type: ignore[operator]
    return jnp.mean((predicted - batch.target) ** 2)


def build(
    config: UNetConfig,
    method: Method,
    mesh: Mesh,
    *,
    rows: int = 1,
    size: int | None = None,
    dtype: str = "bfloat16",
) -> AbstractStep:
    """The train step of a U-Net with AdamW; nothing is computed, and no weights are needed.

    Args:
      config: of the U-Net; what it computes in becomes `dtype`.
      method: what trains.
      mesh: of the devices that it is compiled for, which need not be there.
      rows: images of a batch; data x fsdp of the mesh must divide them.
      size: height and width of the latent images; None: `config.sample_size`, 64 for images of 512.
      dtype: of the base and of the computation; what trains is float32.

    Raises:
      ValueError: the mesh does not fit the model, or the method does not.
    """
    config = dataclasses.replace(config, compute_dtype=dtype)
    base = in_shapes(UNet, config)
    model = nnx.eval_shape(lambda: method.insert(base, jax.random.key(0)))
    structure, *both = partition.split(model, method.labels(model))
    trainable, frozen = (
        {path: jax.ShapeDtypeStruct(leaf.shape, kind) for path, leaf in part.items()}
        for part, kind in zip(both, (jnp.float32, jnp.dtype(dtype)), strict=True)
    )
    placement = Placement(mesh, axes.of_model(model))
    tx = optax.adamw(1e-4)
    function = step.make_train_step(structure, loss, tx, placement, trainable)
    state = jax.eval_shape(tx.init, trainable)
    side = config.sample_size if size is None else size
    image = rows, side, side
    shapes: list[Any] = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in (
            (*image, config.in_channels), (rows,), (rows, _TOKENS, config.cross_attention_dim),
            (*image, config.out_channels),
        )
    ]  # fmt: skip
    examples = NamedSharding(mesh, axes.spec(("batch",), mesh.axis_names))
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        placed(trainable, placement.shardings(trainable)),
        placed(state, placement.state_shardings(state, trainable)),
        placed(frozen, placement.shardings(frozen)),
        NoisyLatents(*(placed(shape, examples) for shape in shapes)),
        placed(key, placement.replicated),
    )
    count = flops.training(step.make_objective(structure, loss), trainable, *arguments[2:])
    values = partition.count(trainable)
    return AbstractStep(
        function=function, arguments=arguments, frozen=arguments[2], flops=count, trainable=values,
        total=values + partition.count(frozen),
    )  # fmt: skip
