"""The engine's own rate for bench/serving.py, without a server: `python bench/_serving_engine.py JOB`.

    {"clients": 64, "max_rows": 16, "num_words": 32503, "first": 0, "warm_up": 2.0, "seconds": 15.0, "check": [7, 8]}

Loads the checkpoint as the worker does and keeps as many requests waiting as the server's clients would: when one is
finished, the next joins. The last line printed is JSON: tokens, seconds, CPU seconds, and the texts of the requests
`check`, which the server must answer with the very same ones.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from typing import Any

import _serving_clients as clients

from nanochat.checkpoint_manager import load_model
from nanochat.common import compute_init, resolve_dtype
from nanochat.engine import Engine, RowState, Sampling


def run(job: dict[str, Any]) -> dict[str, Any]:
    *_, device = compute_init("cpu")
    model, tokenizer, _ = load_model("sft", device, "eval", dtype=resolve_dtype("auto", "cpu"))
    engine = Engine(model, tokenizer, prefix_positions=4 * model.config.sequence_len)

    def make(k: int) -> list[RowState]:
        r = clients.request(k, job["num_words"])
        sampling = Sampling(r["temperature"], r["top_k"], r["top_p"])
        return engine.make_rows([tokenizer.render_for_completion(r)], 1, r["max_tokens"], sampling, r["seed"])

    checked = [row for k in job["check"] for row in make(k)]
    generation = engine.start([], max_rows=job["max_rows"])
    generation.add(checked)
    while generation.step():
        pass
    numbers = itertools.count(job["first"])
    generation.add([row for _ in range(job["clients"]) for row in make(next(numbers))])
    tokens, begin, cpu = 0, 0.0, 0.0
    end_of_warm_up = time.monotonic() + job["warm_up"]
    while not begin or time.monotonic() < begin + job["seconds"]:
        events = generation.step()
        tokens += len(events)
        for event in events:
            if event.row.finish:
                generation.add(make(next(numbers)))
        if not begin and time.monotonic() >= end_of_warm_up:
            tokens, begin, cpu = 0, time.monotonic(), time.process_time()
    seconds = time.monotonic() - begin
    end = tokenizer.encode_special("<|assistant_end|>")
    texts = [tokenizer.decode([token for token in row.ids if token != end]) for row in checked]
    return {"tokens": tokens, "seconds": seconds, "cpu": time.process_time() - cpu, "texts": texts}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
