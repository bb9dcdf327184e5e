"""Export of a model to a directory that Hugging Face `transformers` (5 and later) loads as `NanoChatForCausalLM`.

    python -m nanochat.export --source=sft --out=FOLDER                       # the largest model's last step
    python -m nanochat.export --source=mid --model_tag=d20 --step=500 --dtype=bfloat16 --out=FOLDER

    model = AutoModelForCausalLM.from_pretrained("FOLDER")                    # the same logits as ours
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")                       # the same ids, with a chat template

Written: `model.safetensors`, `config.json`, `generation_config.json`, the tokenizer's three files (`tokenizer_json.py`
says where they must differ from ours), a model card `README.md` (`model_card.py`), and `nanochat_export.json`: the
SHA-256 of each file and of the checkpoint that they come from.

The checkpoint is verified first. Every tensor of ours has one place there, and what has none, or is missing, or has
another shape, is refused by name: weights of a model that `transformers` computes differently are never written. The
directory appears whole or not at all. One that holds anything is replaced only if every file in it is, by the hashes
of its `nanochat_export.json`, what an earlier export has written.

What is not the same there: calculator calls. `generate` writes a call and goes on; only our engine answers it.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nanochat import configurator
from nanochat.answer_settings import AnswerSettings
from nanochat.checkpoint_manager import find_model, load_checkpoint, load_tokenizer, model_config_of
from nanochat.common import UserError, check_disk, get_base_dir, print0
from nanochat.files import FULL, atomic_write, fsync_dir, make_dirs, sha256_file
from nanochat.gpt import LOGIT_CAP, GPTConfig
from nanochat.model_card import lineage, model_card
from nanochat.report import Report
from nanochat.tensor_file import tensor_bytes, write_tensors
from nanochat.tokenizer import RustBPETokenizer
from nanochat.tokenizer_json import export_tokenizer

MARK = "nanochat_export.json"  # what tells an export of ours from any other folder
WEIGHTS = "model.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SPARE = 64 << 20  # bytes of the disk beyond the weights: a tokenizer.json of 65 536 tokens has some megabytes

# ----------------------------------------------------------------------------------------------------------- weights


def their_names(config: GPTConfig) -> dict[str, str]:
    """Where each of our tensors goes: `{"transformer.wte.weight": "model.embed_tokens.weight", ...}`."""
    names = {"transformer.wte.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
    inside = {"attn.c_q": "self_attn.q_proj", "attn.c_k": "self_attn.k_proj", "attn.c_v": "self_attn.v_proj",
              "attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for i in range(config.n_layer):
        names |= {f"transformer.h.{i}.{ours}.weight": f"model.layers.{i}.{theirs}.weight"
                  for ours, theirs in inside.items()}
    return names


def their_shapes(config: GPTConfig) -> dict[str, tuple[int, int]]:
    """Every tensor that `NanoChatForCausalLM` has, and its shape: rows are outputs. (Norms have no weights there.)"""
    width, kv_width, vocab = config.n_embd, config.n_kv_head * config.head_dim, config.vocab_size
    shapes = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width)}
    for i in range(config.n_layer):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (rows, width)
                   for name, rows in (("q", width), ("k", kv_width), ("v", kv_width), ("o", width))}
        shapes |= {f"{layer}.mlp.fc1.weight": (4 * width, width), f"{layer}.mlp.fc2.weight": (width, 4 * width)}
    return shapes


def their_weights(weights: dict[str, Tensor], config: GPTConfig, where: str | Path) -> dict[str, Tensor]:
    """Our state dict as theirs: renamed, and without the rows that pad the vocabulary to a multiple of 64.

    `where` is named in the UserError that says which tensor does not fit, be it by its name, absence, shape or type.
    """
    names, shapes = their_names(config), their_shapes(config)
    padded = -(-config.vocab_size // 64) * 64
    for name in sorted(weights.keys() | names.keys()):
        if name not in names:
            raise UserError(f"{where} cannot be exported: transformers has no place for its tensor {name}")
        if name not in weights:
            raise UserError(f"{where} cannot be exported: the tensor {name} is missing")
        rows, columns = shapes[names[name]]
        shape = (padded if rows == config.vocab_size and ".h." not in name else rows, columns)
        if tuple(weights[name].shape) != shape:
            raise UserError(f"{where} cannot be exported: the tensor {name} has the shape "
                            f"{tuple(weights[name].shape)}, not {shape}")
        if not weights[name].is_floating_point():
            raise UserError(f"{where} cannot be exported: the tensor {name} is of type {weights[name].dtype}")
    made = {names[name]: tensor[: shapes[names[name]][0]] for name, tensor in weights.items()}
    different = {name for name in made.keys() | shapes.keys()
                 if name not in made or tuple(made[name].shape) != shapes.get(name)}
    if different or len(made) != len(weights):  # the two tables above do not agree: a bug of ours
        raise AssertionError(f"mapped wrongly: {sorted(different)}")
    return made


# ---------------------------------------------------------------------------------------------------------- settings


def config_json(config: GPTConfig, tokenizer: RustBPETokenizer, dtype: str) -> dict[str, Any]:
    """The content of `config.json`. All that has another default there, or might get one, is said."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "dtype": dtype,
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.sequence_len,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rms_norm_eps": torch.finfo(torch.float32).eps,  # what F.rms_norm takes, in bfloat16 too
        "hidden_act": "relu2",
        "final_logit_softcapping": LOGIT_CAP,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_cache": True,
        **_ends(tokenizer),
        # With an id here, the embedding of that token would never be trained there: what pads is <|bos|> (see
        # tokenizer_config.json), which is a token like others, and the generation config says so.
        "pad_token_id": None,
    }


