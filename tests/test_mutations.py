"""Files that are damaged by chance or made by an enemy: refused by name, in bounded time and memory, never executed.

An enemy can compute every hash, so most cases here have them right: what he wrote is then read, and must be refused for
what it is.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager as cm
from nanochat import resume, run
from nanochat.common import UserError
from nanochat.tensor_file import tensor_pieces
from nanochat.tokenizer import RustBPETokenizer, _fingerprint
from tests import mutations
from tests.helpers import byte_tokenizer, small_model
from tests.mutations import STEP
from tests.power_loss import CPU, Saved, below, plain

SECONDS = 60  # for one case, thousands of times what an honest one takes
MEMORY = 1 << 30  # bytes that one case may take beyond what the process has
MODEL, META = f"model_{STEP:06d}.safetensors", f"meta_{STEP:06d}.json"
OPTIM = f"optim_{STEP:06d}_rank0.safetensors"
RANKS, CONFIG = "tokenizer/tokenizer.tiktoken", "tokenizer/tokenizer_config.json"
NESTED = b"[" * 100_000 + b"]" * 100_000


def test_random_mutations_are_refused_by_name():
    assert mutations.mutation_trials(250, seed=1) == []


def test_an_undetected_mutation_is_seen(monkeypatch):
    """The trials are worth what they see: without hashes of the files, and where it fails by other errors."""
    monkeypatch.setattr(cm, "verify", lambda directory, meta, *kinds: [
        directory / name for kind in kinds for name in meta["files"] if name.startswith(kind)])
    found = "\n".join(mutations.mutation_trials(60, seed=2))
    assert "weights are used" in found or mutations.LOADED in found
    assert "no file is named" in found or "Error: " in found


def test_mutations_follow_from_the_seed(tmp_path):
    subject = mutations.Subject(tmp_path)
    draws = [subject.draw(mutations.random.Random(f"0-{i}")) for i in range(300)]
    assert draws == [subject.draw(mutations.random.Random(f"0-{i}")) for i in range(300)]
    said = {d.what.split(": ")[-1] for d in draws}
    assert said >= {*mutations.MUTATIONS} and any("swapped" in what for what in said)


# ----------------------------------------------------------------------------------------------- what an enemy writes


def forge(directory: Path, contents: dict[str, bytes] | None = None, drop: tuple[str, ...] = (), **fields: Any) -> None:
    """Other files and other fields of meta (`...`: none), and every hash as it should be."""
    meta = cm.load_meta(directory, STEP)
    for name, content in (contents or {}).items():
        (directory / name).write_bytes(content)
        meta["files"][name] = hashlib.sha256(content).hexdigest()
    for name in drop:
        del meta["files"][name]
    meta = {key: value for key, value in {**meta, **fields}.items() if value is not ...}
    (directory / META).write_text(cm.render_meta(meta), encoding="utf-8")


def pickle_that_runs(directory: Path) -> bytes:
    """Opcodes: whoever unpickles this makes the canary."""
    return f"cos\nsystem\n(S'touch {directory.parents[1] / 'CANARY'}'\ntR.".encode()


def torch_file(directory: Path) -> bytes:
    """The same, as `torch.save` would wrap it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        z.writestr("archive/data.pkl", pickle_that_runs(directory))
        z.writestr("archive/version", "3\n")
    return packed.getvalue()


def tensor_file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file, but as one likes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: list, begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def weights(**changes: torch.Tensor | None) -> bytes:
    """The honest file, but for some tensors (None: left out)."""
    honest = {**Saved.number(100 + STEP).model, **changes}
    return b"".join(tensor_pieces({name: t for name, t in honest.items() if t is not None}))


def forge_optimizer(directory: Path, **changes: torch.Tensor | None) -> None:
    """All of the optimizer's state as one rank would save it, but for some tensors (None: left out)."""
    honest = {**Saved.number(100 + STEP).optimizer, **changes}
    content = b"".join(tensor_pieces({name: t for name, t in honest.items() if t is not None}))
    forge(directory, {OPTIM: content}, drop=(OPTIM.replace("rank0", "rank1"),))


