"""Checkpoints: found by number, verified byte by byte, refused with a name."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat import checkpoint_manager as cm
from nanochat.common import UserError
from nanochat.files import sha256_file
from nanochat.tensor_file import DTYPES, read_tensors, tensor_pieces, write_tensors
from tests.helpers import small_model, small_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture
def saved(tmp_path, tokenizer, monkeypatch):
    """A base directory with one finished base run of two steps; yields (directory, model)."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    model = small_model(tokenizer)
    directory = tmp_path / "base_checkpoints" / "d2"
    for step in (9, 10):
        cm.save_checkpoint(directory, step, model.state_dict(), model.setup_optimizers().state_dict(),
                           {"model_config": cm.model_config_dict(model), "config": {"a": None}, "parent": None},
                           tokenizer=tokenizer)
    return directory, model


CPU = torch.device("cpu")


def test_round_trip(saved, tokenizer):
    _, model = saved
    loaded, its_tokenizer, meta = cm.load_model("base", CPU, "train")
    assert meta["step"] == 10 and meta["parent"]["model_tag"] == "d2"
    assert meta["config"] == {"a": None}  # trap: keys-dropped
    assert its_tokenizer.fingerprint() == tokenizer.fingerprint()
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    ids = torch.tensor([tokenizer("The fox")])
    loaded.compute_dtype = torch.float32
    assert torch.equal(loaded(ids), model(ids))


def test_eval_phase_stores_weights_in_the_compute_dtype(saved):  # trap: cache-dtype
    model, _, _ = cm.load_model("base", CPU, "eval", dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16 and not model.lm_head.weight.requires_grad
    assert model.cos.dtype == torch.float32  # angles keep their precision


def test_last_step_is_by_number_and_ignores_other_files(tmp_path):  # trap: last-step
    for name in ("meta_000999.json", "meta_1000000.json", "meta_000100.json", "meta_x.json", "meta_000200.json.tmp",
                 "model_9999999.safetensors"):
        (tmp_path / name).write_text("{}")
    assert cm.find_last_step(tmp_path) == 1000000
    with pytest.raises(UserError, match="no checkpoint"):
        cm.find_last_step(tmp_path / "absent")


def test_largest_model(tmp_path):
    for tag in ("d4", "d12", "zz"):
        (tmp_path / tag).mkdir()
        (tmp_path / tag / "meta_000001.json").write_text("{}")
    (tmp_path / "d20").mkdir()  # no committed step: no model
    assert cm.find_largest_model(tmp_path) == "d12"


def test_tag_and_step_are_honoured_on_load(saved):  # trap: tag-ignored
    directory, _ = saved
    shutil.copytree(directory, directory.parent / "d1")
    assert cm.load_model("base", CPU, "eval", model_tag="d1", step=9)[2]["parent"]["model_tag"] == "d1"
    with pytest.raises(UserError, match="no model 'd7'.*d1, d2"):
        cm.load_model("base", CPU, "eval", model_tag="d7")
    with pytest.raises(UserError, match="no step 3"):
        cm.load_model("base", CPU, "eval", model_tag="d2", step=3)


def test_nothing_there_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    with pytest.raises(UserError, match="speedrun.sh"):
        cm.load_model("sft", CPU, "eval")


@pytest.mark.parametrize("pattern", ["model_000010.safetensors", "optim_000010_rank0.safetensors",
                                     "tokenizer/tokenizer.tiktoken", "tokenizer/tokenizer_config.json"])
def test_one_flipped_bit_is_refused_by_name(saved, pattern):  # trap: silent-corruption
    directory, _ = saved
    path = directory / pattern
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=path.name):
        cm.load_checkpoint(directory, 10, CPU, load_optimizer=True)
    if not path.name.startswith("optim_"):
        with pytest.raises(UserError, match=path.name):
            cm.build_model(directory, 10, CPU, "eval")


def test_truncated_missing_and_foreign_files_are_refused(saved):
    directory, _ = saved
    path = directory / "model_000010.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        cm.load_checkpoint(directory, 10, CPU)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        cm.load_checkpoint(directory, 10, CPU)
    (directory / "meta_000009.json").write_text('{"step": 9, "fi', encoding="utf-8")
    with pytest.raises(UserError, match="meta_000009.json is damaged"):
        cm.load_checkpoint(directory, 9, CPU)


