"""The shape of the code: who may import whom, and what may not stand anywhere.

`FLOORS` mirrors the table of docs/structure.md. Imports go down; within a floor a file may import a neighbour as long
as there is no circle; scripts import no script. A new file adds its row here in the same commit.

Run: python -m pytest tests/test_structure.py
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = {
    "scripts/*.py": 7,
    "nanochat/serving.py": 6,
    "nanochat/worker.py": 6,
    "nanochat/export.py": 6,
    "nanochat/doctor.py": 6,
    "nanochat/info.py": 6,
    "nanochat/launch.py": 6,
    "nanochat/train.py": 5,
    "nanochat/train_step.py": 5,
    "nanochat/batch_size.py": 5,
    "nanochat/finetune.py": 5,
    "nanochat/model_card.py": 5,
    "nanochat/loss_eval.py": 5,
    "nanochat/core_eval.py": 5,
    "nanochat/task_eval.py": 5,
    "nanochat/rollouts.py": 5,
    "nanochat/chat_session.py": 5,
    "nanochat/worker_pool.py": 5,
    "nanochat/model_choice.py": 5,
    "nanochat/engine.py": 4,
    "nanochat/cpu_forward.py": 4,
    "nanochat/torch_forward.py": 4,
    "nanochat/decode_graph.py": 4,
    "nanochat/checkpoint_manager.py": 4,
    "nanochat/run.py": 4,
    "nanochat/hf_model.py": 4,
    "nanochat/stage_config.py": 4,
    "nanochat/resume.py": 4,
    "nanochat/saver.py": 4,
    "nanochat/watchdog.py": 4,
    "nanochat/dataloader.py": 4,
    "nanochat/windows.py": 4,
    "nanochat/gpt.py": 3,
    "nanochat/tokenizer_json.py": 3,
    "tasks/*.py": 3,
    "nanochat/optim.py": 2,
    "nanochat/bucket.py": 2,
    "nanochat/tokenizer.py": 2,
    "nanochat/dataset.py": 2,
    "nanochat/sources.py": 2,
    "nanochat/split.py": 2,
    "nanochat/manifest.py": 2,
    "nanochat/attention.py": 1,
    "nanochat/loss_head.py": 1,
    "nanochat/kv_cache.py": 1,
    "nanochat/prefix_cache.py": 1,
    "nanochat/sampling.py": 1,
    "nanochat/stop_strings.py": 1,
    "nanochat/openai_api.py": 1,
    "nanochat/answers.py": 1,
    "nanochat/answer_settings.py": 1,
    "nanochat/http_guard.py": 1,
    "nanochat/serving_metrics.py": 1,
    "nanochat/muon.py": 1,
    "nanochat/adamw.py": 1,
    "nanochat/schedule.py": 1,
    "nanochat/packing.py": 1,
    "nanochat/conversation.py": 1,
    "nanochat/documents.py": 1,
    "nanochat/hub.py": 1,
    "nanochat/hub_file.py": 1,
    "nanochat/prefetch.py": 1,
    "nanochat/rl.py": 1,
    "nanochat/calculator.py": 1,
    "nanochat/bpb_baselines.py": 1,
    "nanochat/terminal.py": 1,
    "nanochat/execution.py": 1,
    "nanochat/sandbox.py": 1,
    "nanochat/sandbox_python.py": 1,
    "nanochat/cgroup.py": 1,
    "nanochat/seccomp.py": 1,
    "nanochat/guests/*.py": 1,
    "nanochat/eval_result.py": 1,
    "nanochat/report.py": 1,
    "nanochat/report_render.py": 1,
    "nanochat/sample_texts.py": 1,
    "nanochat/pocket/*.py": 1,
    "nanochat/tensor_file.py": 1,
    "nanochat/common.py": 0,
    "nanochat/files.py": 0,
    "nanochat/rng.py": 0,
    "nanochat/configurator.py": 0,
    "nanochat/ranks.py": 0,
    "nanochat/__init__.py": 0,
}
PACKAGES = ("nanochat", "scripts", "tasks")


def sources(*tops: str) -> list[str]:
    return sorted(p.relative_to(ROOT).as_posix() for top in tops for p in (ROOT / top).rglob("*.py"))


def tree_of(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=path)


def floors_of(path: str) -> list[int]:
    return [floor for pattern, floor in FLOORS.items() if fnmatch(path, pattern)]


def file_of(module: str) -> str | None:
    """`"nanochat.pocket" -> "nanochat/pocket/__init__.py"`; None for what is no module of ours."""
    base = module.replace(".", "/")
    return next((p for p in (f"{base}.py", f"{base}/__init__.py") if (ROOT / p).is_file()), None)


def imports_of(path: str) -> set[str]:
    """Our files that a file imports, wherever in it: at its top, inside a function, for type checkers only."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; say nanochat.x, so that grep finds it"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            # `from nanochat import report` names the module report, `from nanochat.report import Report` does not
            names = [name if file_of(name) else node.module for name in whole]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] in PACKAGES}
    missing = [name for name in found if file_of(name) is None]
    assert not missing, f"{path} imports {missing}, which do not exist"
    return {file_of(name) for name in found} - {path}


