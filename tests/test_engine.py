"""Cache, sampling, tool, batches and text streaming of the engine, against oracles without cache and without batch."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.engine import (
    Engine,
    KVCache,
    RowState,
    Sampling,
    Specials,
    TextStream,
    fit_conversation,
    sample_next_token,
    sample_rows,
    uniform,
    use_calculator,
)
from nanochat.gpt import GPT, GPTConfig
from nanochat.kv_cache import GROWTH
from nanochat.prefix_cache import PrefixCache
from nanochat.tokenizer import HuggingFaceTokenizer
from nanochat.torch_forward import TorchForward
from tests.engine_trials import trial
from tests.parrot import Parrot
from tests.reference.kv_cache import ListCache, complete, pick

CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["What is 12/60? It is 0.2, said the small café. Zażółć gęślą jaźń. 😀 日本語 " * 3] * 4
    return HuggingFaceTokenizer.train_from_iterator(texts, vocab_size=300)


def make_model(vocab_size: int, n_kv_head: int = 4, seed: int = 0, sequence_len: int = CONTEXT) -> GPT:
    """A random model whose choices are far from ties (init_weights would give logits of zero)."""
    model = GPT(GPTConfig(sequence_len=sequence_len, vocab_size=vocab_size, n_layer=2, n_head=4, n_kv_head=n_kv_head,
                          n_embd=32))
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 1.5 * p.size(-1) ** -0.5, generator=generator)
        model.transformer.wte.weight.normal_(generator=generator)
    return model


def retrain(model: GPT) -> None:
    """Other weights; scaling all would leave keys what they were, since what goes in and comes out is normalised."""
    other = make_model(model.config.vocab_size, model.config.n_kv_head, seed=99)
    model.load_state_dict(other.state_dict())


@pytest.fixture(scope="module", params=[4, 2, 1], ids=["mha", "gqa", "mqa"])
def engine(request, tokenizer):
    return Engine(make_model(tokenizer.get_vocab_size(), request.param), tokenizer)


def random_prompts(n: int, vocab_size: int, longest: int = 30, seed: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n,), generator=g).tolist()
    return [torch.randint(vocab_size, (length,), generator=g).tolist() for length in lengths]


def scripted(tokenizer, script: list[int], prompt_len: int) -> Engine:
    """An engine that says `script` after prompts of `prompt_len` tokens, whatever is forced in between: the rule skips
    what stands between <|output_start|> and <|output_end|>."""
    start, end = tokenizer.encode_special("<|output_start|>"), tokenizer.encode_special("<|output_end|>")

    def rule(history: list[int]) -> int:
        said, inside = 0, False
        for token in history[prompt_len:]:
            inside = inside or token == start
            said += not inside
            inside = inside and token != end
        return script[min(said, len(script) - 1)]

    return Engine(Parrot(rule, tokenizer.get_vocab_size()), tokenizer)


# --------------------------------------------------------------------------- cache


def new_cache(batch_size, seq_len, dtype=torch.float32):
    return KVCache(batch_size, num_heads=2, seq_len=seq_len, head_dim=3, num_layers=2, dtype=dtype, device="cpu")


operations = st.lists(st.one_of(
    st.tuples(st.just("insert"), st.integers(1, 5)),
    st.tuples(st.just("truncate"), st.integers(0, 10**6)),
    st.tuples(st.just("keep"), st.integers(0, 10**6)),
    st.tuples(st.just("join"), st.integers(0, 10**6)),
    st.tuples(st.just("part"), st.integers(1, 5)),
), max_size=12)


@settings(deadline=None, max_examples=60)
@given(operations, st.integers(1, 4))
def test_cache_against_lists(steps, batch_size):
    """Any sequence of operations, beginning with far too little room."""
    # trap: kv-growth
    # trap: head-dim
    torch.manual_seed(0)
    cache, oracle = new_cache(batch_size, seq_len=2), ListCache(batch_size, 2, 2, 3)
    for name, x in steps:
        B, lengths = cache.batch_size, oracle.lengths()
        if name == "insert" and B:
            end = max(lengths) + x
            for layer in range(2):
                k, v = torch.randn(2, B, 2, x, 3)
                oracle.insert(layer, k, v)
                k_all, v_all = cache.insert_kv(layer, k, v)
                assert k_all.shape == v_all.shape == (B, 2, end, 3)
                for b, n in enumerate(lengths):
                    assert torch.equal(k_all[b, :, : n + x], oracle.rows[b][layer][0])
                    assert torch.equal(v_all[b, :, : n + x], oracle.rows[b][layer][1])
            assert cache.positions(x).tolist() == [list(range(n, n + x)) for n in lengths]
            cache.advance(x)
        elif name == "truncate":
            new = [(x >> b) % (n + 1) for b, n in enumerate(lengths)]
            cache.set_lengths(new)
            oracle.truncate(new)
        elif name == "keep" and B:
            rows = [(x >> b) % B for b in range(x % (B + 1))]
            cache.keep(rows)
            oracle.keep(rows)
        elif name == "join" and B:  # rows that copy what others begin with
            sources = [(x >> i) % B for i in range(1 + x % 3)]
            oracle.append(oracle, sources)
            cache.add_rows(len(sources))
            assert cache.lengths.tolist()[B:] == [0] * len(sources)
            for i, source in enumerate(sources, start=B):
                cache.write_row(i, cache.read_row(source))
        elif name == "part" and B:  # only the last row goes on
            cache.reserve(B, max(lengths) + x)
            part = cache.part(B - 1, B)
            for layer in range(2):
                k, v = torch.randn(2, 1, 2, x, 3)
                last = oracle.rows[-1][layer]
                oracle.rows[-1][layer] = tuple(torch.cat([old, new[0]], dim=1) for old, new in zip(last, (k, v)))
                part.insert_kv(layer, k, v)
            cache.set_lengths([*lengths[:-1], lengths[-1] + x])
            for layer in range(2):
                for which in (0, 1):
                    assert torch.equal(cache.read_row(B - 1)[which, layer], oracle.rows[-1][layer][which])
        assert cache.lengths.tolist() == oracle.lengths()
        assert cache.used == max(oracle.lengths(), default=0)


def test_cache_memory_is_finite_and_typed():
    """0 · NaN poisons a masked sum, so cells never written must be finite, also after growth."""
    # trap: cache-dtype
    for dtype in (torch.float32, torch.bfloat16):
        cache = new_cache(2, seq_len=4, dtype=dtype)
        cache.reserve(3, 400)
        assert cache.store.shape == (2, 2, 3, 2, 2 * GROWTH, 3)
        assert cache.store.dtype == dtype and cache.store.isfinite().all()


def test_cache_refuses_lengths_that_it_has_no_room_for():
    cache = new_cache(1, seq_len=4)
    for lengths in ([5], [-1], [1, 1]):
        with pytest.raises(ValueError, match="has no"):
            cache.set_lengths(lengths)


@torch.inference_mode()
def test_every_split_of_prefill_and_decode(engine):
    """The model with a cache gives the logits of the full forward, wherever the sequence is cut in two or three."""
    model = engine.model
    ids = torch.tensor(random_prompts(3, model.config.vocab_size, seed=1)[0] * 3)[:12]
    ids = torch.stack([ids, ids.flip(0)])  # (2, 12)
    full = model(ids)
    for i in range(1, 12):
        for j in (i, (i + 12) // 2, 12):
            cache = TorchForward(model).new_cache(2, 4)
            cuts = sorted({0, i, j, 12})
            logits = torch.cat([model(ids[:, a:b], kv_cache=cache) for a, b in zip(cuts, cuts[1:])], dim=1)
            assert (logits - full).abs().max() <= 1e-5 * full.abs().max()
            at = model(ids, at=torch.tensor([i, j - 1]))[:, 0]
            assert (at - full[[0, 1], [i, j - 1]]).abs().max() <= 1e-5 * full.abs().max()


# --------------------------------------------------------------------------- sampling


def test_greedy_takes_the_largest():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert sample_next_token(logits, temperature=0.0).tolist() == [1, 0]
    with pytest.raises(ValueError, match="random number"):
        sample_next_token(logits, temperature=1.0)


@pytest.mark.parametrize("top_k", [None, 0, 1, 2, 5, 50, 51, 10_000])
def test_top_k(top_k):
    # trap: top-k-zero
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    uniforms = [uniform(0, i, 0) for i in range(400)]
    tokens = sample_next_token(logits.expand(400, 50), uniforms, 1.0, top_k)
    allowed = set(logits[0].topk(min(top_k or 50, 50)).indices.tolist())
    assert set(tokens.tolist()) <= allowed
    assert len(set(tokens.tolist())) > min(len(allowed), 20) // 2


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 5), st.sampled_from([None, 1, 3, 7]))
def test_sampling_against_a_walk(seed, temperature, top_k):
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
    uniforms = [uniform(seed, row, 0) for row in range(4)]
    tokens = sample_next_token(logits, uniforms, temperature, top_k).tolist()
    assert tokens == [pick(logits[row], uniforms[row], temperature, top_k) for row in range(4)]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 5), st.sampled_from([None, 1, 3, 7]), st.floats(0.01, 0.999))
def test_nucleus_against_a_walk(seed, temperature, top_k, top_p):
    """top_p keeps the likeliest tokens until they reach it, of those that top_k kept."""
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
    uniforms = [uniform(seed, row, 0) for row in range(4)]
    tokens = sample_next_token(logits, uniforms, temperature, top_k, top_p).tolist()
    for row in range(4):
        order = logits[row].argsort(descending=True)[: top_k or 9].tolist()
        p = torch.softmax(logits[row].double()[order] / temperature, dim=0)
        allowed = set()
        for edge in (top_p - 1e-9, top_p + 1e-9):  # a sum that just reaches it may be rounded either way
            kept = min(1 + int((p.cumsum(0) < edge).sum()), len(p))
            shares = p[:kept].cumsum(0) / p[:kept].sum()
            for u in (uniforms[row] - 1e-9, uniforms[row] + 1e-9):
                allowed.add(order[min(int((shares <= u).sum()), kept - 1)])
        assert tokens[row] in allowed


def test_tiny_nucleus_is_greedy():
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_next_token(logits, [0.999] * 50, 5.0, None, 1e-9), logits.argmax(-1))


@given(st.lists(st.sampled_from([Sampling(0.0), Sampling(1.0), Sampling(0.7, 3), Sampling(1.5, None, 0.6)]),
                min_size=1, max_size=9), st.integers(0, 1000))
def test_rows_have_settings_of_their_own(settings_of_rows, seed):
    n = len(settings_of_rows)
    logits = torch.randn(n, 20, generator=torch.Generator().manual_seed(seed))
    uniforms = [uniform(seed, row, 0) for row in range(n)]
    together = sample_rows(logits, settings_of_rows, uniforms).tolist()
    for row, s in enumerate(settings_of_rows):
        alone = sample_next_token(logits[row : row + 1], uniforms[row : row + 1], s.temperature, s.top_k, s.top_p)
        assert alone.tolist() == [together[row]]


def test_sampling_frequencies():
    """40 000 draws of five tokens: each share within 4.5 standard deviations of its probability."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, -float("inf")])
    n = 40_000
    tokens = sample_next_token(logits.expand(n, 5), [uniform(7, 0, step) for step in range(n)], temperature=0.8)
    probabilities = torch.softmax(logits / 0.8, 0)
    shares = torch.bincount(tokens, minlength=5) / n
    assert ((shares - probabilities).abs() <= 4.5 * (probabilities * (1 - probabilities) / n).sqrt()).all()
    assert shares[4] == 0


