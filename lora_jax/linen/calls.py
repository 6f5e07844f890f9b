"""Calling a Linen model whose layers have updates: through `flax.linen.intercept_methods`, Flax's own way.

What is inserted lies in the collection `params` beside the kernel that it changes. So `nn.scan`, `nn.vmap`
and `nn.remat` slice, map and recompute factors (and keys of dropout) as they do kernels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.struct
import jax
from flax import linen, nnx
from jaxtyping import Array, Inexact, Num

from lora_jax.errors import InputTypeError
from lora_jax.linen.nodes import PARAMS, LinenNode, collection_of, contents, leaves, nested, put
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.kinds import Kind
from lora_jax.low_rank.lora_layer import LoRALayer
from lora_jax.low_rank.parameters import UpdatedParameters
from lora_jax.low_rank.updates import WeightUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.surgery import Inserted


class Held:
    """A Linen module as a static attribute: compared by identity, because its fields may be arrays."""

    def __init__(self, module: linen.Module):
        self.module = module


class CalledNode(LinenNode):
    """A node whose class is known. The root can be called, see `bridge.as_nnx`.

    Attributes:
      linen_module: the Linen module, of the whole model and of layers that can be adapted.
      linen_shapes: of the parameters as the module sees them in its call: of one layer, in a stack.
      linen_arguments: of that call, those that are no arrays.
    """

    linen_module: Held | None = None
    linen_shapes: tuple[tuple[str, Shape], ...] = ()
    linen_arguments: tuple[tuple[str, Any], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`module.apply(variables, *args, **kwargs)`; what `mutable` names is written into the model."""
        return call(self, *args, **kwargs)


def node_class(kind: type[linen.Module]) -> type[CalledNode]:
    """The class of the nodes that stand for modules of a class of Linen; it has the name of that class."""
    hashable: Any = kind
    return _node_class(hashable)


@functools.cache  # one class for each: equal models have equal graph definitions
def _node_class(kind: Any) -> type[CalledNode]:
    metaclass: Any = type(CalledNode)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    made: type[CalledNode] = metaclass(kind.__name__, (CalledNode,), names)
    return made


@flax.struct.dataclass
class Child:
    """An inserted module among parameters: a tree of its arrays.

    What is static is part of the tree's structure, so that `nn.jit`, which keeps programs by the structure
    of variables, never takes the program of another rank or scale.
    """

    values: dict[tuple[Any, ...], jax.Array]
    graphdef: nnx.GraphDef[Any] = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, inserted: Inserted) -> Child:
        """The arrays of an inserted module."""
        graphdef, state = nnx.split(inserted)
        values = {path: leaf.get_raw_value() for path, leaf in nnx.to_flat_state(state)}
        return cls(values, graphdef)

    def module(self) -> WeightUpdate:
        """The inserted module, with arrays as they are here."""
        update: WeightUpdate = nnx.merge(self.graphdef, nnx.from_flat_state(self.values))
        return update


def collections(model: LinenNode) -> dict[str, Any]:
    """The variables of a model for `module.apply`, with what methods inserted."""
    flat: dict[str, dict[tuple[str, ...], Any]] = {PARAMS: {}}
    for path, leaf in contents(model):
        if isinstance(leaf, nnx.Variable):
            flat.setdefault(collection_of(leaf), {})[path] = leaf.get_raw_value()
        elif not isinstance(leaf, UpdatedParameters):  # those are in the parameters already
            flat[PARAMS][path] = Child.of(leaf)
    return {name: nested(values) for name, values in flat.items()}


def call(model: CalledNode, *args: Any, mutable: Any = False, **kwargs: Any) -> Any:
    """`module.apply` of a model with what it holds.

    Args:
      model: of `as_nnx`, perhaps adapted.
      *args: of the module's call.
      mutable: collections that the call may write; they are written into the model, as NNX does it.
      **kwargs: of the module's call, or of `apply`: `rngs`, `method`.
    """
    if model.linen_module is None:
        raise InputTypeError(
            f"a {type(model).__name__} inside a Linen model cannot be called alone"
        )
    with linen.intercept_methods(_Interceptor()):
        result = model.linen_module.module.apply(
            collections(model), *args, mutable=mutable, **kwargs
        )
    if mutable is False:
        return result
    outputs, updates = result
    for name, collection in updates.items():
        for path, value in leaves(collection):
            if not isinstance(value, Child):
                put(model, name, path, value)
    return outputs


