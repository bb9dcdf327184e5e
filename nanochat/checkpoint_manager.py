"""Checkpoints: one self-contained directory a run, every byte verified, no pickle.

    base_checkpoints/d4/
      tokenizer/                      the tokenizer that the run was trained with
      model_000500.safetensors
      optim_000500_rank0.safetensors  one a rank: the part of the optimizer's state that it keeps
      meta_000500.json                what the run needs to go on, and the SHA-256 of every file above

`meta` is written last: a step without a valid one does not exist. Loading refuses a file whose hash differs. What N
ranks saved, any other number can load: the parts of the optimizer's state are put together and cut anew. Ranks on
several machines must have the directory in common.
"""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.common import UserError, atomic_write, fsync_dir, get_base_dir, print0, resolve_dtype, sha256_file
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import merge_state_dicts
from nanochat.ranks import all_or_none, gather_texts, on_rank0, rank_and_world
from nanochat.run import free_fields
from nanochat.tokenizer import RustBPETokenizer

SOURCES = {"base": "base_checkpoints", "mid": "mid_checkpoints", "sft": "chatsft_checkpoints",
           "rl": "chatrl_checkpoints"}
MADE_BY = {"base": "scripts.base_train", "mid": "scripts.mid_train", "sft": "scripts.chat_sft", "rl": "scripts.chat_rl"}


def checkpoint_root(source: str) -> Path:
    """`"mid" -> <base dir>/mid_checkpoints`."""
    if source not in SOURCES:
        raise UserError(f"--source={source} is unknown: choose one of {', '.join(SOURCES)}")
    return get_base_dir() / SOURCES[source]


# --------------------------------------------------------------------------- finding


