"""Model-written code: what is judged, how, and what becomes of it. The attacks are in test_attacks.py.

Run: python -m pytest tests/test_execution.py        (needs bubblewrap; NANOCHAT_TEST_DATA=FOLDER: with HumanEval)
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import cgroup, execution, sandbox
from nanochat.common import UserError
from nanochat.execution import Limits, Verdict, execute_code, run_tests
from nanochat.guests import channel
from tests import code_mutants
from tests.box import needs_box

ROOT = Path(__file__).resolve().parents[1]
REAL = os.environ.get("NANOCHAT_TEST_DATA")
needs_real = pytest.mark.skipif(not REAL, reason="NANOCHAT_TEST_DATA names no folder with real data")

TWICE = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(-3) == -6\n"
RIGHT = "def f(x):\n    return 2 * x\n"


def alive(mark: str) -> list[str]:
    """Processes with `mark` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


# --------------------------------------------------------------------------- plain data

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(10**300), 10**300) | st.floats() | st.complex_numbers()
    | st.text(st.characters()) | st.text(st.characters(categories=["Cs"]), max_size=3) | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.lists(inner).map(tuple)
    | st.dictionaries(st.integers() | st.text() | st.booleans() | st.tuples(st.integers()), inner),
    max_leaves=20,
) | st.sets(st.integers() | st.text()) | st.frozensets(st.frozensets(st.booleans()))  # fmt: skip


