"""Collective traffic: programs of known traffic compiled for 8 CPU devices, and what TPUs print."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from lora_jax.costs import collectives, hlo
from lora_jax.costs.collectives import Traffic

# Run by a process of its own: the number of CPU devices is set before jax starts.
PROGRAMS = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

devices = np.array(jax.devices())
line, grid = Mesh(devices, ("d",)), Mesh(devices.reshape(4, 2), ("d", "m"))
shape = lambda mesh, sizes, *spec: jax.ShapeDtypeStruct(
    sizes, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))
texts = {}
def compiled(name, function, *arguments, **options):
    texts[name] = jax.jit(function, **options).lower(*arguments).compile().as_text()

layers = lambda w, x: jax.lax.scan(lambda c, layer: (jnp.tanh(c @ layer), None), x, w)[0]
twice = lambda w, x: jax.lax.fori_loop(0, 3, lambda _, c: layers(w, c), x)
loss = lambda w, x: sum(jnp.sum(jnp.tanh(x @ layer)) for layer in w)
either = lambda w, x, p: jax.lax.cond(p, lambda: layers(w, x), lambda: x)
weights = lambda mesh: shape(mesh, (5, 256, 256), None, "d", None)
compiled("fsdp", layers, weights(line), shape(line, (64, 256), "d"))
compiled("nested", twice, weights(grid), shape(grid, (64, 256), "d"))
compiled("branch", either, weights(line), shape(line, (64, 256), "d"), False)
compiled("data", jax.grad(loss), (shape(line, (256, 256)), shape(line, (256, 128))),
         shape(line, (64, 256), "d"), out_shardings=NamedSharding(line, P()))
local = functools.partial(jax.shard_map, mesh=line, in_specs=P("d"), out_specs=P("d"))
turn = [(i, (i + 1) % 8) for i in range(8)]
x = shape(line, (64, 128), "d")
compiled("all_to_all", local(lambda x: jax.lax.all_to_all(x, "d", 1, 0, tiled=True)), x)
compiled("permute", local(lambda x: jax.lax.ppermute(x, "d", turn)), x)
compiled("scatter", local(lambda x: jax.lax.psum_scatter(x, "d", tiled=True)), x)
groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
compiled("grouped", local(lambda x: jax.lax.all_gather(x, "d", axis_index_groups=groups)), x)
compiled("none", lambda x: x @ x.T, jnp.ones((4, 4)))
json.dump(texts, sys.stdout)
"""


