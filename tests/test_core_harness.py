"""CORE and bits per byte against EleutherAI's lm-evaluation-harness, and through the command line in real processes.

One small random model is exported; the harness loads the export as it loads any model of `transformers` and asks it
tasks of its own making (YAML files) with our prompts. Compared is what it notes of each example. Then `base_eval` has
to find the same with our checkpoint, on two ranks, and with the export.

Run: NANOCHAT_TEST_DATA=FOLDER python -m pytest tests/test_core_harness.py -s     (FOLDER has the bundle as core/)
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanochat.checkpoint_manager import model_config_dict, save_checkpoint
from nanochat.common import UserError
from nanochat.core_eval import CoreResult, make_questions, render_prompts, score
from nanochat.export import export_model
from nanochat.gpt import GPT
from nanochat.hf_model import load_hf
from nanochat.loss_eval import evaluate_loss
from nanochat.report import Report
from nanochat.task_eval import spread
from nanochat.tokenizer import RustBPETokenizer, pick_tokenizer_class
from scripts import base_eval
from tasks.core_bundle import CoreTask, load_bundle
from tests.core_trials import KINDS, random_task, write_bundle
from tests.helpers import TEXT, small_model

ROOT = Path(__file__).resolve().parents[1]
DATA = os.environ.get("NANOCHAT_TEST_DATA", "")
CONTEXT = 1024
REAL = {"copa", "openbook_qa", "hellaswag_zeroshot", "arc_easy", "commonsense_qa", "winograd", "winogrande", "jeopardy",
        "lambada_openai", "bigbench_operators"}  # those whose prompts, with all their shots, fit the context
EXAMPLES = 10  # a task
NEAR = 1e-4  # nats: so close are our sums and theirs, and choices that are closer may be either's choice

# A task for the harness. The context that it is given holds the examples before the question: it would draw others.
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}
test_split: test
num_fewshot: 0
"""
OF_KIND = {
    "multiple_choice": """
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: gold
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "schema": """
output_type: multiple_choice
doc_to_text: gold
doc_to_choice: contexts
doc_to_target: continuation
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "language_modeling": """
output_type: loglikelihood
doc_to_text: context
doc_to_target: continuation
metric_list: [{metric: acc}, {metric: perplexity}]
""",
    "documents": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: bits_per_byte}]
""",
}

# `HFLM` imports accelerate, which would bring torch among the locked packages, and which it needs on several devices
# only. Its place is held by names that must not be used. transformers must have looked for it before.
RUN_HARNESS = """
import json, pathlib, sys, types
from transformers import AutoModelForCausalLM
export, folder, names = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3].split(",")
model = AutoModelForCausalLM.from_pretrained(export, dtype="float32")
try:
    import accelerate
except ImportError:
    for name in ("accelerate", "accelerate.utils"):
        sys.modules[name] = types.ModuleType(name)
        for used in ("Accelerator", "InitProcessGroupKwargs", "find_executable_batch_size", "get_max_memory"):
            setattr(sys.modules[name], used, None)
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
tasks = TaskManager(include_path=str(folder), include_defaults=False)
found = {"samples": {}, "results": {}}
# with <|bos|> before what is tokenized; documents get it in another way (a window's first token is predicted from it)
for bos, asked in ((True, [n for n in names if n != "documents"]), (False, ["documents"])):
    lm = HFLM(model, tokenizer=export, device="cpu", batch_size=8, add_bos_token=bos)
    made = simple_evaluate(lm, tasks=asked, task_manager=tasks, log_samples=True, bootstrap_iters=0)
    for key in found:
        found[key] |= made[key]
