"""The LSTM judge: ArtEmis' model and settings, its tokenizer, word vectors, and the form of the text it belongs to."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import evaluate_sevlm
from evaluation.emotion_text_data import EmotionTextArguments, load_emotion_texts
from evaluation.lstm_judge import (
    LSTMJudgeConfig,
    LSTMJudgeForSequenceClassification,
    build_word_tokenizer,
    read_word_vectors,
)
from evaluation.scoring import check_judge
from evaluation.train_emotion_classifier import MODELS, JudgeTrainer, JudgeTrainingArguments
from metrics.emotional_alignment.emotional_alignment import emotional_alignment_scores, judge_texts
from processing.artemis import EMOTIONS
from processing.script_utils import text_form
from tests.evaluation.test_emotion_classifier import QUIET, SHORT, train_judge


ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--model", "lstm", "--num_paintings", 120, "--per_device_train_batch_size", 32, "--learning_rate", 2e-3]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Folder and figures of an LSTM trained for three epochs on a part of the embedded data."""
    folder = tmp_path_factory.mktemp("judge")
    return folder, train_judge(folder, *SMALL, "--num_train_epochs", 3, *QUIET)


@pytest.fixture(scope="module")
def texts():
    return load_emotion_texts(EmotionTextArguments(num_paintings=120))["test"]


def with_record(judged, folder, **changes):
    """A copy of the judge whose judge.json has other values, and lacks those that are None."""
    shutil.copytree(judged[0], folder)
    record = {name: value for name, value in (judged[1] | changes).items() if value is not None}
    (folder / "judge.json").write_text(json.dumps(record))
    return str(folder)


def test_the_lstm_learns_and_says_what_it_is(judged):
    folder, judge = judged
    assert judge["accuracy"] > 0.6 and judge["model"] == "lstm" and judge["text"] == "raw"
    assert not list(folder.rglob("*.py")) and "auto_map" not in (folder / "config.json").read_text()


def test_the_default_settings_are_those_of_artemis():
    args = JudgeTrainingArguments(**{n: v for n, v in MODELS["lstm"].items() if n != "freeze_embeddings"})
    assert (args.learning_rate, args.num_train_epochs, args.train_batch_size) == (5e-4, 50, 1024)
    assert args.halve_at_epochs == [10, 20, 30] and args.lr_scheduler_type == "constant"
    for name in ("weight_decay", "max_grad_norm", "label_smoothing_factor", "warmup_steps"):
        assert getattr(args, name) == 0, name
    assert args.load_best_model_at_end and args.metric_for_best_model == "accuracy"


def test_the_learning_rate_is_halved_at_the_named_epochs(tmp_path):
    args = {"output_dir": str(tmp_path), "learning_rate": 1.0, "lr_scheduler_type": "constant", "use_cpu": True}
    args |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "halve_at_epochs": [1, 2]}
    model = LSTMJudgeForSequenceClassification(LSTMJudgeConfig(vocab_size=9))
    trainer = JudgeTrainer(model, JudgeTrainingArguments(**args), train_dataset=[{}] * 10, eval_dataset=[{}])
    trainer.create_optimizer_and_scheduler(9)  # three steps per epoch
    rates = []
    for _ in range(9):
        rates += trainer.lr_scheduler.get_last_lr()[:1]
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_the_weights_start_with_the_distributions_of_pytorch():
    torch.manual_seed(0)
    model = LSTMJudgeForSequenceClassification(LSTMJudgeConfig(vocab_size=2000, num_labels=9))
    widths = {"words.1": 128, "words.4": 256, "lstm": 256, "dense": 256, "classifier.2": 100}
    for name, values in model.named_parameters():
        layer = name.rpartition(".")[0]
        if layer in widths:  # uniform between -1 / sqrt(width) and 1 / sqrt(width)
            bound = widths[layer] ** -0.5
            assert values.abs().max() <= bound, name
            if values.ndim > 1:
                assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
    words = model.embeddings.weight
    assert (words[0] == 0).all() and words[1:].std().item() == pytest.approx(1, rel=0.02)
    assert (model.norm.weight == 1).all() and (model.norm.bias == 0).all()


