"""Files of dataset repositories on the hub (or a mirror of it), fetched in parallel and verified.

`huggingface_hub` gives addresses, token, HTTP session and the kinds of errors, so `HF_ENDPOINT`, `HF_HUB_OFFLINE`,
`HF_TOKEN` and `HF_HUB_DOWNLOAD_TIMEOUT` mean what they mean everywhere. The loop that fetches is ours, because the
library's (2.4) begins again with the first byte when a process was killed. What it promises:

- a file gets its name only after its size and SHA-256 were found right, and its bytes are on the disk by then;
- what has arrived is kept: the next attempt, also that of another process, asks for the rest only;
- wrong content is thrown away and fetched from byte 0; attempts are bounded, with growing pauses between them;
- two processes share the work, and neither harms the other.

There is nothing to run here; `python -m nanochat.dataset` fetches, `python -m tests.hub_mirror` is a small mirror.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from nanochat.common import UserError, check_disk, print0, stage_progress
from nanochat.files import fsync_dir
from nanochat.hub_file import HubFile, Listing, described, may_lie_here, size_of, what_is_wrong

STAGING = ".hub"  # inside the target folder, so that the last step is a rename; hidden from whoever reads the folder
ATTEMPTS = 8  # requests in a row that bring too little: then the file is given up
PROGRESS = 1_000_000  # bytes, or a hundredth of the file: less is too little, or a byte a request would go on for ever
WRONG_CONTENTS = 8  # times that all of a file came, or came in an unusable way, and was thrown away
LIST_ATTEMPTS = 4
BACKOFF, BACKOFF_MAX = 1.0, 30.0  # seconds; doubled with every failure, and drawn from the upper half
RETRY_AFTER_MAX = 120.0  # seconds: a server may ask for more, it does not get it
CHANCE = random.SystemRandom()  # of its own: a download must not move the seeded generator of a run
REMEDY = "check the network or HF_ENDPOINT and run it again (what has arrived stays), or use --data=pocket"


# --------------------------------------------------------------------------- what there is


def list_files(repo: str, *, revision: str = "main", under: str = "", suffix: str = ".parquet") -> Listing:
    """The files of `repo` below the folder `under` whose names end in `suffix`, at the commit that `revision` is now.

    Raises UserError: offline, no such repository, revision or folder, access refused, no such file, no network.
    """
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    where = f"{constants.ENDPOINT}/api/datasets/{repo}"
    try:
        validate_repo_id(repo)
        commit = _ask(f"{where}/revision/{quote(revision, safe='')}")[0]["sha"]
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"it calls its commit {commit!r}")
        folder = f"/{quote(under, safe='')}" if under else ""
        entries, page = [], f"{where}/tree/{commit}{folder}?recursive=true"
        while page:
            more, page = _ask(page)
            entries += [e for e in more if e["type"] == "file" and e["path"].endswith(suffix)]
        files = [described(e) for e in entries]
    except OfflineModeIsEnabled as e:
        raise UserError(f"{repo} cannot be listed: HF_HUB_OFFLINE is set (unset it, or use --data=pocket)") from e
    except HfHubHTTPError as e:
        raise UserError(_why_not_listed(repo, revision, under, e)) from e
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError, AttributeError) as e:
        network = isinstance(e, httpx2.HTTPError)  # else a name that none can have, or no hub's answer
        remedy = REMEDY if network else "a name is OWNER/NAME; HF_ENDPOINT must be a hub or a mirror of it"
        raise UserError(f"{repo} cannot be listed at {constants.ENDPOINT}: {_reason(e)} ({remedy})") from e
    if odd := [f.name for f in files if not may_lie_here(f.name)]:
        print0(f"note: {len(odd)} file(s) of {repo} are left out, for names like {odd[0]!r}")
    files = sorted((f for f in files if may_lie_here(f.name)), key=lambda f: f.name)
    if not files:
        place = f"the folder {under} of {repo}" if under else repo
        raise UserError(f"{place} has no {suffix} file at revision {revision}: choose another repository or folder")
    return Listing(repo, commit, tuple(files))


def _ask(url: str) -> tuple[Any, str]:
    """The JSON at `url`, and the address of its next page ("" on the last). Tries again what may be better next time.

    The library's `list_repo_tree` would do, but it waits without limit for a server that has fallen silent.
    """
    import httpx2
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import hf_raise_for_status

    for attempt in range(LIST_ATTEMPTS):
        wait = None
        try:
            answer = get_session().get(url, headers=_headers(url), timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(answer)
            break
        except OfflineModeIsEnabled:
            raise
        except httpx2.HTTPError as e:
            if attempt + 1 == LIST_ATTEMPTS or isinstance(e, HfHubHTTPError) and _is_final(e.response.status_code):
                raise
            if isinstance(e, HfHubHTTPError):
                wait = _asked_to_wait(e.response.headers)
        time.sleep(_pause(attempt, wait))
    return answer.json(), answer.links.get("next", {}).get("url", "")


def _headers(url: str) -> dict[str, str]:
    """What the library sends along; the token only to the hub itself, wherever the link to a next page may lead."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers(token=None if url.startswith(f"{constants.ENDPOINT}/") else False)
    if not headers.get("authorization", "").isascii():
        raise UserError("HF_TOKEN holds characters that no token has: set it to the token of your account, or unset it")
    return headers


