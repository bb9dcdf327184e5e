"""Answers to learn from: a tiny real model writes them, tasks grade them, and one, two and three ranks agree on them.

Three processes are started once; as a group of three and of two they run the same steps and leave what each rank got.
The last test is the whole of it: a policy that only guesses learns to be right.

Run: python -m pytest tests/test_rollouts.py
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.bucket import Bucket, all_gather
from nanochat.common import UserError
from nanochat.engine import Engine, Sampling, uniform
from nanochat.gpt import GPT
from nanochat.rl import Group
from nanochat.rollouts import Rollouts, Settings, answer_seed, graded
from nanochat.sampling import stream_seed
from nanochat.stage_config import StageConfig
from nanochat.train import TrainState, document_loss, train
from nanochat.train_step import global_gradient
from tasks.common import Conversation, Task, TaskMixture, TaskSequence
from tests.helpers import byte_tokenizer, small_model
from tests.reference.kv_cache import pick
from tests.reference.rl import policy_loss
from tests.toy_policy import ANSWERS, QUESTIONS, Cipher, chat, guesses, manners, taught

T = 32
SETTINGS = Settings(examples_per_step=5, num_samples=7, max_new_tokens=11, seed=3)  # 5 problems on 2 or 3 ranks
TOKENIZER = byte_tokenizer()
BOS = TOKENIZER.get_bos_token_id()


@cache
def policy() -> GPT:
    """It writes answers of all kinds; nobody trains it any further."""
    return taught(manners(), T=T)


def rollouts(task: Task, model: GPT | None = None, settings: Settings = SETTINGS, **more) -> Rollouts:
    return Rollouts(Engine(model or policy(), TOKENIZER), task, settings, **{"rows": 4, **more})


def plain(groups: list[Group]) -> list[dict]:
    return [asdict(group) for group in groups]


class Long(Cipher):
    """Some of its questions leave no room for an answer."""

    def __init__(self, long: str = "", **slicing):
        super().__init__(**slicing)
        self.long = long

    def get_example(self, index: int) -> Conversation:
        row = super().get_example(index)
        times = T if QUESTIONS[index] in self.long else 1
        return chat(row["messages"][0]["content"] * times, row["messages"][1]["content"])


class Shades(Cipher):
    """What begins as the right answer does is worth something, too; the reward is another number for each task."""

    def reward(self, conversation: Conversation, completion: str) -> float:
        right = conversation["messages"][-1]["content"]
        return self.worth * (completion == right) + 0.1 * completion.startswith(right) - 0.3


# --------------------------------------------------------------------------- the same on any number of ranks


def stepped() -> tuple[dict[str, Tensor], dict]:
    """Two steps in float64 and the answers of a third: the gradients, whole, and what all ranks were told.

    The engine rounds to float32 what it reads.
    """
    model = copy.deepcopy(policy()).double()
    model.compute_dtype = torch.float64
    optimizer = model.setup_optimizers()
    source = rollouts(Shades(), model, rows=3)
    found, told = {}, []
    for step in range(2):
        batch = next(source)
        gradient = global_gradient(model, optimizer, batch, rows=2, loss_fn=document_loss(BOS))
        for i, bucket in enumerate(optimizer.buckets):
            found[f"{step}/{i}"] = whole(bucket)
        told.append({"loss": gradient.loss, "norm": gradient.norm, "tokens": gradient.supervised,
                     "figures": batch.figures, "state": batch.state, "rows": len(batch.inputs)})
        optimizer.zero_grad()  # no update: its bfloat16 makes much of the last bit
    groups, own = source.sample(2)
    return found, {"told": told, "groups": plain(groups), "own": len(own)}


def whole(bucket: Bucket) -> Tensor:
    """What the ranks hold of a bucket's reduced gradient, together: (units, ...)."""
    own = torch.stack(bucket.gradient) if isinstance(bucket.gradient, list) else bucket.gradient
    together = own.new_empty(bucket.world_size, *own.shape)
    if bucket.world_size == 1:
        together[0] = own
    else:
        all_gather(together, own.contiguous()).wait()
    return together.flatten(0, 1)[: bucket.units].clone()


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    policy()  # before there is a group, of which each would train a part of it
    for world_size in (3, 2):
        if rank >= world_size:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/store{world_size}", rank=rank,
                                world_size=world_size, timeout=timedelta(minutes=5))
        gradients, told = stepped()
        save_file(gradients, folder / f"{world_size}_{rank}.safetensors")
        (folder / f"{world_size}_{rank}.json").write_text(json.dumps(told), encoding="utf-8")
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> Callable[[int], list[tuple[dict[str, Tensor], dict]]]:
    """`ranks(world_size)`: what each rank of that many got."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload([__name__])  # torch is imported once
    mp.start_processes(process, (folder,), nprocs=3, start_method="forkserver")

    def read(world_size: int, rank: int) -> tuple[dict[str, Tensor], dict]:
        path = folder / f"{world_size}_{rank}"
        return (load_file(path.with_suffix(".safetensors")),
                json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))

    return lambda world_size: [read(world_size, rank) for rank in range(world_size)]


@pytest.fixture(scope="module")
def alone() -> tuple[dict[str, Tensor], dict]:
    return stepped()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_get_the_answers_and_the_gradient_of_one(ranks, alone, world_size):
    gradients, expected = alone
    assert len(expected["groups"]) == 5 and all(len(group["samples"]) == 7 for group in expected["groups"])
    largest = max(float(g.abs().max()) for g in gradients.values())
    for got, told in ranks(world_size):
        assert told["groups"] == expected["groups"]
        for ours, theirs in zip(told["told"], expected["told"], strict=True):
            assert ours["figures"] == theirs["figures"] and ours["state"] == theirs["state"]
            assert ours["tokens"] == theirs["tokens"] and ours["rows"] * world_size >= theirs["rows"]
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-10, abs=1e-12)
            assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-10)
        assert got.keys() == gradients.keys()
        assert max(float((got[key] - gradients[key]).abs().max()) for key in got) < 1e-10 * largest
    assert sum(told["own"] for _, told in ranks(world_size)) == 5


def test_the_first_gradient_is_that_of_the_plain_formula(alone):
    """To 1e-7 only: the model's rotary table has float32's digits (tests/test_rl.py has 1e-10, and says why)."""
    model = copy.deepcopy(policy()).double()
    model.compute_dtype = torch.float64
    optimizer = model.setup_optimizers()
    groups, _ = rollouts(Shades(), model).sample(0)
    policy_loss(model, groups).backward()
    optimizer.reduce()
    expected = {f"0/{i}": whole(bucket) for i, bucket in enumerate(optimizer.buckets)}
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-4
    assert max(float((alone[0][key] - g).abs().max()) for key, g in expected.items()) < 1e-7 * largest


# --------------------------------------------------------------------------- the answers


def test_the_policy_of_these_tests_writes_answers_of_all_kinds():
    found = next(rollouts(Shades())).figures
    assert 0 < found["tool"] < 1 and 0 < found["unfinished"] < 1 and found["flat"] < 1 and found["entropy"] > 0.1


# trap: rl-remainder
@pytest.mark.parametrize("rollout_rows", [1, 4, 35, 64])
def test_all_samples_come_however_many_are_written_at_once(rollout_rows):
    """Seven to each problem, in groups of four rows or one: the very same answers, and all of them in the batch."""
    source = rollouts(Shades(), rows=3, rollout_rows=rollout_rows)
    groups, own = source.sample(0)
    assert groups == own and [len(group.samples) for group in groups] == [7] * 5
    assert plain(groups) == plain(rollouts(Shades()).sample(0)[0])
    batch = next(source)
    assert batch.tokens == sum(sum(s.mask) for g in groups for s in g.samples)
    advantage = {(i, j): s.reward - sum(t.reward for t in g.samples) / 7
                 for i, g in enumerate(groups) for j, s in enumerate(g.samples) if not g.flat}
    counted = sum(sum(groups[i].samples[j].mask) for (i, j), a in advantage.items() if a)
    assert int((batch.counts != 0).sum()) == int((batch.targets >= 0).sum()) == counted > 50


def test_no_two_answers_of_a_run_draw_the_same_numbers():  # trap: rl-seed
    """Over steps, ranks (each has positions of its own) and samples; nor those that an evaluation draws."""
    streams = {tuple(uniform(answer_seed(seed, position), sample, step) for step in range(3))
               for seed in (0, 1, -1) for position in range(300) for sample in range(16)}
    streams |= {tuple(uniform(stream_seed(0, problem), sample, step) for step in range(3))
                for problem in range(300) for sample in range(16)}
    assert len(streams) == 4 * 300 * 16


def test_samples_steps_and_seeds_differ():  # trap: rl-seed
    """What is drawn, not only what it is drawn by. One problem, asked again and again."""
    task = Cipher(stop=1)
    source = rollouts(task, settings=Settings(1, 16, 11, seed=3))
    answers = [[s.ids for s in source.sample(step)[0][0].samples] for step in range(3)]
    assert all(len(set(map(tuple, ids))) > 3 for ids in answers)
    assert answers[0] != answers[1] != answers[2] != answers[0]
    other = rollouts(task, settings=Settings(1, 16, 11, seed=4)).sample(0)[0][0]
    assert [s.ids for s in other.samples] != answers[0]
    assert [s.ids for s in rollouts(task, settings=Settings(1, 16, 11, seed=3)).sample(0)[0][0].samples] == answers[0]


def test_answers_are_drawn_as_likely_as_the_policy_finds_them():
    """At temperature 1 and from all tokens: that is whose gradient it is. The first tokens of 512 answers are those
    that walking along the policy's own probabilities gives (but where rounding decides)."""
    (group,), _ = rollouts(Cipher(stop=1), settings=Settings(1, 512, 1, seed=3)).sample(0)
    with torch.no_grad():
        logits = policy()(torch.tensor([group.prompt]))[0, -1]
    drawn = [sample.ids[0] for sample in group.samples]
    expected = [pick(logits, uniform(answer_seed(3, 0), i, 0), temperature=1.0, top_k=None) for i in range(512)]
    assert sum(a == b for a, b in zip(drawn, expected)) >= 510 and len(set(drawn)) > 4


