"""OpenAI's forms of requests and answers, as far as one text model can meet them: what is valid, and what it means.

    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], "temperature": 0})
    conversation_of(request.messages)     # -> [{"role": "user", "content": "hi"}], as our tokenizer renders it

Types are strict: "5" is no number. A field that would change the answer and that we do not have is refused, not
ignored: known ones unless they have the value that changes nothing, unknown ones always. From these classes FastAPI
makes /openapi.json. The forms: platform.openai.com/docs/api-reference. There is nothing to run here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from nanochat.common import UserError

MAX_CHOICES = 16  # answers to one prompt
MAX_PROMPTS = 64  # prompts of one request; answers, too
MAX_IDS = 2**16  # tokens of one prompt: no context of ours is longer
MAX_FIELDS = 100  # of one object


def few_fields(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise ValueError(f"an object has {len(value)} fields: at most {MAX_FIELDS} are read")
    return value


Text = Annotated[str, Field(max_length=1_000_000)]
Texts = Annotated[list[Text], Field(fail_fast=True)]
Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(fail_fast=True)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Strict(BaseModel):
    """What comes from outside."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return few_fields(value)


# --------------------------------------------------------------------------- requests


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="Send the usage in a last chunk.")
    include_obfuscation: bool | None = Field(None, description="Accepted, does nothing.")


