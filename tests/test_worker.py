"""The worker: requests to ids, tokens to pieces, many requests at once, whatever goes wrong.

Run: python -m pytest tests/test_worker.py
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.engine import Engine, Event, Generation, RowState, Sampling
from nanochat.sampling import TokenLogprobs, token_logprobs
from nanochat.worker import Answer, Refused, Request, Worker, prompts_of, shown
from tests.helpers import byte_tokenizer, small_model, small_tokenizer
from tests.parrot import Parrot, repeat
from tests.test_stop_strings import before_stops


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def engine(tokenizer):
    return Engine(small_model(tokenizer, sequence_len=128), tokenizer)


def request(id: int = 1, **more) -> Request:
    usual = {"n": 1, "max_tokens": 12, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 5}
    return Request(id=id, **{**usual, **more})


class Told:
    """A worker driven by hand, and all that it said."""

    def __init__(self, engine: Engine, max_rows: int = 16):
        self.lines: list[dict] = []
        self.worker = Worker(engine, self.lines.append, max_rows)

    def ask(self, *requests: Request) -> Told:
        for one in requests:
            self.worker.inbox.put(dict(vars(one)))
        return self

    def run(self) -> Told:
        """Until everything is answered."""
        self.worker.inbox.put(None)
        while not self.worker.inbox.empty() or self.worker.jobs or self.worker.generation:
            if not self.worker.inbox.empty() and (line := self.worker.inbox.get()) is not None:
                self.worker._receive(line)
            else:
                self.worker._step()
        return self

    def pieces(self, id: int = 1, choice: int = 0) -> list[list]:
        return [p for line in self.lines for p in line.get("pieces", []) if p[:2] == [id, choice]]

    def text(self, id: int = 1, choice: int = 0) -> str:
        return "".join(p[3] for p in self.pieces(id, choice) if p[2] == "text")

    def entries(self, id: int = 1, choice: int = 0) -> list[dict]:
        return [e for p in self.pieces(id, choice) for e in p[4] or []]

    def end(self, id: int = 1, choice: int = 0) -> dict:
        ends = [p[5] for p in self.pieces(id, choice) if p[5]]
        assert len(ends) == 1 and self.pieces(id, choice)[-1][5]  # once, and nothing after it
        return ends[0]


# --------------------------------------------------------------------------- logprobs


def test_token_logprobs_against_log_softmax():
    logits = torch.randn(5, 11) * 3
    tokens = [0, 10, 3, 3, 7]
    wanted = logits.log_softmax(-1)
    for row, (token, logprob, top) in enumerate(token_logprobs(logits, tokens, 4)):
        assert token == tokens[row] and logprob == pytest.approx(wanted[row, token].item(), abs=1e-6)
        best = wanted[row].argsort(descending=True)[:4].tolist()
        assert [id for id, _ in top] == best
        assert [value for _, value in top] == pytest.approx(wanted[row, best].tolist(), abs=1e-6)


@pytest.mark.parametrize("block", [1, 7, 256])
def test_score_is_one_full_forward(engine, block):
    ids = [engine.specials.bos, *engine.tokenizer.encode("The quick brown fox jumps over the lazy dog, and Mira.")]
    found = [likely for block in engine.score(ids, 2, block) for likely in block]
    with torch.no_grad():
        wanted = engine.model(torch.tensor([ids]))[0].log_softmax(-1)
    assert [likely.token for likely in found] == ids[1:]
    assert [likely.logprob for likely in found] == pytest.approx(
        [wanted[i, token].item() for i, token in enumerate(ids[1:])], abs=1e-4)
    assert [likely.top[0][0] for likely in found] == wanted[:-1].argmax(-1).tolist()


def test_what_is_told_of_a_token_is_how_likely_it_was(engine):
    (row,) = rows = engine.make_rows([[engine.specials.bos, 65, 66]], 1, 10, Sampling(1.5, 20, 0.9), 3)
    row.logprobs = 3
    generation = engine.start([])
    generation.add(rows)
    events = list(itertools.chain.from_iterable(iter(generation.step, [])))
    with torch.no_grad():
        wanted = engine.model(torch.tensor([row.prompt + row.ids]))[0].log_softmax(-1)
    for i, event in enumerate(events):  # of the model itself: neither temperature nor top_k nor top_p are in it
        at = len(row.prompt) - 1 + i
        assert event.logprobs.logprob == pytest.approx(wanted[at, event.token].item(), abs=1e-3)
        assert [id for id, _ in event.logprobs.top] == wanted[at].argsort(descending=True)[:3].tolist()


def test_tokens_that_are_no_text_are_shown_by_their_bytes():
    tokenizer = byte_tokenizer()
    assert shown(65, tokenizer) == ("A", [65]) and shown(0xF0, tokenizer) == ("bytes:\\xf0", [0xF0])


# --------------------------------------------------------------------------- requests to ids


def test_prompts_begin_with_bos_once(engine):
    bos = engine.specials.bos
    ids, _ = prompts_of(request(prompts=["<|bos|>hi", [bos, 65], [65]]), engine)
    assert [prompt.count(bos) for prompt in ids] == [1, 1, 1] and all(prompt[0] == bos for prompt in ids)
    assert engine.tokenizer.decode(ids[0][1:]) == "<|bos|>hi"  # typed, so it is text


@pytest.mark.parametrize("asked, code", [
    ({"prompts": ["x" * 1000]}, "context_length_exceeded"),
    ({"prompts": [[65] * 127]}, "context_length_exceeded"),  # with <|bos|> it fills the context
    ({"prompts": [[10**6]]}, "invalid_token"),
    ({"messages": [{"role": "user", "content": "x" * 1000}]}, "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "x" * 1000}], "truncation": "auto"}, "context_length_exceeded"),
])
def test_what_cannot_be_asked(engine, asked, code):
    with pytest.raises(Refused) as refusal:
        prompts_of(request(**asked), engine)
    assert refusal.value.code == code and refusal.value.param == ("messages" if "messages" in asked else "prompt")


def test_oldest_turns_are_left_out_when_asked_to(engine):
    turns = [{"role": role, "content": f"word {i}"} for i in range(30) for role in ("user", "assistant")][:-1]
    messages = [{"role": "system", "content": "Be brief."}, *turns]
    (ids,), dropped = prompts_of(request(messages=messages, truncation="auto", max_tokens=10), engine)
    assert dropped > 0 and len(ids) <= 118 and "Be brief." in engine.tokenizer.decode(ids)
    (ids,), _ = prompts_of(request(messages=messages, truncation="auto", max_tokens=1000), engine)
    assert 40 < len(ids) <= 64  # who asks for more than there is gets half of it
    with pytest.raises(Refused):
        prompts_of(request(messages=messages), engine)


# --------------------------------------------------------------------------- tokens to pieces


@settings(max_examples=300)
@given(data=st.data(), text=st.text("ab🦊é", max_size=12),
       stops=st.lists(st.text("ab🦊", min_size=1, max_size=3), max_size=2))
def test_pieces_against_the_whole_answer(data, text, stops):
    """Trap `utf8-stream`: a token is a byte here, so every character of more than one is split."""
    tokenizer = byte_tokenizer()
    raw = list(text.encode())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]  # ends within a character
    row = RowState([0], Sampling(), 0, 0, limit=len(raw), limit_reason="length")
    answer, out, entries = Answer(tokenizer, stops, 3, all_tokens=False), "", []
    for token in raw:
        event = Event(row, *row.push(token, tokenizer, Specials), TokenLogprobs(token, -1.0, []))
        for kind, piece, more in answer.take(event):
            assert kind == "text"
            out += piece
            entries += more
        if answer.stops.hit:
            break
    whole = bytes(raw).decode("utf-8", errors="replace")
    found = before_stops(whole, stops)
    assert out == (whole if found is None else found)
    listed = bytes(byte for entry in entries for byte in entry["bytes"])
    assert listed == (bytes(raw) if found is None else out.encode())  # all of its tokens and none that was cut off
    for entry in entries:
        assert entry["offset"] - 3 <= len(out)


class Specials:
    """None of these occurs in the texts above."""

    assistant_end = bos = python_start = python_end = output_start = output_end = -1


def test_a_stop_string_ends_a_row_and_frees_it(tokenizer):
    engine = Engine(Parrot(repeat(byte_tokenizer()), byte_tokenizer().get_vocab_size(), 512), byte_tokenizer())
    told = Told(engine).ask(request(messages=[{"role": "user", "content": "one END two"}], stop=["END", "x"],
                                    max_tokens=50, temperature=0.0, logprobs=0)).run()
    assert told.text() == "one " and told.end()["finish"] == "stop_string" and told.end()["completion_tokens"] == 7
    assert [e["token"] for e in told.entries()] == list("one ")
    assert sum(line.get("tokens", 0) for line in told.lines) == 7  # nothing is written that nobody is told


def test_the_calculator_in_pieces():
    engine = Engine(Parrot(repeat(byte_tokenizer()), byte_tokenizer().get_vocab_size(), 512), byte_tokenizer())
    told = Told(engine).ask(request(messages=[{"role": "user", "content": "calc: 12/60"}], max_tokens=50,
                                    temperature=0.0, logprobs=0, stop=["2/6", "0.2"])).run()
    kinds = [(kind, "".join(p[3] for p in group)) for kind, group in
             itertools.groupby((p for p in told.pieces() if p[3]), key=lambda p: p[2])]
    assert kinds == [("python", "12/60"), ("python_output", "0.2"), ("text", "done")]  # stop strings are for text
    assert [e["token"] for e in told.entries()] == list("done")


def test_what_waits_for_a_stop_string_is_said_before_a_tool_call():
    engine = Engine(Parrot(repeat(byte_tokenizer()), byte_tokenizer().get_vocab_size(), 512), byte_tokenizer())
    told = Told(engine).ask(request(messages=[{"role": "user", "content": "How many r are in strawberry?"}],
                                    max_tokens=200, temperature=0.0, logprobs=0, stop=["y3.#"])).run()
    said = "".join(p[3] if p[2] == "text" else "|" for p in told.pieces())
    assert " r2 r3 y3.|" in said and said.endswith("|#### 3") and "y3.#" in told.text()  # across a call it is none
    assert "".join(e["token"] for e in told.entries()) == told.text()


def test_who_goes_on_with_a_text_is_told_of_every_token(engine):
    """lm-evaluation-harness cuts off the last token of a list: it must be the one that was written, special or not."""
    end = engine.specials.assistant_end
    only = Engine(Parrot(lambda history: end, engine.model.config.vocab_size, 128), engine.tokenizer)
    told = Told(only).ask(request(prompts=["Mira"], logprobs=1, max_tokens=1, echo=True, temperature=0.0)).run()
    assert [e["token"] for e in told.entries()][-1] == "<|assistant_end|>" and told.text() == "Mira"
    assert told.entries()[-1]["offset"] == 4
    chat = Told(only).ask(request(messages=[{"role": "user", "content": "a"}], logprobs=1, temperature=0.0)).run()
    assert chat.entries() == [] and chat.end()["finish"] == "stop"


# --------------------------------------------------------------------------- the worker


def alone(engine: Engine, **more) -> tuple[str, dict]:
    told = Told(engine).ask(request(**more)).run()
    return told.text(), told.end()


def test_requests_together_answer_as_alone(engine):
    asked = [{"prompts": [text], "seed": i, "temperature": 0.5 + i / 4, "max_tokens": 6 + i, "logprobs": i % 2}
             for i, text in enumerate(("The quick", "Mira", "", "12 + 30", "What is the river"))]
    told = Told(engine, max_rows=2).ask(*(request(id=i, **a) for i, a in enumerate(asked))).run()
    for i, a in enumerate(asked):
        assert (told.text(i), told.end(i)) == alone(engine, **a)
    assert told.lines[-1] == {"pieces": [], "tokens": 0, "active": 0, "waiting": 0}
    assert told.worker.generation is None and not told.worker.owner  # nothing is kept


def test_choices_of_several_prompts(engine):
    told = Told(engine).ask(request(prompts=["The quick", "Mira"], n=2)).run()
    texts = [told.text(choice=i) for i in range(4)]
    assert len(set(texts)) == 4 and all(told.end(choice=i)["finish"] for i in range(4))
    batch, _ = engine.generate_batch(prompts_of(request(prompts=["The quick", "Mira"]), engine)[0], 2, 12, seed=5)
    assert [told.end(choice=i)["completion_tokens"] for i in range(4)] == [len(ids) for ids in batch]


@pytest.mark.parametrize("max_tokens", [0, 3])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_echo(engine, max_tokens, logprobs):
    text = "The quick brown fox, café 🦊 " * 2
    told = Told(engine).ask(request(prompts=[text], echo=True, max_tokens=max_tokens, logprobs=logprobs, n=2)).run()
    plain = Told(engine).ask(request(prompts=[text], max_tokens=max_tokens, logprobs=logprobs, n=2)).run()
    for choice in range(2):
        assert told.text(choice=choice) == text + plain.text(choice=choice)
        assert told.end(choice=choice) == plain.end(choice=choice)
        if logprobs is None:
            assert told.entries(choice=choice) == []
            continue
        entries = told.entries(choice=choice)
        ids = [engine.specials.bos, *engine.tokenizer.encode(text)]
        assert [bytes(e["bytes"]) for e in entries[: len(ids) - 1]] == [
            engine.tokenizer.decode_bytes([id]) for id in ids[1:]]
        scored = [likely.logprob for block in engine.score(ids, 2) for likely in block]
        assert [e["logprob"] for e in entries[: len(ids) - 1]] == scored
        offsets = [e["offset"] for e in entries]
        assert offsets == sorted(offsets) and offsets[0] == 0 and offsets[len(ids) - 1 :][:1] in ([], [len(text)])


def test_echo_of_ids(engine):
    """<|bos|> is listed where the person wrote it, not where it is ours; offsets are each prompt's own."""
    bos = engine.specials.bos
    asked = request(prompts=[[65, 66, 67], [bos, 65]], echo=True, logprobs=0, max_tokens=2)
    told = Told(engine).ask(asked).run()
    texts = [engine.tokenizer.decode(ids) for ids in ([65, 66, 67], [bos, 65])]
    for choice, (text, n) in enumerate(zip(texts, (3, 2))):
        entries = told.entries(choice=choice)
        assert "".join(e["token"] for e in entries[:n]) == text and told.text(choice=choice).startswith(text)
        assert entries[n]["offset"] == len(text) and len(entries) == n + 2
    assert told.entries(choice=1)[0]["logprob"] == 0.0


