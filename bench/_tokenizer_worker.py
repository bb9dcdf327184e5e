"""One measurement of bench/tokenizer.py in a process of its own: `python -I bench/_tokenizer_worker.py JOB`.

JOB is a JSON object; the last line printed is one too. A process for each measurement, because ours and a rival are
both called `rustbpe`, because caches and memory must be cold, and because CPU seconds and peak memory belong to a
process. It runs under our interpreter or under that of the rivals' environment, so it imports nothing of nanochat.

    {"task": "train",  "rival": R, "texts": FILE, "megabytes": 100, "pattern": P, "vocab_size": V, "out": RANKS or null}
    {"task": "encode", "rival": R, "texts": FILE, "megabytes": 100, "pattern": P, "ranks": RANKS, "threads": 2}
    {"task": "ids",    ... as encode, "out": FILE that gets 8 bytes a document, a digest of its ids}

Texts are loaded, libraries imported and encoders constructed before the clock starts; nothing is converted or counted
before it stops.
"""

from __future__ import annotations

import base64
import gc
import hashlib
import importlib
import importlib.metadata
import json
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

MODULES = {"ours": "rustbpe", "rustbpe": "rustbpe", "tokenizers": "tokenizers", "tiktoken": "tiktoken",
           "tiktoken-numpy": "tiktoken"}
CHUNK_BYTES = 16_000_000  # the task "ids" holds so much text at a time

Job = dict
Run = Callable[[list[str]], object]
Ranks = list[tuple[bytes, int]]


# ------------------------------------------------------------------------------ files between parent and worker


def read_texts(path: str, limit: float) -> Iterator[tuple[str, int]]:
    """`(text, bytes)` until `limit` bytes have been given. A length (4 bytes, little-endian), then UTF-8, each."""
    with open(path, "rb") as f:
        while limit > 0 and (head := f.read(4)):
            raw = f.read(struct.unpack("<I", head)[0])
            limit -= len(raw)
            yield raw.decode("utf-8"), len(raw)


def write_ranks(path: str, ranks: Ranks) -> None:
    """tiktoken's format: base64 of the bytes, a space, the rank."""
    with open(path, "w", encoding="ascii") as f:
        for token, rank in ranks:
            f.write(f"{base64.b64encode(bytes(token)).decode('ascii')} {rank}\n")


def read_ranks(path: str) -> Ranks:
    with open(path, encoding="ascii") as f:
        return [(base64.b64decode(token), int(rank)) for token, rank in map(str.split, f)]


# ---------------------------------------------------------------------------------------------------------- trainers


def trainer_of_rustbpe(job: Job) -> tuple[Run, Callable[[], Ranks]]:
    """Ours and rustbpe 0.1.0 are called alike."""
    from rustbpe import Tokenizer

    tokenizer = Tokenizer()
    return (lambda texts: tokenizer.train_from_iterator(iter(texts), job["vocab_size"], pattern=job["pattern"]),
            lambda: list(tokenizer.get_mergeable_ranks()))


def trainer_of_tokenizers(job: Job) -> tuple[Run, Callable[[], Ranks]]:
    """The set-up of nanochat's HuggingFaceTokenizer; its merges are not compared (it breaks ties in another way)."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(job["pattern"]), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    trainer = trainers.BpeTrainer(vocab_size=job["vocab_size"], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    return lambda texts: tokenizer.train_from_iterator(iter(texts), trainer), list


TRAINERS = {"ours": trainer_of_rustbpe, "rustbpe": trainer_of_rustbpe, "tokenizers": trainer_of_tokenizers}


# ---------------------------------------------------------------------------------------------------------- encoders
# Each gives `(run, ids)`: run(texts) is what is timed; ids(result) yields the ids of each text as a list or an array.


def encoder_of_ours(job: Job, ranks: Ranks):
    from rustbpe import Tokenizer

    tokenizer = Tokenizer.from_ranks(ranks, job["pattern"])

    def ids(result: tuple[bytearray, bytearray]) -> Iterator:
        import numpy as np  # here, where the clock has stopped

        dtype = np.uint16 if tokenizer.vocab_size <= 65536 else np.uint32
        flat, offsets = np.frombuffer(result[0], dtype), np.frombuffer(result[1], np.uint64).tolist()
        return (flat[begin:end] for begin, end in zip(offsets, offsets[1:]))

    return lambda texts: tokenizer.encode_batch(texts, num_threads=job["threads"]), ids


def encoding_of_tiktoken(job: Job, ranks: Ranks):
    import tiktoken

    return tiktoken.Encoding("benchmark", pat_str=job["pattern"], mergeable_ranks=dict(ranks), special_tokens={})


def encoder_of_tiktoken(job: Job, ranks: Ranks):
    encoding = encoding_of_tiktoken(job, ranks)
    return lambda texts: encoding.encode_ordinary_batch(texts, num_threads=job["threads"]), iter


def encoder_of_tiktoken_numpy(job: Job, ranks: Ranks):
    """The same without Python lists: arrays of uint32."""
    encoding = encoding_of_tiktoken(job, ranks)

    def run(texts: list[str]) -> list:
        with ThreadPoolExecutor(job["threads"]) as pool:
            return list(pool.map(encoding.encode_to_numpy, texts))

    return run, iter


def encoder_of_tokenizers(job: Job, ranks: Ranks):
    """From the tokenizer.json that the parent left beside the ranks."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(job["ranks"] + ".json")
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    return lambda texts: encode(texts, add_special_tokens=False), lambda result: (one.ids for one in result)