class LinenLoRALayer(LoRALayer, Kind):
    """Mixin of every LoRA layer that stands for a Linen module; `self.configured()` is the module.

    For a class of your own, say what the weight is, as docs/layers.md does for NNX:

        @lora_jax.linen.register(MyDense)
        class LoRAMyDense(lora_jax.linen.LinenLoRALayer):
            weight = "w"  # of self.param("w", ...)
            def roles(self): return lora_jax.Contraction(batch=(), inputs=(0,), outputs=(1,))
            def low_rank_output(self, inputs, a, b): return inputs @ a @ b

    Attributes:
      inputs_argument: name of the call's argument that is multiplied by the weight; None: the first.
      output_methods: methods of the module that multiply it by the weight (or look up its rows).
      attend_methods: methods that multiply it by the transposed table.
    """

    inputs_argument: ClassVar[str | None] = None
    output_methods: ClassVar[tuple[str, ...]] = ("__call__",)
    attend_methods: ClassVar[tuple[str, ...]] = ("attend",)
    linen_module: Held
    linen_shapes: tuple[tuple[str, Shape], ...]
    linen_arguments: tuple[tuple[str, Any], ...]

    def configured(self) -> Any:
        """The Linen module, which has the arguments of its constructor."""
        return self.linen_module.module

    def call_argument(self, name: str) -> Any:
        """An argument of the module's call that is no array; None if it was not given."""
        return dict(self.linen_arguments).get(name)

    def declared_shapes(self) -> dict[str, Shape]:
        """Of the parameters, as the module's call sees them."""
        return dict(self.linen_shapes)

    def own_product(
        self, inputs: Num[Array, ...], kernel: Inexact[Array, ...], **changes: Any
    ) -> Inexact[Array, ...]:
        """The call of a module that is as this one, but for its kernel; it has no bias."""
        twin = self.configured().clone(
            parent=None, use_bias=False, kernel_init=linen.initializers.zeros_init(), **changes
        )
        result: Array = twin.apply({PARAMS: {"kernel": kernel}}, inputs)
        return result

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Of a model that is this layer alone: the module's call, in which the update takes part."""
        return CalledNode.__call__(self, *args, **kwargs)  # type: ignore[arg-type]


# The LoRA layers of Linen modules, by class; `layers.register` fills it.
FORMS: dict[type[linen.Module], type[LinenLoRALayer]] = {}


def is_call(kind: type[linen.Module], method: str) -> bool:
    """Whether a method of a class is the call of a layer that can be adapted."""
    form = FORMS.get(kind)
    return form is not None and method in form.output_methods + form.attend_methods


class _Interceptor:
    """Lets updates change what the calls of their layers return, while one model is called."""

    def __init__(self) -> None:
        self._inside: list[tuple[int, str]] = []  # calls that run: of which module, which method

    def __call__(
        self,
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: linen.module.InterceptorContext,
    ) -> Any:
        """The result of a method of a Linen module."""
        module, method = context.module, context.method_name
        form, here = FORMS.get(type(module)), (id(module), method)
        if form is None or not is_call(type(module), method) or module.scope is None:
            return next_call(*args, **kwargs)
        own = dict(module.variables.get(PARAMS, {}))
        child = own.pop("lora", None)
        # A subclass may call its parent's method: the update is for the whole of the two.
        if not isinstance(child, Child) or here in self._inside:
            return next_call(*args, **kwargs)
        bound = inspect.signature(context.orig_method).bind(*args, **kwargs)
        name = form.inputs_argument or next(iter(bound.arguments))
        inputs = bound.arguments[name]

        def base(x: jax.Array) -> Any:
            bound.arguments[name] = x
            if x is not inputs:  # a compact method cannot run twice in one call
                alone = module.clone(parent=None)
                return alone.apply({PARAMS: own}, *bound.args, **bound.kwargs, method=method)
            self._inside.append(here)
            try:
                return next_call(*bound.args, **bound.kwargs)
            finally:
                self._inside.pop()

        layer = _at_call(form, module, own, dict(bound.arguments))
        update = child.module()
        if not update.enabled:
            return base(inputs)
        use = update.output if method in form.output_methods else update.attend
        return use(WeightView(layer), inputs, base)


def _at_call(
    form: type[LinenLoRALayer],
    module: linen.Module,
    parameters: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> LinenLoRALayer:
    """A layer as its call sees it: with one layer's parameters, where a stack runs."""
    layer = object.__new__(form)
    variables = {name: nnx.Param(value) for name, value in parameters.items()}
    given = {"linen_module": Held(module), "linen_arguments": tuple(arguments.items())}
    vars(layer).update({"bias": None, **variables, **given})
    return layer
