"""Random models, prompts and ways to run them: what the engine says must be what the plain model would say.

A trial makes a model of random sizes (GQA and MQA among them) and a few ragged prompts, some with a common beginning,
and completes them greedily with a random number of places, samples and kept prefixes, on the CPU's kernel or through
PyTorch. The judge is one full forward over prompt and completion, without cache and batch.

Run: python -m tests.chaos --engine=1000        (test_engine.py runs a share)
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch

from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.torch_forward import TorchForward
from tests.helpers import small_tokenizer

TIE = 1e-5  # relative to the largest logit: what may be rounded either way
ROUNDED = 2.0**-6  # with weights, or all, in bfloat16: how far the chosen token's logit may lie below the best


def random_model(r: random.Random, vocab_size: int) -> GPT:
    groups, n_kv_head = r.choice([1, 1, 2, 3]), r.choice([1, 2, 3])
    head_dim = r.choice([6, 8, 16, 20])
    model = GPT(GPTConfig(sequence_len=r.choice([48, 64, 100]), vocab_size=vocab_size, n_layer=r.choice([1, 2, 3]),
                          n_head=groups * n_kv_head, n_kv_head=n_kv_head, n_embd=groups * n_kv_head * head_dim))
    model.init_weights(0)
    generator = torch.Generator().manual_seed(r.randrange(2**32))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 1.5 * p.size(-1) ** -0.5, generator=generator)
        model.transformer.wte.weight.normal_(generator=generator)
    return model.eval().requires_grad_(False)


def random_prompts(r: random.Random, n: int, vocab_size: int) -> list[list[int]]:
    prompts: list[list[int]] = []
    for _ in range(n):
        start = r.choice(prompts)[: r.randint(0, 20)] if prompts and r.random() < 0.5 else []
        prompts.append(start + [r.randrange(vocab_size) for _ in range(r.randint(1, 20))])
    return prompts


@torch.inference_mode()
def trial(seed: int, tokenizer: Any) -> tuple[int, list[str]]:
    """(prompts tried, what went wrong)."""
    r = random.Random(seed)
    model = random_model(r, tokenizer.get_vocab_size())
    prompts = random_prompts(r, r.randint(1, 12), model.config.vocab_size)
    mode = r.choice(["float32", "float32", "torch", "bfloat16", "torch bfloat16"])
    reference = model
    if mode == "torch bfloat16":  # computes in bfloat16; the reference has the same rounded weights, in float32
        model = model.to(torch.bfloat16)
        reference = GPT(model.config)
        reference.load_state_dict({name: p.float() for name, p in model.state_dict().items()})
        reference._grow_rotary(model.config.sequence_len)
        model.compute_dtype = torch.bfloat16
    engine = Engine(model, tokenizer, weights="bfloat16" if mode == "bfloat16" else "auto",
                    prefix_positions=r.choice([0, 30, 500]))
    if mode.startswith("torch"):
        engine.forward = TorchForward(model)
    samples = r.choice([1, 1, 3])
    max_tokens = r.choice([5, 20, None])
    wrong = []
    for round_ in range(2):  # the second finds prefixes of the first
        generation = engine.start(prompts, samples, max_tokens, temperature=0.0, max_rows=r.choice([1, 2, 5, 64]))
        while generation.step():
            pass
        for row in generation.rows:
            problem = judge(reference, row.prompt, row.ids, row.mask, mode)
            if problem:
                wrong.append(f"seed {seed}, {mode}, round {round_}, row {row.index}: {problem}")
        prompts = [p + [r.randrange(model.config.vocab_size)] for p in prompts]
    return len(prompts) * 2, wrong


def judge(model: GPT, prompt: list[int], ids: list[int], mask: list[int], mode: str) -> str | None:
    """Each sampled token must have the largest logit of the full forward, or one as good."""
    if not ids:
        return None
    logits = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1]  # (completion, V)
    best, largest = logits.amax(dim=1), logits.abs().amax(dim=1)
    behind = (best - logits[torch.arange(len(ids)), torch.tensor(ids)]) / largest
    allowed = TIE if mode in ("float32", "torch") else ROUNDED
    bad = [i for i in range(len(ids)) if mask[i] and behind[i] > allowed]
    return f"token {bad[0]} of {len(ids)} lies {float(behind[bad[0]]):.1e} behind" if bad else None


def engine_trials(prompts: int, seed: int, processes: int) -> list[str]:
    """For tests/chaos.py: at least so many prompts; a line for each completion that was wrong."""
    tokenizer, done, wrong = small_tokenizer(), 0, []
    torch.set_num_threads(min(processes, 2))
    for i in itertools.count(seed * 1000):
        if done >= prompts:
            return wrong
        n, found = trial(i, tokenizer)
        done += n
        wrong += found
