"""Checkpoints: one self-contained directory a run, every byte verified, no pickle.

    base_checkpoints/d4/
      tokenizer/                      the tokenizer that the run was trained with
      log.jsonl                       its losses, a line each
      model_000500.safetensors
      optim_000500_rank0.safetensors  one a rank: the part of the optimizer's state that it keeps
      meta_000500.json                what the run needs to go on, the SHA-256 of every file above and its own

`meta` is written last: a step without a valid one does not exist. Loading refuses a file whose hash differs. What N
ranks saved, any other number can load: the parts of the optimizer's state are put together and cut anew. Ranks on
several machines must have the directory in common. The hashes find damage; they are no signature: whoever can write
the directory can make a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nanochat.common import UserError, check_disk, get_base_dir, print0, resolve_dtype
from nanochat.files import atomic_write, fsync_file, make_dirs, remove_files, sha256_file
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import merge_state_dicts
from nanochat.ranks import all_or_none, gather_texts, on_rank0, rank_and_world
from nanochat.tensor_file import read_tensors, tensor_bytes, write_tensors
from nanochat.tokenizer import CONFIG_FILE, RANKS_FILE, RustBPETokenizer

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

LOG = "log.jsonl"
_OWN_HASH = "meta_sha256"  # the last key of a meta file: of the text without it
_SPARE = 1 << 20  # bytes of the disk beyond the tensors: meta, tokenizer, what the file system needs


def render_meta(meta: dict[str, Any]) -> str:
    """The text of a meta file, which ends in its own hash. `parse_meta` takes nothing but what this writes."""
    own = hashlib.sha256(json.dumps(meta, indent=1, allow_nan=False).encode("utf-8")).hexdigest()
    return json.dumps({**meta, _OWN_HASH: own}, indent=1, allow_nan=False) + "\n"


def parse_meta(text: str) -> dict[str, Any]:
    """The inverse; a ValueError where even one byte is not as it was written."""
    try:
        meta = json.loads(text)
        if not isinstance(meta, dict) or not isinstance(meta.pop(_OWN_HASH, None), str):
            raise ValueError("it holds no hash of its own")
        if render_meta(meta) != text:
            raise ValueError("its text does not have the SHA-256 that stands in it")
    except (RecursionError, AttributeError, TypeError) as e:  # nested without end
        raise ValueError(type(e).__name__) from e
    return meta


def check_room(directory: Path, model_data: dict[str, Tensor], optimizer_data: dict[str, Tensor] | None) -> None:
    """Refuse a save for which the disk has no room; every rank must call this, for what they all will write."""
    rank, _ = rank_and_world()
    mine = tensor_bytes(optimizer_data or {}) + (tensor_bytes(model_data) + _SPARE if rank == 0 else 0)
    needed = sum(map(int, gather_texts(str(mine))))
    on_rank0(lambda: check_disk(directory, needed, f"a checkpoint in {directory}"))


def save_checkpoint(
    directory: str | Path,
    step: int,
    model_data: dict[str, Tensor],
    optimizer_data: dict[str, Tensor] | None,
    meta_data: dict[str, Any],
    *,
    tokenizer: RustBPETokenizer,
    rng: dict[str, str] | None = None,
    keep: int = 0,
) -> None:
    """Write a step; every rank must call this. `meta_data` must be JSON; `step`, the tokenizer's hash, the random
    states `rng` of all ranks and the files' hashes are added to it. Then all but the last `keep` steps go (0: none).

    Each rank writes its own `optimizer_data`, rank 0 all the rest. If any write fails, all ranks fail, and the step
    does not exist; those before it do. (Should only the removal of old steps fail, all fail too, but it does.)
    """
    directory, (rank, _) = Path(directory), rank_and_world()
    files: dict[str, str] = {}

    def prepare() -> dict[str, str]:
        make_dirs(directory)
        # A step that is there already must not be one of old and new files, not for a moment.
        remove_files(directory, [name for name in [_meta_name(step)] if (directory / name).exists()])
        return _keep_tokenizer(directory, tokenizer)

    check_room(directory, model_data, optimizer_data)
    tokenizer_files = on_rank0(prepare)
    with all_or_none(f"saving step {step}"):
        if rank == 0:
            name = f"model_{step:06d}.safetensors"
            files[name] = write_tensors(directory / name, model_data)
        if optimizer_data is not None:
            name = f"optim_{step:06d}_rank{rank}.safetensors"
            files[name] = write_tensors(directory / name, optimizer_data)

    said = [json.loads(text) for text in gather_texts(json.dumps({"files": files, "rng": rng}))]
    files = tokenizer_files | {name: digest for one in said for name, digest in one["files"].items()}

    def commit() -> None:
        absent = [name for name in files if not (directory / name).is_file()]
        if absent and not absent[0].startswith("optim_"):
            raise UserError(f"{directory / absent[0]} was removed while step {step} was being saved")
        if absent:
            raise UserError(f"{absent[0]} was written by a rank on another machine, which has a {directory} of its "
                            "own: set NANOCHAT_BASE_DIR to a folder that all machines share")
        if (directory / LOG).exists():
            fsync_file(directory / LOG)  # what meta says of it must be on the disk before meta is
        meta = {**meta_data, "step": step, "tokenizer": tokenizer.fingerprint(), "files": files,
                "rng": [one["rng"] for one in said]}
        atomic_write(directory / _meta_name(step), render_meta(meta))
        rotate(directory, keep)

    on_rank0(commit)


def _meta_name(step: int) -> str:
    return f"meta_{step:06d}.json"


def _keep_tokenizer(directory: Path, tokenizer: RustBPETokenizer) -> dict[str, str]:
    """See to it that the run's tokenizer is there, and is what it should be; the hashes of its files."""
    files = {f"tokenizer/{name}": content for name, content in tokenizer.files().items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, content in files.items():  # those that a killed save has left half, or that were damaged since
        if not (directory / name).is_file() or sha256_file(directory / name) != digests[name]:
            atomic_write(directory / name, content)
    return digests


# --------------------------------------------------------------------------- removing


def _files_in(directory: Path) -> list[str]:
    """Names of files; no folders, which none of ours would be."""
    return sorted(entry.name for entry in os.scandir(directory) if not entry.is_dir(follow_symlinks=False))


def _data_of(directory: Path, steps: Iterable[int] | None = None) -> list[str]:
    """Names of the tensor files of these steps (None: of all)."""
    wanted = None if steps is None else set(steps)
    found = [(name, re.fullmatch(r"(?:model|optim)_(\d{6,})(?:_rank\d+)?\.safetensors", name))
             for name in _files_in(directory)]
    return [name for name, m in found if m and (wanted is None or int(m[1]) in wanted)]


def rotate(directory: Path, keep: int) -> None:
    """Remove all but the last `keep` steps (0: none). Metas first: what is removed half-way is no checkpoint."""
    old = saved_steps(directory)[:-keep] if keep > 0 else []
    remove_files(directory, map(_meta_name, old))
    remove_files(directory, _data_of(directory, old) if old else [])


def sweep(directory: Path) -> None:
    """Remove what killed saves and removals have left: temporary files, and tensors of steps that do not exist.

    For the one who holds the run's lock and has not begun to save. Nothing is removed that any checkpoint needs.
    """
    if not directory.is_dir():
        return
    needed = set(_data_of(directory, saved_steps(directory)))
    tokenizer = directory / "tokenizer"
    for folder in (directory, tokenizer) if tokenizer.is_dir() and not tokenizer.is_symlink() else (directory,):
        left = [n for n in _files_in(folder) if re.fullmatch(r"\.(meta|model|optim|log|tokenizer)\S*\.tmp", n)]
        remove_files(folder, [*left, *(n for n in _data_of(folder) if n not in needed)])


def delete_checkpoints(directory: str | Path) -> None:
    """Forget a run: metas first, so that what is left half-way through is no checkpoint."""
    directory = Path(directory)
    if not directory.is_dir():
        return
    remove_files(directory, map(_meta_name, saved_steps(directory)))
    remove_files(directory, [*_data_of(directory), LOG])
    if (directory / "tokenizer").is_symlink():
        remove_files(directory, ["tokenizer"])  # what it leads to is not ours
    elif (directory / "tokenizer").is_dir():
        remove_files(directory / "tokenizer", [RANKS_FILE, CONFIG_FILE])
        with suppress(OSError):  # somebody's own files are in it
            (directory / "tokenizer").rmdir()


# --------------------------------------------------------------------------- loading


# The types of what is in meta, where it is there: its hash only says that nobody has changed it since.
_FIELDS: dict[str, tuple[type, ...]] = {
    "step": (int,), "files": (dict,), "tokenizer": (str,), "model_config": (dict,), "config": (dict,), "state": (dict,),
    "parent": (dict, type(None)), "log": (dict, type(None)), "rng": (list,)}
_NAME = r"tokenizer/\w[\w.-]*|model_[0-9]{6,}\.safetensors|optim_[0-9]{6,}_rank[0-9]+\.safetensors"


def _check_fields(meta: dict[str, Any], step: int) -> None:
    """A ValueError for what no save can have written."""
    for name, types in _FIELDS.items():
        if name in meta and type(meta[name]) not in types:  # not isinstance: True is no step
            raise ValueError(f"{name} is {str(meta[name])[:40]!r}")
    if meta["step"] != step:
        raise ValueError(f"it is that of step {meta['step']}")
    for name, digest in meta["files"].items():
        if not re.fullmatch(_NAME, name) or not isinstance(digest, str):
            raise ValueError(f"it names {name!r}")
    log = {"bytes": 0, "sha256": ""} if meta.get("log") is None else meta["log"]
    if type(log.get("bytes")) is not int or log["bytes"] < 0 or not isinstance(log.get("sha256"), str):
        raise ValueError(f"log is {log}")


def load_meta(directory: str | Path, step: int, *needed: str) -> dict[str, Any]:
    """The JSON of a step, verified by its own hash, without touching its tensors. `needed`: fields it must have too."""
    path = Path(directory) / _meta_name(step)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # but a pipe, say, which would never end
        meta = parse_meta(path.read_bytes().decode("utf-8"))
        absent = [name for name in ("step", "files", "tokenizer", *needed) if name not in meta]
        if absent:
            raise ValueError(f"{absent[0]!r} is missing")
        _check_fields(meta, step)
    except FileNotFoundError:
        have = ", ".join(map(str, saved_steps(directory))) or "none"
        raise UserError(f"{directory} has no step {step} (steps there: {have})") from None
    except (OSError, ValueError) as e:
        raise UserError(f"{path} is damaged ({e}); delete it to go on from the step before (there: "
                        f"{', '.join(map(str, saved_steps(directory)))})") from None
    return meta


def verify(directory: Path, meta: dict[str, Any], *kinds: str) -> list[Path]:
    """The files of a checkpoint whose names start with one of `kinds`, after the hashes of all were compared."""
    paths = []
    for kind in kinds:
        names = [name for name in meta["files"] if name.startswith(kind)]
        if not names:
            raise UserError(f"step {meta['step']} of {directory} was saved without {kind}* files")
        for name in names:
            path = directory / name
            try:
                if path.exists() and not path.is_file():
                    raise UserError(f"checkpoint file {path} is no file")  # but a pipe, say, which would never end
                intact = sha256_file(path) == meta["files"][name]
            except OSError as e:
                raise UserError(f"checkpoint file {path} is missing or cannot be read ({e.strerror})") from None
            if not intact:
                raise UserError(f"checkpoint file {path} is damaged: its SHA-256 is not the one recorded in "
                                f"{_meta_name(meta['step'])}; delete that one to go on from the step before")
            paths.append(path)
    return paths


def load_checkpoint(
    directory: str | Path, step: int, device: torch.device, load_optimizer: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, Any]]:
    """`(model_data, optimizer_data or None, meta)`, every file verified before any is read, the tokenizer's too.

    `optimizer_data` is the whole state, of however many ranks saved it, on the CPU: a rank will take its part of it.
    """
    directory = Path(directory)
    meta = load_meta(directory, step)
    optim = [f"optim_{step:06d}_rank"] if load_optimizer else []
    paths = verify(directory, meta, "tokenizer/", f"model_{step:06d}.", *optim)
    optimizer_data = None
    if load_optimizer:
        parts = sorted((path for path in paths if path.name.startswith("optim_")), key=_rank_of)
        optimizer_data = merge_state_dicts([read_tensors(path) for path in parts])
    (model_path,) = (path for path in paths if path.name.startswith("model_"))
    return read_tensors(model_path, device), optimizer_data, meta


