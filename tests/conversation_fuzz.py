"""Random conversations, most of them broken, through the doors that people's own data come in by.

    python -m tests.chaos conversations --conversations=10000 --seed=0

Each one goes, as a line among good ones, through `CustomJSON`, which must load it or name file and line in one line;
and as a row of a task through the conversation loader, which must never raise and must account for every row. What is
sound is decided here a second time, from the rules as people are told them (`fault`): a rule that gets lost in the code
shows as a difference.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from nanochat.dataloader import conversation_loader
from tasks.common import Task
from tasks.customjson import CustomJSON
from tests.helpers import byte_tokenizer

TASK_ROWS = 50  # rows that go through the loader together
LONGEST_LINE = 600  # of what is said about a row, whatever the row holds
GOOD = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}
KINDS = ("text", "python", "python_output")

# ----------------------------------------------------------------------------------------------- random conversations

ALPHABETS = ("ab ", "12+*,. ", "é漢🙂\u200d", "\x00\x07\x1b", "x\u2028\u0085\r\n\t", "\ud800\udfff", "<|bos|>", "x \n")


def text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.02:
        return rng.choice(["", " ", "\n\t", "\u3000", "\x00", "\ufeff", "<|assistant_end|>", "\ud83d"])
    size = rng.randint(1, 12) if kind < 0.99 else rng.choice([300, 20_000])
    return "".join(rng.choices(rng.choice(ALPHABETS) if kind < 0.5 else "abc de?", k=size))


def junk(rng: random.Random, depth: int = 0) -> Any:
    """Any value JSON can hold (and some that only Python can), small."""
    plain = [None, True, False, 0, -1, 7.5, 10**30, float("nan"), "", "user", "messages", text(rng)]
    kind = rng.random()
    if kind < 0.6 or depth > 4:
        return rng.choice(plain)
    inner = [junk(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return inner if kind < 0.8 else {rng.choice(["role", "content", "text", "type", "x"]): value for value in inner}


def parts(rng: random.Random) -> list:
    return [{"type": rng.choice(KINDS), "text": text(rng)} for _ in range(rng.randint(0, 4))]


def conversation(rng: random.Random) -> dict[str, Any]:
    """A sound one, as long as no text is blank."""
    exchanges = rng.choice([1, 1, 1, 2, 3, 6]) if rng.random() < 0.995 else 500
    messages = [{"role": "system", "content": text(rng)}] if rng.random() < 0.2 else []
    for _ in range(exchanges):
        messages.append({"role": "user", "content": text(rng)})
        messages.append({"role": "assistant", "content": parts(rng) if rng.random() < 0.3 else text(rng)})
    row: dict[str, Any] = {"messages": messages}
    if rng.random() < 0.2:
        row["answer"] = rng.choice([text(rng), [text(rng), text(rng)], [], junk(rng)])
    return row


def broken(rng: random.Random, row: dict[str, Any]) -> Any:
    """`row` with one thing done to it that may or may not make it unsound."""
    messages = row["messages"]
    if not (isinstance(messages, list) and messages):
        return row
    i = rng.randrange(len(messages))
    message = messages[i] if isinstance(messages[i], dict) else {}
    content = message.get("content")
    match rng.randrange(15):
        case 0:
            messages.pop(i)
        case 1:
            messages.insert(i, messages[i])
        case 2:
            rng.shuffle(messages)
        case 3:
            message["role"] = rng.choice(["user", "assistant", "system", "User", "tool", "", "x" * 100_000, junk(rng)])
        case 4:
            message["content"] = junk(rng)
        case 5:
            message.pop(rng.choice(["role", "content"]), None)
        case 6:
            messages[i] = junk(rng)
        case 7:
            row["messages"] = rng.choice([[], {}, None, "messages", junk(rng)])
        case 8:
            del messages[i:]
        case 9:  # one side only, or a system message and nothing else
            side = rng.choice(["user", "assistant", "system"])
            row["messages"] = [m for m in messages if isinstance(m, dict) and m.get("role") == side]
        case 10 if isinstance(content, list) and content:
            content[rng.randrange(len(content))] = rng.choice([
                junk(rng), {"type": "image", "text": "x"}, {"type": "text"}, {"type": "text", "text": junk(rng)},
                {"type": ["text"], "text": "x"}, {"text": "x"},
            ])
        case 11:
            message["content"] = parts(rng)
        case 12:
            row[rng.choice(["x", "id", "content", "role"])] = junk(rng)
        case 13:
            message["content"] = nested(rng.choice([20, 900, 5000]))
        case 14:
            return rng.choice([None, 5, "text", [], {}, messages, [row], {"message": messages}, junk(rng)])
    return row


def nested(depth: int) -> list:
    """A list in a list in a list: printing one of some thousand levels is an error of its own."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def random_row(rng: random.Random) -> Any:
    row: Any = conversation(rng)
    if rng.random() < 0.05:
        row = {"text": rng.choice([text(rng), text(rng) * 50, junk(rng)])}
    for _ in range(rng.choice([0, 0, 0, 1, 1, 1, 2, 3])):
        row = broken(rng, row) if isinstance(row, dict) and "messages" in row else row
    return row