def test_what_the_tool_forced_is_marked():  # trap: rl-forced
    forced = [(s.ids, s.mask) for g in rollouts(Cipher()).sample(0)[0] for s in g.samples if 0 in s.mask]
    assert len(forced) > 3
    value = [TOKENIZER.encode_special("<|output_start|>"), *TOKENIZER.encode("12"),
             TOKENIZER.encode_special("<|output_end|>")]
    assert any([i for i, m in zip(ids, mask) if not m] == value for ids, mask in forced)


def test_the_weights_as_they_are_now_write_the_answers():
    """On-policy: after the weights have changed, the same step has other answers, those that a new engine gives."""
    model = copy.deepcopy(policy())
    source = rollouts(Cipher(), model)
    before = source.sample(0)[0]
    with torch.no_grad():
        model.lm_head.weight.mul_(0.7)
    after = source.sample(0)[0]
    assert plain(after) != plain(before)
    assert plain(after) == plain(rollouts(Cipher(), copy.deepcopy(model)).sample(0)[0])


def test_entropy_is_that_of_the_whole_forward_pass():
    """Of the tokens that were sampled, forced ones left out, in nats."""
    groups, _ = rollouts(Cipher()).sample(0)
    samples = [(g.prompt, s) for g in groups for s in g.samples]
    assert any(0 in s.mask for _, s in samples)
    for prompt, sample in samples[:12] + [(p, s) for p, s in samples if 0 in s.mask][:3]:
        with torch.no_grad():
            logits = policy()(torch.tensor([[*prompt, *sample.ids[:-1]]]))[0, len(prompt) - 1 :].double()
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        assert sample.entropy == pytest.approx(float((entropy * torch.tensor(sample.mask)).sum()), abs=1e-4)


