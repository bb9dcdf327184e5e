"""Exports in large numbers of trials: texts and conversations through `transformers`, and kills at every I/O call.

    python -m tests.chaos --export-strings=20000 --export-conversations=1000

An export is a real one: a model with random weights and a tokenizer trained on hard strings, saved as a checkpoint and
written by `nanochat.export`. What `AutoTokenizer` makes of the directory must be what ours makes of the same text.
`python -m tests.export_trials BASE JOBS` is the process of `kill_exports`.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from nanochat.checkpoint_manager import SOURCES, model_config_dict, save_checkpoint
from nanochat.export import MARK, export_model, foreign
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer, pick_tokenizer_class
from tests import conversation_fuzz
from tests.helpers import TEXT
from tests.reference import splitter

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"sequence_len": 64, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32}

# ------------------------------------------------------------------------------------------------------ what to export


@cache
def hard_tokenizer(vocab_size: int = 1203) -> RustBPETokenizer:
    """One whose tokens are pieces of hard strings too."""
    texts = [*TEXT, *splitter.hard_strings(3000, "to train on")]
    return pick_tokenizer_class().train_from_iterator(iter(texts), vocab_size)


def random_model(vocab_size: int, seed: int = 0, **sizes: int) -> GPT:
    """A model none of whose tensors is zero or like another, whose logits reach the soft cap."""
    model = GPT(GPTConfig(**{**SIZES, **sizes}, vocab_size=vocab_size))
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (1.5 / p.shape[1] ** 0.5))
        model.lm_head.weight.mul_(8)
    return model.eval().requires_grad_(False)


def save(model: GPT, tokenizer: RustBPETokenizer, base: Path, source: str = "sft", step: int = 7,
         weights: dict[str, torch.Tensor] | None = None, **meta: Any) -> Path:
    """A checkpoint in a base directory; `weights`: others than the model's. Returns its directory."""
    directory = base / SOURCES[source] / "d2"
    meta = {"model_config": model_config_dict(model), "config": {"data": "pocket"}, "parent": None, **meta}
    save_checkpoint(directory, step, weights or model.state_dict(), None, meta, tokenizer=tokenizer)
    return directory


@contextmanager
def quiet_base(base: Path) -> Iterator[None]:
    """Work with a base directory, and say nothing."""
    with mock.patch.dict(os.environ, NANOCHAT_BASE_DIR=str(base)), open(os.devnull, "w", encoding="utf-8") as nowhere:
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield


@contextmanager
def exported_tokenizer() -> Iterator[tuple[RustBPETokenizer, Any]]:
    """Our tokenizer, and what `AutoTokenizer` makes of the export of a model with it."""
    from transformers import AutoTokenizer

    ours = hard_tokenizer()
    with tempfile.TemporaryDirectory() as folder, quiet_base(Path(folder)):
        save(random_model(ours.get_vocab_size()), ours, Path(folder))
        export_model(Path(folder) / "out", "sft")
        yield ours, AutoTokenizer.from_pretrained(Path(folder) / "out")


# ------------------------------------------------------------------------------------------- where the two must differ


def plain(text: str) -> str:
    """`text` without the names of special tokens, which `transformers` makes tokens of."""
    while any(name in text for name in SPECIAL_TOKENS):
        for name in SPECIAL_TOKENS:
            text = text.replace(name, "")
    return text


def joined(conversation: dict) -> dict:
    """The same with neighbouring parts of text made one: how `render_conversation` and the template read them."""
    result = copy.deepcopy(conversation)
    for message in result["messages"]:
        if isinstance(message["content"], str):
            continue
        parts = []
        for part in message["content"]:
            if part["type"] == "text" and parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += part["text"]
            else:
                parts.append(dict(part))
        message["content"] = parts
    return result