def random_line(rng: random.Random, row: Any) -> bytes:
    """`row` as a line of JSON, sometimes damaged as files are."""
    try:
        ascii_only = rng.random() < 0.5
        line = json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", rng.choice(["surrogatepass", "replace"]))
    except (RecursionError, TypeError):
        line = b"[" * 5000 + b"]" * 5000
    if rng.random() < 0.75:
        return line
    at = rng.randrange(len(line) + 1)
    match rng.randrange(9):
        case 0:
            line = line[:at]
        case 1:
            line = line[:at] + bytes([rng.randrange(256)]) + line[at + 1 :]
        case 2:
            line = line.replace(b'"role"', b'"role": "user", "role"', 1)
        case 3:
            line = line.replace(b'{"messages"', b'{"messages": [], "messages"', 1)
        case 4:
            line += line
        case 5:
            line = b"\xef\xbb\xbf" + line
        case 6:
            line = b'{"messages": ' + b"9" * 5000 + b"}"
        case 7:
            line = b" \t" + line + b" \r"
        case 8:
            other = line.decode("utf-8", "replace").encode("utf-16")
            line = rng.choice([b"", b" ", b"\x00", b"//", b"NaN", b"'messages'", other])
    return line.replace(b"\n", b" ")


# ------------------------------------------------------------------------------------------------- what people are told


def fault(row: Any, *, to_learn: bool) -> str:
    """What kind of fault a row has, "" for none; `to_learn`: in a file, where a conversation must be one to learn from.

    In a task a row may also be a document.
    """
    if not to_learn and isinstance(row, dict) and "text" in row and "messages" not in row:
        return "" if isinstance(row["text"], str) else "text"
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return "no messages"
    if any(not isinstance(m, dict) or not {"role", "content"} <= set(m) for m in messages):
        return "no message"
    roles = [m["role"] for m in messages]
    if any(not isinstance(role, str) or role not in ("system", "user", "assistant") for role in roles):
        return "role"
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant" and isinstance(content, list):
            for part in content:
                if not isinstance(part, dict) or not isinstance(part.get("type"), str) or part["type"] not in KINDS:
                    return "part"
                if not isinstance(part.get("text"), str):
                    return "part"
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            return "content"
        if to_learn and not content.strip():
            return "blank"
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        return "order"
    return "unanswered" if to_learn and len(turns) % 2 else ""


def line_fault(line: bytes, number: int) -> tuple[str, Any]:
    """`(fault, row)` of a line of a CustomJSON file; the fault "empty" means that there is no row."""
    if not line.strip():
        return "empty", None

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        return "JSON", None
    row = {"messages": row} if isinstance(row, list) else row
    found = fault(row, to_learn=True)
    if not found and "answer" in row:
        answers = [row["answer"]] if isinstance(row["answer"], str) else row["answer"]
        wordy = isinstance(answers, list) and answers and all(isinstance(a, str) and has_words(a) for a in answers)
        found = "" if wordy else "answer"
    return found, row


def has_words(answer: str) -> bool:
    return any(c.isalnum() or c == "_" for c in unicodedata.normalize("NFKC", answer).casefold())


# ------------------------------------------------------------------------------------------------------------- checks