# --------------------------------------------------------------------------- grades


@pytest.mark.parametrize("kind", [TaskMixture, TaskSequence])
def test_each_answer_of_a_mixture_is_graded_by_its_own_task(kind):
    """Three tasks of the same questions and other worths, one of them in part, two in a mixture within the mixture."""
    tasks = [Cipher("one", worth=1.0), kind([Cipher("three", worth=3.0, start=2, stop=7), Cipher("five", worth=5.0)])]
    task = kind(tasks, start=1, step=2)
    settings = Settings(len(task), 8, 11, seed=3)
    groups, _ = rollouts(task, taught(guesses()), settings).sample(0)
    assert {group.task for group in groups} == {"one", "three", "five"}
    worths = {"one": 1.0, "three": 3.0, "five": 5.0}
    found = set()
    for group in groups:
        question = TOKENIZER.decode(group.prompt).split("<|user_start|>")[1][0]
        for sample in group.samples:
            text = TOKENIZER.decode(sample.ids)
            right = text == ANSWERS[QUESTIONS.index(question) % 4] + "<|assistant_end|>"
            assert sample.reward == worths[group.task] * right
            found.add(sample.reward)
    assert found == {0.0, 1.0, 3.0, 5.0}
    for index in range(len(task)):  # where a row is, and what it says
        of, local = task.locate(index)
        assert of[local] == task[index] and not isinstance(of, kind)
    assert asdict(groups[0]) and set(next(rollouts(task, settings=settings)).figures) >= {
        "reward one", "reward three", "reward five"}


def finished(text: str, finish: str):
    (row,) = Engine(policy(), TOKENIZER).make_rows([[BOS]], 1, 20, Sampling(), 0)
    end = [TOKENIZER.encode_special("<|assistant_end|>")] if finish == "stop" else []
    row.ids = [*TOKENIZER.encode(text), *end, *([BOS] if finish == "bos" else [])]
    row.mask, row.finish, row.entropy = [1] * len(row.ids), finish, 1.5
    return row


@pytest.mark.parametrize(("text", "finish", "reward"), [
    ("w", "stop", 2.0), ("w", "length", 0.0), ("w", "context", 0.0), ("w", "bos", 0.0), ("ww", "stop", 0.0)])
