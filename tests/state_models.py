"""Small models with state of every kind, and what tests do with them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lora_jax as lj
from lora_jax.models.stack import Stack


class Table(nnx.Variable):
    """A user's own kind of Variable."""


class Block(nnx.Module):
    """Linear, statistics, dropout, a table that no call writes and a count that every call writes."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.table = Table(jnp.linspace(0.5, 1.5, 4))
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x, key=None):
        self.calls[...] += 1
        self.sow(nnx.Intermediate, "seen", x)
        return self.drop(self.norm(self.linear(x))) * self.table[...]


class Model(nnx.Module):
    def __init__(self, rngs):
        self.block = Block(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.block(x))


class Rematerialised(Model):
    """`nnx.remat` writes back all that passes through it, random keys too."""

    def __call__(self, x):
        return self.head(nnx.remat(lambda block, x: block(x))(self.block, x))


class Scanned(nnx.Module):
    """Three blocks through the library's stack, or through `nnx.scan`."""

    def __init__(self, rngs, how="stack"):
        self.how = how
        if how == "stack":
            self.blocks = Stack(Block, 3, rngs=rngs)
        else:
            self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Block))(rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        if self.how == "stack":
            return self.head(self.blocks(x))
        scan = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(scan(x, self.blocks))


METHOD = lj.lora(r".*/linear|linear", rank=2, dropout=0.25, head="head/.*")


def loss(model, batch, key):
    return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)


def arrays(count, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(1, 2, size=(count, 4)).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(x[:, :2] ** 2)}


def flat(model):
    """All leaves of a model as numpy arrays, keys as their numbers; without what was sown."""
    found = {}
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        value = leaf.get_raw_value()
        if not isinstance(leaf, nnx.Intermediate):
            is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
            value = jax.random.key_data(value) if is_key else value
            found["/".join(map(str, path))] = np.asarray(value)
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)