def _why_not_listed(repo: str, revision: str, under: str, error) -> str:
    """One line for an answer that says no."""
    from huggingface_hub import constants, errors

    where, status = constants.ENDPOINT, error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} is gated: accept its terms at {where}/datasets/{repo} and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision '{revision}' at {where}: choose a branch, tag or commit of it"
    if under and isinstance(error, errors.EntryNotFoundError):
        return f"{repo} has no folder '{under}' at revision {revision}: choose one that it has"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403, 404):
        return f"there is no dataset {repo} at {where}, or it is private: check the name OWNER/NAME, or set HF_TOKEN"
    return f"{repo} cannot be listed at {where}: HTTP {status} ({REMEDY})"


# --------------------------------------------------------------------------- fetching


def fetch(listing: Listing, files: Iterable[HubFile], folder: str | Path, *, workers: int = 8,
          landed: Callable[[HubFile, Path], None] | None = None,
          trusted: Callable[[HubFile, Path], bool] | None = None) -> list[Path]:
    """Have `files` of `listing` below `folder`, whole and verified; their paths, in the order given.

    A file that is there and right is not fetched again. Its bytes are hashed, unless `trusted(file, path)` says that
    this was done: it is asked (in any thread) at the start, and again under the file's lock. `landed(file, path)` is
    called in the caller's thread, once for each file, as soon as it is there, fetched or found, and before another
    process gets the file's lock. Ctrl-C ends it at once, and so does an error out of `landed`; the next call goes on
    where this one stopped. Where all is there and trusted nothing is written, not even a lock.
    Raises UserError: disk too small or not writable; or, after all others are there, one that names each file that
    could not be had and why.
    """
    files, folder = list(dict.fromkeys(files)), Path(folder)
    for file in files:
        if not may_lie_here(file.name):
            raise UserError(f"{listing.repo} holds a file named {file.name!r}, which is not fetched: do without it")
    job = _Job(listing, folder, trusted or (lambda file, path: False))
    failed: dict[str, str] = {}

    def decided(file: HubFile, problem: str | None) -> None:
        if problem:
            failed[file.name] = problem
        elif landed:
            landed(file, folder / file.name)

    unsure = []
    for file in files:
        if job.trusts(file):
            decided(file, None)
        else:
            unsure.append(file)
    missing = [f for f in unsure if size_of(folder / f.name) != f.bytes]
    check_disk(folder, sum(max(0, f.bytes - size_of(job.part(f))) for f in missing))
    if missing:
        size = sum(f.bytes for f in missing) / 1e6
        print0(f"fetching {len(missing)} file(s), {size:,.1f} MB, of {listing.repo} ({listing.revision[:12]})")
    if unsure:
        job.run(unsure, max(1, workers), decided)
    if failed:
        reasons = ", ".join(f"{name} ({why})" for name, why in sorted(failed.items()))
        raise UserError(f"could not fetch {len(failed)} of {len(files)} file(s) of {listing.repo}: {reasons}: {REMEDY}")
    return [folder / file.name for file in files]