def test_an_answer_that_does_not_end_is_worth_nothing_however_right_it_looks(text, finish, reward):
    task = Cipher(worth=2.0)
    sample = graded(TOKENIZER, task, task[0], finished(text, finish))
    assert (sample.reward, sample.ended, sample.entropy) == (reward, finish == "stop", 1.5)
    assert sample.ids[-1] == finished(text, finish).ids[-1]  # the end stands in the answer, to be learned


@pytest.mark.parametrize("worth", [math.nan, math.inf, -math.inf])
def test_a_reward_must_be_a_finite_number(worth):
    task = Cipher("mine", worth=worth)
    with pytest.raises(UserError, match="mine gave an answer the reward .*finite") as e:
        graded(TOKENIZER, task, task[0], finished("w", "stop"))
    assert "\n" not in str(e.value)


def test_a_problem_that_leaves_no_room_is_left_out_and_nothing_but_such_is_refused():
    groups, _ = rollouts(Long("bd"), settings=replace(SETTINGS, examples_per_step=8)).sample(0)
    assert len(groups) == 6 and max(len(group.prompt) for group in groups) < T
    with pytest.raises(UserError, match="not one of the 5 problems of step 0 leaves room .* 32 tokens") as e:
        next(rollouts(Long(QUESTIONS)))
    assert "\n" not in str(e.value)


def test_an_answer_may_fill_the_context():
    """A model that never learned to end, and a limit above what is left: answers end where the context does."""
    source = rollouts(Cipher(), small_model(TOKENIZER, sequence_len=T), replace(SETTINGS, max_new_tokens=100))
    groups, _ = source.sample(0)
    lengths = [len(group.prompt) + len(sample.ids) for group in groups for sample in group.samples]
    assert max(lengths) == T and not all(sample.ended for group in groups for sample in group.samples)
    batch = next(source)
    assert batch.inputs.shape[1] == T and batch.tokens == sum(group.sampled for group in groups)


# --------------------------------------------------------------------------- going on


def test_a_stream_goes_on_where_its_state_was():
    source = rollouts(Shades())
    batches = [next(source) for _ in range(4)]
    state = json.loads(json.dumps(batches[1].state))  # as a checkpoint gives it back
    again = rollouts(Shades(), state=state)
    for expected in batches[2:]:
        batch = next(again)
        assert torch.equal(batch.inputs, expected.inputs) and torch.equal(batch.counts, expected.counts)
        assert torch.equal(batch.targets, expected.targets) and batch.figures == expected.figures
        assert batch.state == expected.state and batch.tokens == expected.tokens
    assert [b.state["step"] for b in batches] == [1, 2, 3, 4] and len(batches[3].state["history"]) == 4


def test_other_problems_are_no_continuation():
    state = next(rollouts(Cipher())).state
    with pytest.raises(UserError, match="cannot resume: the problems had the fingerprint") as e:
        rollouts(Cipher(stop=7), state=state)
    assert "\n" not in str(e.value)


def test_a_collapse_stops_the_run_or_is_said_once(capsys):
    lost = {"reward": 0.0, "entropy": 1.0, "flat": 1.0, "unfinished": 0.0}
    worthless = Cipher(worth=0.0)
    state = {"task": worthless.fingerprint(), "step": 19, "history": [lost] * 19}
    source = rollouts(worthless, state=state)
    next(source)
    with pytest.raises(UserError, match="^step 20: no reward: .*--collapse=note") as e:
        next(source)
    assert "\n" not in str(e.value)
    noting = rollouts(worthless, state=state, on_collapse="note")
    assert [next(noting).state["step"] for _ in range(3)] == [20, 21, 22]
    assert capsys.readouterr().out.count("no reward") == 1


# --------------------------------------------------------------------------- what it is all for


def test_a_policy_that_guesses_learns_to_be_right():
    """A known optimum: each of eight questions has one right answer of four, and nobody shows which. From a quarter
    right to 99% and more, sampled at temperature 1."""
    model = taught(guesses(), T=T)
    optimizer = model.setup_optimizers()
    optimizer.scale_lr(0.5)
    source = rollouts(Cipher(), model, Settings(8, 16, 4, seed=2), rows=16)
    rewards, flat = [], []

    def on_step(state: TrainState, metrics: dict) -> None:
        rewards.append(metrics["figures"]["reward"])
        flat.append(metrics["figures"]["flat"])

    assert train(model, optimizer, source, StageConfig(warmdown_ratio=0.5), TrainState(), num_iterations=180, rows=16,
                 loss_fn=document_loss(BOS), hooks=[], on_step=on_step) == 0
    print(f"\nreward of the first 5 steps {sum(rewards[:5]) / 5:.3f}, of the last 20 {sum(rewards[-20:]) / 20:.4f}")
    assert sum(rewards[:5]) / 5 < 0.5 and flat[0] < 0.5
    assert sum(rewards[-20:]) / 20 >= 0.99