def test_extreme_temperatures_and_numbers():
    logits = torch.tensor([[14.0, -15.0, 15.0]])
    assert sample_next_token(logits, [1 - 2.0**-52], 1e-30).tolist() == [2]
    assert sample_next_token(logits.flip(-1), [0.7], 1e-30).tolist() == [0]
    assert sample_next_token(torch.tensor([[1.0, -float("inf")]]), [1 - 2.0**-52], 1.0).tolist() == [0]
    assert sample_next_token(torch.tensor([[-float("inf"), 1.0]]), [0.0], 1.0).tolist() == [1]


def test_uniform_numbers_differ_by_seed_row_and_step():
    numbers = [uniform(s, r, t) for s in (-1, 0, 1, 2, 2**32 + 1) for r in range(30) for t in range(30)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= u < 1 for u in numbers) and abs(sum(numbers) / len(numbers) - 0.5) < 0.02


# --------------------------------------------------------------------------- batches against the oracle


def test_greedy_equals_naive(engine, tokenizer):
    """Ragged prompts, few places, rows that come and go: the very tokens of one row without a cache."""
    prompts = random_prompts(14, engine.model.config.vocab_size)
    for max_rows in (1, 3, 64):
        got = engine.generate_batch(prompts, max_tokens=20, temperature=0.0, max_rows=max_rows)
        want = [complete(engine.model, tokenizer, p, 20) for p in prompts]
        assert list(zip(*got)) == want