ALL = sources(*PACKAGES)


@pytest.mark.parametrize("path", ALL)
def test_imports_go_down(path):
    floors = floors_of(path)
    assert len(floors) == 1, f"{path} needs exactly one row in FLOORS here and in docs/structure.md, has {len(floors)}"
    for target in imports_of(path):
        assert floors_of(target) and floors_of(target)[0] <= floors[0], f"{path} imports upward: {target}"
        assert target == "scripts/__init__.py" or not target.startswith("scripts/"), f"{path} imports script {target}"


def test_no_circles():
    graph = {path: imports_of(path) for path in ALL}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert set(order) == set(ALL)


def test_the_import_reader_sees_all_kinds(tmp_path, monkeypatch):
    """The check above is worth what `imports_of` sees."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    for name in ("nanochat/__init__", "nanochat/a", "nanochat/b", "nanochat/c", "nanochat/p/__init__", "nanochat/me"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    text = "import nanochat.a\nfrom nanochat import b, x\ndef f():\n    from nanochat.c import d\n"
    text += "if False:\n    from nanochat.p import e\n"
    (tmp_path / "nanochat/me.py").write_text(text, encoding="utf-8")
    expected = {"__init__", "a", "b", "c", "p/__init__"}
    assert imports_of("nanochat/me.py") == {f"nanochat/{name}.py" for name in expected}


# --------------------------------------------------------------------------- what may not stand anywhere


def called(node: ast.Call) -> str:
    """`torch.load(...) -> "torch.load"`, `open(...) -> "open"`, `path.open(...)` -> "?.open" (if not a plain name)"""
    if isinstance(node.func, ast.Name):
        return node.func.id
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else "?"
        return f"{owner}.{node.func.attr}"
    return "?"


UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system", "os.popen",
                "subprocess.getoutput", "subprocess.getstatusoutput", "builtins.eval", "builtins.exec"}


def unsafe_in(tree: ast.Module) -> list[str]:
    """Lines that unpickle, evaluate text as code, go through a shell, or send objects (pickles) between ranks."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found += [f"{node.lineno}: from {name}" for name in sorted(whole & UNSAFE_CALLS)]
        if isinstance(node, ast.Attribute) and node.attr.endswith(("_object", "_object_list")):
            found.append(f"{node.lineno}: .{node.attr}")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += [f"{node.lineno}: import {n}" for n in names if n.split(".")[0] in UNPICKLERS]
        if isinstance(node, ast.Call):
            if called(node) in UNSAFE_CALLS:
                found.append(f"{node.lineno}: {called(node)}")
            if called(node).endswith("import_module") and node.args and isinstance(node.args[0], ast.Constant):
                found += [f"{node.lineno}: import {n}" for n in UNPICKLERS & {str(node.args[0].value).split(".")[0]}]
            if any(k.arg == "shell" and getattr(k.value, "value", None) is not False for k in node.keywords):
                found.append(f"{node.lineno}: shell=")
            if any(k.arg == "allow_pickle" and getattr(k.value, "value", None) is not False for k in node.keywords):
                found.append(f"{node.lineno}: allow_pickle=")
    return found


