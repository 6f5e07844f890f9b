"""Chat templates: those of transformers render the same, and those that are wrong end in an error."""

import pytest
import tune_files

from lora_jax.data import chat_templates
from lora_jax.data.chat_format import ChatFormat
from lora_jax.data.chat_templates import ChatTemplate, of_tokenizer
from lora_jax.data.conversations import Example, Message
from lora_jax.errors import FileError, InputError, MissingFileError

ASKED = (Message("user", "a"),)


def test_texts_are_those_of_transformers():
    tokenizer = tune_files.tokenizer()
    chats = [[Message(**m) for m in row["messages"]] for row in tune_files.chats(300)]
    jobs = [(chat[: 1 + len(chat) // 2], number % 2 == 0) for number, chat in enumerate(chats)]
    with of_tokenizer(tokenizer) as template:
        texts = template.render(jobs)
    for (messages, prompt), text in zip(jobs, texts, strict=True):
        values = [message._asdict() for message in messages]
        assert text == tokenizer.apply_chat_template(
            values, tokenize=False, add_generation_prompt=prompt
        )


def test_special_tokens_are_known_and_the_day_is_always_the_same():
    tokenizer = tune_files.tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ date_string }}{{ messages[0].content }}"
    with of_tokenizer(tokenizer) as template:
        assert template.render([(ASKED, True)]) == ["<|endoftext|>26 Jul 2024a"]


WRONG = {
    "endless": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "no end"),
    "large": ("{{ 'a' * 10**11 }}", "memory"),
    "many": ("{% for i in range(9999) %}{{ 'a' * 10**5 }}{% endfor %}", "memory"),
    "undefined": ("{{ a.b.c }}", "UndefinedError: 'a' is undefined .for a conversation of user"),
    "syntax": ("{% if %}", "TemplateSyntaxError"),
    "refuses": ("{{ raise_exception('no ' + messages[0].role) }}", "TemplateError: no user"),
    "escapes": ("{{ messages.__class__.__mro__ }}", "SecurityError"),
    "surrogate": ("{{ '\\ud800' }}", "half of a surrogate pair"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_templates_end_in_an_error(kind):
    text, says = WRONG[kind]
    with ChatTemplate(text, "the model", {}) as template:
        with pytest.raises(FileError, match=f"the model, the chat template: .*{says}"):
            template.render([(ASKED, True)], seconds=3 if kind == "endless" else 60)
        with pytest.raises(FileError):  # also when it is asked again
            template.render([(ASKED, True)], seconds=3)


def test_too_long_and_missing_templates(tmp_path):
    with pytest.raises(FileError, match="1,048,577 characters, expected at most 1,048,576"):
        ChatTemplate("a" * (chat_templates.MOST + 1), "x", {})
    with pytest.raises(InputError, match=r"no chat template.*config.data.format='text'"):
        of_tokenizer(tune_files.tokenizer(chat=False))
    with pytest.raises(MissingFileError, match=r"none.jinja is missing"):
        of_tokenizer(tune_files.tokenizer(), str(tmp_path / "none.jinja"))
    path = tmp_path / "own.jinja"
    path.write_text("{{ messages[0].content }}!")
    with of_tokenizer(tune_files.tokenizer(), str(path)) as template:
        assert template.render([(ASKED, False)]) == ["a!"]


UNSTABLE = {
    # Says how many messages there are, in front.
    "words": "{{ messages | length }}" + tune_files.CHATML,
    # Drops the turns of the assistant before the last one.
    "drops": "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}"
    "{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
    "endless turn": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}


@pytest.mark.parametrize("kind", UNSTABLE)
def test_templates_by_which_training_and_generation_would_differ_are_refused(kind):
    says = (
        "no special token at the end"
        if "turn" in kind
        else "changes? when the conversation goes on"
    )
    tokenizer = tune_files.tokenizer()
    chat = [
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
        Message("assistant", "d"),
    ]
    with (
        ChatTemplate(UNSTABLE[kind], "the model", {}) as template,
        pytest.raises(FileError, match=says),
    ):
        ChatFormat(tokenizer, template).rows([Example(tuple(chat), "a file, line 1")])


def test_a_token_over_the_border_of_a_turn_is_refused():
    """The prompt ends in a line break, the turn begins with one, and two of them are one token."""
    tokenizer = tune_files.tokenizer()
    tokenizer.add_tokens(["\n\n"])
    chat = (Message("user", "a"), Message("assistant", "\nb"))
    with of_tokenizer(tokenizer) as template:
        form = ChatFormat(tokenizer, template)
        with pytest.raises(FileError, match="tokens that change when .*a file, line 1.*line break"):
            form.rows([Example(chat, "a file, line 1")])
