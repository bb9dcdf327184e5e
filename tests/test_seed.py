"""People who know nanochat find their way: every name that they know is where they look for it.

Run: python -m pytest tests/test_seed.py
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

NAMES = {
    "nanochat.gpt": (
        "GPT GPTConfig Block CausalSelfAttention MLP GPT.forward GPT.generate GPT.setup_optimizers GPT.estimate_flops "
        "GPT.init_weights GPT.get_device GPT._precompute_rotary_embeddings"
    ),
    "nanochat.engine": (
        "Engine KVCache RowState sample_next_token use_calculator Engine.generate Engine.generate_batch "
        "KVCache.insert_kv"
    ),
    "nanochat.tokenizer": (
        "RustBPETokenizer HuggingFaceTokenizer SPECIAL_TOKENS get_tokenizer get_token_bytes "
        + " ".join(
            f"{cls}.{method}"
            for cls in ("RustBPETokenizer", "HuggingFaceTokenizer")
            for method in (
                "train_from_iterator from_directory save encode decode encode_special get_vocab_size get_bos_token_id "
                "get_special_tokens render_conversation render_for_completion visualize_tokenization __call__"
            ).split()
        )
    ),
    "nanochat.muon": "zeropower_via_newtonschulz5",
    "nanochat.optim": "Muon AdamW DistMuon DistAdamW",
    "nanochat.dataset": "list_parquet_files parquets_iter_batched download_single_file",
    "nanochat.dataloader": "tokenizing_distributed_data_loader_with_state tokenizing_distributed_data_loader",
    "nanochat.checkpoint_manager": (
        "save_checkpoint load_checkpoint build_model load_model find_largest_model find_last_step"
    ),
    "nanochat.common": (
        "compute_init compute_cleanup get_dist_info autodetect_device_type get_base_dir print0 print_banner DummyWandb "
        "download_file_with_lock"
    ),
    "nanochat.report": "Report Report.log Report.generate get_report",
    "nanochat.loss_eval": "evaluate_bpb",
    "nanochat.core_eval": (
        "evaluate_task evaluate_example forward_model render_prompts_mc render_prompts_schema render_prompts_lm"
    ),
    "nanochat.configurator": "main",
    "nanochat.execution": "execute_code",
    "tasks.common": "Task TaskMixture TaskSequence Task.eval_type Task.num_examples Task.get_example Task.evaluate",
    "tasks.mmlu": "MMLU",
    "tasks.arc": "ARC",
    "tasks.gsm8k": "GSM8K",
    "tasks.humaneval": "HumanEval",
    "tasks.smoltalk": "SmolTalk",
    "tasks.spellingbee": "SpellingBee SimpleSpelling",
    "tasks.customjson": "CustomJSON",
    "scripts.tok_train": "main",
    "scripts.tok_eval": "main",
    "scripts.base_train": "main",
    "scripts.base_loss": "main",
    "scripts.base_eval": "main",
    "scripts.mid_train": "main",
    "scripts.chat_sft": "main",
    "scripts.chat_rl": "main",
    "scripts.chat_eval": "main run_generative_eval run_categorical_eval run_chat_eval",
    "scripts.chat_cli": "main",
    "scripts.chat_web": "main",
}

SPECIAL = "bos user_start user_end assistant_start assistant_end python_start python_end output_start output_end"


def find(module: str, name: str) -> object:
    """The object `name` ("GPT.forward" too) of a module; AttributeError or ModuleNotFoundError where it is not."""
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def is_there(module: str, name: str) -> bool:
    try:
        find(module, name)
    except (ModuleNotFoundError, AttributeError):
        return False
    return True


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in NAMES.items() for n in names.split()])
def test_name_is_where_the_seed_has_it(module, name):
    assert callable(find(module, name)) or name in {"SPECIAL_TOKENS", "Task.eval_type"}


def test_the_finder_sees_what_is_missing():
    assert is_there("json", "JSONDecoder.decode")
    assert not is_there("json", "JSONDecoder.decod") and not is_there("nanochat.no_such_module", "x")


def test_fields_of_the_model_configuration():
    from nanochat.gpt import GPTConfig

    config = GPTConfig(sequence_len=64, vocab_size=100, n_layer=2, n_head=4, n_kv_head=2, n_embd=32)
    assert (config.n_kv_head, config.n_embd) == (2, 32)


def test_names_of_the_weights():
    """The seed speaks of `wte` and `lm_head`, untied, and of linear layers without bias and norms without weights."""
    import torch

    from nanochat.gpt import GPT, GPTConfig

    with torch.device("meta"):
        model = GPT(GPTConfig(sequence_len=16, vocab_size=100, n_layer=1, n_head=2, n_kv_head=2, n_embd=32))
    names = [name for name, _ in model.named_parameters()]
    assert sum("wte" in name for name in names) == 1 and sum("lm_head" in name for name in names) == 1
    assert not [name for name in names if "bias" in name or "norm" in name]


def test_special_tokens():
    from nanochat.tokenizer import SPECIAL_TOKENS

    assert list(SPECIAL_TOKENS) == [f"<|{name}|>" for name in SPECIAL.split()]


def test_dials_of_base_training_keep_their_names_and_defaults():
    from scripts.base_train import Config

    config = Config()
    assert (config.depth, config.max_seq_len) == (20, 2048)
    assert (config.device_batch_size, config.total_batch_size) == (32, 524288)
    assert (config.target_param_data_ratio, config.num_iterations, config.target_flops) == (20, -1, -1.0)


def test_rustbpe():
    rustbpe = pytest.importorskip("rustbpe")
    if not hasattr(rustbpe, "Tokenizer"):  # the folder of the crate passes for an empty package
        pytest.skip("rustbpe is not built (no Rust toolchain): the trainer falls back to tokenizers")
    tokenizer = rustbpe.Tokenizer()
    for method in ("train_from_iterator", "get_mergeable_ranks", "get_pattern", "encode"):
        assert callable(getattr(tokenizer, method))


FILES = ("speedrun.sh", "dev/setup.sh", "rustbpe/Cargo.toml", "runs/d20.toml", "runs/slurm.sh")


@pytest.mark.parametrize("path", FILES)
def test_files_beside_the_library(path):
    assert (ROOT / path).is_file()
