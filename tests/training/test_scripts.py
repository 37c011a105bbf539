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


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import gallery  # noqa: E402


TINY_RUN = [
    "--image_size",
    "32",
    "--eval_strategy",
    "no",
    "--save_strategy",
    "no",
    "--load_best_model_at_end",
    "false",
]
TINY_RUN += ["--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a model trained for a few steps on the embedded data."""
    folder = tmp_path_factory.mktemp("trained")
    train.main(["--output_dir", str(folder), "--num_paintings", "60", "--max_steps", "3", *TINY_RUN])
    return folder


def write_artemis(
    folder: Path, rows: list[tuple] | None = None, paintings: int = 12, header: str | None = None
) -> list:
    """A made-up ArtEmis: CSV and pictures. Returns the arguments that name them."""
    if rows is None:
        rows = [
            ("Cubism", f"painter_{i}", EMOTIONS[(i + k) % 9 if k else i % 9], f"the shapes number {i} feel {k}", 3)
            for i in range(paintings)
            for k in (0, 0, 1)
        ]
    lines = [header or "art_style,painting,emotion,utterance,repetition"]
    lines += [",".join(map(str, row)) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "artemis.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for style, painting, *_ in rows:
        path = folder / "images" / style / f"{painting}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            noise = np.random.default_rng(len(painting)).integers(0, 255, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
    return ["--annotations", str(folder / "artemis.csv"), "--images", str(folder / "images")]


def test_a_trained_folder_loads_and_explains(trained):
    model = SEVLMForConditionalGeneration.from_pretrained(trained)
    processor = SEVLMProcessor.from_pretrained(trained)
    assert processor.vad_lexicon is not None and model.vad_lookup.has_table, "our own lexicon may travel"
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
    for name in ("language_loss", "emotion_loss", "contrastive_loss", "label_nll", "prior_label_nll", "unique"):
        assert math.isfinite(results[name])
    assert "label_nll" in capsys.readouterr().out


def test_the_gallery_explains_on_the_screen_and_draws_a_sheet(trained, tmp_path, capsys):
    picture = tmp_path / "painting.png"
    Image.new("RGB", (30, 60), (20, 30, 90)).save(picture)
    gallery.main([str(trained), str(picture), "--output", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    assert "painting.png" in printed and all(emotion in printed for emotion in EMOTIONS)
    assert Image.open(tmp_path / "sheet.png").size[0] > 200


def test_training_on_a_csv_and_evaluating_it(tmp_path):
    data = write_artemis(tmp_path / "data")
    more = ["--vad_lexicon", "embedded", "--output_dir", str(tmp_path / "model"), "--max_steps", "2"]
    train.main(["--preset", "tiny", *data, *more, *TINY_RUN])
    arguments = ["--split", "all", "--output_dir", str(tmp_path / "evaluation"), "--use_cpu"]
    figures = evaluate_sevlm.main([str(tmp_path / "model"), *data, *arguments])
    assert figures["num_paintings"] == 12


def test_a_lexicon_of_the_users_own_stays_out_of_the_model_and_has_to_be_named_again(tmp_path, capsys):
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("bright\t0.9\t0.6\t0.6\ndark\t0.1\t0.5\t0.4\n")
    model = tmp_path / "model"
    common = ["--num_paintings", "60", "--vad_lexicon", str(lexicon)]
    train.main([*common, "--output_dir", str(model), "--max_steps", "1", *TINY_RUN])
    assert not (model / "vad_lexicon.tsv").exists()
    evaluation = [str(model), "--output_dir", str(tmp_path / "evaluation"), "--use_cpu"]
    with pytest.raises(SystemExit, match="--vad_lexicon"):
        evaluate_sevlm.main([*evaluation, "--num_paintings", "60"])
    assert evaluate_sevlm.main([*evaluation, *common])["num_paintings"] > 0


def test_an_evaluation_with_another_lexicon_is_refused(trained, tmp_path):
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("bright\t0.9\t0.6\t0.6\ndark\t0.1\t0.5\t0.4\n")
    output = tmp_path / "out"
    with pytest.raises(SystemExit, match="SEVLM embedded lexicon"):
        evaluate_sevlm.main([str(trained), "--vad_lexicon", str(lexicon), "--output_dir", str(output), "--use_cpu"])
    assert not output.exists()


def test_named_data_needs_a_named_lexicon(tmp_path):
    with pytest.raises(SystemExit, match="--vad_lexicon NRC-VAD-Lexicon.txt"):
        train.main([*write_artemis(tmp_path / "data"), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_without_generation_the_best_model_is_chosen_by_the_loss(tmp_path):
    steps = ["--max_steps", "2", "--eval_steps", "1", "--save_steps", "1", "--generation_samples", "0"]
    quiet = ["--disable_tqdm", "true", "--use_cpu", "true", "--image_size", "32", "--num_paintings", "60"]
    trainer = train.main(["--output_dir", str(tmp_path), *steps, *quiet])
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 and trainer.state.best_metric == min(losses)


GOOD = ("Cubism", "painter_1", "awe", "the shapes feel large", 3)


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
    rows = None
    if broken in ("unknown label", "empty utterance"):
        bad = ("Cubism", "painter_2", "joyfulness", "so many cubes", 3)
        rows = [GOOD, bad if broken == "unknown label" else ("Cubism", "painter_2", "awe", "", 3)]
    header = "art_style,painting,emotion,text,repetition" if broken == "missing column" else None
    arguments = write_artemis(tmp_path / "data", rows, header=header)
    lexicon = tmp_path / "words.txt"
    image = tmp_path / "data" / "images" / "Cubism" / "painter_3.jpg"
    if broken == "no image folder":
        arguments[3] = str(tmp_path / "no images")
    elif broken == "missing image":
        image.unlink()
    elif broken == "corrupt image":
        image.write_bytes(image.read_bytes()[:300])
    elif broken == "malformed lexicon line":
        lexicon.write_text("bright\t0.9\t0.6\t0.6\ndark\t0.1\tnothing\t0.4\n")
    elif broken == "unknown lexicon scale":
        lexicon.write_text("bright\t90\t60\t60\ndark\t10\t50\t-40\n")
    elif broken == "annotations without images":
        arguments = arguments[:2]
    if "lexicon" in broken:
        arguments += ["--vad_lexicon", str(tmp_path / "nowhere.txt" if broken == "no such lexicon" else lexicon)]
    output = tmp_path / "output"
    arguments += ["--output_dir", str(output)]
    with pytest.raises(SystemExit) as stopped:
        if script == "train":
            train.main(["--preset", "tiny", "--vad_lexicon", "none", *arguments])
        else:
            evaluate_sevlm.main([str(trained), *arguments, "--use_cpu"])
    message = str(stopped.value)
    for part in parts:
        assert part in message, message
    assert not output.exists()


def test_bad_images_can_be_skipped_and_are_counted(tmp_path, caplog):
    data = write_artemis(tmp_path / "data")
    images = tmp_path / "data" / "images" / "Cubism"
    (images / "painter_3.jpg").unlink()
    (images / "painter_5.jpg").write_bytes(b"not a picture")
    output = str(tmp_path / "model")
    more = ["--on_bad_image", "skip", "--vad_lexicon", "none", "--output_dir", output, "--max_steps", "1"]
    train.main(["--preset", "tiny", *data, *more, *TINY_RUN])
    warnings = [record.getMessage() for record in caplog.records if "painter_3" in record.getMessage()]
    assert len(warnings) == 1 and "2" in warnings[0] and "painter_5" in warnings[0]


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        evaluate_sevlm.main([str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
