"""A program: LoRA and DoRA on models that a user split over a mesh of their own. See test_own_meshes.py."""

import json
import os
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import lora_jax as lj

INIT = nnx.initializers.lecun_normal()
X = jax.random.normal(jax.random.key(1), (4, 8))


def split(*axes):
    return nnx.with_partitioning(INIT, axes)


class Model(nnx.Module):
    """A column-parallel and a row-parallel layer, an einsum, a table that is tied, experts in a Param."""

    def __init__(self, rngs: nnx.Rngs):
        bias = nnx.with_partitioning(nnx.initializers.zeros, ("model",))
        self.up = nnx.Linear(8, 16, kernel_init=split(None, "model"), bias_init=bias, rngs=rngs)
        self.down = nnx.Linear(16, 8, kernel_init=split("model", None), use_bias=False, rngs=rngs)
        self.heads = nnx.Einsum(
            "bi,hio->bho", (4, 8, 2), kernel_init=split("model", None, None), rngs=rngs
        )
        self.experts = nnx.Param(split("model", None, None)(rngs.params(), (4, 2, 8)))

    def __call__(self, x: jax.Array, out: P | None) -> jax.Array:
        sharding = {} if out is None else {"out_sharding": out}
        x = x + self.down(jax.nn.tanh(self.up(x)), **sharding)
        return jnp.einsum("bhi,hio->bo", self.heads(x), self.experts[...], **sharding)


KINDS = {"lora": (AxisType.Auto, AxisType.Explicit), "dora": (AxisType.Auto, AxisType.Explicit)}
if not os.environ.get(
    "LORA_JAX_SLOW"
):  # DoRA has LoRA's factors, and variants_on_meshes.py automatic axes
    KINDS = {"dora": (AxisType.Explicit,)}
METHODS = {
    "lora": lj.lora({"up|down|heads": {}, "experts": {"axes": "bio"}}, rank=2),
    "dora": lj.lora({"up|down|heads": {}, "experts": {"axes": "bio"}}, rank=2, magnitude=True),
}


def randomised(adapted: nnx.Module) -> nnx.Module:
    """The same values whatever the mesh, with the sharding of each leaf."""
    for number, (_, leaf) in enumerate(nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam))):
        noise = 0.1 * jax.random.normal(jax.random.key(number), leaf.shape)
        leaf[...] = leaf[...] + jax.device_put(noise, leaf[...].sharding)
    return adapted


def run(method: lj.Method, out: P | None) -> dict:
    model = Model(nnx.Rngs(0))
    adapted = method.insert(model, jax.random.key(0))
    x = X if out is None else jax.device_put(X, P("data"))
    start = bool(jnp.all(adapted(x, out) == model(x, out)))
    adapted = randomised(adapted)

    def loss(model: nnx.Module) -> jax.Array:
        return jnp.sum(model(x, out) ** 2)

    value, gradients = nnx.jit(nnx.value_and_grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam)))(
        adapted
    )
    merged = lj.merge(adapted)
    lj.verify(model, method, x, out).check()
    with tempfile.TemporaryDirectory() as folder:
        loaded = lj.load(lj.save(folder, adapted, method, model), model)
    leaves = dict(nnx.to_flat_state(nnx.state(loaded, nnx.LoRAParam)))
    specs = {
        "/".join(map(str, path)): leaf.get_raw_value().sharding for path, leaf in leaves.items()
    }
    names = {"/".join(map(str, path)): leaf.get_metadata() for path, leaf in leaves.items()}
    return {
        "start": start,
        "loss": float(value),
        "gradients": {
            "/".join(map(str, path)): np.asarray(leaf.get_raw_value()).tolist()
            for path, leaf in nnx.to_flat_state(gradients)
        },
        "outputs": np.asarray(loaded(x, out)).tolist(),
        "merged": np.asarray(merged(x, out)).tolist(),
        "split": {path: list(getattr(s, "spec", ())) for path, s in specs.items()},
        "names": {path: list(m.get("out_sharding", ())) for path, m in names.items()},
        "merged_split": list(getattr(merged.down.kernel[...].sharding, "spec", ())),
    }


def main() -> None:
    results = {}
    for name, kinds in KINDS.items():
        method = METHODS[name]
        auto = (AxisType.Auto,) * 2
        one = jax.make_mesh((1, 1), ("data", "model"), auto, devices=jax.devices()[:1])
        with jax.set_mesh(one):
            results[name] = {"one": run(method, None)}
        for kind in kinds:
            mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
            with jax.set_mesh(mesh):
                out = P("data") if kind == AxisType.Explicit else None
                results[name][kind.name] = run(method, out)
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()