class Completable(Strict):
    """What both kinds of requests have."""

    model: str | None = Field(None, max_length=1000, description="The model that is served, as /v1/models names it.")
    stream: bool | None = Field(None, description="Send the answer as it is written, as server-sent events.")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="How many answers.")
    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1,
                                description="Choose among the likeliest tokens that have this probability together.")
    top_k: int | None = Field(None, ge=0, lt=2**31, description="Choose among so many likeliest tokens; 0: all.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="The same seed gives the same answer.")
    stop: Stop | Annotated[list[Stop], Field(max_length=4, fail_fast=True)] | None = Field(
        None, description="The answer ends before the first of these, which is left out.")
    # accepted, and without any effect on the answer
    user: Text | None = None
    store: Literal[False] | None = None
    metadata: Annotated[dict[str, Text], BeforeValidator(few_fields), Field(max_length=16)] | None = None
    # what we do not have, with the values that ask for nothing
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Completable:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self


class Part(Strict):
    type: Literal["text", "python", "python_output"] = Field(
        description="Only an assistant's message may have a calculator's input (python) and output (python_output).")
    text: Text


Parts = Annotated[list[Part], Field(fail_fast=True)]


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Parts | None = None
    parts: Parts | None = Field(None, description="All that an assistant said, as an answer told it.")
    name: str | None = Field(None, max_length=1000, description="Accepted, does nothing.")
    # what OpenAI's clients send back of an answer
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None
    annotations: Nothing | None = None


class ResponseFormat(Strict):
    type: Literal["text"]


class ChatRequest(Completable):
    messages: list[Message] = Field(min_length=1, fail_fast=True,
                                    description="System text first if any; the last is the user's.")
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_tokens: int | None = Field(None, ge=1, lt=2**31, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["disabled", "auto"] | None = Field(
        None, description="auto: leave out the oldest turns of a conversation that is longer than the context.")
    response_format: ResponseFormat | None = None
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only allowed when logprobs is true")
        return self


class CompletionRequest(Completable):
    prompt: Text | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)] = Field(
        description="One text or many, as text or as the model's token ids.")
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="16 if none is given.")
    echo: bool | None = Field(None, description="The answer begins with the prompt.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Of each token, and of so many likeliest ones.")
    suffix: Literal[""] | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)

    @field_validator("prompt", mode="before")  # before any of a million is looked at
    @classmethod
    def _some_but_not_too_many(cls, prompt: Any) -> Any:
        if isinstance(prompt, list):
            if not prompt or [] in prompt:
                raise ValueError("an empty list is no prompt")
            if isinstance(prompt[0], int) and len(prompt) > MAX_IDS:
                raise ValueError(f"{len(prompt)} tokens are too many: at most {MAX_IDS} in one prompt")
            if not isinstance(prompt[0], int) and len(prompt) > MAX_PROMPTS:
                raise ValueError(f"{len(prompt)} prompts are too many: at most {MAX_PROMPTS} in one request")
        return prompt

    @model_validator(mode="after")
    def _best_of_is_n(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of is only allowed where it is n: all answers that are drawn are sent")
        return self

    @model_validator(mode="after")
    def _not_too_many_answers(self) -> CompletionRequest:
        if (answers := len(self.prompts) * (self.n or 1)) > MAX_PROMPTS:
            raise ValueError(f"n answers to every prompt are {answers}: at most {MAX_PROMPTS} in one request")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """`"hi" -> ["hi"]`, `[1, 2] -> [[1, 2]]`"""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


def conversation_of(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages as our models know a conversation: one system text, then user and assistant in turn, the user last.

    What other clients send is brought into that form where nothing is lost: system texts in a row are one, as are
    neighbouring messages of one role. UserError where it cannot be.
    """
    said: list[tuple[str, list[str | list]]] = []  # a role, and what it said in a row
    for i, message in enumerate(messages, start=1):
        role = "system" if message.role == "developer" else message.role
        content = message.parts if message.parts is not None else message.content
        if content is None:
            raise UserError(f"message {i} has no content")
        if isinstance(content, list):
            if role != "assistant" and (message.parts is not None or any(part.type != "text" for part in content)):
                raise UserError(f"message {i}: only an assistant's message has parts other than text")
            content = [part.model_dump() for part in content]
            if all(part["type"] == "text" for part in content):
                content = "".join(part["text"] for part in content)
        if role == "system" and said and said[-1][0] != "system":
            raise UserError(f"message {i}: a system message must come first, before all others")
        if said and said[-1][0] == role:
            said[-1][1].append(content)
        else:
            said.append((role, [content]))
    turns = [{"role": role, "content": _joined(contents)} for role, contents in said]
    first = 1 if turns[0]["role"] == "system" else 0
    if len(turns) == first or turns[first]["role"] != "user":
        raise UserError("a conversation begins with a user's message (after the system text, if there is one)")
    if turns[-1]["role"] != "user":
        raise UserError("the last message must be the user's: that one is answered")
    return turns


def _joined(contents: list[str | list]) -> str | list:
    """`["a", "b"] -> "a\n\nb"`; of texts and lists of parts one list of parts. All at once: there may be 30 000."""
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents)
    parts: list[dict[str, str]] = []
    for i, content in enumerate(contents):
        parts += [{"type": "text", "text": "\n\n"}] if i else []
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


# --------------------------------------------------------------------------- answers (for the description)


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = Field(description="Tokens written, those of the calculator and the last one included.")
    total_tokens: int


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class AnswerPart(BaseModel):
    type: Literal["text", "python", "python_output"]
    text: str


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str = Field(description="The text; what went to the calculator and back is in parts.")
    refusal: None
    parts: list[AnswerPart] | None = Field(None, description="Where the calculator was used: all in order.")


Finish = Literal["stop", "length"]
Detail = Literal["stop", "stop_string", "bos", "length", "context"]


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    finish_reason: Finish
    finish_detail: Detail = Field(description="stop: the model ended it; stop_string; bos: the model began another "
                                              "document; length: max_tokens; context: the context is full.")
    logprobs: ChatLogprobs | None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    dropped_turns: int = Field(0, description="Turns left out by truncation=auto.")


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    finish_reason: Finish
    finish_detail: Detail
    logprobs: CompletionLogprobs | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Defaults(BaseModel):
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int


class ModelObject(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int = Field(description="Tokens of prompt and answer together.")
    data: str | None = Field(description="What it learned from; pocket: the generated pocket world.")
    step: int
    defaults: Defaults = Field(description="How a chat answer is drawn where the request does not say.")


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelObject]


class Health(BaseModel):
    status: Literal["ok", "no worker", "stopping"]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody
