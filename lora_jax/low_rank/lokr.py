"""LoKr: an update that is the Kronecker product of a small matrix and a low-rank one.

    W + scale * kron(W1, W2),   kron(W1, W2)[(m, n), (l, k)] = W1[m, l] W2[n, k]

Yeh et al. 2023 (LyCORIS, arXiv 2309.14859, section 3.2). The inputs divide into m * n, the outputs into l * k
(`factorised`). W2 is a product of two matrices of the rank where that is smaller, and W1 too if asked for.
In the other order of sides, PEFT's is kron(W1^T, W2^T).

The Kronecker product of two products is the product of two Kronecker products, so this is a factor pair, too:

    kron(C D, E F) = kron(C, E) kron(D, F),   of rank (that of C D) * (that of E F)

where a whole matrix is its product with an identity matrix.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Inexact, Key, Num

from lora_jax.low_rank import contraction
from lora_jax.low_rank.computed_factors import identity, plain_layer, precise, typical_size
from lora_jax.low_rank.contraction import Shape
from lora_jax.low_rank.conv_kinds import ConvKind, ConvTransposeKind
from lora_jax.low_rank.kinds import DenseKind, EmbedKind
from lora_jax.low_rank.lokr_settings import LoKrSettings
from lora_jax.low_rank.updates import FactorsUpdate
from lora_jax.low_rank.weights import WeightView
from lora_jax.sharding.layout import automatically, sharding_of

Matrices = tuple[Array, ...]  # one, or two whose product it is


class LoKrUpdate(FactorsUpdate):
    """The matrices of one weight's Kronecker product; each is whole, or the product of its `_a` and `_b`.

    Attributes:
      w1: (*stack, *batch, m, l), or w1_a (..., m, rank) and w1_b (..., rank, l). W1 or w1_b starts at zero.
      w2: (*stack, *batch, *window, n, k), or w2_a (..., *window, n, rank) and w2_b (..., rank, k), where only
        convolutions have a window: their channels are what divides.
      alpha: the constant of LoRA's section 4.1.
      scale: alpha/r or alpha/sqrt(r), also where both matrices are whole.
    """

    w1: nnx.LoRAParam[Array]
    w1_a: nnx.LoRAParam[Array]
    w1_b: nnx.LoRAParam[Array]
    w2: nnx.LoRAParam[Array]
    w2_a: nnx.LoRAParam[Array]
    w2_b: nnx.LoRAParam[Array]

    def __init__(self, leaves: dict[str, Array], *, alpha: float, scale: float, dropout: float):
        for name, value in leaves.items():
            setattr(self, name, nnx.LoRAParam(value))
        self.alpha = alpha
        self.scale = scale
        self.dropout = dropout

    @classmethod
    def create(
        cls, weight: WeightView, settings: LoKrSettings, key: Key[Array, ""], path: str
    ) -> LoKrUpdate:
        """New matrices, of which the first is zero.

        The others are U(-1/sqrt(n), 1/sqrt(n)) with n the number of values that an output of the matrix
        sums, as in PEFT. A row of a table is looked up alone, so n is 1 for its inputs.

        Raises:
          ValueError: the rank is larger than the smaller side of the matrix.
        """
        batch, inputs, outputs = weight.roles.sizes(weight.shape)
        fan_in, fan_out = math.prod(inputs), math.prod(outputs)
        rank = contraction.check_rank(settings.rank, min(fan_in, fan_out), path)
        window = window_of(weight)
        m, n = factorised(fan_in // math.prod(window), settings.factor)
        l, k = factorised(fan_out, settings.factor)  # noqa: E741 - the letter of the formula
        keys = jax.random.split(key, 3)

        def drawn(number: int, shape: Shape, fan: int) -> Array:
            return contraction.initial_values(keys[number], (*batch, *shape), fan)

        fan_m, fan_n = (1, 1) if weight.gathers else (m, n * math.prod(window))
        leaves = {}
        if settings.decompose_both and rank < max(m, l) / 2:
            leaves["w1_a"] = drawn(0, (m, rank), fan_m)
            leaves["w1_b"] = jnp.zeros((*batch, rank, l), jnp.float32)
        else:
            leaves["w1"] = jnp.zeros((*batch, m, l), jnp.float32)
        if rank < max(n, k) / 2:
            leaves["w2_a"] = drawn(1, (*window, n, rank), fan_n)
            leaves["w2_b"] = drawn(2, (rank, k), rank)
        else:
            leaves["w2"] = drawn(1, (*window, n, k), fan_n)
        alpha, dropout = float(settings.alpha), float(settings.dropout)
        update = cls(leaves, alpha=alpha, scale=settings.scale, dropout=dropout)
        for name in leaves:  # their sides are pieces of the weight's axes, which have no name
            leaf = getattr(update, name)
            own = (None,) * (leaf.ndim - len(batch))
            weight.layout.give(leaf, (*weight.roles.batch, *own), other=None)
        return update

    def _variables(self, matrix: str) -> tuple[nnx.LoRAParam[Array], ...]:
        """The leaves of `w1` or `w2`, in the order of their product."""
        names = (matrix,) if hasattr(self, matrix) else (f"{matrix}_a", f"{matrix}_b")
        return tuple(getattr(self, name) for name in names)

    def restart(self, weight: WeightView) -> None:
        """Sets the first matrix to zero, in place."""
        last = self._variables("w1")[-1]
        last[...] = jnp.zeros_like(last[...])

    def randomise(self, weight: WeightView, key: Key[Array, ""], share: float) -> None:
        """Sets random values, in place, whose Kronecker product is a share of the weight."""
        each = jnp.sqrt(share * typical_size(weight) / self.scale)  # of W1, and of W2
        for matrix in ("w1", "w2"):
            leaves = self._variables(matrix)
            std = each if len(leaves) == 1 else jnp.sqrt(each / math.sqrt(leaves[1].shape[-2]))
            for leaf in leaves:
                key, own = jax.random.split(key)
                leaf[...] = std * jax.random.normal(own, leaf.shape)

    def factors(self, weight: WeightView) -> tuple[Float[Array, ...], Float[Array, ...]]:
        """The Kronecker products of the left and of the right sides of W1 and W2.

        Their rank is at most the smaller side of the weight.
        """
        roles = weight.roles
        batch, inputs, outputs = roles.sizes(weight.shape)
        maps, window = math.prod(batch), math.prod(window_of(weight))

        def computed(*leaves: Array) -> tuple[Array, Array]:
            first, second = self._split(tuple(precise_matrices(leaves, maps)))
            left, right = two(first), two(second)
            of_window = right[0].reshape(maps, window, -1, right[0].shape[-1])
            a = left[0][:, None, :, None, :, None] * of_window[:, :, None, :, None, :]
            b = left[1][:, :, None, :, None] * right[1][:, None, :, None, :]
            rank = left[1].shape[1] * right[1].shape[1]
            return a.reshape(*batch, *inputs, rank), b.reshape(*batch, rank, *outputs)

        layout = weight.layout
        shardings = (
            layout.of_axes((*roles.batch, *roles.inputs, None)),
            layout.of_axes((*roles.batch, None, *roles.outputs)),
        )
        return automatically(computed, shardings, *self._leaves())

    def _leaves(self) -> Matrices:
        return tuple(map(precise, self._variables("w1") + self._variables("w2")))

    def _split(self, leaves: Matrices) -> tuple[Matrices, Matrices]:
        """Those of W1, and those of W2."""
        count = len(self._variables("w1"))
        return leaves[:count], leaves[count:]

    def low_rank_output(
        self, weight: WeightView, inputs: Num[Array, ...], outputs: Inexact[Array, ...]
    ) -> Inexact[Array, ...]:
        """scale * x kron(W1, W2), in the type of the layer's outputs.

        A dense layer sees its inputs as (m, n), so that W1 and W2 multiply one side each; rows of a table
        are those of W1 and of W2, looked up. Other layers multiply by both factors.
        """
        dtype, leaves = outputs.dtype, self._leaves()
        scaled = (leaves[0] * self.scale, *leaves[1:])
        if (dense := plain_layer(weight, DenseKind)) is not None:
            cast = (leaf.astype(dtype) for leaf in scaled)

            def by_sides(inputs: Array, *leaves: Array) -> Array:
                return through_sides(dense, inputs, *self._split(leaves))

            return automatically(by_sides, sharding_of(outputs), inputs.astype(dtype), *cast)
        table = plain_layer(weight, EmbedKind)
        if table is None or weight.shape[0] == 1:  # Flax takes the only row for every index
            return super().low_rank_output(weight, inputs, outputs)

        def rows(inputs: Array, *leaves: Array) -> Array:
            first, second = self._split(leaves)
            return looked_up(inputs, first, second, dtype)

        return automatically(rows, sharding_of(outputs), inputs, *scaled)


def through_sides(
    layer: DenseKind, inputs: Float[Array, "... inputs"], first: Matrices, second: Matrices
) -> Float[Array, "... outputs"]:
    """x kron(W1, W2) of a dense layer: x as (m, n) times W2 and W1, which comes between the two of W2.

    Args:
      layer: whose own product is that with W2.
      inputs: in the type of the matrices.
      first: W1.
      second: W2.
    """
    low = inputs.reshape(*inputs.shape[:-1], first[0].shape[-2], second[0].shape[-2])
    low = layer.first_product(low, second[0])
    for matrix in first:
        low = jnp.einsum("...mr,ml->...lr", low, matrix, precision=layer.second_precision())
    for matrix in second[1:]:
        low = layer.second_product(low, matrix)
    return low.reshape(*low.shape[:-2], low.shape[-2] * low.shape[-1])


def looked_up(
    rows: Num[Array, ...], first: Matrices, second: Matrices, dtype: jnp.dtype
) -> Inexact[Array, "... features"]:
    """Rows of kron(W1, W2): row (m, n) is the Kronecker product of row m of W1 and row n of W2.

    Args:
      rows: their numbers.
      first: W1.
      second: W2.
      dtype: of the result.
    """
    size, sides = second[0].shape[-2], []
    for number, matrices in ((rows // size, first), (rows % size, second)):
        side = jnp.take(matrices[0], number, axis=0).astype(dtype)
        for matrix in matrices[1:]:
            side = side @ matrix.astype(dtype)
        sides.append(side)
    result = sides[0][..., :, None] * sides[1][..., None, :]
    return result.reshape(*rows.shape, result.shape[-2] * result.shape[-1])


def precise_matrices(leaves: Matrices, maps: int) -> list[Float[Array, "maps rows columns"]]:
    """Leaves as matrices, one for every map; a window is part of the rows."""
    return [leaf.reshape(maps, -1, leaf.shape[-1]) for leaf in leaves]


def two(matrices: Matrices) -> tuple[Float[Array, "maps m r"], Float[Array, "maps r l"]]:
    """Two matrices with the product of these, and the least number of columns in between."""
    if len(matrices) == 2:
        if matrices[0].shape[-1] <= min(matrices[0].shape[-2], matrices[1].shape[-1]):
            return matrices[0], matrices[1]
        whole = contraction.product(*matrices)
    else:
        (whole,) = matrices
    maps, rows, columns = whole.shape
    if rows < columns:
        return identity(maps, rows), whole
    return whole, identity(maps, columns)


def window_of(weight: WeightView) -> Shape:
    """Sizes of the window of a convolution, which does not divide; () for other layers."""
    if isinstance(weight.layer, ConvKind | ConvTransposeKind):
        return weight.roles.sizes(weight.shape)[1][:-1]
    return ()


def factorised(size: int, factor: int = -1) -> tuple[int, int]:
    """Divides a number into two whose product it is.

    A factor that divides it is the first of the two. Otherwise the first is the largest divisor up to the
    factor (-1: any) and up to the square root, so 768 is 24 * 32, and a prime number 1 times itself.

    Args:
      size: of the inputs or outputs.
      factor: -1, or a number from 0 on, where 0 does what 1 does (as in PEFT).
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    root = math.isqrt(size)
    most = root if factor == -1 else max(1, min(factor, root))
    first = next(number for number in range(most, 0, -1) if size % number == 0)
    return first, size // first
