"""Sheets of explanations: files and tensorboard images of the same paintings at every evaluation."""

import io
import subprocess
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

import train
from modeling_sevlm.callbacks import ExplanationSheets
from processing.artemis import EMOTIONS
from tests.helpers.training import QUIET_RUN, WITHOUT_EVALUATION


RUN = [*QUIET_RUN, *"--num_paintings 60 --max_steps 2 --save_strategy no --load_best_model_at_end false".split()]
EVALUATED = [*RUN, "--eval_steps", "1", "--generation_samples", "0"]


def test_every_evaluation_writes_a_sheet_of_the_same_paintings_and_logs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    model = tmp_path / "model"
    train.main(["--output_dir", str(model), "--sheet_paintings", "2", "--report_to", "tensorboard", *EVALUATED])
    assert sorted(path.name for path in (model / "sheets").iterdir()) == ["step-1.png", "step-2.png"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "runs"), size_guidance={"images": 0}).Reload()
    logged = events.Images("explanations")
    assert [event.step for event in logged] == [1, 2]
    for event in logged:
        written = np.asarray(Image.open(model / "sheets" / f"step-{event.step}.png").convert("RGB"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), written)
    first, second = (np.asarray(Image.open(path).convert("L")) for path in sorted((model / "sheets").iterdir()))
    top = slice(int(0.1 * first.shape[0]), int(0.4 * first.shape[0]))
    assert first.shape == second.shape and (first[top] == second[top]).mean() > 0.95, "the same paintings"


@pytest.mark.parametrize("without", ["evaluation", "paintings", "matplotlib"])
def test_no_sheets_without_evaluation_paintings_or_matplotlib(tmp_path, monkeypatch, capsys, without):
    more = {"evaluation": WITHOUT_EVALUATION, "paintings": ["--sheet_paintings", "0"], "matplotlib": []}[without]
    if without == "matplotlib":
        monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    train.main(["--output_dir", str(tmp_path), *EVALUATED, *more])
    assert not (tmp_path / "sheets").exists()
    assert ("matplotlib is missing" in capsys.readouterr().out) == (without == "matplotlib")


def test_sheets_draw_the_predictions_of_the_generation_metrics(tmp_path, monkeypatch):
    """Each painting is explained once an evaluation, and metrics do not depend on the number of sheet paintings."""
    predict, predicted, drawn, metrics = train.predict, [], [], []
    monkeypatch.setattr(train, "predict", lambda *args, **kw: predicted.append(predict(*args, **kw)) or predicted[-1])
    monkeypatch.setattr(ExplanationSheets, "_draw", lambda self, *args: drawn.append(self.predictions))
    for paintings in (2, 5):
        sizes = ["--generation_samples", "3", "--sheet_paintings", str(paintings)]
        trainer = train.main(["--output_dir", str(tmp_path / str(paintings)), *RUN, "--eval_steps", "2", *sizes])
        (entry,) = (entry for entry in trainer.state.log_history if "eval_unique" in entry)
        metrics.append([entry[name] for name in ("eval_unique", "eval_label_nll", "eval_loss")])
    assert [len(predictions) for predictions in predicted] == [3, 5]
    assert drawn == [predicted[0][:2], predicted[1]] and metrics[0] == pytest.approx(metrics[1])


def test_a_missing_image_costs_a_sheet_and_not_the_run(tmp_path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    row = {"image": [str(tmp_path / "a.png")], "painting": ["a"], "emotions": [[1]], "explanations": [["so"]]}
    painting = Dataset.from_dict(row).cast_column("image", datasets.Image())
    painting = painting.cast_column("emotions", datasets.List(datasets.ClassLabel(names=list(EMOTIONS))))
    sheets = ExplanationSheets(None, painting)
    sheets.predictions = [{"emotion": "awe", "explanation": "so", "emotion_scores": [1 / 9] * 9}]
    args = SimpleNamespace(output_dir=tmp_path, report_to=[])
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    sheets.on_evaluate(args, state, None)
    (tmp_path / "sheets" / "step-1.png").unlink()
    (tmp_path / "a.png").unlink()
    sheets.on_evaluate(args, state, None)
    assert list((tmp_path / "sheets").iterdir()) == []


def test_importing_train_does_not_import_matplotlib():
    code = "import train, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
