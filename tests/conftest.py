"""What holds for every test: one thread a process (tiny models; two test workers share two cores), a private base
directory, no network."""

from __future__ import annotations

import os
import signal

# A background job inherits an ignored SIGINT, what nohup starts an ignored SIGHUP, and so would every process that a
# test starts and sends one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Before torch is imported, and inherited by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import settings

# No test asserts a time. In CI the examples are the same each time (a finding must not depend on the day); at a desk
# they are new ones, so that there are findings.
settings.register_profile("nanochat", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("nanochat")


@pytest.fixture(scope="session")
def pocket_base(tmp_path_factory):
    """A base directory in which the pocket world has been generated once for the whole session."""
    from nanochat.dataset import data_dir

    base = tmp_path_factory.mktemp("pocket_base")
    before = os.environ.get("NANOCHAT_BASE_DIR")
    os.environ["NANOCHAT_BASE_DIR"] = str(base)
    try:
        data_dir("pocket")
    finally:
        if before is None:
            del os.environ["NANOCHAT_BASE_DIR"]
        else:
            os.environ["NANOCHAT_BASE_DIR"] = before
    return base


@pytest.fixture(autouse=True)
def _private_base_dir(monkeypatch, tmp_path):
    """No test may read or write the user's own models."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "nanochat_base"))