def test_model_generate_agrees(engine):
    """The model's own naive `generate` says the same (until the engine stops at an end token)."""
    prompt = random_prompts(1, engine.model.config.vocab_size, seed=3)[0]
    (ids,), _ = engine.generate_batch(prompt, max_tokens=16, temperature=0.0)
    assert ids == list(engine.model.generate(prompt, len(ids), temperature=0.0))


def test_sampled_equals_naive(engine, tokenizer):
    prompts = random_prompts(6, engine.model.config.vocab_size, seed=4)
    got = engine.generate_batch(prompts, num_samples=2, max_tokens=12, temperature=0.9, top_k=20, seed=5, max_rows=5)
    want = [complete(engine.model, tokenizer, p, 12, 0.9, 20, seed=5, index=2 * i + j)
            for i, p in enumerate(prompts) for j in range(2)]
    assert list(zip(*got)) == want


def test_neighbours_do_not_matter(engine):
    """Row 2 says the same beside any others, in any batch size."""
    V = engine.model.config.vocab_size
    prompts, others = random_prompts(5, V, seed=6), random_prompts(5, V, seed=7)
    args = {"max_tokens": 15, "temperature": 1.0, "seed": 1}
    alone = engine.generate_batch(prompts, max_rows=1, **args)[0]
    assert engine.generate_batch(prompts, **args)[0] == alone
    mixed = engine.generate_batch([*others[:2], prompts[2], *others[3:]], **args)[0]
    assert mixed[2] == alone[2]
    assert mixed[1] != alone[1]
    assert engine.generate_batch(prompts, **{**args, "seed": 2})[0] != alone


def test_first_tokens_differ(engine):
    """The first token is sampled for each row, not once for all."""
    # trap: first-token
    prompt = random_prompts(1, engine.model.config.vocab_size, seed=8)[0]
    column, mask = next(iter(engine.generate(prompt, num_samples=16, temperature=2.0)))
    assert len(column) == 16 and mask == [1] * 16
    assert len(set(column)) > 3


