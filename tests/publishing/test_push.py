"""What `python -m modeling_sevlm.push` refuses to publish, and its error messages."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_sevlm.push import PushError, push, stage
from tests.helpers.hub_fixtures import PROJECT, visit


@pytest.fixture
def checkpoint(model, processor, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize("name", ["decoder.h.1.mlp.c_fc.weight", "vad_lookup.state_vad"])
def test_missing_weights_are_not_published_as_random_numbers(checkpoint, tmp_path, name):
    weights = load_file(checkpoint / "model.safetensors")
    assert weights.pop(name) is not None
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PushError, match=rf"lacks 1 weights \({name.partition('.state')[0]}"):
        stage(checkpoint, tmp_path / "out", "org/name")


def test_weights_of_another_shape_and_damaged_weights_are_not_published(checkpoint, tmp_path):
    file = checkpoint / "model.safetensors"
    whole, weights = file.read_bytes(), load_file(file)
    save_file(weights | {"vad_head.bias": torch.zeros(7)}, file, metadata={"format": "pt"})
    with pytest.raises(PushError, match="does not fit its config.json: .*mismatched_sizes"):
        stage(checkpoint, tmp_path / "out", "org/name")
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PushError, match="is damaged.*incomplete metadata"):
        stage(checkpoint, tmp_path / "out", "org/name")


def test_code_in_the_folder_is_neither_run_nor_published(checkpoint, tmp_path):
    proof, planted = tmp_path / "proof", "import pathlib; pathlib.Path({!r}).touch()\n".format(str(tmp_path / "proof"))
    codes = {file.name: file.read_text() for file in checkpoint.glob("*.py")}
    for name in codes:
        (checkpoint / name).write_text(planted + codes[name])
    (tmp_path / "out").mkdir()
    stage(checkpoint, tmp_path / "out", "org/name")
    assert {file.name: file.read_text() for file in (tmp_path / "out").glob("*.py")} == codes

    # A tokenizer can name code, too.
    about = json.loads((checkpoint / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "processing_sevlm.Mine"]}}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(about))
    try:
        stage(checkpoint, tmp_path / "out", "org/name")
    except PushError as error:
        assert "without running code" in str(error)
    assert "Mine" not in (tmp_path / "out" / "tokenizer_config.json").read_text()
    assert not proof.exists()


def test_a_processor_of_another_class_is_not_published(checkpoint, processor, tmp_path):
    with pytest.raises(PushError, match="SEVLMProcessor"):
        stage(checkpoint, tmp_path / "out", "org/name", processor=processor.tokenizer)


@pytest.mark.parametrize("name", ["a/b/c", "org/with space", "-wrong-", "../elsewhere", ""])
def test_an_invalid_name_is_refused_first(name):
    with pytest.raises(ValueError, match="Repo id|repo_name"):
        push(Path("nothing"), name)


REFUSALS = """
import sys, time, urllib.request
import modeling_sevlm.push as module
from huggingface_hub import HfApi

def push(*arguments, **options):
    try:
        module.push(sys.argv[1], *arguments, **options)
    except module.PushError as error:
        print("|", *str(error).split())
    else:
        print("| pushed")

def upload(name):
    HfApi().upload_file(path_or_fileobj=b"old", path_in_repo=name, repo_id="org/hidden")

def cut(what):
    urllib.request.urlopen(urllib.request.Request(sys.argv[2] + "/_cut/" + what, method="POST"))

stage, module.stage = module.stage, lambda *_, **__: sys.exit("too late")
time.sleep = lambda seconds: None
push("org/new", token="hf_wrong")
HfApi().create_repo("org/public")
push("org/public", private=True)
module.stage = stage
push("org/public", token="hf_reader")
push("org/other", token="hf_reader")
push("org/hidden", private=True)
push("org/hidden", private=True)
upload("data/old.safetensors")
upload("chat_template.jinja")
push("org/hidden")
push("mine")
cut("commits")
push("org/never")
cut("nothing")
upload("chat_template.jinja")
cut("commits")
push("org/hidden")
"""


def test_a_refused_push_gives_the_reason(hub, checkpoint, tmp_path):
    done = visit(hub, tmp_path / "cache", ["-c", REFUSALS, checkpoint, hub.url], python_path=PROJECT)
    errors = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    expected = ["token (401)", "is public", "(403)", "(403)", "pushed", "pushed", "pushed", "pushed"]
    expected += ["Nothing was published. Push again", "still has its previous revision. Push again"]
    for line, part in zip(errors, expected, strict=True):
        assert part in line
    assert not any("Push again" in line or "previous revision" in line for line in errors[:4])
    assert hub.listing("org/public") == [] and "org/new" not in hub.repos and "org/other" not in hub.repos
    assert hub.repos["org/hidden"]["private"]
    cleaned = hub.repos["org/hidden"]["commits"][-2]
    assert cleaned["title"] == "Upload SEVLM" and "chat_template.jinja" not in cleaned["files"]
    assert "data/old.safetensors" in cleaned["files"]
    assert "https://huggingface.co/tester/mine#" in hub.contents("tester/mine")["README.md"].decode()


def test_a_push_without_a_connection_ends_before_the_work(checkpoint, tmp_path):
    nowhere, command = SimpleNamespace(url="http://127.0.0.1:9"), ["-m", "modeling_sevlm.push", checkpoint, "org/name"]
    done = visit(nowhere, tmp_path / "cache", command, python_path=PROJECT, returncode=1)
    assert "Nothing was published" in done.stderr and "previous" not in done.stderr


def test_private_training_does_not_start_if_the_repository_is_public(hub, tmp_path):
    code = """
import sys, huggingface_hub
sys.path.insert(0, sys.argv[1])
import train
huggingface_hub.HfApi().create_repo("org/seen")
arguments = "--num_paintings 20 --image_size 32 --max_steps 1 --eval_strategy no --load_best_model_at_end false"
arguments += " --output_dir out --use_cpu true --push_to_hub --hub_private_repo true --hub_model_id org/seen"
train.main(arguments.split())
"""
    done = visit(hub, tmp_path / "cache", ["-c", code, PROJECT[0]], python_path=PROJECT, returncode=1)
    assert "org/seen is public" in done.stderr
    assert hub.listing("org/seen") == []