def refusal(conversation: dict) -> str | None:
    """What the template must complain about in a conversation that `render_conversation` can render."""
    for message in joined(conversation)["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part, following in zip(parts, [*parts[1:], None]):
            if any(name in part["text"] for name in SPECIAL_TOKENS):
                return "the name of a special token"
            before_output = part["type"] == "text" and following and following["type"] == "python_output"
            if before_output and part["text"][-1:] > "\x7f":
                return "beyond ASCII"
    return None


# ---------------------------------------------------------------------------------------------- texts, conversations


def check_text(ours: RustBPETokenizer, theirs: Any, text: str) -> str:
    """What differs, "" for nothing."""
    ids, made = ours.encode(text), theirs(text)["input_ids"]
    if made != ids:
        return f"{ascii(text)}: ids {made}, ours {ids}"
    if theirs.decode(made) != text:
        return f"{ascii(text)}: decoded to {ascii(theirs.decode(made))}"
    return ""


def string_trials(n: int, seed: int = 0, processes: int = 1) -> list[str]:
    """Texts whose ids are not ours after the export; they are cheap, and go through one process."""
    with exported_tokenizer() as (ours, theirs):
        texts = (plain(text) for text in splitter.hard_strings(n, f"export {seed}"))
        return [problem for text in texts if (problem := check_text(ours, theirs, text))]


def random_conversation(rng: random.Random) -> dict[str, Any]:
    """With tool parts, system messages and odd characters, at times one that a template must refuse."""
    row = conversation_fuzz.conversation(rng)

    def valid(text: str) -> str:  # lone surrogates: `tokenizers` takes none
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    for message in row["messages"]:
        content = message["content"]
        message["content"] = valid(content) if isinstance(content, str) else [
            {**part, "text": valid(part["text"])} for part in content]
    return {"messages": row["messages"][: rng.choice([*range(2, 8), None])]}  # some end with a question


def check_conversation(ours: RustBPETokenizer, theirs: Any, conversation: dict[str, Any]) -> tuple[str, bool]:
    """What differs of ids, mask, prompt and refusals, "" for nothing; and whether it was refused."""
    from jinja2.exceptions import TemplateError

    messages = conversation["messages"]
    ids, mask = ours.render_conversation(conversation, max_tokens=None)
    complaint = refusal(conversation)
    try:
        made = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True)
        prompt = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    except TemplateError as e:
        return f"refused: {e}" if complaint is None or complaint not in str(e) else "", True
    if complaint is not None:
        return f"not refused: {complaint}", False
    if made["input_ids"] != ids or made["assistant_masks"] != mask:
        return "other ids" if made["input_ids"] != ids else "another mask", False
    return "another prompt" if prompt != ours.render_for_completion(conversation) else "", False


@dataclass
class Conversations:
    """What came of conversations: those rendered alike, those that both or the template rightly refused, failures."""

    alike: int = 0
    refused: int = 0
    found: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.alike:,} rendered alike, {self.refused:,} rightly refused"


def conversation_trials(n: int, seed: int = 0, processes: int = 1) -> Conversations:
    """Conversations that the exported template does not render as we do; one process, as for texts."""
    outcome = Conversations()
    with exported_tokenizer() as (ours, theirs):
        for i in range(n):
            conversation = random_conversation(random.Random(f"export {seed} {i}"))
            problem, refused = check_conversation(ours, theirs, conversation)
            outcome.refused += refused and not problem
            outcome.alike += not refused and not problem
            if problem:
                outcome.found.append(f"conversation {i} of seed {seed}: {problem}: {ascii(conversation)[:300]}")
    return outcome


# --------------------------------------------------------------------------------------------------------------- kills

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "mkdir", "rmdir")


def at_call(number: int, act: Callable[[], None]) -> Callable[[], int]:
    """From now on, count the calls that change or sync files, and `act()` before number `number`. How many there were.

    What is returned also ends it.
    """
    real = {name: getattr(os, name) for name in CALLS}
    counter = itertools.count(1)
    seen = [0]

    def counted(name: str) -> Callable:
        def wrapper(*args: Any, **kw: Any) -> Any:
            seen[0] = next(counter)
            if seen[0] == number:
                act()
            return real[name](*args, **kw)

        return wrapper

    def end() -> int:
        for name in CALLS:
            setattr(os, name, real[name])
        return seen[0]

    for name in CALLS:
        setattr(os, name, counted(name))
    return end


def state_of(out: Path) -> str:
    """"absent", the step of a whole export, or what is wrong with it."""
    if not out.exists():
        return "absent"
    if not (out / MARK).is_file() or (name := foreign(out)):
        return f"broken: {sorted(p.name for p in out.iterdir())}"
    mark = json.loads((out / MARK).read_bytes())
    return f"broken: {name}" if not all((out / name).is_file() for name in mark["files"]) else f"step {mark['step']}"


def kill_everywhere(base: Path, out: Path, step: int, first: int, stride: int) -> Iterator[dict[str, Any]]:
    """Export again and again, SIGKILLed before call number `first`, and `stride` calls later each time, until it is
    done before that."""
    with quiet_base(base):
        for number in itertools.count(first, stride):
            if (pid := os.fork()) == 0:
                at_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
                export_model(out, "sft", step=step)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            rooms = [list(room.glob("old")) for room in out.parent.glob(f".{out.name}.*")]
            yield {"call": number, "status": status, "state": state_of(out), "rooms": len(rooms),
                   "aside": sum(map(len, rooms))}
            if status != -signal.SIGKILL:
                return


def kill_exports(base: Path, *jobs: tuple[Path, int, int, int]) -> list[list[dict[str, Any]]]:
    """`kill_everywhere` for each `(out, step, first, stride)`, in a process that has imported all and has no threads:
    `[[{"call": 1, "status": -9, "state": "absent", ...}, ...], ...]`."""
    command = [sys.executable, "-m", "tests.export_trials", str(base), json.dumps(jobs, default=str)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    outcome = [list(kill_everywhere(Path(sys.argv[1]), Path(out), *how)) for out, *how in json.loads(sys.argv[2])]
    print(json.dumps(outcome))