def test_generate_streams_what_generate_batch_returns(engine):
    prompt = random_prompts(1, engine.model.config.vocab_size, seed=9)[0]
    columns = list(engine.generate(prompt, num_samples=3, max_tokens=25, temperature=1.0, seed=3))
    rows, masks = engine.generate_batch(prompt, num_samples=3, max_tokens=25, temperature=1.0, seed=3)
    for i in range(3):
        assert [tokens[i] for tokens, _ in columns][: len(rows[i])] == rows[i]
        assert [mask[i] for _, mask in columns][: len(rows[i])] == masks[i]
    assert len(columns) == max(map(len, rows))


def test_many_groups_of_prefill(engine, monkeypatch):
    """A small bound on prefill positions cuts the prompts into several passes; nothing changes."""
    prompts = random_prompts(9, engine.model.config.vocab_size, seed=10)
    want = engine.generate_batch(prompts, max_tokens=5, temperature=0.0)
    monkeypatch.setattr("nanochat.engine.PREFILL_TOKENS", 40)
    assert engine.generate_batch(prompts, max_tokens=5, temperature=0.0) == want
    generation, admitted = engine.start(prompts, max_tokens=5, temperature=0.0), []
    while generation.step():
        new = [row for row in generation.active if len(row.ids) == 1]
        assert len(new) <= 1 or sum(len(row.prompt) for row in new) <= 40
        admitted += [len(row.prompt) for row in new]
    generation = engine.start(prompts[:3], num_samples=7, max_tokens=5, temperature=0.0, max_rows=4)
    while generation.step():
        assert len(generation.active) <= 4  # samples of one prompt take places too
    assert admitted == sorted(map(len, prompts), reverse=True)  # the longest first: it fails at once or not at all


@pytest.mark.parametrize("seed", range(20))
def test_random_trials(tokenizer, seed):
    """A share of what `python -m tests.chaos --engine=1000` runs."""
    assert trial(seed, tokenizer)[1] == []


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_tokens_of_another_vocabulary_are_refused(engine, bad):
    for prompt in ([bad], [1, bad], [bad, 1]):
        with pytest.raises(UserError, match="another tokenizer"):
            engine.generate_batch(prompt, max_tokens=1)
    with pytest.raises(UserError, match="another tokenizer"):
        engine.generate_batch([engine.model.config.vocab_size], max_tokens=1)


def test_rows_join_and_leave_while_others_are_written(engine):
    """What joins later, or is cancelled, changes nothing for the others; a cancelled row's place is free at once."""
    V = engine.model.config.vocab_size
    prompts = random_prompts(7, V, seed=20)
    greedy = Sampling(0.0)
    want = engine.generate_batch(prompts, max_tokens=12, temperature=0.0)[0]
    generation = engine.start(prompts[:3], max_tokens=12, temperature=0.0, max_rows=3)
    rows = list(generation.rows)
    generation.step()
    late = engine.make_rows(prompts[3:6], 1, 12, greedy, 42)
    never = engine.make_rows(prompts[6:], 1, 12, greedy, 42)
    generation.add(late)
    generation.add(never)
    generation.step()
    assert len(generation.active) == 3 and not late[0].ids
    generation.cancel(rows[0])
    generation.cancel(never[0])  # while it waits
    said = list(rows[0].ids)
    generation.step()
    assert any(row in generation.active for row in late)
    while generation.step():
        pass
    assert rows[0].finish == "cancelled" and rows[0].ids == said == want[0][: len(said)]
    assert never[0].finish == "cancelled" and never[0].ids == []
    assert [row.ids for row in [*rows[1:], *late]] == want[1:6]
    assert generation.step() == [] and generation.active == [] and not generation.waiting
    ends = [row.finish for row in late]
    for row in late:
        generation.cancel(row)  # too late: it ended as it ended
    assert [row.finish for row in late] == ends and "cancelled" not in ends


def test_rows_sample_by_their_own_settings(engine):
    """Greedy and sampling rows side by side say what they say alone."""
    prompts = random_prompts(4, engine.model.config.vocab_size, seed=21)
    ways = [Sampling(0.0), Sampling(1.3), Sampling(0.8, 5), Sampling(1.0, None, 0.7)]
    rows = [engine.make_rows([p], 1, 10, way, seed=i)[0] for i, (p, way) in enumerate(zip(prompts, ways))]
    generation = engine.start([], max_rows=4)
    generation.add(rows)
    while generation.step():
        pass
    for i, (prompt, way, row) in enumerate(zip(prompts, ways, rows)):
        alone = engine.generate_batch(prompt, max_tokens=10, temperature=way.temperature, top_k=way.top_k,
                                      top_p=way.top_p, seed=i)[0]
        assert alone == [row.ids]


class Counting:
    """A forward that counts the tokens it computes."""

    def __init__(self, forward):
        self.forward, self.tokens = forward, 0

    def __getattr__(self, name):
        return getattr(self.forward, name)

    def __call__(self, ids, cache, first_row=0):
        self.tokens += sum(map(len, ids))
        return self.forward(ids, cache, first_row)


