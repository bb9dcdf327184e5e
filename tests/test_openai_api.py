"""What requests may look like, and what a conversation in OpenAI's form means for our models.

Run: python -m pytest tests/test_openai_api.py
"""

from __future__ import annotations

import json
import time

import pytest
from pydantic import ValidationError

from nanochat.answers import ChatForm, Choice, CompletionForm, finish_fields
from nanochat.common import UserError
from nanochat.conversation import checked_messages
from nanochat.openai_api import ChatRequest, CompletionRequest, Message, conversation_of

HI = [{"role": "user", "content": "hi"}]


def messages(*turns) -> list[Message]:
    return [Message.model_validate({"role": role, "content": content}) for role, content in turns]


@pytest.mark.parametrize("turns, expected", [
    ([("user", "a")], [("user", "a")]),
    ([("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
     [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]),
    ([("developer", "s"), ("system", "t"), ("user", "a"), ("user", "b")], [("system", "s\n\nt"), ("user", "a\n\nb")]),
    ([("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], [("user", "ab")]),
    ([("user", "a"), ("assistant", "b"), ("assistant", [{"type": "python", "text": "1+1"}]), ("user", "c")],
     [("user", "a"), ("assistant", [{"type": "text", "text": "b"}, {"type": "text", "text": "\n\n"},
                                    {"type": "python", "text": "1+1"}]), ("user", "c")]),
])
def test_conversations(turns, expected):
    conversation = conversation_of(messages(*turns))
    assert [(m["role"], m["content"]) for m in conversation] == expected
    checked_messages({"messages": conversation})  # which is what our tokenizer takes


@pytest.mark.parametrize("turns, why", [
    ([("user", "a"), ("system", "s"), ("user", "b")], "must come first"),
    ([("assistant", "a"), ("user", "b")], "begins with a user's"),
    ([("system", "a")], "begins with a user's"),
    ([("user", "a"), ("assistant", "b")], "last message must be the user's"),
    ([("user", None)], "message 1 has no content"),
    ([("user", [{"type": "python", "text": "1"}])], "only an assistant's"),
])
def test_conversations_that_cannot_be(turns, why):
    with pytest.raises(UserError, match=why):
        conversation_of(messages(*turns))


def test_an_answer_can_be_sent_back_as_it_came():
    choice = Choice()
    for kind, text in (("text", "a"), ("python", "1+1"), ("python_output", "2"), ("text", "b"), ("text", "c")):
        choice.take([1, 0, kind, text, None, None])
    choice.take([1, 0, "text", "", None, {"finish": "stop", "completion_tokens": 9}])
    answer = ChatForm("m", logprobs=False).whole([choice], {"prompt_tokens": 3, "dropped_turns": 0})
    message = answer["choices"][0]["message"]
    assert message["content"] == "abc" and answer["usage"]["total_tokens"] == 12
    # what the openai package makes of it: fields of its own, all null or empty
    sent_back = {**message, "annotations": None, "audio": None, "function_call": None, "tool_calls": None}
    body = ChatRequest.model_validate(json.loads(json.dumps({"messages": [*HI, sent_back, *HI]})))
    assert conversation_of(body.messages)[1]["content"] == choice.parts


@pytest.mark.parametrize("more", [
    {"temperature": -0.1}, {"temperature": 2.1}, {"temperature": "1"}, {"temperature": float("nan")}, {"n": 0},
    {"n": 17}, {"n": True}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"top_k": 2**31}, {"max_tokens": 0},
    {"max_tokens": -1}, {"max_tokens": 2**31}, {"max_tokens": 1.5}, {"seed": 2**63}, {"stop": ""}, {"stop": ["a"] * 5},
    {"stop": [1]}, {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 21},
    {"stream_options": {"include_usage": True}},
    {"frequency_penalty": 0.5}, {"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}},
    {"logit_bias": {"5": 1}}, {"functions": []}, {"foo": 1}, {"store": True}, {"messages": "hi"},
    {"messages": [{"role": "tool", "content": ""}]},
    {"messages": [{"role": "user", "content": "a", "x": 1}]}, {"model": 5},
], ids=str)
def test_refused(more):
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({"messages": HI, **more})


@pytest.mark.parametrize("more", [
    {}, {"temperature": 0}, {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me"},
    {"stream": True, "stream_options": {"include_usage": True}}, {"stop": None, "seed": -1, "tools": [], "n": 16},
    {"response_format": {"type": "text"}, "metadata": {"a": "b"}, "store": False, "tool_choice": "none"},
], ids=str)
def test_accepted(more):
    ChatRequest.model_validate({"messages": HI, **more})


@pytest.mark.parametrize("prompt, prompts", [("a", ["a"]), ("", [""]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]),
                                             ([[1], [2]], [[1], [2]])])
def test_prompts(prompt, prompts):
    assert CompletionRequest.model_validate({"prompt": prompt}).prompts == prompts


@pytest.mark.parametrize("more", [{"prompt": []}, {"prompt": [[]]}, {"prompt": [[1], []]}, {"prompt": [1, "a"]},
                                  {"prompt": [-1]}, {"prompt": [2**31]}, {"prompt": None}, {"prompt": ["a"] * 65},
                                  {"prompt": ["a"] * 5, "n": 16}, {"prompt": [1] * 70_000},
                                  {"prompt": "a", "suffix": "b"}, {"prompt": "a", "best_of": 2},
                                  {"prompt": "a", "n": 2, "best_of": 1}],
                         ids=lambda more: str(more)[:40])
def test_prompts_that_cannot_be(more):
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate(more)


@pytest.mark.parametrize("body", [
    {"prompt": [-1] * 9000}, {"prompt": [1] * 9000 + ["a"]}, {"prompt": [[1] * 9000 + [-1]] * 9},
    {"prompt": [{}] * 9000}, {"prompt": "a", "stop": [1] * 9000}, {"prompt": "a", **{str(i): 1 for i in range(9000)}},
    {"prompt": "a", "metadata": {str(i): 1 for i in range(9000)}},
    {"messages": [1] * 9000}, {"messages": [{}] * 9000}, {"messages": [{"role": "user", "content": [1] * 9000}]},
    {"messages": HI, "response_format": {str(i): 1 for i in range(9000)}}, {"messages": HI, "tools": [1] * 9000},
    {"messages": HI, "logit_bias": {str(i): 1 for i in range(9000)}},
], ids=lambda body: str(body)[:40])
def test_many_faults_are_not_all_listed(body):
    """A body of one megabyte has room for a million; a list of them takes a minute and a gigabyte."""
    with pytest.raises(ValidationError) as refusal:
        (ChatRequest if "messages" in body else CompletionRequest).model_validate(body)
    assert refusal.value.error_count() <= 5


def test_many_short_messages_are_joined_at_once():
    parts = [{"type": "python", "text": "1"}]
    said = messages(("user", "a"), *[("assistant", parts)] * 20_000, ("user", "b"))
    begin = time.process_time()
    assert len(conversation_of(said)[1]["content"]) == 39_999
    assert time.process_time() - begin < 3  # 0.1 s; joined one by one it was 6


def test_how_an_answer_ended():
    assert finish_fields("") == {"finish_reason": None}
    for finish, reason in {"stop": "stop", "bos": "stop", "stop_string": "stop", "length": "length",
                           "context": "length"}.items():
        assert finish_fields(finish) == {"finish_reason": reason, "finish_detail": finish}


def test_the_pieces_of_a_chat():
    form = ChatForm("m", logprobs=True)
    entry = {"token": "a", "bytes": [97], "logprob": -1.5, "offset": 4, "top_logprobs": []}
    assert form.chunk(0, "text", "a", [entry], "") == {
        "index": 0, "delta": {"content": "a"}, "finish_reason": None,
        "logprobs": {"content": [{"token": "a", "bytes": [97], "logprob": -1.5, "top_logprobs": []}]}}
    assert form.chunk(1, "python", "1+1", None, "")["delta"] == {"parts": [{"type": "python", "text": "1+1"}]}
    assert form.chunk(1, "text", "", None, "stop")["delta"] == {}
    both = [Choice(tokens=2), Choice(tokens=3)]
    usage = form.whole(both, {"prompt_tokens": 4, "dropped_turns": 0})["usage"]
    assert usage == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


def test_a_completion_leaves_the_calculator_out():
    form = CompletionForm("m", logprobs=True)
    assert form.chunk(0, "python", "1+1", None, "") is None
    entry = {"token": "a", "bytes": [97], "logprob": -1.5, "offset": 4,
             "top_logprobs": [{"token": "b", "bytes": [98], "logprob": -1}]}
    assert form.chunk(1, "text", "a", [entry], "")["logprobs"] == {
        "tokens": ["a"], "token_logprobs": [-1.5], "top_logprobs": [{"b": -1}], "text_offset": [4]}