def test_another_tokenizer_is_refused(saved, tokenizer):  # trap: tokenizer-drift
    directory, _ = saved
    other = small_tokenizer(300)
    shutil.rmtree(directory / "tokenizer")
    other.save(directory / "tokenizer")
    with pytest.raises(UserError, match="tokenizer"):
        cm.build_model(directory, 10, CPU, "eval")
    meta = cm.load_meta(directory, 10)
    for name in list(meta["files"]):  # even when somebody mends the file hashes
        meta["files"][name] = sha256_file(directory / name) if name.startswith("tokenizer/") else meta["files"][name]
    (directory / "meta_000010.json").write_text(cm.render_meta(meta), encoding="utf-8")
    with pytest.raises(UserError, match="not the tokenizer"):
        cm.build_model(directory, 10, CPU, "eval")


def test_weights_that_do_not_fit_name_the_first_difference(tokenizer):  # trap: lstrip
    model = small_model(tokenizer)
    data = {f"_orig_mod.{k}": v for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match="_orig_mod.lm_head.weight is"):
        cm.load_weights(small_model(tokenizer), data, "here")
    with pytest.raises(UserError, match=r"lm_head.weight is \(320, 64\) there, \(320, 32\) here"):
        cm.load_weights(small_model(tokenizer), small_model(tokenizer, n_embd=64).state_dict(), "here")


def test_the_parts_of_twelve_ranks_are_put_together_by_number(saved):
    """By name, the part of rank 10 would come before that of rank 2."""
    directory, _ = saved
    meta = cm.load_meta(directory, 10)
    meta["files"] = {name: digest for name, digest in meta["files"].items() if not name.startswith("optim_")}
    for rank in sorted(range(12), key=str):
        name = f"optim_000010_rank{rank}.safetensors"
        part = {"wte.weight/m": torch.full((1, 2), float(rank)), "steps": torch.tensor(10)}
        meta["files"][name] = write_tensors(directory / name, part)
    (directory / "meta_000010.json").write_text(cm.render_meta(meta), encoding="utf-8")
    _, optimizer_data, _ = cm.load_checkpoint(directory, 10, CPU, load_optimizer=True)
    assert optimizer_data["wte.weight/m"][:, 0].tolist() == list(range(12))


def test_a_part_that_another_machine_keeps_to_itself_is_no_checkpoint(saved, tokenizer, monkeypatch):
    directory, model = saved
    elsewhere = json.dumps({"files": {"optim_000011_rank1.safetensors": "0" * 64}, "rng": None})
    told = lambda text: [text, elsewhere] if text.startswith("{") else [text]  # noqa: E731
    monkeypatch.setattr(cm, "gather_texts", told)  # a rank with a disk of its own
    with pytest.raises(UserError, match="optim_000011_rank1.safetensors was written by a rank on another machine"):
        cm.save_checkpoint(directory, 11, model.state_dict(), {"steps": torch.tensor(11)}, {}, tokenizer=tokenizer)
    assert cm.find_last_step(directory) == 10


def test_saving_makes_its_directory_and_leaves_no_temporary_files(saved):  # trap: mkdir-rank
    directory, _ = saved
    assert sorted(p.name for p in directory.iterdir()) == [
        "meta_000009.json", "meta_000010.json", "model_000009.safetensors", "model_000010.safetensors",
        "optim_000009_rank0.safetensors", "optim_000010_rank0.safetensors", "tokenizer"]


# --------------------------------------------------------------------------- the formats

SHAPES = st.lists(st.integers(0, 4), max_size=3)
TENSORS = st.dictionaries(st.text(max_size=8), st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=6)


@given(TENSORS)
def test_tensor_files_are_the_librarys_to_the_byte(asked):
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in asked.items()}
    assert b"".join(tensor_pieces(tensors)) == safetensors.torch.save(tensors)
    metadata = {"format": "pt"}  # more than one key: the library's order is another each time
    assert b"".join(tensor_pieces(tensors, metadata)) == safetensors.torch.save(tensors, metadata)