def test_turns_and_samples_compute_a_beginning_once(tokenizer):
    """A chat's next turn computes its new tokens only; samples of one prompt compute it once; the answers are those of
    an engine that remembers nothing."""
    model = make_model(tokenizer.get_vocab_size(), 2, sequence_len=128)
    plain, engine = Engine(model, tokenizer), Engine(model, tokenizer, prefix_positions=256)
    engine.forward = Counting(engine.forward)
    prompt = random_prompts(1, 256, seed=22)[0] + [7] * 20
    for turn in range(3):
        before = engine.forward.tokens
        (ids,), _ = engine.generate_batch(prompt, max_tokens=9, temperature=0.0)
        assert [ids] == plain.generate_batch(prompt, max_tokens=9, temperature=0.0)[0]
        computed = engine.forward.tokens - before
        assert computed == (len(prompt) if turn == 0 else 1 + 5) + len(ids) - 1
        prompt = prompt + ids + [1, 2, 3, 4, 5]
    engine.prefixes = PrefixCache(engine.prefixes.capacity)
    before = engine.forward.tokens
    rows, _ = engine.generate_batch(prompt, num_samples=6, max_tokens=1, temperature=1.0)
    assert engine.forward.tokens - before == len(prompt)
    assert rows == plain.generate_batch(prompt, num_samples=6, max_tokens=1, temperature=1.0)[0]


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 64])
def test_samples_that_come_in_one_by_one_share_their_prompt_too(tokenizer, max_rows):
    """Each prompt is computed once, however few places there are, and all rows are those of one row at a time."""
    model = make_model(tokenizer.get_vocab_size(), 2)
    engine = Engine(model, tokenizer)
    engine.forward = Counting(engine.forward)
    prompts = random_prompts(4, model.config.vocab_size, seed=25)
    rows = engine.make_rows(prompts, 5, None, Sampling(1.0), seed=3)
    for row in rows:
        row.limit = 1 + row.index * 5 % 12  # they end at different times
    generation = engine.begin(rows, max_rows)
    while generation.step():
        pass
    assert engine.forward.tokens == sum(map(len, prompts)) + sum(len(row.ids) - 1 for row in rows)
    want = [complete(model, tokenizer, row.prompt, row.limit, 1.0, seed=3, index=row.index) for row in rows]
    assert [(row.ids, row.mask) for row in rows] == want
    assert len({tuple(row.ids) for row in rows}) > 15 and len({len(row.ids) for row in rows}) > 9


def test_a_prompt_whose_samples_wait_is_computed_anew_when_the_weights_change(tokenizer):
    model = make_model(tokenizer.get_vocab_size(), 2)
    engine = Engine(model, tokenizer)
    prompt = random_prompts(1, 256, seed=26)[0]
    generation = engine.start([prompt], num_samples=3, max_tokens=6, temperature=0.0, max_rows=1)
    while generation.rows[0].finish is None:
        generation.step()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 1.0, generator=torch.Generator().manual_seed(p.numel()))
    (want,), _ = engine.generate_batch(prompt, max_tokens=6, temperature=0.0)
    while generation.step():
        pass
    before, *after = [row.ids for row in generation.rows]
    assert after == [want, want] and before != want


def test_a_known_beginning_longer_than_the_cache(tokenizer):
    """A row that joins may bring more keys than there was room for."""
    engine = Engine(make_model(tokenizer.get_vocab_size(), 2, sequence_len=1024), tokenizer, prefix_positions=1024)
    long = (random_prompts(1, 256, seed=24)[0] * 600)[:600]
    (want,), _ = engine.generate_batch(long, max_tokens=3, temperature=0.0)
    generation = engine.start([[1, 2]], max_tokens=9, temperature=0.0)
    generation.step()
    assert generation.cache.store.size(4) < 500
    rows = engine.make_rows([long], 1, 3, Sampling(0.0), 0)
    generation.add(rows)
    while generation.step():
        pass
    assert rows[0].ids == want


def test_weights_that_changed_make_what_was_kept_worthless(tokenizer):
    model = make_model(tokenizer.get_vocab_size(), 2)
    engine = Engine(model, tokenizer, prefix_positions=256)
    prompt = random_prompts(1, 256, seed=23)[0]
    engine.generate_batch(prompt, max_tokens=9, temperature=0.0)
    retrain(model)
    fresh = Engine(model, tokenizer).generate_batch(prompt, max_tokens=9, temperature=0.0)
    assert engine.generate_batch(prompt, max_tokens=9, temperature=0.0) == fresh


def test_what_old_weights_computed_is_not_kept_for_new_ones(tokenizer):
    """A row that began before the weights changed ends after the next request has noticed it."""
    model = make_model(tokenizer.get_vocab_size(), 2)
    engine = Engine(model, tokenizer, prefix_positions=256)
    prompt = random_prompts(1, 256, seed=23)[0] + [7] * 20
    old = engine.start([prompt], max_tokens=9, temperature=0.0)
    old.step()
    retrain(model)
    engine.generate_batch([1], max_tokens=1)
    old.cancel(old.rows[0])
    assert old.step() == []
    fresh = Engine(model, tokenizer).generate_batch(prompt, max_tokens=9, temperature=0.0)
    assert engine.generate_batch(prompt, max_tokens=9, temperature=0.0) == fresh


