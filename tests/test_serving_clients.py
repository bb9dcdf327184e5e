"""The server through other people's programs: OpenAI's client, strict about what it gets, and lm-evaluation-harness.

What they are told is compared with the model itself, asked without a server, a cache or a kernel: one forward over all
ids. Run: python -m pytest tests/test_serving_clients.py
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import openai
import pytest
import torch
from openai.types import Completion

from nanochat.tokenizer_json import export_tokenizer
from tests.chat_server import chat_server, save_small_model, wait_until

NAME = "nanochat-d2-sft"
PROMPTS = ["Who are you?", "12 + 30 =", "The quick brown fox", "a", "Größe 🙂 麟", "Mira lives in\n\n"]


def client_of(server, key: str = "x", strict: bool = True, kind=openai.OpenAI):
    return kind(base_url=server.url + "/v1", api_key=key, max_retries=0, _strict_response_validation=strict)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A small random model behind the real server, the client, and the model itself."""
    base = tmp_path_factory.mktemp("base")
    model, tokenizer = save_small_model(base)
    with chat_server("--dtype=float32", parrot=False, base=base) as server, client_of(server) as client:
        yield SimpleNamespace(server=server, client=client, model=model, tokenizer=tokenizer)


@torch.inference_mode()
def logprobs_of(model, ids: list[int]) -> torch.Tensor:
    """(T, V): how likely each token is after ids[: t + 1], by the plain model."""
    return model(torch.tensor([ids]))[0].float().log_softmax(-1)


def ids_of(tokenizer, entries) -> list[int]:
    """The tokens that a chat answer's logprobs tell of, by their bytes."""
    by_bytes = {tokenizer.decode_bytes([i]): i for i in reversed(range(tokenizer.get_vocab_size()))}
    return [by_bytes[bytes(entry.bytes)] for entry in entries]


# --------------------------------------------------------------------------- models


def test_models_are_listed_and_found(served):
    [model] = served.client.models.list().data
    assert model.id == NAME and model.object == "model" and model.owned_by == "nanochat"
    assert (model.context, model.step, model.data) == (256, 7, "pocket")  # ours, beside OpenAI's
    assert served.client.models.retrieve(NAME) == model
    with pytest.raises(openai.NotFoundError) as e:
        served.client.models.retrieve("gpt-4")
    assert (e.value.code, e.value.param, e.value.type) == ("model_not_found", "model", "invalid_request_error")


# --------------------------------------------------------------------------- chat, whole and in pieces


def chat(served, content: str = "Who are you?", **settings):
    given = {"model": NAME, "messages": [{"role": "user", "content": content}], "temperature": 1, "seed": 5,
             "max_tokens": 12, **settings}
    return served.client.chat.completions.create(**{k: v for k, v in given.items() if v is not None})


def put_together(chunks) -> SimpleNamespace:
    """The chunks of a stream as one answer: what a client would make of them."""
    chunks = list(chunks)
    assert len({(c.id, c.model, c.created, c.object) for c in chunks}) == 1
    count = 1 + max(choice.index for c in chunks for choice in c.choices)
    made = [SimpleNamespace(text="", parts=[], entries=[], finish=None, detail=None, chunks=0) for _ in range(count)]
    for choice in (choice for c in chunks for choice in c.choices):
        one = made[choice.index]
        assert one.finish is None, "something came after the end"
        assert choice.delta.role == (None if one.chunks else "assistant")  # in the first chunk and no other
        one.chunks += 1
        one.text += choice.delta.content or ""
        one.parts += getattr(choice.delta, "parts", None) or []
        one.entries += choice.logprobs.content if choice.logprobs else []
        one.finish, one.detail = choice.finish_reason, getattr(choice, "finish_detail", None)
    usage = [c.usage for c in chunks if c.usage]
    assert len(usage) <= 1 and (not usage or (chunks[-1].usage and not chunks[-1].choices))
    return SimpleNamespace(choices=made, usage=usage[0] if usage else None)


