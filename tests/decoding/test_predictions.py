"""Decoding a whole set: order, batches, the file that resumes; the search itself is a stand-in."""

import json

import numpy as np
import pytest

from lora_jax.decoding.beam import Continuations
from lora_jax.decoding.predictions import decode_all

SETTINGS = {"beams": 2, "length_penalty": 0.9, "dataset": "e2e"}


class Killed(BaseException):
    pass


class Reverse:
    """Continues a prompt by its tokens backwards; records what it is called with."""

    def __init__(self, dies_after=None):
        self.shapes, self.prompts, self.dies_after = [], [], dies_after

    def __call__(self, tokens, lengths):
        if self.dies_after == len(self.shapes):
            raise Killed
        assert tokens.dtype == lengths.dtype == np.int32
        self.shapes.append(tokens.shape)
        out = np.zeros((len(tokens), 70), np.int32)
        for row, (ids, n) in enumerate(zip(tokens, lengths, strict=True)):
            assert (ids[:n] > 0).all() and not ids[n:].any()  # padded behind, with 0
            self.prompts.append(tuple(ids[:n].tolist()))
            out[row, :n] = ids[:n][::-1]
        return Continuations(out, lengths, -lengths.astype(np.float32) / 3)


def make_prompts(count=13, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 900, rng.integers(1, 60)).astype(np.int32) for _ in range(count)]


def decode(prompts, path, search=None, batch_size=4, **settings):
    search = search or Reverse()
    settings = {**SETTINGS, **settings}
    return decode_all(search, prompts, batch_size=batch_size, path=path, settings=settings), search


