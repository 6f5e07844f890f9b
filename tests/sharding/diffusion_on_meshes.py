"""Text encoder, U-Net and autoencoder, and LoRA's gradients, on 8 devices and on one, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lora_jax
from lora_jax import partition
from lora_jax.models.diffusion.clip import CLIPTextModel
from lora_jax.models.diffusion.clip_config import CLIPTextConfig
from lora_jax.models.diffusion.layers import in_shapes
from lora_jax.models.diffusion.unet import UNet
from lora_jax.models.diffusion.unet_config import CROSS_DOWN, CROSS_UP, UNetConfig
from lora_jax.models.diffusion.vae import AutoencoderKL
from lora_jax.models.diffusion.vae_config import VAEConfig
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import make_mesh
from lora_jax.sharding.placement import Placement, gather

METHOD = lora_jax.lora(r"(unet|text_encoder|vae/decoder)/.*/(to_q|to_out|conv1|conv2|fc1)", rank=2)


class Whole(nnx.Module):
    """All three; heads of the U-Net (1 and 2) divide over two devices in one block, and not in the other."""

    def __init__(self, _: None, rngs: nnx.Rngs):
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=8,
            ), rngs,
        )  # fmt: skip
        self.unet = UNet(
            UNetConfig(
                down_block_types=(CROSS_DOWN,) * 2, up_block_types=(CROSS_UP,) * 2,
                block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                cross_attention_dim=8, attention_head_dim=(1, 2), use_linear_projection=True,
                mid_block_type=None,
            ), rngs,
        )  # fmt: skip
        self.vae = AutoencoderKL(VAEConfig(block_out_channels=(8,), norm_num_groups=4), rngs)

    def __call__(self, tokens: jax.Array, sample: jax.Array, times: jax.Array) -> jax.Array:
        return self.vae.decode(self.unet(sample, times, self.text_encoder(tokens)))


def drawn(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Random values: of vectors around 1, as scales are; of matrices with the spread of their inputs."""
    values = random.standard_normal(shape, np.float32)
    return 1 + 0.1 * values if len(shape) < 2 else values / max(np.prod(shape[:-1]), 1) ** 0.5


def run(sizes: dict[str, int], devices: int) -> dict[str, Any]:
    mesh = make_mesh(sizes, jax.devices()[:devices])
    # In shapes, and the values from NumPy: no initial value needs a program of its own.
    model = nnx.eval_shape(lambda: METHOD.insert(in_shapes(Whole, None), jax.random.key(1)))
    structure, *both = partition.split(model, METHOD.labels(model))
    placement = Placement(mesh, axes.of_model(model))
    random = np.random.default_rng(0)
    trainable, frozen = (
        {path: drawn(leaf.shape, random) for path, leaf in sorted(part.items())} for part in both
    )
    batch = placement.batch((
        random.integers(0, 32, (4, 8)).astype(np.int32),
        random.standard_normal((4, 4, 4, 4), np.float32),
        np.array([1.0, 500.0, 20.0, 999.0], np.float32),
    ))  # fmt: skip

    def loss(trainable, frozen, batch):
        out = partition.join(structure, trainable, frozen)(*batch)
        return jnp.mean(out**2), out

    placed = placement.put(frozen)
    step = placement.jit(jax.grad(loss, has_aux=True))
    gradients, out = gather(step(placement.put(trainable), placed, batch))
    return {
        "output": out.tolist(),
        "gradients": {path: value.tolist() for path, value in gradients.items()},
        "split": {path: not leaf.sharding.is_fully_replicated for path, leaf in placed.items()},
    }


def main() -> None:
    meshes = {"one": run({}, 1), "all axes": run({"data": 2, "fsdp": 2, "model": 2}, 8)}
    with open(sys.argv[1], "w") as file:
        json.dump(meshes, file)


if __name__ == "__main__":
    main()
