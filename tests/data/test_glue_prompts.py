"""GLUE's tasks as prompts: wording, demonstrations, and the texts that experiments.nlg trains on."""

import numpy as np
import pytest

from lora_jax.data import completions, glue_prompts, glue_tasks, glue_text, tokenizers
from lora_jax.data.glue import Examples
from lora_jax.data.pairs import Pairs

FIRST = ["It rains.", "He  sleeps .", "A cat", "Two dogs", "She ran", "No one"]
SECOND = ["It is wet.", "He is up", "A dog.", "Some dogs.", "She sat.", "One"]


@pytest.fixture(scope="module")
def tokenizer(tiny_nlg):
    return tokenizers.load_tokenizer(tiny_nlg / "gpt2", tokenizers.DECODER)


def examples(labels, single=False):
    n = len(labels)
    return Examples(FIRST[:n], None if single else SECOND[:n], np.array(labels, np.int32))


def made(task, form, shown, queries, tokenizer):
    return glue_prompts.prompts(glue_tasks.task(task), form, shown, queries, tokenizer)


def test_a_prompt_of_mnli(tokenizer):
    every = examples([0, 1, 2, 1])
    found = made("mnli", "question", every.subset([1]), every.subset([0, 2]), tokenizer)
    head = "He sleeps .\nQuestion: He is up. True, False or Neither?\nAnswer: Neither\n\n"
    prompts = [
        f"{head}It rains.\nQuestion: It is wet. True, False or Neither?\nAnswer:",
        f"{head}A cat\nQuestion: A dog. True, False or Neither?\nAnswer:",
    ]
    assert [tokenizer.decode(ids) for ids in found.prompts] == prompts
    answers = [" True", " Neither", " False"]  # entailment, neutral, contradiction
    for prompt, whole in zip(prompts, found.whole, strict=True):
        assert [tokenizer.decode(ids) for ids in whole] == [prompt + answer for answer in answers]
    assert tokenizer.decode(found.context) == "Answer:"
    assert [tokenizer.decode(ids) for ids in found.contexts] == [f"Answer:{a}" for a in answers]


@pytest.mark.parametrize("name", glue_prompts.WORDINGS)
def test_every_task_with_classes_can_be_asked(tokenizer, name):
    task = glue_tasks.task(name)
    wording = glue_prompts.WORDINGS[name]
    single = len(task.columns) == 1
    found = made(name, "question", examples([], single), examples([0], single), tokenizer)
    (prompt,) = (tokenizer.decode(ids) for ids in found.prompts)
    assert "It rains." in prompt and ("It is wet." in prompt) == (not single)
    assert prompt.endswith("?\nAnswer:") and len(found.whole[0]) == task.num_outputs
    assert len(set(wording.answers)) == task.num_outputs
    # Which class id is which word: entailment and the like are what is affirmed.
    yes = {"entailment", "equivalent", "duplicate", "positive", "acceptable"}
    for label, word in zip(task.labels, wording.answers, strict=True):
        if label != "neutral":
            assert (label in yes) == (word in ("True", "yes", "positive"))


def test_every_task_but_the_regression_is_there():
    classes = {name for name, task in glue_tasks.TASKS.items() if not task.regression}
    assert set(glue_prompts.WORDINGS) == classes
    with pytest.raises(ValueError, match="stsb has scores, no classes that a prompt could ask"):
        glue_prompts.check(glue_tasks.task("stsb"), "question")
    with pytest.raises(
        ValueError, match="form 'text' is for tasks on pairs.*for sst2 use 'question'"
    ):
        glue_prompts.check(glue_tasks.task("sst2"), "text")


def test_texts_are_those_that_decoders_are_trained_on(tokenizer):
    """Each prompt with its class behind it is a row of `tokenise_pairs`; demonstrations are rows in front."""
    every, task = examples([2, 0, 1]), glue_tasks.task("mnli")
    contexts = [
        glue_text.context(task, *pair) for pair in zip(every.first, every.second, strict=True)
    ]
    classes = glue_text.classes("mnli_text")
    found = made("mnli", "text", every.subset([]), every, tokenizer)
    for number, name in enumerate(classes):
        rows = completions.tokenise_pairs(Pairs(contexts, [name] * 3, [""] * 3), tokenizer)
        assert [whole[number] for whole in found.whole] == [ids.tolist() for ids in rows.ids]
        assert [len(ids) for ids in found.prompts] == rows.starts.tolist()
    shown = made("mnli", "text", every.subset([0, 1]), every.subset([2]), tokenizer)
    front = [*found.whole[0][2], *found.whole[1][0]]
    assert shown.prompts[0] == [*front, *found.prompts[2]]
    assert shown.context == [tokenizer.eos_token_id]


def test_demonstrations_are_drawn_alike_from_every_class():
    labels = np.array([0, 1, 2, 1, 0, 2] * 20, np.int32)
    every, names = Examples([str(n) for n in range(120)], None, labels), ("no", "maybe", "yes")
    drawn = [glue_prompts.demonstrations(every, 2, names, seed) for seed in (0, 0, 1, 2)]
    for shown in drawn:
        assert np.bincount(shown.labels).tolist() == [2, 2, 2] and len(set(shown.first)) == 6
        assert all(
            every.labels[int(text)] == own
            for text, own in zip(shown.first, shown.labels, strict=True)
        )
    assert drawn[0].first == drawn[1].first != drawn[2].first != drawn[3].first
    orders = {tuple(d.labels) for d in drawn}
    assert len(orders) > 1  # no class is always the last one
    assert len(glue_prompts.demonstrations(every, 0, names, 0)) == 0
    with pytest.raises(
        ValueError, match="41 demonstrations of class 'no' are wanted, and the training set has 40"
    ):
        glue_prompts.demonstrations(every, 41, names, 0)
