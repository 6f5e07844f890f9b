"""The methods after LoRA train on meshes with automatic and explicit axes as on one device."""

import numpy as np
import pytest
from sharding import variants_on_meshes

CASES = [
    pytest.param(
        name, kind, marks=[pytest.mark.slow] * (variants_on_meshes.BY_DEFAULT.get(name) != kind)
    )
    for name in variants_on_meshes.METHODS
    for kind in variants_on_meshes.KINDS
]


@pytest.fixture(scope="module")
def records(on_eight_devices):
    return on_eight_devices("variants_on_meshes.py")


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_trained_is_that_of_one_device(records, name, kind):
    one = records["one"][name]
    assert one
    # LoRA-Pro divides by the smallest singular values of its factors, PiSSA's singular vectors have signs.
    bounds = {"lora_pro": (1e-3, 1e-4), "pissa": (1e-4, 1e-5)}.get(name, (1e-5, 1e-6))
    for path, value in records[kind][name].items():
        np.testing.assert_allclose(value, one[path], *bounds, err_msg=path)


@pytest.mark.parametrize("kind", ["Explicit", pytest.param("Auto", marks=pytest.mark.slow)])
def test_what_is_pruned_is_that_of_one_device(records, kind):
    one = records["one"]["adalora"]
    assert len(one) == 9
    for path, value in records[kind]["adalora"].items():
        if path.endswith("/e"):
            np.testing.assert_array_equal(np.asarray(value) == 0, np.asarray(one[path]) == 0)
    left = sum(int(np.count_nonzero(v)) for path, v in one.items() if path.endswith("/e"))
    assert left == 1 + 1 + 4