@pytest.fixture(scope="module")
def texts(optimised):
    settings = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
    }
    run = subprocess.run(
        [sys.executable, "-c", PROGRAMS],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


F32 = 4
WEIGHT = 256 * 256 * F32
KNOWN = {
    "fsdp": {"all-gather": Traffic(5 * WEIGHT * 7 // 8, 5)},
    "nested": {"all-gather": Traffic(15 * WEIGHT * 3 // 4, 15)},
    "branch": {"all-gather": Traffic(5 * WEIGHT * 7 // 8, 5)},
    "data": {"all-reduce": Traffic(2 * (WEIGHT + WEIGHT // 2) * 7 // 8, 1)},
    "all_to_all": {"all-to-all": Traffic(8 * 128 * F32 * 7 // 8, 1)},
    "permute": {"collective-permute": Traffic(8 * 128 * F32, 1)},
    "scatter": {"reduce-scatter": Traffic(8 * 128 * F32 * 7 // 8, 1)},
    "grouped": {"all-gather": Traffic(4 * 8 * 128 * F32 * 3 // 4, 1)},
    "none": {},
}


@pytest.mark.parametrize("name", KNOWN)
def test_programs_of_known_traffic(texts, name):
    assert collectives.traffic(texts[name]) == KNOWN[name]
    in_bytes = {kind: moved.bytes for kind, moved in KNOWN[name].items()}
    assert collectives.collective_bytes(texts[name]) == in_bytes


def test_loops_without_xlas_note(texts):
    """As a TPU prints them; here the comparison is in a fusion of the condition."""
    text = texts["nested"]
    assert "known_trip_count" in text
    bare = "\n".join(line.partition(", backend_config=")[0] for line in text.splitlines())
    assert collectives.traffic(bare) == KNOWN["nested"]


def test_attributes_of_a_kernel_over_several_lines(texts):
    """As a TPU prints those of splash attention; here every copy in a loop has them."""
    kernel = (
        ', frontend_attributes={kernel_metadata={\n"xprof_metadata":"{\\"block_q\\": 512}"\n}}, '
    )
    text = (
        texts["nested"]
        .replace(", sharding=", kernel + "sharding=")
        .replace(", metadata=", kernel + "metadata=")
    )
    assert text.count("\n}}, ") > 5
    assert collectives.traffic(text) == KNOWN["nested"]


def tpu(name):
    return pathlib.Path(__file__).with_name(f"tpu_{name}.hlo").read_text()


def test_tpu_asynchronous_fusions_and_reduce_scatter():
    weight = 1024 * 1024 * 2
    moved = Traffic(5 * weight * 7 // 8, 5)
    found = collectives.traffic(tpu("fsdp_backward"))
    assert found == {"all-gather": moved, "reduce-scatter": moved}


def test_tpu_windowed_product():
    moved = Traffic(2 * 256 * 2048 * 2, 2)
    assert collectives.traffic(tpu("windowed")) == {"collective-permute": moved}


def one(operation, operand="f32[1000]", result="f32[1000]", header="num_partitions=8"):
    return f"""HloModule one, {header}

%wrapped (p: {operand}) -> {result} {{
  %p = {operand} parameter(0)
  ROOT %inner = {result} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={{0}}
}}

ENTRY %main (x: {operand}) -> {result} {{
  %x = {operand} parameter(0)
  {operation}
}}
"""


def reduce(groups):
    return one(f"ROOT %r = f32[1000]{{0}} all-reduce(%x), channel_id=1, {groups}")


@pytest.mark.parametrize(
    "groups, n",
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_2','axis_0'}", 4),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)4}", 4),
        ("replica_groups={}, use_global_device_ids=true", 8),
        ("use_global_device_ids=true", 8),
    ],
)
def test_group_sizes(groups, n):
    assert collectives.collective_bytes(reduce(groups)) == {"all-reduce": 2 * 4000 * (n - 1) // n}


def test_groups_of_one_and_permutations_to_oneself_move_nothing():
    assert collectives.traffic(reduce("replica_groups={{0},{1}}")) == {}
    stays = "ROOT %r = f32[1000] collective-permute(%x), source_target_pairs={{0,0},{1,1}}"
    assert collectives.traffic(one(stays)) == {}


@pytest.mark.parametrize(
    "operation",
    [
        "%s = (f32[1000], f32[4000]) all-gather-start(%x), replica_groups=[2,4]<=[8]\n"
        "  ROOT %d = f32[4000] all-gather-done(%s)",
        "%s = ((f32[1000]), f32[4000], u32[]) async-start(%x), calls=%wrapped\n"
        "  %u = ((f32[1000]), f32[4000], u32[]) async-update(%s), calls=%wrapped\n"
        "  ROOT %d = f32[4000] async-done(%u), calls=%wrapped",
        "ROOT %c = f32[4000] call(%x), to_apply=%wrapped",
    ],
)
def test_asynchronous_forms_and_calls_count_once(operation):
    found = collectives.traffic(one(operation, result="f32[4000]"))
    assert found == {"all-gather": Traffic(3 * 4000, 1)}


@pytest.mark.parametrize(
    "type_text, size",
    [
        ("f32[2,3]{1,0}", 24),
        ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2048),
        ("(s32[], u8[5], /*index=2*/pred[7]{0:T(512)})", 4 + 5 + 7),
        ("f8e4m3fn[16]", 16),
        ("f8e5m2[16]", 16),
        ("s4[5]", 3),
        ("c64[2]", 16),
        ("u32[<=4]", 16),
        ("(f32[0,4], token[])", 0),
    ],
)
def test_sizes(type_text, size):
    assert hlo.size_bytes(type_text) == size


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        collectives.traffic("module @jit_f { func.func public @main() }")
