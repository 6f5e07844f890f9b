"""Errors cross from one process to another, as Ray's workers send them."""

import pickle

import pytest

from experiments.serve.replies import FailedError
from experiments.sweep.ray import ProgramsFailed
from lora_jax import errors
from lora_jax.data.tables import MissingColumnError
from lora_jax.metrics.java import JavaError
from lora_jax.serving.adapters import UnknownAdapterError
from lora_jax.serving.tickets import ClosedError, QueueFullError

ERRORS = [
    errors.InputError("a"),
    errors.InputTypeError("a"),
    errors.MissingFileError("a is missing"),
    errors.FileError("f.json", "key", "x" * 500, "a number", "Get it again"),
    errors.FileError("f.json", "", "nothing", "a number"),
    MissingColumnError("f.csv", ["a", "b"], "c", "Name it"),
    errors.SettingError("f.json", "method[0]", errors.InputError("rank 0")),
    errors.FolderInUseError("in use", "folder"),
    errors.DivergedError({"seed 1": 3}, "folder"),
    ProgramsFailed({"0": "no"}, 2),
    JavaError("no java"),
    QueueFullError("many wait"),
    ClosedError("closing"),
    UnknownAdapterError("no adapter 'a'"),
    FailedError("too slow"),
]


def all_kinds(kind):
    return {kind}.union(*(all_kinds(inner) for inner in kind.__subclasses__()))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_comes_out_of_another_process_is_what_went_in(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_every_error_of_the_project_is_tried():
    ours = {
        kind
        for kind in all_kinds(Exception)
        if kind.__module__.partition(".")[0] in ("lora_jax", "experiments")
        and not kind.__name__.startswith("_")  # is caught where it is raised
    }
    assert ours == {type(error) for error in ERRORS}
