"""Set-up and the runner of presets: what is done is not done again, what broke off goes on, mistakes get one line.

The runner is run for real, in a folder with tiny stand-ins for the stages; set-up with a stand-in for pip (a real one
takes minutes: CI does that by being run). Run: python -m pytest tests/test_setup.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nanochat.common import UserError
from nanochat.configurator import load_toml
from scripts.speedrun import check_sizes, config_fields, load_preset, setting, tree_memory

ROOT = Path(__file__).resolve().parents[1]

# --------------------------------------------------------------------------- the runner of presets

# Every stand-in writes its report and a line into calls.log. A "crash" file makes it fail, a "late" file makes it give
# up after a save, a "slow" file makes it save and wait for a signal.
STAND_IN = '''
import json, os, pathlib, signal, sys, time
from dataclasses import dataclass
@dataclass
class Base:
    data: str = "pocket"
@dataclass
class Config(Base):
    depth: int = 4
    save_every: int = 10
name = "NAME" + ("_" + sys.argv[2].removeprefix("--source=") if "--source" in "".join(sys.argv) else "")
base = pathlib.Path(os.environ["NANOCHAT_BASE_DIR"])
with open("calls.log", "a", encoding="utf-8") as f:
    f.write(" ".join([name, *sys.argv[2:]]) + "\\n")
if pathlib.Path("crash").exists():
    sys.exit(3)
made = base / "made" / name
if name == "base_train" and (made / "by_hand").exists() and "--overwrite" not in sys.argv:
    sys.exit(2)
made.mkdir(parents=True, exist_ok=True)
if pathlib.Path("late").exists():
    (base / "base_checkpoints" / "d4").mkdir(parents=True)
    (base / "base_checkpoints" / "d4" / "meta_000001.json").touch()
    sys.exit(2)
if pathlib.Path("slow").exists():
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    pathlib.Path("ready").touch()
    while not signals:
        time.sleep(0.02)
    time.sleep(0.3)
    pathlib.Path("saved").write_text(repr([int(s) for s in signals]), encoding="utf-8")
    sys.exit(130)
(base / "report").mkdir(exist_ok=True)
report = json.dumps({"t": time.time_ns(), "checkpoint": str(made)})
(base / "report" / f"{name}.json").write_text(report, encoding="utf-8")
'''
PRESET = """
preset = "tiny"
stages = ["tok_train", "tok_eval", "base_train", "chat_eval --source=mid"]
[all]
data = "pocket"
[tok_eval]
depth = 1
[base_train]
depth = 4
"""
ALL = ["tok_train", "tok_eval", "base_train", "chat_eval_mid --source=mid"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A working folder with the real runner and stand-ins for four stages."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "speedrun.py", tmp_path / "scripts")
    for name in ("__init__", "tok_train", "tok_eval", "base_train", "chat_eval"):
        text = STAND_IN.replace("NAME", name) if name != "__init__" else ""
        (tmp_path / "scripts" / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / "tiny.toml").write_text(PRESET, encoding="utf-8")
    return tmp_path


def start(folder: Path, *flags: str, **popen) -> subprocess.Popen:
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(folder / "base"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scripts.speedrun", "tiny.toml", *flags]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            encoding="utf-8", **popen)


def run(folder: Path, *flags: str) -> tuple[int, list[str], str]:
    """(exit code, the stages that were called with their flags, all that was printed)"""
    (folder / "calls.log").unlink(missing_ok=True)
    process = start(folder, *flags)
    out, err = process.communicate(timeout=60)
    calls = folder / "calls.log"
    return process.returncode, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else [], out + err


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "tiny.toml").read_text(encoding="utf-8")
    assert old in text
    (folder / "tiny.toml").write_text(text.replace(old, new), encoding="utf-8")


def test_what_is_finished_is_not_run_again(folder):
    code, calls, out = run(folder)
    assert (code, calls) == (0, ALL), out
    code, calls, out = run(folder)
    assert (code, calls) == (0, []), out
    assert out.count("skipped") == len(ALL)


def test_a_changed_setting_runs_its_stage_and_what_is_made_from_it(folder):
    run(folder)
    change(folder, "depth = 4", "depth = 6")
    # base_train was this preset's own: it may be replaced. The tokenizer before it is untouched.
    assert run(folder)[1] == ["base_train --overwrite", "chat_eval_mid --source=mid"]
    change(folder, "depth = 1", "depth = 2")  # an evaluation: nothing is made from it
    assert run(folder)[1] == ["tok_eval"]
    change(folder, '"pocket"', '"hub"')  # [all]
    assert [c.split()[0] for c in run(folder)[1]] == ["tok_train", "tok_eval", "base_train", "chat_eval_mid"]
    change(folder, "--source=mid", "--source=sft")  # flags count as settings
    assert run(folder)[1] == ["chat_eval_sft --source=sft"]


def test_a_run_made_by_hand_is_refused_as_often_as_one_tries(folder):
    by_hand = folder / "base/made/base_train/by_hand"
    by_hand.parent.mkdir(parents=True)
    by_hand.touch()
    for flags in ("", " --resume"):  # gone on with, if it happens to be the same run; replaced, never
        code, calls, _ = run(folder)
        assert code == 2 and calls[-1] == f"base_train{flags}"
    assert by_hand.exists()


def test_a_stage_that_gives_up_after_hours_has_left_something_of_ours(folder):
    """Exit status 2 as from a refusal (no memory, a number that is none), but it had saved."""
    change(folder, '"tok_train", "tok_eval", ', "")
    (folder / "late").touch()
    assert run(folder)[:2] == (2, ["base_train"])
    (folder / "late").unlink()
    change(folder, "depth = 4", "depth = 6")
    assert run(folder)[1] == ["base_train --overwrite", "chat_eval_mid --source=mid"]


@pytest.mark.slow
def test_training_stages_run_on_several_ranks_and_their_exit_status_counts(folder):
    """Real torchrun, around stand-ins that write one line a rank."""
    change(folder, '"tok_eval", ', "")
    by_hand = folder / "base/made/base_train/by_hand"
    by_hand.parent.mkdir(parents=True)
    by_hand.touch()
    for flags in ("", " --resume"):  # a refusal is a refusal on two ranks as well: never --overwrite
        code, calls, out = run(folder, "--nproc=2")
        # the launcher may end the second rank before it has written its line
        assert code == 2 and calls[-1] == f"base_train{flags}" and "was the first to end: exit status 2" in out
    by_hand.unlink()
    code, calls, out = run(folder, "--nproc=2")
    assert (code, calls) == (0, ["base_train --resume"] * 2 + ["chat_eval_mid --source=mid"] * 2), out
    assert run(folder)[1] == []  # how many ranks there were makes no difference
    code, calls, out = run(folder, "--nproc=-1")
    assert (code, calls) == (2, []) and out.strip().endswith("error: --nproc=-1 is impossible: it must be at least 0")


def test_output_that_is_gone_is_made_again(folder):
    run(folder)
    shutil.rmtree(folder / "base/made/base_train")
    assert [c.split()[0] for c in run(folder)[1]] == ["base_train", "chat_eval_mid"]


def test_settings_that_change_no_result_start_nothing_anew(folder):
    run(folder)
    change(folder, "depth = 4", "depth = 4\nsave_every = 20")
    assert run(folder)[1] == []


def test_a_lost_or_foreign_report_means_not_done(folder):
    run(folder)
    (folder / "base/report/chat_eval_mid.json").unlink()
    assert run(folder)[1] == ["chat_eval_mid --source=mid"]
    # Another run (by hand, another preset) has replaced the tokenizer: all that came from ours is old as well.
    (folder / "base/report/tok_train.json").write_text("{}", encoding="utf-8")
    assert [c.split()[0] for c in run(folder)[1]] == ["tok_train", "tok_eval", "base_train", "chat_eval_mid"]


def test_a_failing_stage_is_named_and_gone_on_from(folder):
    run(folder)
    change(folder, "depth = 4", "depth = 6")
    (folder / "crash").touch()
    code, calls, out = run(folder)
    assert (code, calls) == (3, ["base_train --overwrite"])
    assert "base_train failed with exit code 3" in out
    assert not (folder / "base/report/base_train.json").exists()  # the old figure does not pass for the new
    (folder / "crash").unlink()
    assert run(folder)[1] == ["base_train --resume --overwrite", "chat_eval_mid --source=mid"]


@pytest.mark.parametrize(("number", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, False)])
def test_signals_reach_the_stage_once_and_it_is_waited_for(folder, number, group):
    """`group`: as a terminal does it on Ctrl-C, to the whole process group."""
    change(folder, '"tok_train", "tok_eval", ', "")
    (folder / "slow").touch()
    process = start(folder, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, number) if group else process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    once = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM  # a closed terminal is no reason not to save
    assert (folder / "saved").read_text(encoding="utf-8") == repr([int(once)])
    assert "Stopped in base_train" in out
    (folder / "slow").unlink()
    assert run(folder)[1] == ["base_train --resume --overwrite", "chat_eval_mid --source=mid"]


def test_a_kill_leaves_the_stage_to_be_gone_on_from(folder):
    change(folder, '"tok_train", "tok_eval", ', "")
    (folder / "slow").touch()
    process = start(folder)
    while not (folder / "ready").exists():
        time.sleep(0.02)
    ledger = json.loads((folder / "base/speedrun/tiny.json").read_text(encoding="utf-8"))
    [child] = psutil.Process(process.pid).children()
    process.kill()
    child.kill()
    process.communicate(timeout=30)
    assert ledger["base_train"]["finished"] is False
    (folder / "slow").unlink()
    assert run(folder)[1] == ["base_train --resume", "chat_eval_mid --source=mid"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("depth = 4", "dept = 4", r"unknown key in \[base_train\]: 'dept'; did you mean 'depth'\?"),
     ('data = "pocket"', 'date = "x"', r"unknown key in \[all\]: 'date'; did you mean 'data'\?"),
     ("[base_train]", "[base_trian]", r"unknown table or key 'base_trian'; did you mean 'base_train'\?"),
     ('"tok_eval"', '"tok_evil"', r"unknown stage 'tok_evil'; did you mean 'tok_eval'\?"),
     (" --source=mid", "", "does not say which model"),
     ("stages", "stage", "lists no stages"),
     ("[all]", "[all", "is not valid TOML")],
)
def test_mistakes_in_a_preset_get_one_line_before_anything_runs(folder, old, new, message):
    change(folder, old, new)
    code, calls, out = run(folder)
    assert (code, calls) == (2, [])
    last = out.strip().splitlines()[-1]
    assert last.startswith("error: ") and re.search(message, last), out
    assert "Traceback" not in out


def test_report_gets_times_and_memory(folder):
    change(folder, '"chat_eval --source=mid"', '"report"')
    code, _, out = run(folder)
    assert code == 0, out
    card = json.loads((folder / "report.json").read_text(encoding="utf-8"))  # beside where the command was given
    assert card["preset"] == "tiny"
    seconds = [stage["seconds"] for stage in card["stages"].values()]
    assert len(seconds) == 3 and min(seconds) > 0
    assert card["wall_seconds"] == pytest.approx(sum(seconds), abs=0.1)
    assert 5e6 < card["peak_memory_bytes"] < 1e9  # two Python processes
    assert card["peak_memory_bytes"] == max(stage["peak_memory_bytes"] for stage in card["stages"].values())


def test_memory_counts_children_and_shared_pages_once():
    """A child that fills 64 MiB raises the sum by that; one that only inherits them does not."""
    before = tree_memory(0)
    code = "import time; b = bytearray(b'x') * (64 << 20); print('full', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"full\n"
        assert 64 << 20 <= tree_memory(0) - before < 200 << 20
        assert tree_memory(1 << 50) == 1 << 50  # never below the peak so far
    finally:
        child.kill()
        child.communicate()


# --------------------------------------------------------------------------- the presets that come with nanochat


@pytest.mark.parametrize("path", sorted((ROOT / "runs").glob("*.toml")), ids=lambda p: p.name)
def test_presets_are_valid(path):
    """Every stage, table and key of ours is known to the real scripts; their order is that of the pipeline."""
    name, stages = load_preset(path)
    assert name == path.stem
    assert stages[-1].script == "report"
    for stage in stages:
        assert (ROOT / Path(*stage.module.split("."))).with_suffix(".py").exists()
        assert config_fields(stage.script), f"the fields of {stage.script} cannot be read from its source"
    for nproc in (1, 2, 4, 8):
        check_sizes(path, stages, nproc)


def test_sizes_that_ranks_cannot_share_are_refused_before_the_first_stage(tmp_path):
    def refused(nproc: int, old: str = "", new: str = "") -> str:
        text = (ROOT / "runs" / "pocket.toml").read_text(encoding="utf-8")
        assert old in text
        (tmp_path / "x.toml").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(UserError) as e:
            check_sizes(tmp_path / "x.toml", load_preset(tmp_path / "x.toml")[1], nproc)
        return str(e.value)

    assert "x.toml: base_train: --total_batch_size=4096 is not a multiple of" in refused(3)
    assert "base_train: --total_batch_size=5000" in refused(2, '"base_train"', '"base_train --total-batch-size 5000"')
    assert "--deterministic needs a" in refused(2, '"chat_sft"', '"chat_sft --deterministic --device_batch_size=auto"')
    assert "chat_rl: --deterministic needs a" in refused(2, '"chat_rl"',
                                                         '"chat_rl --deterministic --device_batch_size=auto"')
    text = (ROOT / "runs" / "pocket.toml").read_text(encoding="utf-8")
    text = text.replace("[all]", "[all]\ntotal_batch_size = 4096")
    text = text.replace("device_batch_size = 4\n", "device_batch_size = 7\n")
    (tmp_path / "y.toml").write_text(text, encoding="utf-8")
    check_sizes(tmp_path / "y.toml", stages := load_preset(tmp_path / "y.toml")[1], 2)  # chat_rl knows no such total
    (rl,) = (stage for stage in stages if stage.script == "chat_rl")
    assert [setting(rl, name) for name in ("device_batch_size", "total_batch_size")] == [7, None]
    stages = {stage.name: stage for stage in load_preset(ROOT / "runs" / "d20.toml")[1]}
    found = [setting(stages["chat_sft"], name) for name in ("device_batch_size", "data", "total_batch_size", "nothing")]
    assert found == [4, "fineweb-edu:240", 65536, None]  # its table, [all], its own default
    assert setting(stages["mid_train"], "grad_clip") == 1.0  # a default of the class below


# --------------------------------------------------------------------------- the shell scripts

SCRIPTS = ("dev/setup.sh", "speedrun.sh", "test.sh", ".ci/run", "runs/slurm.sh")


@pytest.mark.parametrize("path", SCRIPTS)
def test_shell_scripts_parse(path):
    assert subprocess.run(["bash", "-n", ROOT / path]).returncode == 0


def test_no_shell_script_needs_a_newer_bash_than_macos_has():
    """Bash 3.2 knows none of these: mapfile, associative arrays, ${x,,}, ${x@Q}, |&, negative subscripts."""
    newer = re.compile(r"\b(mapfile|readarray)\b|declare -A|local -A|\$\{\w+(,,|\^\^|@)|\|&|\[-1\]|\blocal -n\b")
    for path in SCRIPTS:
        assert not newer.search((ROOT / path).read_text(encoding="utf-8")), path


def test_ci_runner_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


LOCKS = {"requirements.txt": ["dev"], "requirements-test.txt": ["dev", "test"]}  # and the extras that are in them


def locked(lock: str) -> dict[tuple[str, str], set[str]]:
    """The hashes of each version; of some packages there are several, for several Pythons:
    `{("numpy", "2.2.6"): {"sha256:0b60...", ...}, ...}`."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    pins = [re.match(r"([a-z0-9.-]+)(?:\[[a-z,]+\])?==([^\s;]+)", block).groups() for block in blocks]
    return {pin: set(re.findall(r"--hash=(\S+)", block)) for pin, block in zip(pins, blocks)}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_no_gpu_package_and_no_address(lock):
    hashes = locked(lock)
    names = {name for name, _ in hashes}
    assert {"tyro", "safetensors", "tiktoken", "pytest", "setuptools"} <= names
    assert not [n for n in names if re.match(r"torch|nvidia|triton|cuda|rocm|pytorch", n)]
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert not re.search(r"://| @ |^\s*-(?!-hash=sha256:[0-9a-f]{64}( \\)?$)", text, re.MULTILINE)  # no host, no option
    # Every package is held to its hashes.
    assert len(hashes) > 30 and all(hashes.values())


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_what_pyproject_asks_for(lock):
    """A dependency added to pyproject.toml without compiling the locks again is seen."""
    project = load_toml(ROOT / "pyproject.toml")["project"]
    assert set(project["optional-dependencies"]) == {"dev", "test"}
    asked = project["dependencies"] + [r for extra in LOCKS[lock] for r in project["optional-dependencies"][extra]]
    names = {re.match(r"[A-Za-z0-9._-]+", r)[0].lower().replace("_", "-") for r in asked}
    assert names <= {name for name, _ in locked(lock)}
    assert "torch" not in names  # it is the user's choice


