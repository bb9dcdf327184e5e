"""One row of bench/train_step.py in a process of its own: `python bench/_train_step_worker.py JOB`.

JOB is a JSON object. The worker builds its model, warms up, and says on standard output that it is ready; then it works
when a line comes in on standard input and answers each with one line, all of them JSON. In between it sleeps: only one
worker works at a time. A process for each row, because peak memory and CPU seconds belong to a process.

    {"kind": "step", "side": "ours" | "theirs", "mode": "eager" | "compiled", "dtype": "float32" | "bfloat16",
     "extra": "" | "packed" | "muon" | "memory kept" | "plain attention", "depth": 4, "head_dim": 128,
     "sequence_len": 256, "vocab_size": 2048, "micro_tokens": 8192, "tokens": 16384, "device_type": "cpu", "seed": 0}
        {"do": "round", "seconds": 2}               -> whole optimizer steps until that time has gone by
        {"do": "curve", "ids": FILE, "steps": 200}  -> the losses of that many steps on text, from the first weights
    {"kind": "head", "side": "ours" | "plain", ... as above}
        {"do": "round", "seconds": 2}               -> the head's forward and backward pass, as often as fits

Memory is what the process (on a GPU: the allocator) held at most during a round, above what it held after the imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from _train_step_twin import copy_weights, transformers_twin
from torch import Tensor

from nanochat.attention import kernel_name
from nanochat.common import compute_init, peak_memory_bytes, resolve_dtype
from nanochat.dataloader import Batch
from nanochat.gpt import GPT, LOGIT_CAP, config_for_depth
from nanochat.loss_head import linear_cross_entropy
from nanochat.train import document_loss

Job = dict
Loss = Callable[[Tensor, Tensor], Tensor]  # (inputs, targets), both (B, T) -> the summed loss

BOS = 0  # starts a document in the packed rows; random ids are above it
WARM_UP_STEPS = 2  # the first compiles
LEARNING_RATE = 1e-3


# ------------------------------------------------------------------------------------------------------ the machine


class Machine:
    """The device, its clock and its memory."""

    def __init__(self, device_type: str, seed: int, as_is: bool) -> None:
        """`as_is`: leave the CPU's runtime as a program without our `compute_init` finds it."""
        self.device = torch.device("cpu") if as_is and device_type == "cpu" else compute_init(device_type, seed)[-1]
        self.after_imports = self.held()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def held(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated()
        return psutil.Process().memory_info().rss

    def let_go(self) -> None:
        """Give back what is free but kept for later: the others need it, and before a round it would hide growth."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            with contextlib.suppress(AttributeError):  # not glibc
                ctypes.CDLL(None).malloc_trim(0)

    def forget_peak(self) -> None:
        """The peak starts anew from what is held now (on a CPU without Linux it stays that of the whole process)."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # no such file, or a sandbox that forbids it
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return peak_memory_bytes()  # which clear_refs does not reset

    @contextlib.contextmanager
    def measured(self, first: Callable[[], object]) -> Iterator[dict]:
        """Fills a dictionary with what the block took: `wall` and `cpu` seconds (of all threads), bytes of memory.

        `first` comes before the clock starts and takes back the memory that was let go while this process slept.
        """
        figures: dict = {}
        self.forget_peak()
        before = self.held()
        first()
        self.wait()
        wall, cpu = time.perf_counter(), time.process_time()
        yield figures
        self.wait()
        figures |= {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        figures |= {"peak": self.peak() - self.after_imports, "growth": self.peak() - before}


def warm_up(once: Callable[[], float]) -> dict:
    """The losses of the first calls, and how much longer the very first took: it compiles."""
    seconds, losses = [], []
    for _ in range(WARM_UP_STEPS):
        started = time.perf_counter()
        losses.append(once())
        seconds.append(time.perf_counter() - started)
    return {"losses": losses, "compile_s": seconds[0] - min(seconds[1:])}


# --------------------------------------------------------------------------------------------------------- the step


class Step:
    """A model, its optimizer and a batch: one call is one optimizer step, in micro-batches."""

    def __init__(self, job: Job, machine: Machine) -> None:
        self.job, self.machine = job, machine
        self.dtype = resolve_dtype(job["dtype"], machine.device.type)
        self.rows_at_once = job["micro_tokens"] // job["sequence_len"]
        ours = self.first_weights()
        self.flops_per_token, self.parameters = ours.estimate_flops(), ours.num_parameters()
        if job["side"] == "ours":
            self.model = ours
            forward = ours.compile_for_training() if job["mode"] == "compiled" else ours
            self.loss = our_loss(forward, packed=job["extra"] == "packed")
        else:
            self.model = transformers_twin(ours)
            if job["extra"] == "plain attention":  # two matrix products and a softmax; they call it eager
                self.model.set_attn_implementation("eager")
            forward = torch.compile(self.model, dynamic=False) if job["mode"] == "compiled" else self.model
            self.loss = their_loss(forward, self.dtype)
        self.start_again()

    def first_weights(self) -> GPT:
        """Our model as it is before the first step; theirs gets its weights from there."""
        model = GPT(config_for_depth(self.job["depth"], vocab_size=self.job["vocab_size"], aspect_ratio=64,
                                     sequence_len=self.job["sequence_len"], head_dim=self.job["head_dim"]))
        model.to(self.machine.device)
        model.compute_dtype = self.dtype
        model.init_weights(self.job["seed"])
        return model

    def start_again(self) -> None:
        """The first weights and an optimizer that has seen nothing."""
        if self.job["side"] == "ours":
            self.model.init_weights(self.job["seed"])
        else:
            copy_weights(self.first_weights(), self.model)
        if self.job["extra"] == "muon":
            self.optimizer = self.model.setup_optimizers()
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95),
                                               weight_decay=0.0, fused=True)
        self.optimizer.zero_grad()

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (tokens + 1) as inputs and targets, (rows, T) each; a target is the id that comes next."""
        T = self.job["sequence_len"]
        return ids[:-1].view(-1, T), ids[1:].view(-1, T)

    def random_batch(self) -> tuple[Tensor, Tensor]:
        """The same ids in every worker. Packed: a document starts with each row, and on average after T/4 tokens."""
        generator = torch.Generator().manual_seed(self.job["seed"])
        ids = torch.randint(BOS + 1, self.job["vocab_size"], (self.job["tokens"] + 1,), generator=generator)
        inputs, targets = (half.clone() for half in self.rows(ids))
        if self.job["extra"] == "packed":
            starts = torch.rand(inputs.shape, generator=generator) < 4 / self.job["sequence_len"]
            inputs[starts] = BOS
            inputs[:, 0] = BOS
        return inputs.to(self.machine.device), targets.to(self.machine.device)

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """One step over all rows: `(mean loss, seconds of the optimizer's update)`."""
        losses = []
        for x, y in zip(inputs.split(self.rows_at_once), targets.split(self.rows_at_once)):
            loss = self.loss(x, y) / targets.numel()
            loss.backward()
            losses.append(loss.detach())
        self.machine.wait()
        started = time.perf_counter()
        self.optimizer.step()
        self.machine.wait()
        seconds = time.perf_counter() - started
        self.optimizer.zero_grad()
        return float(torch.stack(losses).sum()), seconds


def our_loss(forward: Callable, packed: bool) -> Loss:
    if not packed:
        return lambda x, y: forward(x, y, loss_reduction="sum")
    in_documents = document_loss(BOS)
    return lambda x, y: in_documents(forward, Batch(x, y, {}))


def their_loss(forward: Callable, dtype: torch.dtype) -> Loss:
    """Their own loss function, told to sum. bfloat16 is autocast over float32 weights, as their users have it."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return forward(input_ids=x, labels=y, shift_labels=y, num_items_in_batch=1, use_cache=False).loss

    return loss


