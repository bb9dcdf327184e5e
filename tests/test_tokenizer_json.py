"""The export for Hugging Face: the real `tokenizers` and `transformers` load it, and give our ids and our masks.

Run: python -m pytest tests/test_tokenizer_json.py
"""

import base64
import copy
import json
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nanochat.common import UserError
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer, pick_tokenizer_class, split_pattern
from nanochat.tokenizer_json import Config, export_tokenizer, main, merges_of, tokenizer_json
from tests.export_trials import plain, refusal

TEST_DATA = os.environ.get("NANOCHAT_TEST_DATA")
CORPUS = [
    "The cat sat on the mat, and the dog sat on the log; they'll sit there till 12345 o'clock.\n\n" * 3,
    "user assistant bos start end python output |> <| " * 3 + "grüße, мир, 世界 🙂🙂 ",
    "123 1234 99 100000 " * 5 + "    indented\r\n\ttext, IT'S we've",
]


def with_ranks(tokens: list[bytes], pattern: str = split_pattern(2)) -> RustBPETokenizer:
    """A tokenizer of the 256 bytes and these tokens, in this order."""
    ranks = {token: i for i, token in enumerate([*(bytes([b]) for b in range(256)), *tokens])}
    return RustBPETokenizer(ranks, pattern, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})


@pytest.fixture(scope="module", params=[1, 2, 3])
def digits(request):
    return request.param


@pytest.fixture(scope="module")
def ours(digits):
    with pytest.warns(UserWarning, match="too few distinct pairs"):
        return pick_tokenizer_class().train_from_iterator(iter(CORPUS), 2000, split_pattern(digits))


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "made_by_the_export"
    export_tokenizer(ours, path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    return AutoTokenizer.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------------- the merges


def test_merges_of():
    single = {bytes([b]): b for b in range(256)}
    assert merges_of(single) == []
    assert merges_of({**single, b"ab": 256, b"abc": 257}) == [(b"a", b"b"), (b"ab", b"c")]
    # the pair of abc is (ab, c) even though ab comes later; bcd: its bytes become (b, cd), never (bc, d)
    ranks = {**single, b"abc": 256, b"ab": 257, b"cd": 258, b"bc": 259, b"bcd": 260}
    assert merges_of(ranks) == [(b"ab", b"c"), (b"a", b"b"), (b"c", b"d"), (b"b", b"c"), (b"b", b"cd")]
    assert merges_of({**single, b"abc": 256}) == []  # nothing joins its letters: it is found as a whole word only


def test_a_token_without_merges_is_a_whole_word():
    tokenizer = with_ranks([b"abc", b" b"])
    loaded = Tokenizer.from_str(tokenizer_json(tokenizer))
    assert tokenizer.encode("abc abc") == loaded.encode("abc abc").ids == [256, 32, 97, 98, 99]
    assert tokenizer.encode("abcd") == loaded.encode("abcd").ids == [97, 98, 99, 100]


@settings(max_examples=150)
@given(data=st.data())
def test_any_ranks_give_tiktokens_ids(data):
    """Ranks that no trainer would make: tokens without parts, parts that come after what they build."""
    tokens = data.draw(st.lists(st.text("abc", min_size=2, max_size=6), unique=True, max_size=40))
    tokenizer = with_ranks([token.encode("utf-8") for token in tokens])
    loaded = Tokenizer.from_str(tokenizer_json(tokenizer))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    for length in [*range(1, 30), 200, 700]:
        word = "".join(rng.choices("abc", k=length))
        assert loaded.encode(word).ids == tokenizer.encode(word), (tokens, word)


# ------------------------------------------------------------------------------------------------ the ids of a text

# Assigned long ago: whichever Unicode version an engine has, it knows these. And some of today's.
OLD = st.characters(exclude_categories=["Cs"]).filter(lambda c: unicodedata.ucd_3_2_0.category(c) != "Cn")
PIECES = [
    "'s", "'LL", "'ſ", "\r\n", "  ", "\t", "\u0301", "\u200d", "\u2028", "\x85", "\xa0", "\u3000", "\u180e", "\x1c",
    "12345", "٣٤٥", "½", "Ⅷ", "ǅ", "ﬆ", "ß", "İ", "ｆｕｌｌ", "ไทย", "कि", "한", "\x00", "\ufffd", "\U0010fffd",
    "🙂", "👩‍👩‍👧‍👦", "🏖️", "<|", "|>", "bos", " the", "the",
]
TEXT = st.text(OLD, max_size=30) | st.lists(st.sampled_from(PIECES) | OLD, max_size=20).map("".join)


@settings(max_examples=300)
@given(text=TEXT.map(plain))
@example("  \n\n \r\n\t x  ")
@example(" " * 3000 + "a" * 3000)
@example("")
def test_same_ids_and_back(ours, theirs, text):
    ids = theirs(text)["input_ids"]
    assert ids == ours.encode(text)
    assert theirs.decode(ids) == text == theirs.decode(ids, skip_special_tokens=True)


def test_all_ways_to_load_it(ours, theirs, folder, tmp_path):
    text = "\n\n".join(CORPUS)
    ids = ours.encode(text)
    assert len(ids) < len(text) / 2
    theirs.save_pretrained(tmp_path)
    for loaded in (theirs, PreTrainedTokenizerFast.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded(text)["input_ids"] == loaded.encode(text) == ids
        assert len(loaded) == ours.get_vocab_size()
        assert loaded.convert_tokens_to_ids(SPECIAL_TOKENS) == [ours.encode_special(name) for name in SPECIAL_TOKENS]
        assert (loaded.bos_token, loaded.eos_token) == ("<|bos|>", "<|assistant_end|>")
        assert loaded.pad_token != loaded.eos_token  # a collator would keep the end of an answer out of the loss
        assert set(loaded.all_special_tokens) == set(SPECIAL_TOKENS)
        assert loaded.chat_template == theirs.chat_template
        chat = [{"role": "user", "content": "x "}]
        assert loaded.apply_chat_template(chat)["input_ids"] == ours.render_conversation({"messages": chat})[0]
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids == ids


def test_typed_special_names(ours, theirs):
    """The difference that the module's docstring states, and its remedy."""
    text = "a<|bos|> <|user_end|>"
    assert theirs("<|bos|>")["input_ids"] == [ours.get_bos_token_id()]
    assert theirs(text)["input_ids"] != ours.encode(text)
    assert theirs(text, split_special_tokens=True)["input_ids"] == ours.encode(text)
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == "a "


# --------------------------------------------------------------------------------------------------- conversations

CONTENT = (st.sampled_from(["", " ", "\n", " \n x \r\n", "12/60"]) | TEXT).map(plain)
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "text", "python", "python_output"]), "text": CONTENT})
ANSWER = CONTENT | st.lists(PART, max_size=6)


