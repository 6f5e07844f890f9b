"""Steps of many runs at once: each run is the one that `lora_jax.training.step` trains alone."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax import partition
from lora_jax.data.completions import TokenisedPairs
from lora_jax.data.packing import TokenisedExamples
from lora_jax.models.encoder import Classifier, EncoderConfig
from lora_jax.models.gpt2 import GPT2, GPT2Config
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import make_mesh
from lora_jax.sharding.placement import Placement
from lora_jax.sweeps import padding
from lora_jax.sweeps import runs as run_numbers
from lora_jax.sweeps import step as runs_step
from lora_jax.sweeps.common_method import common_method
from lora_jax.training import optimizer, step

STEPS, VOCABULARY, LENGTH = 4, 13, 12
QV = {"fused": ("q", "k", "v"), "parts": ("q", "v")}


def quick_key(seed):
    return jax.random.key(seed, impl="rbg")  # for initial values: it compiles five times faster


def decoder():
    config = GPT2Config(
        8, 2, 2, vocab_size=VOCABULARY, n_positions=LENGTH, initializer_range=0.4,
        attn_pdrop=0.1,
    )  # fmt: skip
    return GPT2(config, nnx.Rngs(params=quick_key(0)))


def classifier():
    config = EncoderConfig(
        "roberta",
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        initializer_range=0.4,
        position_offset=2,
        attention_probs_dropout_prob=0.0,
    )
    return Classifier(config, 3, nnx.Rngs(params=quick_key(0)))


def adapt_decoder(rank, up, **settings):
    """Fused parts of one rank, a feed-forward layer of another."""
    return lora_jax.lora(
        {".*/qkv": QV, ".*/up": {"rank": up, "dropout": 0.0}}, rank=rank, **settings
    )


def adapt_classifier(rank, **settings):
    return lora_jax.lora([".*/value", ".*/word"], rank=rank, head="head/.*", **settings)


# (constructor, loss, methods, learning rates, seeds). All runs' numbers differ.
MODELS = {
    "decoder": (
        decoder,
        step.completion_loss(0.1),
        [
            adapt_decoder(1, 3, alpha=4.0),
            adapt_decoder(3, 2, alpha=6.0, scaling="alpha/sqrt(r)", dropout=0.5),
            adapt_decoder(2, 1, init="gaussian", std=0.3, dropout=0.1),
        ],
        [0.02, 0.005, 0.05],
        [5, 0, 7],
    ),
    "classifier": (
        classifier,
        step.classification_loss,
        [
            adapt_classifier(2, dropout=0.1, alpha=8.0),
            adapt_classifier(3, init="gaussian", scaling="alpha/sqrt(r)"),
        ],
        [0.01, 0.03],
        [1, 2],
    ),
}


def examples(name):
    random = np.random.default_rng(0)
    ids = [random.integers(1, VOCABULARY, n).astype(np.int32) for n in random.integers(3, 8, 40)]
    if name == "decoder":
        return TokenisedPairs(ids, np.array([1] * len(ids), np.int32))
    labels = random.integers(0, 3, len(ids)).astype(np.int32)
    return TokenisedExamples(ids, [np.zeros_like(row) for row in ids], labels)


def packed(name, orders, rows, slots):
    """A batch for every step and run, or with one order a batch for every step."""
    rows_of = examples(name)
    return [[rows_of.pack(order[5 * n : 5 * n + 5], (rows, LENGTH), slots) for order in orders]
            for n in range(STEPS)]  # fmt: skip


def tx(labels, rate):
    schedule = optimizer.linear_schedule(rate, STEPS, 0.25)
    # Gradients around 1e-8 are rounding, which Adam's usual epsilon would make as large as others.
    return optimizer.adamw(labels, schedule, weight_decay=0.1, max_grad_norm=1.0, eps=1e-4)


@pytest.fixture(
    scope="module", params=["decoder", pytest.param("classifier", marks=pytest.mark.slow)]
)
def sweep(request):
    """A base, its runs alone and stacked, and their steps."""
    make, loss, methods, rates, seeds = MODELS[request.param]
    base = make()
    common = common_method(methods).insert(base, quick_key(99))
    labels = common_method(methods).labels(common)
    structure, room, frozen = partition.split(common, labels)
    shapes = padding.shapes_of(room)
    placement = Placement(make_mesh({}, jax.devices()[:1]), axes.of_model(common))
    own_labels = {path: labels[path] for path in room}
    runs = []
    for method, rate, seed in zip(methods, rates, seeds, strict=True):
        adapted = method.insert(base, quick_key(seed))
        own_structure, params, _ = partition.split(adapted, method.labels(adapted))
        runs.append(types.SimpleNamespace(
            structure=own_structure, start={path: np.asarray(x) for path, x in params.items()},
            tx=tx(own_labels, rate), values=run_numbers.run_values(adapted, rate),
            key=jax.random.key(100 + seed),
            step=step.make_train_step(own_structure, loss, tx(own_labels, rate)),
        ))  # fmt: skip
    stacked = padding.stacked([padding.padded(run.start, shapes) for run in runs])

    def optimizer_of(rate):
        return tx(own_labels, rate)

    return types.SimpleNamespace(
        name=request.param, structure=structure, frozen=frozen, runs=runs, stacked=stacked,
        placement=placement, shapes=shapes, optimizer=optimizer_of,
        values=run_numbers.stack([run.values for run in runs]),
        keys=jnp.stack([run.key for run in runs]),
        step=runs_step.make_runs_train_step(structure, loss, optimizer_of, placement, stacked),
        orders=[np.random.default_rng(seed).permutation(40) for seed in seeds],
    )  # fmt: skip


def train_alone(sweep, i, batches):
    """(parameters, metrics of every step) of a run through `make_train_step`."""
    run = sweep.runs[i]
    trainable = {path: jnp.array(x) for path, x in run.start.items()}
    state, metrics = run.tx.init(trainable), []
    for number, batch in enumerate(batches):
        key = jax.random.fold_in(run.key, number)
        trainable, state, _, of_step = run.step(trainable, state, sweep.frozen, batch, key)
        metrics.append({name: float(value) for name, value in of_step.items()})
    return trainable, metrics


def train_together(sweep, batches, stacked=None, values=None):
    """The same of all runs, stacked."""
    values = sweep.values if values is None else values
    trainable = sweep.placement.of_runs().put(sweep.stacked if stacked is None else stacked)
    states = runs_step.initial_states(sweep.optimizer)
    state = sweep.placement.of_runs().initial_state(
        lambda params: states(params, jnp.asarray(values.learning_rate)), trainable
    )
    values, keys = sweep.placement.per_run(values), sweep.placement.per_run(sweep.keys)
    metrics = []
    for number, batch in enumerate(batches):
        trainable, state, of_step = sweep.step(
            trainable, state, values, sweep.frozen, sweep.placement.batch(batch), keys,
            np.uint32(number),
        )  # fmt: skip
        metrics.append({name: np.asarray(value) for name, value in of_step.items()})
    return {path: np.asarray(x) for path, x in trainable.items()}, metrics


SLOTS = 40


def stack_batches(batches):
    return [jax.tree.map(lambda *x: np.stack(x), *of_runs) for of_runs in batches]


def assert_alone(sweep, together, metrics, batches_of):
    for i, run in enumerate(sweep.runs):
        expected, alone = train_alone(sweep, i, batches_of(i))
        params = padding.cut(
            {path: x[i] for path, x in together.items()}, padding.shapes_of(run.start)
        )
        for path, x in expected.items():
            # The same sums in another order, through 4 updates of at most the learning rate.
            np.testing.assert_allclose(params[path], x, rtol=1e-4, atol=5e-5, err_msg=f"{i} {path}")
            back = padding.padded(params, sweep.shapes)[path]
            np.testing.assert_array_equal(back, together[path][i])  # the padding is zero
        moved = max(np.abs(x - run.start[path]).max() for path, x in expected.items())
        assert moved > 0.5 * float(run.values.learning_rate)
        for here, there in zip(metrics, alone, strict=True):
            for name in ("loss", "grad_norm"):
                # float32, through two layers: 2e-6 reached at the first step.
                assert here[name][i] == pytest.approx(there[name], rel=2e-4), (i, name)


def test_runs_with_batches_of_their_own_are_those_alone(sweep):
    """Together there are more rows and slots than alone: dropout masks do not notice."""
    many = stack_batches(packed(sweep.name, sweep.orders, 5, SLOTS + 3))
    assert many[0].inputs.tokens.shape == (len(sweep.runs), 5, LENGTH)
    few = packed(sweep.name, sweep.orders, 4, SLOTS)
    together, metrics = train_together(sweep, many)
    assert_alone(sweep, together, metrics, lambda i: [batches[i] for batches in few])


# One model is enough for what does not depend on it.
of_the_decoder = pytest.mark.parametrize("sweep", ["decoder"], indirect=True)


@of_the_decoder
def test_runs_with_the_same_batches_are_those_alone(sweep):
    batches = [one for [one] in packed(sweep.name, sweep.orders[:1], 4, SLOTS)]
    together, metrics = train_together(sweep, batches)
    assert_alone(sweep, together, metrics, lambda _: batches)


@of_the_decoder
@pytest.mark.parametrize("how", ["learning rate", "infinite factors", "NaN factors"])
def test_a_run_that_diverges_does_not_touch_the_others(sweep, how):
    bad = 1
    batches = [one for [one] in packed(sweep.name, sweep.orders[:1], 4, SLOTS)]
    healthy, metrics = train_together(sweep, batches)
    stacked, values = {path: np.array(x) for path, x in sweep.stacked.items()}, sweep.values
    if how == "learning rate":
        rates = np.array(values.learning_rate)
        rates[bad] = 1e30
        values = values._replace(learning_rate=rates)
    else:
        for x in stacked.values():
            x[bad] = np.inf if how == "infinite factors" else np.nan
    together, broken = train_together(sweep, batches, stacked, values)
    assert not np.isfinite(broken[-1]["loss"][bad])
    others = [i for i in range(len(sweep.runs)) if i != bad]
    for path, x in healthy.items():
        np.testing.assert_array_equal(together[path][others], x[others], err_msg=path)
    for here, there in zip(broken, metrics, strict=True):
        for name in here:
            np.testing.assert_array_equal(here[name][others], there[name][others])


@of_the_decoder
def test_predictions_are_those_of_the_runs_alone(sweep):
    [[batch]] = packed(sweep.name, sweep.orders[:1], 4, SLOTS)[:1]
    random = np.random.default_rng(1)
    starts = [
        {path: random.normal(size=x.shape).astype(np.float32) for path, x in run.start.items()}
        for run in sweep.runs
    ]  # B is not zero, so that ranks and scales count
    stacked = padding.stacked([padding.padded(start, sweep.shapes) for start in starts])
    predict = runs_step.make_runs_predict_step(sweep.structure, sweep.placement)
    found = predict(stacked, sweep.values, sweep.frozen, batch)
    assert found.shape == (len(sweep.runs), SLOTS, VOCABULARY)
    for i, run in enumerate(sweep.runs):
        alone = step.make_predict_step(run.structure)(starts[i], sweep.frozen, batch)
        # Logits up to 50, sums in another order through two layers.
        np.testing.assert_allclose(found[i], alone, rtol=1e-4, atol=2e-3)
    assert np.abs(np.asarray(found[0]) - found[1]).max() > 1


@of_the_decoder
def test_values_of_runs(sweep):
    values, runs = sweep.values, sweep.runs
    paths = [f"layers/block/{p}" for p in
             ("attention/qkv/lora/q", "attention/qkv/lora/v", "feed_forward/up/lora")]  # fmt: skip
    assert sorted(values.scales) == sorted(values.rates) == paths
    by_hand = [[4.0, 6 / 3**0.5, 1.0]] * 2 + [[4 / 3, 6 / 2**0.5, 1.0]]
    for path, expected in zip(paths, by_hand, strict=True):
        np.testing.assert_allclose(values.scales[path], expected, rtol=1e-6)
        rates = [0, 0.5, 0.1] if "qkv" in path else [0, 0, 0]
        np.testing.assert_array_equal(values.rates[path], np.float32(rates))
    np.testing.assert_array_equal(values.learning_rate, np.float32([0.02, 0.005, 0.05]))
    assert run_numbers.stack([runs[0].values] * 2).rates == {}  # no run has dropout
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(values))