def forge_tokenizer(directory: Path, ranks: bytes | None = None, text: bytes | None = None, **fields: Any) -> None:
    """Other ranks, or other fields of the configuration, or another text for it."""
    config = json.loads((directory / CONFIG).read_bytes())
    config |= fields
    ranks = (directory / RANKS).read_bytes() if ranks is None else ranks
    try:
        own = _fingerprint(ranks.decode("ascii", errors="replace"), config["pattern"], config["special_tokens"])
    except (AttributeError, TypeError):
        own = config["sha256"]
    config["sha256"] = own
    text = json.dumps(config).encode("utf-8") if text is None else text
    forge(directory, {RANKS: ranks, CONFIG: text}, tokenizer=own)


def honest_ranks() -> list[tuple[bytes, int]]:
    return list(byte_tokenizer()._ranks)


def rank_lines(ranks: list[tuple[bytes, int]]) -> bytes:
    return "".join(f"{base64.b64encode(token).decode('ascii')} {rank}\n" for token, rank in ranks).encode("ascii")


def replace_by(make: Callable[[Path], None], name: str, directory: Path) -> None:
    """Something else where a file was."""
    path = directory / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def link_to(target: str, path: Path) -> None:
    path.symlink_to(target)


def folder_elsewhere(path: Path) -> None:
    """A tokenizer's folder that is somebody else's."""
    shutil.copytree(path.parents[2] / "honest" / "d1" / "tokenizer", path.parents[2] / "outside" / "tokenizer")
    path.symlink_to(path.parents[2] / "outside" / "tokenizer")


def raw_meta(text: bytes | Callable[[str], str], directory: Path) -> None:
    """A meta file of any text, or of its own text changed."""
    path = directory / META
    path.write_bytes(text if isinstance(text, bytes) else text(path.read_text(encoding="utf-8")).encode("utf-8"))


def named(name: str, directory: Path) -> None:
    """A file of another name in meta, with the hash of a file that is there outside of the folder."""
    files = cm.load_meta(directory, STEP)["files"]
    del files[MODEL]
    (directory.parents[1] / "outside" / "x").write_bytes((directory / MODEL).read_bytes())
    forge(directory, files={**files, name: hashlib.sha256((directory / MODEL).read_bytes()).hexdigest()})


def config_with(**changes: Any) -> dict[str, Any]:
    return {**asdict(plain()[2])["model_config"], **changes}


Forgery = Callable[[Path], Any]
MODELS: dict[str, Forgery] = {}  # whatever loads the model must refuse
OPTIMIZERS: dict[str, Forgery] = {}  # what resumes must refuse; a model alone may load
HARMLESS: dict[str, Forgery] = {}  # no error need be raised; but nothing runs, nothing is touched, nothing takes long
TOKENIZERS: dict[str, Forgery] = {}  # whatever loads the tokenizer must refuse

for what, content in {"a pickle": pickle_that_runs, "a torch file": torch_file}.items():
    MODELS[f"model is {what}"] = lambda d, content=content: forge(d, {MODEL: content(d)})
    OPTIMIZERS[f"optimizer is {what}"] = lambda d, content=content: forge(d, {OPTIM: content(d)})
    MODELS[f"model.pt, {what}, for the model"] = lambda d, content=content: forge(
        d, {f"model_{STEP:06d}.pt": content(d)}, drop=(MODEL,))
    MODELS[f"model.pt, {what}, beside the model"] = lambda d, content=content: forge(
        d, {f"model_{STEP:06d}.pt": content(d)})
    HARMLESS[f"model.pt, {what}, that meta does not name"] = lambda d, content=content: (
        d / f"model_{STEP:06d}.pt").write_bytes(content(d))
    MODELS[f"meta is {what}"] = lambda d, content=content: raw_meta(content(d), d)
    HARMLESS[f"log is {what}"] = lambda d, content=content: (
        (d / cm.LOG).write_bytes(content(d)),
        forge(d, log={"bytes": len(content(d)), "sha256": hashlib.sha256(content(d)).hexdigest()}))
    TOKENIZERS[f"ranks are {what}"] = lambda d, content=content: forge_tokenizer(d, ranks=content(d))
    TOKENIZERS[f"configuration is {what}"] = lambda d, content=content: forge_tokenizer(d, text=content(d))
    HARMLESS[f"tokenizer.pkl is {what}"] = lambda d, content=content: forge(d, {"tokenizer/tokenizer.pkl": content(d)})
    TOKENIZERS[f"tokenizer.pkl, {what}, for the tokenizer"] = lambda d, content=content: (
        forge(d, {"tokenizer/tokenizer.pkl": content(d)}, drop=(RANKS, CONFIG)),
        (d / RANKS).unlink(), (d / CONFIG).unlink())