def test_growth_in_the_engine(tokenizer, monkeypatch):
    """A cache that starts small and grows every 8 positions says what a large one says."""
    # trap: kv-growth
    engine = Engine(make_model(tokenizer.get_vocab_size(), 2), tokenizer)
    prompts = random_prompts(4, 256, longest=5, seed=11)
    want = engine.generate_batch(prompts, max_tokens=40, temperature=0.0)
    for module in ("engine", "kv_cache"):
        monkeypatch.setattr(f"nanochat.{module}.GROWTH", 8)
    generation = engine.start(prompts, max_tokens=40, temperature=0.0)
    generation.step()
    before = generation.cache.store.size(4)
    while generation.step():
        pass
    assert generation.cache.store.size(4) > before
    assert [row.ids for row in generation.rows] == want[0]


def test_bfloat16_on_cpu(tokenizer):
    # trap: cache-dtype
    model = make_model(tokenizer.get_vocab_size(), 2)
    model.compute_dtype = torch.bfloat16
    engine = Engine(model, tokenizer)
    assert engine.new_cache(1, 4).store.dtype == torch.bfloat16
    (ids,), _ = engine.generate_batch(random_prompts(1, 256)[0], max_tokens=8, temperature=0.0)
    assert ids


def test_a_compiled_model_is_unwrapped(tokenizer):
    # trap: compiled-sampling
    model = make_model(tokenizer.get_vocab_size())
    assert Engine(torch.compile(model), tokenizer).model is model


# --------------------------------------------------------------------------- ends


def test_finished_rows_leave_at_once(tokenizer):
    """The row of prompt [n] ends with its n-th token; every forward holds only unfinished rows."""
    # trap: finished-rows
    end = tokenizer.encode_special("<|assistant_end|>")

    def rule(history):
        return end if len(history) >= history[0] else history[0]

    model = Parrot(rule, tokenizer.get_vocab_size())
    ids, masks = Engine(model, tokenizer).generate_batch([[1], [2], [3], [4]], max_tokens=50)
    assert ids == [[n] * (n - 1) + [end] for n in (1, 2, 3, 4)]
    assert masks == [[1] * n for n in (1, 2, 3, 4)]
    assert model.rows_seen == [4, 3, 2, 1]


def test_waiting_prompts_take_free_places(tokenizer):
    end = tokenizer.encode_special("<|assistant_end|>")

    def rule(history):
        return end if len(history) >= history[0] else history[0]

    model = Parrot(rule, tokenizer.get_vocab_size())
    want = [9, 1, 1, 1, 1, 1, 1, 5]
    ids, _ = Engine(model, tokenizer).generate_batch([[n] for n in want], max_rows=3)
    assert [len(row) for row in ids] == want
    assert max(model.rows_seen) <= 3
    assert len(model.rows_seen) < sum(want)  # decoded together, and nobody waits for the long row


def test_generate_fills_finished_rows_with_unsampled_ends(tokenizer):
    """Rows that end at different steps (the end has P of about 0.3): later columns hold the end token, mask 0."""
    end = tokenizer.encode_special("<|assistant_end|>")
    engine = Engine(Parrot(lambda history: end, tokenizer.get_vocab_size()), tokenizer)
    columns = list(engine.generate([1], num_samples=6, temperature=2.06))
    rows, _ = engine.generate_batch([1], num_samples=6, temperature=2.06)
    assert len({len(row) for row in rows}) > 2
    for i, row in enumerate(rows):
        rest = len(columns) - len(row)
        assert [tokens[i] for tokens, _ in columns] == row + [end] * rest
        assert [mask[i] for _, mask in columns] == [1] * len(row) + [0] * rest


@pytest.mark.parametrize(("name", "finish"), [("<|assistant_end|>", "stop"), ("<|bos|>", "bos")])
def test_end_tokens_are_recorded(tokenizer, name, finish):
    # trap: bos-sampled
    end = tokenizer.encode_special(name)
    engine = scripted(tokenizer, [10, 11, end, 12], prompt_len=2)
    generation = engine.start([[1, 2]], max_tokens=10)
    while generation.step():
        pass
    assert generation.rows[0].ids == [10, 11, end]
    assert generation.rows[0].mask == [1, 1, 1]
    assert generation.rows[0].finish == finish


def test_limits(tokenizer):
    """Never a position beyond the context, and the reason is told."""
    # trap: context-end
    model = make_model(tokenizer.get_vocab_size(), sequence_len=24)
    engine = Engine(model, tokenizer)
    table = model.cos.size(1)
    end = {tokenizer.encode_special("<|assistant_end|>"), tokenizer.get_bos_token_id()}
    for prompt_len, max_tokens, limit, reason in [(20, None, 4, "context"), (20, 9, 4, "context"), (20, 4, 4, "length"),
                                                  (23, 9, 1, "context"), (24, 9, 0, "context"), (3, 0, 0, "length")]:
        generation = engine.start([[3] * prompt_len], max_tokens=max_tokens, temperature=0.0)
        while generation.step():
            pass
        row = generation.rows[0]
        assert row.finish == reason or set(row.ids) & end
        assert len(row.ids) == limit or set(row.ids) & end
    assert model.cos.size(1) == table
    with pytest.raises(UserError, match="25 tokens.*24"):
        engine.generate([3] * 25)


