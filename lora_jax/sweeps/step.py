"""Train and evaluation steps of several runs at once: `jax.vmap` over all that differs.

The base is an argument without an axis of runs: its matrices are multiplied once with the
activations of all runs. Under a mesh the runs are split over the axis `run`, and send each other their
metrics only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from lora_jax import partition
from lora_jax.arguments import Model
from lora_jax.costs.compiled import Jitted
from lora_jax.errors import InputError
from lora_jax.low_rank import seeding
from lora_jax.partition import Params, Structure
from lora_jax.sharding.mesh import RUN
from lora_jax.sharding.placement import Placement
from lora_jax.state import moved
from lora_jax.sweeps.runs import RunValues, of_run
from lora_jax.training.step import FINITE, Loss, Metrics, Weight, all_finite, batch_weight, outputs

Optimizer = Callable[[Any], optax.GradientTransformation]


def make_run_objective(
    structure: Structure[Model], loss: Loss[Model]
) -> Callable[[Params, RunValues, Params, Any, jax.Array], jax.Array]:
    """Builds `objective(trainable, values, frozen, batch, key)` of one run: its loss with dropout.

    Raises:
      ValueError: (from the objective) the model writes state, such as batch statistics.
    """

    def objective(
        trainable: Params, values: RunValues, frozen: Params, batch: Any, key: jax.Array
    ) -> jax.Array:
        model = partition.join(structure, of_run(trainable, values), frozen)
        for_model, for_branches = jax.random.split(key)
        seeding.seed_dropout(model, for_branches, values.rates)
        value = loss(model, batch, for_model)
        if written := sorted(moved(frozen, model)):
            raise InputError(
                f"the model writes state of its own when it trains ({', '.join(written[:5])}); the runs "
                "of a sweep share all but their trainable parameters. Call model.eval() before, which "
                "switches nnx.Dropout off and freezes nnx.BatchNorm, or train the runs one by one"
            )
        return value

    return objective


def make_runs_train_step(
    structure: Structure[Model],
    loss: Loss[Model],
    optimizer: Optimizer,
    placement: Placement | None = None,
    trainable: Mapping[str, Any] | None = None,
    *,
    own_batches: bool | None = None,
    at_once: int = 0,
    weight: Weight = batch_weight,
) -> Jitted:
    """Builds `step(trainable, state, values, frozen, batch, keys, number)`.

    It returns (trainable, state, metrics) with a first axis of runs in each. `trainable` and `state`
    are donated. There is one key for each run; the `number` of the step is folded into all of them.

    Args:
      structure: of the model with the common method.
      loss: of (model, batch, key).
      optimizer: of a run with this learning rate.
      placement: of one run's parameters; with it arguments must lie as its `of_runs` says.
      trainable: stacked arrays or shapes; needed with a placement.
      own_batches: whether batches have a first axis of runs too, or are the same for all. None: as
        the shape of a packed `Batch` shows.
      at_once: number of runs that are vectorised, in a loop over the others; 0 vectorises all. A loop
        takes the memory of the activations of so many runs only. Not where a mesh splits the runs.
      weight: of a run's batch, see `training.step.make_train_step`.

    Returns:
      A function under `jax.jit`.
    """
    objective = make_run_objective(structure, loss)

    def step_of_run(
        trainable: Params, state: Any, values: RunValues, key: jax.Array, frozen: Params, batch: Any,
        number: jax.Array,
    ) -> tuple[Params, Any, Metrics]:  # fmt: skip
        step_key = jax.random.fold_in(key, number)
        value, gradients = jax.value_and_grad(objective)(trainable, values, frozen, batch, step_key)
        of_run = optax.with_extra_args_support(optimizer(values.learning_rate))
        updates, state = of_run.update(gradients, state, trainable, weight=weight(batch))
        metrics = {"loss": value, "grad_norm": optax.global_norm(gradients)}
        trainable = optax.apply_updates(trainable, updates)
        metrics[FINITE] = all_finite(metrics, trainable)
        return trainable, state, metrics

    def step(
        trainable: Params, state: Any, values: RunValues, frozen: Params, batch: Any,
        keys: jax.Array, number: jax.Array,
    ) -> tuple[Params, Any, Metrics]:  # fmt: skip
        several = batch.inputs.tokens.ndim == 3 if own_batches is None else own_batches

        def run(arguments: tuple[Any, ...]) -> tuple[Params, Any, Metrics]:
            trainable, state, values, key, batch_of_run = arguments
            return step_of_run(
                trainable, state, values, key, frozen, batch_of_run if several else batch, number
            )

        stacked = (trainable, state, values, keys, batch if several else ())
        result: tuple[Params, Any, Metrics] = _of_runs(run, stacked, at_once)
        return result

    if placement is None:
        return jax.jit(step, donate_argnums=(0, 1))
    assert trainable is not None
    of_runs = placement.of_runs()
    state = jax.eval_shape(initial_states(optimizer), dict(trainable), _one_rate(trainable))
    places = (
        of_runs.shardings(trainable), of_runs.state_shardings(state, trainable),
        placement.replicated,
    )  # fmt: skip
    compiled: Jitted = placement.jit(step, donate_argnums=(0, 1), out_shardings=places)
    return compiled


def initial_states(optimizer: Optimizer) -> Callable[[Params, jax.Array], Any]:
    """The function that makes the optimizer states of stacked parameters and learning rates."""
    return jax.vmap(lambda trainable, rate: optimizer(rate).init(trainable))


def _one_rate(trainable: Mapping[str, Any]) -> Any:
    runs = next(iter(trainable.values())).shape[0]
    return jax.ShapeDtypeStruct((runs,), "float32")


def make_runs_predict_step(
    structure: Structure[Model],
    placement: Placement,
    function: Callable[[Model, Any], Any] = outputs,
    at_once: int = 0,
) -> Callable[[Params, RunValues, Params, Any], Any]:
    """Builds `predict(trainable, values, frozen, batch)` in evaluation mode: a first axis of runs.

    Args:
      structure: of the model with the common method.
      placement: the results are whole on every device, so that every host can read them.
      function: of (model, batch); the default gives the model's outputs, one per slot.
      at_once: see `make_runs_train_step`.
    """

    def predict(trainable: Params, values: RunValues, frozen: Params, batch: Any) -> Any:
        def run(arguments: tuple[Params, RunValues]) -> Any:
            model = partition.join(structure, of_run(*arguments), frozen)
            model.eval()
            return function(model, batch)

        return _of_runs(run, (trainable, values), at_once)

    compiled: Callable[[Params, RunValues, Params, Any], Any] = placement.jit(
        predict, out_shardings=placement.replicated
    )
    return compiled


def _of_runs(function: Callable[[Any], Any], runs: Any, at_once: int) -> Any:
    """Applies `function` to every run: to all at once, or to so many in each turn of a loop."""
    if at_once:
        return jax.lax.map(function, runs, batch_size=at_once if at_once > 1 else None)
    return jax.vmap(function, spmd_axis_name=RUN)(runs)
