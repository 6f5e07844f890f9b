"""Decoding, evaluation, donation and checkpoints on meshes of 8 devices.

Decoding and evaluation run on a mesh of three axes, with numbers of rows that divide by nothing. A run's
state is saved on one mesh and restored onto others, and donation leaves the host's values unchanged.
All figures come from one start of others_on_meshes.py.
"""

import numpy as np
import pytest

SHARES = {  # of the matrices' bytes that one device holds: factors are split on one of two sides
    "fsdp": (1 / 8, 0.6),
    "data x model": (1 / 4, 0.7),
    "one": (1.0, 1.0),
}


@pytest.fixture(scope="module")
def others(on_eight_devices):
    """What others_on_meshes.py writes: decoding, evaluation, donation, checkpoints."""
    return on_eight_devices("others_on_meshes.py")


@pytest.mark.slow
def test_beam_search_gives_the_tokens_of_one_device(others):
    mesh, one = others["decode"]
    assert mesh["tokens"] == one["tokens"]
    assert len(one["tokens"]) == 7 and all(one["tokens"])
    assert len({tuple(ids) for ids in one["tokens"]}) > 4  # the prompts matter
    np.testing.assert_allclose(mesh["scores"], one["scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["xla", "splash", "triton"])
def test_attention_on_a_mesh_is_that_of_one_device(others, form):
    """With dropout by XLA, where each row draws its own, whatever device it is on."""
    mesh, one = (found[form] for found in others["attend"])
    for a, b in zip(mesh, one, strict=True):
        assert np.ptp(a) > 1
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_evaluation_with_a_part_of_a_batch(others):
    mesh, one = others["evaluate"]
    assert np.isfinite(one["logits"]).all() and np.ptp(one["logits"], axis=0).min() > 1e-2
    np.testing.assert_allclose(mesh["logits"], one["logits"], rtol=0, atol=1e-5)
    assert all(rows % 4 == 0 for rows in mesh["rows"]) and any(rows % 4 for rows in one["rows"])
    assert sum(mesh["examples"]) == sum(one["examples"]) == 23
    assert len(set(mesh["examples"])) > 1  # the last batch has fewer


@pytest.mark.parametrize(("mesh", "devices"), [("fsdp", 8), ("data x model", 8), ("one", 1)])
def test_saved_on_fsdp_and_restored(others, mesh, devices):
    assert others["state"]["moved"] > 1e-2  # what was saved is not what `like` holds
    found = others["state"]["restored"][mesh]
    assert found["equal"], "restored values differ in their bits"
    assert found["shardings"], "restored values do not lie as the new mesh asks"
    assert found["record"] == {"step": 4} and found["devices"] == [devices]
    least, most = SHARES[mesh]
    assert least <= found["share"] <= most
    # Four factors, two moments and the mean gradient of each, and three counters.
    assert found["leaves"] == 4 * 4 + 3


def test_donated_arrays_leave_the_values_they_came_from(others):
    """On a CPU an array may be the very memory of the numpy array it was put from."""
    assert others["state"]["kept"] and others["state"]["kept_jax"]
