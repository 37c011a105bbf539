# Licensed under the Apache License, Version 2.0; see LICENSE.
"""A Hub for a test module, processes that talk to it, and what tests ask them.

A visitor is a process with an empty cache whose `HF_ENDPOINT` is the Hub of the test. `python_path` decides whether it
can import this project: a user who has only transformers and torch cannot.
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


WITHOUT_PROJECT = """
import sys


class WithoutProject:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("modeling_sevlm", "processing"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, WithoutProject)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


def visit(hub: LocalHub, cache: Path, command: list[str], *, python_path=(), **environment):
    """Run `python COMMAND` as a visitor of `hub`, in a folder without this project; the finished process."""
    # Nothing of the surroundings but what finds programs and temporary folders may reach the visitor.
    passed = {name: os.environ[name] for name in ("PATH", "TMPDIR", "SYSTEMROOT") if name in os.environ}
    passed |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "hf_test",
        "NO_PROXY": "*",
        "HOME": str(cache),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(map(str, python_path)),
        "PYTHONSAFEPATH": "1",
    }
    cache.mkdir(parents=True, exist_ok=True)
    if not python_path:
        # Where the project is installed, a process without it has to be kept from finding it.
        (cache / "without_project").mkdir(exist_ok=True)
        (cache / "without_project" / "sitecustomize.py").write_text(WITHOUT_PROJECT)
        environment["PYTHONPATH"] = str(cache / "without_project")
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cache,
        env=passed | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def answer(model, processor, image) -> dict:
    """What a model computes, as far as tests compare it; visitors run the same lines."""
    picture = processor(images=Image.open(image), emotions="awe", return_tensors="pt").to(model.device, model.dtype)
    pixels = {"pixel_values": picture["pixel_values"]}
    ids = model.generate(**picture, do_sample=False)
    # Its words are in the lexicon, and the model looks them up.
    sentence = processor(emotions=["awe"], explanations=["the dark sea looks cold"], return_tensors="pt")
    alignment = model.alignment_score(sentence["input_ids"].to(model.device), **pixels).float()
    scores = model.emotion_scores(**pixels).float()
    return {"ids": ids.tolist(), "scores": scores.tolist(), "alignment": alignment.tolist()}


def script(image, code: str) -> list[str]:
    """A visitor's command: `code`, which knows `IMAGE` and [`answer`], and prints JSON on its last line."""
    opening = ["import json, sys", "import torch, transformers", "from PIL import Image"]
    return ["-c", "\n".join([*opening, f"IMAGE = {str(image)!r}", inspect.getsource(answer), code])]


def answers(done: subprocess.CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_same(given: dict, expected: dict, **tolerance) -> None:
    assert given["ids"] == expected["ids"]
    for name in ("scores", "alignment"):
        torch.testing.assert_close(torch.tensor(given[name]), torch.tensor(expected[name]), **tolerance)


def has_rows(content: bytes, name: str) -> bool:
    """Whether a file holds three numbers in a row that are a word's of the lexicon, on any scale it may be kept in."""
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
