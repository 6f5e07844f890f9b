"""The models of Stable Diffusion split over 8 devices compute what they compute on one."""

import numpy as np
import pytest


@pytest.mark.slow
def test_outputs_and_gradients_are_those_of_one_device(on_eight_devices):
    records = on_eight_devices("diffusion_on_meshes.py")
    one, split = records["one"], records["all axes"]
    # Sums over a split axis come in another order: some units of float32's last place.
    top = np.abs(one["output"]).max()
    np.testing.assert_allclose(split["output"], one["output"], rtol=0, atol=1e-5 * top)
    assert split["gradients"].keys() == one["gradients"].keys()
    top = max(np.abs(value).max() for value in one["gradients"].values())
    for path, value in one["gradients"].items():
        assert np.any(value), path
        np.testing.assert_allclose(
            split["gradients"][path], value, rtol=1e-4, atol=1e-5 * top, err_msg=path
        )
    kernels = [
        path for path in split["split"] if path.endswith("kernel") and "quant_conv" not in path
    ]
    assert len(kernels) > 60 and all(split["split"][path] for path in kernels)
    assert not any(one["split"].values())
