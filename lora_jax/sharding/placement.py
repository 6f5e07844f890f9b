"""Placement: which device of a mesh holds which part of parameters, optimizer state and batches.

A sharding (`NamedSharding`) is a mesh and, for every axis of an array, the mesh axes over which it is
split. Every method here computes shardings from logical axes, or puts arrays on the devices by them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ParamSpec, TypeGuard, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from lora_jax.data.batch import Batch, Inputs
from lora_jax.errors import InputError
from lora_jax.partition import Params
from lora_jax.sharding.axes import Axes, constrain, spec
from lora_jax.sharding.mesh import AnyMesh, shares

Shardings = dict[str, NamedSharding]
Shaped = jax.Array | np.ndarray | jax.ShapeDtypeStruct
_Tree = TypeVar("_Tree")
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Puts arrays on a mesh, by the logical axes of a model's parameters.

    Attributes:
      mesh: from `make_mesh`. With an abstract mesh, which has no devices, shardings can be computed
        but nothing can be put.
      axes: logical axes of every parameter by path, from `axes.of_model`. Parameters that are not in
        it are whole on every device.
      runs: whether parameters and optimizer states have a first axis of runs.
    """

    mesh: AnyMesh
    axes: Mapping[str, Axes]
    runs: bool = False

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that is whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def of_runs(self) -> Placement:
        """The placement of several runs' parameters, stacked along a first axis."""
        axes = {path: ("runs", *names) for path, names in self.axes.items()}
        return Placement(self.mesh, axes, runs=True)

    @property
    def each_run(self) -> NamedSharding:
        """The sharding of an array that is split along its first axis, the runs, and no other."""
        return NamedSharding(self.mesh, spec(("runs",), self.mesh.axis_names))

    def shardings(self, params: Mapping[str, Shaped]) -> Shardings:
        """The sharding of every parameter.

        Args:
          params: arrays or shapes by path.

        Raises:
          ValueError: a mesh axis does not divide a dimension; the message names the parameter.
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
                raise InputError(
                    f"mesh: {named} does not divide the axis {axis!r} of {path}, which has {size} "
                    f"(shape {shape}); choose sizes that do"
                )
        return NamedSharding(self.mesh, parts)

    def state_shardings(self, state: PyTree, params: Mapping[str, Shaped]) -> PyTree[NamedSharding]:
        """Shardings of an optimizer state: values of a parameter are split as the parameter is.

        Args:
          state: arrays or shapes. A leaf below a parameter's path and of its shape is a value of that
            parameter, such as a moment; others, such as counts, are not split but by runs.
          params: the parameters that train, arrays or shapes.
        """
        shardings = self.shardings(params)
        other = self.each_run if self.runs else self.replicated

        def sharding(keys: tuple[Any, ...], leaf: Shaped) -> NamedSharding:
            paths = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
            path = next((path for path in reversed(paths) if path in params), None)
            if path is not None and leaf.shape == params[path].shape:
                return shardings[path]
            return other

        return jax.tree_util.tree_map_with_path(sharding, state)

    def constrain(self, params: Mapping[str, jax.Array]) -> Params:
        """Asks the compiler, inside `jit`, to split values of parameters as the parameters are."""
        return {path: constrain(v, *self.axes.get(path, ())) for path, v in params.items()}

    def put(self, params: Mapping[str, jax.typing.ArrayLike]) -> Params:
        """Puts parameters on their devices; every host must have the same whole values."""
        shardings = self.shardings(cast("Mapping[str, Shaped]", params))
        return {path: put(value, shardings[path]) for path, value in params.items()}

    def per_run(self, tree: _Tree) -> _Tree:
        """Puts a tree of values with a first axis of runs, which is split.

        Every host must have the same whole values.
        """
        placed: _Tree = jax.tree.map(lambda leaf: put(leaf, self.each_run), tree)
        return placed

    def replicate(self, tree: _Tree) -> _Tree:
        """Puts a tree of values, the same on every host, on every device as a whole."""
        placed: _Tree = jax.tree.map(lambda leaf: put(leaf, self.replicated), tree)
        return placed

    def batch(self, batch: PyTree) -> PyTree:
        """A batch on the devices, which share out its token rows or its examples.

        Every host holds the whole batch (packing is cheap and a function of the seed) and sends the
        part of its own devices. Of a packed batch the token rows are split and the slots are whole;
        rows that are missing for equal parts are added as padding; where its arrays have a first axis
        of runs, each run's devices get their own. Of any other tree of arrays the first axis is split.

        It runs no program, so that a thread can place a batch beside the steps of several processes, which
        must run their programs in one order.

        Raises:
          ValueError: the devices cannot share the examples of an unpacked batch in equal parts, or an array
            of it lies on the devices of several processes already, but split in another way.
        """
        if isinstance(batch, Batch):
            return self._packed_batch(batch)
        parts = shares(self.mesh)
        for count in {np.shape(leaf)[0] for leaf in jax.tree.leaves(batch)}:
            if count % parts:
                raise InputError(
                    f"mesh: data x fsdp = {parts} does not divide a batch of {count} examples; choose a "
                    "batch size that it divides, and drop a smaller last batch (drop_last=True)"
                )
        examples = NamedSharding(self.mesh, spec(("batch",), self.mesh.axis_names))
        for leaf in jax.tree.leaves(batch):
            if _spans_hosts(leaf) and not leaf.sharding.is_equivalent_to(examples, leaf.ndim):
                raise InputError(
                    f"a batch has an array that lies on the devices of several processes, split as "
                    f"{leaf.sharding} and not as {examples}; give whole NumPy arrays, or split it so"
                )
        return jax.tree.map(lambda leaf: leaf if _spans_hosts(leaf) else put(leaf, examples), batch)

    def _packed_batch(self, batch: Batch) -> Batch:
        parts = shares(self.mesh)
        runs: Axes = ("runs",) * (batch.inputs.tokens.ndim - 2)
        rows, slot = (
            NamedSharding(self.mesh, spec((*runs, *names), self.mesh.axis_names))
            for names in (("batch", None), (None,))
        )
        inputs = [put(_padded(np.asarray(field), parts), rows) for field in batch.inputs]
        slots: dict[str, Any] = {
            k: put(v, slot) for k, v in batch._asdict().items() if k != "inputs"
        }
        return batch._replace(inputs=Inputs(*inputs), **slots)

    def by_rows(self, function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Splits the rows of a function's arguments over the devices, and gathers its results.

        Args:
          function: of arrays with equal numbers of rows; its results have as many rows.

        Returns:
          A function of numpy arrays with any number of rows. It repeats the last row until all
          devices have equal parts, and cuts the extra rows of the results.
        """
        parts = shares(self.mesh)
        rows = NamedSharding(self.mesh, spec(("batch",), self.mesh.axis_names))

        def split_by_rows(*arrays: np.ndarray) -> PyTree[np.ndarray]:
            count = len(arrays[0])
            indices = np.minimum(np.arange(count + -count % parts), count - 1)
            results = jax.device_get(function(*(put(array[indices], rows) for array in arrays)))
            return jax.tree.map(lambda leaf: leaf[:count], results)

        return split_by_rows

    def jit(self, function: Callable[_Arguments, _Result], **options: Any) -> Any:
        """Compiles a function for this mesh: `jax.jit` where `constrain` splits over its axes.

        Args:
          function: to be compiled.
          options: of `jax.jit`.
        """

        @functools.wraps(function)
        def on_mesh(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*args, **kwargs)

        return jax.jit(on_mesh, **options)

    def initial_state(self, init: Callable[[Params], PyTree], params: Params) -> PyTree:
        """The optimizer state of placed parameters, each part made on the device that holds it.

        Args:
          init: of the optimizer.
          params: the parameters that train, placed.
        """
        shardings = self.state_shardings(jax.eval_shape(init, params), params)
        return self.jit(init, out_shardings=shardings)(params)


