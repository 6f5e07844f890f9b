"""Compiles train steps for a topology, and searches meshes, batch sizes and numbers of runs."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.plan import denoising, models
from experiments.plan.abstract_step import AbstractStep, build, build_runs
from experiments.plan.figures import StepFigures
from experiments.plan.variants import Variant
from experiments.runs import folder
from lora_jax import files, json_lines
from lora_jax.costs import compiled, topologies
from lora_jax.costs.chips import Chip
from lora_jax.errors import InputError
from lora_jax.files import to_json
from lora_jax.models.attention.attend import check_platform
from lora_jax.sharding.mesh import AXES, RUN, make_mesh, shares

# Fields of a config that are not of a step, or (the last three) only of a sweep's.
_NOT_OF_STEP = ("mesh", "verify", "search", "packed", "runs", "orders", "single_mesh")
_NO_BFLOAT16 = "Unsupported algorithm on the current device(s): ALG_DOT_BF16"  # XLA's words
_LOG = logging.getLogger(__name__)


class Planner:
    """Compiles steps of one config for one topology; remembers them in a file if there is one."""

    def __init__(self, config: ConfigDict, topology: str, workdir: Path | None):
        self.config = config
        self.topology = topology
        self.chip: Chip = topologies.check(topology)
        platform = "gpu" if topologies.is_gpu(self.chip) else "tpu"
        check_platform(config.model.get("attention", "auto"), platform)
        self.devices = topologies.devices(topology)
        self.path = None if workdir is None else workdir / "plans.jsonl"
        self.known: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.exists():
            self.known = _known(self.path)

    def figures(
        self, variant: Variant, mesh: dict[str, int], rows: int, runs: int = 1
    ) -> StepFigures:
        """Compiles one step: of a run alone, or of a program of several runs.

        Args:
          variant: what is trained, over what base.
          mesh: size of each axis.
          rows: token rows of a run's batch.
          runs: of the program.

        Raises:
          ValueError: the mesh fits neither the devices nor the model, or the rows or the runs not the
            mesh.
        """
        devices = make_mesh(mesh, self.devices)
        if rows % shares(devices):
            raise InputError(
                f"mesh: data x fsdp = {shares(devices)} does not divide the batch's {rows} rows; set "
                "config.rows to a multiple"
            )
        _check_runs(devices, runs)
        sizes = {axis: devices.shape[axis] for axis in (AXES if runs > 1 else AXES[1:])}
        plain = {k: v for k, v in folder.plain(self.config).items() if k not in _NOT_OF_STEP}
        plain["base_dtype"] = variant.base_dtype
        plain["base_format"] = variant.base_format
        of_sweep = [runs, self._orders()] if runs > 1 else []
        made_by = ["jax", jax.__version__]
        key = to_json(
            [made_by, plain, self.topology, str(variant.method), sizes, rows, *of_sweep],
            indent=None,
        )
        if key not in self.known:
            self.known[key] = dataclasses.asdict(self._compile(variant, devices, sizes, rows, runs))
            if self.path is not None:
                files.make_folder(self.path.parent)
                with json_lines.Appender(self.path) as file:
                    file.write({"key": key, "plan": self.known[key]})
        return StepFigures(**self.known[key])

    def single_mesh(self, mesh: dict[str, int]) -> dict[str, int]:
        """The mesh of one run on the slice that a sweep has with `mesh`.

        What `config.single_mesh` leaves at 0 is as the sweep has it; data takes the axis run, too.
        """
        shape = make_mesh(mesh, self.devices).shape
        sizes = {axis: shape[axis] for axis in AXES[1:]}
        sizes["data"] *= shape[RUN]
        return {axis: self.config.single_mesh.get(axis, 0) or size for axis, size in sizes.items()}

    def single(self, variant: Variant, mesh: dict[str, int], rows: int) -> StepFigures:
        """One run at a time on the slice of a sweep.

        Raises:
          ValueError: its mesh does not fit; names `config.single_mesh`.
        """
        single = self.single_mesh(mesh)
        try:
            return self.figures(variant, single, rows)
        except ValueError as error:
            raise InputError(
                f"one run at a time: {error}. Its mesh is {single}: set config.single_mesh, whose zeros "
                "are the sizes of config.mesh, with run in data"
            ) from error

    def _orders(self) -> str:
        if self.config.orders not in ("own", "shared"):
            raise InputError(f"config.orders must be own or shared, got {self.config.orders!r}")
        return self.config.orders

    def _step(self, variant: Variant, mesh: Mesh, rows: int, runs: int) -> AbstractStep:
        if denoising.is_unet(self.config):
            return denoising.of_plan(self.config, variant, mesh, rows, runs)
        if runs > 1:
            return build_runs(self.config, variant, mesh, rows, runs)
        return build(self.config, variant, mesh, rows)

    def _compile(
        self, variant: Variant, mesh: Mesh, sizes: dict[str, int], rows: int, runs: int
    ) -> StepFigures:
        step = self._step(variant, mesh, rows, runs)
        try:
            needs = compiled.needs(step.function, step.arguments, self.chip)
        except jax.errors.JaxRuntimeError as error:
            if _NO_BFLOAT16 not in str(error):
                raise
            raise InputError(
                f"{self.chip.name} cannot multiply in {variant.base_dtype}, and the program would not "
                "compile there either: set config.base_dtype=float32"
            ) from error
        count = len(self.devices)
        return StepFigures(
            topology=self.topology,
            devices=count,
            mesh=sizes,
            method=str(variant.method),
            rows=rows,
            tokens=runs * rows * self.config.length,
            trainable=step.trainable,
            total=step.total,
            arguments=needs.arguments,
            temporaries=needs.temporaries,
            peak=needs.peak,
            fits=needs.fits,
            traffic={kind: traffic.bytes for kind, traffic in needs.traffic.items()},
            flops=step.flops,
            compute_seconds=step.flops / (count * self.chip.peak(variant.base_dtype)),
            link_seconds=needs.sent / self.chip.interconnect_bandwidth,
            compile_seconds=needs.compile_seconds,
            runs=runs,
            frozen=compiled.argument_bytes(step.frozen),
        )

    def candidates(self, variant: Variant, runs: int = 1) -> Iterator[tuple[dict[str, int], int]]:
        """Meshes and batch sizes of a search, without those that cannot fit.

        Arguments alone (weights, optimizer state) may be more than a device has: no need to compile.
        """
        for mesh in self._meshes(runs):
            for rows in self.config.search.rows:
                if rows % (mesh["data"] * mesh["fsdp"]):
                    continue
                try:
                    step = self._step(variant, make_mesh(mesh, self.devices), rows, runs)
                except ValueError:  # a width that the mesh does not divide
                    continue
                if compiled.argument_bytes(step.arguments) < self.chip.memory_bytes:
                    yield mesh, rows

    def _meshes(self, runs: int) -> Iterator[dict[str, int]]:
        """Divisions of the devices, with the sizes of model and run that config.search names."""
        count = len(self.devices)
        heads = 1 if denoising.is_unet(self.config) else models.heads(self.config)
        for model in self.config.search.model:
            if heads % model or count % model:
                continue
            for run in _divisors(math.gcd(count // model, runs)):
                if run not in (self.config.search.run or (run,)):
                    continue
                left = count // model // run
                for fsdp in _divisors(left):
                    sizes = {"data": left // fsdp, "fsdp": fsdp, "model": model}
                    yield {RUN: run, **sizes} if runs > 1 else sizes


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """The plans in a file, by key; one with damaged lines is kept under another name."""
    names = {field.name for field in dataclasses.fields(StepFigures)}

    def is_plan(value: dict[str, Any]) -> bool:
        plan = value.get("plan")
        return isinstance(value.get("key"), str) and isinstance(plan, dict) and plan.keys() == names

    values = json_lines.mended(path, is_plan, "their plans are made again")
    return {value["key"]: value["plan"] for value in values}


def _check_runs(mesh: Mesh, runs: int) -> None:
    ways = mesh.shape[RUN]
    if runs > 1 and runs % ways:
        raise InputError(
            f"mesh: run={ways} does not divide the sweep's {runs} runs; set config.runs to a multiple"
        )
    if runs == 1 and ways > 1:
        raise InputError(
            f"mesh: run={ways} splits the runs of a sweep, and this is one run: set config.runs to a "
            f"multiple of {ways}, or use data, fsdp or model"
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
