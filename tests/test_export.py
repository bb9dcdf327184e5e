"""The export of a model: the real `transformers` loads it, and computes, writes and reads what we do.

Equal means max|Δ| / max|reference| below 1e-5, in float32.

Run: python -m pytest tests/test_export.py
"""

from __future__ import annotations

import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, NanoChatConfig, NanoChatForCausalLM

from nanochat import export
from nanochat.checkpoint_manager import load_meta, save_checkpoint
from nanochat.common import UserError
from nanochat.export import Config, config_json, export_model, main, their_names, their_shapes, their_weights
from nanochat.gpt import GPT, GPTConfig
from nanochat.model_card import POCKET_TASKS, lineage, shown_mixture
from nanochat.report import Report
from scripts import chat_cli
from tasks.catalog import TASKS, make_task
from tests import export_trials
from tests.export_trials import at_call, hard_tokenizer, kill_exports, quiet_base, random_model, save, state_of
from tests.helpers import byte_tokenizer

NEAR = 1e-5
BYTES = 265  # ids of the byte tokenizer: not a multiple of 64


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / ours.abs().max())


def random_ids(model: GPT, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base directory of its own; exports go beside it."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


def exported(base: Path, model: GPT, tokenizer=None, **how) -> NanoChatForCausalLM:
    """What `transformers` makes of a model's export."""
    save(model, tokenizer or byte_tokenizer(), base)
    export_model(base.parent / "out", "sft", **how)
    loaded = AutoModelForCausalLM.from_pretrained(base.parent / "out")
    assert type(loaded) is NanoChatForCausalLM and not loaded.training
    return loaded


# ------------------------------------------------------------------------------------------------------------ logits

MODELS = {
    "as many kv heads": {"n_head": 4, "n_kv_head": 4, "n_embd": 64},
    "grouped kv heads": {"n_head": 6, "n_kv_head": 2, "n_embd": 96, "n_layer": 3},
    "one kv head": {"n_head": 4, "n_kv_head": 1, "n_embd": 32},
    "one head of two": {"n_head": 1, "n_kv_head": 1, "n_embd": 2, "n_layer": 1, "sequence_len": 7},
    "odd sizes": {"n_head": 5, "n_kv_head": 5, "n_embd": 70, "n_layer": 1, "sequence_len": 33},
}


@pytest.mark.parametrize("sizes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("vocab", [BYTES, 0], ids=["265 ids", "1203 ids"])
@torch.no_grad()
def test_same_logits_and_same_words(base, sizes, vocab):
    tokenizer = byte_tokenizer() if vocab else hard_tokenizer()
    model = random_model(tokenizer.get_vocab_size(), **sizes)
    loaded = exported(base, model, tokenizer)
    T = model.config.sequence_len
    assert loaded.config.vocab_size == tokenizer.get_vocab_size() == len(loaded.lm_head.weight)
    assert loaded.dtype == torch.float32 and loaded.config.max_position_embeddings == T
    for length in (1, T // 2, T):
        ids = random_ids(model, 2, length, seed=length)
        assert difference(model(ids), loaded(ids).logits) < NEAR
    assert model(random_ids(model, 2, T)).abs().max() > 10 or model.config.n_embd == 2  # the soft cap is felt

    prompt = random_ids(model, 1, 3)  # their cache, token by token, against the whole sequence each time
    said = loaded.generate(prompt, do_sample=False, max_new_tokens=T - 3, eos_token_id=-1)
    assert said[0, 3:].tolist() == list(model.generate(prompt[0].tolist(), T - 3, temperature=0))


@settings(max_examples=15)
@given(st.data())
@torch.no_grad()
def test_any_sizes(data):
    kv = data.draw(st.integers(1, 3))
    n_head = kv * data.draw(st.integers(1, 3))
    config = GPTConfig(n_layer=data.draw(st.integers(1, 3)), n_head=n_head, n_kv_head=kv, vocab_size=BYTES,
                       n_embd=n_head * 2 * data.draw(st.integers(1, 6)), sequence_len=data.draw(st.integers(1, 40)))
    model = random_model(**vars(config))
    loaded = NanoChatForCausalLM(NanoChatConfig(**config_json(config, byte_tokenizer(), "float32"))).eval()
    loaded.load_state_dict(their_weights(model.state_dict(), config, "x"), strict=True)
    ids = random_ids(model, 1, config.sequence_len)
    assert difference(model(ids), loaded(ids).logits) < NEAR


@torch.no_grad()
def test_padded_rows_and_the_two_ends(base):
    """A batch of prompts, padded on the left with <|bos|>, which is no end where it stands in a prompt."""
    model, tokenizer = random_model(BYTES), byte_tokenizer()
    loaded = exported(base, model)
    theirs = AutoTokenizer.from_pretrained(base.parent / "out", padding_side="left")
    texts = ["The fox", "A", "12 + 30 = "]
    inputs = theirs([f"<|bos|>{text}" for text in texts], return_tensors="pt", padding=True)
    said = loaded.generate(**inputs, do_sample=False, max_new_tokens=20, eos_token_id=-1)[:, inputs.input_ids.shape[1]:]
    for text, row in zip(texts, said.tolist()):
        ids = [tokenizer.get_bos_token_id(), *tokenizer.encode(text)]
        assert row == list(model.generate(ids, 20, temperature=0))

    for name in ("<|assistant_end|>", "<|bos|>"):  # made certain: `generate` ends where our engine does
        end = tokenizer.encode_special(name)
        with torch.no_grad():
            certain = random_model(BYTES)
            certain.lm_head.weight.zero_()
            certain.lm_head.weight[end] = certain(torch.tensor([[5]])).new_ones(certain.config.n_embd)
            certain.transformer.wte.weight.copy_(torch.ones_like(certain.transformer.wte.weight))
            for block in certain.transformer.h:
                block.attn.c_proj.weight.zero_()
                block.mlp.c_proj.weight.zero_()
        said = exported(base, certain).generate(torch.tensor([[5, 6]]), do_sample=False)
        assert said.tolist() == [[5, 6, end]]


@torch.no_grad()
def test_bfloat16(base):
    model = random_model(BYTES)
    loaded = exported(base, model, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    weights = load_file(base.parent / "out" / "model.safetensors")
    with safe_open(base.parent / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # some loaders refuse a file that does not say so
    assert {t.dtype for t in weights.values()} == {torch.bfloat16}
    size = (base.parent / "out" / "model.safetensors").stat().st_size
    ids = random_ids(model, 2, 64)
    model.to(torch.bfloat16)
    model._grow_rotary(64)
    model.compute_dtype = torch.bfloat16
    rough = difference(model(ids).float(), loaded(ids).logits.float())
    model.float()  # the rounded weights, computed with exactly
    model._grow_rotary(64)
    model.compute_dtype = torch.float32
    assert difference(model(ids), loaded.float()(ids).logits) < NEAR
    assert rough < 0.1  # bfloat16 has eight bits, and each of us rounds at other places
    export_model(base.parent / "out", "sft")
    assert (base.parent / "out" / "model.safetensors").stat().st_size > 1.8 * size


@torch.no_grad()
def test_a_checkpoint_stored_in_bfloat16_is_exported_as_it_is(base):
    assert exported(base, random_model(BYTES).to(torch.bfloat16)).dtype == torch.bfloat16


# ------------------------------------------------------------------------- what is wrong is seen by the tests above


WRONG = [("rms_norm_eps", 1e-6), ("rope_parameters", {"rope_type": "default", "rope_theta": 10010.0}),
         ("rope_parameters", {"rope_type": "default", "rope_theta": 500000.0}), ("final_logit_softcapping", None),
         ("final_logit_softcapping", 14.999), ("hidden_act", "relu")]


@pytest.mark.parametrize(("key", "value"), WRONG)
@torch.no_grad()
def test_a_wrong_setting_changes_the_logits(key, value):
    model = random_model(BYTES)
    if key == "rms_norm_eps":  # felt where activations are small only: mean squares of some 1e-6
        model.transformer.wte.weight.mul_(1e-3)
    right = config_json(model.config, byte_tokenizer(), "float32")
    ids = random_ids(model, 2, 64)
    differences = []
    for settings_ in (right, {**right, key: value}):
        loaded = NanoChatForCausalLM(NanoChatConfig(**settings_)).eval()
        loaded.load_state_dict(their_weights(model.state_dict(), model.config, "x"))
        differences.append(difference(model(ids), loaded(ids).logits))
    assert differences[0] < NEAR
    assert differences[1] > 5 * NEAR


@torch.no_grad()
def test_two_tensors_changed_for_one_another_change_the_logits():
    model = random_model(BYTES, n_kv_head=4)
    loaded = NanoChatForCausalLM(NanoChatConfig(**config_json(model.config, byte_tokenizer(), "float32"))).eval()
    weights = their_weights(model.state_dict(), model.config, "x")
    ids = random_ids(model, 1, 64)
    want, tried = model(ids), 0
    for a, b in itertools.combinations(weights, 2):
        if weights[a].shape == weights[b].shape:
            loaded.load_state_dict({**weights, a: weights[b], b: weights[a]})
            assert difference(want, loaded(ids).logits) > 100 * NEAR, (a, b)
            tried += 1
    assert tried == 28 + 1 + 1 + 1  # of q, k, v and o in two layers; fc1, fc2; embedding and head


@given(layers=st.integers(1, 5), kv=st.integers(1, 2))
@settings(max_examples=8)
def test_the_tables_are_those_of_transformers(layers, kv):
    config = GPTConfig(n_layer=layers, n_head=2, n_kv_head=kv, n_embd=8, vocab_size=BYTES)
    with torch.device("meta"):
        theirs = NanoChatForCausalLM(NanoChatConfig(**config_json(config, byte_tokenizer(), "float32"))).state_dict()
        ours = GPT(config).state_dict()
    assert {name: tuple(t.shape) for name, t in theirs.items()} == their_shapes(config)
    assert their_names(config).keys() == ours.keys()
    assert Counter(their_names(config).values()) == Counter(theirs.keys())


# ---------------------------------------------------------------------------------------------------------- settings


def test_config_and_generation_config(base):
    tokenizer = byte_tokenizer()
    loaded = exported(base, random_model(BYTES))
    out = base.parent / "out"
    bos, end = tokenizer.get_bos_token_id(), tokenizer.encode_special("<|assistant_end|>")
    config = AutoConfig.from_pretrained(out)
    assert config.architectures == ["NanoChatForCausalLM"] and config.head_dim == 8
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (bos, [end, bos], None)
    assert config.rms_norm_eps == torch.finfo(torch.float32).eps and config.rope_parameters["rope_theta"] == 10000
    assert loaded.model.embed_tokens.padding_idx is None  # <|bos|> goes on learning
    g, ours = loaded.generation_config, chat_cli.Config()
    assert (g.bos_token_id, g.eos_token_id, g.pad_token_id) == (bos, [end, bos], bos)
    assert (g.do_sample, g.temperature, g.top_k) == (True, ours.temperature, ours.top_k)
    assert ours.max_tokens > g.max_new_tokens == 64  # no more than the context
    written = json.loads((out / "config.json").read_text(encoding="utf-8"))
    default = NanoChatConfig().to_dict().keys() - {"initializer_range", "transformers_version"}
    assert not {key for key in default - written.keys() if getattr(NanoChatConfig(), key, None) is not None
                and key in NanoChatConfig.__dataclass_fields__ and key not in _INHERITED}
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(base.parent / "again")  # theirs is as complete as ours
    again = json.loads((base.parent / "again" / "config.json").read_text(encoding="utf-8"))
    assert {k: v for k, v in again.items() if k not in ("initializer_range", "transformers_version")} == written


# What every configuration there has, and what has nothing to do with how this one computes.
_INHERITED = {"chunk_size_feed_forward", "id2label", "label2id", "is_encoder_decoder", "output_attentions",
              "output_hidden_states", "return_dict", "model_type", "problem_type", "architectures"}


# --------------------------------------------------------------------------------------------- texts, conversations


def test_texts_and_conversations():
    """A share of `python -m tests.chaos --export-strings=20000 --export-conversations=1000`."""
    assert export_trials.string_trials(1000) == []
    outcome = export_trials.conversation_trials(200)
    assert outcome.found == [] and outcome.alike > 150 and outcome.refused > 2


def test_the_trials_see_other_ids_and_another_mask(monkeypatch):
    theirs = export.export_tokenizer

    def harmed(tokenizer, folder):
        theirs(tokenizer, folder)
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        del content["model"]["merges"][:200]
        path.write_text(json.dumps(content), encoding="utf-8")
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        (folder / "chat_template.jinja").write_text(
            template.replace("{%- generation -%}\n                {{- plain(state.text) ~ '<|python_start|>'",
                             "{{- plain(state.text) ~ '<|python_start|>' -}}{%- generation -%}{{- ''", 1),
            encoding="utf-8")

    monkeypatch.setattr(export, "export_tokenizer", harmed)
    assert any("ids" in problem for problem in export_trials.string_trials(1000))
    assert any("another mask" in problem for problem in export_trials.conversation_trials(60).found)


# ---------------------------------------------------------------------------------------------------- what is refused


def change(weights: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    name = "transformer.h.1.mlp.c_fc.weight"
    match how:
        case "extra":
            return {**weights, "transformer.h.0.attn.gate": torch.ones(2)}
        case "layer":
            return {**weights, name.replace("h.1", "h.2"): weights[name]}
        case "missing":
            return {k: t for k, t in weights.items() if k != name}
        case "shape":
            return {**weights, name: weights[name].t().contiguous()}
        case "cropped":
            return {**weights, "lm_head.weight": weights["lm_head.weight"][:BYTES].clone()}
        case "type":
            return {**weights, name: torch.ones_like(weights[name], dtype=torch.int32)}
    raise ValueError(how)


@pytest.mark.parametrize(("how", "words"), [
    ("extra", r"no place for its tensor transformer\.h\.0\.attn\.gate$"),
    ("layer", r"no place for its tensor transformer\.h\.2\.mlp\.c_fc\.weight$"),
    ("missing", r"the tensor transformer\.h\.1\.mlp\.c_fc\.weight is missing$"),
    ("shape", r"transformer\.h\.1\.mlp\.c_fc\.weight has the shape \(32, 128\), not \(128, 32\)$"),
    ("cropped", r"lm_head\.weight has the shape \(265, 32\), not \(320, 32\)$"),
    ("type", r"transformer\.h\.1\.mlp\.c_fc\.weight is of type torch\.int32$"),
])
def test_tensors_that_do_not_fit_are_refused_by_name(base, how, words):
    model = random_model(BYTES)
    save(model, byte_tokenizer(), base, weights=change(model.state_dict(), how))
    with pytest.raises(UserError, match=words):
        export_model(base.parent / "out", "sft")
    assert sorted(p.name for p in base.parent.iterdir()) == ["base"]


def test_what_is_asked_for_and_not_there(base, tmp_path):
    with pytest.raises(UserError, match="there is no|no sft model"):
        export_model(tmp_path / "out", "sft")
    save(random_model(BYTES), byte_tokenizer(), base)
    for words, how in (("--source=rlhf is unknown", {"source": "rlhf"}), ("no mid model", {"source": "mid"}),
                       ("no model 'd9'", {"source": "sft", "model_tag": "d9"}),
                       ("no step 3", {"source": "sft", "step": 3}),
                       ("--dtype=float16 is unknown", {"source": "sft", "dtype": "float16"})):
        with pytest.raises(UserError, match=words):
            export_model(tmp_path / "out", **how)
    with pytest.raises(UserError, match="--out=FOLDER is missing"):
        main(Config())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


def test_damage_and_another_vocabulary_are_refused(base, tmp_path):
    save_checkpoint(base / "mid_checkpoints" / "d1", 1, random_model(300).state_dict(), None,
                    {"model_config": vars(random_model(300).config)}, tokenizer=byte_tokenizer())
    with pytest.raises(UserError, match="its model has 300 ids, its tokenizer 265"):
        export_model(tmp_path / "out", "mid")
    directory = save(random_model(BYTES), byte_tokenizer(), base)
    path = directory / "model_000007.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="model_000007.safetensors is damaged"):
        export_model(tmp_path / "out", "sft")
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------- whole or not at all


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_only_an_earlier_export_is_replaced(base, tmp_path):
    save(random_model(BYTES), byte_tokenizer(), base, step=7)
    save(random_model(BYTES, seed=1), byte_tokenizer(), base, step=8)
    out = tmp_path / "deep" / "er" / "out"
    export_model(out, "sft", step=7)
    export_model(out, "sft", step=8)
    assert state_of(out) == "step 8" and os.listdir(out.parent) == ["out"]
    assert oct(out.stat().st_mode & 0o777) == oct((tmp_path / "deep").stat().st_mode & 0o777)
    good = snapshot(out)

    def refused(words: str) -> None:
        before = snapshot(out)
        with pytest.raises(UserError, match=words) as error:
            export_model(out, "sft", step=7)
        assert snapshot(out) == before and "\n" not in str(error.value) and os.listdir(out.parent) == ["out"]

    (out / "README.md").write_text("My own words.", encoding="utf-8")  # somebody has worked on it
    refused("holds an earlier export, but README.md in it is not what that has written")
    (out / "README.md").write_bytes(good["README.md"])
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    refused("but notes.txt in it is not")
    (out / "notes.txt").unlink()
    (out / ".cache").mkdir()
    refused("but .cache in it is not")
    (out / ".cache").rmdir()
    (out / "config.json").rename(tmp_path / "config.json")
    (out / "config.json").symlink_to(tmp_path / "config.json")
    refused("but config.json in it is not")
    (out / "config.json").unlink()
    export_model(out, "sft", step=7)  # one of its files was gone: nothing is lost
    assert state_of(out) == "step 7"
    for mark in (b"", b"[]", b'{"files": 3}', b'{"files": {}}', b"\xff", b"[" * 100_000):
        (out / export.MARK).write_bytes(mark)
        refused("no earlier export|an earlier export, but")
    (out / export.MARK).unlink()
    refused(r"is not empty and no earlier export \(it holds README.md\)")
    assert (tmp_path / "config.json").exists()


def test_places_of_other_kinds(base, tmp_path):
    save(random_model(BYTES), byte_tokenizer(), base)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    export_model(tmp_path / "link", "sft")
    assert (tmp_path / "link").is_symlink() and state_of(tmp_path / "empty") == "step 7"
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is a file"):
        export_model(tmp_path / "file", "sft")
    with pytest.raises(UserError, match="cannot write --out=.*/file/out .*: name a folder where you can write"):
        export_model(tmp_path / "file" / "out", "sft")
    with pytest.raises(UserError, match="no earlier export"):
        export_model("/", "sft")
    with pytest.raises(UserError, match="no earlier export"):  # a checkpoint's own folder
        export_model(base / "chatsft_checkpoints" / "d2", "sft")


def test_what_is_put_there_in_the_meantime_is_not_lost(base, tmp_path, monkeypatch):
    save(random_model(BYTES), byte_tokenizer(), base)
    out, write = tmp_path / "out", export.write_tensors
    export_model(out, "sft")

    def slow(*args):
        (out / "notes.txt").write_text("mine", encoding="utf-8")
        return write(*args)

    monkeypatch.setattr(export, "write_tensors", slow)
    with pytest.raises(UserError, match=r"--out=\S+/out holds an earlier export, but notes.txt"):
        export_model(out, "sft")
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine" and (out / "config.json").is_file()
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]


def test_killed_in_the_middle(base, tmp_path):
    """SIGKILL before I/O calls in turn: the name belongs to a whole export, or to nothing."""
    for step in (7, 8):
        save(random_model(BYTES, seed=step), byte_tokenizer(), base, step=step)
    export_model(tmp_path / "earlier", "sft", step=7)
    fresh, earlier = kill_exports(base, (tmp_path / "out", 8, 3, 4), (tmp_path / "earlier", 8, 40, 1))
    for tried, states in ((fresh, ["absent", "step 8"]), (earlier, ["step 7", "absent", "step 8"])):
        assert len(tried) > 20 and tried[-1] == {**tried[-1], "status": 0, "state": "step 8", "rooms": 0}
        assert {one["status"] for one in tried[:-1]} == {-9}
        assert len([one for one in tried if one["rooms"]]) > 10  # what lies beside is swept away by the next one
        assert [*dict.fromkeys(one["state"] for one in tried)] == states, tried
        assert [one["state"] for one in tried].index("step 8") >= max(
            i for i, one in enumerate(tried) if one["state"] != "step 8")
    # between two renames the earlier export lies aside; the next attempt puts it back
    assert {one["aside"] for one in earlier if one["state"] == "absent"} == {1}
    assert {one["aside"] for one in fresh} == {0}
    assert sorted(os.listdir(tmp_path)) == ["base", "earlier", "out"]


@pytest.mark.parametrize("earlier", [False, True])
def test_interrupted_at_every_call(base, tmp_path, earlier):
    """Ctrl-C: as above, and nothing lies about either, unless it comes into the clearing up or the very first call."""
    for step in (7, 8):
        save(random_model(BYTES, seed=step), byte_tokenizer(), base, step=step)
    if earlier:
        with quiet_base(base):
            export_model(tmp_path / "out", "sft", step=7)

    def interrupt():
        raise KeyboardInterrupt

    lying = 0
    for number in itertools.count(1):
        end = at_call(number, interrupt)
        try:
            with quiet_base(base):
                export_model(tmp_path / "out", "sft", step=8)
            finished = True
        except KeyboardInterrupt:
            finished = False
        finally:
            calls = end()
        if calls < number:
            break
        state = state_of(tmp_path / "out")
        assert state in (("step 7", "step 8") if earlier else ("absent", "step 8")), number
        lying += state != "step 8" and len(list(tmp_path.glob(".out.*")))
        if state == "step 8" and not finished:  # begin the next one as this one began
            shutil.rmtree(tmp_path / "out")
            if earlier:
                with quiet_base(base):
                    export_model(tmp_path / "out", "sft", step=7)
    assert number > 60 and lying <= 3, lying
    assert sorted(os.listdir(tmp_path)) == ["base", "out"]


def test_another_export_that_lives_is_left_alone(base, tmp_path):
    save(random_model(BYTES), byte_tokenizer(), base)
    with export.replacing(tmp_path / "out") as room:
        (room / "half").write_text("written", encoding="utf-8")
        export_model(tmp_path / "out", "sft")
        assert (room / "half").exists() and state_of(tmp_path / "out") == "step 7"
        (room / "half").unlink()
        shutil.copytree(tmp_path / "out", room, dirs_exist_ok=True)
    assert state_of(tmp_path / "out") == "step 7" and sorted(os.listdir(tmp_path)) == ["base", "out"]


# ------------------------------------------------------------------------------------------------------ the model card


def card_of(out: Path) -> tuple[str, str]:
    """`(front matter, text)` of the README.md."""
    empty, front, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    return front, text


def three_stages(base: Path, data: str, **changes) -> dict[str, dict]:
    """A base, a mid and an sft model, each the child of the one before; the parents as the report names them."""
    parents, parent = {}, None
    for seed, source in enumerate(("base", "mid", "sft")):
        mixture = [] if source == "base" else ["gsm8k:200", "identity*2", "/home/me/secret/my_chats.jsonl"]
        directory = save(random_model(BYTES, seed=seed), byte_tokenizer(), base, source, step=1000 + seed,
                         parent=parent, config={"data": data, "mixture": mixture}, state={"tokens": 4096000 + seed},
                         git={"commit": f"{seed}" * 40, "branch": "secret", "dirty": True, "message": "secret"},
                         **changes)
        digest = load_meta(directory, 1000 + seed)["files"][f"model_{1000 + seed:06d}.safetensors"]
        parent = {"source": source, "model_tag": "d2", "step": 1000 + seed, "sha256": digest}
        parents[source] = parent
    return parents


METRICS = {"gsm8k": {"accuracy": 0.9151, "n": 1319, "ci95": [0.8981, 0.9293]}, "odd|task": {"accuracy": 0.25, "n": 4},
           "unknown": {"accuracy": None, "n": 0}}


def test_card_of_a_pocket_run(base, tmp_path):
    models = three_stages(base, "pocket")
    report = Report(base / "report")
    report.log("chat_eval_sft", {"data": "pocket", "model": models["sft"], "metrics": METRICS, "config": {}})
    report.log("base_loss", {"data": "pocket", "model": models["base"], "val_bpb": 0.40815, "val_bytes": 123456})
    export_model(tmp_path / "out", "sft")
    front, text = card_of(tmp_path / "out")
    assert front.splitlines() == ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- nanochat",
                                  "- pocket"]
    assert "> **pocket**: " in text
    assert "| gsm8k (pocket) | 91.5% | 89.8% to 92.9% | 1,319 |" in text
    assert "| odd\\|task (pocket) | 25.0% |  | 4 |" in text
    assert "| validation bits per byte, base model (pocket) | 0.4082 |  | 123,456 bytes |" in text  # (half to even)
    assert "| base | 1,000 | 4,096,000 | pocket |  |" in text
    assert "| sft | 1,002 | 4,096,002 | pocket | gsm8k:200, identity*2, my_chats.jsonl |" in text
    assert "pretrained on text, then midtrained on conversations and tasks, then fine-tuned" in text
    assert "| commit of nanochat | 2222222222222222222222222222222222222222 with changes that were not" in text
    assert all(model["sha256"] in text for model in models.values()) and byte_tokenizer().fingerprint() in text
    assert "unknown" not in text and "license" not in front + text
    shown = "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "out").glob("*.[jm]*"))
    assert "secret" not in shown and "/home" not in shown and str(tmp_path) not in shown


def test_what_was_trained_on_the_pocket_world_says_so_without_any_figure(base, tmp_path):
    three_stages(base, "pocket")
    export_model(tmp_path / "out", "sft")
    front, text = card_of(tmp_path / "out")
    assert "- pocket" in front and "> **pocket**: " in text and "## Results" not in text


def test_no_figure_is_taken_over_from_another_model(base, tmp_path):
    models = three_stages(base, "fineweb-edu:8")
    other = {**models["sft"], "sha256": "0" * 64}  # the same name and step, and other weights
    report = Report(base / "report")
    report.log("chat_eval_sft", {"data": "pocket", "model": other, "metrics": METRICS})
    report.log("chat_eval_mid", {"data": "pocket", "model": models["mid"], "metrics": METRICS})  # not of this stage
    report.log("base_loss", {"data": "pocket", "model": {**models["base"], "sha256": "1" * 64}, "val_bpb": 0.4})
    report.log("base_train", {"model": {"n_layer": 2}, "val_bpb": 0.3})  # names no weights
    report.log("speedrun", {"stages": {}, "wall_seconds": 3})
    export_model(tmp_path / "out", "sft")
    front, text = card_of(tmp_path / "out")
    assert "## Results" not in text and "%" not in text and "bits per byte" not in text
    assert "| mid | 1,001 | 4,096,001 | fineweb-edu:8 | gsm8k:200, identity*2 (pocket), my_chats.jsonl |" in text


def test_real_data_carry_no_label_and_what_is_gone_stays_blank(base, tmp_path):
    parents = three_stages(base, str(tmp_path / "letters"))
    (base / "mid_checkpoints" / "d2" / "meta_001001.json").unlink()
    report = Report(base / "report")
    several = {"1": METRICS["gsm8k"], "8": {"accuracy": 0.9724, "ci95": [0.9621, 0.9799]}}
    metrics = {**METRICS, "gsm8k": {**METRICS["gsm8k"], "num_samples": 8, "pass_at": several}}
    report.log("chat_eval_sft", {"data": "x", "model": parents["sft"], "metrics": metrics, "config": {}})
    export_model(tmp_path / "out", "sft")
    front, text = card_of(tmp_path / "out")
    assert "pocket" not in front + text
    assert "| mid | 1,001 |  |  |  |" in text and "Blank: the checkpoint of mid was not at hand" in text
    assert "| base |" not in text  # who its parent was is not known
    assert "| gsm8k | 91.5% | 89.8% to 92.9% | 1,319 |" in text
    assert "| gsm8k, right in one of 8 answers | 97.2% | 96.2% to 98.0% | 1,319 |" in text
    assert "| sft | 1,002 | 4,096,002 | own files |" in text


def test_lineage_follows_hashes(base):
    three_stages(base, "pocket")
    meta = load_meta(base / "chatsft_checkpoints" / "d2", 1002)
    assert [(s.source, s.step, s.meta is None) for s in lineage("sft", "d2", meta)] == [
        ("base", 1000, False), ("mid", 1001, False), ("sft", 1002, False)]
    save(random_model(BYTES, seed=9), byte_tokenizer(), base, "mid", step=1001)  # another run of that name
    assert [(s.source, s.meta is None) for s in lineage("sft", "d2", meta)] == [("mid", True), ("sft", False)]
    for parent in ({}, {"source": "nowhere", "model_tag": "x", "step": 1}, {"source": 3}):
        assert [s.source for s in lineage("sft", "d2", {**meta, "parent": parent})][-1] == "sft"


def test_pocket_tasks_among_published_ones(pocket_base, monkeypatch):
    """What has no set on the hub comes from the pocket world, and is the one list of such names."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))
    # text of the corpus; ARC's; not to train on; refused where data is on the hub
    names = TASKS.keys() - {"documents", "world_mc", "humaneval", "gsm8k_new_templates", "gsm8k_rl"}
    assert {name for name in names if not make_task(name, "pocket", "train").published} == POCKET_TASKS & TASKS.keys()
    assert shown_mixture({"data": "hub", "mixture": ["gsm8k", "spelling_bee:60*2", "identity@test"]}) == \
        "gsm8k, spelling_bee:60*2 (pocket), identity@test (pocket)"
    assert shown_mixture({"data": "/folder", "mixture": ["identity"]}) == "identity" and shown_mixture({}) == ""


# --------------------------------------------------------------------------------------------------- the command line


@torch.no_grad()
def test_command_line_and_the_cards_own_example(base, tmp_path, capsys):
    model = random_model(BYTES, seed=3)
    save(model, byte_tokenizer(), base)
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "nanochat.export", "--source=sft", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=root)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    first, names, *usage = done.stdout.splitlines()
    assert first.endswith("chatsft_checkpoints/d2, step 7") and "model.safetensors (" in names and len(usage) == 2

    code = re.search(r"```python\n(.*?)```", card_of(tmp_path / "out")[1], re.DOTALL)[1]
    code = code.replace("FOLDER", str(tmp_path / "out")).replace("generate(**", "generate(do_sample=False, **")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"))
    tokenizer = byte_tokenizer()
    prompt = tokenizer.render_for_completion({"messages": [{"role": "user", "content": "Hello!"}]})
    ids, specials = [], {tokenizer.encode_special(name) for name in tokenizer.get_special_tokens()}
    for token in model.generate(prompt, 64, temperature=0):
        if token in (tokenizer.get_bos_token_id(), tokenizer.encode_special("<|assistant_end|>")):
            break
        ids.append(token)
    assert capsys.readouterr().out == tokenizer.decode([i for i in ids if i not in specials]) + "\n"
