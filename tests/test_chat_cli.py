"""The chat in the terminal: the real program, on a real checkpoint, at a real (pseudo) terminal (chat_terminal.py).

The model is a true GPT whose weights are set by hand to a chain "after this token comes that one", so that what it
says is known, however it is sampled.
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nanochat.chat_session import RULES, ChatSession, ChatSettings, check_sampling
from nanochat.checkpoint_manager import load_model, model_config_dict, save_checkpoint
from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.terminal import ENTRIES, Message, Printer, append_entry, complete, load_entries
from nanochat.tokenizer import HuggingFaceTokenizer
from scripts.chat_cli import Config, say
from tasks.customjson import CustomJSON
from tests.chat_terminal import ROOT, Terminal, environment, piped

SAID = "I⟨6*7 = 42⟩ok🦊"
ANSWER = [{"type": "text", "text": "I"}, {"type": "python", "text": "6*7"}, {"type": "python_output", "text": "42"},
          {"type": "text", "text": "ok🦊"}]
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


@pytest.fixture(scope="module")
def tokenizer():
    return HuggingFaceTokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 3] * 3, 280)


def save_chain(base: Path, tokenizer, said: list[int], sequence_len: int = 128, tag: str = "d1") -> None:
    """A checkpoint that answers everything with the tokens `said`, each of which must have one successor only."""
    V = tokenizer.get_vocab_size()
    model = GPT(GPTConfig(sequence_len=sequence_len, vocab_size=V, n_layer=1, n_head=2, n_kv_head=1, n_embd=V + V % 4))
    model.init_weights(0)  # the block writes nothing yet: what goes in comes out
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.eye(*model.transformer.wte.weight.shape))
        for before, after in zip([tokenizer.encode_special("<|assistant_start|>"), *said], said):
            model.lm_head.weight[after, before] = 10.0
    save_checkpoint(base / "chatsft_checkpoints" / tag, 5, model.state_dict(), None,
                    {"model_config": model_config_dict(model), "config": {}}, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """Says, with a calculator call in between: I ⟨6*7 = 42⟩ ok🦊 (the fox is four tokens, one a byte)."""
    folder = tmp_path_factory.mktemp("base")
    single = {tokenizer.decode_bytes([i]): i for i in range(256)}
    special = tokenizer.encode_special
    said = [single[b"I"], special("<|python_start|>"), *(single[c.encode()] for c in "6*7"), special("<|python_end|>"),
            special("<|output_end|>"),  # <|output_start|> 42 before it is forced, so the chain goes on behind it
            *(single[bytes([b])] for b in "ok🦊".encode()), special("<|assistant_end|>")]
    save_chain(folder, tokenizer, said)
    return folder


@pytest.fixture(scope="module")
def endless(tmp_path_factory, tokenizer):
    """Says "abababab…" for ever."""
    folder = tmp_path_factory.mktemp("endless")
    a, b = (next(i for i in range(256) if tokenizer.decode_bytes([i]) == c) for c in (b"a", b"b"))
    save_chain(folder, tokenizer, [a, b, a], sequence_len=100_000)
    return folder


@pytest.fixture
def chat(base, monkeypatch):
    """A session within this process."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    model, tokenizer, _ = load_model("sft", torch.device("cpu"), "eval", dtype=torch.float32)
    return ChatSession(Engine(model, tokenizer), ChatSettings(max_tokens=40))


def reply(chat: ChatSession, question: str | None = None) -> str:
    said: list[str] = []
    chat.answer(chat.begin(question), lambda kind, text: said.append(text))
    return "".join(said)


