"""A run's state saved on one mesh and restored onto others; donation leaves the host's values."""

import pytest

SHARES = {  # of the matrices' bytes that one device holds: factors are split on one of two sides
    "fsdp": (1 / 8, 0.6),
    "data x model": (1 / 4, 0.7),
    "one": (1.0, 1.0),
}


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