def test_a_cancelled_request_is_free_at_the_next_step(engine):
    told = Told(engine, max_rows=1)
    told.ask(request(id=1, prompts=["The quick"], max_tokens=100), request(id=2, prompts=["Mira"], max_tokens=5))
    for _ in range(2):
        told.worker._receive(told.worker.inbox.get())
    for _ in range(4):
        told.worker._step()
    assert told.pieces(1) and not told.pieces(2)
    told.worker._receive({"cancel": 1})
    before = len(told.pieces(1))
    told.run()
    assert len(told.pieces(1)) == before and told.end(2)["completion_tokens"] == 5 and not told.worker.owner
    told.worker._receive(vars(request(id=3, prompts=["Mira"], echo=True, logprobs=1)))
    told.worker._receive({"cancel": 3})
    assert not told.worker.starting
    told.worker._receive({"cancel": 77})  # long over: nothing happens


def test_what_is_refused_says_so_and_leaves_the_others(engine):
    told = Told(engine).ask(request(id=1, prompts=["x" * 1000]), request(id=2, prompts=["Mira"])).run()
    (refused,) = [line for line in told.lines if "error" in line]
    assert refused["id"] == 1 and refused["error"]["code"] == "context_length_exceeded"
    assert told.end(2)["finish"]


@pytest.mark.parametrize("error, code", [(RuntimeError("of secret words"), "model_failed"),
                                         (MemoryError(), "out_of_memory")])
