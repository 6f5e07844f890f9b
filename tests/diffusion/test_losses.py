"""Training losses against closed forms, and captions that are emptied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lora_jax.diffusion import losses
from lora_jax.diffusion.schedule import NoiseSchedule

TIMES = jnp.array([0, 300, 700, 999])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_the_example_of_diffusers(prediction):
    schedule = NoiseSchedule(prediction_type=prediction)
    snr = compute_snr(DDPMScheduler(prediction_type=prediction), torch.tensor(np.array(TIMES)))
    least = torch.minimum(snr, torch.tensor(5.0))
    expected = least / (snr if prediction == "epsilon" else snr + 1)
    # A ratio of 1 - a_t near 0, in float32.
    np.testing.assert_allclose(losses.snr_weights(schedule, TIMES, 5.0), expected, rtol=1e-3)


def test_the_loss_is_the_squared_error():
    schedule = NoiseSchedule(prediction_type="v_prediction")
    rng = np.random.default_rng(0)
    pictures, noise = (
        jnp.asarray(rng.standard_normal((4, 3, 3, 2)), jnp.float32) for _ in range(2)
    )
    signal, spread = np.sqrt(schedule.alphas[TIMES]), np.sqrt(1 - schedule.alphas[TIMES])
    found = losses.denoising_losses(schedule, lambda x, t: 0 * x, pictures, noise, TIMES)
    wanted = signal[:, None, None, None] * noise - spread[:, None, None, None] * pictures
    np.testing.assert_allclose(found, np.mean(np.square(wanted), (1, 2, 3)), rtol=1e-5)


def test_a_share_of_the_captions_is_emptied():
    captions = {"words": jnp.ones((4000, 3), jnp.int32)}
    found = losses.without_some(
        jax.random.key(0), captions, {"words": jnp.zeros((3,), jnp.int32)}, 0.1
    )
    emptied = np.asarray(found["words"] == 0)
    assert np.array_equal(emptied.all(1), emptied.any(1))
    assert abs(emptied.mean() - 0.1) < 0.02  # four standard deviations


def test_timesteps_reach_both_ends():
    noise, times = losses.draw(
        NoiseSchedule(num_train_timesteps=4), jax.random.key(0), jnp.zeros((400, 2, 2, 1))
    )
    assert set(np.asarray(times)) == {0, 1, 2, 3}
    assert abs(float(noise.std()) - 1) < 0.1
