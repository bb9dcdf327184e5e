"""Reinforcement learning: the fine-tuned model answers problems, and learns from which of its answers were right.

    python -m scripts.chat_rl runs/pocket.toml
    python -m scripts.chat_rl --data=fineweb-edu --mixture gsm8k                              GSM8K, as published
    python -m scripts.chat_rl --mixture spellingbee:2000 my_questions.jsonl --num_samples=8
    python -m nanochat.launch 8 scripts.chat_rl --mixture gsm8k                               the same, on 8 GPUs

Reads `chatsft_checkpoints/`, writes `chatrl_checkpoints/`. Any task whose answers can be graded will do. A step asks
`--examples_per_step` problems, samples `--num_samples` answers to each and follows the policy gradient (which one says
`nanochat/rl.py`). Held-out problems are answered before the first step, every `--eval_every` steps and after the last:
pass@k, the chance that one of k answers is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nanochat import configurator
from nanochat.batch_size import choose_rows
from nanochat.checkpoint_manager import LOG, checkpoint_root, find_model, load_model
from nanochat.common import UserError, check_at_least, compute_init, get_dist_info, print0, resolve_dtype
from nanochat.dataloader import Batch
from nanochat.engine import Engine
from nanochat.eval_result import EvalResult, paired_gain
from nanochat.report import get_report
from nanochat.rollouts import Rollouts, Settings
from nanochat.run import TrainState, check_deterministic, curve
from nanochat.stage_config import RunConfig
from nanochat.task_eval import run_generative_eval
from nanochat.train import Every, Rows, document_loss, make_optimizer, run_training
from tasks.catalog import make_task, parse_mixture
from tasks.common import Task

SHOWN = 3  # problems of each task whose answers before and after stand in the report
CURVES = ("reward", "length", "entropy", "flat", "tool", "unfinished")


@dataclass
class Config(RunConfig):
    """Train the fine-tuned model on problems whose answers can be checked."""

    mixture: tuple[str, ...] = ("gsm8k",)
    """Tasks to train on: name, name*2 (twice as often), name:5000 (so many rows), or a .jsonl file with answers."""
    examples_per_step: int = 16
    """Problems a step, over all ranks."""
    num_samples: int = 16
    """Answers to each."""
    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    num_epochs: int = 1
    """Passes over the mixture, if num_iterations does not say how long."""
    init_lr_frac: float = 0.05
    """Multiplies all learning rates of this stage."""
    warmdown_ratio: float = 1.0
    """Share of the steps in which the rate falls."""
    device_batch_size: int | Literal["auto"] = 8
    """Rows of a backward pass: lower it when memory runs out, the result stays the same; auto: the most that fit."""
    rollout_rows: int = 128
    """Answers written at once, on each rank: the result does not depend on it."""
    collapse: Literal["stop", "note"] = "stop"
    """When reward or variety have collapsed: stop, or say it once and go on."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks (their test split) or files of held-out problems (default: of the mixture; my_test.jsonl of my.jsonl)."""
    eval_examples: int = 400
    """Held-out problems a task, at most, each time."""
    eval_samples: int = 8
    """Answers to each, for pass@1 to pass@k."""
    eval_every: int = 60
    """Steps between evaluations on held-out data (0: only before the first and after the last)."""
    save_every: int = 60
    """Steps between checkpoints (0: only at the end)."""
    log_every: int = 1
    """Steps between lines of the log."""
    step: int = -1
    """Step of the model to start from (-1: its last)."""
    from_tag: str = ""
    """Tag of the model to start from (default: the largest)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, examples_per_step=self.examples_per_step, max_new_tokens=self.max_new_tokens,
                       num_epochs=self.num_epochs, rollout_rows=self.rollout_rows, eval_examples=self.eval_examples,
                       eval_samples=self.eval_samples)
        check_at_least(0, init_lr_frac=self.init_lr_frac)
        if self.num_samples < 2:
            raise UserError(f"--num_samples={self.num_samples} is impossible: an answer is judged against the others "
                            "to its problem, so there must be at least 2")
        if self.deterministic:
            check_deterministic(self.device_batch_size, get_dist_info()[3])


def each_graded(tasks: list[Task]) -> list[Task]:
    """Each once; one that cannot grade written answers is refused by name."""
    tasks = list({task.fingerprint(): task for task in tasks}.values())
    for task in tasks:
        if task.eval_type != "generative":
            raise UserError(f"{task.name} has no written answers that could be graded: choose tasks such as gsm8k, "
                            "spellingbee, or a .jsonl file with answers")
        if why := task.obstacle():
            raise UserError(f"{task.name} cannot be graded here: {why}")
        if [t.name for t in tasks].count(task.name) > 1:
            raise UserError(f"two different tasks would be called {task.name} in the log: rename one file, or take one "
                            "part of a task")
    return tasks


def held_out_tasks(config: Config, practised: list[Task]) -> list[Task]:
    """What the exams ask: `eval_tasks`, else the tests of what is practised. Nobody is examined on that itself."""
    if config.eval_tasks:
        tasks = [make_task(name, config.data, "test") for name in config.eval_tasks]
    else:
        tasks = parse_mixture(config.mixture, config.data, "test").tasks
    for task in tasks:
        if any(task.content == other.content for other in practised):
            raise UserError(f"{task.name} is not held out, its rows are in the mixture: name others in --eval_tasks")
    return each_graded(tasks)


class Exam:
    """A hook: answers to held-out problems, in figures and in words, into `state.exams`."""

    def __init__(self, engine: Engine, tasks: list[Task], config: Config):
        self.engine, self.tasks, self.config = engine, tasks, config
        self.state = TrainState()  # the run's, from its first exam on

    def __call__(self, state: TrainState) -> None:
        self.state = state
        exam: dict[str, Any] = {"step": state.step, "metrics": {}, "right": {}, "shown": []}
        for task in self.tasks:
            result = self._answers(task, self.config.eval_examples, 1.0, self.config.eval_samples)
            exam["metrics"][task.name], exam["right"][task.name] = result.metrics(), result.right
            print0(f"step {state.step:5d} | held out: {told(result)}")
            exam["shown"] += [{"task": task.name, **sample} for sample in self._answers(task, SHOWN, 0.0, 1).samples]
        earlier = [e for e in state.exams if e["step"] != state.step]
        brief = [{k: v for k, v in e.items() if k in ("step", "metrics")} for e in earlier[1:]]
        state.exams = [*earlier[:1], *brief, exam]  # of those in between only the figures

    def _answers(self, task: Task, problems: int, temperature: float, num_samples: int) -> EvalResult:
        c = self.config
        return run_generative_eval(task, self.engine.tokenizer, self.engine, max_problems=problems, seed=c.seed,
                                   temperature=temperature, num_samples=num_samples, name=task.name,
                                   max_new_tokens=c.max_new_tokens, batch_size=c.rollout_rows)


def told(result: EvalResult) -> str:
    """`"gsm8k: pass@1 41.2% (38.0 to 44.5), pass@8 80.1%, n=400"`"""
    low, high = result.ci95
    k = result.num_samples
    several = f", pass@{k} {result.pass_at(k):.1%}" if k > 1 else ""
    return f"{result.name}: pass@1 {result.accuracy:.1%} ({100 * low:.1f} to {100 * high:.1f}){several}, n={result.n}"


def exam_record(exams: list[dict[str, Any]], num_samples: int) -> dict[str, Any]:
    """What the report shows of the exams: curves, what has been gained (paired, problem by problem), transcripts."""
    first, last = exams[0], exams[-1]
    curves: dict[str, list] = {"step": [e["step"] for e in exams]}
    rows = []
    for name, right in last["right"].items():
        measured = [e["metrics"].get(name, {}) for e in exams]
        curves[f"{name} pass@1"] = [m.get("accuracy") for m in measured]
        if num_samples > 1:
            pass_at = [m.get("pass_at", {}).get(str(num_samples), {}) for m in measured]
            curves[f"{name} pass@{num_samples}"] = [m.get("accuracy") for m in pass_at]
        before = first["right"].get(name)
        if before and len(before) == len(right):
            # a run may have gone on with another number of answers to each problem
            shares = [[count / m.get("num_samples", 1) for count in counts]
                      for counts, m in ((before, measured[0]), (right, measured[-1]))]
            gain, low, high = paired_gain(*shares)
            rows.append([name, measured[0]["accuracy"], measured[-1]["accuracy"], gain, low, high, len(right)])
    columns = {"held out": "", "before": ".1%", "after": ".1%", "gain": "+.1%", "from": "+.1%", "to": "+.1%", "n": ","}
    pairs = zip(first["shown"], last["shown"]) if first is not last else []
    samples = [{"task": a["task"], "user": a["user"], "expected": a["expected"], "before": a["completion"],
                "after": b["completion"]} for a, b in pairs if a["user"] == b["user"]]
    return {"exam_curve": curves, "samples": samples, "gain_table": {
        "title": f"pass@1 on held-out problems, {num_samples} answers to each at temperature 1", "columns": columns,
        "rows": rows, "note": "Gain: after - before on the same problems, with its 95% interval."}}


def main(config: Config) -> None:
    directory, step = find_model("sft", config.from_tag, config.step)
    _, _, _, world_size, device = compute_init(config.device_type, config.seed, deterministic=config.deterministic)
    task = parse_mixture(config.mixture, config.data, "train")  # all data before the model
    tasks = each_graded(task.tasks)
    held_out = held_out_tasks(config, tasks)
    model, tokenizer, meta = load_model("sft", device, "train", directory.name, step,
                                        resolve_dtype(config.dtype, device.type))
    print0(f"{len(task):,} problems to learn from: {', '.join(t.name for t in tasks)}")
    optimizer = make_optimizer(model, config)
    optimizer.scale_lr(config.init_lr_frac)
    share = -(-config.examples_per_step * config.num_samples // world_size)  # if no answer shared a row with another
    T, loss_fn = model.config.sequence_len, document_loss(tokenizer.get_bos_token_id())
    rows = Rows(share, choose_rows(config.device_batch_size, share, T, model, loss_fn))
    engine = Engine(model, tokenizer)
    settings = Settings(config.examples_per_step, config.num_samples, config.max_new_tokens, config.seed)
    rollouts: list[Rollouts] = []

    def batches(state: dict[str, Any] | None) -> Iterator[Batch]:
        rollouts.append(Rollouts(engine, task, settings, rows=rows.micro, rollout_rows=config.rollout_rows,
                                 deterministic=config.deterministic, on_collapse=config.collapse, state=state))
        return rollouts[-1]

    iterations = config.num_iterations
    if iterations < 1:
        iterations = max(1, len(task) * config.num_epochs // config.examples_per_step)
    exam = Exam(engine, held_out, config)
    run = checkpoint_root("rl") / (config.model_tag or meta["parent"]["model_tag"])
    result = run_training(model=model, tokenizer=tokenizer, optimizer=optimizer, make_batches=batches, config=config,
                          num_iterations=iterations, rows=rows, directory=run, parent=meta["parent"],
                          hooks=[Every(config.eval_every, exam, "answering held-out problems", before=True)])
    spent = rollouts[-1]
    rewards = [f"reward {task.name}" for task in tasks] if len(tasks) > 1 else []
    get_report().log("chat_rl", {
        "config": asdict(config), "problems": len(task), **result, "curve": curve(run / LOG, *CURVES, *rewards),
        "rollout_seconds": spent.seconds, "rollout_tokens_per_second": spent.tokens / spent.seconds if spent.seconds
        else None, **exam_record(exam.state.exams, config.eval_samples)})


if __name__ == "__main__":
    configurator.main(main, Config, distributed=True)
