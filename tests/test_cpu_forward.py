"""The kernel for CPUs against the model that it must equal, and against itself: alone, in a batch, split, by threads.

Run: python -m pytest tests/test_cpu_forward.py
"""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import cpu_forward
from nanochat.common import UserError
from nanochat.cpu_forward import PANEL, CpuForward, compiler, in_large_pages, kernel_dir, pack
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.torch_forward import TorchForward

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


def make_model(seed: int = 0, **sizes: int) -> GPT:
    """Random weights everywhere, far from what init_weights makes (zeros in places)."""
    config = {"sequence_len": 64, "vocab_size": 97, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32} | sizes
    model = GPT(GPTConfig(**config))
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 1.5 * p.size(-1) ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


class Tokenizer:
    """As much of one as the engine asks for when it is made."""

    def get_bos_token_id(self) -> int:
        return 0

    def encode_special(self, name: str) -> int:
        return len(name)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def random_ids(n: int, vocab_size: int = 97, seed: int = 0) -> list[int]:
    return torch.randint(vocab_size, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


# --------------------------------------------------------------------------- against the model


shapes = st.fixed_dictionaries({
    "n_layer": st.integers(1, 3), "groups": st.sampled_from([1, 2, 3]), "n_kv_head": st.integers(1, 3),
    "head_dim": st.sampled_from([2, 6, 8, 10, 16, 24, 64, 128, 136]),
    "vocab_size": st.integers(40, 200),  # of few logits all may be small by chance
    "lengths": st.lists(st.integers(1, 40), min_size=1, max_size=9), "seed": st.integers(0, 1000),
})


@settings(max_examples=40)
@given(shapes)
def test_equals_the_model(shape):
    """Any sizes, also such as fill no vector; ragged prompts, then single tokens, against the full forward of each."""
    n_head = shape["groups"] * shape["n_kv_head"]
    model = make_model(shape["seed"], n_layer=shape["n_layer"], n_head=n_head, n_kv_head=shape["n_kv_head"],
                       n_embd=n_head * shape["head_dim"], vocab_size=shape["vocab_size"])
    prompts = [random_ids(n, shape["vocab_size"], seed=i) for i, n in enumerate(shape["lengths"])]
    forward = CpuForward(model)
    cache = forward.new_cache(len(prompts), 4)
    for step in range(3):
        new = prompts if step == 0 else [[(7 * step + i) % shape["vocab_size"]] for i in range(len(prompts))]
        logits = forward(new, cache)
        prompts = prompts if step == 0 else [a + b for a, b in zip(prompts, new)]
        for row, prompt in zip(logits, prompts):
            assert error(row, model(torch.tensor([prompt]))[0, -1]) <= 1e-5
        assert cache.lengths.tolist() == [len(p) for p in prompts]


def test_a_thousand_tokens():
    """Longer than a chunk, and than the rotary table at first."""
    model = make_model(sequence_len=1024, n_layer=3)
    ids = random_ids(1000)
    forward = CpuForward(model)
    forward._grow_rotary(16)
    logits = forward([ids], forward.new_cache(1, 16))
    assert error(logits[0], model(torch.tensor([ids]))[0, -1]) <= 1e-5


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_rounded_weights(weights):
    """Only the weights (and the cache) are rounded: with weights that survive it the logits are those of float32 up to
    the cache's rounding, and with any others the error is that of the rounding."""
    model = make_model(n_layer=2)
    ids = random_ids(50)
    reference = model(torch.tensor([ids]))[0, -1]
    forward = CpuForward(model, weights)
    largest = {"bfloat16": 0.03, "int8": 0.1}[weights]
    assert 1e-5 < error(forward([ids], forward.new_cache(1, 64))[0], reference) < largest
    rounded = make_model(n_layer=2)
    for block in rounded.transformer.h:
        for linear in (block.attn.c_q, block.attn.c_k, block.attn.c_v, block.attn.c_proj, block.mlp.c_fc,
                       block.mlp.c_proj):
            linear.weight.copy_(unpack(linear.weight, weights))
    rounded.lm_head.weight.copy_(unpack(rounded.lm_head.weight, weights))
    exact = rounded(torch.tensor([ids]))[0, -1]
    assert error(forward([ids], forward.new_cache(1, 64))[0], exact) < 0.01  # of the cache in bfloat16
    assert error(forward([ids[:1]], forward.new_cache(1, 64))[0], rounded(torch.tensor([ids[:1]]))[0, -1]) < 0.01


def test_the_cache_is_rounded_as_pytorch_rounds():
    """Keys and values of the first layer do not depend on the cache: in bfloat16 they are those of a float32 cache,
    rounded to nearest, ties to even. Of a million numbers about 16 are ties."""
    model = make_model(n_layer=1, n_head=1, n_kv_head=1, n_embd=256, vocab_size=2048, sequence_len=2048)
    model.load_state_dict({name: p.bfloat16().float() for name, p in model.state_dict().items()})
    stores = []
    for weights in ("float32", "bfloat16"):
        forward = CpuForward(model, weights)
        cache = forward.new_cache(1, 2048)
        forward([range(2048)], cache)
        stores.append(cache.read_row(0))
    assert (stores[0].view(torch.int32) & 0xFFFF == 0x8000).sum() >= 4
    assert torch.equal(stores[0].bfloat16(), stores[1])


def unpack(weight: torch.Tensor, weights: str) -> torch.Tensor:
    """What the kernel sees of a matrix (N, K)."""
    packed, scale = pack(weight, weights)
    plain = packed.float().transpose(1, 2).reshape(-1, weight.size(1))
    return (plain if scale is None else plain * scale[:, None])[: weight.size(0)]


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 100))
def test_pack(N, K, seed):
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(seed))
    packed, scale = pack(weight, "float32")
    assert packed.shape == (-(-N // PANEL), K, PANEL) and scale is None
    assert torch.equal(unpack(weight, "float32"), weight)
    assert torch.equal(unpack(weight, "bfloat16"), weight.bfloat16().float())
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((unpack(weight, "int8") - weight).abs() <= step * 0.501).all()


def test_pack_zeros():
    packed, scale = pack(torch.zeros(3, 5), "int8")
    assert not packed.any() and scale.isfinite().all()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.03, 0.3, 1, 30])