def same(a: object, b: object) -> bool:
    """Equal, of the same types all the way down; nan is nan, and 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(k, m) and same(v, n) for (k, v), (m, n) in zip(a.items(), b.items()))
    return a == b


@given(PLAIN)
def test_plain_data_arrives_as_it_was_sent(value):
    assert same(channel.decode(channel.encode(value)), value)


@given(PLAIN, st.data())
def test_damaged_messages_are_garbage_or_plain_data(value, data):
    message = bytearray(channel.encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    message = message[: data.draw(st.integers(0, len(message)))]
    with contextlib.suppress(channel.Garbage):
        channel.encode(channel.decode(bytes(message)))


@given(st.binary(max_size=100))
def test_random_bytes_are_garbage_or_plain_data(message):
    with contextlib.suppress(channel.Garbage):
        channel.encode(channel.decode(message))


def test_what_is_not_plain_or_too_much_is_refused():
    class Own(int):
        pass

    deep: list = []
    for _ in range(channel.MAX_DEPTH):
        deep = [deep]
    cycle: list = []
    cycle.append(cycle)
    for value in (Own(1), [Own(1)], {1: Own(1)}, object(), int, range(3), iter([]), len, deep, cycle, 1 << (1 << 20),
                  "x" * (channel.MAX_BYTES + 1), [0] * (channel.MAX_ITEMS + 1), {1: 2}.keys()):  # fmt: skip
        with pytest.raises(channel.Unplain):
            channel.encode(value)
    assert channel.decode(channel.encode(deep[0])) == deep[0]


def test_dicts_of_the_standard_library_go_as_dicts():
    from collections import Counter, OrderedDict, defaultdict

    sent = [Counter("aab"), OrderedDict(a=1), defaultdict(list, b=[2])]
    assert channel.decode(channel.encode(sent)) == [{"a": 2, "b": 1}, {"a": 1}, {"b": [2]}]


@needs_box
def test_arguments_and_results_cross_both_ways():
    values = [None, True, 0, -1, 10**50, 0.0, -0.0, math.inf, -math.inf, 1e-320, 1j, "", "\ud800 é \0", b"\xff", [], (),
              {}, set(), frozenset(), [(1, [2.5, {"a": {3}}])], {(1, 2): [None]}, {frozenset({1}): 0}]  # fmt: skip
    tests = (f"from math import inf\n\ndef check(candidate):\n    for v in {ascii(values)}:\n"
             "        r = candidate(v, key=v)\n        assert type(r) is tuple and r == (v, v), v\n"
             "        assert type(r[0]) is type(v) and repr(r[0]) == repr(v)\n"
             "    nan = candidate(float('nan'), key=1)[0]\n    assert nan != nan\n")
    assert run_tests("def f(x, key):\n    return x, key\n", "f", tests) == Verdict(True)


@needs_box
def test_arguments_are_copies():
    """What the function does to a list of the tests stays with it: no result is right by changing the question."""
    tests = "def check(candidate):\n    x = [3, 1]\n    assert candidate(x) == sorted(x)\n    assert x == [3, 1]\n"
    assert run_tests("def f(x):\n    x.sort()\n    return x\n", "f", tests).passed
    assert not run_tests("def f(x):\n    x.clear()\n    return []\n", "f", tests).passed


# --------------------------------------------------------------------------- verdicts


@needs_box
@pytest.mark.parametrize(("source", "reason"), [
    (RIGHT, ""),
    ("def f(x):\n    return 3 * x\n", "wrong answer"),
    ("def f(x):\n    return None\n", "wrong answer"),
    ("def f(x):\n    return y\n", "exception NameError: name 'y' is not defined"),
    ("def f(x: return", "exception SyntaxError"),
    ("def g(x):\n    return 2 * x\n", "no function f"),
    ("", "no function f"),
    ("def f(x):\n    return iter({x})\n", "unplain result: an object of type set_iterator"),
    ("def f(x):\n    while True: pass\n", "timeout"),
    ("def f(x):\n    return 'x' * 10**10\n", "memory"),
    ("import os\nos._exit(7)\n", "the candidate was gone before the tests had ended: exit status 7"),
    ("def f(x):\n    print('x' * 3_000_000)\n    return 2 * x", "output limit"),
    ("x = 1\n" * 200_000, "the program is too long"),
    ("\0", "exception"),
    ("# \ud800\n" + RIGHT, ""),
])  # fmt: skip
def test_reasons(source, reason):
    verdict = run_tests(source, "f", TWICE, Limits(seconds=3 if reason == "timeout" else 20))
    assert verdict.passed == (reason == "") and verdict.reason.startswith(reason), verdict


@needs_box
def test_a_program_longer_than_an_argument_may_be_runs():
    assert run_tests("# " + "x" * 900_000 + "\n" + RIGHT, "f", TWICE).passed


@needs_box
def test_tests_that_catch_everything_pass_nothing_that_is_gone():
    tests = "def check(candidate):\n    try:\n        candidate(1)\n    except BaseException:\n        pass\n"
    assert "gone" in run_tests("import os\ndef f(x):\n    os._exit(0)\n", "f", tests).reason
    assert "unplain" in run_tests("def f(x):\n    return f\n", "f", tests).reason
    expects = tests.replace("pass", "return").replace("candidate(1)", "candidate(1)\n        assert False")
    expects = expects.replace("BaseException", "Exception")
    assert run_tests("def f(x):\n    raise ValueError\n", "f", expects).passed  # this is what such tests are for


@pytest.mark.parametrize(("told", "reason"), [
    ("ready\n{} passed\n", ""), ("ready\n{} failed: x\n", "x"), ("ready\n{} failed: \n", "no reason"),
    ("ready\n{}\n", "no reason"), ("ready\n{} \n", "no reason"), ("ready\n{} passed", "no verdict"),
    ("ready\n{} passed\n\n", "no verdict"), ("{} passed\n", "no verdict"), ("ready\n0 passed\n", "no verdict"),
    ("ready\n passed\n", "no verdict"), ("", "no verdict"),
])  # fmt: skip
def test_one_thing_only_is_a_pass(told, reason):
    trial = execution._Trial(Limits(), unsafe=False)
    trial.verdict.kept = told.format(trial.secret).encode()
    outcome = trial.outcome()
    for pipe in trial.pipes:
        pipe.close()
    assert outcome.startswith(reason) and (outcome == "") == (reason == "")


@needs_box
def test_tests_that_do_not_load_say_so():
    assert run_tests(RIGHT, "f", "def check(c:").reason.startswith("the tests do not load: SyntaxError")
    assert "AttributeError" in run_tests(RIGHT, "f", "x = 1").reason


@needs_box
def test_what_is_printed_is_kept_and_does_not_matter():
    source = "import sys\nprint('a')\ndef f(x):\n    print('passed', file=sys.stderr)\n    return 3"
    verdict = run_tests(source, "f", TWICE)
    assert verdict == Verdict(False, "wrong answer", "a\npassed\n")


@needs_box
def test_many_at_once_from_a_pool_of_threads():
    sources = [RIGHT, "def f(x):\n    return x\n", "import os\nos._exit(0)\n"] * 6
    with ThreadPoolExecutor(6) as pool:
        verdicts = list(pool.map(lambda source: run_tests(source, "f", TWICE, Limits(seconds=60)), sources))
    assert [v.passed for v in verdicts] == [True, False, False] * 6


@needs_box
def test_without_a_control_group_each_process_is_bounded_and_no_file_is_written(monkeypatch):
    monkeypatch.setattr(sandbox, "memory_folder", lambda: None)
    assert run_tests(RIGHT, "f", TWICE).passed
    assert run_tests("def f(x):\n    return [0] * 10**9\n", "f", TWICE).reason == "memory"
    assert "Read-only" in run_tests("open('x', 'w').close()", "f", TWICE).reason
    forks = "import os, time\nn = 0\nfor _ in range(100):\n    try:\n        if os.fork() == 0:\n"
    forks += "            time.sleep(9)\n        n += 1\n    except OSError:\n        break\nprint(n)\n" + RIGHT
    verdict = run_tests(forks, "f", TWICE, Limits(seconds=60))
    assert verdict.passed and 1 <= int(verdict.printed) < Limits().processes


# --------------------------------------------------------------------------- whole programs


@needs_box
def test_a_program_and_how_it_ends():
    assert execute_code("print(6 * 7)") == execution.ExecutionResult(True, "42\n", "")
    failed = execute_code("import sys\nprint('x')\nprint('y', file=sys.stderr)\n1 / 0", timeout=60)
    assert (failed.success, failed.stdout, failed.error) == (False, "x\n", "ZeroDivisionError: division by zero")
    assert failed.stderr.startswith("y\nTraceback")
    assert execute_code("__name__ == '__main__' or 1 / 0", timeout=60).success
    assert execute_code("raise SystemExit(3)", timeout=60).error == "exit status 3"
    assert execute_code("import os\nos.kill(os.getpid(), 11)", timeout=60).error == "ended by signal 11"


@needs_box
def test_a_program_is_bounded():
    late = execute_code("import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1e6)", timeout=1)
    assert late.timeout and late.error == "timeout" and not late.success
    big = execute_code("x = [0] * 10**9", timeout=60)
    assert big.memory_exceeded and big.error == "memory"
    loud = execute_code("while True: print('x' * 10_000)", timeout=60)
    assert loud.error == "output limit" and len(loud.stdout) == execution.KEEP
    assert execute_code("x" * 2_000_000).error == "the program is too long"


# --------------------------------------------------------------------------- with and without a sandbox


@pytest.fixture
def no_bubblewrap(monkeypatch, tmp_path):
    cached = (sandbox.version, sandbox.problem)
    for function in cached:
        function.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    yield
    for function in cached:
        function.cache_clear()


def test_without_bubblewrap_it_is_refused_unless_asked_for(no_bubblewrap):
    for run in (lambda: run_tests(RIGHT, "f", TWICE), lambda: execute_code("print(1)")):
        with pytest.raises(UserError, match=r"apt-get install bubblewrap.*--unsafe_execution"):
            run()
    assert sandbox.describe().startswith("none: bubblewrap is not installed")
    assert run_tests(RIGHT, "f", TWICE, unsafe=True).passed
    assert execute_code("print(1)", unsafe=True).stdout == "1\n"
    assert sandbox.describe(unsafe=True) == "UNSAFE: without a sandbox"


def test_a_bubblewrap_that_does_not_work_or_is_too_old_is_named(no_bubblewrap, monkeypatch):
    script = '[ "$1" = --version ] && echo bubblewrap 0.9.0 && exit\necho "bwrap: No permissions" >&2\nexit 1\n'
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is root's alone, as whom bubblewrap does not run
        Path(folder).chmod(0o755)
        monkeypatch.setenv("PATH", folder)
        for content, problem in ((b"#!/bin/sh\necho bubblewrap 0.4.1\n", "bubblewrap 0.4.1 is too old"),
                                 (b"#!/bin/sh\n" + script.encode(), "does not work here (bwrap: No permissions)"),
                                 (b"for another processor", "bubblewrap is not installed")):
            (Path(folder) / "bwrap").write_bytes(content)
            (Path(folder) / "bwrap").chmod(0o755)
            for function in (sandbox.version, sandbox.problem):
                function.cache_clear()
            assert problem in sandbox.problem()


@needs_box
def test_where_bubblewrap_works_so_does_the_sandbox():
    assert sandbox.problem() == ""


@needs_box
def test_the_report_can_say_what_held_it():
    assert sandbox.describe().startswith(f"bubblewrap {sandbox.version()}, Python 3.")


# trap: Sandbox (children that outlive the run)
@needs_box
@pytest.mark.parametrize("unsafe", [False, True])
def test_nothing_outlives_a_parent_that_is_killed(unsafe, tmp_path):
    """SIGKILL of the grading process while a candidate sleeps, deaf to signals; without a sandbox its channel ends."""
    mark = f"sleeper_{random.SystemRandom().randrange(2**60)}"
    source = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\n"
    source += f"def {mark}(x):\n    time.sleep(1 if {unsafe} else 1e6)\n"
    code = "import sys\nfrom nanochat.execution import Limits, run_tests\n"
    code += f"run_tests({source!r}, {mark!r}, {TWICE!r}, Limits(seconds=1e6), unsafe={unsafe})"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}  # where it leaves its files
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env)
    try:
        wait_for(lambda: len(alive(mark)) >= (2 if unsafe else 3))  # the parent's command line has it too
        time.sleep(0.3)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not alive(mark))


@pytest.mark.skipif(cgroup.memory_folder() is None, reason="no control group can be made here")
def test_groups_of_processes_that_are_gone_are_removed():
    folder, _ = cgroup.memory_folder()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = [folder / f"nanochat-{gone.pid}-{started}-0" for started in (1, 99)]
    left.append(folder / f"nanochat-{os.getpid()}-1-0")  # our number, but it was another process's then
    kept = cgroup.MemoryGroup((folder, cgroup.memory_folder()[1]), 64 << 20)
    for path in left:
        path.mkdir()
    cgroup.memory_folder.cache_clear()
    assert cgroup.memory_folder() is not None
    assert not any(path.exists() for path in left) and kept.path.exists()
    kept.remove()
    assert not kept.path.exists()


@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_plain_files_is_no_control_group(tmp_path, version):
    """As /sys/fs/cgroup is, in which version 1 has its hierarchies: files made there would bound nothing."""
    with pytest.raises(OSError):
        cgroup.MemoryGroup((tmp_path, version), 64 << 20)
    assert list(tmp_path.iterdir()) == []


def wait_for(true, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited for ever"
        time.sleep(0.05)


def test_without_a_sandbox_what_stays_in_the_session_is_killed():
    mark = f"child_{random.SystemRandom().randrange(2**60)}"
    source = f"import os, time\nif os.fork() == 0:\n    time.sleep(1e6)\ndef {mark}(x):\n    return 2 * x\n"
    verdict = run_tests(source, mark, TWICE, Limits(seconds=5, processes=100_000), unsafe=True)
    assert not verdict.passed or not alive(mark)  # two processes read the calls
    wait_for(lambda: not alive(mark))


def test_any_folder_can_be_removed(tmp_path):
    """3 000 folders in each other, a folder without rights, links to elsewhere and to itself."""
    top, kept = tmp_path / "top", tmp_path / "kept"
    kept.write_text("x", encoding="utf-8")
    top.mkdir()
    (top / "link").symlink_to(tmp_path)
    (top / "loop").symlink_to("loop")
    (top / "closed").mkdir()
    (top / "closed/file").touch()
    (top / "closed").chmod(0)
    home = os.getcwd()
    try:
        os.chdir(top)
        for _ in range(3000):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
    finally:
        os.chdir(home)
    sandbox.remove_tree(top)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and kept.read_text(encoding="utf-8") == "x"
    sandbox.remove_tree(top)  # what is not there is as wanted: a program may have removed itself
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


# --------------------------------------------------------------------------- HumanEval


@needs_box
@needs_real
def test_all_right_answers_pass():
    asked = code_mutants.problems(REAL)
    assert len(asked) == 164

    def judged(problem: dict[str, str]) -> Verdict:
        program = problem["prompt"] + problem["canonical_solution"]
        return run_tests(program, problem["entry_point"], code_mutants.tests_of(problem), Limits(seconds=60))

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(judged, asked))
    assert [v for v in verdicts if not v.passed] == []


@needs_box
@needs_real
def test_a_sample_of_wrong_answers_fails():
    """`python -m tests.chaos --mutants=1640` has them all."""
    cases = [(problem, kind) for problem in code_mutants.problems(REAL) for kind in code_mutants.KINDS]
    assert len(cases) >= 1000
    sample = cases[7::27]
    assert {kind for _, kind in sample} == set(code_mutants.KINDS) and len(sample) >= 60
    assert code_mutants.passed(sample, 2) == []


@needs_box
def test_a_machine_without_descriptors_left_is_no_wrong_answer():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(3):
            os.close(taken.pop())
        with pytest.raises(UserError, match="ulimit -n"):
            run_tests("def f(): return 1", "f", "def check(candidate):\n    assert candidate() == 1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
