"""Placement: which device holds which part of parameters, optimizer state and batches."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from lora_jax.data.batch import Batch, Inputs
from lora_jax.partition import Params
from lora_jax.sharding.axes import Axes, spec
from lora_jax.sharding.mesh import shares

Shardings = dict[str, NamedSharding]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Puts arrays on a mesh, by the logical axes of a model's parameters.

    Attributes:
      mesh: from `make_mesh`.
      axes: of every parameter by path, from `axes.of_model`.
      runs: whether parameters and optimizer states have a first axis of runs.
    """

    mesh: Mesh
    axes: Mapping[str, Axes]
    runs: bool = False

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def of_runs(self) -> Placement:
        """The same for the parameters of several runs, stacked along a first axis."""
        axes = {path: ("runs", *own) for path, own in self.axes.items()}
        return Placement(self.mesh, axes, runs=True)

    @property
    def each_run(self) -> NamedSharding:
        """Of an array whose first axis is the runs, and nothing else split."""
        return NamedSharding(self.mesh, spec(("runs",), self.mesh.axis_names))

    def shardings(self, params: Mapping[str, Any]) -> Shardings:
        """The sharding of every parameter.

        Args:
          params: arrays or shapes by path.

        Raises:
          ValueError: a mesh axis does not divide a dimension; names the parameter.
        """
        return {path: self._sharding(path, leaf.shape) for path, leaf in params.items()}

    def _sharding(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        axes = self.axes.get(path, ())
        parts = spec(axes, self.mesh.axis_names)
        for size, axis, part in zip(shape, axes, parts, strict=False):
            over = (part,) if isinstance(part, str) else part or ()
            ways = math.prod(self.mesh.shape[name] for name in over)
            if size % ways:
                named = " x ".join(f"{name}={self.mesh.shape[name]}" for name in over)
                raise ValueError(
                    f"mesh: {named} does not divide the axis {axis!r} of {path}, which has {size} "
                    f"(shape {shape}); choose sizes that do"
                )
        return NamedSharding(self.mesh, parts)

    def state_shardings(self, state: Any, params: Mapping[str, Any]) -> Any:
        """Shardings of an optimizer state: what is kept per parameter lies where the parameter does.

        Args:
          state: arrays or shapes; leaves below a parameter's path and of its shape are such values.
          params: the parameters that train, arrays or shapes.
        """
        shardings = self.shardings(params)
        other = self.each_run if self.runs else self.replicated

        def one(keys: tuple[Any, ...], leaf: Any) -> NamedSharding:
            paths = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
            own = next((path for path in reversed(paths) if path in params), None)
            same = own is not None and leaf.shape == params[own].shape
            return shardings[own] if own is not None and same else other

        return jax.tree_util.tree_map_with_path(one, state)

    def put(self, params: Mapping[str, Any]) -> Params:
        """Parameters on their devices; every host gives the same whole values."""
        shardings = self.shardings(params)
        return {path: put(value, shardings[path]) for path, value in params.items()}

    def per_run(self, tree: Any) -> Any:
        """A tree of values with a first axis of runs, equal on every host, split by runs."""
        return jax.tree.map(lambda leaf: put(leaf, self.each_run), tree)

    def replicate(self, tree: Any) -> Any:
        """A tree of equal values on every host, whole on every device."""
        return jax.tree.map(lambda leaf: put(leaf, self.replicated), tree)

    def batch(self, batch: PyTree) -> PyTree:
        """A batch on the devices, which share out its token rows or its examples.

        Every host holds the whole batch (packing is cheap and a function of the seed) and sends the
        part of its own devices. Of a packed batch the token rows are split and the slots are whole;
        rows that are missing for equal parts are added as padding; where its arrays have a first axis
        of runs, each run's devices get their own. Of any other tree of arrays the first axis is split.

        Raises:
          ValueError: the devices cannot share the examples of an unpacked batch in equal parts.
        """
        if isinstance(batch, Batch):
            return self._packed_batch(batch)
        parts = shares(self.mesh)
        for count in {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}:
            if count % parts:
                raise ValueError(
                    f"mesh: data x fsdp = {parts} does not divide a batch of {count} examples; choose a "
                    "batch size that it divides, and drop a smaller last batch (drop_last=True)"
                )
        examples = NamedSharding(self.mesh, spec(("batch",), self.mesh.axis_names))
        return jax.tree.map(lambda leaf: put(leaf, examples), batch)

    def _packed_batch(self, batch: Batch) -> Batch:
        parts = shares(self.mesh)
        runs: Axes = ("runs",) * (batch.inputs.tokens.ndim - 2)
        rows, slot = (
            NamedSharding(self.mesh, spec((*runs, *own), self.mesh.axis_names))
            for own in (("batch", None), (None,))
        )
        inputs = [put(_padded(np.asarray(field), parts), rows) for field in batch.inputs]
        slots: dict[str, Any] = {
            k: put(v, slot) for k, v in batch._asdict().items() if k != "inputs"
        }
        return batch._replace(inputs=Inputs(*inputs), **slots)

    def by_rows(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of host arrays with equal numbers of rows, shared out over the devices.

        The last row is repeated until all devices have equal parts; the results' extra rows are cut.
        """
        parts = shares(self.mesh)
        rows = NamedSharding(self.mesh, spec(("batch",), self.mesh.axis_names))

        def shared_out(*values: np.ndarray) -> Any:
            count = len(values[0])
            indices = np.minimum(np.arange(count + -count % parts), count - 1)
            found = jax.device_get(function(*(put(value[indices], rows) for value in values)))
            return jax.tree.map(lambda leaf: leaf[:count], found)

        return shared_out

    def jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """`jax.jit` of a function whose `constrain` calls mean this mesh."""

        @functools.wraps(function)
        def on_mesh(*args: Any) -> Any:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*args)

        return jax.jit(on_mesh, **options)

    def initial_state(self, init: Callable[[Params], Any], params: Params) -> Any:
        """An optimizer's state of placed parameters, made where it belongs."""
        shardings = self.state_shardings(jax.eval_shape(init, params), params)
        return self.jit(init, out_shardings=shardings)(params)


def put(value: Any, sharding: NamedSharding) -> jax.Array:
    """An array of which every host has the whole value; each sends the parts of its devices."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(value), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(value)
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def gather(tree: Any) -> Any:
    """A tree of placed arrays as numpy arrays, whole on every host; all hosts must call it."""

    def one(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            mesh = leaf.sharding.mesh  # type: ignore[attr-defined]
            leaf = put(leaf, NamedSharding(mesh, PartitionSpec()))
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


@contextmanager
def in_host_memory() -> Iterator[None]:
    """New arrays are made in this host's memory, not on an accelerator, until they are placed."""
    try:
        host = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # the CPU was switched off (JAX_PLATFORMS)
        host = nullcontext()  # type: ignore[assignment]
    with host:
        yield


def _same(x: jax.Array) -> jax.Array:  # one function, so that one program serves equal shapes
    return x


def _padded(rows: np.ndarray, parts: int) -> np.ndarray:
    *runs, count, _ = rows.shape
    missing = -count % parts
    return np.pad(rows, (*[(0, 0)] * len(runs), (0, missing), (0, 0))) if missing else rows
