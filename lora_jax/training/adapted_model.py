"""A pre-trained model with a method inserted, split into what trains and what is frozen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key

from lora_jax import adapters, digests, files, fingerprints, partition, warm_start
from lora_jax.adapters import replaced
from lora_jax.arguments import Model
from lora_jax.errors import InputError
from lora_jax.low_rank.layers import adapted_layers
from lora_jax.low_rank.merge import strip
from lora_jax.method import Around, Method
from lora_jax.methods.gradient_start import mean_gradient, set_starts, waiting_weights
from lora_jax.partition import Params
from lora_jax.quantisation.described import noted, packing
from lora_jax.quantisation.weight import value_counts
from lora_jax.sharding import axes
from lora_jax.sharding.mesh import REST, make_mesh
from lora_jax.sharding.placement import Placement, gather, in_host_memory
from lora_jax.state import differing, fixed, seeded, values
from lora_jax.training import step
from lora_jax.training.loop import Batches
from lora_jax.training.records import lora_layers
from lora_jax.verification.report import Verification
from lora_jax.verification.verify import verify

# Of a batch on this host: what the model with some trainable parameters gives for it.
Predict = Callable[[Any], np.ndarray]


class AdaptedModel(Generic[Model]):
    """A model split into what trains and what is frozen, which can be evaluated, saved and loaded.

    Attributes:
      method: what was inserted.
      base: fingerprint of the pre-trained parameters and statistics.
      bases: fingerprints that adapters may name: `base`, and those that earlier versions gave.
      start: digest of the key for initial values.
      labels: group of every parameter.
      summary: what the method did to the model; printable.
      layers: the layers that LoRA adapts, see `records.lora_layers`.
      packed: what of the model is packed, in words.
      structure, trainable, frozen: from `partition.split`. The trainable part is float32, in this
        host's memory; the frozen part, with the model's state, lies on the mesh.
      placement: where everything goes.
    """

    def __init__(
        self,
        model: Model,
        method: Method,
        *,
        key: Key[Array, ""] | None = None,
        mesh: Mesh | None = None,
        head: str | None = None,
        dtype: str | None = None,
        share_frozen_with: AdaptedModel[Model] | None = None,
    ):
        """Inserts the method into a copy of the model that shares its arrays.

        Args:
          model: pre-trained, best made `in_host_memory` where the host has accelerators.
          method: what to insert, and what trains.
          key: for initial values of what is inserted; `jax.random.key(0)` if not given.
          mesh: from `make_mesh`; if not given, all devices share the examples of every batch.
          head: regular expression for the paths of the task head's leaves, which are not of the base;
            if not given, the method's.
          dtype: type of the frozen parameters; None leaves the model's. State and packed weights keep
            their types.
          share_frozen_with: the same model on the same mesh, whose frozen part is used.

        Raises:
          ValueError: a rule matches no layer, a rank or alpha does not fit, or the mesh does not.
          TypeError: a matched layer cannot be adapted.
        """
        self.method = method
        with in_host_memory():
            shared = share_frozen_with
            self.bases: tuple[str, ...] = (
                tuple(fingerprints.accepted(model, method, head))
                if shared is None
                else shared.bases
            )
            self.base: str = self.bases[0]
            key = jax.random.key(0) if key is None else key
            self.start: str = digests.of_arrays(jax.random.key_data(key))
            adapted = method.insert(model, key)
            self.labels = method.labels(adapted)
            self.summary = method.summary(adapted)
            self.layers = lora_layers(self.summary)
            self.packed = packing(adapted)
            self.structure, trainable, frozen = partition.split(adapted, self.labels)
            self._shapes = jax.eval_shape(lambda: {**trainable, **frozen})
            self._waiting = waiting_weights(adapted)
            self._statistics = set(values(adapted, "statistic"))
            self._fixed, self._seeded = tuple(fixed(adapted)), tuple(seeded(adapted))
            mesh = make_mesh({"data": REST}) if mesh is None else mesh
            self.placement = Placement(mesh, axes.of_model(adapted))
            self.placement.shardings(trainable)  # a mesh that does not fit is refused here
            self.trainable: Params = {k: jnp.asarray(v, jnp.float32) for k, v in trainable.items()}
            self.frozen: Params
            if shared is None:
                plain = set(self.labels) - value_counts(adapted).keys()
                self.frozen = self.placement.put(_cast(frozen, dtype, plain))
            else:  # but for what the method inserted, which is this one's own
                own = {path: frozen[path] for path in (*self._fixed, *self._seeded)}
                of_base = {path: shared.frozen[path] for path in frozen if path not in own}
                self.frozen = of_base | self.placement.put(own)

    def model(self, trainable: Mapping[str, Any]) -> Model:
        """The adapted model with these trainable parameters; `lora_jax.merge` takes it.

        Here and in the other methods state that moved in training goes with the trainable parameters.
        """
        return partition.join(self.structure, trainable, self.frozen)

    def predictor(
        self, function: Callable[[Model, Any], Any] = step.outputs
    ) -> Callable[[Params], Predict]:
        """Compiles an evaluation: of trainable parameters it gives a function of batches.

        The model is in evaluation mode (`model.eval()`).

        Args:
          function: of (model, batch); the default gives the model's outputs, one per slot of a packed
            batch.
        """
        predict = step.make_predict_step(self.structure, function, self.placement)

        def of_parameters(trainable: Params) -> Predict:
            return lambda batch: np.asarray(
                predict(trainable, self.frozen, self.placement.batch(batch))
            )

        return of_parameters

    def verify(
        self, batch: Any, function: Callable[[Model, Any], Any] = step.outputs
    ) -> Verification | None:
        """What `lora_jax.verify` finds with this batch, in evaluation mode; None where LoRA adapts nothing.

        Args:
          batch: on this host; few and short examples do.
          function: of (model, batch), as of `predictor`.

        Raises:
          ValueError: the result has no finite floating-point numbers.
        """
        adapted = self.model(self.placement.put(self.trainable))
        if not adapted_layers(adapted):
            return None
        adapted.eval()
        return verify(strip(adapted), adapted, self.placement.batch(batch), call=function)

    def save(self, folder: Path, trainable: Params, notes: Mapping[str, Any]) -> None:
        """Writes the trainable parameters as an adapter folder, with notes on where they come from."""
        parameters = {path: value for path, value in trainable.items() if path in self.labels}
        with files.replaced_folder(folder) as new:
            adapters.save_adapter(
                new, parameters, self.labels, self.method, self.base, noted(self.packed) | dict(notes),
                state=self.kept(trainable),
            )  # fmt: skip

    def kept(self, trainable: Mapping[str, Any]) -> Params:
        """What an adapter folder holds besides parameters: statistics that moved, and fixed values.

        Args:
          trainable: values of a run, which go before the frozen ones.
        """
        every = {**self.frozen, **trainable}
        others = {path: every[path] for path in self._seeded if path in trainable}
        others = differing(gather(others), gather({path: self.frozen[path] for path in others}))
        return {**self._moved(trainable), **{path: every[path] for path in self._fixed}, **others}

    def of_method(self, updates: int) -> Around | None:
        """What the method does to the optimizer of a run with so many updates, see `Method.around`."""
        return self.method.around(partition.join(self.structure, self._shapes, {}), updates)

    def _moved(self, trainable: Mapping[str, Any]) -> Params:
        """The statistics among some values that are not the base's any more."""
        moved = {path: trainable[path] for path in sorted(self._statistics & trainable.keys())}
        return differing(gather(moved), gather({path: self.frozen[path] for path in moved}))

    def load(self, path: Path) -> Params:
        """The trainable parameters of an adapter folder (or of a run's), loaded strictly.

        Raises:
          FileNotFoundError, ValueError: no adapter, or one of another method, base or shape.
        """
        adapter = adapters.load_adapter(path)
        if adapter.method != self.method:
            raise InputError(
                f"{path} was trained by another method than the one named here:\n"
                f"  adapter {adapter.method.to_json()}\n"
                f"  here    {self.method.to_json()}\n"
                "Use the method of that run (for a command: its config and overrides)"
            )
        with in_host_memory():
            base = adapter.base if adapter.base in self.bases else self.base
            loaded = adapters.apply_adapter(
                adapter,
                self.trainable,
                base,
                str(path),
                self.frozen,
                packed=self.packed,
                fixed=self._fixed,
            )
        return self.placement.put(loaded)

    def fingerprints(self, trainable: Mapping[str, Any]) -> dict[str, str]:
        """What tells a trained model from others: its base, and its trained parameters exactly."""
        parameters = {path: value for path, value in trainable.items() if path in self.labels}
        whole = {**parameters, **self.kept(trainable)}
        return {"base": self.base, "weights": fingerprints.fingerprint(whole, jnp.float32)}

    def start_from_gradients(self, loss: step.Loss[Model], batches: Batches, count: int) -> None:
        """Starts updates with `init="lora_ga"` from the gradient of their weights, in place.

        Args:
          loss: of (model, batch, key), a scalar; without dropout.
          batches: the training data.
          count: batches whose mean gradient it is; fewer where an epoch has fewer.
        """
        if not (weights := self._waiting):
            return
        chosen = {path: self.frozen[path] for path in weights.values()}
        first = itertools.islice(batches.epoch(0, 0), min(count, batches.per_epoch))
        gradients = mean_gradient(
            self.structure, chosen, {**self.frozen, **self.placement.put(self.trainable)},
            lambda model, batch: loss(model, batch, None), map(self.placement.batch, first),
        )  # fmt: skip
        model = self.model(self.trainable)
        set_starts(model, weights, gradients)
        _, trainable, frozen = partition.split(model, self.labels)
        with in_host_memory():
            self.trainable = {path: jnp.asarray(np.asarray(v)) for path, v in trainable.items()}
        self.frozen |= self.placement.put({path: frozen[path] for path in self._fixed})

    def started(self, init_adapter: str = "") -> Params:
        """The trainable parameters as a run starts, LoRA's from another run if one is named.

        Args:
          init_adapter: folder of that run or of its adapter; "" for none.

        Raises:
          FileNotFoundError, ValueError: no adapter there, one of another base or of other scales, or its
            LoRA leaves are not the model's.
        """
        if not init_adapter:
            return self.trainable
        started = warm_started(
            self.trainable, self.labels, init_adapter, bases=self.bases, method=self.method,
            adapted=self.model(self.trainable),
        )  # fmt: skip
        kept = warm_state((*self._fixed, *self._seeded), self.frozen, init_adapter)
        self.frozen |= self.placement.put(kept)
        return started


