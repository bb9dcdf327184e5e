"""Files are whole or not there, and their hash is of what was given. (What a power loss leaves: test_power_loss.py.)"""

from __future__ import annotations

import hashlib
import os
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import files
from nanochat.files import atomic_write, make_dirs, remove_files, sha256_file, write_file


@given(pieces=st.lists(st.binary(max_size=40), max_size=6), piece=st.integers(1, 16))
def test_what_was_given_is_there_and_hashed(tmp_path_factory, pieces, piece):
    folder, before = tmp_path_factory.mktemp("files"), files.PIECE
    files.PIECE = piece  # many write calls
    try:
        digest = write_file(folder / "new" / "file", map(memoryview, pieces))
    finally:
        files.PIECE = before
    assert (folder / "new" / "file").read_bytes() == b"".join(pieces)
    assert digest == hashlib.sha256(b"".join(pieces)).hexdigest() == sha256_file(folder / "new" / "file")
    assert stat.S_IMODE((folder / "new" / "file").stat().st_mode) == 0o644
    assert os.listdir(folder / "new") == ["file"]


def test_pieces_that_fail_leave_the_old_file(tmp_path):
    atomic_write(tmp_path / "file", "old")

    def pieces():
        yield b"new"
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError):
        write_file(tmp_path / "file", pieces())
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["file"]


def test_a_file_can_be_private(tmp_path):
    """Also one that was there before, for others to read."""
    atomic_write(tmp_path / "file", "public")
    atomic_write(tmp_path / "file", "private", mode=0o600)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_writers_of_one_file_do_not_mix(tmp_path):
    """Each has a temporary file of its own: the last rename wins, whole."""
    texts = [str(i) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=atomic_write, args=(tmp_path / "file", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text(encoding="utf-8") in texts and os.listdir(tmp_path) == ["file"]


def test_folders_are_made_once_and_what_is_not_there_is_removed_already(tmp_path):
    assert make_dirs(tmp_path / "a/b/c") == make_dirs(tmp_path / "a/b/c") and (tmp_path / "a/b/c").is_dir()
    remove_files(tmp_path / "a", ["absent"])
    with pytest.raises(OSError):
        make_dirs(atomic_write(tmp_path / "file", "x") and tmp_path / "file/below")
