"""The scripts as a user runs them, through `main([...])`: train, evaluate, gallery, and bad input to each."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate_sevlm
import train
from modeling_sevlm import SEVLMForConditionalGeneration
from processing import SEVLMProcessor
from processing.artemis import EMOTIONS
from tests.helpers.training import QUIET_RUN, TINY_RUN, write_artemis


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import gallery  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a model trained for a few steps on the embedded data."""
    folder = tmp_path_factory.mktemp("trained")
    train.main(["--output_dir", str(folder), "--num_paintings", "60", "--max_steps", "3", *TINY_RUN])
    return folder


def test_a_trained_folder_loads_and_explains(trained):
    model = SEVLMForConditionalGeneration.from_pretrained(trained)
    processor = SEVLMProcessor.from_pretrained(trained)
    assert processor.vad_lexicon is not None and model.vad_lookup.has_table, "our own lexicon is saved with the model"
    image = Image.new("RGB", (50, 40), (200, 30, 30))
    read = processor.read(model.generate(**processor(images=image, emotions="awe", return_tensors="pt")))
    assert read[0]["emotion"] == "awe"
    assert json.loads((trained / "training_log.json").read_text())[-1]["train_loss"] > 0


def test_evaluation_writes_results_and_predictions(trained, tmp_path, capsys):
    arguments = [str(trained), "--split", "test", "--num_paintings", "60", "--output_dir", str(tmp_path)]
    figures = evaluate_sevlm.main([*arguments, "--use_cpu"])
    results = json.loads((tmp_path / "results.json").read_text())
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert {name: results[name] for name in figures} == figures
    assert results["arguments"]["seed"] == 0 and results["versions"]["torch"]
    assert len(predictions) == results["num_paintings"] > 0
    assert sum(predictions[0]["emotion_scores"].values()) == pytest.approx(1)
    losses = ("language_loss", "emotion_loss", "contrastive_loss", "label_nll", "prior_label_nll", "unique")
    assert all(math.isfinite(results[name]) for name in losses)
    assert "label_nll" in capsys.readouterr().out