def generation_config_json(config: GPTConfig, tokenizer: RustBPETokenizer) -> dict[str, Any]:
    """The content of `generation_config.json`: `generate` ends and samples as our engine and chat_cli do."""
    usual = AnswerSettings()
    return {**_ends(tokenizer), "pad_token_id": tokenizer.get_bos_token_id(), "do_sample": True,
            "temperature": usual.temperature, "top_k": min(usual.top_k, config.vocab_size),
            "max_new_tokens": min(usual.max_tokens, config.sequence_len)}


def _ends(tokenizer: RustBPETokenizer) -> dict[str, Any]:
    """A text begins with <|bos|> and ends with the answer, or where the model begins another text."""
    bos = tokenizer.get_bos_token_id()
    return {"bos_token_id": bos, "eos_token_id": [tokenizer.encode_special("<|assistant_end|>"), bos]}


# ----------------------------------------------------------------------------------------------- whole or not at all

_ROOM = ".exporting"  # ending of the folder beside the final one: in it the new export, and the old one for a moment


def foreign(folder: Path, *, verify: bool = True) -> str:
    """What is in a folder and not as an export of ours has written it: one name, "" if all is (or it is empty).

    Without `verify` only names are compared, no hashes.
    """
    there = {entry.name: entry for entry in os.scandir(folder)}
    if not there:
        return ""
    try:
        files = json.loads((folder / MARK).read_bytes())["files"]
        known = {MARK: None, **{str(name): str(digest) for name, digest in files.items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return min(there)
    for name, entry in sorted(there.items()):
        if name not in known or not entry.is_file(follow_symlinks=False):
            return name
        if verify and name != MARK and sha256_file(folder / name) != known[name]:
            return name
    return ""


def check_free(out: Path, *, verify: bool = True, now_at: Path | None = None) -> None:
    """Refuse a place for an export that holds anything but an earlier one. `now_at`: where that has been moved to."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file: name a folder")
    at = now_at or out
    if at.is_dir() and (name := foreign(at, verify=verify)):
        if (at / MARK).is_file():
            raise UserError(f"--out={out} holds an earlier export, but {name} in it is not what that has written: "
                            "move it away, or name another folder")
        raise UserError(f"--out={out} is not empty and no earlier export (it holds {name}): name another folder")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `out` at the end of the block, unless that raises.

    A folder that holds files cannot be renamed over: the earlier export goes out of the way first. A kill between these
    two renames leaves no `out`, and the next export puts the earlier one back before it does anything else.
    """
    make_dirs(out.parent)
    for left in out.parent.glob(f".{glob.escape(out.name)}.*{_ROOM}"):
        _settle_if_dead(left, out)
    room = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_ROOM, dir=out.parent))
    fd = -1
    try:
        fd = os.open(room, os.O_RDONLY)
        with suppress(OSError):  # not every file system can lock a folder: then nobody takes ours for dead either
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new, old = room / "new", room / "old"
        new.mkdir()
        yield new
        fsync_dir(room)
        if out.exists():
            os.rename(out, old)
            check_free(out, verify=False, now_at=old)  # nobody has put anything into it in the meantime
        os.rename(new, out)
        fsync_dir(out.parent)
    finally:
        try:
            _settle(room, out)
        finally:
            if fd >= 0:
                os.close(fd)


