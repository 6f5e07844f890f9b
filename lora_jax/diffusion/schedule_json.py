"""scheduler_config.json, as diffusers writes it beside a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_jax.diffusion.schedule import NoiseSchedule
from lora_jax.errors import InputError, SettingError, brief
from lora_jax.files import write_json
from lora_jax.ranges import ranges_of
from lora_jax.reading import read_object

FILE = "scheduler_config.json"
# Of settings that are not implemented: the values under which they change nothing.
_FIXED: Mapping[str, tuple[Any, ...]] = {
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
}
# Without effect on DDPM, DDIM and Euler, or while a setting above is switched off.
_WITHOUT_EFFECT = ("dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps")

_CUTS = ("DDPMScheduler", "DDIMScheduler")  # the others have no clip_sample


def read(path: Path) -> NoiseSchedule:
    """The schedule of a scheduler_config.json.

    Of any of diffusers' schedulers: the file says what noise the model was trained with, and which of the
    samplers draws is another choice. What it leaves out has the defaults of `DDIMScheduler`.

    Args:
      path: of the file.

    Raises:
      MissingFileError, FileError: no such file, or not an object.
      SettingError: a setting is unknown, out of its range, or not implemented; the message names it.
    """
    record = read_object(path)
    known = ranges_of(NoiseSchedule)
    chosen: dict[str, Any] = {}
    for name, value in record.values.items():
        if name.startswith("_") or name in _WITHOUT_EFFECT:
            continue
        if name in _FIXED:
            if not any(type(value) is type(fixed) and value == fixed for fixed in _FIXED[name]):
                wanted = " or ".join(map(repr, _FIXED[name]))
                raise SettingError(path, name, f"{brief(value)} is not implemented, only {wanted}")
        elif name not in known:
            raise SettingError(
                path, name, f"an unknown setting; known are {', '.join(sorted(known))}"
            )
        elif not known[name].accepts(value):
            raise SettingError(path, name, f"{brief(value)}; it must be {known[name]}")
        else:
            chosen[name] = value
    if record.values.get("_class_name", _CUTS[0]) not in _CUTS:
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
    alone = {"set_alpha_to_one"}  # of DDIM; diffusers tells users of what DDPM does not know
    if schedule.set_alpha_to_one:
        values = {name: value for name, value in values.items() if name not in alone}
    write_json(folder / FILE, {"_class_name": "DDPMScheduler", **values})