class StepWorker:
    """What a worker of the kind "step" answers."""

    def __init__(self, job: Job, machine: Machine) -> None:
        self.machine = machine
        self.step = Step(job, machine)
        self.batch = self.step.random_batch()

    def ready(self) -> dict:
        """Warm up. The losses show whether both sides do the same: they are after updates, on the same batch."""
        step = self.step
        kernel = kernel_name(self.machine.device.type, step.dtype) if step.job["side"] == "ours" else None
        return {**warm_up(lambda: step(*self.batch)[0]), "attention": kernel,
                "flops_per_token": step.flops_per_token, "parameters": step.parameters}

    def round(self, seconds: float) -> dict:
        steps, update, micro_batch = 0, 0.0, self.step.rows_at_once
        with self.machine.measured(lambda: self.step(*(ids[:micro_batch] for ids in self.batch))) as figures:
            started = time.perf_counter()
            while not steps or time.perf_counter() - started < seconds:
                update += self.step(*self.batch)[1]
                steps += 1
        return {**figures, "tokens": steps * self.step.job["tokens"], "update": update, "steps": steps}

    def curve(self, ids: str, steps: int) -> dict:
        """Step after step along the text, a micro-batch each."""
        self.step.start_again()
        text = np.load(ids, allow_pickle=False)
        size = self.step.job["micro_tokens"]
        losses = []
        for i in range(steps):
            piece = torch.from_numpy(text[i * size : (i + 1) * size + 1].astype(np.int64)).to(self.machine.device)
            losses.append(self.step(*self.step.rows(piece))[0])
        return {"losses": losses}


