"""A saved folder is enough: fresh processes load it without this project on their path."""

import json
import os
import subprocess
import sys

import pytest
import torch

from modeling_sevlm import SEVLMForConditionalGeneration
from tests.helpers.tiny import IMAGE_SIZE


SCRIPT = """
import json, sys
import numpy, torch, transformers
from PIL import Image

assert "modeling_sevlm" not in sys.modules and "processing" not in sys.modules
folder, auto_class, image = sys.argv[1:]
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.open(image), emotions="awe", return_tensors="pt")
ids = model.generate(**inputs, do_sample=False)
scores = model.emotion_scores(pixel_values=inputs["pixel_values"])
print(json.dumps({"ids": ids.tolist(), "scores": scores.tolist(), "module": type(model).__module__}))
"""


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForImageTextToText"])
def test_a_process_without_the_project_loads_and_computes_the_same(processor, model, tmp_path, auto_class):
    from PIL import Image

    folder, image = tmp_path / "model", tmp_path / "image.png"
    model.save_pretrained(tmp_path / "first")
    # Saved, loaded and saved again: nothing that a fresh process needs may get lost on the way.
    SEVLMForConditionalGeneration.from_pretrained(tmp_path / "first").save_pretrained(folder)
    processor.save_pretrained(folder)
    noise = torch.randint(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8, generator=torch.Generator())
    Image.fromarray(noise.numpy()).save(image)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, str(folder), auto_class, str(image)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["module"].startswith("transformers_modules.")
    inputs = processor(images=Image.open(image), emotions="awe", return_tensors="pt")
    assert answer["ids"] == model.generate(**inputs, do_sample=False).tolist()
    expected = model.emotion_scores(pixel_values=inputs["pixel_values"])
    torch.testing.assert_close(torch.tensor(answer["scores"]), expected)
