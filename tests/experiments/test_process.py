"""What commands set for their process: only on CPUs, never over the user's choice, and said in the record."""

import os
import subprocess
import sys

import pytest

from experiments.runs import process

WIDE = "processor\t: 0\nmodel name\t: Some CPU\ncpu family\t: 6\nmodel\t\t: 85\nflags\t\t: fpu avx512f avx2\n"
NARROW = WIDE.replace("avx512f", "avx512fp16")  # another feature, whose name begins alike


class Libc:
    """Takes down what is set; refuses what it is told to."""

    def __init__(self, refused=()):
        self.set, self._refused = {}, refused

    def mallopt(self, number, value):
        self.set[number] = value
        return int(number not in self._refused)


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """A function that tunes this process, as if with this processor and environment; what it set."""

    def call(cpuinfo=WIDE, libc="glibc", refused=(), **environment):
        for name in [n for n in os.environ if n.startswith(("MALLOC_", "GLIBC_", "XLA_FLAGS"))]:
            monkeypatch.delenv(name)
        for name, value in {"JAX_PLATFORMS": "cpu", **environment}.items():
            monkeypatch.setenv(name, value)
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        fake = Libc(refused)
        monkeypatch.setattr(process, "_CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(process, "_applied", {})
        monkeypatch.setattr(process.platform, "libc_ver", lambda: (libc, "2.36"))
        monkeypatch.setattr(process.ctypes, "CDLL", lambda name: fake)
        process.tune()
        return fake.set, os.environ.get("XLA_FLAGS", ""), process.applied()

    return call


def test_both_are_set_and_said(tuned):
    malloc, flags, applied = tuned()
    assert malloc == {-3: 2**30, -1: 2**31 - 1, -2: 2**26, -8: 1}
    assert flags == applied["xla_flags"] == "--xla_cpu_prefer_vector_width=512"
    assert process.left() == []
    assert set(applied["malloc"]) == {
        "M_MMAP_THRESHOLD", "M_TRIM_THRESHOLD", "M_TOP_PAD", "M_ARENA_MAX",
    }  # fmt: skip


def test_flags_of_the_user_stay(tuned):
    _, flags, _ = tuned(XLA_FLAGS="--xla_foo=1")
    assert flags == "--xla_foo=1 --xla_cpu_prefer_vector_width=512"
    own = "--xla_cpu_prefer_vector_width=128"
    _, flags, applied = tuned(XLA_FLAGS=own)
    assert flags == own and "xla_flags" not in applied
    assert process.left() == ["the user's xla_cpu_prefer_vector_width in XLA_FLAGS stays"]
    for other in ("flags.txt", "--xla_cpu_max_isa=AVX2"):  # a file of flags; a set of instructions
        _, flags, applied = tuned(XLA_FLAGS=other)
        assert flags == other and "xla_flags" not in applied and len(process.left()) == 1


def test_an_older_c_library_takes_a_smaller_threshold(tuned, monkeypatch):
    class Older(Libc):
        def mallopt(self, number, value):
            return int(value <= 2**25 or number != -3) and super().mallopt(number, value)

    fake = Older()
    tuned()
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: fake)
    process.tune()
    assert fake.set[-3] == process.applied()["malloc"]["M_MMAP_THRESHOLD"] == 2**25


@pytest.mark.parametrize(
    "environment", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}]
)
def test_an_allocator_set_by_the_user_stays(tuned, environment):
    malloc, _, applied = tuned(**environment)
    assert malloc == {} and "malloc" not in applied
    assert process.left() == [f"the user's {name} stays" for name in environment]


def test_without_avx512_no_flag_is_set(tuned):
    _, flags, applied = tuned(NARROW)
    assert flags == "" and set(applied) == {"malloc"}


def test_other_c_libraries_are_left_alone(tuned):
    assert tuned(libc="musl")[0] == {}


def test_what_the_c_library_refuses_is_not_said(tuned):
    assert set(tuned(refused=(-3,))[2]["malloc"]) == {
        "M_TRIM_THRESHOLD", "M_TOP_PAD", "M_ARENA_MAX",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"LORA_JAX_TUNE": "0"}, "LORA_JAX_TUNE is 0"),
        ({"LORA_JAX_TUNE": "False"}, "LORA_JAX_TUNE is False"),
        ({"JAX_PLATFORMS": "tpu,cpu"}, "accelerator: JAX_PLATFORMS is tpu,cpu"),
    ],
)
def test_nothing_is_set_if_switched_off_or_with_accelerators(tuned, environment, why):
    assert tuned(**environment) == ({}, "", {})
    assert len(process.left()) == 1 and process.left()[0].endswith(why)


def test_an_accelerator_may_be_there_if_its_plugin_is(tuned, monkeypatch):
    monkeypatch.setattr(process.importlib.metadata, "entry_points", lambda group: [])
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: None)
    assert tuned(JAX_PLATFORMS="")[0]
    monkeypatch.setattr(process.importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    assert tuned(JAX_PLATFORMS="") == ({}, "", {})
    assert "libtpu is installed" in process.left()[0]


def test_the_processor_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(WIDE + WIDE.replace("Some", "Second"))
    found = process.processor()
    assert found.pop("cores") >= 1
    assert found == {"name": "Some CPU", "family": "6", "model": "85", "avx512f": True}
    (tmp_path / "cpuinfo").unlink()
    assert process.processor()["avx512f"] is False


_FAULTS = """
import numpy, resource, threading
from experiments.runs import process
process.tune()
def work():  # as XLA does: a large buffer for every step, in a thread of its own
    for step in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        numpy.ones(2**24, numpy.float32)  # 64 MiB, gone at once
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start(); thread.join()
"""


@pytest.mark.skipif(process.platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_a_buffer_that_comes_again_needs_no_new_pages():
    """Without tuning its 16,384 pages are faulted in anew each time (or 32 huge ones, where those are on)."""
    faults = {}
    for tune in ("0", "1"):
        environment = {**os.environ, "LORA_JAX_TUNE": tune, "JAX_PLATFORMS": "cpu"}
        for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-c", _FAULTS], env={**environment, "PYTHONPATH": os.getcwd()},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        faults[tune] = sum(map(int, done.stdout.split()[1:]))
    assert faults["1"] <= 20 < 7 * 32 <= faults["0"]