def check_line(line: bytes, before: int, after: int, folder: Path) -> str:
    """What CustomJSON does wrong about a file with this line between good ones, "" for nothing."""
    path, good, number = folder / "own.jsonl", json.dumps(GOOD).encode(), before + 1
    path.write_bytes(b"\n".join([good] * before + [line] + [good] * after) + b"\n")
    want, row = line_fault(line, number)
    if want == "empty" and before + after == 0:
        want = "no rows"
    try:
        task = CustomJSON(path)
        rows = list(task)
    except UserError as e:
        start = f"{path} has no rows" if want == "no rows" else f"{path}:{number}: "
        said = str(e)
        if want in ("", "empty"):
            return f"refused: {said}"
        if not said.startswith(start) or len(said.splitlines()) != 1 or len(said) > len(start) + LONGEST_LINE:
            return f"not one short line with file and number: {said[:2000]!r}"
        return ""
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:200]}"
    if want not in ("", "empty"):
        return f"loaded, in spite of its {want}"
    if len(rows) != before + after + (want == ""):
        return f"{len(rows)} rows of {before} + 1 + {after} lines"
    if want == "" and (rows[before]["messages"] != row["messages"] or rows[-1 - after] is not rows[before]):
        return "loaded as another row"
    if want == "" and "answer" in row and not all(task.evaluate(rows[before], a) for a in rows[before]["answer"]):
        return "its own answer is graded as wrong"
    return ""


class Rows(Task):
    """Any rows at all as a task."""

    def __init__(self, rows: list[Any]) -> None:
        super().__init__()
        self.rows = rows

    def num_examples(self) -> int:
        return len(self.rows)

    def get_example(self, index: int) -> Any:
        return self.rows[index]


def check_loader(rows: list[Any], rng: random.Random) -> str:
    """What the conversation loader does wrong about a task of these rows (and a good one), "" for nothing."""
    rows = [*rows, GOOD]
    T, B, workers = rng.choice([32, 64, 300]), rng.choice([1, 4]), rng.choice([0, 2])
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            with conversation_loader(Rows(rows), byte_tokenizer(), B, T, epochs=1, seed=rng.randrange(9),
                                     workers=workers) as loader:
                for batch in loader:
                    if batch.inputs.shape != (B, T) or batch.targets.shape != (B, T):
                        return f"a batch of {tuple(batch.inputs.shape)}"
                counts = dict(loader.counts)
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:500]}"
    malformed = sum(fault(row, to_learn=False) != "" for row in rows)
    if counts["documents"] + counts["skipped"] + counts["malformed"] != len(rows):
        return f"{len(rows)} rows became {counts}"
    if counts["malformed"] != malformed:
        return f"{counts['malformed']} rows are called malformed, {malformed} are"
    lines = said.getvalue().splitlines()
    named = [re.match(r"note: left out.*?: Rows (\d+): \S", line) for line in lines]  # the first of each kind
    short = len(set(lines)) == len(lines) and max(map(len, lines), default=0) <= LONGEST_LINE
    right = all(m and fault(rows[int(m[1])], to_learn=False) for m in named)
    if bool(lines) != bool(malformed) or not short or not right:
        return f"{malformed} malformed rows, and said was {said.getvalue()[:2000]!r}"
    return ""


def check_conversations(case: tuple[int, int, int]) -> list[str]:
    """`count` random conversations, `(seed, number, count)`: a line for each thing that went wrong."""
    seed, number, count = case
    rng = random.Random(f"conversations {seed} {number}")
    found = []
    rows = [random_row(rng) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        for i, row in enumerate(rows):
            line = random_line(rng, row)
            problem = check_line(line, rng.randrange(3), rng.randrange(3), Path(folder))
            if problem:
                found.append(f"line {number}/{i} of seed {seed}, {line[:300]!r}: {problem}")
    problem = check_loader(rows, rng)
    if problem:
        found.append(f"task {number} of seed {seed}: {problem}")
    return found


def cases(n: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """`n` conversations as the cases of `check_conversations`: each is another task for the loader."""
    return [(seed, i, min(TASK_ROWS, n - begin)) for i, begin in enumerate(range(0, n, TASK_ROWS))]


def run_fuzz(n: int, seed: int = 0) -> list[str]:
    """What went wrong over `n` random conversations, a line each; [] is wanted."""
    return [line for case in cases(n, seed) for line in check_conversations(case)]