@st.composite
def conversations(draw):
    """A conversation that can be rendered; names of special tokens may arise where parts of text meet."""
    messages = [{"role": "system", "content": draw(CONTENT)}] if draw(st.booleans()) else []
    for i in range(draw(st.integers(1, 4))):
        role, content = ("assistant", ANSWER) if i % 2 else ("user", CONTENT)
        messages.append({"role": role, "content": draw(content)})
    return {"messages": messages}


TOOLS = {
    "messages": [
        {"role": "system", "content": " Be brief.\n"},
        {"role": "user", "content": "\n12/60? 🙂 "},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": " That "},
                {"type": "text", "text": "is 🙂"},
                {"type": "python", "text": "12/60"},
                {"type": "python_output", "text": "0.2"},
                {"type": "python_output", "text": "  "},
                {"type": "text", "text": "0.2, "},
                {"type": "python_output", "text": ""},
                {"type": "python", "text": ""},
                {"type": "text", "text": ""},
            ],
        },
        {"role": "user", "content": ""},
        {"role": "assistant", "content": " Welcome 🙂\n"},
    ]
}


@settings(max_examples=250)
@given(conversation=conversations())
@example(TOOLS)
@example({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": []}]})
def test_template_renders_as_we_do(ours, theirs, conversation):
    before = copy.deepcopy(conversation)
    if complaint := refusal(conversation):
        with pytest.raises(TemplateError, match=complaint):
            theirs.apply_chat_template(conversation["messages"])
        return
    result = theirs.apply_chat_template(conversation["messages"], return_assistant_tokens_mask=True)
    ids, mask = ours.render_conversation(conversation, max_tokens=None)
    assert result["input_ids"] == ids
    assert result["assistant_masks"] == mask
    assert theirs.apply_chat_template(conversation["messages"])["input_ids"] == ids  # rendered without the tracker
    assert theirs.apply_chat_template(conversation["messages"], tokenize=False) == ours.decode(ids)
    prompt = theirs.apply_chat_template(conversation["messages"], add_generation_prompt=True)["input_ids"]
    assert prompt == ours.render_for_completion(conversation)
    assert conversation == before


def test_each_place_is_searched_for_special_names(theirs):
    texts = [(message, None) for message in (0, 1, 3, 4)] + [(2, part) for part in range(9)]
    for name in SPECIAL_TOKENS:
        for i, part in texts:
            conversation = copy.deepcopy(TOOLS)
            holder, key = (conversation["messages"][i], "content")
            if part is not None:
                holder, key = holder["content"][part], "text"
            holder[key] += f"x{name}y"
            with pytest.raises(TemplateError, match="contains the text " + name.replace("|", r"\|")):
                theirs.apply_chat_template(conversation["messages"])
    halves = [{"type": "text", "text": "<|bo"}, {"type": "text", "text": "s|>"}]
    messages = [{"role": "user", "content": "<|bos"}, {"role": "assistant", "content": halves}]
    with pytest.raises(TemplateError, match="contains the text"):
        theirs.apply_chat_template(messages)
    halves[1]["text"] = "s>"
    assert theirs.apply_chat_template(messages, tokenize=False).count("<|bo") == 3


USER, ASSISTANT, SYSTEM = ({"role": role, "content": role} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([SYSTEM], "only a system message"),
        ([SYSTEM, SYSTEM, USER], "turn 0"),
        ([SYSTEM, ASSISTANT], "turn 0"),
        ([ASSISTANT], "turn 0"),
        ([USER, USER], "turn 1"),
        ([USER, ASSISTANT, ASSISTANT], "turn 2"),
        ([USER, ASSISTANT, SYSTEM], "turn 2"),
        ([SYSTEM, USER, ASSISTANT, ASSISTANT], "turn 2"),
        ([{"role": "tool", "content": "x"}], "unknown role 'tool'"),
        ([{"role": "user"}], "lacks"),
        ([{"content": "x"}], "lacks"),
        ([{"role": "user", "content": 5}], "string"),
        ([{"role": "system", "content": []}, USER], "string"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "string"),
        ([USER, {"role": "assistant", "content": 5}], "string or a list"),
        ([USER, {"role": "assistant", "content": {"type": "text", "text": "x"}}], "string or a list"),
        ([USER, {"role": "assistant", "content": ["x"]}], "part"),
        ([USER, {"role": "assistant", "content": [{"text": "x"}]}], "part"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "part"),
        ([USER, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}], "part"),
        ([USER, {"role": "assistant", "content": [{"type": "python", "text": 3}]}], "part"),
    ],
)
def test_what_we_refuse_the_template_refuses(ours, theirs, messages, complaint):
    with pytest.raises(UserError, match=complaint):
        ours.render_conversation({"messages": messages})
    with pytest.raises(TemplateError, match=complaint):
        theirs.apply_chat_template(messages)