def put(value: jax.typing.ArrayLike, sharding: NamedSharding) -> jax.Array:
    """An array on the devices of a sharding; each host sends the parts of its own devices.

    Args:
      value: the whole array (or random keys), the same on every host.
      sharding: its mesh and the axes over which it is split.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(value), sharding)
        keys: jax.Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
        return keys
    if _spans_hosts(value):
        moved: jax.Array = jax.jit(_same, out_shardings=sharding)(value)
        return moved
    whole = np.asarray(value)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def gather(tree: PyTree) -> PyTree[np.ndarray]:
    """A tree of placed arrays as whole numpy arrays; all hosts must call it together."""

    def whole(leaf: jax.typing.ArrayLike) -> np.ndarray:
        if _spans_hosts(leaf):
            mesh = leaf.sharding.mesh  # type: ignore[attr-defined]
            leaf = put(leaf, NamedSharding(mesh, PartitionSpec()))
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


@contextmanager
def in_host_memory() -> Iterator[None]:
    """Inside of it new arrays are in this host's memory and not on an accelerator."""
    try:
        host = jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # the CPU was switched off (JAX_PLATFORMS)
        host = nullcontext()  # type: ignore[assignment]
    with host:
        yield


def _spans_hosts(leaf: Any) -> TypeGuard[jax.Array]:
    """Whether an array lies partly on devices of other processes."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _same(x: jax.Array) -> jax.Array:  # a lambda would be compiled again at each call
    return x


def _padded(rows: np.ndarray, parts: int) -> np.ndarray:
    *runs, count, _ = rows.shape
    missing = -count % parts
    return np.pad(rows, (*[(0, 0)] * len(runs), (0, missing), (0, 0))) if missing else rows