def _rank_of(path: Path) -> int:
    """`optim_000500_rank12.safetensors -> 12`: by number, for by name 12 comes before 2."""
    return int(path.stem.rpartition("_rank")[2])


def load_tokenizer(directory: str | Path, meta: dict[str, Any]) -> RustBPETokenizer:
    """The tokenizer that lies beside a checkpoint, if it is the one that the step of `meta` was trained with."""
    tokenizer = RustBPETokenizer.from_directory(Path(directory) / "tokenizer")
    if tokenizer.fingerprint() != meta["tokenizer"]:
        raise UserError(f"{directory}/tokenizer is not the tokenizer that step {meta['step']} was trained with")
    return tokenizer


def check_weights(model: GPT, model_data: dict[str, Tensor], where: str | Path) -> None:
    """Refuse weights that do not fit a model (which may be on the meta device); the first difference is named."""
    own = model.state_dict()
    for name in sorted(own.keys() | model_data.keys()):
        shapes = [tuple(d[name].shape) if name in d else "absent" for d in (own, model_data)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{where} does not fit the model: {name} is {shapes[1]} there, {shapes[0]} here")
        if not model_data[name].is_floating_point():
            raise UserError(f"{where} does not fit the model: {name} is {model_data[name].dtype} there")


def load_weights(model: GPT, model_data: dict[str, Tensor], where: str | Path) -> None:
    """Copy saved weights into a model, strictly."""
    check_weights(model, model_data, where)
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
    tokenizer = load_tokenizer(directory, meta)
    config = model_config_of(meta, directory)
    if config.n_layer > len(model_data):  # before so many are made
        raise UserError(f"{directory} does not fit the model: {len(model_data)} tensors for {config.n_layer} layers")
    with torch.device("meta"):
        model = GPT(config)
    check_weights(model, model_data, directory)  # before anything of its size is allocated
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


def model_config_dict(model: GPT) -> dict[str, int]:
    """The model's configuration as JSON for meta."""
    return asdict(model.config)


def model_config_of(meta: dict[str, Any], where: str | Path) -> GPTConfig:
    """The inverse; settings that this version does not have, or that are impossible, are refused by name."""
    saved = meta.get("model_config")
    try:
        return GPTConfig(**saved)
    except (TypeError, ValueError, AssertionError) as e:
        raise UserError(f"{where} holds a model that this version cannot build ({e}): {saved}") from None
