"""GGUF files that are right are read as the gguf package reads them; broken ones are refused by name."""

from __future__ import annotations

import struct
import tracemalloc

import gguf
import gguf_models
import numpy as np
import pytest

from lora_jax.errors import FileError, InputError, MissingFileError
from lora_jax.gguf.container import Container

U32, F32, STRING, ARRAY = 4, 6, 8, 9


def text(value):
    return struct.pack("<Q", len(value)) + value


def key(name, kind, content):
    return text(name.encode()) + struct.pack("<I", kind) + content


def tensor(name=b"a", shape=(4,), kind=0, offset=0):
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def build(*, magic=b"GGUF", version=3, tensors=(), keys=(), counts=None, data=b"\0" * 64):
    count = counts or (len(tensors), len(keys))
    head = magic + struct.pack("<IQQ", version, *count) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


@pytest.fixture
def read(tmp_path):
    def one(data):
        (tmp_path / "x.gguf").write_bytes(data)
        return Container(tmp_path / "x.gguf")

    return one


@pytest.mark.parametrize("version", [2, 3])
def test_a_small_file(read, version):
    values = np.arange(8, dtype="<f4")
    found = read(
        build(
            version=version,
            keys=[key("n", U32, b"\7\0\0\0"), key("t", STRING, text("\u00e9".encode()))],
            tensors=[tensor(b"b", (2, 2), 0, 32), tensor(b"a", (4,), 0, 0)],
            data=values[:4].tobytes() + b"\0" * 16 + values[4:].tobytes(),
        )
    )
    assert found.metadata == {"n": 7, "t": "\u00e9"}
    assert {name: entry.shape for name, entry in found.tensors.items()} == {"b": (2, 2), "a": (4,)}
    for name, wanted in (("a", values[:4]), ("b", values[4:])):
        np.testing.assert_array_equal(
            np.concatenate(list(found.blocks(name, 3))).view("<f4").ravel(), wanted
        )