def test_tensors_come_back_also_those_that_are_no_rows_in_memory(tmp_path):
    tensors = {"turned": torch.randn(5, 3).t(), "every other": torch.randn(8)[::2], "one": torch.tensor(7), "bf16":
               torch.randn(3).bfloat16(), "grad": torch.randn(2, requires_grad=True)}
    digest = write_tensors(tmp_path / "t.safetensors", tensors)
    assert digest == sha256_file(tmp_path / "t.safetensors")
    back = read_tensors(tmp_path / "t.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[k], t) for k, t in tensors.items())
    (tmp_path / "other").write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match="other is not a safetensors file"):
        read_tensors(tmp_path / "other")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(SCALARS | st.text(max_size=5),
                    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3),
                    max_leaves=8)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.data())
def test_a_meta_file_comes_back_and_no_byte_of_it_can_change(meta, data):
    text = cm.render_meta(meta)
    assert cm.parse_meta(text) == meta
    content = bytearray(text.encode("utf-8"))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError):
        cm.parse_meta(content.decode("utf-8"))
    with pytest.raises(ValueError):
        cm.parse_meta(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(ValueError):
        cm.parse_meta(text + data.draw(st.sampled_from(["\n", " ", "x", "{}"])))


def test_a_meta_file_of_no_hash_or_no_end_is_damaged():
    for text in ("{}", '{"step": 1}', "[]", "3", "[" * 100_000, '{"a":' * 100_000, '{"meta_sha256": 3}', "NaN", ""):
        with pytest.raises(ValueError):
            cm.parse_meta(text)


def test_a_meta_file_that_names_files_elsewhere_is_refused(saved):
    directory, _ = saved
    meta = cm.load_meta(directory, 10)
    for name in ("../../other", "/etc/passwd", "tokenizer/../../x", "a/b", "", ".hidden", "x\ny"):
        changed = {**meta, "files": {**meta["files"], name: "0" * 64}}
        (directory / "meta_000010.json").write_text(cm.render_meta(changed), encoding="utf-8")
        with pytest.raises(UserError, match="meta_000010.json is damaged"):
            cm.load_meta(directory, 10)
    for key in ("step", "files"):
        (directory / "meta_000010.json").write_text(
            cm.render_meta({k: v for k, v in meta.items() if k != key}), encoding="utf-8")
        with pytest.raises(UserError, match=f"meta_000010.json is damaged .'{key}' is missing"):
            cm.load_meta(directory, 10)


def test_all_files_are_verified_before_any_is_read(saved, monkeypatch):
    """Of a checkpoint with one bad file, not even the good ones are opened as tensors."""
    directory, _ = saved
    monkeypatch.setattr(cm, "read_tensors", lambda *_: pytest.fail("read before all was verified"))
    path = directory / "tokenizer" / "tokenizer.tiktoken"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(UserError, match="tokenizer.tiktoken is damaged.*delete that one to go on from the step before"):
        cm.load_checkpoint(directory, 10, CPU, load_optimizer=True)


def test_a_model_of_another_version_or_size_is_refused_before_anything_is_allocated(saved):
    directory, _ = saved
    meta = cm.load_meta(directory, 10)
    for change, words in (({"n_experts": 8}, "cannot build.*n_experts"), ({"vocab_size": 10**6}, "does not fit"),
                          ({"n_embd": "wide"}, "n_embd=wide is impossible"), ({"n_head": 0}, "n_head=0 is impossible")):
        changed = {**meta, "model_config": {**meta["model_config"], **change}}
        (directory / "meta_000010.json").write_text(cm.render_meta(changed), encoding="utf-8")
        with pytest.raises(UserError, match=words):
            cm.build_model(directory, 10, CPU, "eval")


# --------------------------------------------------------------------------- saving again, and again


def test_a_killed_first_save_leaves_no_half_tokenizer_for_the_next(tmp_path, tokenizer):
    """Only the first of the tokenizer's two files was written when the power went."""
    tokenizer.save(tmp_path / "run" / "tokenizer")
    (tmp_path / "run" / "tokenizer" / "tokenizer_config.json").unlink()
    (tmp_path / "run" / "tokenizer" / "tokenizer.tiktoken").write_bytes(b"half")
    model = small_model(tokenizer)
    cm.save_checkpoint(tmp_path / "run", 1, model.state_dict(), None,
                       {"model_config": cm.model_config_dict(model)}, tokenizer=tokenizer)
    assert cm.build_model(tmp_path / "run", 1, CPU, "eval")[1].fingerprint() == tokenizer.fingerprint()


def test_a_disk_without_room_is_told_before_anything_is_written(saved, tokenizer, monkeypatch):
    directory, model = saved
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Disk", (), {"free": 100_000})())
    before = sorted(p.name for p in directory.rglob("*"))
    words = rf"a checkpoint in {directory} needs [\d,]+ bytes and the disk has 100,000 free"
    with pytest.raises(UserError, match=words):
        cm.save_checkpoint(directory, 11, model.state_dict(), None, {}, tokenizer=tokenizer)
    assert sorted(p.name for p in directory.rglob("*")) == before and cm.find_last_step(directory) == 10


def test_a_step_that_is_saved_again_is_never_half_old(saved, tokenizer, monkeypatch):
    """Its meta goes first: a kill between two files must not leave an old meta beside new tensors."""
    directory, model = saved
    seen = []
    monkeypatch.setattr(cm, "write_tensors", lambda path, tensors: (seen.append(cm.saved_steps(directory)),
                                                                    write_tensors(path, tensors))[1])
    other = small_model(tokenizer, seed=5)
    cm.save_checkpoint(directory, 10, other.state_dict(), None, {"model_config": cm.model_config_dict(model)},
                       tokenizer=tokenizer)
    assert seen == [[9]] and cm.saved_steps(directory) == [9, 10]
    loaded, _, _ = cm.build_model(directory, 10, CPU, "train")
    assert torch.equal(loaded.lm_head.weight, other.lm_head.weight)


def test_damage_done_while_a_run_goes_on_does_not_spoil_its_next_saves(saved, tokenizer):
    """The tokenizer's files gone, or flipped, or another's; the last meta damaged: the next step is whole again."""
    directory, model = saved

    def save(step: int) -> None:
        cm.save_checkpoint(directory, step, model.state_dict(), None, {"model_config": cm.model_config_dict(model)},
                           tokenizer=tokenizer)
        assert cm.build_model(directory, step, CPU, "eval")[1].fingerprint() == tokenizer.fingerprint()

    shutil.rmtree(directory / "tokenizer")
    save(11)
    path = directory / "tokenizer" / "tokenizer.tiktoken"
    path.write_bytes(path.read_bytes()[::-1])
    save(12)
    small_tokenizer(300).save(directory / "tokenizer")
    save(13)
    (directory / "meta_000013.json").write_text("{}", encoding="utf-8")
    save(14)


def test_what_is_removed_goes_metas_first(saved, monkeypatch):
    """Half-way through there must be no step that does not load."""
    directory, _ = saved
    real = cm.remove_files

    def check(folder, names):
        real(folder, list(names))
        for step in cm.saved_steps(directory):
            cm.load_checkpoint(directory, step, CPU, load_optimizer=True)

    monkeypatch.setattr(cm, "remove_files", check)
    cm.rotate(directory, 1)
    assert cm.saved_steps(directory) == [10] and len(list(directory.glob("*.safetensors"))) == 2
    (directory / "tokenizer" / "mine.txt").write_text("somebody's own", encoding="utf-8")
    cm.delete_checkpoints(directory)
    assert [str(p.relative_to(directory)) for p in sorted(directory.rglob("*"))] == ["tokenizer", "tokenizer/mine.txt"]


def test_a_file_that_goes_while_a_step_is_saved_is_named(saved, tokenizer, monkeypatch):
    directory, model = saved
    monkeypatch.setattr(cm, "write_tensors", lambda path, tensors: "0" * 64)
    with pytest.raises(UserError, match="model_000011.safetensors was removed while step 11 was being saved"):
        cm.save_checkpoint(directory, 11, model.state_dict(), None, {}, tokenizer=tokenizer)


def test_tensors_are_read_onto_the_device_that_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr("nanochat.tensor_file.load_file", lambda path, device: asked.append((path, device)))
    read_tensors("t.safetensors", torch.device("cuda", 3))
    assert asked == [("t.safetensors", "cuda:3")]