def saved_steps(directory: str | Path) -> list[int]:
    """The committed steps in a checkpoint directory, ascending (by number, not by name)."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted(int(m[1]) for n in names if (m := re.fullmatch(r"meta_(\d{6,})\.json", n)))


def find_last_step(directory: str | Path) -> int:
    """The highest committed step."""
    steps = saved_steps(directory)
    if not steps:
        raise UserError(f"{directory} holds no checkpoint (no meta_*.json)")
    return steps[-1]


def find_largest_model(root: str | Path) -> str:
    """The model tag with the greatest depth (`d12` before `d4`); without such a tag, the one changed last."""
    root = Path(root)
    tags = [d for d in root.iterdir() if saved_steps(d)] if root.is_dir() else []
    if not tags:
        raise UserError(f"no checkpoint under {root}: train one first (bash speedrun.sh does it all)")
    deep = [(int(m[1]), d.name) for d in tags if (m := re.fullmatch(r"d(\d+)", d.name))]
    return max(deep)[1] if deep else max(tags, key=lambda d: d.stat().st_mtime).name


# --------------------------------------------------------------------------- saving


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write under a temporary name, fsync, rename. Returns the file's SHA-256."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        try:
            save_file({k: t.detach().contiguous().cpu() for k, t in tensors.items()}, temporary)
        except SafetensorError as e:
            if "os error 28" not in str(e):
                raise
            raise OSError(errno.ENOSPC, "no space left on device", str(path)) from e
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        digest = sha256_file(temporary)
        os.chmod(temporary, 0o644)  # safetensors makes 0600; a checkpoint is as readable as any other file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)
    return digest


def save_checkpoint(
    directory: str | Path,
    step: int,
    model_data: dict[str, Tensor],
    optimizer_data: dict[str, Tensor] | None,
    meta_data: dict[str, Any],
    *,
    tokenizer: RustBPETokenizer,
) -> None:
    """Write a step; every rank must call this. `meta_data` must be JSON; `step`, the tokenizer's hash and the files'
    hashes are added to it.

    Each rank writes its own `optimizer_data`, rank 0 all the rest. If any write fails, all ranks fail, and the step
    does not exist.
    """
    directory, (rank, _) = Path(directory), rank_and_world()
    files: dict[str, str] = {}
    with all_or_none(f"saving step {step}"):
        directory.mkdir(parents=True, exist_ok=True)  # on every rank: none waits for another to make it
        if rank == 0:
            if not (directory / "tokenizer").exists():
                tokenizer.save(directory / "tokenizer")
            files = {f"tokenizer/{p.name}": sha256_file(p) for p in sorted((directory / "tokenizer").iterdir())}
            name = f"model_{step:06d}.safetensors"
            files[name] = _write_tensors(directory / name, model_data)
        if optimizer_data is not None:
            name = f"optim_{step:06d}_rank{rank}.safetensors"
            files[name] = _write_tensors(directory / name, optimizer_data)

    files = {name: digest for text in gather_texts(json.dumps(files)) for name, digest in json.loads(text).items()}

    def commit() -> None:
        absent = [name for name in files if not (directory / name).is_file()]
        if absent:
            raise UserError(f"{absent[0]} was written by a rank on another machine, which has a {directory} of its "
                            "own: set NANOCHAT_BASE_DIR to a folder that all machines share")
        meta = {**meta_data, "step": step, "tokenizer": tokenizer.fingerprint(), "files": files}
        atomic_write(directory / f"meta_{step:06d}.json", json.dumps(meta, indent=1, allow_nan=False))

    on_rank0(commit)


def delete_checkpoints(directory: str | Path) -> None:
    """Forget a run: metas first, so that what is left half-way through is no checkpoint."""
    directory = Path(directory)
    for pattern in ("meta_*.json", "model_*.safetensors", "optim_*.safetensors", "log.jsonl", "tokenizer/*"):
        for path in directory.glob(pattern):
            path.unlink()
    if (directory / "tokenizer").is_dir():
        (directory / "tokenizer").rmdir()


# --------------------------------------------------------------------------- loading


def load_meta(directory: str | Path, step: int) -> dict[str, Any]:
    """The JSON of a step, without touching its tensors."""
    path = Path(directory) / f"meta_{step:06d}.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        have = ", ".join(map(str, saved_steps(directory))) or "none"
        raise UserError(f"{directory} has no step {step} (steps there: {have})") from None
    except ValueError as e:
        raise UserError(f"{path} is damaged ({e}): use another --step (there: {saved_steps(directory)}), or "
                        "delete it to go on from the step before") from None
    if meta.get("step") != step or "files" not in meta:
        raise UserError(f"{path} is not the meta file of step {step}")
    return meta


def _verified(directory: Path, meta: dict[str, Any], prefix: str) -> list[Path]:
    """The files of a checkpoint whose names start with `prefix`, after their hashes were compared."""
    paths = []
    for name, digest in meta["files"].items():
        if name.startswith(prefix):
            path = directory / name
            if not path.is_file():
                raise UserError(f"checkpoint file {path} is missing")
            if sha256_file(path) != digest:
                raise UserError(f"checkpoint file {path} is damaged: its SHA-256 is not the one recorded in meta")
            paths.append(path)
    if not paths:
        raise UserError(f"step {meta['step']} of {directory} was saved without {prefix}* files")
    return paths


def load_checkpoint(
    directory: str | Path, step: int, device: torch.device, load_optimizer: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, Any]]:
    """`(model_data, optimizer_data or None, meta)`, every file verified before it is read.

    `optimizer_data` is the whole state, of however many ranks saved it, on the CPU: a rank will take its part of it.
    """
    directory = Path(directory)
    meta = load_meta(directory, step)
    (model_path,) = _verified(directory, meta, "model_")
    optimizer_data = None
    if load_optimizer:
        paths = sorted(_verified(directory, meta, f"optim_{step:06d}_rank"), key=_rank_of)
        optimizer_data = merge_state_dicts([load_file(path) for path in paths])
    return load_file(model_path, device=str(device)), optimizer_data, meta


def _rank_of(path: Path) -> int:
    """`optim_000500_rank12.safetensors -> 12`: by number, for by name 12 comes before 2."""
    return int(path.stem.rpartition("_rank")[2])


def load_weights(model: GPT, model_data: dict[str, Tensor], where: str | Path) -> None:
    """Copy saved weights into a model, strictly; the first difference is named."""
    own = model.state_dict()
    for name in sorted(own.keys() | model_data.keys()):
        shapes = [tuple(d[name].shape) if name in d else "absent" for d in (own, model_data)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{where} does not fit the model: {name} is {shapes[1]} there, {shapes[0]} here")
    model.load_state_dict(model_data)


def build_model(
    directory: str | Path, step: int, device: torch.device, phase: Literal["train", "eval"],
    dtype: torch.dtype | None = None,
) -> tuple[GPT, RustBPETokenizer, dict[str, Any]]:
    """Model, tokenizer and meta of a saved step.

    `dtype` is the compute dtype (None: the device's default). For `phase="eval"` the weights are stored in it too,
    which halves what decoding must read; for `"train"` they stay float32.
    """
    model_data, _, meta = load_checkpoint(directory, step, device)
    _verified(Path(directory), meta, "tokenizer/")
    tokenizer = RustBPETokenizer.from_directory(Path(directory) / "tokenizer")
    if tokenizer.fingerprint() != meta["tokenizer"]:
        raise UserError(f"{directory}/tokenizer is not the tokenizer that step {step} was trained with")
    with torch.device("meta"):
        model = GPT(GPTConfig(**meta["model_config"]))
    model.to_empty(device=device)
    load_weights(model, model_data, directory)
    model.compute_dtype = dtype or resolve_dtype("auto", device.type)
    if phase == "eval":
        model.to(model.compute_dtype).eval().requires_grad_(False)
    model._grow_rotary(model.config.sequence_len)  # after any cast: angles stay float32
    return model, tokenizer, meta


def find_model(source: str, model_tag: str = "", step: int = -1) -> tuple[Path, int]:
    """The directory and the step of a stage's model: of `"sft"`, the largest model's last step."""
    root = checkpoint_root(source)
    if not root.is_dir():
        raise UserError(f"no {source} model under {get_base_dir()}: make one with `python -m {MADE_BY[source]}` "
                        "(bash speedrun.sh does it all)")
    tag = model_tag or find_largest_model(root)
    if not (root / tag).is_dir():
        raise UserError(f"there is no model '{tag}' in {root} (there: {', '.join(sorted(os.listdir(root)))})")
    return root / tag, step if step >= 0 else find_last_step(root / tag)


def load_model(
    source: str, device: torch.device, phase: Literal["train", "eval"], model_tag: str = "", step: int = -1,
    dtype: torch.dtype | None = None,
) -> tuple[GPT, RustBPETokenizer, dict[str, Any]]:
    """The model of a stage: `load_model("sft", device, "eval")` takes the largest model's last step."""
    directory, step = find_model(source, model_tag, step)
    print0(f"loading {directory}, step {step}")
    model, tokenizer, meta = build_model(directory, step, device, phase, dtype)
    meta["parent"] = {"source": source, "model_tag": directory.name, "step": step,
                      "sha256": meta["files"][f"model_{step:06d}.safetensors"]}
    return model, tokenizer, meta


# --------------------------------------------------------------------------- going on

def resume_step(
    directory: str | Path, config: dict[str, Any], parent: dict[str, Any] | None, *, resume: bool, overwrite: bool
) -> int | None:
    """Where a run in `directory` starts: the step to resume from, or None for a new run.

    A run that is there is never mixed with another: it is gone on with (`--resume`, same configuration and parent
    model), replaced (`--overwrite`; with both flags, only if it cannot be gone on with), or a `UserError` says so.
    """
    steps = saved_steps(directory)
    if not steps or (overwrite and not resume):
        delete_checkpoints(directory)
        return None
    if not resume:
        raise UserError(f"{directory} holds a run at step {steps[-1]}: --resume goes on with it, --overwrite replaces "
                        "it, --model_tag=NAME starts another beside it")
    meta = load_meta(directory, steps[-1])
    saved, now = {**meta["config"], "parent": meta["parent"]}, {**config, "parent": parent}
    differing = [f"{k}: {saved.get(k)!r} then, {now.get(k)!r} now" for k in sorted(saved.keys() | now.keys())
                 if k not in free_fields(config) and saved.get(k) != now.get(k)]
    if differing and overwrite:
        delete_checkpoints(directory)
        return None
    if differing:
        raise UserError(f"cannot resume {directory}, the configuration differs ({'; '.join(differing)}): "
                        "--overwrite starts anew, --model_tag=NAME starts another run beside it")
    return steps[-1]


def model_config_dict(model: GPT) -> dict[str, int]:
    """The model's configuration as JSON for meta."""
    return asdict(model.config)