def test_logits_of_any_size(scale):
    """A model at the beginning of its training has logits near 0, one that is sure of itself is at the soft cap."""
    model = make_model()
    model.lm_head.weight *= scale
    forward = CpuForward(model)
    for ids in (random_ids(20), [5]):
        want = model(torch.tensor([ids]))[0, -1]
        logits = forward([ids], forward.new_cache(1, 32))[0]
        assert error(logits, want) <= 1e-5
        assert logits.isfinite().all() and logits.abs().max() <= 15


def test_nan_is_not_hidden():
    model = make_model()
    model.transformer.h[0].mlp.c_fc.weight[3, 3] = float("nan")
    forward = CpuForward(model)
    assert forward([[1, 2]], forward.new_cache(1, 8)).isnan().all()


def test_a_model_that_was_cast():
    """`model.to(torch.bfloat16)` casts the rotary table too; the kernel's angles are float32 all the same."""
    model = make_model(n_layer=2)
    ids = random_ids(50)
    model.to(torch.bfloat16)
    reference = make_model(n_layer=2)
    reference.load_state_dict(model.state_dict())
    forward = CpuForward(model)
    assert error(forward([ids], forward.new_cache(1, 64))[0], reference(torch.tensor([ids]))[0, -1]) <= 1e-5


def test_a_model_in_training():
    """With gradients on, in train mode: the same logits, and nothing is kept for a backward pass."""
    model = make_model()
    want = CpuForward(model)
    model.train().requires_grad_(True)
    forward = CpuForward(model)
    ids = random_ids(20)
    logits = forward([ids], forward.new_cache(1, 64))
    assert torch.equal(logits, want([ids], want.new_cache(1, 64))) and not logits.requires_grad
    assert not any(x is not None and x.requires_grad for pair in forward._tensors for x in pair)