def test_empty_conversation(theirs):
    with pytest.raises(TemplateError, match="the conversation is empty"):
        theirs.apply_chat_template([[]])  # a batch of one; transformers itself refuses [] before it renders


# ------------------------------------------------------------------------------------------------ what is not exported


def test_our_own_folder_is_not_overwritten(tmp_path):
    tokenizer = with_ranks([b"ab"])
    tokenizer.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="our own format"):
        export_tokenizer(tokenizer, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_special_tokens_that_cannot_be_exported(tmp_path):
    ranks = {bytes([b]): b for b in range(256)}
    names = {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}
    most = {name: id for name, id in names.items() if name != "<|output_end|>"}
    with pytest.raises(UserError, match=r"lacks the special tokens .*: <\|output_end\|>$"):
        export_tokenizer(RustBPETokenizer(ranks, r".|\n", most), tmp_path)
    for more in ({"<|far|>": 300}, {"a": 265}):  # a hole in the ids; the name of the token of a byte
        with pytest.raises(UserError, match="cannot keep its id"):
            export_tokenizer(RustBPETokenizer(ranks, r".|\n", {**names, **more}), tmp_path)
    assert list(tmp_path.iterdir()) == []
    export_tokenizer(RustBPETokenizer(ranks, r".|\n", {**names, "<'é\">": 265}), tmp_path)
    with pytest.raises(TemplateError, match="contains the text <'é"):
        AutoTokenizer.from_pretrained(tmp_path).apply_chat_template([{"role": "user", "content": "<'é\">"}])


@pytest.mark.parametrize("pattern", [r"(?m).+|\n", r"[[:alpha:]]+|.|\n", "[^,]+", r"(?s).+"])
def test_a_pattern_that_tokenizers_reads_in_another_way_is_found_by_trying(pattern):
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256, b"\nab": 257, "ß".encode(): 258, "aß".encode(): 259}
    tokenizer = RustBPETokenizer(ranks, pattern, {})
    with pytest.raises(UserError, match="tokenizers (reads the split pattern in another way|cannot read the split)"):
        tokenizer_json(tokenizer)