def test_the_gallery_prints_explanations_and_draws_a_sheet(trained, tmp_path, capsys):
    picture = tmp_path / "painting.png"
    Image.new("RGB", (30, 60), (20, 30, 90)).save(picture)
    gallery.main([str(trained), str(picture), "--output", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert "painting.png" in printed and all(emotion in printed for emotion in EMOTIONS)
    assert Image.open(tmp_path / "sheet.png").size[0] > 200


def test_the_gallery_reads_pictures_as_the_model_does(trained, tmp_path, monkeypatch):
    turned = Image.Exif()
    turned[274] = 6
    Image.new("RGB", (30, 60), "red").save(tmp_path / "turned.jpg", exif=turned)
    Image.fromarray(np.full((30, 60), 2048, dtype=np.uint16)).save(tmp_path / "deep.png")
    shown: list[Image.Image] = []
    draw = gallery.gallery_sheet
    monkeypatch.setattr(
        gallery, "gallery_sheet", lambda images, results: draw(shown.extend(images) or images, results)
    )
    names = [str(tmp_path / name) for name in ("turned.jpg", "deep.png")]
    gallery.main([str(trained), *names, "--output", str(tmp_path / "sheet.png")])
    assert [image.size for image in shown] == [(60, 30), (60, 30)] and shown[1].getpixel((0, 0)) == (128, 128, 128)
    (tmp_path / "text.png").write_text("a painting")
    for name, reason in {"gone.png": "there is no such file", "text.png": "not an image"}.items():
        with pytest.raises(SystemExit, match=f"error: Cannot read the picture '.*{name}': {reason}"):
            gallery.main([str(trained), str(tmp_path / name), "--output", str(tmp_path / "sheet.png")])


def test_training_on_a_csv_and_evaluating_it(tmp_path):
    data = write_artemis(tmp_path / "data")
    more = ["--vad_lexicon", "embedded", "--output_dir", str(tmp_path / "model"), "--max_steps", "2"]
    train.main(["--preset", "tiny", *data, *more, *TINY_RUN])
    arguments = ["--split", "all", "--output_dir", str(tmp_path / "evaluation"), "--use_cpu"]
    figures = evaluate_sevlm.main([str(tmp_path / "model"), *data, *arguments])
    assert figures["num_paintings"] == 12


def write_lexicon(folder: Path, bad_value: str = "0.5") -> str:
    (folder / "words.txt").write_text(f"bright\t0.9\t0.6\t0.6\ndark\t0.1\t{bad_value}\t0.4\n")
    return str(folder / "words.txt")


def test_a_lexicon_of_the_user_is_not_saved_and_must_be_named_again(tmp_path):
    model = tmp_path / "model"
    common = ["--num_paintings", "60", "--vad_lexicon", write_lexicon(tmp_path)]
    train.main([*common, "--output_dir", str(model), "--max_steps", "1", *TINY_RUN])
    assert not (model / "vad_lexicon.tsv").exists()
    evaluation = [str(model), "--output_dir", str(tmp_path / "evaluation"), "--use_cpu"]
    with pytest.raises(SystemExit, match="--vad_lexicon"):
        evaluate_sevlm.main([*evaluation, *common[:2]])
    assert evaluate_sevlm.main([*evaluation, *common])["num_paintings"] > 0


def test_an_evaluation_with_a_missing_model_or_another_lexicon_is_refused(trained, tmp_path):
    output, lexicon = tmp_path / "out", write_lexicon(tmp_path)
    more = ["--output_dir", str(output), "--use_cpu"]
    with pytest.raises(SystemExit, match="SEVLM embedded lexicon"):
        evaluate_sevlm.main([str(trained), "--vad_lexicon", lexicon, *more])
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        evaluate_sevlm.main([str(tmp_path / "nowhere"), *more])
    assert not output.exists()


def test_your_own_data_needs_a_lexicon(tmp_path):
    with pytest.raises(SystemExit, match="--vad_lexicon NRC-VAD-Lexicon.txt"):
        train.main([*write_artemis(tmp_path / "data"), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_without_generation_the_best_model_is_chosen_by_the_loss(tmp_path):
    steps = ["--max_steps", "2", "--eval_steps", "1", "--save_steps", "1", "--generation_samples", "0"]
    trainer = train.main(["--output_dir", str(tmp_path), "--num_paintings", "60", *steps, *QUIET_RUN])
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 and trainer.state.best_metric == min(losses)


GOOD = ("Cubism", "painter_1", "awe", "the shapes feel large", 3)
BAD_ROWS = {"unknown label": [GOOD, ("Cubism", "painter_2", "joyfulness", "so many cubes", 3)]}
BAD_ROWS |= {"empty utterance": [GOOD, ("Cubism", "painter_2", "awe", "", 3)]}


@pytest.mark.parametrize(
    ("broken", "parts"),
    [
        ("no image folder", ["images", "--images"]),
        ("missing image", ["painter_3.jpg", "artemis.csv, line", "--on_bad_image skip"]),
        ("corrupt image", ["painter_3.jpg", "artemis.csv, line", "--on_bad_image skip"]),
        ("missing column", ["artemis.csv", "utterance"]),
        ("unknown label", ["artemis.csv", "3", "joyfulness", "contentment"]),
        ("empty utterance", ["artemis.csv", "3", "utterance", "--on_bad_row skip"]),
        ("malformed lexicon line", ["words.txt", "line 2"]),
        ("unknown lexicon scale", ["words.txt", "scale"]),
        ("no such lexicon", ["nowhere.txt"]),
        ("annotations without images", ["--images"]),
    ],
)
@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_bad_input_names_file_place_and_remedy_and_writes_nothing(trained, tmp_path, broken, parts, script):
    header = "art_style,painting,emotion,text,repetition" if broken == "missing column" else None
    arguments = write_artemis(tmp_path / "data", BAD_ROWS.get(broken), header=header)
    image = tmp_path / "data" / "images" / "Cubism" / "painter_3.jpg"
    if broken == "no image folder":
        arguments[3] = str(tmp_path / "no images")
    elif broken == "missing image":
        image.unlink()
    elif broken == "corrupt image":
        image.write_bytes(image.read_bytes()[:300])
    elif broken == "annotations without images":
        arguments = arguments[:2]
    elif broken == "no such lexicon":
        arguments += ["--vad_lexicon", str(tmp_path / "nowhere.txt")]
    elif "lexicon" in broken:
        arguments += ["--vad_lexicon", write_lexicon(tmp_path, "nothing" if "malformed" in broken else "-40")]
    output = tmp_path / "output"
    arguments += ["--output_dir", str(output)]
    with pytest.raises(SystemExit) as stopped:
        if script == "train":
            train.main(["--preset", "tiny", "--vad_lexicon", "none", *arguments])
        else:
            evaluate_sevlm.main([str(trained), *arguments, "--use_cpu"])
    assert all(part in str(stopped.value) for part in parts), str(stopped.value)
    assert not output.exists()


def test_bad_images_can_be_skipped_and_are_named(tmp_path, caplog):
    data = write_artemis(tmp_path / "data")
    images = tmp_path / "data" / "images" / "Cubism"
    (images / "painter_3.jpg").unlink()
    (images / "painter_5.jpg").write_bytes(b"not a picture")
    more = ["--on_bad_image", "skip", "--vad_lexicon", "none", "--output_dir", str(tmp_path), "--max_steps", "1"]
    train.main(["--preset", "tiny", *data, *more, *TINY_RUN])
    warnings = [record.getMessage() for record in caplog.records if "painter_3" in record.getMessage()]
    assert len(warnings) == 1 and "2" in warnings[0] and "painter_5" in warnings[0]
