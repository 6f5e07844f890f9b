"""GGUF files that are written here are those that the gguf package reads, and writes."""

from __future__ import annotations

import gguf
import gguf_models
import numpy as np
import pytest

from lora_jax.errors import InputError
from lora_jax.files import write_pieces
from lora_jax.gguf.container import Container
from lora_jax.gguf.kinds import KINDS
from lora_jax.gguf.writing import Tensor, copied, encoded

METADATA = {
    "general.architecture": "llama",
    "yes": True,
    "small": 7,
    "negative": -7,
    "large": 2**40,
    "least": -(2**40),
    "number": 0.1,
    "text": "a \U0001f984",
    "texts": ["", "b", "\u00e9"],
    "none": [],
    "flags": np.array([True, False]),
    **{name: np.arange(3, dtype=name) for name in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")},
    "floats": np.array([0.1, -2], "f4"),
    "doubles": np.array([0.1, -2], "f8"),
}
SCALARS = {0: 2**8 - 1, 1: -(2**7), 2: 2**16 - 1, 3: -(2**15), 4: 2**32 - 1, 5: -(2**31),
           6: 0.5, 7: True, 10: 2**64 - 1, 11: -(2**63), 12: 0.1}  # fmt: skip


def write(path, metadata=METADATA, tensors=None, types=None):
    write_pieces(path, encoded(metadata, tensors or {}, types))
    return path


def plain(value):
    return value.tolist() if isinstance(value, np.ndarray) else value


def tensor(kind, shape, draw):
    size = int(np.prod(shape)) // kind.values * kind.size
    data = draw.integers(0, 256, size, np.uint8)
    return Tensor(kind=kind, shape=shape, data=lambda: np.split(data, [size // 3])), data


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_both_readers_read_what_is_written(tmp_path, alignment):
    draw = np.random.default_rng(0)
    made = {
        f"t.{kind.name}": tensor(kind, (*lead, 2 * kind.values), draw)
        for kind, lead in zip(KINDS.values(), [(3,), (), (2, 1, 3)] * len(KINDS), strict=False)
    }
    more = {} if alignment is None else {"general.alignment": alignment}
    path = write(tmp_path / "x.gguf", METADATA | more, {n: t for n, (t, _) in made.items()})
    ours, theirs = Container(path), gguf.GGUFReader(path)
    assert path.stat().st_size % (alignment or 32) == 0
    assert [(k, plain(v)) for k, v in ours.metadata.items()] == [
        (k, pytest.approx(plain(v)) if k == "number" else plain(v))
        for k, v in (METADATA | more).items()
    ]
    for key, value in ours.metadata.items():
        assert theirs.fields[key].contents() == plain(value), key
    assert [t.name for t in theirs.tensors] == list(ours.tensors) == list(made)
    for other in theirs.tensors:
        one, data = made[other.name]
        assert other.tensor_type.name == one.kind.name
        assert tuple(reversed(other.shape.tolist())) == one.shape == ours.tensors[other.name].shape
        np.testing.assert_array_equal(other.data.reshape(-1).view(np.uint8), data)
        found = np.concatenate([raw.ravel() for raw in ours.blocks(other.name, 2)])
        np.testing.assert_array_equal(found, data)


def test_scalars_keep_the_type_that_they_are_given(tmp_path):
    metadata = {str(kind): value for kind, value in SCALARS.items()}
    types = {str(kind): kind for kind in SCALARS}
    path = write(tmp_path / "x.gguf", metadata, types=types)
    assert (Container(path).metadata, Container(path).value_types) == (metadata, types)
    fields = gguf.GGUFReader(path).fields
    assert {key: int(fields[key].types[0]) for key in metadata} == types
    assert {key: fields[key].contents() for key in metadata} == metadata


def test_scalars_have_the_types_that_llama_cpp_asks_for(tmp_path):
    ours = tmp_path / "ours.gguf"
    write(ours)
    kinds = Container(ours).value_types
    names = {key: gguf.GGUFValueType(kinds[key]).name for key in list(METADATA)[1:8]}
    assert list(names.values()) == [
        "BOOL", "UINT32", "INT32", "UINT64", "INT64", "FLOAT32", "STRING",
    ]  # fmt: skip


def rewritten(source, target):
    file = Container(source)
    tensors = {name: copied(file, name) for name in file.tensors}
    return write(target, file.metadata, tensors, file.value_types)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_what_the_gguf_package_wrote_is_written_again_byte_by_byte(tmp_path, name):
    gguf_models.write(tmp_path / "theirs.gguf", name)
    path = rewritten(tmp_path / "theirs.gguf", tmp_path / "ours.gguf")
    assert path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_smollm2_is_written_again_byte_by_byte(tmp_path):
    source = gguf_models.smollm2()
    assert rewritten(source, tmp_path / "ours.gguf").read_bytes() == source.read_bytes()


F32, Q8_0 = KINDS[0], KINDS[8]
REFUSED = {
    "alignment": ({"general.alignment": 24}, {}, {}, "alignment must be a power of two, got 24"),
    "range": ({"a": 256}, {}, {"a": 0}, "a: 256 is no value of GGUF's type 0"),
    "fraction": ({"a": 0.5}, {}, {"a": 4}, "a: 0.5 is no value"),
    "type": ({"a": 1}, {}, {"a": 13}, "type 13"),
    "too large": ({"a": 2**64}, {}, {}, "18446744073709551616 is no value"),
    "surrogate": ({"a": "\ud800"}, {}, {}, "half of a surrogate pair"),
    "complex": ({"a": np.zeros(2, complex)}, {}, {}, "a: an array of GGUF"),
    "axes": ({"a": np.zeros((2, 2))}, {}, {}, "a: an array of GGUF has one axis"),
    "name": ({}, {"a" * 64: (F32, (4,), 16)}, {}, "has 64 bytes; llama.cpp takes 63"),
    "row": ({}, {"a": (Q8_0, (4, 33), 0)}, {}, "tensor a of shape .4, 33. cannot be Q8_0"),
    "no axis": ({}, {"a": (F32, (), 4)}, {}, "needs 1 to 4 axes"),
    "short": ({}, {"a": (F32, (4,), 12)}, {}, "tensor a has 12 bytes; F32 .4,. takes 16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_file_can_have_is_refused_and_leaves_none(tmp_path, case):
    metadata, tensors, types, message = REFUSED[case]
    made = {
        name: Tensor(kind=kind, shape=shape, data=lambda n=size: [np.zeros(n, np.uint8)])
        for name, (kind, shape, size) in tensors.items()
    }
    with pytest.raises(InputError, match=message):
        write(tmp_path / "x.gguf", metadata, made, types)
    assert not list(tmp_path.iterdir())