def _settle(room: Path, out: Path) -> None:
    """Remove a temporary folder; what had been taken out of the way goes back, if nothing has come to its place.

    Else it loses its name before the first of its files: what is called `old` is whole, whenever we are killed.
    """
    if (room / "old").is_dir():
        os.rename(room / "old", room / "gone" if out.exists() else out)
        fsync_dir(room)
        fsync_dir(out.parent)
    shutil.rmtree(room)


def _settle_if_dead(room: Path, out: Path) -> None:
    """The same for one that another process has left, if that does not live any more: its lock went with it."""
    try:
        fd = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # it was just removed, or is none of ours
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _settle(room, out)
    except OSError:
        pass
    finally:
        os.close(fd)


# ------------------------------------------------------------------------------------------------------------ export


def export_model(
    out: str | Path, source: str, model_tag: str = "", step: int = -1,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
) -> dict[str, int]:
    """Write the export of a stage's model to `out`; the names and sizes of its files.

    `dtype` is what the weights are stored in; "auto": as they are in the checkpoint.
    """
    out = Path(out).expanduser().resolve()
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"--dtype={dtype} is unknown: choose auto, {' or '.join(DTYPES)}")
    with _errors_named(out):
        check_free(out)
    directory, step = find_model(source, model_tag, step)
    print0(f"exporting {directory}, step {step}")
    tensors, _, meta = load_checkpoint(directory, step, torch.device("cpu"))
    tokenizer, config = load_tokenizer(directory, meta), model_config_of(meta, directory)
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise UserError(f"{directory} cannot be exported: its model has {config.vocab_size:,} ids, its tokenizer "
                        f"{tokenizer.get_vocab_size():,}")
    weights = their_weights(tensors, config, directory)
    if dtype == "auto":
        dtype = "bfloat16" if {t.dtype for t in weights.values()} == {torch.bfloat16} else "float32"
    weights = {name: tensor.to(DTYPES[dtype]) for name, tensor in weights.items()}
    check_disk(out.parent, tensor_bytes(weights) + SPARE, f"an export to {out}")
    stages = lineage(source, directory.name, meta)
    facts = {"parameters": sum(t.numel() for t in weights.values()), "dtype": dtype, **asdict(config)}
    card = model_card(stages, facts, Report(get_base_dir() / "report").read())
    settings = {"config.json": config_json(config, tokenizer, dtype),
                "generation_config.json": generation_config_json(config, tokenizer)}
    origin = {"source": source, "model_tag": directory.name, "step": step, "checkpoint_sha256": stages[-1].sha256,
              "tokenizer": meta["tokenizer"], "commit": stages[-1].commit}
    with _errors_named(out), replacing(out) as folder:
        export_tokenizer(tokenizer, folder)
        write_tensors(folder / WEIGHTS, weights, {"format": "pt"})
        for name, content in settings.items():
            atomic_write(folder / name, json.dumps(content, indent=2) + "\n")
        atomic_write(folder / "README.md", card)
        files = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        atomic_write(folder / MARK, json.dumps({**origin, "files": files}, indent=1) + "\n")
    return {path.name: path.stat().st_size for path in sorted(out.iterdir())}


@contextmanager
def _errors_named(out: Path) -> Iterator[None]:
    """What the file system refuses is one line; a full disk is told by `configurator.main`."""
    try:
        yield
    except OSError as e:
        if e.errno in FULL:
            raise
        raise UserError(f"cannot write --out={out} ({e.strerror or e}): name a folder where you can write") from e


@dataclass
class Config:
    """Export a model for Hugging Face transformers."""

    out: str = ""
    """The folder to write: new, empty, or an earlier export (which is replaced)."""
    source: str = "sft"
    """Which stage's model: base, mid, sft or rl."""
    model_tag: str = ""
    """Which model of that stage, e.g. d4 (empty: the largest)."""
    step: int = -1
    """Which saved step (-1: the last)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the weights are stored in (auto: as in the checkpoint, which is float32)."""


def main(config: Config) -> None:
    if not config.out:
        raise UserError("--out=FOLDER is missing: where should the model go?")
    files = export_model(config.out, config.source, config.model_tag, config.step, config.dtype)
    print0(f"{config.out}: " + ", ".join(f"{name} ({size:,} bytes)" for name, size in files.items()))
    print0(f"  model = transformers.AutoModelForCausalLM.from_pretrained({config.out!r})\n"
           f"  tokenizer = transformers.AutoTokenizer.from_pretrained({config.out!r})  # README.md there has the rest")


if __name__ == "__main__":
    configurator.main(main, Config)
