"""Decoding and evaluation on a mesh of three axes, with numbers of rows that divide by nothing."""

import numpy as np


def test_beam_search_gives_the_tokens_of_one_device(others):
    mesh, one = others["decode"]
    assert mesh["tokens"] == one["tokens"]
    assert len(one["tokens"]) == 7 and all(one["tokens"])
    assert len({tuple(ids) for ids in one["tokens"]}) > 4  # the prompts matter
    np.testing.assert_allclose(mesh["scores"], one["scores"], rtol=0, atol=1e-5)


def test_evaluation_with_a_part_of_a_batch(others):
    mesh, one = others["evaluate"]
    assert np.isfinite(one["logits"]).all() and np.ptp(one["logits"], axis=0).min() > 1e-2
    np.testing.assert_allclose(mesh["logits"], one["logits"], rtol=0, atol=1e-5)
    assert all(rows % 4 == 0 for rows in mesh["rows"]) and any(rows % 4 for rows in one["rows"])
    assert sum(mesh["examples"]) == sum(one["examples"]) == 23
    assert len(set(mesh["examples"])) > 1  # the last batch has fewer
