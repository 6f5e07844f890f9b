"""The modules of a model that a style can adapt, and their factors as PyTorch has them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from flax import nnx

from lora_jax.errors import InputError
from lora_jax.models.diffusion.names import published_module
from lora_jax.partition import parameters

_KERNEL = "/kernel"


@dataclasses.dataclass(frozen=True)
class Module:
    """A linear layer or a convolution.

    Attributes:
      path: in the model.
      name: published, with dots.
      shape: of its kernel: (inputs, outputs), or (height, width, inputs, outputs).
    """

    path: str
    name: str
    shape: tuple[int, ...]

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return len(self.shape) > 2

    def down(self, factor: np.ndarray) -> np.ndarray:
        """A of ours from the published first factor.

        It is (inputs, rank), of a convolution (1, height, width, inputs, rank) with one group of channels.
        """
        if not self.is_conv:
            return np.ascontiguousarray(self._flat(factor).T)
        return np.ascontiguousarray(np.transpose(self._window(factor), (2, 3, 1, 0)))[None]

    def up(self, factor: np.ndarray) -> np.ndarray:
        """B of ours from the published second factor: (rank, outputs), of a convolution with a 1 in front."""
        b = np.ascontiguousarray(self._flat(factor).T)
        return b[None] if self.is_conv else b

    def published_down(self, a: np.ndarray) -> np.ndarray:
        """The inverse of `down`."""
        return np.ascontiguousarray(np.transpose(a[0], (3, 2, 0, 1)) if self.is_conv else a.T)

    def published_up(self, b: np.ndarray) -> np.ndarray:
        """The inverse of `up`: a convolution's second factor has a window of 1 x 1."""
        return (
            np.ascontiguousarray(b[0].T)[:, :, None, None]
            if self.is_conv
            else np.ascontiguousarray(b.T)
        )

    def check(self, down: tuple[int, ...], up: tuple[int, ...], where: str) -> None:
        """Raises InputError if factors of these shapes are not of this module."""
        *window, inputs, outputs = self.shape
        rank = down[0] if down else 0
        plain = (rank, inputs), (outputs, rank)
        wide = (rank, inputs, *(window or (1, 1))), (outputs, rank, 1, 1)
        flat = {plain[0], wide[0]} if set(window) <= {1} else {wide[0]}
        if not rank or down not in flat or up not in {plain[1], wide[1]}:
            raise InputError(
                f"{where}: {self.name} has factors of shapes {down} and {up}; for a kernel of {inputs} inputs"
                f"{f' in a window of {tuple(window)}' if window else ''} and {outputs} outputs they are "
                f"{wide[0] if window else plain[0]} and {wide[1] if window else plain[1]}. The style is of "
                "another model, such as another version of Stable Diffusion"
            )

    def _flat(self, factor: np.ndarray) -> np.ndarray:
        return factor.reshape(factor.shape[:2])

    def _window(self, factor: np.ndarray) -> np.ndarray:
        return factor if factor.ndim == 4 else factor[:, :, None, None]


def modules(model: nnx.Module) -> dict[str, Module]:
    """All modules with a kernel, by their published names."""
    found = {
        path.removesuffix(_KERNEL): tuple(variable.shape)
        for path, variable in parameters(model).items()
        if path.endswith(_KERNEL)
    }
    return {
        (name := published_module(path)): Module(path, name, shape) for path, shape in found.items()
    }


def with_underscores(known: Mapping[str, Module]) -> dict[str, Module]:
    """The same by the names that kohya's form has."""
    return {name.replace(".", "_"): module for name, module in known.items()}