TOKENIZERS["tokenizer.json with code for the tokenizer"] = lambda d: (
    forge(d, {"tokenizer/tokenizer.json": b'{"auto_map": {"AutoTokenizer": "evil--x.Evil"}}', "tokenizer/x.py": b"1/0"},
          drop=(RANKS, CONFIG)), (d / RANKS).unlink(), (d / CONFIG).unlink())

SHAPES = {name: list(t.shape) for name, t in plain()[0].items()}
for what, content in {
    "header of 2^63 bytes": tensor_file({}, length=2**63),
    "header longer than the file": tensor_file({}, length=10_000),
    "header of 99 MB that is not there": tensor_file({}, length=99_000_000),
    "no header": tensor_file(b""),
    "empty file": b"",
    "header nested without end": tensor_file(NESTED),
    "values nested without end": tensor_file(b'{"a":' * 100_000),
    "header is a list": tensor_file([1, 2]),
    "header is no UTF-8": tensor_file(b'{"\xff\xfe": 1}'),
    "offsets that overlap": tensor_file({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "offsets out of range": tensor_file({"a": entry([2], 0, 8)}, bytes(4)),
    "offsets of 2^62": tensor_file({"a": entry([2**60], 0, 2**62)}, bytes(8)),
    "offsets backwards": tensor_file({"a": entry([2], 8, 0)}, bytes(8)),
    "negative offsets": tensor_file({"a": entry([2], -8, 0)}, bytes(8)),
    "offsets with a hole": tensor_file({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "bytes after the last": tensor_file({"a": entry([1], 0, 4)}, bytes(4000)),
    "negative shape": tensor_file({"a": entry([-2, -1], 0, 8)}, bytes(8)),
    "shape beyond all numbers": tensor_file({"a": entry([2**63, 2], 0, 8)}, bytes(8)),
    "shape of text": tensor_file({"a": entry(["2"], 0, 8)}, bytes(8)),
    "unknown dtype": tensor_file({"a": entry([2], 0, 8, "P64")}, bytes(8)),
    "dtype of another size": tensor_file({"a": entry([2], 0, 8, "F64")}, bytes(8)),
    "a name twice": tensor_file(b'{"a":%b,"a":%b}' % ((json.dumps(entry([2], 0, 8)).encode(),) * 2), bytes(8)),
    "metadata that is no text": tensor_file({"__metadata__": {"a": [1]}, "a": entry([2], 0, 8)}, bytes(8)),
    "10,000 empty tensors": tensor_file({f"t{i}": entry([0], 0, 0) for i in range(10_000)}),
    "a dimension of nothing times 2^62": tensor_file({"a": entry([0, 2**62], 0, 0)}),
}.items():
    MODELS[f"model: {what}"] = lambda d, content=content: forge(d, {MODEL: content})
    OPTIMIZERS[f"optimizer: {what}"] = lambda d, content=content: forge(d, {OPTIM: content})
MODELS |= {
    "model: whole numbers of the right shapes": lambda d: forge(d, {MODEL: weights(**{
        name: torch.ones(shape, dtype=torch.int64) for name, shape in SHAPES.items()})}),
    "model: truth values of the right shape": lambda d: forge(d, {MODEL: weights(**{
        "lm_head.weight": torch.ones(SHAPES["lm_head.weight"], dtype=torch.bool)})}),
    "model: a tensor less": lambda d: forge(d, {MODEL: weights(**{"lm_head.weight": None})}),
    "model: a tensor more": lambda d: forge(d, {MODEL: weights(**{"__class__": torch.ones(1)})}),
    "model: shape turned over": lambda d: forge(d, {MODEL: weights(**{
        "lm_head.weight": torch.ones(SHAPES["lm_head.weight"][::-1])})}),
}
MOMENT = "transformer.wte.weight/exp_avg"
for what, changes in {
    "no steps": {"steps": None},
    "steps are many": {"steps": torch.ones(3, dtype=torch.int64)},
    "steps are none": {"steps": torch.ones(0, dtype=torch.int64)},
    "steps are no number": {"steps": torch.tensor(float("nan"))},
    "steps are infinite": {"steps": torch.tensor(float("inf"))},
    "a state less": {MOMENT: None},
    "a state more": {"evil": torch.ones(1)},
    "a state without dimensions": {MOMENT: torch.tensor(1.0)},
    "a state of other width": {MOMENT: torch.ones(320, 9)},
    "a state of whole numbers": {MOMENT: torch.ones(320, 8, dtype=torch.int64)},
}.items():
    OPTIMIZERS[f"optimizer: {what}"] = lambda d, changes=changes: forge_optimizer(d, **changes)
OPTIMIZERS["optimizer: a rank that is no number"] = lambda d: forge(
    d, {OPTIM.replace("rank0", "rankX"): (d / OPTIM).read_bytes()})
OPTIMIZERS["optimizer: two files of one rank"] = lambda d: forge(
    d, {OPTIM.replace("rank0", "rank00"): (d / OPTIM).read_bytes()})

for name in ("../../outside/x", "../model_000010.safetensors", "/etc/passwd", "tokenizer/../../x", "model_000010.\0",
             "", ".", "..", "a\\..\\b", "C:\\x", "tokenizer/", ".hidden", "model_000010.\n",
             "model_000010." + "x" * 300, "model_000010.\ud800"):
    MODELS[f"meta: a file named {ascii(name)[:40]}"] = partial(named, name)
MODELS |= {f"meta: {what}": partial(raw_meta, text) for what, text in {
    "nested without end": NESTED,
    "objects nested without end": b'{"a":' * 100_000,
    "empty": b"",
    "zeros": bytes(1000),
    "a number": b"5",
    "a number of 100,000 digits": b"9" * 100_000,
    "no UTF-8": b"\xff\xfe{}",
    "infinite step": lambda text: text.replace(f'"step": {STEP}', '"step": 1e999'),
    "step is NaN": lambda text: text.replace(f'"step": {STEP}', '"step": NaN'),
    "a key twice": lambda text: text.replace("{", '{"step": 3,', 1),
}.items()}
MODELS |= {f"meta: {what}": lambda d, fields=fields: forge(d, **fields) for what, fields in {
    **{f"files is {ascii(v)[:30]}": {"files": v} for v in (
        [MODEL, OPTIM, RANKS, CONFIG], MODEL, None, 5, {}, True, {MODEL: 5, OPTIM: None, RANKS: [], CONFIG: {}})},
    "files of wrong hashes": {"files": dict.fromkeys((MODEL, OPTIM, RANKS, CONFIG), "0" * 64)},
    "no files": {"files": ...},
    **{f"step is {v!r}": {"step": v} for v in ("10", True, None, [10], -10, 10.5, 2**70)},
    "no step": {"step": ...},
    **{f"model_config is {ascii(v)[:20]}": {"model_config": v} for v in (None, 5, "x" * 99, [1], {}, [["n_layer", 1]])},
    "no model_config": {"model_config": ...},
    "model_config of unknown keys": {"model_config": config_with(evil=1)},
    **{f"model_config: {key}={value!r}": {"model_config": config_with(**{key: value})}
       for key in ("n_layer", "n_embd", "n_head", "vocab_size", "sequence_len")
       for value in (-1, 0, "1", 1.5, None, [8], 10**9, 2**62, 10**40)},
    "model_config: sequence_len=True": {"model_config": config_with(sequence_len=True)},
    **{f"tokenizer is {v!r}": {"tokenizer": v} for v in (None, 5, "", ["a"])},
    "no tokenizer": {"tokenizer": ...},
}.items()}
OPTIMIZERS |= {f"meta: {what}": lambda d, fields=fields: forge(d, **fields) for what, fields in {
    **{f"config is {v!r}": {"config": v} for v in (None, 5, "matrix_lr", [1], {}, {"evil": 1})},
    "no config": {"config": ...},
    **{f"{name} is {v!r}": {name: v} for name in ("state", "parent") for v in (5, "x", [1], {"evil": 1})},
    **{f"no {name}": {name: ...} for name in ("state", "parent", "rng", "log")},
    "state is None": {"state": None},
    **{f"rng is {ascii(v)[:50]}": {"rng": v} for v in (
        5, "x", {"python": "x"}, [5], ["x"], [{"python": "x", "numpy": "x", "torch": "x"}],
        [{"python": "[3,", "numpy": "[", "torch": "!"}], [{"python": 5, "numpy": 5, "torch": 5}],
        [{"python": '[3, "AAAA", 5, null]', "numpy": '["MT19937", "AAAA", 5, 0, 0.0]', "torch": "AAAA"}],
        [{"python": "[" * 100_000, "numpy": "[" * 100_000, "torch": ""}])},
    **{f"log is {v!r}": {"log": v} for v in (
        5, "x", [1], {}, {"bytes": "5", "sha256": ""}, {"bytes": 5}, {"bytes": 2**62, "sha256": "0" * 64},
        {"bytes": -5, "sha256": "0" * 64}, {"bytes": 5.5, "sha256": "0" * 64}, {"bytes": 5, "sha256": 5})},
}.items()}
HARMLESS |= {
    "meta: a hundred thousand keys": lambda d: forge(d, **{f"k{i}": i for i in range(100_000)}),
    "meta: a value of 30 MB": lambda d: forge(d, evil="x" * 30_000_000),
    "meta: nested 300 deep": lambda d: forge(d, evil=json.loads("[" * 300 + "]" * 300)),
    "optimizer: of one rank": forge_optimizer,
    "optimizer: infinite numbers": lambda d: forge_optimizer(d, **{MOMENT: torch.full((320, 8), float("inf"))}),
    "rng of a rank is empty": lambda d: forge(d, rng=[{}]),
}

TOKENIZERS |= {f"configuration: {what}": lambda d, fields=fields: forge_tokenizer(d, **fields) for what, fields in {
    **{f"pattern is {ascii(v)[:30]}": {"pattern": v} for v in (
        None, 5, ["a"], {}, "(", "(?<=a+)b(", "\ud800", "(" * 10_000 + ")" * 10_000,
        "(?:(?:(?:a{1000}){1000}){1000}){1000}")},
    **{f"special_tokens is {ascii(v)[:50]}": {"special_tokens": v} for v in (
        None, 5, [], ["<|bos|>"], "x", {}, {"<|bos|>": "256"}, {"<|bos|>": None}, {"<|bos|>": 256.5},
        {"<|bos|>": -1}, {"<|bos|>": 0}, {"<|bos|>": 2**40}, {"<|bos|>": 2**70}, {"<|bos|>": True},
        {"<|bos|>": [256]}, {"evil": 256}, {"<|bos|>": 256, "evil": 256}, {"<|bos|>": 10**9})},
    **{f"trainer is {v!r}": {"trainer": v} for v in (5, ["x"], {"a": 1})},
}.items()}
TOKENIZERS |= {f"configuration: {what}": lambda d, text=text: forge_tokenizer(d, text=text) for what, text in {
    "nested without end": NESTED, "a list": b"[]", "null": b"null", "empty": b"", "no UTF-8": b"\xff\xfe\xfd",
    "a number of 100,000 digits": b'{"pattern": ' + b"9" * 100_000 + b"}"}.items()}
TOKENIZERS |= {f"ranks: {what}": lambda d, make=make: forge_tokenizer(d, ranks=make(honest_ranks())) for what, make in {
    "a rank twice": lambda ranks: rank_lines([*ranks[:-1], (b"zz", 3)]),
    "a token twice": lambda ranks: rank_lines([*ranks, (ranks[5][0], len(ranks))]),
    "negative": lambda ranks: rank_lines([*ranks[:-1], (b"zz", -1)]),
    "beyond 32 bits": lambda ranks: rank_lines([*ranks[:-1], (b"zz", 2**33)]),
    "a gap": lambda ranks: rank_lines([(token, rank if rank < 9 else rank + 1) for token, rank in ranks]),
    "no bytes": lambda ranks: rank_lines(ranks[100:]),
    "none": lambda ranks: b"",
    "an empty token": lambda ranks: rank_lines([*ranks[:-1], (b"", ranks[-1][1])]),
    "no base64": lambda ranks: rank_lines(ranks).replace(b"AA==", b"!!!", 1),
    "no number": lambda ranks: rank_lines(ranks).replace(b" 17\n", b" x\n"),
    "a number of 10,000 digits": lambda ranks: rank_lines(ranks).replace(b" 17\n", b" 1" + b"7" * 10_000 + b"\n"),
    "three columns": lambda ranks: rank_lines(ranks).replace(b" 17\n", b" 17 18\n"),
    "an empty line": lambda ranks: rank_lines(ranks).replace(b" 17\n", b" 17\n\n"),
    "no ASCII": lambda ranks: rank_lines(ranks) + b"\xff\xff 256\n",
}.items()}

STRANGE = {"a pipe": os.mkfifo, "a folder": Path.mkdir} | {
    f"a link to {target}": partial(link_to, target) for target in ("/etc/passwd", "/dev/zero", ".", "nothing")}
for what, make in STRANGE.items():
    for name in (MODEL, META, RANKS, CONFIG):
        MODELS[f"{name} is {what}"] = partial(replace_by, make, name)
    OPTIMIZERS[f"{OPTIM} is {what}"] = partial(replace_by, make, OPTIM)
    where = HARMLESS if what == "a link to nothing" else OPTIMIZERS  # a log that is gone is begun anew
    where[f"log is {what}"] = partial(replace_by, make, cm.LOG)

WAYS = ("tokenizer", "model", "resume")


def cases() -> list:
    """Forgery, and which ways of loading must refuse it (the others may); by name."""
    groups = ((MODELS, ("model", "resume")), (OPTIMIZERS, ("resume",)), (TOKENIZERS, ("tokenizer", "model")),
              (HARMLESS, ()))
    return [pytest.param(make, ways, id=name)
            for group, ways in groups for name, make in group.items()]


# ----------------------------------------------------------------------------------------------- a victim that loads it


@dataclass
class Watch:
    """What this process opens to write, renames or removes outside of one folder, and by what names it opens files."""

    folder: str = ""
    seen: list[str] | None = None

    def __call__(self, event: str, args: tuple) -> None:
        if self.seen is None:
            return
        if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"):
            self.seen.append(f"{event} {args}")
        paths = args[:2] if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate") else ()
        if event == "open" and isinstance(args[0], (str, bytes)):
            name = os.fsdecode(args[0])
            written = bool(args[2] & (os.O_ACCMODE | os.O_CREAT | os.O_TRUNC)) and name != os.devnull
            paths = (os.path.realpath(name),) if written else (name,) if ".." in name or "/outside" in name else ()
        paths = [os.fsdecode(path) for path in paths if isinstance(path, (str, bytes))]
        self.seen += [f"{event} {path}" for path in paths if not below(self.folder, path)]


WATCH = Watch()


def prepare_victim() -> None:
    """In the worker: bounded memory, watched, and no fsyncs, which are not asked about here."""
    plain()
    os.fsync = lambda fd: None
    with open("/proc/self/statm", encoding="utf-8") as f:
        has = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, has + MEMORY))
    sys.addaudithook(WATCH)


def load_model(directory: Path) -> None:
    cm.load_model("base", CPU, "eval", directory.name, STEP)


def load_tokenizer(directory: Path) -> None:
    tokenizer = RustBPETokenizer.from_directory(directory / "tokenizer")
    tokenizer.encode("one 12 two\n")
    tokenizer.get_bos_token_id()


def resume_run(directory: Path) -> None:
    """As `run_training` does it; `train` would then read the loader's state and draw the first batch."""
    model = small_model(byte_tokenizer(), n_layer=1, n_embd=8, n_head=1, n_kv_head=1, sequence_len=8)
    optimizer = model.setup_optimizers()
    with run.RunLock(directory):
        step, _ = resume.resume_step(directory, plain()[2], resume=True, overwrite=False)
        _, meta = resume.restore(directory, step, model, optimizer)
        run.MetricsLog(directory / cm.LOG, meta["log"])


def victim(directory: Path) -> tuple[dict[str, str], list[str]]:
    """What comes of loading a folder in each way ("": it loads, "refused", or an error); what it should not touch."""
    os.environ["NANOCHAT_BASE_DIR"] = str(directory.parents[1])
    os.chdir(directory.parents[1])
    said = {}
    WATCH.folder, WATCH.seen = str(directory), []
    for way, load in zip(WAYS, (load_tokenizer, load_model, resume_run), strict=True):
        try:
            load(directory)
            said[way] = ""
        except UserError:
            said[way] = "refused"
        except BaseException as e:
            said[way] = f"{type(e).__name__}: {str(e)[:300]}"
    seen, WATCH.seen = WATCH.seen, None
    return said, seen


class Victim:
    """A process that loads one folder after another; a new one when it took too long."""

    def __init__(self) -> None:
        self.pool: Any = None

    def load(self, directory: Path) -> tuple[dict[str, str], list[str]]:
        if self.pool is None:  # not forked: torch and tiktoken have threads
            self.pool = multiprocessing.get_context("spawn").Pool(1, prepare_victim)
            self.pool.apply_async(os.getpid).get(60)
        try:
            return self.pool.apply_async(victim, (directory,)).get(SECONDS)
        except multiprocessing.TimeoutError:
            self.close()
            return dict.fromkeys(WAYS, f"not done after {SECONDS} s, or killed by it"), []

    def close(self) -> None:
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()
        self.pool = None


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`(folder, victim)`: an honest run to be forged, and who will load it."""
    folder = tmp_path_factory.mktemp("enemy")
    mutations.write_run(folder / "honest" / "d1", 1)
    for path in (folder / "honest" / "d1").glob(f"*_{STEP - 1:06d}*"):
        path.unlink()
    (folder / "outside").mkdir()
    victim = Victim()
    yield folder, victim
    victim.close()


def load_forged(world: tuple[Path, Victim], make: Forgery) -> tuple[dict[str, str], list[str]]:
    folder, victim = world
    shutil.rmtree(folder / "base_checkpoints", ignore_errors=True)
    directory = folder / "base_checkpoints" / "d1"
    shutil.copytree(folder / "honest" / "d1", directory)
    make(directory)
    return victim.load(directory)


def test_the_honest_run_loads(world):
    assert load_forged(world, lambda directory: forge(directory)) == (dict.fromkeys(WAYS, ""), [])


@pytest.mark.parametrize(("make", "ways"), cases())
def test_what_an_enemy_wrote_is_refused(world, make, ways):
    said, touched = load_forged(world, make)
    assert not (world[0] / "CANARY").exists() and touched == []
    assert {way: said[way] for way in ways} == dict.fromkeys(ways, "refused")
    assert set(said.values()) <= {"", "refused"}


def test_replacing_a_run_leaves_what_it_links_to(world, monkeypatch):
    """`--overwrite` of a folder whose tokenizer is a link to somebody else's files."""
    def make(directory: Path) -> None:
        replace_by(folder_elsewhere, "tokenizer", directory)

    load_forged(world, make)
    directory = world[0] / "base_checkpoints" / "d1"
    cm.delete_checkpoints(directory)
    assert sorted(p.name for p in (world[0] / "outside" / "tokenizer").iterdir()) == [
        "tokenizer.tiktoken", "tokenizer_config.json"]
    assert not (directory / "tokenizer").exists() and not (directory / "tokenizer").is_symlink()
