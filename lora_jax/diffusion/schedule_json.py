"""scheduler_config.json, as diffusers writes it beside a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lora_jax.diffusion.schedule import NoiseSchedule
from lora_jax.errors import InputError, SettingError
from lora_jax.files import write_json
from lora_jax.models.config_json import Keys, check_fixed, fields
from lora_jax.ranges import ranges_of
from lora_jax.reading import read_object

FILE = "scheduler_config.json"
_CUTS = ("DDPM", "DDIM")  # the others have no clip_sample
# diffusers' classes for the same noise; flow matching and distilled models have another, or other steps.
_KINDS = (
    *_CUTS, "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep",
)  # fmt: skip
_KEYS = Keys(
    ranges=ranges_of(NoiseSchedule),
    fixed={
        "trained_betas": (None,),
        "thresholding": (False,),
        "interpolation_type": ("linear",),
        "use_karras_sigmas": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "sigma_min": (None,),
        "sigma_max": (None,),
        "timestep_type": ("discrete",),
        "final_sigmas_type": ("zero",),
        "use_flow_sigmas": (False,),
        "use_dynamic_shifting": (False,),
        "shift_terminal": (None,),
    },
    without_effect=(
        # While a setting above is switched off.
        "dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type",
        # Of samplers that are not here: PNDM, DPM-Solver, DEIS, UniPC.
        "skip_prk_steps", "algorithm_type", "disable_corrector", "euler_at_final", "lambda_min_clipped",
        "lower_order_final", "predict_x0", "solver_order", "solver_p", "solver_type", "use_lu_lambdas",
    ),
)  # fmt: skip


def read(path: Path) -> NoiseSchedule:
    """The schedule of a scheduler_config.json.

    Of any of diffusers' schedulers in `_KINDS`: the file says what noise the model was trained with, and
    which of the samplers draws is another choice. What it leaves out has the defaults of `DDIMScheduler`.

    Args:
      path: of the file.

    Raises:
      MissingFileError, FileError: no such file, or not an object; or a setting that is unknown, out of its
        range, or not implemented, which the message names.
    """
    record = read_object(path)
    known = _KEYS.known()
    kind = str(record.values.get("_class_name", _CUTS[0])).removesuffix("Scheduler")
    if kind not in _KINDS:
        raise record.error("_class_name", kind[:80], f"the scheduler of {', '.join(_KINDS)}")
    if record.values.get("variance_type", "") is None:  # DPM-Solver's word for none
        del record.values["variance_type"]
    for name in record.values:
        if not name.startswith("_") and name not in known:
            expected = f"one of {', '.join(sorted(_KEYS.ranges))}"
            raise record.error(name, f"an unknown setting {name}", expected)
    check_fixed(record, _KEYS)
    chosen = fields(record, _KEYS)
    if kind not in _CUTS:
        chosen = {"clip_sample": False, **chosen}
    try:
        return NoiseSchedule(**chosen)
    except InputError as error:
        raise SettingError(path, "", error) from error


def write(folder: Path, schedule: NoiseSchedule) -> None:
    """Writes a schedule as diffusers' DDPMScheduler reads it."""
    values = {
        name: value for name, value in dataclasses.asdict(schedule).items() if value is not None
    }
    if schedule.set_alpha_to_one:  # of DDIM alone, and its default
        del values["set_alpha_to_one"]
    write_json(folder / FILE, {"_class_name": "DDPMScheduler", **values})