# --------------------------------------------------------------------------- against itself, to the bit


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_bits_depend_on_nothing_else(weights):
    """A prompt alone, among others, split anywhere, one token at a time, by one thread or two: the same bits."""
    model = make_model(n_embd=96, n_head=6, n_kv_head=3, vocab_size=300)
    forward = CpuForward(model, weights)
    ids = random_ids(33, 300)
    want = forward([ids], forward.new_cache(1, 64))[0]
    keys = forward.new_cache(1, 64)
    forward([ids], keys)
    keys = keys.read_row(0)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for cut in range(1, 33):
                cache = forward.new_cache(1, 64)
                forward([ids[:cut]], cache)
                assert torch.equal(forward([ids[cut:]], cache)[0], want)
                assert torch.equal(cache.read_row(0), keys)
            one = forward.new_cache(1, 64)
            for token in ids:
                last = forward([[token]], one)
            assert torch.equal(last[0], want)
            for rows in range(2, 20):
                cache = forward.new_cache(rows, 64)
                place = rows // 2
                prompts = [ids if i == place else random_ids(1 + (7 * i) % 40, 300, seed=i) for i in range(rows)]
                assert torch.equal(forward(prompts, cache)[place], want)
                assert torch.equal(forward([[5]] * rows, cache)[place], forward_one_more(forward, ids, 5))
    finally:
        torch.set_num_threads(before)


def forward_one_more(forward: CpuForward, ids: list[int], token: int) -> torch.Tensor:
    cache = forward.new_cache(1, 64)
    forward([ids], cache)
    return forward([[token]], cache)[0]


@pytest.mark.parametrize("kind", [CpuForward, TorchForward])
def test_some_rows_of_a_cache(kind, monkeypatch):
    """A call for rows 1 and 2 leaves row 0 alone, also if the cache must grow for it."""
    monkeypatch.setattr("nanochat.kv_cache.GROWTH", 8)
    model = make_model()
    forward = kind(model)
    cache = forward.new_cache(3, 4)
    forward([random_ids(9), [1], [2, 3]], cache)
    cache.set_lengths([9, 0, 0])
    before = cache.read_row(0)
    logits = forward([random_ids(20, seed=1), random_ids(3, seed=2)], cache, first_row=1)
    assert cache.lengths.tolist() == [9, 20, 3]
    assert torch.equal(cache.read_row(0), before)
    assert cache.read_row(1).any(dim=-1).all()
    for row, n, seed in ((0, 20, 1), (1, 3, 2)):
        assert error(logits[row], model(torch.tensor([random_ids(n, seed=seed)]))[0, -1]) <= 1e-5


def test_another_thread():
    """A forward that is made here and used there says the same, to the bit."""
    forward = CpuForward(make_model())
    prompts = [random_ids(30), random_ids(7, seed=1)]
    got = []
    thread = threading.Thread(target=lambda: got.append(forward(prompts, forward.new_cache(2, 64))))
    thread.start()
    thread.join(timeout=60)
    assert torch.equal(got[0], forward(prompts, forward.new_cache(2, 64)))


def test_fewer_threads_than_asked_for():
    """OpenMP may give fewer; those that are there must not wait for the others."""
    code = ("import torch; from tests.test_cpu_forward import *; torch.set_num_threads(3); "
            "forward = CpuForward(make_model()); "
            "print(forward([random_ids(30)], forward.new_cache(1, 64)).argmax().item())")
    forward = CpuForward(make_model())
    want = forward([random_ids(30)], forward.new_cache(1, 64)).argmax().item()
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_THREAD_LIMIT": "2"}, timeout=120,
                          capture_output=True, text=True, check=True)
    assert done.stdout == f"{want}\n"


@pytest.mark.parametrize("kind", [CpuForward, TorchForward])
def test_one_number_written_by_hand_is_noticed(kind):
    """Not only what an optimizer does: any write to a parameter."""
    model = make_model(vocab_size=300)
    forward = kind(model)
    model.lm_head.weight[7, 5] += 1.0  # not among those that are looked at
    assert forward.refresh() and not forward.refresh()


