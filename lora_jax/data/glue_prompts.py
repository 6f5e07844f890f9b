"""GLUE's classification tasks as prompts with demonstrations, and the text that stands for each class.

Two forms. `question` asks in words, as GPT-3 was asked about inference tasks (Brown et al. 2020, appendix G);
the wording is that of EleutherAI's lm-evaluation-harness (lm_eval/tasks/glue), which has it for every task.
`text` has what `experiments.nlg` trains decoders on, see `glue_text`, so that tuned models can be asked, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from lora_jax.data import glue_text
from lora_jax.data.formats import begin_token, encode
from lora_jax.data.glue import Examples
from lora_jax.data.glue_tasks import Task
from lora_jax.errors import InputError

Form = Literal["question", "text"]
FORMS: tuple[Form, ...] = ("question", "text")
_ANSWER = "Answer:"
_BETWEEN = "\n\n"  # demonstrations


class Wording(NamedTuple):
    """How a task is asked.

    Attributes:
      question: over {first} and {second}, the texts of an example.
      answers: for every class id.
      sentence: whether the second text ends in a full stop even where the example's does not.
    """

    question: str
    answers: tuple[str, ...]
    sentence: bool = False


_TRUE_OR_FALSE = "{first}\nQuestion: {second} True or False?"
_NO_YES = ("no", "yes")
WORDINGS: Mapping[str, Wording] = {
    "mnli": Wording(
        "{first}\nQuestion: {second} True, False or Neither?", ("True", "Neither", "False"), True
    ),
    "rte": Wording(_TRUE_OR_FALSE, ("True", "False")),
    "wnli": Wording(_TRUE_OR_FALSE, ("False", "True")),
    "qnli": Wording(
        "{first}\n{second}\nQuestion: Does this response answer the question?", _NO_YES[::-1]
    ),
    "mrpc": Wording(
        "Sentence 1: {first}\nSentence 2: {second}\nQuestion: Do both sentences mean the same thing?",
        _NO_YES,
    ),
    "qqp": Wording(
        "Question 1: {first}\nQuestion 2: {second}\nQuestion: Do both questions ask the same thing?",
        _NO_YES,
    ),
    "sst2": Wording(
        "{first}\nQuestion: Is this sentence positive or negative?", ("negative", "positive")
    ),
    "cola": Wording("{first}\nQuestion: Does this sentence make sense?", _NO_YES),
}


class Prompts(NamedTuple):
    """Prompts as token ids.

    Attributes:
      prompts: of every query, the demonstrations in front.
      whole: of every query, the prompt with each class's text behind it.
      context: what stands before a class's text in every prompt, alone: for its likelihood without a query.
      contexts: the same with each class's text behind it.
    """

    prompts: list[list[int]]
    whole: list[list[list[int]]]
    context: list[int]
    contexts: list[list[int]]


def check(task: Task, form: Form) -> None:
    """Raises InputError for a task that has no classes, or no such form."""
    if task.name not in WORDINGS:
        raise InputError(
            f"{task.name} has scores, no classes that a prompt could ask for; use one of {sorted(WORDINGS)}"
        )
    if form == "text" and f"{task.name}_text" not in glue_text.OF_GLUE:
        raise InputError(
            f"the form 'text' is for tasks on pairs, which experiments.nlg trains on "
            f"({', '.join(glue_text.OF_GLUE)}): for {task.name} use 'question'"
        )


def demonstrations(examples: Examples, shots: int, names: Sequence[str], seed: int) -> Examples:
    """Draws `shots` examples of each class, without repetition, in random order.

    Args:
      examples: training examples.
      shots: of each class.
      names: of all classes, by id.
      seed: of the draw.

    Raises:
      ValueError: a class has fewer examples.
    """
    random = np.random.default_rng(seed)
    chosen = []
    for label, name in enumerate(names):
        rows = np.flatnonzero(examples.labels == label)
        if len(rows) < shots:
            raise InputError(
                f"{shots} demonstrations of class {name!r} are wanted, and the training set has "
                f"{len(rows)} examples of it"
            )
        chosen.append(random.choice(rows, shots, replace=False))
    return examples.subset(random.permutation(np.concatenate(chosen)))


def prompts(
    task: Task, form: Form, shown: Examples, queries: Examples, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    """The prompts of all queries, every one behind the same demonstrations.

    Args:
      task: of GLUE.
      form: see above.
      shown: demonstrations; perhaps none.
      queries: at least one.
      tokenizer: of the decoder.

    Raises:
      ValueError: see `check`; or the form needs an end token, which the tokenizer lacks.
    """
    check(task, form)
    made = _questions if form == "question" else _texts
    return made(task, shown, queries, tokenizer)


def _questions(
    task: Task, shown: Examples, queries: Examples, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    wording = WORDINGS[task.name]
    answered = [
        f"{_asked(wording, shown, i)} {wording.answers[label]}{_BETWEEN}"
        for i, label in enumerate(shown.labels.tolist())
    ]
    asked = ["".join(answered) + _asked(wording, queries, i) for i in range(len(queries))]
    begin = begin_token(tokenizer)
    front = [] if begin is None else [begin]

    def ids(texts: Sequence[str]) -> list[list[int]]:
        return [[*front, *own] for own in encode(list(texts), tokenizer)]

    answers = [f" {answer}" for answer in wording.answers]
    every = ids([text + answer for text in asked for answer in answers])
    whole = [every[i : i + len(answers)] for i in range(0, len(every), len(answers))]
    return Prompts(
        ids(asked), whole, ids([_ANSWER])[0], ids([_ANSWER + answer for answer in answers])
    )


def _asked(wording: Wording, examples: Examples, row: int) -> str:
    first = " ".join(examples.first[row].split())
    second = "" if examples.second is None else " ".join(examples.second[row].split())
    if wording.sentence and not second.endswith("."):
        second += "."
    return f"{wording.question.format(first=first, second=second)}\n{_ANSWER}"


def _texts(
    task: Task, shown: Examples, queries: Examples, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise InputError(
            f"{type(tokenizer).__name__} has no end token (eos_token), which the form 'text' ends prompts "
            "and classes with: use 'question'"
        )
    names = encode([f" {name}" for name in glue_text.classes(f"{task.name}_text")], tokenizer)
    classes = [[*name, end] for name in names]

    def contexts(examples: Examples) -> list[list[int]]:
        assert examples.second is not None
        pairs = zip(examples.first, examples.second, strict=True)
        texts = [glue_text.context(task, *pair) for pair in pairs]
        return [[*ids, end] for ids in encode(texts, tokenizer)]

    labels = shown.labels.tolist()
    front = [
        token
        for context, label in zip(contexts(shown), labels, strict=True)
        for token in (*context, *classes[label])
    ]
    asked = [[*front, *context] for context in contexts(queries)]
    whole = [[[*ids, *name] for name in classes] for ids in asked]
    return Prompts(asked, whole, [end], [[end, *name] for name in classes])