@pytest.mark.parametrize(("args", "text"), [
    ({"temperature": -1.0}, "temperature"), ({"temperature": float("nan")}, "temperature"), ({"top_k": -1}, "top_k"),
    ({"num_samples": 0}, "num_samples"), ({"max_tokens": -1}, "max_tokens"), ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"), ({"top_p": float("nan")}, "top_p"),
])
def test_impossible_requests_are_refused_at_the_call(tokenizer, args, text):
    engine = scripted(tokenizer, [1], prompt_len=1)
    with pytest.raises(UserError, match=text):
        engine.generate([1], **args)
    with pytest.raises(UserError, match="empty prompt"):
        engine.generate([])
    assert engine.generate_batch([]) == ([], [])


# --------------------------------------------------------------------------- tool


def call(tokenizer, expr):
    return [tokenizer.encode_special("<|python_start|>"), *tokenizer.encode(expr),
            tokenizer.encode_special("<|python_end|>")]


def output(tokenizer, text):
    return [tokenizer.encode_special("<|output_start|>"), *tokenizer.encode(text),
            tokenizer.encode_special("<|output_end|>")]


def test_tool_result_is_forced(tokenizer):
    # trap: calculator-format (10, not 10.0)
    end = tokenizer.encode_special("<|assistant_end|>")
    said = [*call(tokenizer, "0.2*50"), *tokenizer.encode("so"), *call(tokenizer, "'a,b'.count(',')"), end]
    engine = scripted(tokenizer, said, prompt_len=3)
    ids, masks = engine.generate_batch([[1, 2, 3], [4, 5, 6]], max_tokens=100)
    want, want_mask = [], []
    for tokens, bit in [(call(tokenizer, "0.2*50"), 1), (output(tokenizer, "10"), 0), (tokenizer.encode("so"), 1),
                        (call(tokenizer, "'a,b'.count(',')"), 1), (output(tokenizer, "1"), 0), ([end], 1)]:
        want += tokens
        want_mask += [bit] * len(tokens)
    assert ids == [want, want]
    assert masks == [want_mask, want_mask]


@pytest.mark.parametrize("expr", ["__import__('os')", "1/0", "", "9**9**9"])
def test_refused_expression_forces_nothing(tokenizer, expr):
    end = tokenizer.encode_special("<|assistant_end|>")
    said = [*call(tokenizer, expr), *tokenizer.encode("well"), end]
    (ids,), (mask,) = scripted(tokenizer, said, prompt_len=1).generate_batch([1])
    assert ids == said and mask == [1] * len(said)


def test_stray_tool_tokens_are_harmless(tokenizer):
    """An end without a start, a start twice, an answer that ends within a call."""
    start, stop = call(tokenizer, "")
    end = tokenizer.encode_special("<|assistant_end|>")
    for said in ([stop, stop, end], [start, 7, end]):
        (ids,), _ = scripted(tokenizer, said, prompt_len=1).generate_batch([1])
        assert ids == said
    said = [start, *tokenizer.encode("5+"), start, *tokenizer.encode("6*7"), stop, end]
    (ids,), _ = scripted(tokenizer, said, prompt_len=1).generate_batch([1])
    assert ids == [*said[:-1], *output(tokenizer, "42"), end]


def test_forcing_stops_at_the_limit(tokenizer):
    said = call(tokenizer, "111*111")
    (ids,), (mask,) = scripted(tokenizer, said, prompt_len=1).generate_batch([1], max_tokens=len(said) + 2)
    assert len(ids) == len(said) + 2 and mask[-2:] == [0, 0]


def test_forced_stop_tokens_cannot_come_from_a_result(tokenizer):
    """The state machine on its own: forced tokens neither end the row nor open a call."""
    specials = Specials.of(tokenizer)
    row = RowState([1], Sampling(), seed=0, index=0, limit=50, limit_reason="length")
    for token in call(tokenizer, "6*7"):
        assert row.push(token, tokenizer, specials) == (token, 1)
    for token in output(tokenizer, "42"):
        assert row.push(specials.assistant_end, tokenizer, specials) == (token, 0)
    assert row.finish is None
    assert row.push(specials.assistant_end, tokenizer, specials) == (specials.assistant_end, 1)
    assert row.finish == "stop"


def test_random_model_with_tools_equals_naive(tokenizer):
    """Random rules that like to call the tool, in ragged batches, against the oracle that rescans its text."""
    specials = Specials.of(tokenizer)
    pieces = [specials.python_start, specials.python_end, *(tokenizer.encode(c)[0] for c in "12+*"),
              specials.assistant_end]

    def rule(history):
        x = uniform(0, sum(history), len(history))
        return pieces[int(x * 6.1)]

    parrot = Parrot(rule, tokenizer.get_vocab_size())

    class Uncached:
        config = parrot.config

        def __call__(self, idx):
            return parrot(idx, kv_cache=KVCache(1, 1, 1, 1, 1, torch.float32, "cpu"))

    prompts = random_prompts(30, 256, seed=12)
    got = Engine(parrot, tokenizer).generate_batch(prompts, max_tokens=60, temperature=0.0, max_rows=4)
    want = [complete(Uncached(), tokenizer, p, 60) for p in prompts]
    assert list(zip(*got)) == want
    assert sum(mask.count(0) for mask in got[1]) > 20  # the tool was used


