"""Folders of runs with one file that is wrong: `Trainer.fit` refuses it, or gives the right result."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from lora_jax.errors import InputError
from tests.training import small_runs
from tests.training.small_runs import fit, same_result

pytestmark = pytest.mark.wrong_types  # the code itself has to see them
FIXED = {"deadline": None, "derandomize": True, "database": None}
UNCHECKED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, fit(folder)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    return small_runs.half_done(tmp_path_factory.mktemp("half"))


ODD = st.sampled_from(
    [None, True, -1, 0, 2**70, -1e308, 1e400, "", "x" * 300, "../..", [], {}, [[]], {"a": {}}]
)


def nested(depth):
    return "[" * depth + "]" * depth


@st.composite
def broken_bytes(draw, content):
    """The content of a file cut, with bytes flipped, put in or left out."""
    kind = draw(st.sampled_from(["cut", "flip", "insert", "remove", "empty", "nested"]))
    event(f"bytes: {kind}")
    if kind == "nested":
        return nested(draw(st.sampled_from([100, 100_000]))).encode()
    if kind == "empty" or not content:
        return b""
    at = draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=9)) + content[at:]
    return content[:at] + content[at + draw(st.integers(1, 40)) :]


def places(value, path=()):
    """All places in a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else []:
        yield from places(inner, (*path, key))
    for key, inner in enumerate(value) if isinstance(value, list) else []:
        yield from places(inner, (*path, key))


@st.composite
def broken_json(draw, content):
    """A JSON file with one value replaced, removed or added."""
    value = json.loads(content)
    path = draw(st.sampled_from([p for p in places(value) if p]))
    at = value
    for key in path[:-1]:
        at = at[key]
    kind = draw(st.sampled_from(["replace", "remove", "add"]))
    event(f"json: {kind}")
    if kind == "remove":
        del at[path[-1]]
    elif kind == "add" and isinstance(at, dict):
        at["new"] = draw(ODD)
    else:
        at[path[-1]] = draw(ODD)
    return json.dumps(value).encode()


@st.composite
def damaged(draw, folder, names):
    """The name of a file in a folder, and its new content; None for a file that is gone."""
    name = draw(st.sampled_from(names))
    content = (folder / name).read_bytes()
    kinds = (
        ["gone", "bytes", "bytes", "json", "json"] if name.endswith("json") else ["gone", "bytes"]
    )
    kind = draw(st.sampled_from(kinds))
    event(f"{Path(name).name if 'checkpoints' not in name else 'checkpoint'}: {kind}")
    if kind == "gone":
        return name, None
    return name, draw((broken_json if kind == "json" else broken_bytes)(content))


def write(folder, name, content):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)


def outcome(folder, name, expected):
    """What `fit` makes of a folder with a damaged file."""
    try:
        result = fit(folder)
    except (InputError, OSError) as error:
        assert str(folder) in str(error), (name, error)
        return "refused"
    assert same_result(result, expected), name
    return "right"


def finished_run(whole, tmp_path_factory, data):
    folder, expected = whole
    names = ["config.json", "result.json", "metrics.jsonl", "adapter/adapter.json"]
    name, content = data.draw(damaged(folder, [*names, "adapter/adapter.safetensors"]))
    copy = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    write(copy, name, content)
    if not (copy / "result.json").exists():
        return  # then it trains, which the half-done runs below do
    result = outcome(copy, name, expected)
    if name not in ("config.json", "metrics.jsonl") and result == "right":
        same = content == (folder / name).read_bytes()
        assert same or json.loads(content) == json.loads((folder / name).read_bytes()) or (
            name == "result.json" and "digests" not in json.loads(content)
        )  # fmt: skip
    event(result)
    shutil.rmtree(copy)


def half_done_run(whole, half_done, tmp_path_factory, data):
    names = [
        *("config.json", "metrics.jsonl", "adapter/adapter.json", "adapter/adapter.safetensors"),
        *sorted(
            str(path.relative_to(half_done))
            for path in half_done.glob("checkpoints/*/**/*")
            if path.is_file()
        ),
    ]
    name, content = data.draw(damaged(half_done, names))
    if content is None and name.endswith("digests.json"):
        return  # an older checkpoint, see tests/training/test_damaged_folders.py
    copy = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(half_done, copy)
    write(copy, name, content)
    event(outcome(copy, name, whole[1]))
    shutil.rmtree(copy.parent)


@settings(max_examples=100, suppress_health_check=UNCHECKED, **FIXED)
@given(data=st.data())
def test_a_finished_run_is_the_one_that_was_trained_or_refused(whole, tmp_path_factory, data):
    finished_run(whole, tmp_path_factory, data)


@settings(max_examples=8, suppress_health_check=UNCHECKED, **FIXED)
@given(data=st.data())
def test_a_resumed_run_ends_as_if_nothing_had_been_or_is_refused(
    whole, half_done, tmp_path_factory, data
):
    half_done_run(whole, half_done, tmp_path_factory, data)


@pytest.mark.slow
@settings(max_examples=3000, suppress_health_check=UNCHECKED, **FIXED)
@given(data=st.data())
def test_many_finished_runs(whole, tmp_path_factory, data):
    finished_run(whole, tmp_path_factory, data)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=UNCHECKED, **FIXED)
@given(data=st.data())
def test_many_resumed_runs(whole, half_done, tmp_path_factory, data):
    half_done_run(whole, half_done, tmp_path_factory, data)
