"""Training one can watch: sheets of fixed paintings at every evaluation, in files and in tensorboard."""

import io
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

import train
from modeling_sevlm import callbacks
from modeling_sevlm.callbacks import ExplanationSheets, explain
from processing.artemis import EMOTIONS
from processing.images import open_image
from tests.helpers.tiny import tiny_model
from tests.training.test_scripts import TINY_RUN


EVALUATED = ["--num_paintings", "60", "--max_steps", "2", "--eval_steps", "1", "--generation_samples", "0"]
QUIET = ["--image_size", "32", "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "8"]
ANSWER = {"emotion": "awe", "explanation": "so"}
QUIET += ["--save_strategy", "no", "--load_best_model_at_end", "false"]


def test_every_evaluation_leaves_a_sheet_of_the_same_paintings_and_logs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    model = tmp_path / "model"
    train.main(
        ["--output_dir", str(model), "--sheet_paintings", "2", "--report_to", "tensorboard", *EVALUATED, *QUIET]
    )
    assert sorted(path.name for path in (model / "sheets").iterdir()) == ["step-1.png", "step-2.png"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "runs"), size_guidance={"images": 0}).Reload()
    logged = events.Images("explanations")
    assert [event.step for event in logged] == [1, 2]
    for event in logged:
        written = np.asarray(Image.open(model / "sheets" / f"step-{event.step}.png").convert("RGB"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), written)
    # The paintings themselves are what both sheets have in common.
    first, second = (np.asarray(Image.open(path).convert("L")) for path in sorted((model / "sheets").iterdir()))
    top = slice(int(0.1 * first.shape[0]), int(0.4 * first.shape[0]))
    assert first.shape == second.shape and (first[top] == second[top]).mean() > 0.95


@pytest.mark.parametrize("without", ["evaluation", "paintings", "matplotlib"])
def test_sheets_are_left_out_where_they_cannot_be_or_are_not_wanted(tmp_path, monkeypatch, capsys, without):
    arguments = TINY_RUN if without == "evaluation" else QUIET
    if without == "matplotlib":
        monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    more = ["--sheet_paintings", "0"] if without == "paintings" else []
    train.main(["--output_dir", str(tmp_path), *EVALUATED[:-2], "--generation_samples", "0", *arguments, *more])
    assert not (tmp_path / "sheets").exists()
    assert ("matplotlib is missing" in capsys.readouterr().out) == (without == "matplotlib")


def test_a_sheet_is_drawn_in_evaluation_mode_and_leaves_training_mode(processor):
    model = tiny_model(processor).train()
    image = Image.new("RGB", (20, 30), "red")
    (first,), (second,) = (explain(model, processor, [image]) for _ in range(2))
    assert first == second, "no dropout"
    assert model.training and sum(first["emotion_scores"].values()) == pytest.approx(1)


def fixed_paintings(folder, image) -> Dataset:
    image.save(folder / "a.png")
    features = {"image": datasets.Image(), "painting": datasets.Value("string")}
    features |= {"emotions": datasets.List(datasets.ClassLabel(names=list(EMOTIONS)))}
    features |= {"explanations": datasets.List(datasets.Value("string"))}
    row = {"image": [str(folder / "a.png")], "painting": ["a"], "emotions": [[1]], "explanations": [["so"]]}
    return Dataset.from_dict(row, features=datasets.Features(features))


def evaluated(processor, model, dataset, folder):
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    args = SimpleNamespace(output_dir=folder, report_to=[])
    ExplanationSheets(None, processor, dataset).on_evaluate(args, state, None, model=model)
    return folder / "sheets" / "step-1.png"


def test_a_picture_that_is_gone_costs_a_sheet_and_not_the_run(processor, tmp_path):
    dataset = fixed_paintings(tmp_path, Image.new("RGB", (20, 30), "red"))
    assert evaluated(processor, tiny_model(processor), dataset, tmp_path).is_file()
    (tmp_path / "a.png").unlink()
    assert not evaluated(processor, tiny_model(processor), dataset, tmp_path / "again").exists()


def test_the_model_sees_a_picture_of_any_mode_as_in_an_evaluation(processor, tmp_path, monkeypatch):
    picture, seen = Image.new("RGBA", (20, 30), (0, 0, 0, 0)), []
    monkeypatch.setattr(callbacks, "explain", lambda model, processor, images: seen.extend(images) or [ANSWER])
    evaluated(processor, tiny_model(processor), fixed_paintings(tmp_path, picture), tmp_path)
    assert seen[0].getpixel((0, 0)) == open_image(picture).getpixel((0, 0)) == (255, 255, 255)


def test_scripts_do_not_load_matplotlib_before_there_is_something_to_draw(tmp_path):
    import subprocess

    code = "import train, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
