"""A Linen model and the NNX model with the same paths, for comparisons."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

import lora_jax

WIDTH, WORDS = 8, 11


class Block(linen.Module):
    """Attention with a fused projection, and a feed-forward layer."""

    @linen.compact
    def __call__(self, x, _=None):
        q, k, v = jnp.split(linen.Dense(3 * WIDTH, name="qkv")(x), 3, axis=-1)
        x = x + jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ v
        x = x + linen.Dense(WIDTH, name="output")(jnp.tanh(linen.Dense(16, name="hidden")(x)))
        return x, None


class Model(linen.Module):
    """A tied embedding, a stack of blocks as `stack` says, and a head."""

    stack: str = "scan"
    depth: int = 3

    @linen.compact
    def __call__(self, ids):
        embed = linen.Embed(WORDS, WIDTH, name="embed")
        x = embed(ids)
        if self.stack == "loop":
            for i in range(self.depth):
                x, _ = Block(name=f"layers_{i}")(x)
        else:
            block = {
                "scan": Block,
                "scan, remat": linen.remat(Block),
                "scan, jit": linen.jit(Block),
            }
            scanned = linen.scan(
                block[self.stack], variable_axes={"params": 0}, split_rngs={"params": True},
                length=self.depth,
            )  # fmt: skip
            x, _ = scanned(name="layers")(x, None)
        return linen.Dense(2, name="head")(x) + embed.attend(x)[..., :2]


class NNXBlock(nnx.Module):
    """`Block`, with the same names."""

    def __init__(self, rngs):
        self.qkv = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, 16, rngs=rngs)
        self.output = nnx.Linear(16, WIDTH, rngs=rngs)

    def __call__(self, x):
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        x = x + jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2)) @ v
        return x + self.output(jnp.tanh(self.hidden(x)))


class NNXModel(nnx.Module):
    """`Model` with `scan`, with the same names."""

    def __init__(self, rngs, depth=3):
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.layers = nnx.split_rngs(splits=depth)(nnx.vmap(NNXBlock))(rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, ids):
        scan = nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        x = scan(lambda x, block: block(x))(self.embed(ids), self.layers)
        return self.head(x) + self.embed.attend(x)[..., :2]


def random_ids(shape=(2, 5), seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, WORDS, shape), jnp.int32)


def random_variables(module, *args, seed=0, **kwargs):
    """Values of numpy in place of a module's initialisers, which are slow to compile."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(random.normal(scale=0.4, size=s.shape), s.dtype), shapes
    )


def pair(stack="scan"):
    """The Linen module, its variables, the model of `as_nnx`, and the NNX model with the same numbers."""
    module, ids = Model(stack), random_ids()
    variables = random_variables(module, ids)
    model = lora_jax.linen.as_nnx(module, variables, ids)
    twin = nnx.eval_shape(lambda: NNXModel(nnx.Rngs(0)))
    values = lora_jax.parameters(model)
    for path, variable in nnx.to_flat_state(nnx.state(twin, nnx.Param)):
        if stack != "loop":
            variable.set_raw_value(values["/".join(map(str, path))])
    return module, variables, model, twin


def trained(model, method, seed=1):
    """An adapted model with random values in place of the trainable ones."""
    adapted = method.insert(model, jax.random.key(0, impl="rbg"))
    structure, trainable, frozen = lora_jax.split(adapted, method.labels(adapted))
    random = np.random.default_rng(seed)
    moved = {
        path: value + jnp.asarray(random.normal(scale=0.3, size=value.shape), value.dtype)
        for path, value in sorted(trainable.items())
    }
    return structure, moved, frozen
