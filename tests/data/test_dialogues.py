"""SAMSum and DialogSum: official forms, the real files, broken files; pairs of GLUE as texts."""

import json

import glue_files
import pytest

from lora_jax.data import data_to_text, glue, glue_tasks, glue_text
from lora_jax.errors import FileError, InputError, MissingFileError

SAMSUM = [
    {"id": "1", "dialogue": "Amanda: I baked  cookies.\r\nJerry: Sure!\r\n\r\nAmanda: \ud83d\ude0a",
     "summary": "Amanda baked cookies.\r\n\r\nShe brings some."},
    {"id": "2", "dialogue": "", "summary": "Nobody spoke."},
]  # fmt: skip
DIALOGSUM = [
    {"fname": "test_0", "dialogue": "#Person1#: Hi.\n#Person2#: Hello.", "topic1": "t",
     **{f"summary{number}": f"Summary {number}." for number in (1, 2, 3)}},
]  # fmt: skip


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_samsum_as_the_paper_has_it(tmp_path):
    put(tmp_path / "samsum" / "corpus" / "val.json", json.dumps(SAMSUM))
    pairs = data_to_text.read("samsum", "valid", str(tmp_path))
    assert pairs.contexts == [
        "Amanda: I baked  cookies.\nJerry: Sure!\nAmanda: \U0001f60a\n\n",
        "\n\n",
    ]
    assert pairs.completions == ["Amanda baked cookies. She brings some.", "Nobody spoke."]
    assert pairs.notes == "val.json has 2 rows, the official valid set has 818"


def test_every_summary_of_dialogsum_is_a_row(tmp_path):
    put(tmp_path / "dialogsum.test.jsonl", json.dumps(DIALOGSUM[0]) + "\n")
    pairs = data_to_text.read("dialogsum", "test", str(tmp_path))
    assert pairs.contexts == ["#Person1#: Hi.\n#Person2#: Hello.\n\n"] * 3
    assert pairs.completions == ["Summary 1.", "Summary 2.", "Summary 3."]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"summary": " "},
            "item 2, column 'summary': found ' ', expected a summary that is not blank",
        ),
        ({"summary": None}, "item 2, column 'summary': found no value, expected a text"),
        ({"dialogue": ["Amanda: Hi"]}, "item 2, column 'dialogue': found .*expected a text"),
        ({"dialogue": "a\0"}, "item 2, column 'dialogue': found a NUL character"),
    ],
)
def test_broken_files_are_named(tmp_path, change, says):
    put(tmp_path / "train.json", json.dumps([SAMSUM[0], {**SAMSUM[0], **change}]))
    with pytest.raises(
        FileError, match=f"train.json, {says}.*Repair this place, or name another file"
    ):
        data_to_text.read("samsum", "train", str(tmp_path))


def test_a_file_without_summaries_and_one_that_is_not_there(tmp_path):
    put(tmp_path / "train.json", json.dumps([{"dialogue": "a", "text": "b"}]))
    says = "train.json: found the columns dialogue, text, expected a column 'summary'"
    with pytest.raises(FileError, match=says):
        data_to_text.read("samsum", "train", str(tmp_path))
    with pytest.raises(MissingFileError, match=r"No samsum test file.*corpus.7z"):
        data_to_text.read("samsum", "test", str(tmp_path))


def test_real_dialogsum(real_data):
    valid, test = (
        data_to_text.read("dialogsum", split, str(real_data)) for split in ("valid", "test")
    )
    assert (len(valid), len(test)) == (500, 1500) and (valid.notes, test.notes) == ("", "")
    assert len(set(test.contexts)) == 499  # one is there twice
    assert valid.contexts[0].startswith(
        "#Person1#: Hello, how are you doing today?\n#Person2#: I ' Ve"
    )
    assert valid.completions[0].startswith("#Person2# has trouble breathing. The doctor asks")
    assert all(text.endswith("\n\n") and "\n\n" not in text[:-2] for text in valid.contexts)


# pairs of GLUE


@pytest.mark.parametrize("dataset", glue_text.OF_GLUE)
def test_pairs_of_glue_are_the_examples_that_classifiers_see(tmp_path, dataset):
    task = glue_tasks.task(dataset.removesuffix("_text"))
    glue_files.write_folder(task, tmp_path)
    for split, of_glue in (("train", "train"), ("valid", task.evaluations[0])):
        pairs, examples = (
            data_to_text.read(dataset, split, str(tmp_path)),
            glue.read(task, of_glue, str(tmp_path)),
        )
        names = [task.labels[label].replace("_", " ") for label in examples.labels]
        assert pairs.completions == names
        for text, *sentences in zip(pairs.contexts, examples.first, examples.second, strict=True):
            lines = [line.partition(": ") for line in text.split("\n")]
            assert [name for name, _, _ in lines] == list(task.features)
            assert [words.split() for _, _, words in lines] == [
                sentence.split() for sentence in sentences
            ]


def test_which_tasks_of_glue_are_there_and_that_their_test_sets_have_no_labels(tmp_path):
    assert set(glue_text.OF_GLUE) == {
        f"{n}_text" for n in ("mrpc", "qqp", "mnli", "qnli", "rte", "wnli")
    }
    with pytest.raises(
        InputError, match=r"mnli_text has no test split.*config.data.decode_split='valid'"
    ):
        data_to_text.read("mnli_text", "test", str(tmp_path))


def test_real_mnli(real_data):
    pairs = data_to_text.read("mnli_text", "valid", str(real_data))
    assert len(pairs) == 9815
    assert pairs.contexts[0] == (
        "premise: The new rights are nice enough\nhypothesis: Everyone really likes the newest benefits"
    )
    assert pairs.completions[:2] == ["neutral", "contradiction"]
