"""An export is a model folder like any other: a process without this package loads it and computes the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stock_models import stock_causal
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import load_config
from transpooler.trainer.evaluation.summarizer import load
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.export_code import write_code
from transpooler.trainer.weights.models import build_model

STRANGER = """
import sys, torch
from transformers import (
    AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoModelForTextEncoding, AutoTokenizer
)
folder, given, answer = sys.argv[1:]
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).d_model == 32
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
batch = torch.load(given)
with torch.no_grad():
    logits = model(**batch).logits
    ids = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"])
    encoder = AutoModelForTextEncoding.from_pretrained(folder, trust_remote_code=True).eval()
    vectors = encoder(batch["input_ids"], batch["attention_mask"]).document_embedding()
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, num_labels=5).eval()
    assert torch.equal(classifier(batch["input_ids"], batch["attention_mask"]).logits, classifier.classifier(vectors))
AutoTokenizer.from_pretrained(folder).batch_decode(ids, skip_special_tokens=True)
assert "trainer" not in sys.modules and "model" not in sys.modules
torch.save({"logits": logits, "ids": ids, "vectors": vectors}, answer)
"""


def test_a_stranger_loads_the_export(tiny_settings, tmp_path, monkeypatch):
    run = tmp_path / "run"
    more = [f"run={run}", "generation.num_beams=3", "generation.max_new_tokens=7", "generation.no_repeat_ngram_size=2"]
    config = load_config([], [*tiny_settings, *more])
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    model = build_model(config, tokenizer).eval()
    run.mkdir()
    rows = [
        {"step": 5, "split": "train", "loss": 4.0, "source_tokens": 900, "target_tokens": 80, "epoch": 1},
        {"step": 5, "split": "validation", "loss": 4.5, "num_target_tokens": 40, "rouge1": 0.25},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    export_model(model, tokenizer, tmp_path / "export", config, step=5)
    ids = torch.randint(6, len(tokenizer), (2, 60), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(60) < torch.tensor([[60], [33]])).long()
    torch.save({"input_ids": ids, "attention_mask": mask, "labels": ids[:, :9]}, tmp_path / "given.pt")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [
        sys.executable,
        "-P",
        "-c",
        STRANGER,
        *map(str, (tmp_path / "export", tmp_path / "given.pt", tmp_path / "answer.pt")),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = torch.load(tmp_path / "answer.pt")
    with torch.no_grad():
        torch.testing.assert_close(
            answer["logits"], model(input_ids=ids, attention_mask=mask, labels=ids[:, :9]).logits, atol=1e-5, rtol=1e-5
        )
        assert torch.equal(answer["ids"], model.generate(ids, attention_mask=mask))
        vectors = model.get_encoder()(ids, mask).document_embedding()
        torch.testing.assert_close(answer["vectors"], vectors, atol=1e-5, rtol=1e-5)
    assert answer["ids"].shape[1] <= 8
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    for text in (
        "900 source and 80 target tokens",
        "Training loss 4.000",
        "loss 4.500, rouge1 25.0 (rouge-score)",
        "adamw",
    ):
        assert text in card
    generation = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert (generation["num_beams"], generation["max_new_tokens"], generation["no_repeat_ngram_size"]) == (3, 7, 2)


def test_the_code_imports_nothing_of_ours(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    write_code(tmp_path)
    named = {name.partition(".")[0] for name in json.loads((tmp_path / "config.json").read_text())["auto_map"].values()}
    assert named <= {path.stem for path in tmp_path.glob("*.py")}
    for path in tmp_path.glob("*.py"):
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        assert not [line for line in lines if line.startswith(("from transpooler", "import transpooler"))], path.name


SUMMARIZER = """
import json, sys
from transformers import AutoModelForSeq2SeqLM
folder, given, answer = sys.argv[1:]
assert "transpooler" not in sys.modules
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
texts = json.load(open(given))
found = model.summarize(texts, keep=4, batch_size=2, max_new_tokens=9, progress=False)
found += model.summarize(texts[0], keep=8, sources=False, num_beams=2, max_new_tokens=9)
json.dump(found, open(answer, "w"))
"""


def test_an_export_summarizes_by_its_own_code_as_we_do(tiny_settings, tmp_path, monkeypatch):
    config = load_config([], [*tiny_settings, "model.pooling=[{after_layer: 2, length: [4, 8]}]"])
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    export_model(build_model(config, tokenizer).eval(), tokenizer, tmp_path / "export", config, step=5)
    texts = ["One word. Two words! And a third sentence? " * 3, "Short one.", "A line\\nand another line\\n" * 4]
    (tmp_path / "given.json").write_text(json.dumps(texts))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    paths = [tmp_path / name for name in ("export", "given.json", "answer.json")]
    command = [sys.executable, "-P", "-c", SUMMARIZER, *map(str, paths)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads((tmp_path / "answer.json").read_text())
    ours = load(tmp_path / "export").summarize(texts, keep=4, batch_size=2, max_new_tokens=9)
    ours += load(tmp_path / "export").summarize(texts[0], keep=8, sources=False, num_beams=2, max_new_tokens=9)
    assert len(answer) == 4
    for theirs, summary in zip(answer, ours, strict=True):
        wanted = summary.as_dict()
        del wanted["num_source_tokens"]
        for sentence in wanted.get("sentences", ()):
            for source in sentence["sources"]:
                source["weight"] = pytest.approx(source["weight"], abs=2e-3)
        assert theirs == wanted
    assert any(sentence["sources"] for sentence in answer[0]["sentences"])


FINE_TUNER = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Seq2SeqTrainer, Seq2SeqTrainingArguments
folder, out = sys.argv[1:]
load = lambda: AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
load().save_pretrained(f"{out}/again")
rows = [{"input_ids": torch.arange(6, 30), "labels": torch.tensor([7, 8, 9, 2])}] * 4
collate = lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
def train(model, name):
    settings = Seq2SeqTrainingArguments(f"{out}/{name}", max_steps=3, save_steps=3, report_to=[], use_cpu=True)
    trainer = Seq2SeqTrainer(model, settings, train_dataset=rows, data_collator=collate)
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))
train(load(), "trained")
adapted = get_peft_model(load(), LoraConfig(target_modules="all-linear", r=2, task_type="SEQ_2_SEQ_LM"))
assert any("scorer.lora_A" in name for name, _ in adapted.named_parameters())
train(adapted, "adapted")
adapted.merge_and_unload().save_pretrained(f"{out}/merged")
"""
READER = """
import sys, torch
from transformers import AutoModelForSeq2SeqLM
*folders, given, answer = sys.argv[1:]
ids = torch.load(given)["input_ids"]
models = [AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval() for folder in folders]
torch.save([model.generate(ids, max_new_tokens=6, num_beams=2) for model in models], answer)
"""