def test_a_model_that_fails_costs_those_in_work_and_nobody_else(engine, monkeypatch, capfd, error, code):
    told = Told(engine)
    forward, calls = engine.forward, iter(range(100))

    class Failing:
        def __getattr__(self, name):
            return getattr(forward, name)

        def __call__(self, *args):
            if next(calls) == 3:
                raise error
            return forward(*args)

    def send(line: dict) -> None:
        told.lines.append(line)
        if "error" in line and line["id"] == 1:
            told.ask(request(id=3, prompts=["Mira"]))
        if any(p[0] == 3 and p[5] for p in line.get("pieces", [])):
            told.worker.inbox.put(None)

    monkeypatch.setattr(engine, "forward", Failing())
    told.worker.send = send
    told.ask(request(id=1, prompts=["secret words"]), request(id=2, prompts=["others"]))
    told.worker.run()
    errors = [line for line in told.lines if "error" in line]
    assert [line["id"] for line in errors] == [1, 2] and {line["error"]["code"] for line in errors} == {code}
    assert (told.text(3), told.end(3)) == alone(engine, prompts=["Mira"])
    said = capfd.readouterr().err
    assert type(error).__name__ in said and "secret" not in said


def until_done(told: Told, id: int) -> None:
    """Let the worker run until this request is answered."""
    def send(line: dict) -> None:
        told.lines.append(line)
        if line.get("id") == id and "error" in line or any(p[0] == id and p[5] for p in line.get("pieces", [])):
            told.worker.inbox.put(None)

    told.worker.send = send
    told.worker.run()


