"""How fast the engine completes prompts: against `transformers`, against the memory, against one request at a time.

    python bench/inference.py                                       # ten minutes on two cores: d6 and d12
    python bench/inference.py --depths 6 --batches 1 --rounds=3
    python bench/inference.py --device_type=cuda --depths 20 --context=1024

For each depth (width 64 × depth, heads of 128, vocabulary 32 768, random weights) the same model is run by our engine,
in each form of its weights, and by `generate` of `transformers`, as `nanochat.export` gives it to
`NanoChatForCausalLM`, in float32 and bfloat16. A round runs each of them once, in an order that changes; figures are
medians of the rounds. A batch has as many prompts of `--prompt` random tokens, and each gets `--tokens` greedy ones;
the first step, with the prompt, is told apart ("first token"). Nothing ends early.

The read bandwidth is measured in each round, with as many threads: the faster of PyTorch's sum and dot product over
half a gigabyte (on CUDA: a copy). The share of it is what a step must read at least, weights and the cache's used
part, over its time. Ragged requests (prompts of 8 to 64 tokens, 16 to 96 to be written) go through the engine together
and one after the other.

The last line printed is JSON. `batch1_vs_transformers`: our bfloat16 against the faster of their two at the largest
depth; `roofline_share`: the same at batch 1; `continuous_vs_sequential`: of the dtype that is the default here.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.helpers: the installed project leaves it out

from nanochat import configurator
from nanochat.common import check_at_least, compute_init, print0, resolve_dtype
from nanochat.engine import Engine, Sampling, Specials
from nanochat.export import config_json, their_weights
from nanochat.gpt import GPT, GPTConfig
from tests.helpers import small_tokenizer

VOCAB, HEAD = 32768, 128
GREEDY = Sampling(0.0)
REQUESTS = 16


@dataclass
class Config:
    """Measure the engine."""

    depths: list[int] = field(default_factory=lambda: [6, 12])
    """Depths of the model."""
    batches: list[int] = field(default_factory=lambda: [1, 8, 64])
    """Prompts completed together."""
    rounds: int = 5
    """Rounds; figures are their medians."""
    prompt: int = 32
    """Tokens of a prompt."""
    tokens: int = 33
    """Tokens to complete it with."""
    context: int = 0
    """Make prompts so long that completions end here (0: as --prompt says)."""
    theirs: bool = True
    """Run transformers too."""
    device_type: str = "cpu"
    """cpu or cuda."""


@dataclass
class Time:
    first: float  # seconds to the first token
    step: float  # seconds a step after it
    cpu: float  # CPU seconds a step


Runner = Callable[[list[list[int]], int], Time]


def make_model(depth: int, context: int, device: torch.device) -> GPT:
    width = 64 * depth
    model = GPT(GPTConfig(sequence_len=context, vocab_size=VOCAB, n_layer=depth, n_head=width // HEAD,
                          n_kv_head=width // HEAD, n_embd=width))
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, p.size(-1) ** -0.5, generator=generator)
    return model.to(device).eval().requires_grad_(False)


def timed(steps: Callable[[], Any], n: int) -> Time:
    """`steps` yields n times."""
    marks = []
    begin = time.perf_counter()
    for _ in steps():
        marks.append((time.perf_counter(), time.process_time()))
    assert len(marks) == n, f"{len(marks)} tokens, not {n}"
    return Time(marks[0][0] - begin, *((b - a) / (n - 1) for a, b in zip(marks[0], marks[-1])))


def ours(engine: Engine) -> Runner:
    def run(prompts: list[list[int]], n: int) -> Time:
        generation = engine.start(prompts, max_tokens=n, temperature=0.0)

        def steps() -> Any:
            while generation.step():
                yield

        return timed(steps, n)

    return run


def theirs(model: Any) -> Runner:
    class Marks:
        """What `generate` calls with the prompt and with each token."""

        def __init__(self, n: int):
            self.n, self.marks = n, []

        def put(self, tokens: Any) -> None:
            self.marks.append((time.perf_counter(), time.process_time()))

        def end(self) -> None:
            pass

    @torch.inference_mode()
    def run(prompts: list[list[int]], n: int) -> Time:
        ids = torch.tensor(prompts, device=model.device)
        marks = Marks(n)
        begin = time.perf_counter()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n,
                             do_sample=False, streamer=marks, eos_token_id=None, pad_token_id=0)
        assert out.size(1) == ids.size(1) + n
        tokens = marks.marks[-n:]  # without the prompt
        return Time(tokens[0][0] - begin, *((b - a) / (n - 1) for a, b in zip(tokens[0], tokens[-1])))

    return run


def their_model(model: GPT, dtype: torch.dtype) -> Any:
    """The exported model, checked against ours."""
    from transformers import NanoChatConfig, NanoChatForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    settings = config_json(model.config, small_tokenizer(), "float32")
    with torch.device("meta"):
        other = NanoChatForCausalLM(NanoChatConfig(**{k: v for k, v in settings.items() if k != "architectures"}))
    other = other.to_empty(device="cpu")
    fresh = NanoChatForCausalLM._from_config(other.config)  # with its rotary table
    fresh.load_state_dict(their_weights(model.cpu().state_dict(), model.config, "the model"))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        a, b = fresh(ids).logits, model.cpu()(ids)
    assert float((a - b).abs().max() / b.abs().max()) <= 1e-5, "the exported model is another one"
    return fresh.to(dtype).eval()


def bandwidth(device: torch.device) -> float:
    """Bytes a second that can be read here and now."""
    x = torch.ones(2**27, device=device)  # 512 MiB
    y = torch.empty_like(x) if device.type == "cuda" else x

    def one(work: Callable[[], Any], read: int) -> float:
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return read / (time.perf_counter() - begin)

    if device.type == "cuda":
        return max(one(lambda: y.copy_(x), 2 * x.nbytes) for _ in range(5))
    return max(one(work, x.nbytes) for work in (x.sum, lambda: torch.dot(x[: 2**26], x[2**26 :])) for _ in range(2))


def cache_bytes(model: GPT, engine: Engine, positions: float) -> float:
    c = model.config
    return 2 * c.n_layer * c.n_kv_head * c.head_dim * positions * engine.new_cache(1, 1).store.element_size()


def weight_bytes(engine: Engine) -> int:
    if hasattr(engine.forward, "weight_bytes"):
        return engine.forward.weight_bytes
    model = engine.model
    return sum(p.nbytes for name, p in model.named_parameters() if "wte" not in name)


def ragged(engine: Engine, together: bool) -> float:
    """Seconds for 16 requests of many lengths."""
    r = random.Random(0)
    rows = [engine.make_rows([[r.randrange(VOCAB) for _ in range(r.randint(8, 64))]], 1, r.randint(16, 96), GREEDY, i)
            for i in range(REQUESTS)]
    begin = time.perf_counter()
    for group in [[row for one in rows for row in one]] if together else rows:
        generation = engine.start([], max_rows=REQUESTS)
        generation.add(group)
        while generation.step():
            pass
    return time.perf_counter() - begin


def measure(config: Config, depth: int, device: torch.device) -> dict[str, Any]:
    """All figures of one depth."""
    context = max(config.context, 2048)
    prompt = config.context - config.tokens if config.context else config.prompt
    model = make_model(depth, context, device)
    runners: dict[str, Runner] = {}
    if config.theirs:
        for dtype in (torch.float32, torch.bfloat16):
            runners[f"transformers {str(dtype)[6:]}"] = theirs(their_model(model, dtype).to(device))
    model.to(device)
    engines = {}
    tokenizer = small_tokenizer()
    if device.type == "cuda":
        half = make_model(depth, context, device).to(torch.bfloat16)
        half.compute_dtype = torch.bfloat16
        engines["ours bfloat16"] = Engine(half, tokenizer)
    else:
        engines |= {f"ours {w}": Engine(model, tokenizer, weights=w) for w in ("float32", "bfloat16", "int8")}
    for name, engine in engines.items():
        engine.specials = Specials(-1, -1, -1, -1, -1, -1)  # nothing ends early
        runners[name] = ours(engine)
    r = random.Random(1)
    times: dict[tuple[int, str], list[Time]] = defaultdict(list)
    speeds: list[float] = []
    pairs: dict[str, list[float]] = defaultdict(list)
    for round_ in range(config.rounds + 1):  # the first warms up
        found = bandwidth(device)
        for batch in config.batches:
            for name in r.sample(sorted(runners), len(runners)):
                prompts = [[r.randrange(VOCAB) for _ in range(prompt)] for _ in range(batch)]
                n = config.tokens if round_ or device.type == "cuda" else 3
                seen = runners[name](prompts, n)
                if round_:
                    times[batch, name].append(seen)
        for name, engine in engines.items():
            if round_:
                both = {together: ragged(engine, together) for together in r.sample([True, False], 2)}
                pairs[name].append(both[False] / both[True])
        if round_:
            speeds.append(max(found, bandwidth(device)))
    rows = []
    read = statistics.median(speeds)
    for (batch, name), seen in times.items():
        step = statistics.median(t.step for t in seen)
        row = {"depth": depth, "batch": batch, "name": name, "tokens_per_s": batch / step,
               "first_token_ms": statistics.median(t.first for t in seen) * 1e3,
               "cpu_ms_per_token": statistics.median(t.cpu for t in seen) * 1e3 / batch, "read_share": None}
        if name in engines:
            need = weight_bytes(engines[name]) + batch * cache_bytes(model, engines[name], prompt + config.tokens / 2)
            row["read_share"] = need / step / read
        rows.append(row)
    return {"rows": rows, "read_gb_per_s": read / 1e9,
            "continuous": {name: statistics.median(ratios) for name, ratios in pairs.items()}}


def table(depth: int, figures: dict[str, Any]) -> Table:
    view = Table(title=f"depth {depth}, width {64 * depth}; {figures['read_gb_per_s']:.1f} GB/s can be read")
    for column in ("batch", "", "tokens/s", "first token", "CPU a token", "of what can be read"):
        view.add_column(column, justify="left" if not column else "right")
    for row in sorted(figures["rows"], key=lambda row: (row["batch"], row["tokens_per_s"])):
        share = "" if row["read_share"] is None else f"{row['read_share']:.0%}"
        view.add_row(str(row["batch"]), row["name"], f"{row['tokens_per_s']:,.1f}", f"{row['first_token_ms']:,.1f} ms",
                     f"{row['cpu_ms_per_token']:,.2f} ms", share)
    for name, ratio in figures["continuous"].items():
        view.add_row("16", f"{name}, ragged", f"{ratio:.2f} times", "", "", "")
    view.caption = "The last rows: ragged requests together, against one after the other."
    return view


def main(config: Config) -> None:
    check_at_least(1, rounds=config.rounds, prompt=config.prompt)
    check_at_least(4, tokens=config.tokens)
    device = compute_init(config.device_type)[-1]
    torch.manual_seed(0)
    default = f"ours {'bfloat16' if resolve_dtype('auto', device.type) == torch.bfloat16 else 'float32'}"
    found = {}
    for depth in config.depths:
        found[depth] = measure(config, depth, device)
        Console(width=110).print(table(depth, found[depth]))
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "device": str(device), "default_here": default}
    for depth, figures in found.items():
        speed = {row["name"]: row["tokens_per_s"] for row in figures["rows"] if row["batch"] == min(config.batches)}
        their = max((s for name, s in speed.items() if name.startswith("transformers")), default=None)
        result[f"d{depth}"] = {
            "rows": figures["rows"], "read_gb_per_s": figures["read_gb_per_s"], "continuous": figures["continuous"],
            "batch1_vs_transformers": {name: s / their for name, s in speed.items() if name.startswith("ours")}
            if their else None,
        }
    last = found[config.depths[-1]]
    best = result[f"d{config.depths[-1]}"]["batch1_vs_transformers"]
    result["batch1_vs_transformers"] = best["ours bfloat16"] if best else None
    result["roofline_share"] = next(row["read_share"] for row in last["rows"]
                                    if row["batch"] == min(config.batches) and row["name"] == "ours bfloat16")
    result["continuous_vs_sequential"] = last["continuous"].get(default)
    print0(json.dumps(result))


if __name__ == "__main__":
    configurator.main(main, Config)