# ----------------------------------------------------------------------------------------------------- the loss head


def plain_head(x: Tensor, weight: Tensor, targets: Tensor, *, vocab_size: int, cap: float) -> Tensor:
    """The textbook form, which holds all logits: x (N, C), weight (V or more, C), targets (N,) -> the summed loss."""
    logits = F.linear(x, weight[:vocab_size].to(x.dtype)).float()  # (N, V)
    return F.cross_entropy(cap * torch.tanh(logits / cap), targets, ignore_index=-1, reduction="sum")


class HeadWorker:
    """What a worker of the kind "head" answers: linear map, soft cap and cross entropy, forward and backward."""

    def __init__(self, job: Job, machine: Machine) -> None:
        self.machine, self.job = machine, job
        if job["side"] == "ours":
            self.head = functools.partial(linear_cross_entropy, compiled=job["mode"] == "compiled")
        else:
            self.head = torch.compile(plain_head, dynamic=False) if job["mode"] == "compiled" else plain_head
        generator = torch.Generator().manual_seed(job["seed"])
        N, C, V = job["micro_tokens"], job["depth"] * 64, job["vocab_size"]
        dtype = resolve_dtype(job["dtype"], machine.device.type)
        x, weight = torch.randn(N, C, generator=generator), torch.randn(V, C, generator=generator) * C**-0.5
        self.x = x.to(machine.device, dtype).requires_grad_()
        self.weight = weight.to(machine.device).requires_grad_()
        self.targets = torch.randint(0, V, (N,), generator=generator).to(machine.device)

    def once(self) -> float:
        loss = self.head(self.x, self.weight, self.targets, vocab_size=self.job["vocab_size"], cap=LOGIT_CAP)
        loss.backward()
        self.x.grad = self.weight.grad = None
        return float(loss.detach())

    def ready(self) -> dict:
        return warm_up(lambda: self.once() / len(self.targets))

    def round(self, seconds: float) -> dict:
        """`growth` is the memory of the head: what it held beyond its inputs, the gradients included."""
        passes = 0
        with self.machine.measured(self.once) as figures:
            started = time.perf_counter()
            while not passes or time.perf_counter() - started < seconds:
                self.once()
                passes += 1
        return {**figures, "tokens": passes * len(self.targets), "passes": passes}


# ------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")  # for answers only: whatever prints goes to the errors
    os.dup2(2, 1)

    def say(answer: dict) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    job = json.loads(sys.argv[1])
    if job["side"] == "theirs":  # only these rows need it; now, so that it counts among the imports
        import transformers

        assert transformers.NanoChatForCausalLM
        transformers.logging.set_verbosity_error()
    machine = Machine(job["device_type"], job["seed"], as_is=job["side"] == "theirs" and not job["extra"])
    worker = {"step": StepWorker, "head": HeadWorker}[job["kind"]](job, machine)
    for request in itertools.chain([{"do": "ready"}], map(json.loads, sys.stdin)):
        answer = getattr(worker, request.pop("do"))(**request)
        machine.let_go()
        say(answer)


if __name__ == "__main__":
    main()