def test_a_model_that_always_fails_ends_the_worker(engine, monkeypatch, capfd):
    """A GPU that has met an error never computes again in this process; the server starts another. But a model that
    works in between, or has too little memory, may go on."""
    step, broken, full = Generation.step, ZeroDivisionError(), MemoryError()
    outcomes = iter([broken, broken, None, full, full, full, broken, broken, broken, None])

    def next_outcome(self: Generation) -> list[Event]:
        if self.waiting and (error := next(outcomes)) is not None:
            raise error
        return step(self)

    monkeypatch.setattr(Generation, "step", next_outcome)
    told = Told(engine)

    def send(line: dict) -> None:
        told.lines.append(line)
        for id in [line["id"]] if "error" in line else [p[0] for p in line.get("pieces", []) if p[5]]:
            told.ask(request(id=id + 1, prompts=["Mira"], max_tokens=1))

    told.worker.send = send
    with pytest.raises(SystemExit):
        told.ask(request(id=1, prompts=["Mira"], max_tokens=1)).worker.run()
    assert [line["id"] for line in told.lines if "error" in line] == [1, 2, 4, 5, 6, 7, 8, 9]


def test_a_request_that_cannot_even_be_read_costs_nobody_else(engine, monkeypatch, capfd):
    encode = engine.tokenizer.encode

    def failing(text, *args):
        if text == "secret words":
            raise MemoryError(text)
        return encode(text, *args)

    monkeypatch.setattr(engine.tokenizer, "encode", failing)
    told = Told(engine).ask(request(id=1, prompts=["secret words"]), request(id=2, prompts=["Mira"]))
    until_done(told, 2)
    assert [(line["id"], line["error"]["code"]) for line in told.lines if "error" in line] == [(1, "out_of_memory")]
    assert told.end(2)["finish"] and "secret" not in capfd.readouterr().err


