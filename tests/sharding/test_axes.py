"""Logical axes: of every parameter of the models and of what methods insert, and their meaning."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

import lora_jax
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.sharding.axes import RULES, constrain, name, named, names, of_model, spec

MESH_AXES = ("data", "fsdp", "model")
_VECTORS = {"norm/scale": "layers width", "norm/bias": "layers width"}
_FEED_FORWARD = {
    "up/kernel": "layers embed mlp", "up/bias": "layers mlp",
    "down/kernel": "layers mlp embed", "down/bias": "layers width", **_VECTORS,
}  # fmt: skip
_OUTPUT = {"output/kernel": "layers heads embed", "output/bias": "layers width", **_VECTORS}


def below(prefix, values):
    return {f"{prefix}/{path}": axes for path, axes in values.items()}


PROJECTIONS = {
    f"{part}/{leaf}": axes
    for part in ("query", "key", "value")
    for leaf, axes in (("kernel", "layers embed heads"), ("bias", "layers heads"))
}
ENCODER = {
    "encoder/embeddings/word/embedding": "vocabulary embed",
    "encoder/embeddings/position/embedding": ". embed",
    "encoder/embeddings/token_type/embedding": ". embed",
    "encoder/embeddings/norm/scale": "width",
    "encoder/embeddings/norm/bias": "width",
    **below("encoder/layers/block/attention", PROJECTIONS | _OUTPUT),
    **below("encoder/layers/block/feed_forward", _FEED_FORWARD),
    "head/output/kernel": "embed .",
    "head/output/bias": ".",
}
BERT = {**ENCODER, "pooler/kernel": "embed .", "pooler/bias": "."}
ROBERTA = {**ENCODER, "head/dense/kernel": "embed .", "head/dense/bias": "."}
QKV = {"qkv/kernel": "layers embed . heads", "qkv/bias": "layers . heads"}
BLOCK = {**below("attention", QKV | _OUTPUT), **below("feed_forward", _FEED_FORWARD)}
AROUND = {
    "embeddings/token/embedding": "vocabulary embed",
    "embeddings/position/embedding": ". embed",
    "norm/scale": "width",
    "norm/bias": "width",
}
DECODER = {**AROUND, **below("layers/block", BLOCK)}
AFFINE = {
    "down/kernel": "layers embed rank", "down/bias": "layers .",
    "up/kernel": "layers rank embed", "up/bias": "layers .",
}  # fmt: skip
IN_FEED_FORWARD = below("layers/block/feed_forward/adapter", AFFINE)
IN_ATTENTION = below("layers/block/attention/adapter", AFFINE)
LORA = lora_jax.lora(
    {".*/qkv": {"parts": ("q", "v"), "fused": ("q", "k", "v")}, ".*/(token|output|up|down)": {}},
    rank=2, alpha=2.0,
)  # fmt: skip
FACTORS = {
    "embeddings/token/lora/a": "vocabulary rank",
    "embeddings/token/lora/b": "rank embed",
    "layers/block/attention/qkv/lora/q/a": "layers embed rank",
    "layers/block/attention/qkv/lora/q/b": "layers rank . heads",
    "layers/block/attention/qkv/lora/v/a": "layers embed rank",
    "layers/block/attention/qkv/lora/v/b": "layers rank . heads",
    "layers/block/attention/output/lora/a": "layers heads rank",
    "layers/block/attention/output/lora/b": "layers rank embed",
    "layers/block/feed_forward/up/lora/a": "layers embed rank",
    "layers/block/feed_forward/up/lora/b": "layers rank mlp",
    "layers/block/feed_forward/down/lora/a": "layers mlp rank",
    "layers/block/feed_forward/down/lora/b": "layers rank embed",
}
CASES = {
    "bert": ("bert", None, BERT),
    "roberta": ("roberta", None, ROBERTA),
    "gpt2": ("gpt2", None, DECODER),
    "lora": ("gpt2", LORA, {**DECODER, **FACTORS}),
    "lora of bert": (
        "bert",
        lora_jax.lora(".*/query", rank=2, alpha=2.0, head="head/.*"),
        BERT
        | below(
            "encoder/layers/block/attention/query/lora",
            {"a": "layers embed rank", "b": "layers rank heads"},
        ),
    ),
    "adapter_h": ("gpt2", lora_jax.adapter_h(2), DECODER | IN_ATTENTION | IN_FEED_FORWARD),
    "adapter_l": (
        "gpt2",
        lora_jax.adapter_l(2),
        DECODER | IN_FEED_FORWARD | below("layers/block/feed_forward/adapter", _VECTORS),
    ),
    "prefix_embed": (
        "gpt2",
        lora_jax.prefix_embed(1, 1),
        DECODER | {"embeddings/token/special/embedding": ". width"},
    ),
    "prefix_layer": (
        "gpt2",
        lora_jax.prefix_layer(1, 1),
        DECODER | {"layers/block/special/embedding": "layers . width"},
    ),
    "top_layers": (
        "gpt2",
        lora_jax.top_layers(1),
        AROUND | below("layers/first/block", BLOCK) | below("layers/last_1/block", BLOCK),
    ),
}


def model(kind):
    if kind == "gpt2":
        sizes = GPT2Config(8, 2, 2, vocab_size=50, n_positions=12)
        return nnx.eval_shape(lambda: GPT2(sizes, nnx.Rngs(0)))
    sizes = EncoderConfig(
        kind,
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        type_vocab_size=2,
    )
    return nnx.eval_shape(lambda: Classifier(sizes, 3, nnx.Rngs(0)))


def real(kind):
    """With values, which insertions read."""
    abstract = nnx.split(model(kind))
    values = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract[1])
    return nnx.merge(abstract[0], values)


def written(found):
    return {path: " ".join(axis or "." for axis in axes) for path, axes in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_named(case):
    kind, method, expected = CASES[case]
    made = real(kind)
    if method is not None:
        made = method.insert(made, jax.random.key(0))
    found = of_model(made)
    assert written(found) == expected
    used = {axis for axes in found.values() for axis in axes if axis}
    assert used <= RULES.keys()
    shapes = {"/".join(map(str, p)): v.shape for p, v in nnx.to_flat_state(nnx.state(made))}
    assert {p: len(s) for p, s in shapes.items()} == {p: len(axes) for p, axes in found.items()}


class Holder(nnx.Module):
    def __init__(self, make, rngs):
        self.layer = make(rngs)


LAYERS = {  # layer, names of its weight, names of the factors
    "Linear": (lambda r: nnx.Linear(4, 6, rngs=r), "embed mlp", "embed rank", "rank mlp"),
    "LinearGeneral": (
        lambda r: nnx.LinearGeneral((2, 4), (3, 5), axis=(-2, -1), rngs=r),
        "heads . embed mlp", "heads . rank", "rank embed mlp",
    ),
    "Einsum": (
        lambda r: nnx.Einsum("bd,dhk->bhk", (4, 3, 5), rngs=r),
        "embed heads .", "embed rank", "rank heads .",
    ),
    "Embed": (lambda r: nnx.Embed(7, 4, rngs=r), "vocabulary embed", "vocabulary rank",
              "rank embed"),
}  # fmt: skip


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_factors_have_the_axes_of_their_weight(kind, stacked):
    make, weight, a, b = LAYERS[kind]

    def holder(rngs):
        made = Holder(make, rngs)
        parameter = getattr(made.layer, "embedding" if kind == "Embed" else "kernel")
        name(parameter, tuple(None if axis == "." else axis for axis in weight.split()))
        return made

    rngs = nnx.Rngs(0)
    made = nnx.split_rngs(splits=3)(nnx.vmap(holder))(rngs) if stacked else holder(rngs)
    found = written(
        of_model(lora_jax.lora("layer", rank=2, alpha=2.0).insert(made, jax.random.key(0)))
    )
    lead = "layers " if stacked else ""
    leaf = "embedding" if kind == "Embed" else "kernel"
    assert found[f"layer/{leaf}"] == lead + weight
    assert found["layer/lora/a"] == lead + a and found["layer/lora/b"] == lead + b


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_s_factors_are_not_split(groups):
    """Its factors see the kernel with an axis of groups, which has no name."""
    layer = nnx.Conv(4, 6, (3,), feature_group_count=groups, rngs=nnx.Rngs(0))
    name(layer.kernel, (None, "embed", "mlp"))
    holder = Holder(lambda _: layer, None)
    adapted = lora_jax.lora("layer", rank=2, alpha=2.0).insert(holder, jax.random.key(0))
    found = of_model(adapted)
    assert found["layer/kernel"] == (None, "embed", "mlp")
    for factor in (adapted.layer.lora.a, adapted.layer.lora.b):
        axes = names(factor)
        assert len(axes) == factor.ndim and set(axes) == {None, "rank"}


def test_flax_s_own_annotation_is_taken_over():
    kernel = nnx.with_partitioning(nnx.initializers.zeros_init(), ("embed", None))
    with nnx.use_eager_sharding(False):  # else Flax shards while it makes the model, on its mesh
        made = Holder(lambda r: nnx.Linear(4, 6, kernel_init=kernel, rngs=r), nnx.Rngs(0))
    assert written(of_model(made)) == {"layer/kernel": "embed .", "layer/bias": "."}
    adapted = lora_jax.lora("layer", rank=2, alpha=2.0).insert(made, jax.random.key(0))
    found = written(of_model(adapted))
    # The rank has no name there: what reads Flax's names need not know it.
    assert found["layer/lora/a"] == "embed ." and found["layer/lora/b"] == ". ."
    # Ours goes first.
    name(made.layer.kernel, ("mlp", "embed"))
    assert names(made.layer.kernel) == ("mlp", "embed")


def test_what_has_no_name_is_whole_everywhere():
    plain = of_model(Holder(lambda r: nnx.Linear(4, 6, rngs=r), nnx.Rngs(0)))
    assert plain == {"layer/kernel": (None, None), "layer/bias": (None,)}
    assert spec(plain["layer/kernel"], MESH_AXES) == PartitionSpec(None, None)
    assert spec((), MESH_AXES) == PartitionSpec()


def test_partitions():
    assert spec(("layers", "embed", "heads"), MESH_AXES) == PartitionSpec(None, "fsdp", "model")
    assert spec(("batch", None), MESH_AXES) == PartitionSpec(("data", "fsdp"), None)
    assert spec(("rank", "vocabulary", "width"), MESH_AXES) == PartitionSpec(None, None, None)
    # A mesh that lacks an axis.
    assert spec(("batch", "mlp"), ("data",)) == PartitionSpec("data", None)
    with pytest.raises(ValueError, match=r"unknown logical axis 'head' in .*known are.*'heads'"):
        spec(("embed", "head"), MESH_AXES)


def test_named_is_metadata_of_a_variable():
    variable = nnx.Param(jnp.zeros((2, 3, 4)), **named("embed", "mlp"))
    assert names(variable) == ("layers", "embed", "mlp")


def test_constrain_without_a_mesh_is_nothing():
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", "width") is x


def test_constrain_with_a_mesh_asks_for_the_partition():
    mesh = AbstractMesh((2, 2, 2), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh):
        text = str(
            jax.make_jaxpr(lambda x: constrain(x, "batch", None, "heads"))(jnp.ones((4, 3, 2)))
        )
    assert "sharding_constraint" in text and "('data', 'fsdp')" in text and "'model'" in text