SETTINGS = [
    {}, {"temperature": 0}, {"n": 3}, {"top_p": 0.5}, {"extra_body": {"top_k": 3}}, {"stop": "e"}, {"max_tokens": 1},
    {"stop": ["ab", "\n", "the", " "], "n": 2, "max_tokens": 40}, {"max_tokens": None, "max_completion_tokens": 3},
    {"logprobs": True}, {"logprobs": True, "top_logprobs": 20, "n": 2}, {"max_tokens": 5, "max_completion_tokens": 5},
    {"logprobs": True, "top_logprobs": 3, "n": 3, "stop": ["e", "a", "i", "o"], "max_tokens": 60},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_stream_is_the_whole_answer_in_pieces(served, settings):
    for seed, content in enumerate(PROMPTS[::2]):
        whole = chat(served, content, seed=seed, **settings)
        usage = {"stream": True, "stream_options": {"include_usage": True}}
        pieces = put_together(chat(served, content, seed=seed, **settings, **usage))
        assert pieces.usage == whole.usage and len(whole.choices) == settings.get("n", 1)
        for one, other in zip(whole.choices, pieces.choices):
            assert (one.message.content, one.message.role) == (other.text, "assistant")
            assert (one.finish_reason, one.finish_detail) == (other.finish, other.detail)
            assert (one.logprobs.content if one.logprobs else []) == other.entries
            assert bool(one.logprobs) == bool(settings.get("logprobs"))
        stops = [settings["stop"]] if isinstance(settings.get("stop"), str) else settings.get("stop", [])
        assert not any(stop in choice.message.content for stop in stops for choice in whole.choices)
        limit = settings.get("max_completion_tokens") or settings.get("max_tokens", 12)
        assert whole.usage.completion_tokens <= limit * len(whole.choices)
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        prompt = served.tokenizer.render_for_completion({"messages": [{"role": "user", "content": content}]})
        assert whole.usage.prompt_tokens == len(prompt)


def test_seeds_say_which_answer(served):
    texts = [[c.message.content for c in chat(served, seed=seed, n=3, max_tokens=30).choices] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3  # the choices of one answer differ
    without = {chat(served, seed=None, max_tokens=30).choices[0].message.content for _ in range(3)}
    assert len(without) == 3
    assert chat(served, seed=-(2**63)) and chat(served, seed=2**63 - 1)


def test_logprobs_are_the_models(served):
    """Those of an answer, and of the likeliest tokens beside it, up to where a token that is no text came."""
    checked = 0
    for seed, content in enumerate(PROMPTS):
        answer = chat(served, content, seed=seed, logprobs=True, top_logprobs=20, max_tokens=20)
        prompt = served.tokenizer.render_for_completion({"messages": [{"role": "user", "content": content}]})
        [choice] = answer.choices
        ids = ids_of(served.tokenizer, choice.logprobs.content)
        if answer.usage.completion_tokens - len(ids) > (choice.finish_detail in ("stop", "bos")):
            continue  # specials among them: what came behind was said of a longer text
        expected = logprobs_of(served.model, prompt + ids)[len(prompt) - 1 :]
        for entry, token, row in zip(choice.logprobs.content, ids, expected):
            assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
            likeliest = row.topk(20)
            assert [top.logprob for top in entry.top_logprobs] == pytest.approx(likeliest.values.tolist(), abs=1e-4)
            assert sum(torch.tensor([top.logprob for top in entry.top_logprobs]).exp()) < 1
            checked += 1
    assert checked > 20


def test_the_text_of_the_logprobs_is_the_text(served):
    for seed in range(6):
        [choice] = chat(served, seed=seed, logprobs=True, max_tokens=30).choices
        said = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
        assert said.decode("utf-8", "replace") == choice.message.content
        for entry in choice.logprobs.content:
            assert entry.token.encode() == bytes(entry.bytes) or entry.token.startswith("bytes:\\x")


def test_a_conversation_of_many_forms(served):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": "c"}, {"role": "user", "content": "d"}]
    same = [{"role": "system", "content": "Be brief.\n\nBe kind."}, {"role": "user", "content": "ab"}, *messages[3:]]
    answers = [served.client.chat.completions.create(model=NAME, messages=m, seed=3, max_tokens=9) for m in (messages,
                                                                                                             same)]
    assert answers[0].choices == answers[1].choices and answers[0].usage == answers[1].usage
    # what the client makes of an answer goes back as it is
    again = [*messages, answers[0].choices[0].message, {"role": "user", "content": "and?"}]
    assert served.client.chat.completions.create(model=NAME, messages=again, max_tokens=3).usage.prompt_tokens > 0


# --------------------------------------------------------------------------- completions


def complete(served, prompt, strict: bool = True, **settings):
    client = served.client if strict else served.client.with_options()
    return client.completions.create(**{"model": NAME, "prompt": prompt, "temperature": 1, "seed": 5, **settings})


def complete_in_pieces(served, prompt, **settings) -> list[SimpleNamespace]:
    """Without the client's strictness: its class lets no chunk be without a finish_reason, though OpenAI's own
    have null there before the last. All else of each chunk is held against the class here."""
    with client_of(served.server, strict=False) as client:
        chunks = list(client.completions.create(model=NAME, prompt=prompt, stream=True,
                                                **{"temperature": 1, "seed": 5, **settings}))
    count = 1 + max(choice.index for c in chunks for choice in c.choices)
    made = [SimpleNamespace(text="", finish=None, detail=None, tokens=[], token_logprobs=[], top_logprobs=[],
                            text_offset=[]) for _ in range(count)]
    for chunk in chunks:
        filled = chunk.to_dict() | {"choices": [c.to_dict() | {"finish_reason": c.finish_reason or "stop"}
                                                for c in chunk.choices]}
        Completion.model_validate(filled, strict=True)
        for choice in chunk.choices:
            one = made[choice.index]
            assert one.finish is None, "something came after the end"
            one.text += choice.text
            one.finish, one.detail = choice.finish_reason, getattr(choice, "finish_detail", None)
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                getattr(one, name).extend(getattr(choice.logprobs, name) if choice.logprobs else [])
    return made


@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0}, {"echo": True}, {"logprobs": 0}, {"logprobs": 5, "n": 3}, {"n": 2, "best_of": 2},
    {"echo": True, "logprobs": 3, "n": 2}, {"echo": True, "logprobs": 1, "max_tokens": 0}, {"echo": True,
                                                                                            "max_tokens": 0},
    {"stop": [" "], "max_tokens": 40, "logprobs": 1}, {"stop": "e", "max_tokens": 40, "echo": True}, {"max_tokens": 0},
], ids=str)
def test_texts_gone_on_with_in_one_piece_and_in_many(served, settings):
    """Text, texts, ids, lists of ids: the answers come in order, `n` for each prompt, the prompt before them or not."""
    tokenizer, texts = served.tokenizer, PROMPTS[:3]
    ids = [tokenizer.encode(text) for text in texts]
    for prompt, said in ((texts[0], texts[:1]), (texts, texts), (ids[1], texts[1:2]), (ids, texts)):
        whole = complete(served, prompt, **settings)
        pieces = complete_in_pieces(served, prompt, **settings)
        n = settings.get("n", 1)
        assert len(whole.choices) == len(pieces) == n * len(said)
        assert [choice.index for choice in whole.choices] == list(range(n * len(said)))
        for i, (one, other) in enumerate(zip(whole.choices, pieces)):
            assert (one.text, one.finish_reason, one.finish_detail) == (other.text, other.finish, other.detail)
            assert bool(one.logprobs) == ("logprobs" in settings)
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                assert (getattr(one.logprobs, name) if one.logprobs else []) == getattr(other, name)
            if settings.get("echo"):
                assert one.text.startswith(said[i // n])
            if settings.get("max_tokens") == 0:
                assert one.text == (said[i // n] if settings.get("echo") else "")
                assert one.finish_reason == "length"
    # a prompt's answer does not depend on how it was sent, nor on what was sent beside it
    [alone], [as_ids] = complete(served, texts[0], **{**settings, "n": 1, "best_of": 1}).choices, \
        complete(served, ids[0], **{**settings, "n": 1, "best_of": 1}).choices
    assert alone == as_ids


def test_logprobs_of_a_prompt_are_those_of_one_plain_forward(served):
    """`echo`: each token given all that stands before it, <|bos|> first, which the answer does not show."""
    tokenizer, bos = served.tokenizer, served.tokenizer.get_bos_token_id()
    long = ("The river is called the Ossa, and it is 310 miles long. Größe 🙂 " * 9)[:400]
    for text in [*PROMPTS, long]:
        ids = tokenizer.encode(text)
        [choice] = complete(served, text, echo=True, logprobs=20, max_tokens=0).choices
        found, expected = choice.logprobs, logprobs_of(served.model, [bos, *ids])
        assert choice.text == text and len(found.tokens) == len(ids)
        assert found.token_logprobs == pytest.approx([float(expected[t, i]) for t, i in enumerate(ids)], abs=1e-4)
        for t, top in enumerate(found.top_logprobs):
            assert sorted(top.values(), reverse=True) == pytest.approx(expected[t].topk(20).values.tolist(), abs=1e-4)
            assert 20 / len(expected[t]) < sum(torch.tensor([*top.values()]).exp()) < 1
        # where each token begins in the text
        assert found.text_offset == [len(tokenizer.decode(ids[:t]).rstrip("\ufffd")) for t in range(len(ids))]


def test_a_prompt_of_ids_with_bos_shows_it(served):
    ids = served.tokenizer.encode("fox")
    bos = served.tokenizer.get_bos_token_id()
    [without], [with_bos] = (complete(served, p, echo=True, logprobs=0, max_tokens=2).choices for p in (ids, [bos,
                                                                                                              *ids]))
    assert len(with_bos.logprobs.tokens) == 1 + len(without.logprobs.tokens)
    assert with_bos.logprobs.token_logprobs[1:] == without.logprobs.token_logprobs


def test_every_token_of_an_answer_has_its_logprob(served):
    """One that ends it, and one that is no text, too: harnesses count from the end (lm_eval cuts off the last)."""
    found = set()
    for seed in range(25):
        answer = complete(served, "fox", logprobs=0, max_tokens=8, seed=seed)
        [choice] = answer.choices
        found.add(choice.finish_detail)
        assert len(choice.logprobs.tokens) == answer.usage.completion_tokens, choice
    assert {"length", "stop"} <= found or {"length", "bos"} <= found  # a special token was among them


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("kind", "settings", "code", "param"), [
    (openai.BadRequestError, {"temperature": 3}, "invalid_value", "temperature"),
    (openai.BadRequestError, {"temperature": "1"}, "invalid_value", "temperature"),
    (openai.BadRequestError, {"n": 0}, "invalid_value", "n"),
    (openai.BadRequestError, {"n": 17}, "invalid_value", "n"),
    (openai.BadRequestError, {"max_tokens": -1}, "invalid_value", "max_tokens"),
    (openai.BadRequestError, {"max_tokens": 10**30}, "invalid_value", "max_tokens"),
    (openai.BadRequestError, {"top_p": 0}, "invalid_value", "top_p"),
    (openai.BadRequestError, {"seed": 2**63}, "invalid_value", "seed"),
    (openai.BadRequestError, {"stop": ["a"] * 5}, "invalid_value", "stop"),
    (openai.BadRequestError, {"stop": ""}, "invalid_value", "stop"),
    (openai.BadRequestError, {"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    (openai.BadRequestError, {"top_logprobs": 2}, "invalid_value", None),
    (openai.BadRequestError, {"frequency_penalty": 1}, "invalid_value", "frequency_penalty"),
    (openai.BadRequestError, {"logit_bias": {"5": 1}}, "invalid_value", "logit_bias"),
    (openai.BadRequestError, {"extra_body": {"unknown": 1}}, "unknown_parameter", None),
    (openai.BadRequestError, {"messages": []}, "invalid_value", "messages"),
    (openai.BadRequestError, {"messages": [{"role": "assistant", "content": "a"}]}, "invalid_messages", "messages"),
    (openai.BadRequestError, {"messages": [{"role": "user", "content": "x" * 3000}]}, "context_length_exceeded",
     "messages"),
    (openai.NotFoundError, {"model": "gpt-4"}, "model_not_found", "model"),
    (openai.APIStatusError, {"messages": [{"role": "user", "content": "x" * 2**20}]}, "body_too_large", None),
], ids=str)
def test_errors_are_the_clients_exceptions(served, kind, settings, code, param):
    for stream in (False, True):
        with pytest.raises(kind) as e:
            chat(served, stream=stream, **settings)
        assert e.value.code == code and (e.value.param or "").startswith(param or "")
        assert e.value.status_code == e.value.response.status_code < 500 and e.value.type == "invalid_request_error"


def test_completions_errors_are_the_clients_exceptions(served):
    for prompt in ([], [[]], "x" * 3000, [10**6], [-1], [["a"]], [1, "a"]):
        with pytest.raises(openai.BadRequestError) as e:
            complete(served, prompt)
        assert (e.value.param or "").startswith("prompt"), prompt
    with pytest.raises(openai.BadRequestError):
        complete(served, "a", n=1, best_of=2)
    with pytest.raises(openai.BadRequestError):
        complete(served, "a", suffix="b")


def test_truncation_leaves_out_the_oldest_turns(served):
    messages = [m for i in range(20) for m in ({"role": "user", "content": f"question {i} " * 3},
                                              {"role": "assistant", "content": f"answer {i} " * 3})]
    messages += [{"role": "user", "content": "last"}]
    with pytest.raises(openai.BadRequestError) as e:
        chat(served, messages=messages)
    assert e.value.code == "context_length_exceeded"
    answer = chat(served, messages=messages, extra_body={"truncation": "auto"})
    chunks = list(chat(served, messages=messages, extra_body={"truncation": "auto"}, stream=True))
    assert answer.dropped_turns == chunks[0].dropped_turns > 0
    assert not any(hasattr(chunk, "dropped_turns") for chunk in chunks[1:])
    assert put_together(chunks).choices[0].text == answer.choices[0].message.content


def test_key_queue_and_calculator():
    """A server that wants a key, writes one answer at a time and lets none wait; the parrot says what is wanted."""
    with chat_server("--api_key=secret", "--max_rows=1", "--max_queue=0", delay=0.005) as server:
        with client_of(server, key="wrong") as stranger:
            for call in (stranger.models.list, lambda: stranger.completions.create(model=None, prompt="a")):
                with pytest.raises(openai.AuthenticationError) as e:
                    call()
                assert e.value.code == "invalid_api_key" and e.value.type == "authentication_error"
        with client_of(server, key="secret") as client:
            name = client.models.list().data[0].id
            served = SimpleNamespace(client=client)

            def ask(content, **settings):
                return chat(served, model=name, messages=[{"role": "user", "content": content}], temperature=0,
                            max_tokens=500, **settings)

            stream = ask("a long story " * 30, stream=True)
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as e:
                ask("me too")
            assert e.value.code == "queue_full" and int(e.value.response.headers["retry-after"]) > 0
            stream.close()

            def is_free() -> bool:
                try:
                    return bool(ask("me too"))
                except openai.RateLimitError:
                    return False

            assert wait_until(is_free)
            # what went to the calculator stands in `parts`, whole and in pieces, and can be sent back
            parts = [{"type": "python", "text": "12/60"}, {"type": "python_output", "text": "0.2"},
                     {"type": "text", "text": "done"}]
            whole = ask("calc: 12/60")
            pieces = put_together(ask("calc: 12/60", stream=True)).choices[0]
            assert whole.choices[0].message.content == pieces.text == "done"
            assert whole.choices[0].message.parts == parts
            joined: list[dict] = []
            for part in pieces.parts:
                if joined and joined[-1]["type"] == part["type"]:
                    joined[-1]["text"] += part["text"]
                else:
                    joined.append(dict(part))
            assert joined == parts[:2]
            messages = [{"role": "user", "content": "calc: 12/60"}, whole.choices[0].message, {"role": "user",
                                                                                               "content": "b"}]
            assert chat(served, model=name, messages=messages).choices[0].message.content == "b"
            # and what would be read as something else in a careless stream (trap: sse-payload)
            for text in ("data: [DONE]", "data: {}\n\ndata: x\r\n", "a\u2028b\u2029c\x85d\x0be", "event: x\nid: 1\n\n",
                         "\x00"):
                assert ask(text).choices[0].message.content == put_together(ask(text,
                                                                                stream=True)).choices[0].text == text


def test_the_asynchronous_client(served):
    async def main():
        async with client_of(served.server, kind=openai.AsyncOpenAI) as client:
            async def one(seed: int):
                asked = {"model": NAME, "messages": [{"role": "user", "content": "hi"}], "seed": seed, "temperature": 1}
                whole = await client.chat.completions.create(**asked, max_tokens=9)
                chunks = [chunk async for chunk in await client.chat.completions.create(**asked, max_tokens=9,
                                                                                        stream=True)]
                assert put_together(chunks).choices[0].text == whole.choices[0].message.content
                return whole.choices[0].message.content

            return await asyncio.gather(*map(one, range(8)))

    together = asyncio.run(main())
    assert together == [chat(served, "hi", seed=seed, max_tokens=9).choices[0].message.content for seed in range(8)]


def test_answers_do_not_depend_on_who_asks_beside_it(served):
    alone = [complete(served, PROMPTS[i % 6], seed=i, max_tokens=20, logprobs=2).choices for i in range(8)]
    beside: list = [None] * 8

    def ask(i: int) -> None:
        beside[i] = complete(served, PROMPTS[i % 6], seed=i, max_tokens=20, logprobs=2).choices

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert beside == alone


# --------------------------------------------------------------------------- lm-evaluation-harness

CHOICE = """
task: pick
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/pick.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/write.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{target}}"
generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
# What `lm_eval run --model local-completions` does, without first reading the thousands of tasks that come with it.
RUN_HARNESS = """
import json, pathlib, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
folder = pathlib.Path(sys.argv[1])
tasks = TaskManager(include_path=str(folder), include_defaults=False)
results = simple_evaluate("local-completions", sys.argv[2], ["pick", "write"], task_manager=tasks, batch_size=3,
                          log_samples=True, bootstrap_iters=0)
(folder / "samples.json").write_text(json.dumps(results["samples"], default=str), encoding="utf-8")
"""


@pytest.fixture(scope="module")
def harness(served, tmp_path_factory):
    """lm_eval's own account of two tasks, run through the server: `{"pick": [sample, ...], "write": [...]}`."""
    folder = tmp_path_factory.mktemp("harness")
    words = ["river", "fox 🙂", "the quick brown dog", "12", "Ossa is the name", "goats;", "a", "Größe", "miles long."]
    rows = [{"question": f"{PROMPTS[i % 6]} {i}?", "choices": [words[(i + j) % 9] for j in range(4)], "label": i % 4}
            for i in range(12)]
    texts = [{"text": f"{PROMPTS[i % 6]} {i}", "target": "x"} for i in range(6)]
    for name, task, lines in (("pick", CHOICE, rows), ("write", GENERATE, texts)):
        (folder / f"{name}.yaml").write_text(task.replace("FOLDER", str(folder)), encoding="utf-8")
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    export_tokenizer(served.tokenizer, folder / "tokenizer")
    arguments = {"model": NAME, "base_url": served.server.url + "/v1/completions", "tokenizer": folder / "tokenizer",
                 "tokenizer_backend": "huggingface", "max_length": 256, "num_concurrent": 2, "max_retries": 1}
    done = subprocess.run(
        [sys.executable, "-c", RUN_HARNESS, folder, ",".join(f"{k}={v}" for k, v in arguments.items())],
        env={**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}, capture_output=True, text=True,
        encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return json.loads((folder / "samples.json").read_text(encoding="utf-8"))


def test_the_harness_finds_the_models_own_loglikelihoods(served, harness):
    tokenizer, bos = served.tokenizer, served.tokenizer.get_bos_token_id()
    assert len(harness["pick"]) == 12
    for sample in harness["pick"]:
        found = [(float(response[0][0]), response[0][1] in (True, "True")) for response in sample["resps"]]
        assert len(found) == 4
        for (loglikelihood, greedy), (context, continuation) in zip(found, sample["arguments"]):
            ids = [bos, *tokenizer.encode(context + continuation)]
            begin = 1 + len(tokenizer.encode(context))
            expected = logprobs_of(served.model, ids)
            own = [float(expected[t - 1, ids[t]]) for t in range(begin, len(ids))]
            assert loglikelihood == pytest.approx(sum(own), abs=1e-3)
            assert greedy == all(int(expected[t - 1].argmax()) == ids[t] for t in range(begin, len(ids)))


def test_the_harness_gets_what_the_model_writes(served, harness):
    assert len(harness["write"]) == 6
    for sample in harness["write"]:
        [(prompt, _)] = sample["arguments"]
        [choice] = complete(served, prompt, temperature=0, max_tokens=12, stop=["e", "\n"]).choices
        assert sample["resps"] == [[choice.text]]