@torch.no_grad()
def test_scores_equal_a_plain_restatement_whatever_the_batch(judged, texts):
    """316 texts, more than the LSTM reads together, and some of them alone, from the saved tensors."""
    model = AutoModelForSequenceClassification.from_pretrained(judged[0]).eval()
    tokenizer = AutoTokenizer.from_pretrained(judged[0])
    sentences = [*texts["explanation"]] * 5 + ["the " * 100]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    logits = model(**batch).logits
    w = load_file(judged[0] / "model.safetensors")
    lstm = nn.LSTM(256, 256, batch_first=True)
    lstm.load_state_dict({name.removeprefix("lstm."): value for name, value in w.items() if name.startswith("lstm.")})
    for row in (0, 7, 130, 315):
        x = w["embeddings.weight"][tokenizer(sentences[row])["input_ids"]]
        x = (x @ w["words.1.weight"].T + w["words.1.bias"]).relu() @ w["words.4.weight"].T + w["words.4.bias"]
        x = lstm(x[None])[0].amax(dim=1) @ w["dense.weight"].T + w["dense.bias"]
        x = (x - w["norm.running_mean"]) / (w["norm.running_var"] + 1e-5).sqrt() * w["norm.weight"] + w["norm.bias"]
        x = x.relu() @ w["classifier.2.weight"].T + w["classifier.2.bias"]
        torch.testing.assert_close(logits[row], x[0], rtol=1e-4, atol=1e-4)
    alone = model(**tokenizer(sentences[0], return_tensors="pt")).logits
    torch.testing.assert_close(logits[:1], alone, rtol=1e-5, atol=1e-5)


def test_ea_with_the_lstm_equals_a_direct_computation(judged, texts):
    model, tokenizer = (
        kind.from_pretrained(judged[0]) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts["explanation"]]
    labels = torch.cat(logits).argmax(dim=-1)
    assert (judge_texts(texts["explanation"], model, tokenizer, device="cpu") == labels.numpy()).all()
    human = torch.tensor(texts["emotion"])
    counts = torch.eye(9)[human].tolist()
    scores = emotional_alignment_scores(texts["explanation"], counts, EMOTIONS, str(judged[0]), device="cpu")
    assert scores["emotional_alignment"] == pytest.approx((labels == human).double().mean().item())
    assert (scores["judge_model"], scores["judge_text"]) == ("lstm", "raw")
    assert scores["judge_accuracy"] == judged[1]["accuracy"]


SCRIPT = """
import sys
from metrics.emotional_alignment.emotional_alignment import emotional_alignment_scores
score = lambda: emotional_alignment_scores(["so calm"], [[1] + [0] * 8], classifier=sys.argv[1])
try:
    score()
except ValueError as error:
    print(error)
import evaluation.lstm_judge
print(score()["judge_model"])
"""


def test_the_metric_names_the_module_that_an_lstm_needs(judged):
    command = [sys.executable, "-c", SCRIPT, str(judged[0])]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    refused, loaded = done.stdout.splitlines()
    assert "'lstm_judge'" in refused and "evaluation.lstm_judge" in refused and loaded == "lstm", done.stderr


def test_a_single_row_in_the_last_batch_can_be_trained_on():
    model = LSTMJudgeForSequenceClassification(LSTMJudgeConfig(vocab_size=9, num_labels=2)).train()
    before = model.norm.running_mean.clone()
    model(torch.tensor([[3, 4]]), labels=torch.tensor([1])).loss.backward()
    assert model.lstm.weight_hh_l0.grad.isfinite().all() and model.norm.running_mean.equal(before)
    model(torch.tensor([[3, 4], [5, 6]]))
    assert not model.norm.running_mean.equal(before)


def test_words_and_marks_are_tokens_rare_ones_are_unknown_and_the_end_survives_a_cut():
    tokenizer = build_word_tokenizer(["The sea, the Sea!", "the sky"], min_count=2)
    assert tokenizer.get_vocab() == {"<pad>": 0, "<unk>": 1, "<eos>": 2, "the": 3, "sea": 4}
    assert tokenizer("THE sea, forever")["input_ids"] == [3, 4, 1, 1, 2]
    assert tokenizer("the sea the sea", truncation=True, max_length=3)["input_ids"] == [3, 4, 2]
    assert tokenizer("the <eos>", split_special_tokens=True)["input_ids"] == [3, 1, 1, 1, 2]