(folder / "found.json").write_text(json.dumps(found, default=str), encoding="utf-8")
# and, since all is imported now, what `python -m scripts.base_eval ARGUMENTS` does
from nanochat import configurator
from scripts import base_eval
sys.argv = ["base_eval.py", f"--hf_path={export}", *sys.argv[4:]]
configurator.main(base_eval.main, base_eval.Config, distributed=True)
"""


def real_tasks(folder: Path) -> list[CoreTask]:
    """Some tasks of the bundle in NANOCHAT_TEST_DATA."""
    core = Path(DATA).resolve() / "core"
    listed = json.loads((core / "tasks.json").read_text(encoding="utf-8"))["tasks"]
    folder.mkdir()
    (folder / "eval_data").symlink_to(core / "eval_data")
    chosen = {"tasks": [entry for entry in listed if entry["label"] in REAL]}
    (folder / "tasks.json").write_text(json.dumps(chosen), encoding="utf-8")
    return load_bundle(core=str(folder))


def likeliest_task(model: GPT, tokenizer: RustBPETokenizer) -> CoreTask:
    """Texts whose right word is what the model thinks likeliest, and as many where it is not."""
    rng, rows = random.Random(5), []
    while len(rows) < EXAMPLES:
        context = " ".join(rng.choices(" ".join(TEXT[:3]).split(), k=4))
        ids = tokenizer.encode(context, prepend="<|bos|>")
        word = tokenizer.decode([int(model(torch.tensor([ids]))[0, -1].argmax())])
        if len(word) > 1 and word == f" {word.strip()}":
            rows.append({"context": context, "continuation": word if len(rows) % 2 else " 麟"})
    return CoreTask("likeliest", "language_modeling", 0, " ", 0.0, rows)


def own_tasks() -> list[CoreTask]:
    """Two of each kind, so that nobody needs the data. Without empty choices, which the harness trips over, and without
    a typed "<|bos|>", which it has made a special token."""
    made = []
    for i in range(6):
        task = random_task(random.Random(i), KINDS[i % 3], rows=EXAMPLES, least=1)
        rows = json.loads(json.dumps(task.rows).replace("<|bos|>", "bos"))
        made.append(CoreTask(f"own_{i}_{task.kind}", task.kind, i // 2, (" ", "\nAnswer: ")[i // 3], 0.25, rows))
    return made


def awkward_tasks() -> list[CoreTask]:
    """Fewer questions than ranks, more examples wanted than there are, empty texts, typed special tokens."""
    typed = random_task(random.Random(9), "multiple_choice", rows=5)
    return [CoreTask("one_row", "multiple_choice", 10, " ", 0.25, typed.rows[:1]),
            CoreTask("typed", "multiple_choice", 1, " ", 0.25, typed.rows)]


def for_harness(task: CoreTask, folder: Path) -> list[int]:
    """Write a task's YAML and its documents with our prompts. Which rows they are."""
    asked, lines = spread(len(task.rows), EXAMPLES), []
    for index in asked:
        prompts = render_prompts(task, index)
        if task.kind == "language_modeling":
            lines.append(prompts[0]._asdict())
            continue
        line = {"gold": task.rows[index]["gold"]}
        if task.kind == "multiple_choice":
            line |= {"context": prompts[0].context, "choices": [p.continuation.removeprefix(" ") for p in prompts]}
        else:
            line |= {"contexts": [p.context for p in prompts]}
            line |= {"continuation": prompts[0].continuation.removeprefix(" ")}
        lines.append(line)
    write_task(task.label, task.kind, lines, folder)
    return asked


