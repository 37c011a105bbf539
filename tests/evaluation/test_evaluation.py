"""`evaluate_sevlm.main([...])` on SEVLM, another model, given emotions, people, with one and two processes."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, List
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForImageClassification,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    ImageTextToTextPipeline,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    ViTConfig,
    ViTModel,
)

import evaluate_sevlm
import train
from evaluation.predict import human_predictions, predict, read_reply
from evaluation.report import PAPER_ROWS, table
from evaluation.scoring import average, score
from processing.artemis import EMOTIONS
from processing.files import write_json
from processing.tiny_tokenizer import train_tokenizer
from processing.toy_artemis import load_toy_artemis
from tests.helpers.tiny import SENTENCES, tiny_model


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import train_image_classifier  # noqa: E402


EMBEDDED = ["--num_paintings", "120", "--use_cpu"]
NO_CAPTIONS = [*EMBEDDED, "--captions", "false"]
SMALL_TRAINING = "--disable_tqdm true --use_cpu true --num_paintings 120 --image_size 32".split()
LABELS = ["awe", "fear", "something else"]


@pytest.fixture(scope="module")
def toy():
    return load_toy_artemis(120, image_size=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model trained for some seconds, enough to write sentences with a label."""
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    once = "--eval_strategy no --save_strategy no --load_best_model_at_end false"
    steps = "--per_device_train_batch_size 8 --max_steps 120 --warmup_steps 5"
    train.main([*SMALL_TRAINING, *once.split(), *steps.split(), "--output_dir", folder])
    return folder


@pytest.fixture(scope="module")
def evaluated(checkpoint, tmp_path_factory):
    """A greedy evaluation of the embedded test split: its folder and figures."""
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, evaluate_sevlm.main([checkpoint, *EMBEDDED, "--output_dir", str(folder)])


def paintings(rows: list[list[tuple[str, str]]]) -> Dataset:
    """A data set without images: for each painting its (emotion, explanation) annotations."""
    columns = {
        "painting": [f"Style/{i}" for i in range(len(rows))],
        "emotions": [[emotion for emotion, _ in row] for row in rows],
        "explanations": [[explanation for _, explanation in row] for row in rows],
        "emotion_histogram": [[sum(e == label for e, _ in row) for label in LABELS] for row in rows],
    }
    return Dataset.from_dict(columns).cast_column("emotions", List(ClassLabel(names=LABELS)))


def test_the_figures_of_a_small_example_equal_those_computed_by_hand():
    dataset = paintings(
        [
            [("awe", "a"), ("awe", "b"), ("awe", "c"), ("fear", "d")],  # awe is dominant, 3 of 4
            [("fear", "e"), ("fear", "f")],  # fear
            [("awe", "g"), ("fear", "h")],  # a tie: counts for the likelihood only
            [("something else", "i"), ("awe", "j"), ("something else", "k")],  # something else, 2 of 3
        ]
    )
    given = [("awe", "the sea"), ("awe", "the sea"), ("awe", "night"), (None, "")]
    scores = [[0.5, 0.25, 0.25]] * 3 + [[0.25, 0.25, 0.5]]
    predictions = [
        {"painting": f"Style/{i}", "emotion": emotion, "explanation": text, "emotion_scores": scores[i]}
        for i, (emotion, text) in enumerate(given)
    ]
    training = paintings([[("awe", "x"), ("fear", "y")], [("fear", "z"), ("something else", "z")]])
    figures, per_painting = score(predictions, dataset, train=training, captions=False)
    # Paintings 0, 1, 3 have a dominant emotion; only 0 is right, and 3 is unparsed.
    assert figures["accuracy"] == pytest.approx(1 / 3) and figures["num_dominant"] == 3
    assert figures["unparsed"] == 1 / 4 and figures["unique"] == 3 / 4
    # -(3/4 ln 1/2 + 1/4 ln 1/4), -ln 1/4, -(1/2 ln 1/2 + 1/2 ln 1/4), -(2/3 ln 1/2 + 1/3 ln 1/4), in units of ln 2:
    by_hand = np.array([5 / 4, 2, 3 / 2, 4 / 3]) * math.log(2)
    assert per_painting["label_nll"] == pytest.approx(by_hand)
    assert figures["label_nll"] == pytest.approx(by_hand.mean())
    # The training paintings' mean distribution: awe 1/4, fear 1/2, something else 1/4 (2, 1 and 2 times ln 2).
    prior = np.array([3 / 4 * 2 + 1 / 4 * 1, 1, 1 / 2 * 2 + 1 / 2 * 1, 2]) * math.log(2)
    assert figures["prior_label_nll"] == pytest.approx(prior.mean())