def test_an_export_that_is_trained_and_saved_again_carries_its_code(tiny_settings, tmp_path, monkeypatch):
    config = load_config([], tiny_settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    model = build_model(config, tokenizer).eval()
    export_model(model, tokenizer, tmp_path / "export", config, step=5)
    ids = torch.randint(6, len(tokenizer), (2, 60), generator=torch.Generator().manual_seed(1))
    torch.save({"input_ids": ids}, tmp_path / "given.pt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(home: str, program: str, *arguments: Path) -> None:
        monkeypatch.setenv("HF_HOME", str(tmp_path / home))  # each process begins without what another one cached
        command = [sys.executable, "-P", "-c", program, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]

    run("first", FINE_TUNER, tmp_path / "export", tmp_path)
    saved = [tmp_path / "again", tmp_path / "trained" / "checkpoint-3", tmp_path / "merged"]
    run("second", READER, *saved, tmp_path / "given.pt", tmp_path / "answer.pt")
    again, *others = torch.load(tmp_path / "answer.pt")
    assert torch.equal(again, model.generate(ids, max_new_tokens=6, num_beams=2))
    assert all(len(each) == 2 for each in others)


READER_OF_SLOTS = """
import sys, torch
from transformers import AutoModel, AutoModelForCausalLM
folder, given, answer = sys.argv[1:]
encoder = AutoModel.from_pretrained(f"{folder}/encoder", trust_remote_code=True).eval()
reader = AutoModelForCausalLM.from_pretrained(f"{folder}/reader").eval()
with torch.no_grad():
    slots = encoder(**torch.load(given))
    read = {"inputs_embeds": slots.last_hidden_state, "attention_mask": slots.attention_mask}
    logits = reader(**read).logits
assert type(reader).__module__.startswith("transformers."), type(reader)
torch.save({"slots": slots.last_hidden_state, "logits": logits}, answer)
encoder.save_pretrained(f"{folder}/again")  # carries the code along
AutoModel.from_pretrained(f"{folder}/again", trust_remote_code=True)
"""


def test_a_stranger_loads_both_parts_of_a_compressor(shards, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(shards / "tokenizer")
    stock_causal(tokenizer, tmp_path / "llama")
    pooling = "model.pooling=[{after_layer: 1, ratio: 0.5}, {after_layer: 2, length: 8}]"
    config = load_config([], [f"train.init_from={tmp_path / 'llama'}", f"data.shards={shards}", pooling])
    model: Any = build_model(config, tokenizer).eval()
    export_model(model, tokenizer, tmp_path / "export", config, step=1)
    ids = torch.randint(6, len(tokenizer), (2, 60), generator=torch.Generator().manual_seed(1))
    given = {"input_ids": ids, "attention_mask": (torch.arange(60) < torch.tensor([[60], [33]])).long()}
    torch.save(given, tmp_path / "given.pt")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    paths = map(str, (tmp_path / "export", tmp_path / "given.pt", tmp_path / "answer.pt"))
    command = [sys.executable, "-P", "-c", READER_OF_SLOTS, *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = torch.load(tmp_path / "answer.pt")
    with torch.no_grad():
        slots = model.encoder(**given)
        logits = model.reader(inputs_embeds=slots.last_hidden_state, attention_mask=slots.attention_mask).logits
    torch.testing.assert_close(answer["slots"], slots.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer["logits"], logits, atol=1e-5, rtol=1e-5)