def write_task(name: str, kind: str, lines: list[dict], folder: Path) -> None:
    (folder / f"{name}.yaml").write_text(YAML.format(name=name, folder=folder) + OF_KIND[kind], encoding="utf-8")
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def python(*command: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env={**os.environ, **environment},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


def output_of(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-5000:]
    return output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tasks, a model as checkpoint and as export, what the harness found: `made.samples["copa"][0]["resps"]`."""
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("harness")
    tasks = own_tasks() + (real_tasks(base / "core") if DATA else [])
    texts = [prompt.context for task in tasks for i in spread(len(task.rows), EXAMPLES)
             for prompt in render_prompts(task, i)]
    tokenizer = pick_tokenizer_class().train_from_iterator(iter(texts + TEXT), 2048 if DATA else 380)
    model = small_model(tokenizer, sequence_len=CONTEXT).eval()
    tasks.append(likeliest_task(model, tokenizer))
    asked = {task.label: for_harness(task, folder) for task in tasks}
    documents = [*TEXT[:3], "naïve 日本 🙂\n\n", "x", *(json.dumps(task.rows[0]) for task in tasks)]
    write_task("documents", "documents", [{"text": text} for text in documents], folder)
    meta = {"config": {"data": "pocket"}, "model_config": model_config_dict(model)}
    save_checkpoint(base / "base_checkpoints" / "d2", 7, model.state_dict(), None, meta, tokenizer=tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        export_model(base / "export", "base")
    names = ",".join([*asked, "documents"])
    bundle = write_bundle(base / "own", own_tasks() + awkward_tasks())
    how = [f"--core={bundle}", "--batch_tokens=700", "--device_type=cpu", "--dtype=float32"]
    output_of(python("-c", RUN_HARNESS, base / "export", folder, names, *how, HF_DATASETS_OFFLINE="1",
                     HF_HOME=str(folder / "hf"), NANOCHAT_BASE_DIR=str(base)))
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return SimpleNamespace(base=base, how=how, tasks=tasks, asked=asked, documents=documents, model=model,
                           tokenizer=tokenizer, **found)


def argmax(values: list[float]) -> tuple[int, bool]:
    """Which is the first of the highest, and whether another one is so near that rounding may decide."""
    best = max(range(len(values)), key=lambda i: (values[i], -i))
    return best, any(abs(values[best] - other) < NEAR for i, other in enumerate(values) if i != best)


def test_the_harness_finds_our_sums_and_predictions(made, capsys):
    """Log-likelihoods within 1e-4; from ours, what it calls acc (the highest sum) and acc_norm (the highest sum a
    character of the choice, a schema's choice being its context); whether each token of an answer is the likeliest."""
    worst, near, compared, greedy = 0.0, 0, 0, 0
    for task in made.tasks:
        asked = made.asked[task.label]
        questions = make_questions([render_prompts(task, i) for i in asked], made.tokenizer, CONTEXT)
        assert not any(q.cropped for q in questions), task.label
        samples = sorted(made.samples[task.label], key=lambda sample: sample["doc_id"])
        for scores, sample in zip(score(made.model, questions), samples, strict=True):
            theirs = [(float(one[0][0]), one[0][1] in (True, "True")) for one in sample["resps"]]
            sums = [-s.nats for s in scores]
            worst = max(worst, *(abs(a - b) for a, (b, _) in zip(sums, theirs, strict=True)))
            assert [s.greedy for s in scores] == [likeliest for _, likeliest in theirs]
            compared += len(scores)
            if task.kind == "language_modeling":
                greedy += scores[0].greedy
                assert sample["acc"] == scores[0].greedy
                continue
            doc = sample["doc"]
            lengths = [len(text) for text in doc["choices" if task.kind == "multiple_choice" else "contexts"]]
            per_character = [x / n for x, n in zip(sums, lengths, strict=True)]
            for name, values in (("acc", sums), ("acc_norm", per_character)):
                choice, tie = argmax(values)
                near += tie
                assert tie or sample[name] == (choice == doc["gold"]), (task.label, sample["doc_id"], name)
    with capsys.disabled():
        print(f"\n  {compared} log-likelihoods of {len(made.tasks)} tasks, at most {worst:.1e} apart; {near} near-ties")
    assert worst < NEAR and compared > 150
    assert near <= compared / 100 and greedy >= EXAMPLES / 2


def test_the_harness_finds_our_bits_per_byte(made):
    """Of documents shorter than the context: longer ones are cut into windows, which everybody does in another way."""
    ids = [made.tokenizer.encode(text, prepend="<|bos|>") for text in made.documents]
    assert max(map(len, ids)) <= CONTEXT
    batches = [(torch.tensor([row[:-1]]), torch.tensor([row[1:]])) for row in ids]
    samples = sorted(made.samples["documents"], key=lambda sample: sample["doc_id"])
    for text, batch, sample in zip(made.documents, batches, samples, strict=True):
        one = evaluate_loss(made.model, [batch], made.tokenizer.token_bytes())
        assert one.bytes == len(text.encode("utf-8"))
        assert -float(sample["resps"][0][0]) == pytest.approx(one.nats, rel=1e-6)
    ours = evaluate_loss(made.model, batches, made.tokenizer.token_bytes())
    assert float(made.results["documents"]["bits_per_byte,none"]) == pytest.approx(ours.bpb, rel=1e-6)


def test_base_eval_finds_the_same_on_two_ranks_and_with_the_export(made, monkeypatch):
    """The CSV files are equal to the byte: of one process, of two ranks (with more ranks than questions, too), of
    `--hf_path`. The report has each under its own name."""
    results, name = made.base / "base_eval", "base_d2_000007.csv"
    [of_export] = results.iterdir()
    table = of_export.read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + len(own_tasks() + awkward_tasks()) and "nan" not in table
    said = output_of(python("-m", "nanochat.launch", 2, "scripts.base_eval", *made.how,
                            NANOCHAT_BASE_DIR=str(made.base)))
    assert said.count("one_row: ") == 1  # one rank speaks
    assert (results / name).read_text(encoding="utf-8") == table
    (results / name).unlink()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(made.base))
    base_eval.main(base_eval.Config(core=str(made.base / "own"), device_type="cpu", dtype="float32"))
    assert (results / name).read_text(encoding="utf-8") == table
    logged = [json.loads((made.base / "report" / f"{stage}.json").read_text(encoding="utf-8"))
              for stage in ("base_eval", f"base_eval_{of_export.stem}")]
    assert logged[0]["core"] == logged[1]["core"] and logged[0]["metrics"] == logged[1]["metrics"]


def changed(text: str, replacement: str) -> Callable[[Path], object]:
    """What replaces a part of an export's config.json."""
    return lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text(encoding="utf-8").replace(text, replacement), encoding="utf-8")