def test_a_system_without_emotions_has_no_accuracy():
    dataset = paintings([[("awe", "a"), ("awe", "b")]])
    figures, _ = score([{"painting": "Style/0", "explanation": "c"}], dataset, captions=False)
    assert figures["accuracy"] is None and figures["macro_f1"] is None
    assert "label_nll" not in figures
    figures, _ = score([{"painting": "Style/0", "emotion": None, "explanation": "c"}], dataset, captions=False)
    assert figures["accuracy"] == 0, "a system that should have named one"


def test_an_evaluation_writes_figures_settings_and_predictions(evaluated, capsys):
    folder, figures = evaluated
    results = json.loads((folder / "results.json").read_text())
    predictions = json.loads((folder / "predictions.json").read_text())
    assert {name: results[name] for name in figures} == figures
    assert results["arguments"]["seed"] == 0 and results["versions"]["torch"] and results["seeds"] == [0]
    assert results["split_sizes"] == {"train": 100, "validation": 10, "test": 10}
    assert results["commit"] is None or len(results["commit"].removesuffix("+changes")) == 40
    assert len(predictions) == results["num_paintings"] == 10 and results["num_dominant"] > 3
    assert sum(predictions[0]["emotion_scores"].values()) == pytest.approx(1)
    names = "language_loss emotion_loss contrastive_loss accuracy label_nll prior_label_nll unique novelty bleu_1 "
    names += "bleu_4 meteor rouge_l expected_calibration_error mean_length metaphor_share"
    for name in names.split():
        assert math.isfinite(results[name]), name
    assert np.array(results["confusion_matrix"]).sum() == results["num_dominant"]


def test_predictions_read_from_the_written_file_give_the_same_figures(evaluated, tmp_path):
    folder, figures = evaluated
    arguments = ["--predictions", str(folder / "predictions.json"), "--output_dir", str(tmp_path), *EMBEDDED]
    expected = {name: value for name, value in figures.items() if not name.endswith("loss")}
    assert evaluate_sevlm.main(arguments) == expected
    written, given = (json.loads((where / "predictions.json").read_text()) for where in (tmp_path, folder))
    assert written == given