def test_results_are_in_the_order_of_the_prompts(tmp_path):
    prompts = make_prompts()
    found, search = decode(prompts, tmp_path / "new/predictions.jsonl")
    assert found.tokens == [prompt[::-1].tolist() for prompt in prompts]
    assert found.scores == [float(np.float32(-len(p)) / np.float32(3)) for p in prompts]
    # Full batches of few shapes, the shortest prompts first; the last one repeats its last prompt.
    assert len(search.shapes) == 4 and {rows for rows, _ in search.shapes} == {4}
    widths = [width for _, width in search.shapes]
    for number, width in enumerate(widths):
        longest = max(map(len, search.prompts[4 * number : 4 * number + 4]))
        # A multiple of 16, but never wider than the longest of all, which is sure to have room.
        assert width == min(-(-longest // 16) * 16, max(map(len, prompts)))
    assert widths == sorted(widths) and widths[-1] % 16 and widths[0] % 16 == 0
    assert len(set(search.prompts)) == 13 and search.prompts[-4:] == [search.prompts[-1]] * 4


def test_speed_is_of_chosen_tokens_and_all_batches(tmp_path):
    prompts = make_prompts()
    path = tmp_path / "predictions.jsonl"
    found, search = decode(prompts, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {**SETTINGS, "prompts": 13, "batch_size": 4}
    assert [line["compiled"] for line in lines[1:]] == [
        shape not in search.shapes[:i] for i, shape in enumerate(search.shapes)
    ]
    seconds = sum(line["seconds"] for line in lines[1:])
    compiling = sum(line["seconds"] for line in lines[1:] if line["compiled"])
    tokens = sum(map(len, prompts))
    assert found.speed() == {
        "prompts": 13, "tokens": tokens, "seconds": seconds, "compile_seconds": compiling,
        "tokens_per_second": tokens / seconds,
    }  # fmt: skip


@pytest.mark.parametrize("batches", [0, 1, 2, 3])
@pytest.mark.parametrize("half", ["", "cut", "garbage"])
def test_a_cut_file_goes_on_and_nothing_is_decoded_twice(tmp_path, batches, half):
    prompts = make_prompts()
    whole, all_of_them = decode(prompts, tmp_path / "whole.jsonl")
    path = tmp_path / "cut.jsonl"
    with pytest.raises(Killed):
        decode(prompts, path, Reverse(dies_after=batches))
    assert len(path.read_text().splitlines()) == 1 + batches
    if half == "cut":  # the line that was being written
        next_line = (tmp_path / "whole.jsonl").read_text().splitlines()[1 + batches]
        with path.open("a") as file:
            file.write(next_line[: len(next_line) // 2])
    if half == "garbage":
        with path.open("ab") as file:
            file.write(b'{"indices": [0, 1')
    found, rest = decode(prompts, path)
    assert (found.tokens, found.scores) == (whole.tokens, whole.scores)
    assert rest.shapes == all_of_them.shapes[batches:]
    assert rest.prompts == all_of_them.prompts[4 * batches :]
    # Now it is whole, and decodes nothing.
    content = path.read_text()
    assert len(content.splitlines()) == 5 and all(map(json.loads, content.splitlines()))
    again, nothing = decode(prompts, path, Reverse(dies_after=0))
    assert again == found and nothing.shapes == []
    assert path.read_text() == content


def test_a_line_without_its_end_of_line_is_whole(tmp_path):
    prompts, path = make_prompts(), tmp_path / "predictions.jsonl"
    whole, _ = decode(prompts, path)
    path.write_text(path.read_text().removesuffix("\n"))
    found, search = decode(prompts, path)
    assert found == whole and search.shapes == [] and path.read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"beams": 3}, "beams"),
        ({"length_penalty": 0.8, "dataset": "dart"}, "dataset, length_penalty"),
        ({"batch_size": 5}, "batch_size"),
        ({"adapter": "new"}, "adapter"),
    ],
)
def test_a_file_of_other_settings_is_refused_and_kept(tmp_path, change, keys):
    path = tmp_path / "predictions.jsonl"
    decode(make_prompts(), path)
    content = path.read_text()
    with pytest.raises(ValueError, match=rf"other settings \({keys}\)\. Use another --workdir"):
        decode(make_prompts(), path, **change)
    assert path.read_text() == content
    with pytest.raises(ValueError, match=r"other settings \(prompts\)"):
        decode(make_prompts(12), path)


def test_an_empty_prompt_is_named_before_anything_is_written(tmp_path):
    prompts = make_prompts(3)
    prompts[2] = np.zeros(0, np.int32)
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        decode(prompts, tmp_path / "predictions.jsonl")
    assert not list(tmp_path.iterdir())


def test_no_prompts(tmp_path):
    found, search = decode([], tmp_path / "predictions.jsonl")
    assert found.tokens == [] and search.shapes == [] and found.speed()["tokens_per_second"] == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace("[", "{", 1),
        lambda line: '{"indices": [0]}',
        lambda line: line.replace('"indices": [', '"indices": [99, '),
        lambda line: line.replace('"scores": [', '"scores": ["", '),
        lambda line: "null",
    ],
)
def test_a_damaged_batch_is_told_kept_and_decoded_again(tmp_path, caplog, damage):
    prompts, path = make_prompts(), tmp_path / "predictions.jsonl"
    whole, first = decode(prompts, path)
    lines = path.read_text().splitlines()
    lines[2] = damage(lines[2])
    path.write_text("\n".join(lines) + "\n")
    damaged = path.read_text()
    found, again = decode(prompts, path)
    assert (found.tokens, found.scores) == (whole.tokens, whole.scores)
    assert len(again.shapes) == 1 and len(first.shapes) == len(lines) - 1
    assert "predictions.jsonl: 1 damaged lines" in caplog.text
    assert (tmp_path / "predictions.jsonl.damaged").read_text() == damaged


def test_without_the_settings_all_is_decoded_again(tmp_path, caplog):
    prompts, path = make_prompts(), tmp_path / "predictions.jsonl"
    whole, first = decode(prompts, path)
    for damaged in ('{"torn', "{\n" + path.read_text().split("\n", 1)[1]):
        path.write_text(damaged)
        found, again = decode(prompts, path)
        assert found.tokens == whole.tokens and len(again.shapes) == len(first.shapes)
        assert "all is decoded again" in caplog.text
        caplog.clear()