def unencoded_in(tree: ast.Module) -> list[str]:
    """Calls that read or write text in whatever encoding the machine happens to have."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(k.arg in {"encoding", None} for k in node.keywords):
            continue
        name, _, method = called(node).rpartition(".")
        arguments = [a.value for a in node.args if isinstance(a, ast.Constant)]
        arguments += [k.value.value for k in node.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
        modes = [a for a in arguments if isinstance(a, str) and re.fullmatch(r"[rwxab+t]{1,3}", a)]
        if method in {"open", "fdopen"} and (name in {"", "os", "gzip"} or modes or not node.args):
            if name == "os" and method == "open":
                continue  # a file descriptor
            if name == "gzip" and not modes:
                continue  # binary unless it says otherwise
            if not any("b" in mode for mode in modes):
                found.append(f"{node.lineno}: {called(node)}")
        if (method == "read_text" and not node.args) or (method == "write_text" and len(node.args) < 2):
            found.append(f"{node.lineno}: {called(node)}")
        as_text = any(k.arg in {"text", "universal_newlines"} for k in node.keywords)
        if as_text and method in {"run", "Popen", "check_output"}:
            found.append(f"{node.lineno}: {called(node)} text=")
    return found


@pytest.mark.parametrize("path", sources(*PACKAGES, "bench", "tests", "rustbpe"))
def test_nothing_unsafe(path):
    """In the whole tree, tests too: what a test needs pickled is written as bytes."""
    assert unsafe_in(tree_of(path)) == []


@pytest.mark.parametrize("path", sources(*PACKAGES, "bench"))
def test_text_files_name_their_encoding(path):  # trap: encoding
    assert unencoded_in(tree_of(path)) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from pickle import loads", "torch.load(p)", "torch.save(m, p)", "eval(x)", "exec(x)",
     "run(c, shell=True)", "run(c, shell=yes)", "np.load(p, allow_pickle=True)", "os.system(c)",
     "dist.all_gather_object(a, b)", "dist.broadcast_object_list(a)", "f = dist.gather_object",
     "from torch import load", "import torch, pickle", "importlib.import_module('pickle')", "compile(x, '', 'exec')",
     "__import__('pickle')"],
)
def test_the_unsafe_is_seen(line):
    assert unsafe_in(ast.parse(line))


@pytest.mark.parametrize(
    ("line", "bad"),
    [("open(p)", True), ("open(p, 'w')", True), ("open(p, 'rb')", False), ("open(p, mode='a')", True),
     ("open(p, encoding='utf-8')", False), ("p.read_text()", True), ("p.read_text(encoding='utf-8')", False),
     ("p.write_text(t)", True), ("p.open('w')", True), ("p.open('wb')", False), ("os.open(p, os.O_RDONLY)", False),
     ("os.fdopen(fd, 'w')", True), ("gzip.open(p, 'rt')", True), ("gzip.open(p)", False), ("p.open()", True),
     ("subprocess.run(c, text=True)", True), ("model.eval()", False)],
)
def test_the_unencoded_is_seen(line, bad):
    assert bool(unencoded_in(ast.parse(line))) is bad


# --------------------------------------------------------------------------- what may not be in the repository


def tracked_files() -> list[Path]:
    """Files in git and new ones that git does not ignore; outside a repository the test is skipped."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not in a git repository")
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_no_lock_file_with_addresses():
    forbidden = {"uv.lock", "Cargo.lock", "package-lock.json", "poetry.lock", "pylock.toml", "Pipfile.lock", "pdm.lock"}
    assert [str(p) for p in tracked_files() if p.name in forbidden] == []


def test_only_ci_knows_the_shared_folder():
    pattern = re.compile(r"(\.\.|work)/shared\b")
    naming = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not text
        if pattern.search(text):
            naming.append(path.relative_to(ROOT).as_posix())
    assert naming == [".ci/run"]
