"""The first product of the branch is the layer's own: custom products and promotions act once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lora_jax
from lora_jax.low_rank import layers
from tests.low_rank.layer_cases import (
    FLOAT32,
    adapted_copy,
    conv,
    einsum,
    embed,
    exact,
    general,
    linear,
    random_input,
    randomise,
    transposed,
)


def doubled(inputs, kernel, dimensions, **settings):
    return 2 * jax.lax.dot_general(inputs, kernel, dimensions, **settings)


def doubled_einsum(equation, *operands, **settings):
    return 2 * jnp.einsum(equation, *operands, **settings)


def doubled_conv(*arguments, **settings):
    return 2 * jax.lax.conv_general_dilated(*arguments, **settings)


def clipped(arrays, *, dtype=None, inexact=True):
    """Clips the inputs, which come first, as a layer that quantises its activations would."""
    first, *rest = nnx.nn.dtypes.promote_dtype(arrays, dtype=dtype, inexact=inexact)
    return (jnp.clip(first, -0.5, 0.5) if rest else first, *rest)


CUSTOM = {
    "linear, dot_general": (linear(5, 7, dot_general=doubled), (3, 5)),
    "linear, promotion": (linear(5, 7, promote_dtype=clipped), (3, 5)),
    "general, dot_general": (general((2, 4), 6, axis=(1, -1), dot_general=doubled), (3, 2, 5, 4)),
    "general, dot_general_cls": (general(6, (2, 4), dot_general_cls=lambda: doubled), (3, 5, 6)),
    "general, batch axis, promotion": (
        general(4, 5, batch_axis={0: 3}, promote_dtype=clipped), (3, 6, 4),
    ),
    "einsum, einsum_op": (einsum("nta,hab->nthb", (3, 4, 5), (3, 5), einsum_op=doubled_einsum), (2, 6, 4)),
    "einsum, promotion": (einsum("ebi,eio->ebo", (3, 4, 5), promote_dtype=clipped), (3, 2, 4)),
    "conv, conv_general_dilated": (
        conv(6, 8, (3, 3), feature_group_count=2, conv_general_dilated=doubled_conv), (2, 6, 7, 6),
    ),
    "conv, promotion": (conv(3, 4, 3, promote_dtype=clipped), (2, 6, 3)),
    "transposed, promotion": (transposed(3, 4, 3, promote_dtype=clipped), (2, 6, 3)),
}  # fmt: skip


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("name", CUSTOM)
def test_custom_product_or_promotion_acts_once(name, magnitude):
    make, shape = CUSTOM[name]
    base = make(nnx.Rngs(0))
    randomise(base, 0)
    layer = adapted_copy(base, magnitude=magnitude)
    x = random_input(shape)
    if not magnitude:  # with it the sum of three terms is rounded
        np.testing.assert_array_equal(layer(x), base(x))
    randomise(layer.lora, 1)
    result = layer(x)
    assert not np.allclose(result, base(x), atol=0.1)
    np.testing.assert_allclose(result, lora_jax.merge(layer)(x), rtol=1e-4, atol=2e-4)


def test_promotion_of_a_tied_output_layer():
    layer = adapted_copy(embed(10, 6, promote_dtype=clipped)(nnx.Rngs(0)))
    randomise(layer, 1)
    query = random_input((3, 6))
    np.testing.assert_allclose(
        layer.attend(query), lora_jax.merge(layer).attend(query), rtol=1e-5, atol=2e-5
    )


def test_product_sums_in_the_type_that_the_layer_asks_for():
    """bfloat16 factors, float32 sums: as the base layer multiplies."""
    settings = {"dtype": jnp.bfloat16, "preferred_element_type": jnp.float32}
    layer = adapted_copy(linear(512, 4, **settings)(nnx.Rngs(0)))
    randomise(layer.lora, 1)
    x = random_input((3, 512)).astype(jnp.bfloat16)
    result = layer(x)
    assert result.dtype == jnp.float32
    a = exact((layer.lora.a[...] * layer.lora.scale).astype(jnp.bfloat16))
    expected = exact(x) @ a @ exact(layer.lora.b[...])  # the base's kernel is zero
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)


def one_dimension(x, w, stride, dilation, padding):
    """A transposed convolution of (length, inputs) in float64, by its sum."""
    spread = np.zeros((dilation * (len(w) - 1) + 1, *w.shape[1:]))
    spread[::dilation] = w
    size = len(spread)
    if padding == "SAME":
        total = size + stride - 2
        before = size - 1 if stride > size - 1 else -(-total // 2)
    else:
        total = size + stride - 2 + max(size - stride, 0)
        before = size - 1
    long = np.zeros((stride * (len(x) - 1) + 1 + total, x.shape[1]))
    long[before : before + stride * (len(x) - 1) + 1 : stride] = x
    places = range(len(long) - size + 1)
    return np.stack([np.einsum("ki,kio->o", long[p : p + size], spread) for p in places])


@pytest.mark.parametrize("stored_transposed", [False, True])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (3, 1), (1, 2)])
def test_transposed_convolution_equals_float64(stride, dilation, padding, stored_transposed):
    settings = {"strides": stride, "kernel_dilation": dilation, "padding": padding}
    base = transposed(3, 4, 3, transpose_kernel=stored_transposed, **settings)(nnx.Rngs(0))
    randomise(base, 0)
    layer = adapted_copy(base, alpha=6.0)
    randomise(layer.lora, 1)
    x = random_input((5, 3))
    a, b = exact(layer.lora.a[...]), exact(layer.lora.b[...])
    kernel = exact(base.kernel[...])
    if stored_transposed:  # as the gradient of a convolution: its window is reversed
        kernel, a = np.swapaxes(kernel, -1, -2)[::-1], a[::-1]
    expected = one_dimension(exact(x), kernel + 3 * a @ b, stride, dilation, padding)
    np.testing.assert_allclose(layer(x), expected + exact(base.bias[...]), **FLOAT32)
    np.testing.assert_allclose(
        layers.delta(layer), np.swapaxes(3 * a @ b, -1, -2)[::-1] if stored_transposed else 3 * a @ b,
        **FLOAT32,
    )  # fmt: skip
