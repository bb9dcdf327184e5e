"""Grading a chat model on tasks: it writes an answer (generative) or chooses a letter (categorical).

Everything here returns data with its uncertainty and a few transcripts (`eval_result.py`), and prints nothing.

    result = run_chat_eval("gsm8k", model, tokenizer, engine, max_problems=200)
    result.accuracy, result.n, result.ci95            # 0.41, 200, (0.344, 0.479)

Under torch.distributed every rank makes the same call; the problems are shared among them and all get the whole result.
What the model says to a problem depends on the problem, the settings and the seed, never on what stands beside it in a
batch or on which rank has it: the same result for any `batch_size` and any number of ranks (to the bit on a CPU,
elsewhere up to the rounding of matrix products of another shape: `engine.py`).

There is nothing to run here: `python -m scripts.chat_eval` evaluates a checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from nanochat.common import UserError, cpu_cores
from nanochat.engine import Engine, RowState, Sampling, TextStream
from nanochat.eval_result import EvalResult, Outcome, thin, transcript
from nanochat.ranks import all_or_none, gather_texts, rank_and_world
from nanochat.sampling import stream_seed
from nanochat.watchdog import WAITS, alive
from tasks.catalog import make_task
from tasks.common import Conversation, Task

if TYPE_CHECKING:
    from nanochat.gpt import GPT

POSITIONS = 8192  # at most so many token positions in one categorical batch: each has keys and values in every layer
Tell = Callable[[int, int], None]  # is told how many problems of this rank are done, and of how many


def silent(done: int, total: int) -> None: ...


# --------------------------------------------------------------------------- what to ask


def spread(n: int, max_problems: int) -> list[int]:
    """Which of n problems to ask: all when `max_problems` is below 1 or reaches n, else evenly spaced ones.

    `spread(10, 4) -> [0, 2, 5, 7]`. The same in every run, each at most once, and no file order can bias it.
    """
    m = n if max_problems < 1 else min(n, max_problems)
    return [i * n // m for i in range(m)]


def share(problems: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """The problems of one rank, each dealt to exactly one: `share([0, 2, 5, 7], 1, 3) -> [2]`; there may be none."""
    return problems[rank::world_size]


def crop(ids: list[int], room: int) -> list[int]:
    """The first token (<|bos|>) and the last ones, `room` in all: the question stands at the end of a prompt.

    `crop([0, 1, 2, 3, 4], 3) -> [0, 3, 4]`
    """
    return ids if len(ids) <= room else ids[:1] + ids[len(ids) - room + 1 :]


# --------------------------------------------------------------------------- answers and grades


def completion_parts(tokenizer: Any, ids: Sequence[int]) -> list[dict[str, str]]:
    """Generated ids as the parts of an assistant message: text, python, python_output."""
    stream = TextStream(tokenizer)
    for token in ids:
        stream.feed(token)
    stream.flush()
    return stream.parts


def plain_text(parts: Sequence[dict[str, str]]) -> str:
    """The ordinary text of a message: what a person reads as the answer, tool calls and their output left out."""
    return "".join(part["text"] for part in parts if part["type"] == "text")


def judge(task: Task, index: int, conversation: Conversation, answers: Sequence[list[dict[str, str]]],
          **facts: Any) -> Outcome:
    """Have the task grade the answers to a problem. `facts`: what else its outcome says.

    A grader that fails (a bug, or an answer that nobody foresaw) must neither end an evaluation of hours nor pass for a
    right answer: it counts as wrong, is counted, and its error stands in the transcript. What a person can mend
    (UserError) ends the evaluation: the next problem would have it too.
    """
    grades, errors = [], []
    for parts in answers:
        try:
            grades.append(bool(task.evaluate(conversation, plain_text(parts))))
        except UserError:
            raise
        except Exception as e:
            grades.append(False)
            errors.append(f"{type(e).__name__}: {e}"[:500])
    shown = answers[grades.index(True)] if any(grades) else answers[0]
    sample = transcript(conversation, shown, any(grades), "" if any(grades) else "; ".join(errors[:1]))
    return Outcome(index, sum(grades), ungraded=len(errors), sample=sample, **facts)


def gathered(name: str, own: Iterable[Outcome], num_samples: int = 1) -> EvalResult:
    """The result of all ranks, on each of them, in the order of the problems."""
    text = json.dumps([vars(outcome) for outcome in thin(own)])
    told = [json.loads(part) for part in gather_texts(text)]
    return EvalResult.of(name, [Outcome(**outcome) for part in told for outcome in part], num_samples)


# --------------------------------------------------------------------------- generative


def run_generative_eval(
    task: Task,
    tokenizer: Any,
    engine: Engine,
    *,
    max_problems: int = -1,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    num_samples: int = 1,
    seed: int = 42,
    batch_size: int = 32,
    name: str = "",
    tell: Tell = silent,
) -> EvalResult:
    """Let the model answer in its own words; the task grades the text outside of tool calls.

    Rows that finish make room for the next problem: `batch_size` is how many are written at once. Whatever is
    finished is graded meanwhile, in threads: a verdict of the sandbox is mostly waiting for its processes.
    """
    name = name or type(task).__name__
    own = share(spread(len(task), max_problems), *rank_and_world())
    context = engine.model.config.sequence_len
    room = context - min(max_new_tokens, context // 4)  # a prompt keeps three quarters; answers end with the context
    sampling = Sampling(temperature, top_k)
    with all_or_none(f"evaluating {name}"):
        rows: dict[int, list[RowState]] = {}
        conversations: dict[int, Conversation] = {}
        cropped: dict[int, bool] = {}
        for index in own:
            conversations[index] = task[index]
            ids = tokenizer.render_for_completion(conversations[index])
            cropped[index] = len(ids) > room
            rows[index] = engine.make_rows([crop(ids, room)], num_samples, max_new_tokens, sampling,
                                           stream_seed(seed, index))

        def grade(index: int) -> Outcome:
            answers = [completion_parts(tokenizer, row.ids) for row in rows[index]]
            return judge(task, index, conversations[index], answers, cropped=cropped[index])

        outcomes = _graded_while_written(engine, rows, grade, batch_size, tell)
        alive(f"{WAITS}: their answers to {name}")
    return gathered(name, outcomes, num_samples)


def _graded_while_written(engine: Engine, rows: dict[int, list[RowState]], grade: Callable[[int], Outcome],
                          batch_size: int, tell: Tell) -> list[Outcome]:
    """Decode the rows of all problems, and grade each problem in a thread as soon as its last row is finished."""
    generation = engine.begin([row for group in rows.values() for row in group], batch_size)
    problem_of = {id(row): index for index, group in rows.items() for row in group}
    unfinished = {index: len(group) for index, group in rows.items()}
    waiting: list[Future[Outcome]] = []
    outcomes: list[Outcome] = []

    def take(futures: list[Future[Outcome]]) -> list[Future[Outcome]]:
        """Note what is graded (its error is raised here); returns the others."""
        done = [future for future in futures if future.done()]
        outcomes.extend(future.result() for future in done)
        if done:
            tell(len(outcomes), len(rows))
        return [future for future in futures if future not in done] if done else futures

    workers = max(1, cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))  # each rank of this machine has as many
    pool = ThreadPoolExecutor(workers, thread_name_prefix="grade")
    try:
        while events := generation.step():
            alive()
            for row, *_ in events:
                if row.finish is not None:
                    index = problem_of[id(row)]
                    unfinished[index] -= 1
                    if unfinished[index] == 0:
                        waiting.append(pool.submit(grade, index))
            waiting = take(waiting)
        for future in waiting:
            future.exception()  # waits
            take([future])
    finally:  # after an error or Ctrl-C nobody wants the grades that have not begun
        pool.shutdown(cancel_futures=True)
    return outcomes


# --------------------------------------------------------------------------- categorical


def run_categorical_eval(
    task: Task,
    tokenizer: Any,
    model: GPT,
    *,
    engine: Engine | None = None,
    max_problems: int = -1,
    batch_size: int = 32,
    name: str = "",
    tell: Tell = silent,
) -> EvalResult:
    """Let the model choose: of the letters on offer, the one with the highest logit right after the prompt.

    Nothing is generated, so a model that does not yet know the form of an answer can show what it knows. Prompts of
    like length share a batch. `engine`: one of this model, where there is one already.
    """
    name, engine = name or type(task).__name__, engine or Engine(model, tokenizer)
    own = share(spread(len(task), max_problems), *rank_and_world())
    context, outcomes = model.config.sequence_len, []
    with all_or_none(f"evaluating {name}"):
        conversations = {index: task[index] for index in own}
        prompts = {index: tokenizer.render_for_completion(conversation)
                   for index, conversation in conversations.items()}
        letters = {letter for conversation in conversations.values() for letter in conversation["letters"]}
        token_of = {letter: tokenizer.encode(letter)[0] for letter in letters}  # always one: all bytes are tokens
        waiting = sorted(own, key=lambda index: len(prompts[index]))
        while waiting:
            longest = min(len(prompts[waiting[-1]]), context)
            count = max(1, min(batch_size, POSITIONS // longest))
            batch = [waiting.pop() for _ in range(min(count, len(waiting)))]
            logits = engine.next_logits([crop(prompts[index], context) for index in batch])  # (len(batch), V)
            for row, index in zip(logits, batch, strict=True):
                offered = conversations[index]["letters"]
                scores = row[[token_of[letter] for letter in offered]]
                answer = [{"type": "text", "text": offered[int(scores.argmax())]}]
                outcomes.append(judge(task, index, conversations[index], [answer], choices=len(offered),
                                      cropped=len(prompts[index]) > context))
            tell(len(outcomes), len(own))
    return gathered(name, outcomes)


# --------------------------------------------------------------------------- either


def run_chat_eval(
    task: str | Task,
    model: GPT,
    tokenizer: Any,
    engine: Engine,
    *,
    data: str = "pocket",
    split: str = "test",
    max_problems: int = -1,
    batch_size: int = 32,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    num_samples: int = 1,
    seed: int = 42,
    name: str = "",
    tell: Tell = silent,
) -> EvalResult:
    """Evaluate one task, by name or ready made, in the way that suits it."""
    if isinstance(task, str):
        name, task = name or task, make_task(task, data, split)
    common: dict[str, Any] = {"max_problems": max_problems, "batch_size": batch_size, "name": name, "tell": tell}
    if task.eval_type == "categorical":
        return run_categorical_eval(task, tokenizer, model, engine=engine, **common)
    if task.eval_type == "generative":
        return run_generative_eval(task, tokenizer, engine, max_new_tokens=max_new_tokens, temperature=temperature,
                                   top_k=top_k, num_samples=num_samples, seed=seed, **common)
    raise UserError(f"{name or type(task).__name__} has no right answers to grade: use it for training only")
