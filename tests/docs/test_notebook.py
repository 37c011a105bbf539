"""The notebook in examples/ runs from top to bottom on a tiny model and shows what its headings say."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import train
from processing.artemis import EMOTIONS
from tests.helpers.training import TINY_RUN


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "examples" / "explain_art.ipynb", as_version=4)


def test_the_notebook_is_valid_and_stores_no_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The notebook's folder in a checkout after `make demo`, with a kernel that can import the project."""
    demo = str(tmp_path / "outputs" / "demo")
    # Enough steps to generate words of the lexicon, if not sentences.
    steps = ["--max_steps", "120", "--learning_rate", "8e-3", "--vad_learning_rate", "8e-3", "--warmup_steps", "4"]
    train.main(["--output_dir", demo, "--num_paintings", "60", *steps, *TINY_RUN])
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "examples").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    # Keeps connection files and history out of the user's home.
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path / "examples"


def test_the_notebook_runs_from_top_to_bottom(notebook, folder):
    # A cell that raises stops the client with its traceback.
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    picture, sentence, chart, others, candidates, words, shaded, looked = (cell.outputs for cell in code[3:])
    # A slow kernel sends printed text in several parts.
    sentence, others = (
        "".join(o.text for o in outputs if o.get("name") == "stdout") for outputs in (sentence, others)
    )
    assert "image/png" in picture[-1].data and "image/png" in chart[-1].data
    # After so few steps the model may not start with a label unless it is given one.
    assert re.match(rf"({'|'.join([*EMOTIONS, 'None'])}), because ", sentence)
    assert [line.split(" (")[0] for line in others.splitlines()] == ["sadness", "amusement"]
    candidates, words = (outputs[-1].data["text/plain"] for outputs in (candidates, words))
    scores = [float(score) for score in re.findall(r"^\d +(-?\d+\.\d+)", candidates, re.MULTILINE)]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True), candidates
    assert words.split()[:4] == ["valence", "arousal", "dominance", "word"], words
    assert re.search(r" -?[01]\.\d+ ", words), "words of the lexicon have values"
    assert "sevlm-word" in shaded[-1].data["text/html"] and "image/png" in looked[-1].data