def test_every_type_of_value_is_read_as_gguf_reads_it(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    rng = np.random.default_rng(0)
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        for limit in (np.iinfo(kind).min, np.iinfo(kind).max):
            getattr(writer, f"add_{kind}")(f"{kind}.{limit}", int(limit))
    writer.add_float32("f4", float(np.float32(0.1)))
    writer.add_float64("f8", 0.1)
    writer.add_bool("yes", True)
    writer.add_array("floats", rng.normal(size=7).astype(np.float32).tolist())
    writer.add_array("integers", [-1, 2, 3])
    writer.add_array("flags", [True, False, True])
    writer.add_array("strings", ["", "a b", "\U0001f984"])
    writer.add_custom_alignment(64)
    writer.add_tensor("t", rng.normal(size=(3, 5)).astype(np.float32))
    writer.add_tensor("u", rng.normal(size=(2, 3, 4)).astype(np.float16))
    for write in (
        "write_header_to_file",
        "write_kv_data_to_file",
        "write_tensors_to_file",
        "close",
    ):
        getattr(writer, write)()
    ours, theirs = Container(path), gguf.GGUFReader(path)
    fields = {name: f for name, f in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        value = ours.metadata[name]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents(), (
            name
        )
    for other in theirs.tensors:
        entry = ours.tensors[other.name]
        assert (entry.start, entry.size) == (other.data_offset, other.n_bytes)
        assert entry.shape == other.data.shape and entry.kind.name == other.tensor_type.name


HUGE = struct.pack("<Q", 2**60)
BROKEN = {
    "empty": (b"", "first bytes"),
    "short": (b"GG", "first bytes"),
    "magic": (build(magic=b"PK\3\4"), r"first bytes.*PK.*GGUF"),
    "old": (build(magic=b"tjgg"), "old GGML file.*Convert the model again"),
    "version 1": (build(version=1), "version: found 1, expected 2 or 3"),
    "version 4": (build(version=4), "version: found 4"),
    "big-endian": (build(version=3 << 24), "big-endian byte order.*without --bigendian"),
    "keys": (build(counts=(0, 2**60)), "keys.*truncated or broken"),
    "tensors": (build(counts=(2**60, 0)), "tensors.*truncated or broken"),
    "key length": (build(keys=[HUGE + b"a" * 40]), "key of value 0.*at most 65,536"),
    "key twice": (build(keys=[key("n", U32, b"\0" * 4)] * 2), "n: found this key twice"),
    "text length": (build(keys=[key("n", STRING, HUGE)]), "n: found a string of 1,152"),
    "text past the end": (build(keys=[key("n", STRING, struct.pack("<Q", 10**6))]), "n: found.*end"),
    "not UTF-8": (build(keys=[key("n", STRING, text(b"\xff\xfe"))]), "n: found bytes that are not"),
    "type": (build(keys=[key("n", 13, b"\0" * 8)]), "n: found type 13"),
    "bool": (build(keys=[key("n", 7, b"\2")]), "n: found a byte other than 0 and 1"),
    "nested": (build(keys=[key("n", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "array of arrays"),
    "array": (build(keys=[key("n", ARRAY, struct.pack("<I", F32) + HUGE)]), "n: found.*truncated"),
    "strings": (build(keys=[key("n", ARRAY, struct.pack("<I", STRING) + HUGE)]), "n: found.*trunc"),
    "string in array": (
        build(keys=[key("n", ARRAY, struct.pack("<IQ", STRING, 2) + text(b"") + HUGE)]),
        r"n\[1\]: found a string",
    ),
    "alignment 0": (build(keys=[key("general.alignment", U32, b"\0" * 4)]), "alignment.*power of two"),
    "alignment 24": (build(keys=[key("general.alignment", U32, b"\x18\0\0\0")]), "found 24"),
    "alignment text": (build(keys=[key("general.alignment", STRING, text(b"32"))]), "power of two"),
    "name twice": (build(tensors=[tensor(), tensor(offset=32)]), "tensor a: found this name twice"),
    "axes": (build(tensors=[tensor(shape=(1,) * 5)]), "tensor a: found 5 axes"),
    "no axes": (build(tensors=[tensor(shape=())]), "tensor a: found 0 axes"),
    "size 0": (build(tensors=[tensor(shape=(4, 0))]), "tensor a: found the shape"),
    "sizes": (build(tensors=[tensor(shape=(2**40, 2**40))]), "tensor a: found the shape"),
    "tensor type": (build(tensors=[tensor(kind=99)]), "tensor a: found type 99.*newer"),
    "old type": (build(tensors=[tensor(kind=4)]), "tensor a: found type 4"),
    "rows": (build(tensors=[tensor(shape=(40,), kind=2)]), "rows of 40, expected a multiple of 32"),
    "offset": (build(tensors=[tensor(offset=4)]), "offset 4, expected a multiple of the alignment"),
    "outside": (build(tensors=[tensor(offset=64)]), "tensor a: found bytes.*inside the file"),
    "far outside": (build(tensors=[tensor(offset=2**63)]), "tensor a: found bytes.*inside the file"),
    "long": (build(tensors=[tensor(shape=(17,))]), "tensor a: found bytes.*truncated or broken"),
    "overlap": (build(tensors=[tensor(shape=(9,)), tensor(b"b", offset=32)]), "overlap those of a"),
    "same place": (build(tensors=[tensor(), tensor(b"b")]), "overlap"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_place(read, tmp_path, case):
    data, message = BROKEN[case]
    tracemalloc.start()
    with pytest.raises(FileError, match=message) as caught:
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(tmp_path / "x.gguf") in str(caught.value)
    assert peak < 2**23  # the buffer has one MiB; no count of the file is believed


def test_every_cut_of_a_file_is_refused(tmp_path):
    gguf_models.write(tmp_path / "x.gguf", "llama")
    data = (tmp_path / "x.gguf").read_bytes()
    head = data.index(b"output_norm") + 60
    for length in [*range(0, head, 97), *range(head, len(data), len(data) // 50)]:
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(FileError, match="cut.gguf"):
            Container(tmp_path / "cut.gguf")


def test_a_file_that_is_cut_later_is_refused(read, tmp_path):
    found = read(build(tensors=[tensor(shape=(16,))]))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileError, match="tensor a: found the end of the file"):
        list(found.blocks("a", 4))
    (tmp_path / "x.gguf").unlink()
    with pytest.raises(OSError, match=r"x\.gguf"):
        list(found.blocks("a", 4))


def test_no_file_and_no_regular_file(tmp_path):
    with pytest.raises(MissingFileError, match="none.gguf is missing"):
        Container(tmp_path / "none.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(InputError, match="a folder or a device"):
        Container(tmp_path / "folder.gguf")
