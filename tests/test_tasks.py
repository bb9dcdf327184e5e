"""tasks/: slicing, mixing, each task's rows and grader, bad files. Real sets from NANOCHAT_TEST_DATA where given.

Sets of the hub: test_task_rows.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat import configurator
from nanochat.common import UserError
from nanochat.tokenizer import HuggingFaceTokenizer
from tasks import catalog, common
from tasks.arc import ARC
from tasks.catalog import TASKS, make_task, parse_mixture
from tasks.common import Task, TaskMixture, TaskSequence, render_mc
from tasks.customjson import CustomJSON, contains_words
from tasks.documents import Documents
from tasks.gsm8k import GSM8K, MARK, answer_parts, final_number
from tasks.mmlu import MMLU
from tasks.rows import load_jsonl
from tasks.smoltalk import SmolTalk, held_out_hashes
from tasks.spellingbee import ALPHABET, SimpleSpelling, SpellingBee, count_trace, is_test_word, load_words, spelled

REAL = os.environ.get("NANOCHAT_TEST_DATA", "")
needs_real = pytest.mark.skipif(not REAL, reason="NANOCHAT_TEST_DATA is not set")
WORDS = "strawberry banana kiwi plum cherry apple peach grape lemon lime mango papaya melon orange fig quince pear"
SHORT_WORDS = [f"{w}{end}" for w in WORDS.split() for end in ("", "s", "y", "ing", "ed", "er", "let", "ness", "ful")]
HELD_OUT = [34, 98, 114, 136, 139, 168]
FIXED_TEST_WORDS = (
    "strawberryed banana bananaer grapelet orangeer orangeness orangeful figy figlet quinces"
).split()


def talk(user: str, assistant, **more) -> dict:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, **more}


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


SPLITS = {"humaneval": ("test",), "gsm8k_new_templates": ("test",)}  # (tests/test_humaneval.py)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A small folder with every part of the layout, train and test."""
    root = tmp_path_factory.mktemp("data")
    mmlu = [{"subject": "s", "question": f"q{i}?", "choices": ["a", "b", "c."], "answer": i % 3} for i in range(9)]
    for split in ("auxiliary_train", "dev", "val", "test"):
        write_jsonl(root / f"mmlu/{split}.jsonl", mmlu)
    arc = [{"id": str(i), "question": f"q{i}?", "choices": {"text": ["x", "y", "z", "w"], "label": list(labels)},
            "answerKey": labels[i % 4]} for i, labels in enumerate(["ABCD", "1234"] * 4)]
    gsm = [{"question": f"{i}+1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(7)]
    chat = [talk(f"hello {i}", f"hi {i}") for i in range(200)]
    for split in ("train", "test"):
        for level in ("easy", "challenge"):
            write_jsonl(root / f"arc/arc_{level}_{split}.jsonl", arc)
        for part in (split, f"rl_{split}", f"{split}_new_templates"):  # (train_new_templates is never read)
            write_jsonl(root / f"gsm8k/{part}.jsonl", gsm)
        for name in ("identity", "world_qa", "calculator", "code"):
            rows = [talk(f"{name} {i}?", f"It is {i}.", answer=[str(i)]) for i in range(5)]
            write_jsonl(root / f"{name}/{split}.jsonl", rows)
    write_jsonl(root / "sft/chat.jsonl", chat)
    write_jsonl(root / "humaneval/HumanEval.jsonl", [
        {"task_id": f"test/{i}", "prompt": f"def f(x):\n    \"\"\" x plus {i}? \"\"\"\n", "entry_point": "f",
         "canonical_solution": f"    return x + {i}\n",
         "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n"}
        for i in range(5)])
    (root / "words").mkdir()
    (root / "words/words_alpha.txt").write_text("\n".join(SHORT_WORDS), encoding="utf-8")
    return str(root)


# --------------------------------------------------------------------------- slicing and mixing


class Numbers(Task):
    def __init__(self, n: int, tag: str = "", **slicing):
        super().__init__(**slicing)
        self.n, self.tag = n, tag

    def num_examples(self):
        return self.n

    def get_example(self, index):
        return talk(f"{self.tag}{index}", "ok")


def numbers(task: Task) -> list[str]:
    return [c["messages"][0]["content"] for c in task]


# trap: slice-bounds
@given(n=st.integers(0, 12), start=st.integers(0, 15), stop=st.none() | st.integers(0, 15), step=st.integers(1, 5))
def test_slices_like_a_list(n, start, stop, step):
    task = Numbers(n, start=start, stop=stop, step=step)
    want = [str(i) for i in list(range(n))[start:stop:step]]
    assert len(task) == len(want)
    assert numbers(task) == want == [task[i]["messages"][0]["content"] for i in range(len(task))]
    with pytest.raises(IndexError):
        task[len(want)]


SLICES = st.fixed_dictionaries({"start": st.integers(0, 9), "stop": st.none() | st.integers(0, 12),
                                "step": st.integers(1, 3)})  # fmt: skip
LEAVES = st.builds(lambda n, tag, slicing: Numbers(n, tag, **slicing), st.integers(0, 9), st.sampled_from("ab"), SLICES)
TREES = st.recursive(LEAVES, lambda tasks: st.builds(
    lambda kind, children, slicing: kind(children, **slicing),
    st.sampled_from([TaskMixture, TaskSequence]), st.lists(tasks, max_size=3), SLICES), max_leaves=6)  # fmt: skip


def check_tree(task: Task) -> list[str]:
    """The rows of a task, which must be those that slicing lists of its parts' rows gives."""
    cut = slice(task.start, task.stop, task.step)
    if isinstance(task, Numbers):
        want = [f"{task.tag}{i}" for i in range(task.n)][cut]
    else:
        parts = [row for part in task.tasks for row in check_tree(part)]
        whole = type(task)(task.tasks)
        assert numbers(whole) == parts if isinstance(task, TaskSequence) else sorted(numbers(whole)) == sorted(parts)
        want = numbers(whole)[cut]
    assert numbers(task) == want and len(task) == len(want)
    assert [task.where(i) for i in range(len(task))] == [f"Numbers {row[1:]}" for row in want]
    for outside in (len(want), -len(want) - 1):
        with pytest.raises(IndexError):
            task[outside]
    return want


# trap: slice-bounds
@given(TREES)
def test_slices_of_mixtures_of_slices(task):
    check_tree(task)


@pytest.mark.parametrize("bad", [{"start": -1}, {"stop": -1}, {"step": 0}])
def test_impossible_slices_are_refused(bad):
    with pytest.raises(UserError):
        Numbers(3, **bad)


def test_mixture_is_a_fixed_permutation_of_all_examples():
    tasks = [Numbers(5, "a"), Numbers(3, "b"), Numbers(3, "b"), Numbers(0, "c")]
    mixed = numbers(TaskMixture(tasks))
    assert sorted(mixed) == sorted([f"a{i}" for i in range(5)] + [f"b{i}" for i in range(3)] * 2)
    assert mixed == numbers(TaskMixture(tasks))
    assert mixed != numbers(TaskMixture(tasks, seed=1))
    assert mixed != numbers(TaskSequence(tasks))
    assert numbers(TaskMixture(tasks, start=2, stop=4)) == mixed[2:4]


def test_sequence_keeps_the_order():
    assert numbers(TaskSequence([Numbers(2, "a"), Numbers(0, "b"), Numbers(2, "c", start=1)])) == ["a0", "a1", "c1"]


# --------------------------------------------------------------------------- every task grades its own gold as right


def gold_text(conversation: dict) -> str:
    content = conversation["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")


def mangled(task: Task, conversation: dict) -> Iterator[str]:
    """Wrong answers of many kinds, most of them close to the gold one."""
    gold = gold_text(conversation)
    yield from ("", " ", "####", "no idea", "€ßй", "\ud800", "q " * 5000)
    if "answer" not in conversation:  # for half of such an answer may be enough
        yield gold[: len(gold) // 2 - 2]
    if task.eval_type == "categorical":
        yield from (letter for letter in "ABCDEFGHIJ" if letter != gold)
        yield from (gold.lower(), f"{gold}.", f"{gold}{gold}", f"({gold})", f"The answer is {gold}", f"{gold}\nB")
    elif "answer" in conversation:
        for answer in conversation["answer"]:  # whole words count: "Fern" is not "Ferns", 12 not 112 or 1.2
            yield answer[:-1] + chr(ord(answer[-1]) + 1)
            yield answer + ("1" if answer[-1].isdigit() else "q")
            yield ("q" if answer[0].isalpha() else "9") + answer
    elif isinstance(task, GSM8K):
        number = final_number(gold)
        for wrong in (number + 1, number - 1, number * 10 + 3, number + Decimal("0.5"), -number if number else 1):
            yield re.sub(r"####.*", f"#### {wrong:f}", gold, flags=re.DOTALL)
            yield f"{gold}\n#### {wrong:f}"
        yield from (gold.replace("####", ""), f"{number:f}", f"#### {number:f}/3", f"#### {number:f}.9.9",
                    f"####\n{number:f}")
    else:
        word, spelling = gold.split(".")[0].split(": ")
        letters = spelling.split(" ")
        yield from (gold.replace(": ", ":", 1), gold.replace(": ", ":  ", 1), f"x{gold}", gold.upper(), word, spelling)
        for i in range(len(letters)):
            for other in (letters[:i] + letters[i + 1 :], [*letters[:i], letters[i], *letters[i:]],
                          [*letters[:i], "é", *letters[i + 1 :]]):  # fmt: skip
                yield gold.replace(f"{word}: {spelling}", f"{word}: {' '.join(other)}")
        if isinstance(task, SpellingBee):
            yield from (gold.replace("####", ""), f"{gold}1", f"{gold}\n#### 99", gold.split("####")[1],
                        gold[:-1] + "77")


def check_grading(task: Task) -> int:
    """All rows of a task: gold is right, none of its mangled forms is; how many answers were graded."""
    answers = 0
    for conversation in task:
        common.check_conversation(conversation)
        gold = gold_text(conversation)
        for right in (gold, f" {gold}\n"):
            assert task.evaluate(conversation, right) is True, right
        for wrong in mangled(task, conversation):
            assert task.evaluate(conversation, wrong) is False, (gold, wrong)
            answers += 1
    return answers


NOT_GRADED_HERE = ("smoltalk", "documents", "code", "humaneval")  # the last in tests/test_humaneval.py


@pytest.mark.parametrize(("name", "split"), [(name, split) for name in TASKS if name not in NOT_GRADED_HERE
                                             for split in SPLITS.get(name, ("train", "test"))])
def test_gold_is_right_and_what_is_mangled_is_wrong(name, split, data):
    task = make_task(name, data, split, stop=20)
    assert len(task) > 0 and task.eval_type in ("categorical", "generative")
    assert check_grading(task) >= 10 * len(task)


@given(st.text(), st.sampled_from(["gsm8k", "mmlu", "spellingbee", "simplespelling", "identity"]))
def test_no_answer_is_too_odd_to_be_graded(data, answer, name):
    task = make_task(name, data, "test", stop=1)
    assert task.evaluate(task[0], answer) in (True, False)


@pytest.mark.parametrize(("name", "kind"), [("smoltalk", "SmolTalk"), ("code", "LessonsJSON")])
def test_training_only_tasks_say_so(data, name, kind):
    task = make_task(name, data, "train")
    assert task.eval_type is None
    with pytest.raises(UserError, match=kind):
        task.evaluate(task[0], "hi")


# --------------------------------------------------------------------------- multiple choice


# trap: letter-space
@pytest.mark.parametrize("choices", [["red", "soup.", "12", "what?", "(so)", " a=b "], ["x", "Y", "é", "…"]])
def test_the_letter_in_the_list_is_the_token_of_the_answer(choices):
    question = render_mc("Which?", choices)
    # a tokenizer that has merged everything it could: were "=A" one piece, it would be one token here
    tokenizer = HuggingFaceTokenizer.train_from_iterator([question, "red=A red= A"] * 50, vocab_size=310)
    assert len(tokenizer.encode("red=A")) < len(tokenizer.encode("red")) + 2  # merging did happen
    ids = tokenizer.encode(question)
    equals = tokenizer.encode(" =")
    for letter in common.LETTERS[: len(choices)]:
        (letter_token,) = tokenizer.encode(letter)
        pairs = [ids[i : i + len(equals) + 1] for i in range(len(ids))]
        assert pairs.count([*equals, letter_token]) == 1


def test_multiple_choice_rows(data):
    for task in (MMLU("all", "test", data=data), ARC("ARC-Easy", "test", data=data)):
        conversation = task[0]
        question, answer = (m["content"] for m in conversation["messages"])
        assert answer in conversation["letters"] and len(answer) == 1
        assert all(f" ={letter}\n" in question for letter in conversation["letters"])
        others = [letter for letter in conversation["letters"] if letter != answer]
        assert not any(task.evaluate(conversation, letter) for letter in [*others, answer.lower(), f"{answer}."])
    assert len(MMLU("auxiliary_train", "train", data=data)) == len(MMLU(split="validation", data=data)) == 9


def test_numbered_choices_are_asked_by_letter(data):
    rows = {r["question"]: r["answerKey"] for r in load_jsonl(Path(data) / "arc/arc_easy_test.jsonl")}
    for conversation in ARC("ARC-Easy", "test", data=data):
        question = conversation["messages"][0]["content"].split("\n")[0].removeprefix("Multiple choice question: ")
        assert conversation["messages"][1]["content"] == dict(zip("ABCD1234", "ABCDABCD"))[rows[question]]


@pytest.mark.parametrize("change, message", [
    ({"answer": 3}, "counted from 0"), ({"answer": "A"}, '"answer"'), ({"choices": ["a"]}, '"choices"'),
    ({"question": None}, '"question"'), ({"answer": True}, '"answer"'), ({"answer": -1}, "counted from 0"),
    ({"choices": [1, 2]}, "strings"),
])  # fmt: skip
def test_bad_mmlu_rows_name_file_and_line(change, message, tmp_path):
    good = {"subject": "s", "question": "q", "choices": ["a", "b", "c"], "answer": 1}
    path = write_jsonl(tmp_path / "mmlu/test.jsonl", [good, {**good, **change}])
    with pytest.raises(UserError, match=message) as error:
        MMLU(data=str(tmp_path))
    assert f"{path}:2:" in str(error.value)


@pytest.mark.parametrize("change, message", [
    ({"answerKey": "E"}, "'E', which must be one of the labels"), ({"answerKey": "B"}, "labels, once"),
    ({"choices": {"text": ["x"], "label": ["A"]}}, "at least 2"), ({"choices": ["x", "y"]}, '"choices" of type dict'),
    ({"choices": {"text": ["x", "y"], "label": ["A"]}}, "same length"), ({"question": 5}, '"question"'),
    ({"choices": {"text": ["x", 5, "z"], "label": ["A", "B", "C"]}}, "strings"), ({"answerKey": None}, '"answerKey"'),
    ({"choices": {"text": ["x"] * 11, "label": list("ABCDEFGHIJK")}}, "2 to 10"),
])  # fmt: skip
def test_bad_arc_rows_name_file_and_line(change, message, tmp_path):
    good = {"question": "q", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "B"]}, "answerKey": "A"}
    path = write_jsonl(tmp_path / "arc/arc_easy_test.jsonl", [good, {**good, **change}])
    with pytest.raises(UserError, match=message) as error:
        ARC(data=str(tmp_path))
    assert str(error.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize("answer, message", [
    ("5", "must end with"), ("#### five", "must end with"), ("<<1+1>>2\n#### 2", "is not <<expression=result>>"),
    ("<<1+1=2>2\n#### 2", "is not <<expression=result>>"), (5, '"answer" of type str'),
])  # fmt: skip
def test_bad_gsm8k_rows_name_file_and_line(answer, message, tmp_path):
    rows = [{"question": "q", "answer": "#### 1"}, {"question": "q", "answer": answer}]
    path = write_jsonl(tmp_path / "gsm8k/test.jsonl", rows)
    with pytest.raises(UserError, match=message) as error:
        GSM8K(data=str(tmp_path))
    assert str(error.value).startswith(f"{path}:2: ")


# --------------------------------------------------------------------------- GSM8K


def test_calculator_marks_become_tool_parts():
    parts = answer_parts("A 12/60 = $<<12/60=0.2>>0.2.\n<<(1+2)*3=9>>9\n#### 9")
    assert [(p["type"], p["text"]) for p in parts] == [
        ("text", "A 12/60 = $"), ("python", "12/60"), ("python_output", "0.2"), ("text", "0.2.\n"),
        ("python", "(1+2)*3"), ("python_output", "9"), ("text", "9\n#### 9"),
    ]  # fmt: skip
    assert [p["text"] for p in answer_parts("<<1+1=2=2>><< 3 = 3 >>")] == ["1+1=2", "2", "3", "3"]
    assert answer_parts("no mark") == [{"type": "text", "text": "no mark"}] and answer_parts("") == []


@pytest.mark.parametrize("text, number", [
    ("#### 18", "18"), ("so\n#### 1,200", "1200"), ("####$1,200.50", "1200.5"), ("#### -3", "-3"), ("#### 5.", "5"),
    ("#### 1 no\n#### 2", "2"), ("#### .5", "0.5"), ("#### 18.00", "18"), ("#### 3\n", "3"), ("#### 7 #### x", "7"),
    ("18", None), ("####", None), ("#### many", None), ("#### 1/2", None), ("#### 12/5", None), ("####\n\n5", None),
    ("", None), ("#### 1.2.3", None),
])  # fmt: skip
def test_final_number(text, number):
    assert final_number(text) == (None if number is None else final_number(f"#### {number}"))
    assert (final_number(text) is None) == (number is None)


def test_commas_do_not_matter_and_the_last_mark_counts(tmp_path):
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [{"question": "q", "answer": "x <<1000+200=1200>>1200\n#### 1,200"}])
    task = GSM8K(data=str(tmp_path))
    for right in ("#### 1200", "#### 1,200", "####1200", "#### 7\n#### 1200"):
        assert task.evaluate(task[0], right)
    for wrong in ("1200", "#### 1201", "#### 12", "#### 1200\n#### 7", "#### -1200"):
        assert not task.evaluate(task[0], wrong)


@pytest.mark.parametrize("text", [
    "####{ }x", "####-{\t}$", "####${ }", "#### 1{,0}/", "#### 1.{0}/", "{#}", "####{ - }", "{<<}", "<<{=}", "<<{=a}>",
    "<<={a}", "{-}", "{1.}", "{1,}",
])  # fmt: skip
def test_no_answer_takes_long_to_grade(text):
    """Where a pattern can match one blank in two ways, this does not come to an end (100 000 characters, cubed)."""
    text = re.sub("{(.+)}", lambda m: m[1] * 100_000, text)
    assert final_number(text) is None and not contains_words(text, "12 13")
    assert "".join(part["text"] for part in answer_parts(text)) == text


# --------------------------------------------------------------------------- spelling


def test_the_trace():
    assert spelled("cab") == "cab: c a b"
    assert count_trace("strawberry", "r") == (
        "strawberry: s t r a w b e r r y. Count r: s0 t0 r1 a1 w1 b1 e1 r2 r3 y3."
    )


# trap: seed-sign
@pytest.mark.parametrize("kind", [SpellingBee, SimpleSpelling])
def test_training_and_test_words_never_meet(kind, data):
    def asked(split: str) -> tuple[set, list]:
        examples = list(kind(400, split, data=data))
        return {gold_text(c).split(":")[0] for c in examples}, [str(c["messages"]) for c in examples]

    (train, train_rows), (test, _) = asked("train"), asked("test")
    assert train and test and not train & test
    assert not any(map(is_test_word, train)) and all(map(is_test_word, test))
    assert train_rows == asked("train")[1]  # the same in every run
    first, second = (kind(400, split, data=data) for split in ("train", "test"))
    assert not {first._random(i).random() for i in range(400)} & {second._random(i).random() for i in range(400)}


def test_test_words_are_fixed_for_good():
    """The split is a property of the word. If this changes, every earlier figure was taken on other words."""
    assert [w for w in SHORT_WORDS if is_test_word(w)] == FIXED_TEST_WORDS


# trap: letter-space
def test_every_letter_has_exactly_one_space_before_it(data):
    for conversation in SpellingBee(200, data=data):
        text, call, output, final = (p["text"] for p in conversation["messages"][1]["content"])
        word, letters = text.split(". Count")[0].split(": ")
        assert letters.split(" ") == list(word) and "  " not in text and text == text.strip()
        letter = call[-3]
        assert call == f"'{word}'.count('{letter}')" and output == str(word.count(letter)) and final == f"#### {output}"


def test_letters_are_mostly_in_the_word_but_not_always(data):
    outputs = [c["messages"][1]["content"][2]["text"] for c in SpellingBee(1000, data=data)]
    assert 0.03 < outputs.count("0") / len(outputs) < 0.2


def test_phrasings_are_many_and_name_word_and_letter(data):
    users = [(c["messages"][0]["content"], c["messages"][1]["content"][1]["text"]) for c in SpellingBee(600, data=data)]
    frames = set()
    for user, call in users:
        word, letter = call.split("'")[1], call[-3]
        assert word in user and letter in ALPHABET and "{" not in user
        frames.add(user.replace(word, "W").replace(f" {letter}", " L"))
    assert len(frames) > 60 and sum(user == user.lower() for user, _ in users) > 100


def test_the_number_alone_is_not_enough(data):
    task = SpellingBee(50, "test", data=data)
    for conversation in task:
        trace, _, count, final = (p["text"] for p in conversation["messages"][1]["content"])
        assert task.evaluate(conversation, f"{trace}{final}") and task.evaluate(conversation, f" {trace}\n{final}\n")
        for wrong in (final, trace, f"{trace}#### {int(count) + 1}", f"{trace[:-1]}{final}", trace[1:] + final,
                      trace.replace(": ", ":  ", 1) + final, f"{trace}{final}\n#### 99"):  # fmt: skip
            assert not task.evaluate(conversation, wrong)


def test_word_lists_keep_plain_words_only(tmp_path):
    (tmp_path / "words").mkdir()
    path = tmp_path / "words/words_alpha.txt"
    path.write_text("A\nab\nDog\nx1y\ncafé\n" + "z" * 40 + "\nplain\n" + "\n".join(SHORT_WORDS), encoding="utf-8")
    words = set(SpellingBee(data=str(tmp_path)).words) | set(SpellingBee(split="test", data=str(tmp_path)).words)
    assert words == {"plain", *SHORT_WORDS}
    with pytest.raises(UserError, match="split"):
        SpellingBee(split="val", data=str(tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"words_alpha\.txt"):
        load_words.cache_clear()
        SpellingBee(data=str(tmp_path))


# --------------------------------------------------------------------------- SmolTalk


def users_of(task: Task) -> list[str]:
    return [c["messages"][0]["content"] for c in task]


def test_hash_split_is_disjoint_and_complete(data):
    train, test = users_of(SmolTalk("train", data=data)), users_of(SmolTalk("test", data=data))
    assert not set(train) & set(test) and len(train) + len(test) == 200 and 1 <= len(test) <= 25


def test_hash_split_goes_by_content_not_by_place(tmp_path):
    rows = [talk(f"hello {i}", "hi") for i in range(100)]
    write_jsonl(tmp_path / "one/sft/a.jsonl", rows)
    write_jsonl(tmp_path / "two/sft/b.jsonl", rows[::-1] + rows)  # everything twice, in another order
    one, two = (set(users_of(SmolTalk("test", data=str(tmp_path / d)))) for d in ("one", "two"))
    assert one == two and one
    assert not one & set(users_of(SmolTalk("train", data=str(tmp_path / "two"))))


def test_the_held_out_conversations_are_fixed_for_good(data):
    """If this changes, those that were trained on are validated on."""
    assert sorted(int(user[6:]) for user in users_of(SmolTalk("test", data=data))) == HELD_OUT


def test_a_few_conversations_are_divided_too(tmp_path):
    for n in range(1, 30):
        rows = [talk(f"hi {i}", "hi") for i in range(n)] * 2
        write_jsonl(tmp_path / f"{n}/sft/a.jsonl", rows)
        train, test = (users_of(SmolTalk(split, data=str(tmp_path / f"{n}"))) for split in ("train", "test"))
        assert len(train) + len(test) == 2 * n and not set(train) & set(test)
        assert train and bool(test) == (n > 1)
        again = write_jsonl(tmp_path / f"{n}/sft/a.jsonl", rows[::-1])  # it stays put
        assert set(users_of(SmolTalk("test", data=str(again.parents[1])))) == set(test)
    # 5% by their hash, of all, of some, of none; of two or more neither side is empty
    for hashes, held_out in [({3}, set()), ({3, 104}, {3}), ({3, 50}, {3}), ({50}, set()), ({50, 170, 80}, {50}),
                             (set(), set())]:  # fmt: skip
        assert held_out_hashes(hashes) == held_out


def test_named_test_files_win(tmp_path):
    for name, text in [("a.jsonl", "a"), ("b_val.jsonl", "b"), ("c_test.jsonl", "c"), ("latest.jsonl", "d")]:
        write_jsonl(tmp_path / "sft" / name, [talk(text, "hi")])
    assert sorted(users_of(SmolTalk("train", data=str(tmp_path)))) == ["a", "d"]
    assert sorted(users_of(SmolTalk("test", data=str(tmp_path)))) == ["b", "c"]


# --------------------------------------------------------------------------- CustomJSON and files


@pytest.mark.parametrize("text, wanted, found", [
    ("I live in Fern Lane 12.", "fern lane", True), ("Mira's cat", "Mira", True), ("Ferns", "fern", False),
    ("It costs 1,200 coins", "1200", True), ("It costs 1200.50", "1200.5", True), ("3.5", "5", False),
    ("3.5", "3", False), ("it is 112", "12", False), ("-7", "7", False), ("-7", "-7", True), ("7", "-7", False),
    ("12-5 is 7", "5", True), ("3-5 years", "5", True), ("blue lake", "lake blue", False), ("", "x", False),
    ("STRASSE", "straße", True), ("a b c", "a c", False), ("x", "", False), ("０.５", "0.5", True), ("7.0", "7", True),
    ("a\u2028b", "a b", True),
])  # fmt: skip
def test_contains_words(text, wanted, found):
    assert contains_words(text, wanted) is found


def test_custom_json_rows(tmp_path):
    rows = [talk("q", "Paris it is", answer=["paris", "Lutetia"]), talk("q", "a")["messages"],
            talk("q", [{"type": "text", "text": "4"}], answer="4")]  # fmt: skip
    path = write_jsonl(tmp_path / "my.jsonl", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n  \n")  # a BOM before, blank lines behind
    task = CustomJSON(path)
    assert len(task) == 3 and task[1]["messages"] == rows[1]
    assert task.evaluate(task[0], "In LUTETIA!") and not task.evaluate(task[0], "In London")
    assert task.evaluate(task[2], "It is 4.") and not task.evaluate(task[2], "It is 44.")
    with pytest.raises(UserError, match=r"my\.jsonl.*answer"):
        task.evaluate(task[1], "a")
    assert len(make_task(str(path), stop=2)) == 2


U, A, S = ({"role": role, "content": "x"} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize("line, message", [
    ("{", "mend or remove"), ('"text"', '"messages"'), ('{"messages": []}', '"messages"'), ("{}", '"messages"'),
    ([A, U], "'assistant' where 'user'"), ([U, U], "'user' where 'assistant'"), ([U], "end with an assistant"),
    ([S], "only a system message"), ([U, A, S], "'system'"), ([U, A, U], "end with"), (["x"], "message 1"),
    ([S, U, A, A], "message 4"), ([U, {"role": "assistant", "content": " "}], "message 2: content is empty"),
    ([U, {"role": "assistant", "content": 5}], "a list of parts, not int"),
    ([{"role": "bot", "content": "x"}, A], "message 1 has the unknown role 'bot'"),
    ([U, {"role": "assistant", "content": [{"type": "code", "text": "x"}]}], "part"),
    ([{"role": "user", "content": [{"type": "text", "text": "x"}]}, A], "string, not list"),
    ({"messages": [U, A], "answer": []}, '"answer"'), ({"messages": [U, A], "answer": ["!"]}, '"answer"'),
    ("[" * 100_000, "mend or remove"), ({"messages": None}, '"messages"'), (None, '"messages"'), (5, '"messages"'),
    ([U, A, {"role": ["user"], "content": "x"}], "message 3 has the unknown role list"), ({"text": "x"}, '"messages"'),
    ([U, {"role": "assistant"}], 'message 2.*"content"'), ([{"role": "a\nb" * 10**6, "content": "x"}], "unknown role"),
    ('[{"role": "user", "content": "a", "content": "b"}]', "'content' stands twice"),
    ("9" * 5000, "limit" if hasattr(sys, "get_int_max_str_digits") else '"messages"'),  # Python 3.10.6 has none yet
    (json.dumps({"messages": [U, A]}).replace("{", '{"messages": [], ', 1), "'messages' stands twice"),
    ("\ufeff" + json.dumps([U, A]), "not JSON: Unexpected UTF-8 BOM"), ("[1, 2", "not JSON: .* at character 7"),
    ([U, {"role": "assistant", "content": []}], "message 2: content is empty"),
    ([U, {"role": "assistant", "content": [[[[]]]]}], "part 1 of message 2"),
])  # fmt: skip
# trap: empty (and system only, one-sided)
def test_bad_custom_rows_name_file_and_line(line, message, tmp_path):
    path = tmp_path / "my.jsonl"
    line = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps([U, A]) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        CustomJSON(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < len(str(path)) + 400


# trap: encoding
def test_files_that_cannot_be_read(tmp_path):
    bad = tmp_path / "latin.jsonl"
    bad.write_bytes(json.dumps([U, A]).encode() + b'\n"caf\xe9"\n')
    for path, message in [(bad, r"latin\.jsonl:2: .*UTF-8"), (tmp_path / "no.jsonl", "missing.*latin")]:
        with pytest.raises(UserError, match=message):
            CustomJSON(path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no rows"):
        CustomJSON(tmp_path / "empty.jsonl")


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path):
    path = tmp_path / "u.jsonl"
    path.write_text(json.dumps([{"role": "user", "content": "a\u2028b"}, A], ensure_ascii=False), encoding="utf-8")
    assert CustomJSON(path)[0]["messages"][0]["content"] == "a\u2028b"


# --------------------------------------------------------------------------- documents


def test_documents_come_from_their_split_and_are_as_many_as_asked_for(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i}.txt").write_text(f"Document number {i}.", encoding="utf-8")
    train, test = Documents(20, "train", data=str(folder)), Documents(10_000, "test", data=str(folder))
    assert len(train) == 20 and 0 < len(test) < 200  # fewer than asked for: all there are
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert [row["text"] for row in Documents(20, "train", data=str(folder))] == [row["text"] for row in train]
    with pytest.raises(UserError, match="no split"):
        Documents(5, "validation", data=str(folder))
    with pytest.raises(UserError, match="size"):
        Documents(0, data=str(folder))


# --------------------------------------------------------------------------- the catalog


def test_every_name_makes_a_task_and_unknown_ones_suggest(data):
    for name in TASKS.keys() - {"documents"}:  # the folder has no corpus
        for split in SPLITS.get(name, ("train", "test")):
            assert len(make_task(name, data, split)) > 0
    assert isinstance(make_task("spelling_bee", data, "test"), SpellingBee)
    with pytest.raises(UserError, match="did you mean gsm8k"):
        make_task("gms8k", data)
    with pytest.raises(UserError, match="missing"):
        make_task("arc_easy", data, "validation")


def test_subsets_of_gsm8k(data):
    """Those of the pocket world are never taken from elsewhere, and what is to be new is not to be trained on."""
    assert {len(GSM8K("rl", split, data=data)) for split in ("train", "test")} == {7}
    for subset, split, source, message in [
        ("new_templates", "train", data, "no train split"), ("new_templates", "train", "hub", "no train split"),
        ("new_templates", "test", "hub", r"not on the hub .*a folder that has gsm8k/test_new_templates.jsonl"),
        ("rl", "train", "fineweb-edu:8", r"not on the hub .*a folder that has gsm8k/rl_train.jsonl"),
        ("socratic", "test", data, "only on the hub"), ("rl", "validation", data, "choose main"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message) as raised:
            GSM8K(subset, split, data=source)
        assert "\n" not in str(raised.value)


def test_mixture_items(data, tmp_path):
    path = write_jsonl(tmp_path / "my.jsonl", [[U, A]] * 3)
    mixture = parse_mixture(["gsm8k*2", "spellingbee:50", "smoltalk:30*2", "mmlu@dev:4", f"{path}:2*3"], data, "train")
    assert len(mixture) == 2 * 7 + 50 + 60 + 4 + 6
    assert [len(t) for t in mixture.tasks] == [7, 7, 50, 30, 30, 4, 2, 2, 2]
    # what was trained on is not what validates
    test = parse_mixture(["mmlu@dev:4", "arc_easy@validation"], data, "test")
    assert [len(t) for t in test.tasks] == [4, 8]  # (there is no ARC validation file here: it was not asked for)
    assert len(parse_mixture([f"{path}:2"], data, "test")) == 0  # nor are a file's own rows
    write_jsonl(tmp_path / "my_test.jsonl", [[U, A]] * 5)
    assert [len(t) for t in parse_mixture([f"{path}", "gsm8k"], data, "test").tasks][:1] == [5]
    for bad in ([], ["gsm8k:0"], ["gsm8k*0"], [""], ["gsm8k*x"], ["nothing"], ["gsm8k:00"], ["gsm8k*00"],
                ["gsm8k*1000"], ["gsm8k*" + "9" * 5000]):  # fmt: skip
        with pytest.raises(UserError):
            parse_mixture(bad, data)


def test_a_fingerprint_is_another_when_the_rows_are(data, tmp_path):
    """All tasks, each of their parts and slices have their own, the same one each time."""
    folder = shutil.copytree(data, tmp_path / "copy")
    (folder / "corpus").mkdir()
    for i in range(100):
        (folder / f"corpus/{i}.txt").write_text(f"Document number {i}.", encoding="utf-8")

    def made() -> dict[str, str]:
        load_words.cache_clear()
        tasks = {f"{name} {split}": make_task(name, str(folder), split)
                 for name in TASKS if name != "world_mc"  # (that one reads ARC's files)
                 for split in SPLITS.get(name, ("train", "test"))}
        tasks |= {"slice": make_task("gsm8k", str(folder), "train", stop=3),
                  "other slice": make_task("gsm8k", str(folder), "train", start=3),
                  "more words": make_task("spellingbee", str(folder), "train", size=7),
                  "more texts": make_task("documents", str(folder), "train", size=7),
                  "words as numbers": Numbers(5), "other numbers": Numbers(6)}
        mixed = [tasks["gsm8k train"], tasks["slice"]]
        tasks |= {"mixture": TaskMixture(mixed), "seed": TaskMixture(mixed, seed=1), "order": TaskMixture(mixed[::-1]),
                  "sequence": TaskSequence(mixed), "cut": TaskMixture(mixed, stop=2)}  # fmt: skip
        return {name: task.fingerprint() for name, task in tasks.items()}

    for split in ("train", "test"):  # the fixture gives both splits the same files
        for path in folder.glob(f"*/*{split}.jsonl"):
            path.write_text(path.read_text(encoding="utf-8").replace("?", f" ({path.name} {split})?"), encoding="utf-8")
    before = made()
    assert made() == before and len(set(before.values())) == len(before)
    path = folder / "gsm8k/train.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("6+1 ", "6 + 1 "), encoding="utf-8")
    (folder / "words/words_alpha.txt").write_text("\n".join(SHORT_WORDS[1:]), encoding="utf-8")
    changed = {name for name, fingerprint in made().items() if fingerprint != before[name]}
    assert changed == {"gsm8k train", "slice", "other slice", "mixture", "seed", "order", "sequence", "cut",
                       "spellingbee train", "simplespelling train", "more words"}  # "strawberry" is a training word


def test_the_catalog_shows_tasks_and_checks_files(data, tmp_path, capsys):
    def shown(*argv: str) -> list[str]:
        catalog.main(configurator.parse(catalog.Config, argv, "catalog"))
        return capsys.readouterr().out.splitlines()

    assert shown() == list(TASKS)
    own = write_jsonl(tmp_path / "my.jsonl", [talk("\ud83d?", "Hi!"), [U, A]])
    said = shown(str(own), "gsm8k", "--data", data, "--split=test")
    assert said[:3] == [f"{own}: 2 rows (generative)", "  user: \\ud83d?", "  assistant: Hi!"]
    assert said[3] == "gsm8k: 7 rows (generative)"
    for argv, message in [(["gms8k"], "did you mean gsm8k"),
                          (["--dta=x"], "did you mean .data."), ([f"{own}l"], "task"),
                          (["gsm8k", "--split=x"], "choose"), ([str(own.parent / "no.jsonl")], "missing")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            shown(*argv)


def test_first_rows_are_a_fair_sample(tmp_path):
    rows = [{"subject": f"{i // 50}", "question": "q", "choices": ["a", "b"], "answer": 0} for i in range(500)]
    write_jsonl(tmp_path / "mmlu/test.jsonl", rows)  # sorted by subject, as the real file is
    assert len({c["subject"] for c in MMLU(data=str(tmp_path), stop=50)}) >= 8


# --------------------------------------------------------------------------- the pocket world


def test_the_pocket_corpus_writes_as_the_tasks_do():
    """The generator stands floors below and cannot import the tasks, so the shared forms are compared here."""
    from nanochat.pocket import binding, words

    for word, letter in (("strawberry", "r"), ("cabb", "b"), ("plum", "z")):
        assert words.count_trace(word, letter) == count_trace(word, letter)
    assert all(words.is_test_word(w) == is_test_word(w) for w in SHORT_WORDS)
    assert binding.as_question("Which?", ["cup", "river"], 1) == render_mc("Which?", ["cup", "river"]) + "\nB"


@pytest.mark.parametrize("name", [name for name in TASKS if name not in SPLITS])
def test_every_task_runs_on_the_pocket_world(name, pocket_base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(pocket_base))
    train, test = make_task(name, "pocket", "train"), make_task(name, "pocket", "test")
    assert len(train) >= 900 and len(test) >= 200
    if name == "documents":
        assert not {c["text"] for c in train} & {c["text"] for c in test}
        return
    asked = {c["messages"][0]["content"] for c in train}
    overlap = sum(c["messages"][0]["content"] in asked for c in test)
    assert overlap == 0 or name == "smoltalk", overlap  # small talk has few greetings
    if test.eval_type:
        assert check_grading(test) >= 10 * len(test)


# --------------------------------------------------------------------------- the real sets


@needs_real
@pytest.mark.parametrize("name, split, n", [
    ("gsm8k", "train", 7473), ("gsm8k", "test", 1319), ("mmlu", "dev", 285), ("mmlu", "val", 1531),
    ("mmlu", "test", 14_042), ("arc_easy", "test", 2376), ("arc_easy", "validation", 570),
    ("arc_challenge", "test", 1172), ("arc_challenge", "validation", 299), ("spellingbee", "test", 1000),
    ("simplespelling", "train", 1000), ("documents", "test", 100),
])  # fmt: skip
def test_real_sets_grade_their_own_gold(name, split, n):
    size = {"size": n} if name == "documents" else {}
    task = make_task(name, REAL, split, **size)
    assert len(task) == n
    if task.eval_type:
        assert check_grading(task) > 10 * n


@needs_real
@pytest.mark.parametrize("split, n", [("train", 7473), ("test", 1319)])
def test_real_calculator_marks_all_become_tool_parts(split, n):
    rows = load_jsonl(Path(REAL) / f"gsm8k/{split}.jsonl")
    assert len(rows) == n
    for row in rows:
        parts = answer_parts(row["answer"])
        kinds = [part["type"] for part in parts]
        assert kinds.count("python") == kinds.count("python_output") == row["answer"].count("<<")
        written = {"text": "{}", "python": "<<{}", "python_output": "={}>>"}
        whole = "".join(written[part["type"]].format(part["text"]) for part in parts)
        assert whole == MARK.sub(lambda mark: f"<<{mark[1].strip()}={mark[2].strip()}>>", row["answer"])
        spoken = "".join(part["text"] for part in parts if part["type"] == "text")
        assert spoken == re.sub("<<[^<>]*>>", "", row["answer"]) and final_number(spoken) is not None


@needs_real
def test_real_conversations_split():
    train, test = SmolTalk("train", data=REAL), SmolTalk("test", data=REAL)
    assert len(test) == 953 and len(train) > 16_000  # oasst1_val.jsonl is the held-out file


@needs_real
def test_real_words_split():
    task = SpellingBee(split="test", data=REAL)
    assert 0.09 < len(task.words) / (len(task.words) + len(SpellingBee(data=REAL).words)) < 0.11
