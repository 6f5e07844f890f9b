"""Numbers of layers, and widths of heads, in state dicts of others."""

import resource

import numpy as np
import pytest

from lora_jax.interop.loralib import from_state_dict
from lora_jax.interop.loralib_factors import MOST_LAYERS

STEM = "roberta.encoder.layer.{}.attention.self.query.lora_{}"


def state(*more):
    """Two layers, and further factors under other numbers."""
    return {
        STEM.format(layer, side): np.full((2, 8) if side == "A" else (8, 2), 3.0, np.float32)
        for layer in ("0", "1", *more)
        for side in "AB"
    }


@pytest.mark.parametrize("number", ["01", "\u0661", "1_0", "+1", "1\u0661", "9" * 5000])
def test_a_number_is_written_in_one_way(number):
    """int() would take most of them, so that a tensor would take the place of another."""
    with pytest.raises(ValueError, match="2 factors belong to no layer that can be converted"):
        from_state_dict(state(number), alpha=16.0)
    assert from_state_dict(state(), alpha=16.0).layers == 2


def test_a_small_file_takes_no_memory_for_the_number_of_a_layer():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in (MOST_LAYERS, 10**6, 10**8):
        with pytest.raises(
            ValueError, match=rf"layer {number} of a model; there are at most 1,000"
        ):
            from_state_dict(state(str(number)), alpha=16.0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB
    with pytest.raises(ValueError, match="factors are missing"):
        from_state_dict(state(str(MOST_LAYERS - 1)), alpha=16.0)


@pytest.mark.parametrize(
    ("dense", "output", "says"),
    [
        ((8, 8), (3, 8), ""),
        (
            (8, 8),
            (3, 7),
            r"out_proj.weight has shape \(3, 7\), but classifier.dense.weight is of w",
        ),
        (
            (9, 9),
            (3, 9),
            r"dense.weight has shape \(9, 9\), but attention.self.query.lora_A is of w",
        ),
    ],
)
def test_a_head_takes_what_is_before_it(dense, output, says):
    head = {
        "classifier.out_proj.weight": np.zeros(output, np.float32),
        "classifier.out_proj.bias": np.zeros(output[0], np.float32),
        "classifier.dense.weight": np.zeros(dense, np.float32),
        "classifier.dense.bias": np.zeros(dense[0], np.float32),
    }
    if not says:
        assert from_state_dict({**state(), **head}, alpha=16.0).layers == 2
        return
    with pytest.raises(ValueError, match=says):
        from_state_dict({**state(), **head}, alpha=16.0)