ENCODERS = {"ours": encoder_of_ours, "tiktoken": encoder_of_tiktoken, "tiktoken-numpy": encoder_of_tiktoken_numpy,
            "tokenizers": encoder_of_tokenizers}


# ------------------------------------------------------------------------------------------------------- measurement


def memory(name: str) -> int | None:
    """`VmRSS` (resident now) or `VmHWM` (its peak) in bytes, from Linux; elsewhere None."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith(name + ":"))
    except (OSError, StopIteration):
        return None


def peak_memory() -> int:
    """VmHWM where there is one: on Linux ru_maxrss also remembers what the parent held when it started us."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return memory("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)


def cpu_seconds() -> float:
    """User and system time of all threads of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def timed(run: Run, texts: list[str]) -> tuple[object, dict]:
    """`run(texts)` and what it cost. `growth`: peak memory beyond what was resident when the clock started."""
    gc.collect()
    resident = memory("VmRSS")
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = run(texts)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    peak = peak_memory()
    return result, {"wall": wall, "cpu": cpu, "peak": peak, "growth": None if resident is None else peak - resident}


def train(job: Job, texts: list[str]) -> dict:
    run, ranks = TRAINERS[job["rival"]](job)
    _, cost = timed(run, texts)
    if job.get("out"):
        write_ranks(job["out"], ranks())
    return cost


def encode(job: Job, texts: list[str]) -> dict:
    """`cpu_in_all`: with the construction of the encoder, for those who would call its tables a part of the work."""
    ranks = read_ranks(job["ranks"])
    wall, cpu = time.perf_counter(), cpu_seconds()
    run, ids = ENCODERS[job["rival"]](job, ranks)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    result, cost = timed(run, texts)
    return {**cost, "construction": wall, "cpu_in_all": cost["cpu"] + cpu, "tokens": sum(map(len, ids(result)))}


def chunks(texts: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Texts in lists of about `CHUNK_BYTES`."""
    chunk: list[str] = []
    held = 0
    for text, size in texts:
        chunk.append(text)
        held += size
        if held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    yield chunk


def digest_ids(job: Job) -> dict:
    """Encode everything, a chunk at a time, and write a digest of each document's ids: what the parent compares."""
    import numpy as np

    run, ids = ENCODERS[job["rival"]](job, read_ranks(job["ranks"]))
    tokens = 0
    with open(job["out"], "wb") as f:
        for chunk in chunks(read_texts(job["texts"], job["megabytes"] * 1e6)):
            for one in ids(run(chunk)):
                tokens += len(one)
                f.write(hashlib.blake2b(np.asarray(one, np.uint32).tobytes(), digest_size=8).digest())
    return {"tokens": tokens}


def main(job: Job) -> None:
    module = MODULES[job["rival"]]
    importlib.import_module(module)
    if job["task"] == "ids":
        answer = digest_ids(job)
    else:
        pairs = list(read_texts(job["texts"], job["megabytes"] * 1e6))
        texts, size = [text for text, _ in pairs], sum(n for _, n in pairs)
        del pairs
        answer = (train if job["task"] == "train" else encode)(job, texts)
        answer |= {"documents": len(texts), "bytes": size}
    print(json.dumps({**answer, "version": importlib.metadata.version(module)}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
