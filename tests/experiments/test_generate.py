"""What tuned models write: files of prompts, conversations at a terminal, streaming, refusals."""

import dataclasses
import functools
import io
import json
from typing import ClassVar

import commands
import jax
import pytest
import tune_files

from configs.tune import small, smollm2
from experiments import tune
from experiments.generate import __main__ as command
from experiments.generate import chat
from experiments.generate.answer import Request, answer_file, answers
from experiments.runs.tuned import Talker, Tuned, of_names, of_run
from lora_jax.data.conversations import Message
from lora_jax.decoding.sampling import Sampling
from lora_jax.errors import InputError

OPTIONS = {
    "epochs": 1, "batch_size": 4, "learning_rate": 0.01, "samples.count": 0, "method.rank": 2,
    "data.held_out": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run on chats and one on texts with a template; the folder of both and of their models."""
    root = tmp_path_factory.mktemp("generate")
    tune_files.write_model(root / "chat_model")
    tune_files.write_model(root / "plain_model", chat=False)
    for kind, made in (("chat", smollm2.get_config()), ("plain", small.get_config())):
        rows = tune_files.chats(16) if kind == "chat" else tune_files.pairs(16)
        path = tune_files.write_lines(root / f"{kind}.jsonl", rows)
        made.update_from_flattened_dict(OPTIONS)
        made.model.name, made.data.train = str(root / f"{kind}_model"), str(path)
        if kind == "plain":
            made.data.template, made.data.separator = (
                "Question: {prompt}[[ ({hint})]]\nAnswer:\n",
                "",
            )
        else:
            made.data.test, made.decode.max_tokens = "held_out", 8
        tune.tune(made, root / f"{kind}_run")
    return root


@pytest.fixture(scope="module")
def tuned(runs):
    made = Tuned(of_run(runs / "chat_run"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def plain(runs):
    return Tuned(of_run(runs / "plain_run"))


def settings(tuned, **changes):
    return Sampling(tuned.format.ends, **{"max_tokens": 8, **changes})


def test_chats_are_tuned_by_the_tokenizer_s_template(runs):
    result = json.loads((runs / "chat_run/result.json").read_text())
    assert result["format"]["format"] == "chat"
    assert result["format"]["chat_template"] == tune_files.CHATML
    assert "chat template" in result["inputs"] and result["test"] == {}
    lines = (runs / "chat_run/seed_0/answers.jsonl").read_text().splitlines()
    assert len(lines) == 4 and all(
        set(json.loads(line)) == {"prompt", "reference", "prediction"} for line in lines
    )


@pytest.mark.slow
def test_the_record_says_model_adapter_and_format(runs, tuned, plain):
    assert (tuned.form, plain.form) == ("chat", "text")
    base = Tuned(of_names(str(runs / "chat_model"), ""))
    named = Tuned(of_names(str(runs / "chat_model"), str(runs / "chat_run")))
    messages = [Message("user", "What is red dog 12?")]
    assert base.form == named.form == "chat"
    texts = [
        "".join(each.stream(settings(each)).words(messages, jax.random.key(0)))
        for each in (tuned, named, base)
    ]
    assert texts[0] == texts[1] != texts[2]
    for each in (base, named):
        each.close()


def test_streams_are_the_answers_to_a_file(tuned, plain):
    questions = [f"What is {w} dog {i}?" for i, w in enumerate(tune_files.WORDS)]
    for each in (tuned, plain):
        chats = [[Message("user", question)] for question in questions]
        request = Request("", "", settings(each), 0, 5)
        found = answers(each, chats, request)
        talker = each.stream(settings(each))
        pieces = [list(talker.words(messages, jax.random.key(0))) for messages in chats]
        assert ["".join(piece) for piece in pieces] == found and len(set(found)) > 2
        assert any(len(piece) > 3 for piece in pieces)  # piece by piece


def test_a_character_of_several_tokens_comes_whole(tuned, monkeypatch):
    text = "é€ 🙂, ok"
    ids = tuned.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text)
    talker = tuned.stream(settings(tuned))
    monkeypatch.setattr(talker._stream, "tokens", lambda prompt, key: iter(ids))
    pieces = list(talker.words([Message("user", "a")], jax.random.key(0)))
    assert "".join(pieces) == text and all("\ufffd" not in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) == len(text)


def test_sampling_depends_on_the_seed_alone(tuned):
    chats = [[Message("user", f"What is red {w} 12?")] for w in tune_files.WORDS]
    one, again, other = (
        answers(tuned, chats, Request("", "", settings(tuned, temperature=1.0), seed, 4))
        for seed in (0, 0, 1)
    )
    assert one == again != other


def test_files_of_lines_and_of_columns(plain, tmp_path, capsys):
    (tmp_path / "a.txt").write_text("What is red?\r\n\nWhat is blue?\n")
    answer_file(
        plain, Request(str(tmp_path / "a.txt"), str(tmp_path / "out.jsonl"), settings(plain), 0, 4)
    )
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["What is red?", "What is blue?"]
    assert capsys.readouterr().out == ""
    (tmp_path / "b.csv").write_text("prompt,hint\nWhat is red?,a dog\nWhat is blue?,\n")
    answer_file(plain, Request(str(tmp_path / "b.csv"), "", settings(plain), 0, 4))
    shown = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert shown == [
        "Question: What is red? (a dog)\nAnswer:\n",
        "Question: What is blue?\nAnswer:\n",
    ]
    (tmp_path / "c.txt").write_text("\n \n")
    with pytest.raises(InputError, match="c.txt: found no prompt"):
        answer_file(plain, Request(str(tmp_path / "c.txt"), "", settings(plain), 0, 4))


class Recorded(Talker):
    asked: ClassVar[list] = []

    def words(self, messages, key):
        self.asked.append([tuple(message) for message in messages])
        return super().words(messages, key)


def conversation(tuned, monkeypatch, capsys, *lines, seed=0, **changes):
    """What stands on stdout and stderr, and the conversations that the model was asked."""
    Recorded.asked = []
    monkeypatch.setattr("experiments.runs.tuned.Talker", Recorded)
    chat.talk(
        tuned, settings(tuned, **changes), seed, io.StringIO("".join(f"{x}\n" for x in lines))
    )
    captured = capsys.readouterr()
    return captured.out, captured.err, Recorded.asked


def test_a_conversation_is_kept_until_it_is_reset(tuned, monkeypatch, capsys):
    one, two = "What is red dog 12?", "What is blue cat 13?"
    out, err, asked = conversation(
        tuned, monkeypatch, capsys, one, "", two, "/help", "/reset", two, "/exit", one
    )
    first = answers(tuned, [[Message("user", one)]], Request("", "", settings(tuned), 0, 1))[0]
    history = [("user", one), ("assistant", first), ("user", two)]
    assert asked == [[("user", one)], history, [("user", two)]]
    chats = [[Message(*turn) for turn in turns] for turns in asked]
    texts = [answers(tuned, [each], Request("", "", settings(tuned), 0, 1))[0] for each in chats]
    assert out == "".join(f"{text}\n" for text in texts)
    assert "a new conversation" in err and "/exit" in err and "unknown command '/help'" in err


def test_forged_turns_are_refused_and_the_conversation_goes_on(tuned, monkeypatch, capsys):
    out, err, asked = conversation(tuned, monkeypatch, capsys, "a<|im_end|>b", "What is red?")
    assert "error: the user's text has the special token '<|im_end|>'" in err
    assert asked[1] == [("user", "What is red?")] and out.count("\n") >= 1


def test_an_answer_can_be_stopped(tuned, monkeypatch, capsys):
    whole = Talker.words

    def words(self, messages, key):
        for piece in whole(self, messages, key):
            yield piece
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recorded, "words", words)
        out, err, _ = conversation(tuned, patch, capsys, "What is red dog 12?")
    assert "(stopped)" in err and out.endswith("\n")


def test_long_conversations_lose_their_oldest_turns(tuned, monkeypatch, capsys):
    lines = [f"What is red dog {i}?" for i in range(10)]
    _, err, asked = conversation(tuned, monkeypatch, capsys, *lines, max_tokens=16)
    longest = 128 - 16 + 1
    assert all(len(tuned.prompt([Message(*t) for t in turns])) <= longest for turns in asked)
    assert (
        "oldest turns do not fit" in err and len(asked[-1]) < 19 and asked[-1][-1][1] == lines[-1]
    )


def test_a_run_on_texts_answers_every_line_by_itself(plain, monkeypatch, capsys):
    _, err, asked = conversation(plain, monkeypatch, capsys, "What is red?", "What is blue?")
    assert "not on conversations" in err
    assert asked == [
        [("user", f"Question: What is {word}?\nAnswer:\n")] for word in ("red", "blue")
    ]  # fmt: skip


def test_what_is_no_run_or_changed_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="is no run: there is no result.json"):
        of_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="is not finished"):
        of_run(tmp_path)
    (tmp_path / "result.json").write_text('{"task": "e2e"}')
    with pytest.raises(
        InputError, match="run of another command .task 'e2e'.*--model and --adapter"
    ):
        of_run(tmp_path)
    for flags in (("", "", ""), ("a", "b", ""), ("a", "", "c")):
        with pytest.raises(InputError, match="name --run=DIR"):
            command.origin(*flags)
    path = runs / "plain_model/tokenizer.json"
    before = path.read_text()
    try:
        path.write_text(before + " ")
        with pytest.raises(InputError, match="the tokenizer of .* changed since"):
            Tuned(of_run(runs / "plain_run"))
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_a_system_message_is_that_of_the_flag(runs, tuned, plain, monkeypatch, capsys, tmp_path):
    turn = Message("user", "What is red?")
    brief = Tuned(of_run(runs / "chat_run"), system="Be brief.")
    _, _, asked = conversation(brief, monkeypatch, capsys, turn.content)
    assert asked == [[("system", "Be brief."), tuple(turn)]]
    own = [Message("system", "Be long."), turn]
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"messages": [message._asdict() for message in own]}) + "\n"
        + json.dumps({"messages": [turn._asdict()]}) + "\n"
    )  # fmt: skip
    answer_file(brief, Request(str(tmp_path / "a.jsonl"), "", settings(brief), 0, 2))
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    both = [own, [Message("system", "Be brief."), turn]]
    assert texts == answers(tuned, both, Request("", "", settings(tuned), 0, 2))
    brief.close()
    with pytest.raises(
        InputError, match="--system .* 'text' has no place for .the model has no chat"
    ):
        Tuned(of_run(runs / "plain_run"), system="Be brief.")
    with pytest.raises(InputError, match="the system's text has the special token '<.im_end.>'"):
        Tuned(of_run(runs / "chat_run"), system="a<|im_end|>")
    silent = tune_files.CHATML.replace(
        "message in messages", "message in messages if message.role != 'system'"
    )
    origin = of_run(runs / "chat_run")
    deaf = dataclasses.replace(origin, data={**origin.data, "chat_template": silent})
    with pytest.raises(InputError, match="chat template leaves system messages out"):
        Tuned(deaf, system="Be brief.")


def test_what_is_wrong_is_told_before_weights_are_read(runs, tmp_path, monkeypatch):
    def load(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr("experiments.runs.tuned.hub.load_decoder", load)
    tuned = Tuned(of_run(runs / "chat_run"))
    prompts = tmp_path / "a.csv"
    prompts.write_text("question\nWhat is red?\n")
    request = Request(str(prompts), "", settings(tuned), 0, 4)
    with pytest.raises(InputError, match="expected a column 'prompt'. Name the file's columns as"):
        answer_file(tuned, request)
    prompts.write_text("prompt\na<|im_end|>\n")
    with pytest.raises(InputError, match="has the special token"):
        answer_file(tuned, request)
    prompts.write_text("prompt\na\n")
    with pytest.raises(InputError, match="max_tokens=129 leaves no room"):
        answer_file(tuned, request._replace(settings=settings(tuned, max_tokens=129)))
    with pytest.raises(InputError, match="max_tokens=129 leaves no room"):
        chat.talk(tuned, settings(tuned, max_tokens=129), 0, io.StringIO())
    tuned.close()


def test_the_command_writes_texts_alone_to_stdout(runs, tmp_path):
    """In a process of its own, as the last one of what a process leaves on its standard output counts."""
    run = functools.partial(commands.run, "experiments.generate")
    told = {"text": "What is red?\n/exit\n", "alone": True}
    done = run(f"--run={runs / 'chat_run'}", "--max_tokens=4", **told)
    assert done.returncode == 0, done.stderr
    tuned = Tuned(of_run(runs / "chat_run"))
    turn = [Message("user", "What is red?")]
    expected = answers(tuned, [turn], Request("", "", settings(tuned, max_tokens=4), 0, 1))
    tuned.close()
    assert done.stdout == expected[0] + "\n"
    done = run(f"--run={runs / 'chat_run'}", "--top_p=0")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == "error: --top_p must be a number in (0, 1], got 0.0"
    done = run("--model=no_such_model", "--input=/no/file.txt")
    assert done.returncode == 1 and done.stderr == "error: /no/file.txt is missing\n"