def test_raw_answers_are_cleaned_when_references_and_judge_are(evaluated, tmp_path, monkeypatch):
    predictions = json.loads((evaluated[0] / "predictions.json").read_text())
    predictions = [row | {"explanation": "It's RED, really!"} for row in predictions]
    (tmp_path / "captions.json").write_text(json.dumps(predictions))
    scored = []
    keep = lambda rows, *args, **kwargs: scored.append(rows[0]["explanation"]) or score(rows, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(evaluate_sevlm, "score", keep)
    arguments = ["--predictions", str(tmp_path / "captions.json"), "--output_dir", str(tmp_path / "out"), *NO_CAPTIONS]
    arguments += ["--overwrite_output_dir"]
    for options in ([], ["--clean_text", "true"], ["--preset", "authors"]):
        evaluate_sevlm.main([*arguments, *options])
    assert scored == ["It's RED, really!", "it is red really", "it is red really"]
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert written[0]["explanation"] == "It's RED, really!", "the file has what the system said"


def test_a_wrong_file_of_predictions_is_an_error_line_and_nothing_is_written(evaluated, tmp_path):
    predictions = json.loads((evaluated[0] / "predictions.json").read_text())
    predictions[0]["painting"] = "toy/nowhere"
    (tmp_path / "captions.json").write_text(json.dumps(predictions))
    output = tmp_path / "out"
    with pytest.raises(SystemExit, match="error: .*captions.json: 1 paintings not in the chosen split: 'toy/nowhere'"):
        evaluate_sevlm.main(["--predictions", str(tmp_path / "captions.json"), "--output_dir", str(output), *EMBEDDED])
    assert not output.exists()


def test_a_model_with_a_bidirectional_emotion_encoder_is_evaluated(processor, tmp_path):
    model = tiny_model(processor, emotion_encoder_attention="bidirectional")
    model.generation_config.use_cache = True  # as training saves it
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    arguments = [*NO_CAPTIONS, "--max_new_tokens", "3", "--output_dir", str(tmp_path / "out")]
    assert evaluate_sevlm.main([str(tmp_path / "model"), *arguments])["num_paintings"] == 10


def test_predictions_do_not_depend_on_the_batch_size(processor, model, toy):
    one, all_at_once = (predict(model, processor, toy["test"], batch_size=size) for size in (1, 32))
    assert [p["painting"] for p in one] == toy["test"]["painting"][:]
    for first, second in zip(one, all_at_once, strict=True):
        assert first["explanation"] == second["explanation"]
        assert first["emotion_scores"] == pytest.approx(second["emotion_scores"], abs=1e-5)


def test_sampling_depends_on_the_seed_only_and_keeps_the_callers_random_state(processor, model, toy):
    given = ["awe"] * len(toy["test"])

    def sample(seed):
        predictions = predict(model, processor, toy["test"], do_sample=True, seed=seed, emotions=given)
        return [prediction["explanation"] for prediction in predictions]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = sample(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert sample(1) == first and sample(2) != first


def test_the_best_of_several_candidates_has_the_highest_alignment_score(processor, model, toy):
    dataset = toy["test"]
    with pytest.raises(ValueError, match="no contrastive head"):
        predict(tiny_model(processor, contrastive_negatives=[]), processor, dataset, num_candidates=2)
    chosen = predict(model, processor, dataset, num_candidates=4, seed=3, batch_size=32)
    # The same draws, scored one by one.
    pixel_values = processor(images=[row["image"] for row in dataset], return_tensors="pt")["pixel_values"]
    features = model.encode_images(pixel_values)
    torch.manual_seed(int(np.random.SeedSequence([3, 0]).generate_state(1)[0]))
    sequences = model.generate(image_features=features, num_return_sequences=4, do_sample=True)
    texts = [sentence["explanation"] for sentence in processor.read(sequences)]
    for i, prediction in enumerate(chosen):
        fits = [
            model.alignment_score(sequences[4 * i + k, None], image_features=features[i : i + 1]) for k in range(4)
        ]
        best = int(torch.cat(fits).argmax())
        assert prediction["explanation"] == texts[4 * i + best]
        assert prediction["alignment_score"] == pytest.approx(float(fits[best]), abs=1e-4)


def test_seeds_give_mean_and_deviation_and_a_later_evaluation_removes_their_files(checkpoint, tmp_path):
    arguments = [checkpoint, *NO_CAPTIONS, "--output_dir", str(tmp_path)]
    figures = evaluate_sevlm.main([*arguments, "--seeds", "3"])
    results = json.loads((tmp_path / "results.json").read_text())
    each = [run["mean_length"] for run in results["per_seed"]]
    assert len(set(each)) > 1, "the seeds must differ for this test to mean anything"
    assert figures["mean_length"] == pytest.approx(np.mean(each))
    assert results["standard_deviation"]["mean_length"] == pytest.approx(np.std(each, ddof=1))
    assert results["arguments"]["do_sample"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "seed-0", "seed-1", "seed-2"]
    assert (tmp_path / "seed-1" / "painting_scores.json").exists()
    (tmp_path / "notes.txt").write_text("mine")
    evaluate_sevlm.main([*arguments, "--overwrite_output_dir"])
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["notes.txt", "painting_scores.json", "predictions.json", "results.json"]


def test_predictions_are_written_before_they_are_scored(checkpoint, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError("no Java today")

    monkeypatch.setattr(evaluate_sevlm, "score", failing)
    with pytest.raises(RuntimeError, match="no Java"):
        evaluate_sevlm.main([checkpoint, *EMBEDDED, "--output_dir", str(tmp_path)])
    assert len(json.loads((tmp_path / "unfinished" / "predictions.json").read_text())) == 10


def test_a_figure_that_a_seed_lacks_has_no_mean():
    first = {"meteor": 0.1, "unique": 0.5, "judge": "x", "num_dominant": 54}
    means, deviations = average([first, first | {"meteor": None, "unique": 1.0, "num_dominant": 60}])
    assert means == {"meteor": None, "unique": 0.75, "judge": "x", "num_dominant": 57}
    assert deviations["unique"] == pytest.approx(math.sqrt(0.125)) and "meteor" not in deviations


def test_one_annotator_is_scored_against_the_others():
    dataset = paintings(
        [
            [("awe", "a0"), ("awe", "a1"), ("fear", "a2")],
            [("fear", "b0")],  # no other annotator
            [("fear", "c0"), ("awe", "c1")],
        ]
    )
    predictions, others = human_predictions(dataset, seed=0)
    assert others["painting"][:] == ["Style/0", "Style/2"] == [p["painting"] for p in predictions]
    for prediction, row in zip(predictions, others, strict=True):
        assert prediction["explanation"] not in row["explanations"]
        assert len(row["explanations"]) == len(row["emotions"]) == sum(row["emotion_histogram"])
        counted = [sum(label == i for label in row["emotions"]) for i in range(len(LABELS))]
        assert row["emotion_histogram"] == counted
    drawn = {human_predictions(dataset, seed)[0][0]["explanation"] for seed in range(20)}
    assert drawn == {"a0", "a1", "a2"}


def test_human_explanations_are_scored_without_model_and_images(tmp_path):
    lines = ["art_style,painting,emotion,utterance"]
    lines += [
        f"Style,p{i},{EMOTIONS[(i + k) % 9]},the sea number {i} feels {k} calm" for i in range(12) for k in range(3)
    ]
    (tmp_path / "artemis.csv").write_text("\n".join(lines) + "\n")
    arguments = ["--human", "--annotations", str(tmp_path / "artemis.csv"), "--split", "all", "--use_cpu"]
    figures = evaluate_sevlm.main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert figures["num_paintings"] == 12 and 0 < figures["bleu_4"] < 1 and 0 < figures["meteor"] < 1
    # Read from the file, a sentence is not its own reference either.
    arguments[0] = f"--predictions={tmp_path / 'out' / 'predictions.json'}"
    again = evaluate_sevlm.main([*arguments, "--novelty", "false", "--output_dir", str(tmp_path / "again")])
    assert again == figures


@pytest.mark.parametrize(
    ("reply", "emotion", "explanation"),
    [
        ("Awe because the sea is wide.", "awe", "the sea is wide."),
        ("The emotion is **fear**, because of the dark.", "fear", "the dark."),
        ("something else: it is odd", "something else", "it is odd"),
        ("Awe: the light is golden", "awe", "the light is golden"),
        ("This is not fear, it is awe, as it is bright", "awe", "This is not fear, it is awe, as it is bright"),
        # Replies of another form stay whole.
        ("I feel awe.\nThe light is golden", "awe", "I feel awe. The light is golden"),
        ("The dark sky makes me feel fear.", "fear", "The dark sky makes me feel fear."),
        ("Because it is dark, I feel fear.", "fear", "Because it is dark, I feel fear."),
        ("It evokes a sense of awe in the viewer.", "awe", "It evokes a sense of awe in the viewer."),
        ("It is awesome", None, "It is awesome"),
        ("", None, ""),
    ],
)
def test_replies_of_other_models_are_read(reply, emotion, explanation):
    assert read_reply(reply, LABELS) == {"emotion": emotion, "explanation": explanation}


def test_the_table_has_the_papers_rows_in_the_same_columns():
    figures = {"accuracy": 0.6563, "bleu_4": 0.0921, "unique": None}
    lines = table("ours", figures, {"accuracy": 0.012}, "v1").splitlines()
    header = lines[0].split()
    assert header == ["ACC", "EA", "B1", "B2", "B3", "B4", "METEOR", "ROUGE-L", "Unique"]
    assert len({len(line) for line in lines[:-1]}) == 1
    assert lines[6].split() == ["SEVLM", "65.6", "62.1", "54.2", "30.3", "16.4", "9.2", "13.9", "30.4", "62.0"]
    assert lines[7].split() == ["ours", "65.6", "-", "-", "-", "-", "9.2", "-", "-", "-"]
    assert lines[8].split()[:3] == ["standard", "deviation", "1.2"]
    assert "above 'ours' are the paper's" in lines[-1]
    assert "GPT-4(V)" in table("ours", figures, None, "100 images")
    assert all(len(row) == len(header) for rows in PAPER_ROWS.values() for row in rows.values())


@pytest.mark.parametrize("arguments", [[], ["model", "--human"], ["--human", "--predictions", "x.json"]])
def test_exactly_one_thing_is_scored(arguments):
    with pytest.raises(SystemExit, match="name one thing to score"):
        evaluate_sevlm.main(arguments)


def test_the_figures_go_into_the_model_card(checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    output = str(tmp_path / "out")
    figures = evaluate_sevlm.main([str(folder), *EMBEDDED, "--update_model_card", "--output_dir", output])
    card = ModelCard.load(folder / "README.md")
    by_name = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert by_name["B1"] == round(100 * figures["bleu_1"], 2)
    assert by_name["Unique"] == round(100 * figures["unique"], 2)
    assert f"{100 * figures['meteor']:.1f}" in card.text and "SEVLM embedded lexicon" in card.text
    assert card.data.to_dict()["model-index"][0]["results"][0]["dataset"]["split"] == "test"


def test_json_files_hold_no_nan(tmp_path):
    write_json(tmp_path / "deep" / "file.json", {"a": [1.5, math.nan, {"b": math.inf}], "c": "ü"})
    assert json.loads((tmp_path / "deep" / "file.json").read_text()) == {"a": [1.5, None, {"b": None}], "c": "ü"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.json"]


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(checkpoint, tmp_path):
    """Ten paintings in batches of four: an odd number of batches, the last one not full."""
    arguments = [checkpoint, *EMBEDDED, "--batch_size", "4", "--do_sample", "--novelty", "false"]
    runs = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        launch = ["--multi_gpu"] if processes > 1 else ["--cpu"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "--num_processes", str(processes)]
        command += ["--main_process_port", "0", "evaluate_sevlm.py", *arguments, "--output_dir", str(output)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        results = json.loads((output / "results.json").read_text())
        for name in ("arguments", "date"):
            del results[name]
        runs[processes] = results, (output / "predictions.json").read_text()
    assert runs[1] == runs[2]


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A small LLaVA with random weights and a chat template."""
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = LlamaConfig(**sizes, vocab_size=len(tokenizer), **special)
    torch.manual_seed(0)
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token)
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %} Answer:",
    )
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_another_image_text_model_gets_the_prompt_and_its_reply_is_read(llava, tmp_path, monkeypatch):
    calls = []
    call = ImageTextToTextPipeline.__call__

    def answering(self, *args, **kwargs):
        replies = call(self, *args, **kwargs)
        calls.append((kwargs["text"], replies))
        # Random weights write noise; prompt and reply are real.
        return [[{"generated_text": "Fear, because of the dark sky"}] for _ in replies]

    monkeypatch.setattr(ImageTextToTextPipeline, "__call__", answering)
    arguments = [str(llava), *NO_CAPTIONS, "--max_new_tokens", "4", "--batch_size", "4"]
    arguments += ["--max_paintings", "6", "--output_dir", str(tmp_path), "--overwrite_output_dir"]
    evaluate_sevlm.main([*arguments, "--prompt", "One of {emotions}?"])
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert [(p["emotion"], p["explanation"]) for p in predictions] == [("fear", "the dark sky")] * 6
    text, replies = calls[0]
    assert len(calls) == 2 and len(replies) == 4
    assert text[0][0]["content"][1]["text"] == f"One of {', '.join(EMOTIONS)}?"
    assert all(isinstance(reply[0]["generated_text"], str) for reply in replies)

    names = [prediction["painting"] for prediction in predictions]
    (tmp_path / "given.csv").write_text("painting,emotion\n" + "".join(f"{name},awe\n" for name in names))
    evaluate_sevlm.main([*arguments, "--emotions", str(tmp_path / "given.csv")])
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert {p["emotion"] for p in predictions} == {"awe"}, "the given emotion, not the reply's"
    assert "feel awe" in calls[-1][0][0][0]["content"][1]["text"]


def test_options_of_sevlm_are_refused_for_another_model(llava, tmp_path):
    common = [str(llava), *EMBEDDED, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="--num_candidates need a SEVLM"):
        evaluate_sevlm.main([*common, "--num_candidates", "4"])
    with pytest.raises(SystemExit, match="explanation"):
        evaluate_sevlm.main([*common, "--label_pattern", "(?P<emotion>.)"])


def test_a_two_stage_system_is_an_image_classifier_and_a_conditioned_explainer(checkpoint, tmp_path):
    classifier = str(tmp_path / "classifier")
    steps = ["--num_train_epochs", "8", "--learning_rate", "2e-3"]
    results = train_image_classifier.main([*SMALL_TRAINING, *steps, "--output_dir", classifier])
    assert results["train"]["label_nll"] < 2.0, "a uniform guess among nine labels has 2.2 nats"
    emotions = f"{classifier}/emotions-test.csv"
    arguments = [checkpoint, *NO_CAPTIONS, "--output_dir", str(tmp_path / "out")]
    figures = evaluate_sevlm.main([*arguments, "--emotions", emotions])
    assert figures["accuracy"] == results["test"]["accuracy"]
    with open(emotions, newline="") as file:
        given = {row["painting"]: row["emotion"] for row in csv.DictReader(file)}
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {prediction["painting"]: prediction["emotion"] for prediction in predictions} == given
    # The figures about emotions are the classifier's, not the explaining model's.
    assert figures["label_nll"] == pytest.approx(results["test"]["label_nll"])
    with pytest.raises(SystemExit, match="leave out --emotions"):
        evaluate_sevlm.main([*arguments, "--emotions", emotions, "--update_model_card"])
    model = AutoModelForImageClassification.from_pretrained(classifier)
    assert list(model.config.id2label.values()) == EMOTIONS


def test_a_frozen_classifier_only_trains_its_last_layer(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tower = ViTModel(ViTConfig(**sizes, image_size=32))
    tower.save_pretrained(tmp_path / "tower")
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "tower" / "preprocessor_config.json").write_text(json.dumps(statistics))
    arguments = ["--vision_model", str(tmp_path / "tower"), "--freeze_tower", "true", "--max_steps", "2"]
    train_image_classifier.main([*SMALL_TRAINING, *arguments, "--output_dir", str(tmp_path / "probe")])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "probe")
    before, after = tower.state_dict(), model.base_model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in after)


def test_an_empty_selection_of_paintings_is_refused_and_earlier_results_stay(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    arguments = ["--human", "--max_paintings", "0", "--output_dir", str(tmp_path), "--overwrite_output_dir"]
    with pytest.raises(SystemExit, match="no painting is left"):
        evaluate_sevlm.main(arguments)
    assert (tmp_path / "results.json").read_text() == "{}"