def test_tools_are_not_dropped_in_silence(theirs):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(TemplateError, match="tools are not known"):
        theirs.apply_chat_template(messages, tools=[{"type": "function", "function": {"name": "f"}}])
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    with pytest.raises(TemplateError, match="message 1 has tool_calls"):
        theirs.apply_chat_template([*messages, call])


@pytest.mark.parametrize("part", [r"\s++$", "^a", r"\p{N}{1,3}+", "a{2}+", "a{2,}+"])
def test_patterns_that_mean_something_else_there(part, tmp_path):
    """`tokenizers` reads `\\p{N}{1,3}+` as `(?:\\p{N}{1,3})+`: it would take any number of digits."""
    tokenizer = with_ranks([b"ab"], rf"{part}|.|\n")
    with pytest.raises(UserError, match="the split pattern has"):
        export_tokenizer(tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, monkeypatch, capsys):
    tokenizer = with_ranks([b"ab", b"abab"])
    tokenizer.save(tmp_path / "base" / "tokenizer")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    main(Config(out=str(tmp_path / "one")))
    main(Config(out=str(tmp_path / "two"), tokenizer=str(tmp_path / "base" / "tokenizer")))
    assert "267 ids" in capsys.readouterr().out
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "one" / "tokenizer.json").read_bytes())["model"]["merges"][1] == ["ab", "ab"]
    assert AutoTokenizer.from_pretrained(tmp_path / "two").encode("ababab") == tokenizer.encode("ababab")
    command = [sys.executable, "-m", "nanochat.tokenizer_json"]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stderr) == (2, b"error: --out=FOLDER is missing: where should the files go?\n")


# -------------------------------------------------------------------------------------------------- published ranks


def published(pattern: str, size: int = 100_256) -> RustBPETokenizer:
    """A tokenizer of the first `size` tokens of GPT-4's vocabulary, with GPT-4's pattern or another."""
    vectors = Path(TEST_DATA) / "tokenizer_vectors"
    lines = [line.split() for line in (vectors / "cl100k_base.tiktoken").read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines if int(rank) < size}
    if not pattern:
        pattern = json.loads((vectors / "patterns.json").read_bytes())["cl100k_base"]
        pattern = pattern.replace("{1,3}+", "{1,3}").replace("$", r"\z")  # the same to tiktoken, and now to tokenizers
    return RustBPETokenizer(ranks, pattern, {name: size + i for i, name in enumerate(SPECIAL_TOKENS)})


def real_texts() -> list[str]:
    """Every 16th text of tokenizer_text/, in many scripts, and the beginning of a corpus shard."""
    texts = []
    for path in sorted((Path(TEST_DATA) / "tokenizer_text").glob("*.jsonl")):
        lines = path.read_bytes().splitlines()
        assert lines, path
        texts += [json.loads(line)["text"] for line in lines[::16]]
    shard = pq.ParquetFile(sorted((Path(TEST_DATA) / "corpus").glob("*.parquet"))[0])
    return texts + next(shard.iter_batches(batch_size=60, columns=["text"])).column(0).to_pylist()


@pytest.mark.skipif(not TEST_DATA, reason="NANOCHAT_TEST_DATA is not set")
@pytest.mark.parametrize(("pattern", "size"), [("", 100_256), (split_pattern(2), 32_768 - 9)], ids=["gpt-4", "ours"])
def test_published_ranks_on_real_text(pattern, size):
    tokenizer = published(pattern, size)
    loaded = Tokenizer.from_str(tokenizer_json(tokenizer))
    texts = [plain(text) for text in real_texts()]
    theirs = loaded.encode_batch_fast(texts, add_special_tokens=False)
    wrong = [text[:80] for text, ids, made in zip(texts, tokenizer.encode(texts), theirs) if made.ids != ids]
    assert len(texts) > 500
    assert wrong == []
    assert len(merges_of({tokenizer.decode_bytes([i]): i for i in range(size)})) == size - 256  # none is lost


@pytest.mark.skipif(not TEST_DATA, reason="NANOCHAT_TEST_DATA is not set")
def test_published_vectors():
    tokenizer = published("")
    loaded = Tokenizer.from_str(tokenizer_json(tokenizer))
    lines = (Path(TEST_DATA) / "tokenizer_vectors" / "vectors.jsonl").read_bytes().splitlines()
    vectors = [v for v in map(json.loads, lines) if v["encoding"] == "cl100k_base" and "<|" not in v["text"]]
    assert len(vectors) > 40
    for vector in vectors:
        assert loaded.encode(vector["text"]).ids == tokenizer.encode(vector["text"]) == vector["tokens"], vector["text"]