def test_the_tests_run_with_the_versions_that_a_user_gets():
    """Each pin of requirements.txt is in requirements-test.txt too, with the same hashes; the other way round not."""
    small, large = locked("requirements.txt"), locked("requirements-test.txt")
    assert small.items() <= large.items()
    only_tested = {name for name, _ in large} - {name for name, _ in small}
    assert {"openai", "playwright", "lm-eval", "schemathesis", "axe-playwright-python"} <= only_tested


# --------------------------------------------------------------------------- dev/setup.sh

# .venv/bin/python: the real one, but pip only notes what it was asked for (and fails where the file "fail" says so).
FAKE_PYTHON = f"""#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then
    [ "$3" = --version ] && exit 0
    echo "$*" >> pip.log
    [ -e fail ] && case "$*" in *"$(cat fail)"*) exit 1 ;; esac
    exit 0
fi
exec {sys.executable} "$@"
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what set-up reads, with a .venv that is there already and whose pip installs nothing."""
    (tmp_path / "dev").mkdir()
    for name in ("dev/setup.sh", *LOCKS, "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text(FAKE_PYTHON, encoding="utf-8")
    python.chmod(0o755)
    return tmp_path


def set_up(folder: Path, **env: str) -> tuple[int, list[str], str]:
    """(exit code, what pip was asked to install, all that was printed)"""
    (folder / "pip.log").unlink(missing_ok=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("NANOCHAT_TORCH", "NANOCHAT_REQUIREMENTS")}
    done = subprocess.run(["bash", "dev/setup.sh"], cwd=folder, env=clean | env, capture_output=True, text=True,
                          encoding="utf-8")
    log = folder / "pip.log"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    steps = {" torch": "torch", " --require-hashes -r requirements.txt": "requirements",
             " --require-hashes -r requirements-test.txt": "requirements-test", " -e .": "project"}
    asked = [next((step for sign, step in steps.items() if sign in line), line) for line in lines]
    return done.returncode, asked, done.stdout + done.stderr


def test_set_up_does_each_step_once_and_torch_first(project):
    assert set_up(project)[:2] == (0, ["torch", "requirements", "project"])
    began = time.monotonic()
    code, asked, out = set_up(project)
    assert (code, asked) == (0, []) and "nothing changed" in out
    assert time.monotonic() - began < 3


def test_set_up_redoes_only_what_changed(project):
    set_up(project)
    with open(project / "requirements.txt", "a", encoding="utf-8") as f:
        f.write("# changed\n")
    assert set_up(project)[1] == ["requirements"]
    assert set_up(project, NANOCHAT_TORCH="torch==2.12.0")[1] == ["torch"]
    assert set_up(project, NANOCHAT_TORCH="torch==2.12.0")[1] == []
    assert set_up(project)[1] == ["torch"]  # back to the range


FOR_TESTS = {"NANOCHAT_REQUIREMENTS": "requirements-test.txt"}  # as test.sh sets it


def add_line(path: Path, line: str) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.write(line + "\n")


def test_what_is_installed_for_the_tests_serves_the_speedrun_as_well(project):
    """From a new .venv, by either script first; then to and fro."""
    assert set_up(project, **FOR_TESTS)[1] == ["torch", "requirements-test", "project"]
    assert set_up(project)[1] == set_up(project, **FOR_TESTS)[1] == set_up(project)[1] == []
    shutil.rmtree(project / ".venv/.setup")
    assert set_up(project)[1] == ["torch", "requirements", "project"]
    assert set_up(project, **FOR_TESTS)[1] == ["requirements-test"]
    assert set_up(project)[1] == set_up(project, **FOR_TESTS)[1] == []


def test_a_changed_lock_redoes_its_step_and_no_other(project):
    set_up(project, **FOR_TESTS)
    add_line(project / "requirements-test.txt", "onlytested==1.0")
    assert set_up(project, **FOR_TESTS)[1] == ["requirements-test"]
    assert set_up(project)[1] == []
    # A pin that the larger lock has not: what is there for the tests will not do for the speedrun, nor the other way.
    add_line(project / "requirements.txt", "numpy==9.9")
    assert set_up(project, **FOR_TESTS)[1] == []
    assert set_up(project)[1] == ["requirements"]
    assert set_up(project, **FOR_TESTS)[1] == ["requirements-test"]


def test_an_interrupted_lock_is_repaired_by_either_script(project):
    set_up(project)
    (project / "fail").write_text("requirements-test.txt", encoding="utf-8")
    code, asked, out = set_up(project, **FOR_TESTS)
    assert (code, asked) == (1, ["requirements-test"])
    assert "error: pip could not install requirements-test.txt" in out
    (project / "fail").unlink()
    assert set_up(project)[1] == ["requirements"]  # some of its packages may be half replaced
    assert set_up(project, **FOR_TESTS)[1] == ["requirements-test"]
    assert set_up(project)[1] == []


def test_test_sh_asks_for_the_larger_lock_and_speedrun_for_the_smaller(project):
    """Both for real; what they would start after set-up is not in this folder."""
    env = {k: v for k, v in os.environ.items() if k not in ("NANOCHAT_REQUIREMENTS", "PYTHONPATH")}
    (project / "empty.toml").touch()
    for script, argument, lock in (("test.sh", "-x", "requirements-test.txt"),
                                   ("speedrun.sh", "empty.toml", "requirements.txt")):
        shutil.copy(ROOT / script, project)
        shutil.rmtree(project / ".venv/.setup", ignore_errors=True)
        done = subprocess.run(["bash", script, argument], cwd=project, env=env, capture_output=True, text=True,
                              encoding="utf-8")
        assert done.returncode != 0 and f"({lock}, checked by hash)" in done.stdout, done.stdout + done.stderr


def test_a_lock_that_is_not_there_gets_one_line(project):
    code, asked, out = set_up(project, NANOCHAT_REQUIREMENTS="requirements-tset.txt")
    assert (code, asked) == (1, []) and out.startswith("error: there is no requirements-tset.txt in ")


def test_an_interrupted_step_is_not_taken_for_done(project):
    (project / "fail").write_text("requirements.txt", encoding="utf-8")
    code, asked, out = set_up(project)
    assert code == 1 and asked == ["torch", "requirements"]
    assert "error: pip could not install requirements.txt" in out
    (project / "fail").unlink()
    assert set_up(project)[1] == ["requirements", "project"]
    # also when it had been done before, for something else
    with open(project / "requirements.txt", "a", encoding="utf-8") as f:
        f.write("# changed\n")
    (project / "fail").write_text("requirements.txt", encoding="utf-8")
    assert set_up(project)[0] == 1
    shutil.copy(ROOT / "requirements.txt", project)  # the change is taken back, but pip broke off halfway
    (project / "fail").unlink()
    assert set_up(project)[1] == ["requirements"]


def test_a_project_that_was_moved_is_set_up_again(project):
    """The editable install and .venv's programs hold the path."""
    set_up(project)
    moved = project.rename(project.with_name("moved"))
    assert "project" in set_up(moved)[1]


def tools_only(folder: Path, **stubs: str) -> dict[str, str]:
    """An environment whose PATH holds a few plain tools and the given stand-ins: `name=shell text`."""
    (folder / "bin").mkdir()
    for name in ("bash", "sh", "cat", "dirname", "mkdir", "mv", "rm", "touch", "sed"):
        (folder / "bin" / name).symlink_to(shutil.which(name))
    for name, text in stubs.items():
        path = folder / "bin" / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    return {"PATH": str(folder / "bin")}


def test_no_python_gets_one_clear_line(project):
    shutil.rmtree(project / ".venv")
    code, asked, out = set_up(project, **tools_only(project, python3="exit 127"))  # what a shim of pyenv does
    assert (code, asked) == (1, [])
    assert out.startswith("error: Python 3.10 to 3.14 is needed") and out.count("\n") == 1


NO_VENV = f'case "$*" in *ensurepip*) [ -e installed ] ;; *) exec {sys.executable} "$@" ;; esac'


def test_no_venv_module_names_the_package(project):
    shutil.rmtree(project / ".venv")
    code, _, out = set_up(project, **tools_only(project, python3=NO_VENV, apt_get="exit 1", id="echo 1000"))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert code == 1 and f"sudo apt-get install -y python{version}-venv" in out


def test_no_venv_module_is_installed_by_root(project):
    shutil.rmtree(project / ".venv")
    apt = 'echo "$*" >> apt.log; [ "$1" = update ] || touch installed'
    # The venv is real here, so set-up goes on to a real pip: torch's name is one that pip refuses at once.
    stubs = tools_only(project, python3=NO_VENV, apt_get=apt, id="echo 0")
    code, _, out = set_up(project, NANOCHAT_TORCH="./no-such.whl", **stubs)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"install -y -qq python{version}-venv" in (project / "apt.log").read_text(encoding="utf-8")
    assert (project / ".venv/bin/python").exists()
    assert code == 1 and "pip could not install ./no-such.whl" in out
    assert not (project / ".venv/.setup/torch").exists()


def test_half_a_venv_is_made_again(project):
    """Python's venv was interrupted before pip was in it."""
    (project / ".venv/bin/python").write_text(f'#!/bin/sh\n[ "$2" = pip ] && exit 1\nexec {sys.executable} "$@"\n',
                                              encoding="utf-8")
    (project / ".venv/half").touch()
    code, _, out = set_up(project, NANOCHAT_TORCH="./no-such.whl")
    assert "making .venv" in out and not (project / ".venv/half").exists()
    assert code == 1  # at the torch that we named


def test_missing_tools_are_one_line_each(project):
    code, _, out = set_up(project, **tools_only(project), CXX="no-such-compiler")
    assert code == 0
    assert "no C++ compiler" in out
    (project / "rustbpe").mkdir()
    (project / "rustbpe/Cargo.toml").touch()
    code, _, out = set_up(project, PATH=str(project / "bin"))
    assert code == 0
    assert "no Rust toolchain (cargo): the tokenizer trains through Hugging Face" in out


def test_speedrun_refuses_a_preset_that_is_not_there_before_setting_up():
    done = subprocess.run(["bash", "speedrun.sh", "runs/nope.toml"], cwd=ROOT, capture_output=True, text=True,
                          encoding="utf-8")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no preset runs/nope.toml") and "runs/pocket.toml" in done.stderr


# --------------------------------------------------------------------------- .ci/run


@pytest.mark.parametrize(("stubs", "installed", "said"), [
    ({}, ["chromium fonts-dejavu-core"], "[ci] installing chromium fonts-dejavu-core"),
    ({"chromium": "", "git": None}, ["git"], "[ci] installing git"),
    ({"git": None}, ["git", "chromium fonts-dejavu-core"], "[ci] installing git"),
    ({"chromium": ""}, [], ""),
    ({"id": "echo 1000", "git": None}, [], ""),  # without root it is left to the tests to say what they miss
    ({"apt_get": 'case "$*" in *chromium*|update*) exit 1 ;; esac'}, [], "[ci] no browser: the tests of the chat page"),
    ({"apt_get": None}, [], ""),
    ({"bwrap": None}, ["chromium fonts-dejavu-core", "bubblewrap"], "[ci] installing bubblewrap"),
    ({"bwrap": None, "apt_get": "exit 1"}, [], "[ci] no bubblewrap: the tests of the sandbox"),
])
def test_ci_installs_what_is_missing_and_runs_without_a_browser(project, stubs, installed, said):
    (project / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", project / ".ci")
    (project / "test.sh").write_text('echo "tests ran: $*"\n', encoding="utf-8")
    apt = 'echo "$*" >> apt.log'
    plain = {"python3": "", "g++": "", "git": "", "id": "echo 0", "apt_get": apt, "bwrap": "",
             "mktemp": "mkdir base; echo base"}
    env = tools_only(project, **{name: text for name, text in {**plain, **stubs}.items() if text is not None})
    done = subprocess.run(["bash", ".ci/run", "-x"], cwd=project, env={**os.environ, **env}, capture_output=True,
                          text=True, encoding="utf-8")
    assert done.returncode == 0 and done.stdout.endswith("tests ran: -x\n"), done.stdout + done.stderr
    assert said in done.stdout
    log = (project / "apt.log").read_text(encoding="utf-8").splitlines() if (project / "apt.log").exists() else []
    asked = [line.split("--no-install-recommends ")[1] for line in log if line.startswith("install")]
    assert asked == installed


def test_ci_ends_where_what_it_cannot_do_without_is_not_to_be_had(project):
    (project / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", project / ".ci")
    (project / "test.sh").write_text("echo tests ran\n", encoding="utf-8")
    env = tools_only(project, python3="", id="echo 0", apt_get="exit 100", mktemp="mkdir base; echo base")
    done = subprocess.run(["bash", ".ci/run"], cwd=project, env={**os.environ, **env}, capture_output=True, text=True,
                          encoding="utf-8")
    assert done.returncode != 0 and "tests ran" not in done.stdout