def spied(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --------------------------------------------------------------------------- one question


def python(base: Path, *args: str, **more) -> subprocess.Popen:
    """The program as a person starts it, with nothing imported before."""
    return subprocess.Popen([sys.executable, "-m", "scripts.chat_cli", "--device_type=cpu", *args], cwd=ROOT,
                            env={**os.environ, **environment(base)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            encoding="utf-8", **more)


def test_one_question(base):
    """stdout is the answer and nothing else, whole characters and the folded tool call in it."""
    # trap: utf8-stream
    process = python(base, "-p", "Who are you?")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out == f"{SAID}\n"
    assert not (base / "chat_history").exists()


def test_a_reader_that_leaves_is_no_traceback(base):
    process = python(base, "-p", "Who are you?")
    process.stdout.close()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1 and "Traceback" not in err and "rror" not in err


@pytest.mark.parametrize("text", ["Who are you?", "  two\nlines \n\n", b"\xff odd bytes"])
def test_the_question_from_stdin(base, tmp_path, text):
    status, out, err = piped(tmp_path, base, "-p", "-", text=text)
    assert (status, out) == (0, f"{SAID}\n"), err


def test_one_question_with_a_system_text_and_ctrl_c(endless, tmp_path):
    with Terminal(endless, "-p", "hi", "--system=Be brief.", "--max_tokens=90000", spy=tmp_path / "spy") as terminal:
        terminal.expect("abab")
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        assert terminal.end() == 130
    assert spied(tmp_path / "spy")[0]["prompt"].startswith("<|bos|><|user_start|>Be brief.\n\nhi<|user_end|>")


@pytest.mark.parametrize(("args", "text"), [
    (["-p", "hi", "--source=mid"], "no mid model"),
    (["-p", "hi", "--top_q=3"], "did you mean 'top_p'"),
    (["-p", "word " * 200], "shorten"),
    (["--system", "word " * 200], "shorten"),
    (["-p", " "], "the question is empty"),
    (["-p", "-"], "the question is empty"),
    (["-p", "hi", "--temperature=-1"], "temperature must be 0 (the likeliest token) or a positive number, not '-1.0'"),
    (["-p", "hi", "--temperature=nan"], "temperature must be"),
    (["-p", "hi", "--top_p=0"], "top_p must be"),
    (["-p", "hi", "--top_k=-1"], "top_k must be"),
    (["-p", "hi", "--max_tokens=0"], "max_tokens must be"),
    (["-p", "hi", f"--seed={2**63}"], "seed must be"),
])
def test_mistakes_are_one_line(base, tmp_path, args, text):
    status, out, err = piped(tmp_path, base, *args)
    assert status == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line and not line.startswith("loading ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and text in lines[0]


def test_cut_off_answer_says_so(chat, capsys):
    """An answer that ends inside a tool call closes its bracket and tells why it ended."""
    shown = io.StringIO()
    chat.sampling.max_tokens = 3
    assert say(chat, chat.begin("hi"), Console(file=shown)) is False
    assert shown.getvalue() == "I⟨6⟩\n"
    assert "(cut off at max_tokens)" in capsys.readouterr().err
    assert chat.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [
        {"type": "text", "text": "I"}, {"type": "python", "text": "6"}]}]


def test_control_characters_are_not_obeyed():
    """A model's text cannot move the cursor or retitle the window."""
    shown = io.StringIO()
    Printer(Console(file=shown)).show("text", "a\x1b[2Jb\x07\r\x9bc\n[red]:smile:[/]")
    assert shown.getvalue() == "a\ufffd[2Jb\ufffd\ufffd\ufffdc\n[red]:smile:[/]"


# --------------------------------------------------------------------------- messages of several lines


@pytest.mark.parametrize(("pieces", "message"), [
    (["hi"], ("hi", False)),
    (["  hi  "], ("hi", False)),
    ([" "], ("", False)),
    (["/help"], ("/help", True)),
    (["a\\"], None),
    (["a\\", "b"], ("a\nb", False)),
    (["a\\", "b\\"], None),
    (["a\\", " b\\", "c"], ("a\n b\nc", False)),
    (["a\\", ""], ("a", False)),
    (["two of them\\\\"], ("two of them\\\\", False)),
    (["/system a\\", "b"], ("/system a\nb", True)),
    (['"""'], None),
    (['"""', "a"], None),
    (['"""', '"""'], ("", False)),
    ([' """ ', "  a\\", "", " b", '""" '], ("  a\\\n\n b", False)),
    (['"""', "/quit", '"""'], ("/quit", False)),
    (['"""', 'x """', '"""'], ('x """', False)),
    (['"""', "a\nb\n\n", '"""'], ("a\nb\n\n", False)),
    (['"""\na\n"""\n'], ("a", False)),
    (['"""\na\n"""\nmore'], None),  # nothing is lost: the block is still open
    (["def f():\n  return 1\n"], ("def f():\n  return 1", False)),
    (["/usr/bin\n/help"], ("/usr/bin\n/help", False)),
    (["cc \\\n -o x\n"], ("cc \\\n -o x", False)),
    (["pasted\nlines \\", "and typed"], ("pasted\nlines \nand typed", False)),
    (['say """'], ('say """', False)),
])
def test_what_makes_a_message(pieces, message):
    assert complete(pieces) == (message and Message(*message))


@pytest.mark.parametrize(("pieces", "text"), [(["a\\"], "a"), (['"""'], ""), (['"""', "a", "/b"], "a\n/b")])
def test_the_end_of_input_ends_a_message(pieces, text):
    assert complete(pieces, ended=True) == Message(text, command=False)


def test_several_lines_at_the_terminal(base, tmp_path):
    (base / "inputrc").write_text("set enable-bracketed-paste off\n", encoding="utf-8")  # as readline was before 8.1
    with Terminal(base, spy=tmp_path / "spy") as terminal:
        terminal.expect("you> ")
        assert b"\x1b[?2004h" in terminal.raw  # the terminal is asked to mark what is pasted
        terminal.ask("one\\", "...> ")
        terminal.ask("  two")
        terminal.ask('"""', "...> ")
        terminal.ask("/quit", "...> ")
        terminal.ask("", "...> ")
        terminal.ask("in a block", "...> ")
        terminal.ask('"""')
        terminal.type("\x1b[200~pasted\r  lines\r\x1b[201~")  # as a terminal sends them; Enter sends them off
        terminal.ask("")
        terminal.ask("dropped\\", "...> ")
        terminal.interrupt("/quit leaves")
        terminal.expect("you> ")
        terminal.ask('"""', "...> ")
        terminal.type("cut off\n" + CTRL_D)  # ends the block, not the chat
        terminal.expect("you> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    prompts = [seen["prompt"] for seen in spied(tmp_path / "spy")]
    asked = [prompt.rpartition("<|user_start|>")[2].partition("<|user_end|>")[0] for prompt in prompts]
    assert asked == ["one\n  two", "/quit\n\nin a block", "pasted\n  lines", "cut off"]


# --------------------------------------------------------------------------- a conversation


def test_piped_conversation(base, tmp_path):
    """Without a terminal: each line a message, the end of input the end, and only answers on stdout."""
    # trap: context-end
    question = "tell me more about it\n"
    text = f"one\n\n/help\n/nonsense\n/clear\n{question * 4}/clear\ntell me\\\nmore\n\"\"\"\n/help"
    (own_base := tmp_path / "base").mkdir()
    (own_base / "chatsft_checkpoints").symlink_to(base / "chatsft_checkpoints")
    status, out, err = piped(tmp_path, own_base, text=text)
    assert status == 0, err
    assert out == f"{SAID}\n" * 7 + "\n"
    assert "/nonsense is not a command" in err and err.count("Ctrl-C stops an answer") == 1
    assert err.count("(forgotten") == 2
    assert err.count("forgets the oldest turns") == 1  # one notice, though each later turn drops one more
    assert not (own_base / "chat_history").exists()


def test_ctrl_c_and_ctrl_d(base):
    with Terminal(base) as terminal:
        terminal.expect("you> ")
        assert SAID in terminal.ask("hi")
        terminal.type("wor" + "d " * 200 + "\n")
        terminal.expect("shorten it")  # and the conversation goes on
        terminal.expect("you> ")
        for _ in range(3):
            terminal.interrupt("/quit leaves")  # at the prompt it does not leave
            terminal.expect("you> ")
        terminal.type("half a line")
        terminal.expect("half a line")  # else Ctrl-C takes it away while readline waits for it: then it misses both
        terminal.interrupt("/quit leaves")
        terminal.expect("you> ")
        assert SAID in terminal.ask("hi")
        terminal.type(CTRL_D)
        assert terminal.end() == 0


def test_interrupt_stops_the_answer_not_the_program(endless, tmp_path):
    with Terminal(endless, "--max_tokens=90000", spy=tmp_path / "spy") as terminal:
        terminal.expect("you> ")
        for _ in range(2):
            terminal.type("hi\n")
            terminal.expect("abab")
            terminal.type(CTRL_C * 3)  # impatiently
            terminal.expect("(stopped)")
            terminal.expect("you> ")
        terminal.type("/quit\n")
        assert terminal.end() == 0
    second = spied(tmp_path / "spy")[1]["prompt"]
    assert "<|assistant_start|>abab" in second and second.endswith("<|user_start|>hi<|user_end|><|assistant_start|>")


def test_settings(base, tmp_path):
    """Each command shows its value, changes it, and takes no bad one."""
    with Terminal(base, "--max_tokens=30", spy=tmp_path / "spy") as terminal:
        terminal.expect("you> ")
        for command, name, before, value, after in [
                ("temp", "temperature", "0.6", "0.25", "0.25"), ("temperature", "temperature", "0.25", "0.5", "0.5"),
                ("top_k", "top_k", "50", "3", "3"), ("top_p", "top_p", "1.0", ".5", "0.5"),
                ("max_tokens", "max_tokens", "30", "25", "25"), ("seed", "seed", "42", "-7", "-7")]:
            assert f"{name} = {before}\n" in terminal.ask(f"/{command}")
            assert f"{name} = {after}\n" in terminal.ask(f"/{command}   {value}")
            for bad in ("x", "nan", "-inf", "1e999", "1 2", "-8.5", "9" * 5000):
                shown = terminal.ask(f"/{command} {bad}")
                assert f"{name} must be {RULES[name][2]}, not '" in shown.replace("\n", "")
            assert f"{name} = {after}\n" in terminal.ask(f"/{command}")
        shown = terminal.ask("/settings").replace("\n", ", ")
        assert "temperature = 0.5, top_k = 3, top_p = 0.5, max_tokens = 25, seed = -7, system = (none)" in shown
        assert SAID in terminal.ask("hi")
        for line, said in [("/settings all", "/settings takes no value"), ("/retry x", "/retry takes no value"),
                           ("/quit now", "/quit takes no value"), ("/tmp 1", "/tmp is not a command; did"),
                           ("/", "/ is not a command"), ("/save", "/save FILE"), ("/help", "CustomJSON")]:
            assert said in terminal.ask(line)
        terminal.type("/quit\n")
        assert terminal.end() == 0
    (seen,) = spied(tmp_path / "spy")
    assert {name: seen[name] for name in RULES} == {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "max_tokens": 25,
                                                     "seed": -7}


def test_system_retry_and_clear(base, tmp_path):
    """The system text comes and goes while the conversation stays; a retry asks the same with another seed."""
    spy = tmp_path / "spy"
    with Terminal(base, "--max_tokens=16", "--temperature=0", spy=spy) as terminal:
        terminal.expect("you> ")
        assert "there is no question yet" in terminal.ask("/retry")
        assert "no system text" in terminal.ask("/system")
        terminal.ask("one")
        assert "set; the conversation goes on" in terminal.ask("/system Be\\\nbrief.")
        assert "Be\nbrief." in terminal.ask("/system")
        assert "shorten" in terminal.ask("/system " + "long " * 40)
        assert "Be\nbrief." in terminal.ask("/system")
        terminal.ask("two")
        assert "none is to be had at temperature 0" in terminal.ask("/retry")
        terminal.ask("/temp 1")
        assert "(another answer)" in terminal.ask("/retry")
        terminal.ask("/seed 42")
        terminal.ask("/retry")
        terminal.ask("/clear")
        assert "Be\nbrief." in terminal.ask("/system")
        assert "there is no question yet" in terminal.ask("/retry")
        assert "taken away" in terminal.ask("/system -")
        terminal.ask("three")
    seen = spied(spy)
    prompts = [s["prompt"].replace("<|user_start|>", "[").replace("<|user_end|>", "]") for s in seen]
    assert prompts[0] == "<|bos|>[one]<|assistant_start|>"
    assert prompts[1].startswith("<|bos|>[Be\nbrief.\n\none]<|assistant_start|>I<|python_start|>")
    assert prompts[1].endswith("<|assistant_end|>[two]<|assistant_start|>")
    assert prompts[1] == prompts[2] == prompts[3] == prompts[4]
    assert prompts[5] == "<|bos|>[three]<|assistant_start|>"
    assert [s["seed"] for s in seen] == [42, 43, 44, 45, 42, 42]


def test_a_setting_that_leaves_no_room_changes_nothing_that_was_said(chat):
    """A retry for which the context has become too small keeps the old answer."""
    reply(chat, "word " * 14)
    before = [dict(message) for message in chat.messages]
    chat.set("max_tokens", 100)
    with pytest.raises(UserError, match="shorten"):
        chat.begin()
    with pytest.raises(UserError, match="shorten"):
        chat.begin("word " * 30)
    assert chat.messages == before and chat.start == 0


def test_settings_are_checked_before_a_model_is_loaded():
    check_sampling(Config())
    for name, value in [("temperature", -0.1), ("temperature", float("inf")), ("top_k", -1), ("top_p", 1.01),
                        ("top_p", 0), ("max_tokens", 0), ("seed", 2**63), ("seed", -(2**63) - 1)]:
        with pytest.raises(UserError, match=name):
            check_sampling(Config(**{name: value}))
    for name, value in [("temperature", 0), ("top_k", 0), ("top_p", 1), ("max_tokens", 1), ("seed", -(2**63))]:
        check_sampling(Config(**{name: value}))


def test_top_p_reaches_the_engine(chat, monkeypatch):
    given = []

    def start(prompts, top_p=None, **settings):
        given.append(top_p)
        return right(prompts, **settings)

    right = chat.engine.start
    monkeypatch.setattr(chat.engine, "start", start)
    reply(chat, "hi")
    chat.set("top_p", "0.9")
    reply(chat, "hi")
    assert given == [1.0, 0.9]


# --------------------------------------------------------------------------- a long one, and saving it


def test_a_chat_of_ten_times_the_context(base, tmp_path):
    """One notice, the system text to the end, no memory that grows, and /save has all of it."""
    # trap: context-end
    spy, turns, notice = tmp_path / "spy", 60, "forgets the oldest turns"
    questions = [f"question number {i}, and some words" for i in range(turns)]
    with Terminal(base, "--max_tokens=16", "--system=Be brief.", spy=spy, cwd=tmp_path) as terminal:
        terminal.expect("you> ")
        shown = [terminal.ask(question) for question in questions]
        assert all(SAID in text for text in shown)
        assert sum(notice in text for text in shown[:5]) == 1 and not any(notice in text for text in shown[5:])
        assert "60 turns" in terminal.ask("/save all.jsonl")
        terminal.ask("/clear")
        again = [terminal.ask(question) for question in questions[:5]]
        assert sum(notice in text for text in again) == 1  # of another conversation
        terminal.type("/quit\n")
        assert terminal.end() == 0
    seen = spied(spy)[:turns]
    assert all(s["prompt"].startswith("<|bos|><|user_start|>Be brief.\n\nquestion number ") for s in seen)
    assert all(s["prompt"].endswith(f"{q}<|user_end|><|assistant_start|>") for s, q in zip(seen, questions))
    assert max(s["tokens"] for s in seen) <= 128 - 16 and min(s["tokens"] for s in seen[5:]) > 64
    assert seen[-1]["caches"] <= 1  # no answer holds the one before
    # what grows is the text itself: some hundred bytes a turn, whatever the number of turns
    assert seen[-1]["bytes"] - seen[19]["bytes"] < 40 * 3000
    (row,) = CustomJSON(tmp_path / "all.jsonl").rows
    assert row["messages"][0] == {"role": "system", "content": "Be brief."}
    assert row["messages"][1:] == [m for q in questions for m in ({"role": "user", "content": q},
                                                                  {"role": "assistant", "content": ANSWER})]
    tokenizer = HuggingFaceTokenizer.from_directory(base / "chatsft_checkpoints" / "d1" / "tokenizer")
    ids, mask = tokenizer.render_conversation(row, max_tokens=None)
    assert len(ids) == len(mask) > 10 * 128
    # what the model was given, and what it said, is what it would be trained on
    text = tokenizer.decode(ids)
    assert seen[-1]["prompt"].partition("question number ")[2] in text
    assert text.count("<|python_start|>6*7<|python_end|><|output_start|>42<|output_end|>ok🦊<|assistant_end|>") == turns


def test_save(base, tmp_path):
    (tmp_path / "mine.jsonl").write_text("precious", encoding="utf-8")
    (tmp_path / "link").symlink_to("nowhere")
    with Terminal(base, cwd=tmp_path) as terminal:
        terminal.expect("you> ")
        assert "no answer yet" in terminal.ask("/save new.jsonl")
        terminal.ask("hi\u2028there\\\n\"quoted\"")
        for name, said in [("mine.jsonl", "exists"), ("link", "exists"), (".", "exists"), ("no/x", "does not exist"),
                           ("mine.jsonl/x", "does not exist"), ("n" * 300, "cannot write")]:
            shown = terminal.ask(f"/save {name}").replace("\n", "")
            assert said in shown and "(saved" not in shown
        assert f"(saved to {tmp_path}/a name.jsonl: 1 turns)" in terminal.ask("/save a name.jsonl").replace("\n", "")
        terminal.ask("/max_tokens 1")
        terminal.ask("again")
        terminal.ask("/save second.jsonl")
    assert (tmp_path / "mine.jsonl").read_text(encoding="utf-8") == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a name.jsonl", "link", "mine.jsonl", "second.jsonl"]
    assert stat.S_IMODE((tmp_path / "a name.jsonl").stat().st_mode) == 0o600
    assert CustomJSON(tmp_path / "a name.jsonl").rows == [{"messages": [
        {"role": "user", "content": "hi\u2028there\n\"quoted\""}, {"role": "assistant", "content": ANSWER}]}]
    assert CustomJSON(tmp_path / "second.jsonl").rows[0]["messages"][-1] == {"role": "assistant", "content": "I"}


def test_a_turn_without_an_answer_is_not_saved(chat, tmp_path):
    """One that was stopped at once: `CustomJSON` would refuse the whole file."""
    chat.answer(chat.begin("stopped"), lambda kind, text: None, stopped=lambda: True)
    assert chat.messages[-1] == {"role": "assistant", "content": ""}
    with pytest.raises(UserError, match="no answer yet"):
        chat.save(str(tmp_path / "x.jsonl"))
    reply(chat, "hi")
    assert chat.save(str(tmp_path / "x.jsonl")).endswith("1 turns, without 1 that have no answer")
    assert [m["content"] for m in CustomJSON(tmp_path / "x.jsonl").rows[0]["messages"]] == ["hi", ANSWER]
    with pytest.raises(UserError, match="cannot write"):
        chat.save("nul\0")


# --------------------------------------------------------------------------- the history


def test_history(base, tmp_path):
    """What was typed comes back after a restart, as it was, and only this person can read it."""
    path = tmp_path / "chat_history"
    (tmp_path / "chatsft_checkpoints").symlink_to(base / "chatsft_checkpoints")
    with Terminal(tmp_path) as terminal:
        terminal.expect("you> ")
        terminal.ask("first")
        terminal.ask("two\\\nlines")
        terminal.ask("two\\\nlines")  # once is enough
        terminal.ask('"""\n/quit\n"""')  # would be a command, called back
        terminal.ask("/top_k 7")
        terminal.type("/quit\n")
        assert terminal.end() == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text(encoding="utf-8").splitlines() == ['"first"', '"two\\nlines"', '"/top_k 7"', '"/quit"']
    path.chmod(0o644)
    spy = tmp_path / "spy"
    with Terminal(tmp_path, spy=spy) as terminal:
        terminal.expect("you> ")
        terminal.ask(UP * 3)
        assert "top_k = 7" in terminal.ask(UP * 3)  # /quit, /top_k 7 behind what has just been sent
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert spied(spy)[0]["prompt"] == "<|bos|><|user_start|>two\nlines<|user_end|><|assistant_start|>"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_that_cannot_be_kept(base, tmp_path):
    """Says so once, and goes on."""
    (tmp_path / "chatsft_checkpoints").symlink_to(base / "chatsft_checkpoints")
    (tmp_path / "chat_history").mkdir()
    with Terminal(tmp_path) as terminal:
        assert terminal.expect("you> ").count("no history is kept") == 1
        assert "no history" not in terminal.ask("hi")
        assert SAID in terminal.ask(UP)  # in this chat there is one
        terminal.type(CTRL_D)
        assert terminal.end() == 0


def test_a_damaged_history_is_read_as_far_as_it_can_be(base, tmp_path):
    (tmp_path / "chatsft_checkpoints").symlink_to(base / "chatsft_checkpoints")
    lines = [b'"fine"', b"\x00\xff{", b"7", b"[" * 100_000, b'"nul\\u0000"', b'"half \\ud800"', b'"torn']
    (tmp_path / "chat_history").write_bytes(b"\n".join(lines))
    assert load_entries(tmp_path / "chat_history") == ["fine", "nul\0", "half \ud800"]
    with Terminal(tmp_path, spy=tmp_path / "spy") as terminal:
        terminal.expect("you> ")
        assert SAID in terminal.ask(UP)
    assert "<|user_start|>fine<|user_end|>" in spied(tmp_path / "spy")[0]["prompt"]


def test_the_history_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "history"
    for i in range(2 * ENTRIES + 1):
        append_entry(path, f"entry {i}")
    assert load_entries(path) == [f"entry {i}" for i in range(ENTRIES + 1, 2 * ENTRIES + 1)]
    assert len(path.read_bytes().splitlines()) == ENTRIES and stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr("nanochat.terminal.HISTORY_BYTES", 1000)
    assert load_entries(path)[-1] == f"entry {2 * ENTRIES}" and path.stat().st_size < 1000
    begin = time.perf_counter()
    (tmp_path / "huge").write_bytes(b"x" * 20_000_000)
    assert load_entries(tmp_path / "huge") == [] and (tmp_path / "huge").stat().st_size == 0
    assert time.perf_counter() - begin < 30
