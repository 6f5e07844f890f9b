"""Models that users split themselves, by Flax's annotations, on meshes with automatic and explicit axes."""

import numpy as np
import pytest

CASES = [  # those that own_meshes.py runs by default, and all
    ("dora", "Explicit"),
    pytest.param("lora", "Auto", marks=pytest.mark.slow),
    pytest.param("lora", "Explicit", marks=pytest.mark.slow),
    pytest.param("dora", "Auto", marks=pytest.mark.slow),
]
FACTORS = {  # how each axis is split: as the weight's, and the rank not at all
    "up/lora/a": [None, None],
    "up/lora/b": [None, "model"],
    "down/lora/a": ["model", None],
    "down/lora/b": [None, None],
    "heads/lora/a": [None, None],
    "heads/lora/b": [None, "model", None],
    "lora/experts/a": ["model", None, None],
    "lora/experts/b": ["model", None, None],
}
MAGNITUDES = {
    "up/lora/magnitude": ["model"],
    "down/lora/magnitude": [None],
    "heads/lora/magnitude": ["model", None],
    "lora/experts/magnitude": ["model", None],
}


@pytest.fixture(scope="module")
def records(on_eight_devices):
    return on_eight_devices("own_meshes.py")


def expected(method):
    return FACTORS | (MAGNITUDES if method == "dora" else {})


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_factors_are_split_and_named_as_their_weight(records, method, kind):
    record, shapes = records[method][kind], expected(method)
    for path, spec in record["split"].items():
        padded = spec + [None] * (len(shapes[path]) - len(spec))
        assert padded == shapes[path], path
    assert record["split"].keys() == shapes.keys()
    for path, names in record["names"].items():
        assert names == shapes[path], path
    assert record["merged_split"] == ["model", None]


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_values_are_those_of_one_device(records, method, kind):
    record, one = records[method][kind], records[method]["one"]
    assert record["start"] or method == "dora"  # whose norms are rounded
    # Sums over a split axis come in another order: some units of float32's last place.
    np.testing.assert_allclose(record["outputs"], one["outputs"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(record["merged"], one["merged"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(record["merged"], record["outputs"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(record["loss"], one["loss"], rtol=1e-5)
    assert record["gradients"].keys() == one["gradients"].keys() == expected(method).keys()
    for path, gradient in record["gradients"].items():
        np.testing.assert_allclose(gradient, one["gradients"][path], rtol=1e-4, atol=1e-4)
        assert np.any(gradient), path
