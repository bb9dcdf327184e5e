"""Whether this machine can have a sandbox at all, asked without our code: where it can, ours must work, not be skipped.

    @needs_box
    def test_...
"""

from __future__ import annotations

import functools
import shutil
import subprocess

import pytest

from nanochat.sandbox_python import find_python


@functools.cache
def why_none() -> str:
    """"" where bubblewrap runs a program in namespaces of its own, else why not."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap is not installed"
    command = [bwrap, "--unshare-user", "--unshare-all", "--disable-userns", "--ro-bind", "/", "/", "/bin/true"]
    tried = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    if tried.returncode:
        return f"bubblewrap does not work here: {tried.stderr.decode('utf-8', 'replace').strip()}"
    return "" if find_python() else "there is no Python that a user without rights may read"


needs_box = pytest.mark.skipif(bool(why_none()), reason=why_none())