def without_its_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


OWN_CODE = '"auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}, "model_type": "mine"'


@pytest.mark.parametrize(("harm", "words"), [
    (without_its_head, "weights lack lm_head.weight"),  # transformers would make it up
    (changed('"model_type": "nanochat"', OWN_CODE), "contains custom code"),
    (changed('"hidden_size": 32', '"hidden_size": 64'), "mismatched"), (changed("{", "["), "not a valid JSON"),
    (lambda folder: os.truncate(folder / "model.safetensors", 1000), "header"),
    (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}", encoding="utf-8"), "cannot be loaded"),
], ids=lambda value: value[:20] if isinstance(value, str) else "")
def test_a_model_that_cannot_be_loaded_rightly_is_one_line(made, tmp_path, monkeypatch, harm, words):
    """Nobody is asked whether its code may run, and none runs."""
    folder = shutil.copytree(made.base / "export", tmp_path / "model")
    (folder / "code.py").write_text("raise SystemExit('the code of the model has run')", encoding="utf-8")
    harm(folder)
    monkeypatch.setattr("builtins.input", lambda question: "y")
    with pytest.raises(UserError, match=words) as e:
        load_hf(str(folder), torch.device("cpu"), torch.float32)
    assert "\n" not in str(e.value) and str(e.value).startswith(f"--hf_path={folder}")


@pytest.mark.parametrize(("of", "name"), [
    ({"source": "sft", "model_tag": "d4", "step": 1300}, "sft_d4_001300"), ({"hf_path": "../my model/"}, "my_model"),
    ({"hf_path": "openai-community/gpt2"}, "openai-community_gpt2"), ({"hf_path": ".."}, "model"),
    ({"hf_path": "/deep" * 200}, "_deep" * 20),
])
def test_every_model_has_a_name_for_its_file(of, name):
    assert base_eval.model_name(of) == name


@pytest.mark.parametrize(("label", "core", "data", "source"), [
    ("arc_easy", "", "FOLDER", "FOLDER"), ("arc_easy", "b.zip", "FOLDER", "b.zip"),
    ("pocket_sums", "", "pocket", "pocket"), ("pocket_sums", "/base/pocket_data/core", "FOLDER", "pocket"),
])
def test_figures_of_the_pocket_bundle_have_its_label_wherever_it_lies(label, core, data, source):
    task = CoreTask(label, "language_modeling", 0, " ", 0.0, [])
    assert base_eval.source_of([task], base_eval.Config(core=core, data=data)) == source


def test_in_a_report_no_task_of_core_has_the_name_of_one_of_chat_eval(tmp_path):
    """CORE's bundle has an arc_easy and an arc_challenge of its own: few-shot, by the loss of whole answers."""
    report, of_core = Report(tmp_path), CoreResult("arc_easy", 0.25, 0.25, [True])
    report.log("base_eval", {"core": 0.5, "metrics": base_eval.metrics_of([of_core])})
    report.log("chat_eval_base", {"metrics": {"arc_easy": {"accuracy": 0.0, "n": 8}}})
    found = report.generate()["metrics"]["base"]
    assert {name: metric["n"] for name, metric in found.items()} == {"CORE arc_easy": 1, "arc_easy": 8}
