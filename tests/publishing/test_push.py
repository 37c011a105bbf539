# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What `python -m modeling_sevlm.push` does not publish, and what it says then."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_sevlm.push import PushError, push, stage
from tests.helpers.hub_fixtures import PROJECT, visit
from tests.helpers.tiny import tiny_model, tiny_processor


@pytest.fixture
def checkpoint(tmp_path):
    processor = tiny_processor()
    for part in (tiny_model(processor), processor):
        part.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("name", ["decoder.h.1.mlp.c_fc.weight", "vad_lookup.state_vad"])
def test_random_numbers_are_not_published_in_place_of_weights(checkpoint, tmp_path, name):
    weights = load_file(checkpoint / "model.safetensors")
    assert weights.pop(name) is not None
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PushError, match=f"lack {name.partition('.state')[0]}"):
        stage(checkpoint, tmp_path / "out", "org/name")


def test_weights_of_another_shape_or_damaged_are_not_published(checkpoint, tmp_path):
    file = checkpoint / "model.safetensors"
    whole, weights = file.read_bytes(), load_file(file)
    save_file(weights | {"vad_head.bias": torch.zeros(7)}, file, metadata={"format": "pt"})
    with pytest.raises(PushError, match="do not fit"):
        stage(checkpoint, tmp_path / "out", "org/name")
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PushError, match="damaged"):
        stage(checkpoint, tmp_path / "out", "org/name")


def test_code_that_lies_in_the_folder_is_neither_run_nor_published(checkpoint, tmp_path):
    proof, planted = tmp_path / "proof", "import pathlib; pathlib.Path({!r}).touch()\n".format(str(tmp_path / "proof"))
    codes = {file.name: file.read_text() for file in checkpoint.glob("*.py")}
    for name in codes:
        (checkpoint / name).write_text(planted + codes[name])
    (tmp_path / "out").mkdir()
    stage(checkpoint, tmp_path / "out", "org/name")
    assert {file.name: file.read_text() for file in (tmp_path / "out").glob("*.py")} == codes

    # A tokenizer, too, can ask for code.
    about = json.loads((checkpoint / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "processing_sevlm.Mine"]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(about))
    try:
        stage(checkpoint, tmp_path / "out", "org/name")
    except PushError as error:
        assert "without code" in str(error)
    assert "Mine" not in (tmp_path / "out" / "tokenizer_config.json").read_text()
    assert not proof.exists()


def test_a_processor_of_another_class_is_not_published(checkpoint, tmp_path):
    processor = tiny_processor()
    with pytest.raises(PushError, match="SEVLMProcessor"):
        stage(checkpoint, tmp_path / "out", "org/name", processor=processor.tokenizer)


@pytest.mark.parametrize("name", ["a/b/c", "org/with space", "-wrong-", "../elsewhere", ""])
def test_a_wrong_name_is_told_before_anything_is_done(tmp_path, name):
    with pytest.raises(PushError, match="no name for a repository"):
        push(tmp_path / "nothing", name)


REFUSALS = """
import sys, huggingface_hub
from modeling_sevlm.push import PushError, main, push, stage
checkpoint = sys.argv[1]
def refused(*arguments, **options):
    try:
        push(checkpoint, *arguments, **options)
    except PushError as error:
        print("|", *str(error).split())
    else:
        print("| pushed")
import modeling_sevlm.push as module
stages, module.stage = module.stage, lambda *_, **__: sys.exit("too late")
refused("org/new", token="hf_wrong")
huggingface_hub.HfApi().create_repo("org/public")
refused("org/public", private=True)
module.stage = stages
refused("org/public", token="hf_reader")
refused("org/other", token="hf_reader")
refused("org/hidden", private=True)
refused("org/hidden", private=True)
huggingface_hub.HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="data/old.safetensors", repo_id="org/hidden")
huggingface_hub.HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="chat_template.jinja", repo_id="org/hidden")
refused("org/hidden")
refused("mine")
import time, urllib.request
time.sleep = lambda seconds: None
cut = urllib.request.Request(sys.argv[2] + "/_cut/commits", method="POST")
urllib.request.urlopen(cut)
refused("org/never")
urllib.request.urlopen(urllib.request.Request(sys.argv[2] + "/_cut/nothing", method="POST"))
huggingface_hub.HfApi().upload_file(path_or_fileobj=b"old", path_in_repo="chat_template.jinja", repo_id="org/hidden")
urllib.request.urlopen(cut)
refused("org/hidden")
urllib.request.urlopen(urllib.request.Request(sys.argv[2] + "/_cut/nothing", method="POST"))
"""


def test_the_push_says_why_the_hub_did_not_take_it(hub, checkpoint, tmp_path):
    command = ["-c", REFUSALS, checkpoint, hub.url]
    done = visit(hub, tmp_path / "cache", command, python_path=PROJECT)
    assert done.returncode == 0, done.stderr[-4000:]
    told = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    expected = ["token (401)", "already and public", "(403)", "(403)", "pushed", "pushed", "pushed", "pushed"]
    expected += ["Nothing was published. Push again", "still gets its previous revision. Push again"]
    assert len(told) == len(expected)
    for line, part in zip(told, expected, strict=True):
        assert part in line
    assert not any("Push again" in line or "previous revision" in line for line in told[:4])
    assert hub.listing("org/public") == [] and "org/new" not in hub.repos and "org/other" not in hub.repos
    assert hub.repos["org/hidden"]["private"]
    files = hub.listing("org/hidden")
    assert "data/old.safetensors" in files, "others' folders are theirs"
    cleaned = hub.repos["org/hidden"]["commits"][-2]
    assert cleaned["title"] == "Upload SEVLM", "it would be read beside the new processor"
    assert "chat_template.jinja" not in cleaned["files"] and "data/old.safetensors" in cleaned["files"]
    assert "https://huggingface.co/tester/mine#" in hub.contents("tester/mine")["README.md"].decode()


def test_without_a_connection_it_says_so_before_the_work(checkpoint, tmp_path):
    code = "import sys\nfrom modeling_sevlm.push import main\nmain(sys.argv[1:])"
    nowhere = SimpleNamespace(url="http://127.0.0.1:9")
    done = visit(nowhere, tmp_path / "cache", ["-c", code, checkpoint, "org/name"], python_path=PROJECT)
    assert done.returncode == 1 and "Nothing was published" in done.stderr and "previous" not in done.stderr


def test_a_trainer_does_not_begin_to_push_to_a_public_repository_what_is_to_be_private(hub, tmp_path):
    code = """
import sys, huggingface_hub
sys.path.insert(0, sys.argv[1])
import train
huggingface_hub.HfApi().create_repo("org/seen")
arguments = "--num_paintings 20 --image_size 32 --max_steps 1 --eval_strategy no --load_best_model_at_end false"
arguments += " --output_dir out --use_cpu true --push_to_hub --hub_private_repo true --hub_model_id org/seen"
train.main(arguments.split())
"""
    done = visit(hub, tmp_path / "cache", ["-c", code, PROJECT[0]], python_path=PROJECT)
    assert done.returncode == 1 and "org/seen is there already and public" in done.stderr
    assert hub.listing("org/seen") == []
