"""Schedules, samplers and their settings against diffusers, step by step and in whole runs."""

import dataclasses
import itertools
import json
import math

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lora_jax.diffusion import samplers, sampling, schedule_json
from lora_jax.diffusion.schedule import NoiseSchedule, add_noise, target
from lora_jax.errors import InputError

THEIRS = {
    "ddpm": diffusers.DDPMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
STABLE_DIFFUSION = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "clip_sample": False, "set_alpha_to_one": False,
}  # fmt: skip
SHAPE = (3, 4, 4, 2)


def theirs(kind, schedule):
    """The scheduler of diffusers with the same settings."""
    values = dataclasses.asdict(schedule)
    if values["timestep_spacing"] is None:
        del values["timestep_spacing"]
    known = THEIRS[kind].__init__.__wrapped__.__code__.co_varnames
    return THEIRS[kind](**{name: value for name, value in values.items() if name in known})


def their_step(kind, scheduler, output, time, sample, fresh, eta):
    """One step of diffusers, whose noise is given."""
    given = {"variance_noise": fresh, "eta": eta} if kind == "ddim" else {}
    if kind == "ddpm":
        import diffusers.schedulers.scheduling_ddpm as module

        original, module.randn_tensor = module.randn_tensor, lambda *_, **__: fresh
        try:
            return scheduler.step(output, time, sample)
        finally:
            module.randn_tensor = original
    if not eta:
        given.pop("variance_noise", None)
    return scheduler.step(output, time, sample, **given)


def model(x, times):
    """A small fixed function in place of a network; works on arrays of either library."""
    tanh = torch.tanh if isinstance(x, torch.Tensor) else jnp.tanh
    times = times.reshape(-1, 1, 1, 1)
    return 0.6 * tanh(x) + 0.1 * x * (times / 1000) - 0.05


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero", [False, True])
def test_alphas_are_those_of_diffusers(betas, zero):
    ours = NoiseSchedule(beta_schedule=betas, rescale_betas_zero_snr=zero, num_train_timesteps=300)
    expected = theirs("ddpm", ours).alphas_cumprod.numpy()
    # Products of 300 float32 numbers, each rounded by 6e-8.
    np.testing.assert_allclose(ours.alphas, expected, rtol=2e-5, atol=1e-9)


CASES = [
    # A sample of the settings, so that each occurs with every sampler.
    (NoiseSchedule(), 50, 0.0),
    (NoiseSchedule(**STABLE_DIFFUSION), 20, 0.0),
    (NoiseSchedule(**STABLE_DIFFUSION, prediction_type="v_prediction"), 7, 0.5),
    (NoiseSchedule(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"), 13, 1.0),
    (NoiseSchedule(prediction_type="sample", timestep_spacing="linspace"), 10, 0.3),
    (NoiseSchedule(variance_type="fixed_large", clip_sample_range=0.7), 11, 0.0),
    (NoiseSchedule(variance_type="fixed_small_log", timestep_spacing="leading"), 9, 0.0),
    (
        NoiseSchedule(
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
        ),
        5,
        0.0,
    ),
]


@pytest.mark.parametrize("number", range(len(CASES)))
@pytest.mark.parametrize("kind", samplers.SAMPLERS)
def test_every_step_is_that_of_diffusers(kind, number):
    dtype = (np.float64, np.float32)[number % 2]
    with jax.enable_x64(dtype is np.float64):
        compare_steps(kind, number, dtype)


def compare_steps(kind, number, dtype):
    schedule, steps, eta = CASES[number]
    eta = eta if kind == "ddim" else 0.0
    scheduler = theirs(kind, schedule)
    scheduler.set_timesteps(steps)
    plan = samplers.plan(schedule, kind, steps, eta)
    assert plan.start == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-5)
    np.testing.assert_allclose(plan.steps.timesteps, scheduler.timesteps.numpy(), rtol=1e-6)
    rng = np.random.default_rng(number)
    rows = samplers.Steps(*(jnp.asarray(values, dtype) for values in plan.steps))
    given = [rng.standard_normal((steps, *SHAPE)).astype(dtype) for _ in range(3)]
    following, x0 = jax.vmap(samplers.advance)(rows, *map(jnp.asarray, given))
    for row, time in enumerate(scheduler.timesteps):
        sample, output, fresh = (torch.tensor(values[row]) for values in given)
        scaled = scheduler.scale_model_input(sample, time)
        # diffusers keeps its coefficients in float32 whatever the type of the pictures.
        close(given[0][row] * np.asarray(rows.input_scale)[row], scaled, 1e-6)
        expected = their_step(kind, scheduler, output, time, sample, fresh, eta)
        # 1 - a_t near 0 and 1 / sqrt(a_t) near a_t = 0 lose digits there.
        close(x0[row], expected.pred_original_sample, 2e-5)
        close(following[row], expected.prev_sample, 1e-4)


def close(ours, theirs, tolerance):
    """Compares arrays, with a tolerance relative to the largest value."""
    theirs = theirs.numpy()
    largest = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=tolerance * largest)


