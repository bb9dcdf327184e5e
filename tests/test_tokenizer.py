"""Tokenizers of both trainers, the rendering of conversations, and the stage tok_train."""

import copy
import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nanochat.tokenizer
from nanochat.common import UserError
from nanochat.tokenizer import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    HuggingFaceTokenizer,
    RustBPETokenizer,
    get_token_bytes,
    get_tokenizer,
    pick_tokenizer_class,
    split_pattern,
)

try:
    from rustbpe import Tokenizer as _  # noqa: F401

    CLASSES = [RustBPETokenizer, HuggingFaceTokenizer]
except ImportError:
    CLASSES = [HuggingFaceTokenizer]

TEST_DATA = os.environ.get("NANOCHAT_TEST_DATA")
CORPUS = [
    "The cat sat on the mat, and the dog sat on the log; they'll sit there till 12345 o'clock.\n\n" * 3,
    "user assistant bos start end python output |> <| " * 3 + "grüße, мир, 世界 🙂🙂 ",
    "123 1234 99 100000 " * 5 + "    indented\r\n\ttext",
]


@pytest.fixture(scope="module", params=CLASSES, ids=lambda c: c.trainer_name)
def tokenizer(request):
    with pytest.warns(UserWarning, match="too few distinct pairs"):
        return request.param.train_from_iterator(iter(CORPUS), 2000)


def ranks_of(tokenizer):
    return [tokenizer.decode_bytes([i]) for i in range(tokenizer.get_vocab_size() - len(SPECIAL_TOKENS))]


# ------------------------------------------------------------------------------------------------ the vocabulary


def test_layout_of_ids(tokenizer):
    """Bytes, merges, special tokens: the same layout whoever trained."""
    n = tokenizer.get_vocab_size()
    assert ranks_of(tokenizer)[:256] == [bytes([b]) for b in range(256)]
    assert 300 < n < 2000
    assert tokenizer.get_special_tokens() == SPECIAL_TOKENS
    assert [tokenizer.encode_special(name) for name in SPECIAL_TOKENS] == list(range(n - 9, n))
    assert tokenizer.get_bos_token_id() == n - 9
    assert tokenizer.id_to_token(n - 9) == "<|bos|>"
    assert len(tokenizer.encode(" the")) == 1
    with pytest.raises(KeyError):
        tokenizer.encode_special("the")


@pytest.mark.parametrize("cls", CLASSES)
def test_vocab_size_is_exact_when_the_corpus_suffices(cls):
    assert cls.train_from_iterator(CORPUS, 300).get_vocab_size() == 300
    assert cls.train_from_iterator(CORPUS, 265).get_vocab_size() == 265
    for none in (264, 5_000_000_000):
        with pytest.raises(UserError, match=f"vocab_size={none}"):
            cls.train_from_iterator(CORPUS, none)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("digits", [1, 2, 3])
def test_digits_dial(cls, digits):
    tokenizer = cls.train_from_iterator(["12345678 " * 9 + "abcabcd 1234"], 268, split_pattern(digits))
    lengths = [len(tokenizer.id_to_token(i)) for i in tokenizer.encode("12345678")]
    assert sum(lengths) == 8
    assert max(lengths) == digits
    for none in (0, 10):
        with pytest.raises(UserError, match=f"max_digits={none}"):
            split_pattern(none)


# trap: bpb-bytes
@settings(deadline=None)
@given(text=st.text())
def test_token_bytes_count_raw_bytes(tokenizer, text):
    lengths = tokenizer.token_bytes()
    assert len(lengths) == tokenizer.get_vocab_size()
    assert lengths[:256] == [1] * 256  # a byte over 127 alone decodes to U+FFFD, which would count as three
    assert lengths[-9:] == [0] * 9
    assert sum(lengths[i] for i in tokenizer.encode(text)) == len(text.encode("utf-8"))


# ---------------------------------------------------------------------------------------------- encode and decode


