"""AdaLoRA prunes the same ranks on meshes with automatic and explicit axes as on one device."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def records(on_eight_devices):
    return on_eight_devices("adalora_on_meshes.py")


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_what_is_trained_and_pruned_is_that_of_one_device(records, kind):
    one = records["one"]
    assert len(one) == 9
    for path, value in records[kind].items():
        np.testing.assert_allclose(value, one[path], rtol=1e-5, atol=1e-6)
        if path.endswith("/e"):
            np.testing.assert_array_equal(np.asarray(value) == 0, np.asarray(one[path]) == 0)
    left = sum(int(np.count_nonzero(v)) for path, v in one.items() if path.endswith("/e"))
    assert left == 1 + 1 + 4