def test_who_left_before_it_began_costs_nothing(engine, monkeypatch):
    encoded, encode = [], engine.tokenizer.encode
    monkeypatch.setattr(engine.tokenizer, "encode", lambda text: encoded.append(text) or encode(text))
    told = Told(engine).ask(request(id=1, prompts=["gone"]), request(id=2, prompts=["here"]))
    told.worker.inbox.put({"cancel": 1})
    until_done(told, 2)
    assert encoded == ["here"] and told.end(2)["finish"] and not told.pieces(1)


def test_prompts_that_are_shown_hold_nobody_up(engine, monkeypatch):
    """One block a step: others get their tokens between any two, and one prompt at a time holds a cache."""
    told = Told(engine)
    shown = {"prompts": ["The quick brown fox"], "echo": True, "logprobs": 1, "max_tokens": 1}
    told.ask(*(request(id=id, **shown) for id in (1, 2, 3)), request(id=4, prompts=["Mira"], max_tokens=5)).run()
    last_of_4 = next(i for i, line in enumerate(told.lines) if any(p[0] == 4 and p[5] for p in line.get("pieces", [])))
    begun = [next(i for i, line in enumerate(told.lines) if any(p[0] == id for p in line.get("pieces", [])))
             for id in (1, 2, 3)]
    assert begun[0] < begun[1] < begun[2] and last_of_4 < begun[2]
    for line in told.lines:
        assert len({p[0] for p in line.get("pieces", []) if p[4]}) <= 2  # a block of one, a token of another
    assert all(told.text(id).startswith("The quick brown fox") and told.end(id) for id in (1, 2, 3))


def test_the_input_ends_while_answers_are_written(engine):
    told = Told(engine).ask(request(prompts=["The quick"], max_tokens=100))
    told.worker.inbox.put(None)
    told.worker.run()  # returns: nobody would read the rest
    assert not [p for p in told.pieces() if p[5]]