def test_tool_off_the_main_thread(tokenizer):
    # trap: thread-signal
    said = [*call(tokenizer, "6*7"), tokenizer.encode_special("<|assistant_end|>")]
    results = []
    thread = threading.Thread(target=lambda: results.append(
        scripted(tokenizer, said, prompt_len=1).generate_batch([1])[0][0]))
    thread.start()
    thread.join(timeout=30)
    assert results == [[*said[:-1], *output(tokenizer, use_calculator("6*7")), said[-1]]]


# --------------------------------------------------------------------------- chat


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_stream_gives_whole_characters(tokenizer, text):
    # trap: utf8-stream
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    stream, pieces = TextStream(tokenizer), []
    for token in tokenizer.encode(text):
        pieces.append(stream.feed(token)[1])
    pieces.append(stream.flush()[1])
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_stream_splits_an_emoji_over_tokens(tokenizer):
    """Four bytes, four tokens: nothing, nothing, nothing, then the character."""
    # trap: utf8-stream
    stream = TextStream(tokenizer)
    ids = [next(i for i in range(256) if tokenizer.decode_bytes([i]) == bytes([b])) for b in "🦊".encode()]
    assert [stream.feed(i)[1] for i in ids] == ["", "", "", "🦊"]
    assert [stream.feed(i)[1] for i in ids[:2]] == ["", ""]
    assert stream.flush() == ("text", "\ufffd")
    assert stream.feed(ids[0])[1] == ""
    assert stream.feed(tokenizer.encode_special("<|python_start|>")) == ("text", "\ufffd")  # cut off by a special token


def test_stream_tells_tool_calls_apart(tokenizer):
    stream = TextStream(tokenizer)
    ids = [*tokenizer.encode("It is "), *call(tokenizer, "6*7"), *output(tokenizer, "42"), *tokenizer.encode("42."),
           tokenizer.encode_special("<|assistant_end|>")]
    pieces = [stream.feed(i) for i in ids]
    parts = [{"type": "text", "text": "It is "}, {"type": "python", "text": "6*7"},
             {"type": "python_output", "text": "42"}, {"type": "text", "text": "42."}]
    assert stream.parts == parts
    assert "".join(text for kind, text in pieces if kind == "text") == "It is 42."
    # and a conversation can hold them: rendered, they are the same ids
    rendered, _ = tokenizer.render_conversation({"messages": [{"role": "user", "content": "?"},
                                                              {"role": "assistant", "content": stream.parts}]})
    assert rendered[-len(ids):] == ids


def chat(n):
    messages = [{"role": "system", "content": "Be brief."}]
    for i in range(n):
        messages += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
    return [*messages, {"role": "user", "content": "last question"}]


def test_fit_conversation_drops_oldest_turns(tokenizer):
    # trap: context-end
    messages = chat(6)
    whole = fit_conversation(messages, tokenizer, 10_000)
    assert whole.dropped == 0 and whole.messages == messages
    assert whole.ids == tokenizer.render_for_completion({"messages": messages})
    seen = set()
    for budget in range(len(whole.ids), 0, -1):
        try:
            fitted = fit_conversation(messages, tokenizer, budget)
        except UserError as e:
            assert "shorten" in str(e) and budget < 60
            break
        assert len(fitted.ids) <= budget
        assert fitted.messages == [messages[0], *messages[1 + 2 * fitted.dropped :]]
        assert tokenizer.decode(fitted.ids).startswith("<|bos|><|user_start|>Be brief.")
        seen.add(fitted.dropped)
    assert seen == set(range(7))
    assert messages == chat(6)  # left as they were


def test_who_is_cancelled_while_waiting_waits_no_longer(tokenizer):
    """Also while all places are taken: else what was asked and left would add up until one is free."""
    engine = Engine(Parrot(lambda history: 5, tokenizer.get_vocab_size()), tokenizer)
    generation = engine.start([[1, 2], [3], [4]], max_tokens=20, temperature=0.0, max_rows=1)
    generation.step()
    assert len(generation.waiting) == 2
    generation.cancel(generation.rows[1])
    generation.step()
    assert list(generation.waiting) == [generation.rows[2]] and generation.active == [generation.rows[0]]


def test_fit_conversation_lays_out_what_it_keeps_and_not_what_it_drops(tokenizer, monkeypatch):
    """As many turns as a request of the server may hold."""
    laid_out, encode = [0], tokenizer._encode_ordinary
    monkeypatch.setattr(tokenizer, "_encode_ordinary", lambda text: laid_out.append(1) or encode(text))
    fitted = fit_conversation(chat(10_000), tokenizer, 200)
    assert 150 < len(fitted.ids) <= 200 and sum(laid_out) < 200


def test_fit_conversation_wants_a_question(tokenizer):
    for messages in ([], chat(1)[:-1], [{"role": "system", "content": "x"}]):
        with pytest.raises(UserError, match="user"):
            fit_conversation(messages, tokenizer, 100)
