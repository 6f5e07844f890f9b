"""ResNet and ViT against PyTorch `transformers`, and LoRA on convolutions against PEFT."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers
import vision_models
from deviations import deviation
from flax import nnx
from safetensors.numpy import load_file, save_file
from vision_models import for_torch, pictures, to_ours

import lora_jax as lj
from lora_jax import adapters, partition, state
from lora_jax.errors import InputError
from lora_jax.interop import peft as of_peft
from lora_jax.models.layouts import VIT_MODULES
from lora_jax.models.vision import files
from lora_jax.models.vision.resnet import ResNet, ResNetConfig
from lora_jax.models.vision.vit import ViT, ViTConfig
from lora_jax.training import ArrayBatches, Trainer, TrainSettings

torch.set_num_threads(1)

# Reached on a CPU in float32, relative to the largest value of the tensor: see the printed lines. The order
# of summation differs; the tolerances are about ten times that.
LOGITS, GRADIENTS = 1e-5, 2e-5
LABELS = np.array([0, 2, 1, 1, 0])


@pytest.fixture(scope="module", params=vision_models.VARIANTS)
def pair(request, tmp_path_factory):
    """A model of transformers, ours from its folder, and pictures of its size."""
    folder = tmp_path_factory.mktemp("model")
    theirs = vision_models.reference(request.param, seed=len(request.param))
    theirs.save_pretrained(folder)
    ours = vision_models.load(folder)
    size = vision_models.VARIANTS[request.param].get("image_size", 32)
    draws = (pictures(5, size, seed) for seed in range(10))
    return theirs, ours, next(x for x in draws if is_smooth(theirs, x)), folder


def is_smooth(theirs, images):
    """Whether rounding switches no ReLU and no maximum: there gradients jump, on some processors only."""
    _, rounded = torch_outputs(theirs, images)
    _, exact = torch_outputs(copy.deepcopy(theirs).double(), images.astype(np.float64))
    rounded, exact = (to_ours({n: g.float() for n, g in of.items()}) for of in (rounded, exact))
    return deviation(rounded, exact) < GRADIENTS / 2


def outputs(model, images, method=None):
    """Logits, gradients of the loss by path, and what moved; of all that the method trains, or of all."""
    labels = (method or lj.full()).labels(model)
    structure, params, rest = partition.split(model, labels)

    @jax.jit
    def both(params):
        def of(p):
            joined = partition.join(structure, p, rest)
            logits = joined(images)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()
            return loss, (logits, state.moved(rest, joined))

        return jax.grad(of, has_aux=True)(params)

    gradients, (logits, moved) = both(params)
    return np.asarray(logits), jax.tree.map(np.asarray, gradients), jax.tree.map(np.asarray, moved)


def torch_outputs(theirs, images):
    """Logits and gradients by name."""
    theirs.zero_grad()
    logits = theirs(for_torch(images)).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS)).backward()
    return logits.detach().numpy(), {n: p.grad for n, p in theirs.named_parameters()}


def test_logits_and_all_gradients_equal_pytorch(pair):
    theirs, ours, images, _ = pair
    expected = to_ours(theirs.state_dict())
    loaded = state.values(ours, "parameter", "statistic")
    assert set(loaded) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)
    ours.eval()
    logits, gradients = torch_outputs(theirs, images)
    found, own, moved = outputs(ours, images)
    reached = deviation({"": found}, {"": logits}), deviation(own, to_ours(gradients))
    print(f"\ndeviation: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS
    assert reached[1] < GRADIENTS
    assert not moved


@pytest.mark.parametrize("pair", ["bottleneck"], indirect=True)
def test_training_moves_the_statistics_as_pytorch_does(pair):
    theirs, ours, images, _ = pair
    before = {name: value.clone() for name, value in theirs.named_buffers()}
    logits, gradients = torch_outputs(theirs.train(), images)
    after = {n: v.clone() for n, v in theirs.named_buffers()}
    theirs.eval()
    for name, value in theirs.named_buffers():  # as it was, for the other tests
        value.copy_(before[name])
    ours.train()
    found, own, moved = outputs(ours, images)
    statistics = to_ours(after)
    assert set(moved) == set(statistics)
    reached = (
        deviation({"": found}, {"": logits}), deviation(own, to_ours(gradients)),
        deviation(moved, statistics),
    )  # fmt: skip
    print(f"\ndeviation in training: {', '.join(f'{r:.1e}' for r in reached)}")
    # Normalised by five pictures, gradients are small differences of large numbers.
    assert reached[0] < 10 * LOGITS
    assert reached[1] < 20 * GRADIENTS
    assert reached[2] < LOGITS


CONV = r".*/conv"


def test_lora_on_convolutions_is_that_of_peft(tmp_path):
    """Logits and gradients of the factors, and the merged net; of all windows and strides."""
    theirs = vision_models.reference("bottleneck", seed=3)
    theirs.save_pretrained(tmp_path)
    base = vision_models.load(tmp_path)
    base.eval()
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["convolution"])
    adapted = peft.get_peft_model(theirs, settings).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.2, generator=generator)
    images = pictures(5, 32)
    logits, gradients = torch_outputs(adapted, images)

    method = lj.lora(CONV, rank=2, alpha=4)
    model = method.insert(base, jax.random.key(1))

    def factors(tensors):
        """A (rank, in, *window) and B (out, rank, 1, 1) as ours."""
        found = {}
        for name, value in tensors.items():
            if "lora_" not in name:
                continue
            module, _, end = name.removeprefix("base_model.model.").partition(".lora_")
            [path] = to_ours({f"{module}.weight": torch.zeros(1, 1, 1, 1)})
            value = value.detach().numpy().transpose(2, 3, 1, 0)
            value = value[None] if end[0] == "A" else value[0]  # with the axis of groups
            found[f"{path.removesuffix('kernel')}lora/{end[0].lower()}"] = jnp.asarray(value)
        return found

    state.write(model, factors(dict(adapted.named_parameters())))
    found, own, _ = outputs(model, images, method)
    reached = deviation({"": found}, {"": logits}), deviation(own, factors(gradients))
    print(f"\ndeviation from PEFT: logits {reached[0]:.1e}, gradients {reached[1]:.1e}")
    assert reached[0] < LOGITS
    assert reached[1] < GRADIENTS
    merged = lj.merge(model)
    whole = adapted.merge_and_unload()
    assert type(merged.stem.conv) is nnx.Conv
    np.testing.assert_allclose(merged(images), found, rtol=0, atol=1e-5 * np.abs(found).max())
    assert (
        deviation(state.values(merged, "parameter"), to_ours(dict(whole.named_parameters()))) < 1e-6
    )


@pytest.mark.parametrize("pair", ["vit", "bottleneck"], indirect=True)
def test_what_does_not_fit_is_refused(pair, tmp_path):
    _, ours, images, folder = pair
    config = files.read_config(folder)
    tensors = load_file(folder / "model.safetensors")
    text = (folder / "config.json").read_text()

    def refused(match, changed=None, **keys):
        (tmp_path / "config.json").write_text(json.dumps({**json.loads(text), **keys}))
        save_file(tensors if changed is None else changed, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=match):
            vision_models.load(tmp_path)

    name = next(
        n for n in tensors if n.endswith(("projection.weight", "embedder.convolution.weight"))
    )
    refused("1 missing", {n: v for n, v in tensors.items() if n != name})
    refused("1 extra: other", {**tensors, "other": np.zeros(1, np.float32)})
    refused("1 misshapen", {**tensors, name: tensors[name].swapaxes(0, 1).copy()})
    refused("model_type 'swin'", model_type="swin")
    refused("hidden_act", hidden_act="silu")
    refused("architectures", architectures=["ViTModel"])
    if isinstance(ours, ViT):
        refused("image_size", image_size=[8, 12])
        with pytest.raises(InputError, match="pictures of shape"):
            ours(np.zeros((1, 5, 5, 3), np.float32))
    else:
        refused("depths", depths=[1, 1, 1])
    with pytest.raises(InputError, match="channels last"):
        ours(images.transpose(0, 3, 1, 2))
    fresh = files.load(folder, config, 7, jax.random.key(0))
    assert fresh.head.output.kernel.shape[-1] == 7


@pytest.mark.parametrize("pair", ["vit without biases", "early"], indirect=True)
def test_verify_passes_on_convolutions_and_linear_layers(pair):
    _, ours, images, _ = pair
    targets = "all-linear" if isinstance(ours, ViT) else CONV
    lj.verify(ours, lj.lora(targets, rank=2, head=r"head/.*"), images[:2]).check()


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_every_key_of_transformers_is_known(kind):
    config = transformers.AutoConfig.for_model(kind)
    unknown = set(config.to_dict()) - files.KINDS[kind].keys.known()
    assert not unknown


def test_published_sizes():
    """Parameters of google/vit-base-patch16-224 and microsoft/resnet-50, as published."""
    for config, count in ((ViTConfig(), 86_567_656), (ResNetConfig(), 25_557_032)):
        model = nnx.eval_shape(lambda config=config: files.make(config, 1000, nnx.Rngs(0)))
        assert partition.count(partition.parameters(model)) == count


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_statistics_of_a_frozen_base_stay_or_move_as_its_mode_says(mode, tmp_path):
    """In evaluation mode nothing moves; else the statistics go with the adapter, and come back with it."""
    sizes = {"embedding_size": 4, "hidden_sizes": (4,), "depths": (1,), "layer_type": "basic"}
    base = ResNet(ResNetConfig(num_channels=3, stem="small", **sizes), 3, nnx.Rngs(0))
    getattr(base, mode)()
    before = jax.tree.map(np.asarray, state.values(base, "statistic"))
    method = lj.lora(CONV, rank=1, head=r"head/.*")
    trainer = Trainer(base, method, TrainSettings(epochs=1, learning_rate=1e-2, warmup_ratio=0.0))
    batches = ArrayBatches({"image": pictures(6), "label": np.arange(6) % 3}, 3)

    def loss(model, batch, key):
        logits = model(batch["image"], key=key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    result = trainer.fit(batches, loss, tmp_path / "run")
    tuned = lj.load(tmp_path / "run", base)
    moved = {
        path
        for path, value in state.values(tuned, "statistic").items()
        if not np.array_equal(value, before[path])
    }
    assert moved == (set(before) if mode == "train" else set())
    assert (set(result.best) & set(before)) == moved
    tuned.eval()
    images = pictures(4, seed=1)
    merged = lj.merge(tuned)
    expected = tuned(images)
    np.testing.assert_allclose(merged(images), expected, rtol=0, atol=1e-5)
    assert np.abs(expected - files_eval(base, images)).max() > 1e-3  # training did something


def files_eval(model, images):
    """Logits in evaluation mode."""
    copy = nnx.clone(model)
    copy.eval()
    return copy(images)


def test_bfloat16_is_near_float32():
    sizes = {"embedding_size": 8, "hidden_sizes": (8,), "depths": (1,), "layer_type": "basic"}
    transformer = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    run = nnx.jit(lambda model, images: model(images))
    for config in (ResNetConfig(stem="small", **sizes), transformer):
        logits = []
        for dtype in ("float32", "bfloat16"):
            own = dataclasses.replace(config, compute_dtype=dtype)
            model = nnx.jit(lambda own=own: files.make(own, 3, nnx.Rngs(0)))()
            model.eval()
            logits.append(np.asarray(run(model, pictures(2))))
        exact, rounded = logits
        assert rounded.dtype == np.float32
        difference = np.abs(rounded - exact).max() / np.abs(exact).max()
        assert 1e-5 < difference < 0.1  # 8 bits of mantissa, through a few layers


def test_adapters_of_peft_for_vit_come_and_go(tmp_path):
    """Under the names of modules in today's transformers, and under those of published adapters."""
    theirs = vision_models.reference("vit", seed=5)
    theirs.save_pretrained(tmp_path)
    base = vision_models.load(tmp_path)
    settings = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "fc1", "fc2"],
        modules_to_save=["classifier"],
    )  # fmt: skip
    adapted = peft.get_peft_model(theirs, settings).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                value.normal_(0, 0.2, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    expected = adapted(for_torch(pictures())).logits.detach().numpy()

    params = partition.parameters(base)
    shapes = {path: tuple(value.shape) for path, value in params.items()}

    def leaf(of):
        return np.asarray(params[of.path] if of.layer is None else params[of.path][of.layer])

    old = {"q_proj": "query", "v_proj": "value", "o_proj": "dense", "fc1": "dense", "fc2": "dense"}

    def published(name):
        name = name.replace("vit.layers", "vit.encoder.layer")
        name = re.sub(
            r"attention\.([qv])_proj", lambda m: f"attention.attention.{old[m[0][10:]]}", name
        )
        name = name.replace("attention.o_proj", "attention.output.dense")
        return name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")

    classic = {**config, "target_modules": sorted(set(old.values()))}
    run = nnx.jit(lambda model, images: model(images))
    for architecture, own, given in (
        (VIT_MODULES, config, tensors),
        ("vit", classic, {published(n): v for n, v in tensors.items()}),
    ):
        names = of_peft.names(architecture, 2, shapes, bare=False)
        found = of_peft.from_tensors(own, given, names, leaf)
        fingerprint = adapters.fingerprint(adapters.base_parameters(base, files.HEAD))
        adapter = adapters.Adapter(found.method, found.groups, found.values, fingerprint, {})
        model = adapters.attach(base, adapter, files.HEAD)
        reached = deviation({"": np.asarray(run(model, pictures()))}, {"": expected})
        assert reached < LOGITS
        back, again = of_peft.to_tensors(adapter, names, leaf, "base")
        assert set(back["target_modules"]) <= {n.rpartition(".")[2] for n in names.weights} | set(
            names.weights
        )
        assert {n: v.shape for n, v in again.items()} == {n: v.shape for n, v in given.items()}
        for name, value in given.items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)