def warm_state(paths: Iterable[str], frozen: Params, init_adapter: str) -> Params:
    """What another run has of the values that a method inserts and does not train, by path.

    The factors of such a run go with them: an update A B - A_0 B_0 is another one with other A_0 and B_0.

    Args:
      paths: of these values in a model with the same method.
      frozen: its values, fresh; their shapes and types count.
      init_adapter: folder of the other run or of its adapter.

    Raises:
      InputError: the other run's have other shapes.
    """
    there = adapters.load_adapter(init_adapter).state
    kept = {path: there[path] for path in paths if path in there}
    return replaced(kept, {path: frozen[path] for path in kept}, init_adapter, is_state=True)


def warm_started(
    trainable: Params,
    labels: Mapping[str, str],
    init_adapter: str,
    *,
    bases: Collection[str],
    method: Method,
    adapted: nnx.Module,
) -> Params:
    """The trainable parameters with LoRA's taken from another run, see `AdaptedModel.started`.

    Args:
      trainable: parameters of a run.
      labels: group of every parameter.
      init_adapter: folder of the other run or of its adapter.
      bases: fingerprints that it may name.
      method: of the run.
      adapted: the model with it.
    """
    other = adapters.load_adapter(init_adapter)
    warm_start.check_base(other, bases, init_adapter, packing(adapted))
    return warm_start.started(other, trainable, labels, method, adapted, init_adapter)


def _cast(frozen: Params, dtype: str | None, parameters: set[str]) -> Params:
    """Floating-point parameters in another type; None leaves all as they are."""
    if dtype is None:
        return frozen
    floating = {
        path
        for path, leaf in frozen.items()
        if path in parameters and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    return {path: v.astype(dtype) if path in floating else v for path, v in frozen.items()}