@settings(max_examples=200, deadline=None)
@given(text=st.text())
@example("  \n\n \r\n\t x  ")
@example("e\u0301 \ufeff\x00 \u2028 ٣٤٥ ｆｕｌｌ 👩‍👩‍👧‍👦")
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert tokenizer(text) == ids


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=5))
def test_lists_and_prepend_append(tokenizer, texts):
    bos, end = tokenizer.get_bos_token_id(), tokenizer.encode_special("<|user_end|>")
    rows = tokenizer.encode(texts, prepend="<|bos|>", append=end, num_threads=2)
    assert rows == [[bos, *tokenizer.encode(text), end] for text in texts]
    assert rows == [tokenizer.encode(text, prepend=bos, append="<|user_end|>") for text in texts]


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=20), max_size=5))
def test_encode_batch(tokenizer, texts):
    """With rustbpe and without: the ids of `encode`, flat."""
    without = RustBPETokenizer(dict(tokenizer._ranks), tokenizer.pattern, tokenizer._special)
    without._bulk = None  # as it is where rustbpe is not built
    for one in (tokenizer, without):
        ids, offsets = one.encode_batch(texts)
        assert (ids.dtype, offsets.dtype, ids.flags.writeable) == (np.uint16, np.int64, True)
        assert offsets.tolist() == [0, *itertools.accumulate(len(tokenizer.encode(text)) for text in texts)]
        assert [row.tolist() for row in one.encode_batch(texts, num_threads=2).rows()] == list(map(one.encode, texts))


def test_encode_batch_is_the_same_after_a_copy(tokenizer):
    """What rustbpe holds is no Python object; a copy, or a worker process, makes its own."""
    encoded = tokenizer.encode(CORPUS)
    assert copy.deepcopy(tokenizer).encode(CORPUS) == encoded


@pytest.mark.parametrize("rust", [True, False])
def test_bad_batches(tokenizer, rust):
    one = copy.deepcopy(tokenizer)
    if not rust:
        one._bulk = None
    for texts, message in (("abc", "not one str"), (["a", 3], "a text must be a str, not int")):
        with pytest.raises(TypeError, match=message):
            one.encode_batch(texts)
    with pytest.raises(TypeError, match="not one str"):
        type(one).train_from_iterator("abc", 300)


def test_encode_batch_of_a_large_vocabulary():
    """Ids of 32 bits as soon as the special tokens need them."""
    ranks = {bytes([b]): b for b in range(256)}
    pairs = (bytes([a, b]) for a in range(256) for b in range(256))
    ranks |= dict(zip(itertools.islice(pairs, 65_536 - 256), itertools.count(256)))
    tokenizer = RustBPETokenizer(ranks, SPLIT_PATTERN, {"<|bos|>": 65_536})
    for _ in ("rustbpe", "without"):
        ids, _ = tokenizer.encode_batch(["\x00a"])
        assert (ids.dtype, ids.tolist()) == (np.uint32, tokenizer.encode("\x00a"))
        tokenizer._bulk = None


@settings(deadline=None)
@given(parts=st.lists(st.sampled_from([*SPECIAL_TOKENS, "<|", "|>", "bos", " "]) | st.text(max_size=5)))
def test_text_never_makes_special_tokens(tokenizer, parts):
    text = "".join(parts)
    first_special = tokenizer.get_bos_token_id()
    assert all(i < first_special for i in tokenizer.encode(text))
    assert all(i < first_special for i in tokenizer.encode([text])[0])
    ids, _ = tokenizer.render_conversation({"messages": [{"role": "user", "content": text}]})
    assert sum(i >= first_special for i in ids) == 3  # bos, user_start, user_end: those we put there


def test_decode_of_invalid_utf8(tokenizer):
    assert tokenizer.decode([0xFF]) == "\ufffd"
    assert tokenizer.decode([0x61, 0xE4, 0xB8, 0x62]) == "a\ufffdb"  # a character cut in the middle
    assert tokenizer.decode_bytes([0xFF, 0xE4]) == b"\xff\xe4"
    assert tokenizer.decode([]) == ""


def test_lone_surrogates_become_replacement_characters(tokenizer):
    text = json.loads('"a\\ud800b"')
    assert tokenizer.decode(tokenizer.encode(text)) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode([text])[0]) == "a\ufffdb"
    type(tokenizer).train_from_iterator([text * 50, "more " * 50], 266)


