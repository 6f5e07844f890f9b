"""A program: methods after LoRA on a model that a user split over a mesh. See test_variants_on_meshes.py."""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lora_jax as lj

INIT = nnx.initializers.lecun_normal()
X = jax.random.normal(jax.random.key(1), (4, 8))
LAYERS = "up|down|experts"
METHODS = {
    "adalora": lj.adalora(LAYERS, rank=2, target_rank=1, final=1),
    "pissa": lj.lora(LAYERS, rank=2, init="pissa"),
    "lora_fa": lj.lora(LAYERS, rank=2, gradient="lora_fa"),
    "lora_pro": lj.lora(LAYERS, rank=2, gradient="lora_pro", b_rate=2),
    "vera": lj.vera(LAYERS, rank=4),
    "loha": lj.loha(LAYERS, rank=2),
    "lokr": lj.lokr(LAYERS, rank=2),
    "ia3": lj.ia3(LAYERS, "down"),
}


# By default each kind of update and of step is on one of both kinds of meshes: PiSSA and LoRA-FA have LoRA's
# factors, and LoHa's are products of two as those of LoKr.
BY_DEFAULT = {
    "adalora": "Explicit",
    "lora_pro": "Auto",
    "vera": "Explicit",
    "lokr": "Auto",
    "ia3": "Explicit",
}


KINDS = ("Auto", "Explicit")


def split(*axes):
    return nnx.with_partitioning(INIT, axes)


class Model(nnx.Module):
    """A column-parallel and a row-parallel layer, and experts."""

    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(8, 16, kernel_init=split(None, "model"), use_bias=False, rngs=rngs)
        self.down = nnx.Linear(16, 8, kernel_init=split("model", None), use_bias=False, rngs=rngs)
        of_experts = split("model", None, None)
        self.experts = nnx.Einsum("ebi,eio->ebo", (4, 8, 8), kernel_init=of_experts, rngs=rngs)

    def __call__(self, x: jax.Array, wide: jax.Array, out: P | None) -> jax.Array:
        sharding = {} if out is None else {"out_sharding": out}
        y = self.down(jax.nn.tanh(self.up(x)), **sharding)
        return jnp.sum(y**2) + jnp.sum(self.experts(wide) ** 2)


def run(method: lj.Method, out: P | None) -> dict:
    adapted = method.insert(Model(nnx.Rngs(0)), jax.random.key(0))
    x, wide = X, jnp.broadcast_to(X, (4, *X.shape))
    if out is not None:
        x, wide = jax.device_put(x, P("data")), jax.device_put(wide, P("model", "data"))
    labels = method.labels(adapted)
    structure, trainable, frozen = lj.split(adapted, labels)
    for number, path in enumerate(sorted(trainable)):
        noise = 0.1 * jax.random.normal(jax.random.key(number), trainable[path].shape)
        trainable[path] += jax.device_put(noise, trainable[path].sharding)
    own = {path: labels[path] for path in trainable}
    tx = lj.optimizer(own, optax.adam(1e-2), method.around(adapted, updates=4))

    @jax.jit
    def step(trainable: dict, state: optax.OptState) -> tuple[dict, optax.OptState]:
        loss = lambda values: lj.join(structure, values, frozen)(x, wide, out)  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(trainable), state, trainable)
        return optax.apply_updates(trainable, updates), state

    state = tx.init(trainable)
    for _ in range(4):
        trainable, state = step(trainable, state)
    return {path: np.asarray(value).tolist() for path, value in trainable.items()}


def every(out: P | None, kind: str = "") -> dict:
    slow = bool(os.environ.get("LORA_JAX_SLOW"))
    names = [
        name for name in METHODS if slow or BY_DEFAULT.get(name) in ((kind,) if kind else KINDS)
    ]
    return {name: run(METHODS[name], out) for name in names}


def main() -> None:
    auto = (AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((1, 1), ("data", "model"), auto, devices=jax.devices()[:1])):
        results = {"one": every(None)}
    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.set_mesh(jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))):
            results[kind.name] = every(P("data") if kind == AxisType.Explicit else None, kind.name)
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