class _Failed(Exception):
    """One attempt came to nothing."""

    def __init__(self, reason: str, *, wait: float | None = None, discard: bool = False, final: bool = False):
        super().__init__(reason)
        self.wait = wait  # seconds that the server asked for
        self.discard = discard  # what has arrived is of no use
        self.final = final  # another attempt would end the same way


class _Stopped(Exception):
    """The caller wants no more."""


class _Job:
    """One call of `fetch`: threads that take files from a list, and what they report."""

    def __init__(self, listing: Listing, folder: Path, trusted: Callable[[HubFile, Path], bool]):
        self.listing, self.folder, self.trusted = listing, folder, trusted
        self.staging = folder / STAGING
        self.stop = threading.Event()
        self.todo: queue.SimpleQueue[tuple[HubFile, bool]] = queue.SimpleQueue()  # file, wait for its lock?
        self.done: queue.SimpleQueue[tuple[HubFile, str | None | BaseException, threading.Event]] = queue.SimpleQueue()
        self.have: dict[str, int] = {}  # bytes of each file, for the progress bar

    def part(self, file: HubFile) -> Path:
        """Where the bytes of `file` gather. Other content (of another revision) gathers elsewhere."""
        key = hashlib.sha256(f"{file.name} {file.sha256 or file.blob_id}".encode()).hexdigest()[:32]
        return self.staging / f"{key}.part"  # no part of its name: that may be as long as a name can be

    def trusts(self, file: HubFile) -> bool:
        path = self.folder / file.name
        return path.is_file() and self.trusted(file, path)

    def run(self, files: list[HubFile], workers: int, decided: Callable[[HubFile, str | None], None]) -> None:
        """Call `decided(file, None)` or `decided(file, why it could not be had)` for each file, here, one at a time."""
        try:
            self.staging.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(_not_written(self.folder, e)) from e
        for file in files:
            self.have[file.name] = 0
            self.todo.put((file, False))
        # Daemons: at Ctrl-C nobody waits for a thread that waits for a silent server.
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(workers, len(files)))]
        for thread in threads:
            thread.start()
        total, left = sum(f.bytes for f in files), len(files)
        try:
            with stage_progress() as tell:
                while left:
                    tell(f"bytes of {self.listing.repo}", sum(self.have.values()), total)
                    try:
                        file, problem, heard = self.done.get(timeout=0.2)
                    except queue.Empty:
                        continue
                    if isinstance(problem, BaseException):
                        raise problem
                    decided(file, problem)
                    heard.set()
                    left -= 1
        finally:
            self.stop.set()
            deadline = time.monotonic() + 1
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        """A thread's life: files from the list until it is empty.

        A file that another process has locked is put back: first all that is free, then the waiting.
        """
        while not self.stop.is_set():
            try:
                file, patient = self.todo.get(block=False)
            except queue.Empty:
                return
            try:
                with FileLock(f"{self.part(file)}.lock").acquire(blocking=patient, cancel_check=self.stop.is_set):
                    self._report(file, self._have(file))
            except Timeout:
                self.todo.put((file, True))
            except _Stopped:
                return
            except OSError as e:  # the disk's; what the network does is an attempt that failed
                self._report(file, UserError(_not_written(self.folder, e)))
            except BaseException as e:  # a bug: the caller's thread raises it
                self._report(file, e)

    def _report(self, file: HubFile, problem: str | None | BaseException) -> None:
        """Tell the caller's thread, and wait until it has heard: who gets the lock next finds what it has recorded."""
        heard = threading.Event()
        self.done.put((file, problem, heard))
        while not (heard.wait(0.1) or self.stop.is_set()):
            pass

    def _have(self, file: HubFile) -> str | None:
        """See to it that `file` is there; None, or why it could not be had. Its lock is held."""
        path, part = self.folder / file.name, self.part(file)
        if not self.trusts(file) and (not path.is_file() or what_is_wrong(path, file)):
            if problem := self._download(file, part):
                return problem
            with open(part, "rb+") as f:
                os.fsync(f.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, path)
            fsync_dir(path.parent)
        self.have[file.name] = file.bytes
        return None

    def _download(self, file: HubFile, part: Path) -> str | None:
        """Attempts, until `part` is whole and right (None) or they are used up (the last one's reason)."""
        attempts = idle = wrong = 0
        counted, enough = size_of(part), min(PROGRESS, max(1, file.bytes // 100))
        while True:
            attempts += 1
            try:
                if size_of(part) < file.bytes or not part.exists():
                    self._request(file, part)
                problem = what_is_wrong(part, file)
                if not problem:
                    return None
                failure = _Failed(problem, discard=size_of(part) >= file.bytes)
            except _Failed as e:
                failure = e
            if failure.discard:
                part.unlink(missing_ok=True)
                wrong += 1
            size = self.have[file.name] = size_of(part)
            idle = 0 if size - counted >= enough else idle + 1
            counted = min(counted, size) if idle else size
            if failure.final:
                return str(failure)
            if idle >= ATTEMPTS or wrong >= WRONG_CONTENTS:
                return f"{failure}, {attempts} attempts"
            if self.stop.wait(_pause(idle, failure.wait)):
                raise _Stopped

    def _request(self, file: HubFile, part: Path) -> None:
        """One request for what `part` lacks; what comes is appended, as long as it can be the rest of this file."""
        import httpx2
        from huggingface_hub import constants, get_session, hf_hub_url
        from huggingface_hub.errors import OfflineModeIsEnabled

        url = hf_hub_url(self.listing.repo, file.name, repo_type="dataset", revision=self.listing.revision)
        start = size_of(part)
        headers = {**_headers(url), "Accept-Encoding": "identity"}  # bytes as they are: an offset must mean one
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
                _check_answer(answer, start)
                with open(part, "ab") as out:
                    if start and answer.status_code == 200:  # all of it, though only the rest was asked for
                        out.truncate(0)
                        start = 0
                    for block in answer.iter_raw():
                        start += len(block)
                        if start > file.bytes:
                            raise _Failed(f"more than the {file.bytes:,} bytes that it should have", discard=True)
                        out.write(block)
                        self.have[file.name] = start
                        if self.stop.is_set():
                            raise _Stopped
        except OfflineModeIsEnabled as e:
            raise _Failed("HF_HUB_OFFLINE is set", final=True) from e
        except httpx2.HTTPError as e:
            raise _Failed(_reason(e)) from e


def _check_answer(answer, start: int) -> None:
    """Raise `_Failed` unless the body of `answer` begins at byte `start` of the file, or at byte 0 (status 200)."""
    status = answer.status_code
    if status == 200:
        return
    if status == 206:
        if answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return
        raise _Failed("HTTP 206 with another range than the one asked for", discard=True)
    if status == 416:  # the rest of a file whose length we know cannot be asked for: one of the two is wrong about it
        raise _Failed("HTTP 416", discard=True)
    hint = {401: ", set HF_TOKEN", 403: ", set HF_TOKEN or accept the terms of the repository"}.get(status, "")
    raise _Failed(f"HTTP {status}{hint}", final=_is_final(status), wait=_asked_to_wait(answer.headers))


def _is_final(status: int) -> bool:
    """Whether a server that said this will say it again: 404 and its like, but not "too busy" or "broken"."""
    return 300 <= status < 500 and status not in (408, 416, 425, 429)


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds after which a server wants to be asked again: `Retry-After` as a number or a date, or the hub's own
    `RateLimit: "resolvers";r=0;t=55` (55 seconds). None if it does not say.
    """
    from huggingface_hub.utils import parse_ratelimit_headers

    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit and limit.remaining == 0 else None


def _pause(failures: int, asked: float | None) -> float:
    """Seconds until the next attempt: what the server asked for (up to a bound), or longer after each failure. Drawn
    at random within bounds, so that many waiting clients do not come back at the same instant.
    """
    if asked is not None:
        return min(asked, RETRY_AFTER_MAX) + CHANCE.uniform(0, BACKOFF)
    return min(BACKOFF_MAX, BACKOFF * 2.0**failures) * CHANCE.uniform(0.5, 1)


def _reason(error: BaseException) -> str:
    """The first line of what an exception says, or its kind: `ReadTimeout`."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _not_written(folder: Path, error: OSError) -> str:
    what = error.strerror or _reason(error)
    return f"cannot write to {folder} ({what}): free space or rights there, or set NANOCHAT_BASE_DIR to another folder"