# trap: Tokenizer (1 000 000 spaces panics tiktoken's encoder)
@pytest.mark.parametrize("space", [" ", "\t ", "\u3000"])
def test_a_million_spaces(tokenizer, space):
    text = "before" + space * (1_000_000 // len(space)) + "after"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode([text, "x"]) == [ids, tokenizer.encode("x")]


def test_training_on_a_million_spaces(tokenizer):
    assert type(tokenizer).train_from_iterator([" " * 1_000_000, *CORPUS], 280).encode("  ")


def test_long_text_is_encoded_as_tiktoken_does(tokenizer):
    """The guard against space runs leaves every other text alone, whatever its length."""
    plain = tiktoken.Encoding("plain", pat_str=tokenizer.pattern, special_tokens={},
                              mergeable_ranks={token: i for i, token in enumerate(ranks_of(tokenizer))})
    rng = random.Random(0)
    for _ in range(5):
        text = "".join(rng.choice(["the ", " " * rng.randint(1, 12_000), "\n", "99", "世界", "x" * 300])
                       for _ in range(60))
        assert len(text) > 16_384
        assert tokenizer.encode(text) == plain.encode_ordinary(text)


# ------------------------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize("reader", [RustBPETokenizer, HuggingFaceTokenizer])
def test_save_and_load(tokenizer, reader, tmp_path):
    tokenizer.save(tmp_path / "t")
    loaded = reader.from_directory(tmp_path / "t")
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.trainer == tokenizer.trainer
    assert loaded.get_special_tokens() == SPECIAL_TOKENS
    text = "".join(CORPUS)
    assert loaded.encode(text) == tokenizer.encode(text)
    loaded.save(tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "t").iterdir())
    assert names == ["tokenizer.tiktoken", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "t" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


# trap: tokenizer-drift
def test_changed_files_are_refused(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    ranks, config = tmp_path / "tokenizer.tiktoken", tmp_path / "tokenizer_config.json"
    rng = random.Random(0)
    for path in (ranks, config):
        whole = path.read_bytes()
        trainer = whole.find(b'"trainer"')  # says who trained it; not part of what it does
        for spot in rng.sample(range(len(whole)), 80):
            if path == config and trainer <= spot < whole.index(b"\n", trainer):
                continue
            damaged = bytearray(whole)
            damaged[spot] ^= 1
            path.write_bytes(damaged)
            if path == config and json_or_none(damaged) == json.loads(whole):
                continue  # a changed blank
            with pytest.raises(UserError, match="tokenizer"):
                RustBPETokenizer.from_directory(tmp_path)
        for cut in (b"", whole[: len(whole) // 2]):
            path.write_bytes(cut)
            with pytest.raises(UserError, match="tokenizer"):
                RustBPETokenizer.from_directory(tmp_path)
        path.write_bytes(whole)
    assert RustBPETokenizer.from_directory(tmp_path).fingerprint() == tokenizer.fingerprint()
    config.unlink()
    with pytest.raises(UserError, match="tokenizer_config.json is missing"):
        RustBPETokenizer.from_directory(tmp_path)


def json_or_none(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_fingerprint_sees_every_part():
    ranks = {bytes([b]): b for b in range(256)}
    base = RustBPETokenizer(ranks, SPLIT_PATTERN, {"<|bos|>": 256})
    others = [
        RustBPETokenizer({**ranks, b"ab": 256}, SPLIT_PATTERN, {"<|bos|>": 257}),
        RustBPETokenizer(ranks, split_pattern(3), {"<|bos|>": 256}),
        RustBPETokenizer(ranks, SPLIT_PATTERN, {"<|bos|>": 257}),
        RustBPETokenizer(ranks, SPLIT_PATTERN, {"<|BOS|>": 256}),
    ]
    assert len({t.fingerprint() for t in [base, *others]}) == 5
    same = RustBPETokenizer(dict(reversed(ranks.items())), SPLIT_PATTERN, {"<|bos|>": 256}, trainer="someone")
    assert same.fingerprint() == base.fingerprint()


# trap: encoding
def test_files_do_not_depend_on_the_locale(tmp_path):
    ranks = {bytes([b]): b for b in range(256)}
    written = RustBPETokenizer(ranks, "[é世]+|" + SPLIT_PATTERN, {"<|bos|>": 256, "<|bös|>": 257})
    written.save(tmp_path / "here")
    code = (
        "import sys; from nanochat.tokenizer import RustBPETokenizer as T;"
        "t = T.from_directory(sys.argv[1]); t.save(sys.argv[2]); print(t.fingerprint())"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    root = Path(nanochat.tokenizer.__file__).parents[1]
    command = [sys.executable, "-c", code, str(tmp_path / "here"), str(tmp_path / "there")]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == written.fingerprint()
    for name in ("tokenizer.tiktoken", "tokenizer_config.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


# ---------------------------------------------------------------------------------------------------- the trainers


def test_without_rustbpe(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rustbpe", None)  # `import rustbpe` now raises ImportError
    spec = importlib.util.spec_from_file_location("fresh_tokenizer", nanochat.tokenizer.__file__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    cls = fresh.pick_tokenizer_class("auto")
    assert cls is fresh.HuggingFaceTokenizer
    assert capsys.readouterr().out.count("\n") == 1
    assert cls.train_from_iterator(CORPUS, 300).encode("the cat")
    with pytest.raises(UserError, match="rustbpe is not built"):
        fresh.RustBPETokenizer.train_from_iterator(CORPUS, 300)


def test_another_rustbpe_is_named(monkeypatch):
    """rustbpe 0.1.0 of the index, or ours before an update, has a Tokenizer too."""
    monkeypatch.setitem(sys.modules, "rustbpe", types.SimpleNamespace(Tokenizer=type("Tokenizer", (), {})))
    for use in (pick_tokenizer_class, lambda: RustBPETokenizer.train_from_iterator(CORPUS, 300)):
        with pytest.raises(UserError, match="not the one of this source: bash dev/setup.sh"):
            use()


def test_pick_tokenizer_class():
    assert pick_tokenizer_class("rust") is RustBPETokenizer
    assert pick_tokenizer_class("huggingface") is HuggingFaceTokenizer
    assert pick_tokenizer_class() is CLASSES[0]
    with pytest.raises(UserError, match="trainer=other"):
        pick_tokenizer_class("other")


@pytest.mark.skipif(len(CLASSES) == 1, reason="rustbpe is not built")
def test_both_trainers_agree_where_no_counts_tie():
    words = ["abcd", "bcd", "cd", "xyz", "yz", "no", "way"]
    texts = [" ".join([word] * 3**i) for i, word in enumerate(words)]
    rust, hf = (cls.train_from_iterator(texts, 265 + 6) for cls in (RustBPETokenizer, HuggingFaceTokenizer))
    assert ranks_of(rust) == ranks_of(hf)
    assert rust.fingerprint() == hf.fingerprint()


# --------------------------------------------------------------------------------------------------- conversations

TOOL_CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "12/60?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "That is "},
                {"type": "python", "text": "12/60"},
                {"type": "python_output", "text": "0.2"},
                {"type": "text", "text": "0.2."},
            ],
        },
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Welcome!"},
    ]
}


# trap: mask-lost
def test_render_conversation(tokenizer):
    before = copy.deepcopy(TOOL_CHAT)
    ids, mask = tokenizer.render_conversation(TOOL_CHAT)
    assert before == TOOL_CHAT  # the input is left alone
    assert len(ids) == len(mask)
    assert set(mask) == {0, 1}
    runs = []  # [(mask, text)] of the runs of equal mask
    for id, supervised in zip(ids, mask):
        if not runs or runs[-1][0] != supervised:
            runs.append([supervised, []])
        runs[-1][1].append(id)
    assert [(supervised, tokenizer.decode(run)) for supervised, run in runs] == [
        (0, "<|bos|><|user_start|>Be brief.\n\n12/60?<|user_end|><|assistant_start|>"),
        (1, "That is <|python_start|>12/60<|python_end|>"),
        (0, "<|output_start|>0.2<|output_end|>"),
        (1, "0.2.<|assistant_end|>"),
        (0, "<|user_start|>Thanks<|user_end|><|assistant_start|>"),
        (1, "Welcome!<|assistant_end|>"),
    ]


def test_render_cuts_at_max_tokens(tokenizer):
    ids, mask = tokenizer.render_conversation(TOOL_CHAT, max_tokens=None)
    for n in (0, 1, 7, len(ids), len(ids) + 5):
        assert tokenizer.render_conversation(TOOL_CHAT, max_tokens=n) == (ids[:n], mask[:n])
    long = {"messages": [{"role": "user", "content": "a 1 " * 3000}, {"role": "assistant", "content": "b"}]}
    assert len(tokenizer.render_conversation(long)[0]) == 2048
    assert len(tokenizer.render_conversation(long, max_tokens=None)[0]) > 6000
    assert len(tokenizer.render_for_completion(long)) > 6000  # a prompt cut at its end would ask for nothing


def test_render_for_completion(tokenizer):
    before = copy.deepcopy(TOOL_CHAT)
    prompt = tokenizer.render_for_completion(TOOL_CHAT)
    assert before == TOOL_CHAT
    whole, _ = tokenizer.render_conversation(TOOL_CHAT)
    assert prompt == whole[: len(prompt)]  # what the model sees in training before its answer
    assert tokenizer.decode(whole[len(prompt) :]) == "Welcome!<|assistant_end|>"
    open_question = {"messages": TOOL_CHAT["messages"][:4]}
    assert tokenizer.render_for_completion(open_question) == prompt


def test_one_sided_conversation_has_nothing_to_learn(tokenizer):
    ids, mask = tokenizer.render_conversation({"messages": [{"role": "user", "content": ""}]})
    assert tokenizer.decode(ids) == "<|bos|><|user_start|><|user_end|>"
    assert mask == [0, 0, 0]
    empty_answer = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": []}]}
    assert tokenizer.render_conversation(empty_answer)[1][-2:] == [0, 1]  # assistant_start, assistant_end


USER, ASSISTANT, SYSTEM = ({"role": role, "content": role} for role in ("user", "assistant", "system"))


# trap: empty (system-only and one-sided conversations)
@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "empty"),
        (None, "empty"),
        ([SYSTEM], "only a system message"),
        ([SYSTEM, SYSTEM, USER], "turn 0"),
        ([SYSTEM, ASSISTANT], "turn 0"),
        ([ASSISTANT], "turn 0"),
        ([USER, USER], "turn 1"),
        ([USER, ASSISTANT, ASSISTANT], "turn 2"),
        ([USER, ASSISTANT, SYSTEM], "turn 2"),
        ([{"role": "tool", "content": "x"}], "unknown role 'tool'"),
        ([{"role": "user"}], "lacks"),
        (["hello"], "lacks"),
        ([{"role": "user", "content": None}], "string"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "string"),
        ([USER, {"role": "assistant", "content": None}], "string or a list"),
        ([USER, {"role": "assistant", "content": ["x"]}], "part"),
        ([USER, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}], "part"),
        ([USER, {"role": "assistant", "content": [{"type": "python", "text": 3}]}], "part"),
    ],
)
def test_bad_conversations_are_named(tokenizer, messages, complaint):
    with pytest.raises(UserError, match=complaint):
        tokenizer.render_conversation({"messages": messages})
    with pytest.raises(UserError, match="conversation is empty"):
        tokenizer.render_conversation({})


def test_bad_messages_are_counted_as_in_the_file_and_shown_in_short(tokenizer):
    part = {"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "x" * 10**6, "text": "x"}]}
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for messages, complaint in (
        ([SYSTEM, USER, USER], "message 3"),
        ([SYSTEM, USER, part], "part 2 of message 3"),
        ([{"role": "x" * 10**6, "content": ""}], "message 1 has the unknown role"),
        ([{"role": deep, "content": ""}], "unknown role list"),
        ([USER, {"role": "assistant", "content": [deep]}], "part 1 of message 2"),
    ):
        with pytest.raises(UserError, match=complaint) as raised:
            tokenizer.render_conversation({"messages": messages})
        assert len(str(raised.value)) < 250


@pytest.mark.parametrize("bulk", ["rustbpe", "tiktoken"])
def test_many_conversations_render_as_each_alone(tokenizer, bulk):  # trap: mask-lost
    tokenizer = copy.deepcopy(tokenizer)
    if bulk == "tiktoken":
        tokenizer._bulk = None
    rows = [TOOL_CHAT, {"messages": [USER]}, {"messages": [USER, {"role": "assistant", "content": []}]},
            {"text": "a document é🙂"}, {"text": ""}, {"text": "not this", "messages": [USER, ASSISTANT]},
            {"messages": [{"role": "user", "content": "<|assistant_end|>"},
                          {"role": "assistant", "content": "<|assistant_end|><|bos|>"}]},
            {"messages": [{"role": "user", "content": "\ud800 " + " " * 20_000}, ASSISTANT]},
            {"messages": [USER, ASSISTANT] * 30}]
    end = tokenizer.encode_special("<|assistant_end|>")
    for threads in (1, 2):
        rendered = tokenizer.render_conversations(rows, threads)
        for row, (ids, mask, turns) in zip(rows, rendered, strict=True):
            assert (ids.tolist(), mask.tolist()) == tokenizer.render_conversation(row, max_tokens=None)
            assert turns == [i + 1 for i, id in enumerate(ids) if id == end]
    assert len(rendered[0].turns) == 2 and rendered[3].mask.tolist() == [False] + [True] * (len(rendered[3].ids) - 1)
    assert tokenizer.decode(rendered[5].ids).startswith("<|bos|><|user_start|>user")  # messages come before "text"
    assert tokenizer.render_conversations([]) == []


def test_malformed_conversations_do_not_spoil_their_neighbours(tokenizer):
    good = {"messages": [USER, ASSISTANT]}
    bad = [{"messages": []}, None, 5, ["x"], {"text": None}, {"messages": [USER, USER]}, UserError("unreadable")]
    rendered = tokenizer.render_conversations([good, *bad, good])
    assert rendered[0].ids.tolist() == rendered[-1].ids.tolist() == tokenizer.render_conversation(good)[0]
    assert rendered[0].turns == rendered[-1].turns == [len(rendered[0].ids)]
    kinds = [getattr(error, "kind", str(error)) for error in rendered[1:-1]]
    assert kinds == ["empty", "empty", "empty", "empty", "text", "order", "unreadable"]
    assert all(isinstance(error, UserError) for error in tokenizer.render_conversations(bad))  # and nothing else


def test_visualize_tokenization(tokenizer):
    ids, mask = tokenizer.render_conversation({"messages": [USER, ASSISTANT]})
    shown = tokenizer.visualize_tokenization(ids, mask)
    assert shown.count("\033[92m") == sum(mask)
    assert shown.count("\033[91m") == len(mask) - sum(mask)
    assert "\033[91m<|bos|>\033[0m|" in shown
    assert f"({ids[0]})" in tokenizer.visualize_tokenization(ids, mask, with_token_id=True)


# ------------------------------------------------------------------------------------------- the stages; real vectors


def test_tok_train(tmp_path, monkeypatch):
    from scripts import tok_train

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text(CORPUS[i % 3] + f"\nNote {i}.", encoding="utf-8")
    data = str(tmp_path / "text")
    for trainer in [cls.trainer_name for cls in CLASSES]:
        tok_train.main(tok_train.Config(data=data, vocab_size=320, trainer=trainer))
        assert get_tokenizer().get_vocab_size() == 320
        assert get_tokenizer().trainer == trainer
    assert get_token_bytes("cpu").tolist() == get_tokenizer().token_bytes()
    report = json.loads((tmp_path / "base" / "report" / "tok_train.json").read_text(encoding="utf-8"))
    assert report["vocab_size"] == 320
    assert report["data"] == data
    assert report["seconds"] > 0
    assert 2 <= report["token_bytes_mean"] <= report["token_bytes_max"]


@pytest.mark.skipif(not TEST_DATA, reason="NANOCHAT_TEST_DATA is not set")
@pytest.mark.parametrize(
    ("encoding", "file"),
    [("r50k_base", "encoder.json"), ("cl100k_base", "cl100k_base.tiktoken"), ("o200k_base", "o200k_base.tiktoken")],
)
def test_published_vectors(encoding, file):
    from scripts.tok_eval import encoder_from_folder

    folder = Path(TEST_DATA) / "tokenizer_vectors"
    vectors = [json.loads(line) for line in (folder / "vectors.jsonl").read_bytes().splitlines()]
    # left out: the few whose special tokens are meant as such; ours are always ordinary text
    vectors = [v for v in vectors if v["encoding"] == encoding and "<|" not in v["text"]]
    assert len(vectors) > 40
    tokenizer = encoder_from_folder(folder, encoding, file)
    for vector in vectors:
        assert tokenizer.encode(vector["text"]) == vector["tokens"], vector["text"]
    assert tokenizer.encode([v["text"] for v in vectors]) == [v["tokens"] for v in vectors]