@pytest.mark.parametrize("freeze", [True, False])
def test_word_vectors_are_the_embeddings_and_stay_fixed_unless_asked(tmp_path, freeze, capsys):
    file = tmp_path / "glove.txt"
    file.write_text("the 1 2.5 -3\nzebracrossing 1 1 1\nof 0.5 0 1e-2\n")
    arguments = [] if freeze else ["--freeze_embeddings", "false"]
    train_judge(tmp_path / "judge", *SMALL, "--word_vectors", file, *arguments, "--max_steps", 1, *SHORT)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge")
    ids = AutoTokenizer.from_pretrained(tmp_path / "judge").get_vocab()
    rows = model.embeddings.weight[[ids["the"], ids["of"]]]
    assert rows.equal(torch.tensor([[1, 2.5, -3], [0.5, 0, 0.01]])) == freeze
    assert f"2 of {len(ids)} words have a vector" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the 1 2\nof 1\n", "line 2: 1 numbers follow the word, not as many as line 1, 2"),
        (b"400000 2\nthe 1 2\n", "line 2: 2 numbers follow the word, not as many as line 1, 1"),
        (b"the\n", "line 1: 0 numbers follow"),
        (b"of 1 2\nthe 1 x\n", "line 2: 'x' is not a finite number"),
        (b"the nan 2\n", "line 1: 'nan' is not a finite number"),
        (b"zebracrossing 1 2\n", "no vector for any of the"),
        (b"", "no vector for any of the"),
        (b"the 1 2\n\xff 1 2\n", "line 2: not UTF-8"),
        (None, "No such file"),
    ],
)
def test_malformed_word_vectors_are_an_error_line_and_nothing_is_written(tmp_path, content, message):
    file = tmp_path / "glove.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit, match="error: .*glove.txt") as stopped:
        train_judge(tmp_path / "judge", *SMALL, "--word_vectors", file, *SHORT)
    assert message in str(stopped.value) and "\n" not in str(stopped.value)
    assert not (tmp_path / "judge").exists()


def test_word_vectors_need_the_lstm(tmp_path):
    with pytest.raises(SystemExit, match="--word_vectors needs --model lstm"):
        train_judge(tmp_path / "judge", "--model", "tiny", "--word_vectors", "glove.txt", *SHORT)


def test_only_the_vectors_of_known_words_are_read(tmp_path):
    (tmp_path / "glove.txt").write_text("sea 1 2\nsky 3 4\n")
    vectors = read_word_vectors(tmp_path / "glove.txt", {"sky", "wave"})
    assert list(vectors) == ["sky"] and vectors["sky"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("record", "text", "remedy"),
    [
        ("cleaned", "raw", "Pass --clean_text true"),
        ("raw", "cleaned", "Pass neither --clean_text nor --text_column"),
        (None, "cleaned", "trained on raw text"),  # a judge of an earlier version
        ("translated", "raw", "Pass --text_column translated"),
    ],
)
def test_a_judge_of_another_form_of_the_text_is_refused(judged, tmp_path, record, text, remedy):
    judge = with_record(judged, tmp_path / "judge", text=record)
    with pytest.raises(ValueError, match=remedy) as refused:
        check_judge(judge, EMOTIONS, ["a"], text)
    assert "or train another judge" in str(refused.value) and "\n" not in str(refused.value)
    check_judge(judge, EMOTIONS, ["a"], record or "raw")
    if record == "cleaned":
        with pytest.raises(SystemExit, match="error: .*--clean_text true"):
            evaluate_sevlm.main(["--human", "--judge", judge, "--num_paintings", "24", "--use_cpu"])


def test_a_judge_of_unknown_training_is_accepted(judged, tmp_path):
    judge = with_record(judged, tmp_path / "judge")
    (tmp_path / "judge" / "judge.json").unlink()
    check_judge(judge, EMOTIONS, ["a"], "cleaned")


@pytest.mark.parametrize(
    ("clean", "column", "form"),
    [
        (False, None, "raw"),
        (True, None, "cleaned"),
        (False, "utterance_spelled", "cleaned"),
        (False, "translated", "translated"),
    ],
)
def test_the_form_of_the_text_follows_from_the_arguments(clean, column, form):
    assert text_form(EmotionTextArguments(clean_text=clean, text_column=column)) == form