def test_the_noise_of_a_cut_picture_is_that_of_diffusers():
    schedule = CASES[3][0]
    scheduler = theirs("ddim", schedule)
    scheduler.set_timesteps(6)
    plan = samplers.plan(schedule, "ddim", 6, noise_of_cut=True)
    rng = np.random.default_rng(0)
    for row, time in enumerate(scheduler.timesteps):
        sample, output = (2 * rng.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
        at = samplers.Steps(*(jnp.asarray(values[row], jnp.float32) for values in plan.steps))
        tensors = torch.tensor(output), time, torch.tensor(sample)
        expected = scheduler.step(*tensors, use_clipped_model_output=True).prev_sample
        following, _ = samplers.advance(at, *map(jnp.asarray, (sample, output)), jnp.zeros(SHAPE))
        close(following, expected, 1e-4)


@pytest.mark.parametrize(("kind", "number"), itertools.product(samplers.SAMPLERS, (1, 4)))
def test_a_whole_run_is_that_of_diffusers(kind, number):
    schedule, steps, _ = CASES[number]
    scheduler = theirs(kind, schedule)
    scheduler.set_timesteps(steps)
    noise = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    key = jax.random.key(5)
    x = torch.tensor(noise) * scheduler.init_noise_sigma
    for row, time in enumerate(scheduler.timesteps):
        fresh = torch.tensor(np.array(jax.random.normal(jax.random.fold_in(key, row), SHAPE)))
        seen = scheduler.scale_model_input(x, time)
        without = model(seen, time)
        of_captions = without + 0.1
        output = without + 3.0 * (of_captions - without)
        x = their_step(kind, scheduler, output, time, x, fresh, 0.0).prev_sample
    drawn = jax.jit(
        lambda noise: sampling.sample(
            lambda x, times, captions: model(x, times) + captions.reshape(-1, 1, 1, 1),
            samplers.plan(schedule, kind, steps), noise, jnp.full((3,), 0.1),
            empty=jnp.zeros((3,)), guidance=3.0, key=key,
        )
    )(noise)  # fmt: skip
    np.testing.assert_allclose(drawn, x.numpy(), rtol=2e-4, atol=2e-4)


def test_without_guidance_the_model_runs_once_for_each_picture():
    seen = []

    def counted(x, times, captions):
        seen.append(len(x))
        return model(x, times)

    plan = samplers.plan(NoiseSchedule(), "ddim", 4)
    sampling.sample(counted, plan, jnp.ones(SHAPE), None)
    assert seen == [SHAPE[0]]
    for guidance in (-1.0, math.nan):
        with pytest.raises(InputError, match="guidance must be"):
            sampling.sample(counted, plan, jnp.ones(SHAPE), None, guidance=guidance)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noising_and_targets_are_those_of_diffusers(prediction):
    schedule = NoiseSchedule(**STABLE_DIFFUSION, prediction_type=prediction)
    scheduler = theirs("ddpm", schedule)
    rng = np.random.default_rng(0)
    pictures, noise = (rng.standard_normal(SHAPE).astype(np.float32) for _ in range(2))
    times = np.array([0, 480, 999])
    tensors = [torch.tensor(v) for v in (pictures, noise, times)]
    pictures, noise, times = map(jnp.asarray, (pictures, noise, times))
    noisy = add_noise(schedule, pictures, noise, times)
    np.testing.assert_allclose(noisy, scheduler.add_noise(*tensors), rtol=1e-5, atol=1e-6)
    wanted = noise
    if prediction == "v_prediction":
        wanted = scheduler.get_velocity(*tensors)
    found = target(schedule, pictures, noise, times)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_file_of_diffusers_is_read_and_one_of_ours_by_diffusers(tmp_path):
    made = diffusers.DDIMScheduler(**STABLE_DIFFUSION, prediction_type="v_prediction")
    made.save_pretrained(tmp_path)
    read = schedule_json.read(tmp_path / schedule_json.FILE)
    named = {**STABLE_DIFFUSION, "prediction_type": "v_prediction"}
    assert read == NoiseSchedule(**named, timestep_spacing="leading")
    schedule_json.write(tmp_path, read)
    back = diffusers.DDIMScheduler.from_pretrained(tmp_path).config
    assert {name: back[name] for name in named} == named
    assert schedule_json.read(tmp_path / schedule_json.FILE) == read


@pytest.mark.parametrize(
    "kind",
    [
        diffusers.EulerDiscreteScheduler,
        diffusers.PNDMScheduler,
        diffusers.DPMSolverMultistepScheduler,
        diffusers.DEISMultistepScheduler,
        diffusers.UniPCMultistepScheduler,
    ],
)
def test_files_of_other_schedulers_are_read(kind, tmp_path):
    kind(beta_schedule="scaled_linear").save_pretrained(tmp_path)
    read = schedule_json.read(tmp_path / schedule_json.FILE)
    assert read.beta_schedule == "scaled_linear" and not read.clip_sample


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "flow_prediction"),
        ("variance_type", "learned_range"),
        ("thresholding", True),
        ("use_karras_sigmas", True),
        ("trained_betas", [0.1, 0.2]),
        ("num_train_timesteps", "many"),
        ("original_inference_steps", 50),  # of distilled models, which need a sampler of their own
        ("new_setting", 1),
    ],
)
def test_unknown_values_of_a_file_are_refused_by_name(name, value, tmp_path):
    path = tmp_path / schedule_json.FILE
    path.write_text(json.dumps({"_class_name": "DDIMScheduler", name: value}))
    with pytest.raises(InputError, match=f"{path}.*{name}"):
        schedule_json.read(path)


@pytest.mark.wrong_types
def test_steps_that_the_schedule_does_not_have_are_refused():
    with pytest.raises(InputError, match="steps is 30.*has 20"):
        samplers.plan(NoiseSchedule(num_train_timesteps=20), "ddim", 30)
    with pytest.raises(InputError, match="steps_offset 1"):
        samplers.plan(NoiseSchedule(num_train_timesteps=20, steps_offset=1), "ddpm", 20)
    with pytest.raises(InputError, match="sampler must be"):
        samplers.plan(NoiseSchedule(), "pndm", 20)
