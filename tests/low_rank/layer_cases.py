"""Layers of every supported class and setting, and what their tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lora_jax.low_rank import layers
from lora_jax.low_rank.settings import LoRASettings

# Sums of up to a few hundred float32 products of size about 1, in another order.
FLOAT32 = {"rtol": 2e-5, "atol": 5e-5}


# Random initial values of a base are slow to compile for every shape; `randomise` sets them.
ZEROS = nnx.initializers.zeros


def linear(*sizes, **settings):
    return lambda rngs: nnx.Linear(*sizes, kernel_init=ZEROS, rngs=rngs, **settings)


def general(*sizes, **settings):
    return lambda rngs: nnx.LinearGeneral(*sizes, kernel_init=ZEROS, rngs=rngs, **settings)


def einsum(*arguments, **settings):
    return lambda rngs: nnx.Einsum(*arguments, kernel_init=ZEROS, rngs=rngs, **settings)


def embed(*sizes, **settings):
    return lambda rngs: nnx.Embed(*sizes, embedding_init=ZEROS, rngs=rngs, **settings)


def conv(*arguments, **settings):
    return lambda rngs: nnx.Conv(*arguments, kernel_init=ZEROS, rngs=rngs, **settings)


def transposed(*arguments, **settings):
    return lambda rngs: nnx.ConvTranspose(*arguments, kernel_init=ZEROS, rngs=rngs, **settings)


# name: (constructor, shape of the input, rank)
CASES = {
    "linear": (linear(5, 7), (3, 5), 3),
    "linear, no bias": (linear(5, 7, use_bias=False), (3, 5), 3),
    "linear, vector": (linear(5, 7), (5,), 2),
    "linear, sequence": (linear(6, 4), (2, 3, 6), 4),
    "general, one axis": (general(5, 7), (3, 5), 2),
    "general, to heads": (general(6, (2, 4)), (3, 5, 6), 3),
    "general, from heads": (general((2, 4), 6, axis=(-2, -1)), (3, 5, 2, 4), 3),
    "general, no bias": (general((2, 4), (3, 2), axis=(-2, -1), use_bias=False), (5, 2, 4), 2),
    "general, axis 1 and last": (general((3, 4), (2, 5), axis=(1, -1)), (2, 3, 5, 4), 3),
    "general, axis 0": (general(4, (2, 3), axis=0), (4, 5), 2),
    # nnx.LinearGeneral sorts the axes, so in_features are the sizes in the input's own order.
    "general, last and axis 1": (general((3, 4), 5, axis=(-1, 1)), (2, 3, 5, 4), 3),
    "general, equal sizes in reverse": (general((3, 3), 5, axis=(-1, -2)), (2, 3, 3), 3),
    "general, batch axis": (general(4, 5, batch_axis={0: 3}), (3, 6, 4), 2),
    "general, batch axis, inner": (general(4, (2, 5), axis=1, batch_axis={0: 3}), (3, 4, 6), 2),
    "general, two batch axes": (general(4, 5, batch_axis={0: 2, 1: 3}), (2, 3, 6, 4), 2),
    "general, batch axes in reverse": (general(4, 5, batch_axis={1: 3, 0: 3}), (3, 3, 6, 4), 2),
    "einsum, heads": (einsum("nta,hab->nthb", (3, 4, 5), (3, 5)), (2, 6, 4), 3),
    "einsum, no bias": (einsum("nta,hab->nthb", (3, 4, 5)), (2, 6, 4), 2),
    "einsum, ellipsis": (einsum("...a,ab->...b", (4, 5), (5,)), (2, 3, 4), 2),
    "einsum, ellipsis, heads": (einsum("...a,ahb->...hb", (4, 3, 5), (3, 5)), (2, 6, 4), 2),
    "einsum, experts": (einsum("ebi,eio->ebo", (3, 4, 5), (3, 5)), (3, 2, 4), 2),
    "einsum, experts of tokens": (einsum("bei,eio->beo", (3, 4, 5)), (2, 3, 4), 2),
    "einsum, expert axis last": (einsum("bie,oie->beo", (5, 4, 3)), (2, 4, 3), 2),
    "einsum, transposed": (einsum("bi,oi->bo", (5, 4), (5,)), (3, 4), 3),
    "einsum, contracts two": (einsum("bhk,hkd->bd", (2, 4, 6), (6,)), (3, 2, 4), 3),
    "einsum, contracts two, permuted": (einsum("bhk,kdh->bd", (4, 6, 2)), (3, 2, 4), 3),
    "einsum, output first": (einsum("btd,sdhk->sbthk", (3, 4, 2, 5)), (2, 6, 4), 2),
    "einsum, output permuted": (einsum("btd,dhk->bkth", (4, 2, 5)), (2, 6, 4), 2),
    "einsum, sums an input axis": (einsum("bti,io->bo", (4, 5)), (2, 3, 4), 2),
    "einsum, letters r and s": (einsum("brs,st->brt", (4, 5)), (2, 3, 4), 2),
    "einsum, spaces, capitals": (einsum("B i , i O -> B O", (4, 5)), (3, 4), 2),
    "embed": (embed(10, 6), (3, 4), 3),
    "embed, one index": (embed(10, 6), (), 2),
    "embed, one row": (embed(1, 6), (3, 4), 1),
    "conv 1D": (conv(4, 5, 3), (2, 9, 4), 3),
    "conv 1D, valid": (conv(4, 5, (3,), padding="VALID"), (2, 9, 4), 3),
    "conv 1D, causal": (conv(4, 5, 3, padding="CAUSAL"), (2, 9, 4), 3),
    "conv 1D, causal, dilated": (
        conv(4, 5, 3, padding="CAUSAL", kernel_dilation=2), (2, 9, 4), 3,
    ),
    "conv 1D, no batch": (conv(4, 5, 3), (9, 4), 3),
    "conv 2D": (conv(3, 4, (3, 3)), (2, 6, 7, 3), 3),
    "conv 2D, no bias": (conv(3, 4, (3, 3), use_bias=False), (2, 6, 7, 3), 3),
    "conv 2D, stride": (conv(3, 4, (3, 2), strides=(2, 1)), (2, 6, 7, 3), 3),
    "conv 2D, stride None": (conv(3, 4, (3, 3), strides=None), (2, 6, 7, 3), 3),
    "conv 2D, circular, stride": (
        conv(3, 4, (3, 3), strides=2, padding="CIRCULAR"), (2, 6, 7, 3), 3,
    ),
    "conv 2D, reflect": (conv(3, 4, (3, 3), padding="REFLECT"), (2, 6, 7, 3), 3),
    "conv 2D, int padding": (conv(3, 4, (3, 3), padding=2), (2, 6, 7, 3), 3),
    "conv 2D, pairs": (conv(3, 4, (3, 3), padding=((1, 2), (0, 1))), (2, 6, 7, 3), 3),
    "conv 2D, dilated": (conv(3, 4, (3, 3), kernel_dilation=(2, 1)), (2, 8, 7, 3), 3),
    "conv 2D, input dilated": (
        conv(3, 4, (3, 3), input_dilation=2, padding=((1, 1), (0, 2))), (2, 6, 7, 3), 3,
    ),
    "conv 2D, groups": (conv(6, 8, (3, 3), feature_group_count=2), (2, 6, 7, 6), 3),
    "conv 2D, groups, stride, dilated": (
        conv(6, 9, (2, 3), strides=2, kernel_dilation=2, feature_group_count=3),
        (2, 8, 7, 6), 2,
    ),
    "conv 2D, depthwise": (conv(4, 4, (3, 3), feature_group_count=4), (2, 6, 7, 4), 1),
    "conv 2D, 1x1": (conv(5, 6, (1, 1)), (2, 4, 3, 5), 3),
    "conv 2D, no batch": (conv(3, 4, (3, 3)), (6, 7, 3), 3),
    "conv 2D, no batch, groups": (conv(6, 8, (3, 3), feature_group_count=2), (6, 7, 6), 2),
    "conv 2D, two batch axes": (conv(3, 4, (3, 3)), (2, 3, 6, 7, 3), 3),
    "transposed 1D": (transposed(4, 5, 3), (2, 9, 4), 3),
    "transposed 1D, no batch, no bias": (transposed(4, 5, 3, use_bias=False), (9, 4), 3),
    "transposed 1D, stored transposed": (
        transposed(4, 5, 3, strides=2, transpose_kernel=True), (2, 9, 4), 3,
    ),
    "transposed 2D, stride, valid": (
        transposed(3, 4, (3, 2), strides=(2, 3), padding="VALID"), (2, 5, 4, 3), 3,
    ),
    "transposed 2D, circular": (
        transposed(3, 4, (3, 3), strides=(2, 2), padding="CIRCULAR"), (2, 4, 5, 3), 3,
    ),
    "transposed 2D, circular, stored transposed": (
        transposed(3, 4, (3, 3), strides=(2, 1), padding="CIRCULAR", transpose_kernel=True),
        (2, 4, 5, 3), 3,
    ),
    "transposed 2D, pairs, dilated": (
        transposed(3, 4, (3, 2), padding=((1, 2), (0, 1)), kernel_dilation=(2, 1)), (2, 5, 6, 3), 3,
    ),
    "einsum, ellipsis and experts": (einsum("...ebi,eio->...ebo", (3, 4, 5)), (2, 3, 6, 4), 2),
    "einsum, ellipsis between": (einsum("b...i,io->b...o", (4, 5), (5,)), (2, 3, 4), 2),
    "einsum, two kinds of batch": (einsum("gbei,geio->gbeo", (2, 3, 4, 5), (2, 3, 5)), (2, 6, 3, 4), 2),
    "einsum, kinds of batch apart": (einsum("btgne,neog->bgtno", (3, 4, 5, 2)), (2, 6, 2, 3, 4), 2),
    "conv 3D": (conv(2, 4, (2, 3, 2), strides=(1, 2, 1)), (2, 4, 5, 3, 2), 3),
}  # fmt: skip


def randomise(model, seed, only=nnx.Param):
    """Random values in place of zeros (biases, B) and of everything else."""
    rng = np.random.default_rng(seed)
    for _, variable in nnx.to_flat_state(nnx.state(model, only)):
        variable[...] = jnp.asarray(rng.normal(size=variable.shape), variable.dtype)


def adapted_copy(base, update=None, seed=0, **arguments):
    layer = nnx.clone(base)
    layers.adapt(layer, update or LoRASettings(**{"rank": 2, "alpha": 3.0, **arguments}), key(seed))
    return layer


def key(seed):
    return jax.random.key(seed, impl="rbg")  # compiles five times faster than threefry


def exact(array):
    return np.asarray(array).astype(np.float64)


def random_input(shape, integers_below=None, seed=1):
    rng = np.random.default_rng(seed)
    if integers_below:
        return jnp.asarray(rng.integers(0, integers_below, shape), jnp.int32)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)