@pytest.mark.parametrize("kind", [CpuForward, TorchForward])
def test_training_on_is_noticed(kind):
    """Weights that an optimizer moved are taken over; the same ones cost nothing."""
    model = make_model()
    forward = kind(model)
    assert not forward.refresh()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    assert forward.refresh() and not forward.refresh()
    ids = random_ids(10)
    assert error(forward([ids], forward.new_cache(1, 16))[0], model(torch.tensor([ids]))[0, -1]) <= 1e-5


# --------------------------------------------------------------------------- the library


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A source that is compiled in no time."""
    source = tmp_path / "small.cpp"
    source.write_text('extern "C" int answer() { return 42; }\n', encoding="utf-8")
    monkeypatch.setattr(cpu_forward, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return source


def test_it_is_compiled_once_and_kept(small):
    load = cpu_forward.load_library.__wrapped__
    assert load().answer() == 42
    (library,) = kernel_dir().iterdir()
    before = library.stat().st_mtime_ns
    assert load().answer() == 42
    assert [p.stat().st_mtime_ns for p in kernel_dir().iterdir()] == [before]
    small.write_text('extern "C" int answer() { return 43; }\n', encoding="utf-8")
    assert load().answer() == 43 and len(list(kernel_dir().iterdir())) == 2


def test_a_home_that_cannot_be_written(small, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    assert cpu_forward.load_library.__wrapped__().answer() == 42


def test_a_library_that_cannot_be_loaded(small, monkeypatch):
    """A folder for what may not be run (noexec), say: that is told as a UserError, which make_forward knows."""

    def refuse(path):
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(cpu_forward.ctypes, "CDLL", refuse)
    with pytest.raises(UserError, match="failed to map"):
        cpu_forward.load_library.__wrapped__()


def test_without_large_pages(monkeypatch):
    """A system that has none refuses the advice: it is no more than that."""

    class Memory(mmap.mmap):
        def madvise(self, *args):
            raise OSError(errno.EINVAL, "Invalid argument")

    x = torch.arange(10.0)
    assert torch.equal(in_large_pages(x), x) and in_large_pages(x).data_ptr() % 2**21 == 0
    monkeypatch.setattr(cpu_forward.mmap, "mmap", Memory)
    assert torch.equal(in_large_pages(x), x)


def test_processes_that_compile_at_once(small):
    """Whoever is first, all have a whole library."""
    code = ("import sys; from pathlib import Path; from nanochat import cpu_forward; "
            "cpu_forward.SOURCE = Path(sys.argv[1]); print(cpu_forward.load_library().answer())")
    running = [subprocess.Popen([sys.executable, "-c", code, str(small)], stdout=subprocess.PIPE) for _ in range(2)]
    assert [p.communicate()[0] for p in running] == [b"42\n"] * 2
    assert [p.suffix for p in kernel_dir().iterdir()] == [".so"]


@pytest.mark.parametrize("compilers", ["none", "broken"])
def test_without_a_compiler_pytorch_does_it(monkeypatch, tmp_path, capsys, compilers):
    """One line says so; asked for by name, int8 is refused."""
    folder = tmp_path / "bin"
    folder.mkdir()
    if compilers == "broken":
        for name in ("g++", "clang++"):
            (folder / name).write_text("#!/bin/sh\necho 'cannot do that' >&2\nexit 1\n", encoding="utf-8")
            (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin" if compilers == "broken" else str(folder))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(cpu_forward, "load_library", cpu_forward.load_library.__wrapped__)
    engine = Engine(make_model(), Tokenizer())
    assert isinstance(engine.forward, TorchForward)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and ("no C++ compiler" in line if compilers == "none" else "cannot do that" in line)
    with pytest.raises(UserError, match=r"C\+\+|cannot"):
        Engine(make_model(), Tokenizer(), weights="int8")


def test_unknown_weights():
    with pytest.raises(UserError, match="int4"):
        Engine(make_model(), Tokenizer(), weights="int4")

