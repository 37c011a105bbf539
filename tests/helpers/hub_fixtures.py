"""A Hub for a test module, processes that talk to it, and helpers that compare models.

A visitor is a process with an empty cache whose `HF_ENDPOINT` is the Hub of the test. It can import this project only
if `python_path` says so: most users have only transformers and torch.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from tests.helpers.local_hub import LocalHub
from tests.helpers.tiny import WORDS


ROOT = Path(__file__).resolve().parents[2]
PROJECT = [ROOT, ROOT / "tests"]
MODEL_FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
MODULES = (
    "card checkpoint configuration decoder emotion generation heads label_tree modeling packed_linear pipeline "
    "pipeline_inputs vision"
)
MODEL_FILES |= {f"{name}_sevlm.py" for name in MODULES.split()}
PROCESSOR_FILES = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
PROCESSOR_FILES |= {"image_metadata.py", "image_values.py", "images.py", "processing_sevlm.py"}
PROCESSOR_FILES |= {"processor_arguments.py", "vad_lexicon.py"}
COMPLETE = MODEL_FILES | PROCESSOR_FILES
WITHOUT_PROJECT = "import sys; sys.modules.update(modeling_sevlm=None, processing=None)"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def visit(hub: LocalHub, cache: Path, command: list[str], *, python_path=(), returncode=0, **environment):
    """Runs `python COMMAND` as a visitor of `hub` in an empty folder and returns the process, which must end with
    `returncode`."""
    passed = {name: os.environ[name] for name in ("PATH", "TMPDIR", "SYSTEMROOT") if name in os.environ}
    passed |= dict.fromkeys(
        ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "OMP_NUM_THREADS", "PYTHONSAFEPATH"), "1"
    )
    passed |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HOME": str(cache), "HOME": str(cache)}
    passed |= {"NO_PROXY": "*", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ":".join(map(str, python_path))}
    cache.mkdir(parents=True, exist_ok=True)
    if not python_path:  # an installed project must not be found
        (cache / "without_project").mkdir(exist_ok=True)
        (cache / "without_project" / "sitecustomize.py").write_text(WITHOUT_PROJECT)
        environment["PYTHONPATH"] = str(cache / "without_project")
    options = {"cwd": cache, "env": passed | environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, *map(str, command)], **options)
    assert done.returncode == returncode, done.stderr[-4000:]
    return done


def answer(model, processor, image) -> dict:
    """Returns the outputs of a model that tests compare. Visitors run the same code."""
    picture = processor(images=Image.open(image), emotions="awe", return_tensors="pt").to(model.device, model.dtype)
    pixels = {"pixel_values": picture["pixel_values"]}
    ids = model.generate(**picture, do_sample=False)
    # The model looks up the words of this sentence in its lexicon.
    sentence = processor(emotions=["awe"], explanations=["the dark sea looks cold"], return_tensors="pt")
    alignment = model.alignment_score(sentence["input_ids"].to(model.device), **pixels).float()
    scores = model.emotion_scores(**pixels).float()
    return {"ids": ids.tolist(), "scores": scores.tolist(), "alignment": alignment.tolist()}


def script(image, code: str) -> list[str]:
    """Returns a visitor's command for `code`, which can use `IMAGE` and [`answer`] and prints JSON at the end."""
    opening = ["import json, sys", "import torch, transformers", "from PIL import Image"]
    return ["-c", "\n".join([*opening, f"IMAGE = {str(image)!r}", inspect.getsource(answer), code])]


def answers(done: subprocess.CompletedProcess) -> dict:
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(given: dict, expected: dict, **tolerance) -> None:
    assert given["ids"] == expected["ids"]
    for name in ("scores", "alignment"):
        torch.testing.assert_close(torch.tensor(given[name]), torch.tensor(expected[name]), **tolerance)


def write_nrc_lexicon(folder: Path) -> Path:
    """Writes the test words in the format of NRC-VAD, which may not be redistributed."""
    lines = ["\t".join([word, *(f"{(value + 1) / 2:.3f}" for value in row)]) for word, row in WORDS.items()]
    path = folder / "NRC-VAD-Lexicon.txt"
    path.write_text("\n".join(["Word\tValence\tArousal\tDominance", *lines]) + "\n", encoding="utf-8")
    return path


def has_rows(content: bytes, name: str) -> bool:
    """Whether a file contains the VAD of a lexicon word as three consecutive numbers, on any scale."""
    if name.endswith(".safetensors"):
        runs = [tensor.double().flatten().numpy() for tensor in load(content).values()]
    else:
        runs = [np.array([float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", content.decode())])]
    rows = np.array(list(WORDS.values()))
    for scaled in (rows, rows * 10_000, (rows + 1) / 2, rows * 4 + 5):
        for run in runs:
            if len(run) >= 3:
                windows = np.lib.stride_tricks.sliding_window_view(run, 3)
                for row in scaled:
                    if (np.abs(windows - row) < 1e-3 * max(1, np.abs(row).max())).all(axis=1).any():
                        return True
    return False
