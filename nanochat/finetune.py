"""Training on conversations: what midtraining and fine-tuning have in common, which is all but their settings.

Loads the model of the stage before, renders a mixture of tasks, packs whole conversations into rows, and trains on
what the assistant says (`run_training` does the rest). Used by `scripts/mid_train.py` and `scripts/chat_sft.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from nanochat.checkpoint_manager import checkpoint_root, find_model, load_meta, load_model
from nanochat.common import check_at_least, compute_init, print0, resolve_dtype
from nanochat.dataloader import Batch, Loader, NothingToLearn, conversation_loader, rows_of_epoch
from nanochat.ranks import on_rank0
from nanochat.report import get_report
from nanochat.stage_config import StageConfig
from nanochat.train import Every, check_sizes, make_optimizer, rows_of, run_training, validation
from tasks.catalog import parse_mixture


@dataclass
class FinetuneConfig(StageConfig):
    """The settings of a stage that trains on conversations."""

    mixture: tuple[str, ...] = ()
    """Tasks to train on: name, name*2 (seen twice), name:5000 (so many rows), or a .jsonl file of conversations."""
    num_epochs: int = 1
    """Passes over the mixture, if num_iterations does not say how long."""
    init_lr_frac: float = 1.0
    """Multiplies all learning rates of this stage."""
    step: int = -1
    """Step of the model to start from (-1: its last)."""
    from_tag: str = ""
    """Tag of the model to start from (default: the largest)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, num_epochs=self.num_epochs)
        check_at_least(0, init_lr_frac=self.init_lr_frac)


def finetune(config: FinetuneConfig, *, stage: str, source_from: str, source_to: str) -> None:
    """Train the last model of `source_from` on `config.mixture`, into `source_to`; log to the report as `stage`."""
    directory, step = find_model(source_from, config.from_tag, config.step)
    T = load_meta(directory, step)["model_config"]["sequence_len"]
    check_sizes(config, T)  # before any work
    _, rank, _, world_size, device = compute_init(config.device_type, config.seed, deterministic=config.deterministic)
    model, tokenizer, meta = load_model(source_from, device, "train", directory.name, step,
                                        resolve_dtype(config.dtype, device.type))
    ranks = {"rank": rank, "world_size": world_size}
    train_task = parse_mixture(config.mixture, config.data, "train")
    val_task = parse_mixture(config.mixture, config.data, "test")
    print0(f"{len(train_task):,} conversations to train on: {', '.join(config.mixture)}")
    optimizer = make_optimizer(model, config)
    optimizer.scale_lr(config.init_lr_frac)
    rows = rows_of(config, T, model, tokenizer.get_bos_token_id())
    loaders: list[Loader] = []

    def batches(state: dict | None) -> Iterator[Batch]:
        loaders.append(conversation_loader(train_task, tokenizer, rows.share, T, device=device, state=state,
                                           seed=config.seed, **ranks))
        return loaders[-1]

    def val_loader() -> Loader:  # the same rows for any seed of the run
        return conversation_loader(val_task, tokenizer, rows.micro, T, device=device, epochs=1, **ranks)

    iterations = config.num_iterations
    if iterations < 1:
        packed = on_rank0(lambda: rows_of_epoch(train_task, tokenizer, T, seed=config.seed))
        iterations = max(1, packed * T * config.num_epochs // config.total_batch_size)
    hooks = []
    if can_validate(val_loader):
        hooks = [Every(config.eval_every, validation(model, val_loader, tokenizer, config.eval_tokens))]
    tag = config.model_tag or meta["parent"]["model_tag"]
    result = run_training(model=model, tokenizer=tokenizer, optimizer=optimizer, make_batches=batches, config=config,
                          num_iterations=iterations, rows=rows, directory=checkpoint_root(source_to) / tag,
                          hooks=hooks, parent=meta["parent"])
    # what became of the conversations, over all epochs begun: a person's own may be too long or malformed
    seen = loaders[-1].counts
    counts = {"packed": seen.get("documents", 0)} | {k: seen.get(k, 0) for k in ("truncated", "skipped", "malformed")}
    print0(f"conversations: {counts['packed']:,} packed ({counts['truncated']:,} of them cut after an answer that "
           f"fits), {counts['skipped']:,} skipped (no answer fits), {counts['malformed']:,} malformed; "
           f"{loaders[-1].utilisation:.1%} of positions used")
    get_report().log(stage, {"config": asdict(config), "conversations": len(train_task), **counts,
                             "utilisation": loaders[-1].utilisation, **result})


def can_validate(val_loader: Callable[[], Loader]) -> bool:
    """Whether there is anything to validate on; if not, a line says so now, and training need not stop for it later."""
    try:
        with val_loader() as loader:
            next(loader)
    except NothingToLearn as e:
        print0(f"note: no validation in this run: of the test rows {e.why}; add a task with test rows to the mixture "
               "(to conversations of your own: a file *_test.jsonl beside them)")
        return False
    return True
