"""Code in foreign files is not run, and tokens are not printed or saved."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, CLIPVisionModel, GPT2LMHeadModel

import evaluate_sevlm
import train
from metrics.emotional_alignment.emotional_alignment import emotional_alignment_scores
from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.hub import PushError
from modeling_sevlm.push import push
from modeling_sevlm.trainer import SEVLMTrainingArguments, check_push
from processing.annotations import read_dataset
from tests.helpers.hub_fixtures import PROJECT, visit
from tests.helpers.tiny import BLOCKS, save_backbones


QUIET = "--num_paintings 60 --image_size 32 --max_steps 2 --eval_strategy no --load_best_model_at_end false".split()
QUIET += "--use_cpu true --disable_tqdm true --per_device_train_batch_size 8 --save_steps 1".split()
TOKEN = "hf_plantedAbCdEfGhIjKlMnOpQrStUvWx"


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


@pytest.fixture
def trap(tmp_path):
    trap = Trap(tmp_path / "proof")
    pickle.loads(pickle.dumps(trap))
    assert trap.proof.exists()
    trap.proof.unlink()
    yield trap
    assert not trap.proof.exists(), "the code was run"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train.main([*QUIET, "--output_dir", str(folder)])
    return folder / "checkpoint-1"


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"]
)
def test_resuming_does_not_run_code_of_a_foreign_checkpoint(checkpoint, tmp_path, trap, name):
    foreign = shutil.copytree(checkpoint, tmp_path / "foreign")
    torch.save({"state": trap}, foreign / name)
    resume = [*QUIET, "--output_dir", str(tmp_path / "out"), "--resume_from_checkpoint", str(foreign)]
    if name == "training_args.bin":
        train.main(resume)  # not read
        return
    if name == "pytorch_model.bin":
        (foreign / "model.safetensors").unlink()
    with pytest.raises((ValueError, SystemExit), match="foreign") as refused:
        train.main(resume)
    assert "weights_only" not in str(refused.value), "no advice to run it"


def pickled(folder: Path, model, trap: Trap) -> str:
    """Saves a checkpoint whose weights are a pickle with the trap."""
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(dict(model.state_dict()) | {"trap": trap}, folder / "pytorch_model.bin")
    return str(folder)


REFUSALS = (ValueError, OSError, pickle.UnpicklingError)


@pytest.mark.parametrize(("name", "kind"), [("clip", CLIPVisionModel), ("gpt2", GPT2LMHeadModel)])
def test_pickled_weights_of_a_backbone_are_not_run(processor, tmp_path, trap, name, kind):
    save_backbones(tmp_path)
    pickled(tmp_path / name, kind.from_pretrained(tmp_path / name), trap)
    with pytest.raises(REFUSALS):
        SEVLMForConditionalGeneration.from_backbones(str(tmp_path / "clip"), str(tmp_path / "gpt2"), processor)


def test_pickled_weights_of_a_judge_are_not_run(tmp_path, trap):
    judge = pickled(tmp_path, BertForSequenceClassification(BertConfig(**BLOCKS, vocab_size=50)), trap)
    with pytest.raises(REFUSALS):
        emotional_alignment_scores(["so calm"], [[0, 3]], ["LABEL_0", "LABEL_1"], judge)


@pytest.mark.parametrize("name", ["data.py", "{folder}.py", "data.pkl", "data.pickle"])
def test_code_in_a_dataset_is_not_run(tmp_path, trap, name):
    content = code(trap) if name.endswith(".py") else pickle.dumps([{"trap": trap}])
    (tmp_path / name.format(folder=tmp_path.name)).write_bytes(content)
    with pytest.raises((ValueError, OSError, RuntimeError)):
        read_dataset(str(tmp_path), "image", "painting", "emotion", "explanation")


def code(trap: Trap) -> bytes:
    return f"import pathlib\npathlib.Path({str(trap.proof)!r}).touch()\n".encode()


def test_scripts_do_not_run_code_of_a_model(model, processor, tmp_path, trap):
    folder = tmp_path / "model"
    for part in (model, processor):
        part.save_pretrained(folder)
    for file in folder.glob("*.py"):
        file.write_bytes(code(trap) + file.read_bytes())
    command = [str(folder), "--num_paintings", "24", "--use_cpu", "--captions", "false"]
    command += ["--output_dir", str(tmp_path / "evaluated")]
    assert evaluate_sevlm.main(command)["num_paintings"] == 2, "scored with this installation's code"

    about = json.loads((folder / "config.json").read_text()) | {"model_type": "unheard_of"}
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(SystemExit, match="trust_remote_code|unheard_of"):
        evaluate_sevlm.main(command)


def holders(folder: Path) -> list[str]:
    """Returns the files that contain the token, also inside archives."""
    found = []
    for file in filter(Path.is_file, folder.rglob("*")):
        content = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content += b"".join(map(archive.read, archive.namelist()))
        if TOKEN.encode() in content:
            found.append(str(file.relative_to(folder)))
    return found


EVERYTHING = """
import sys, train, evaluate_sevlm
from modeling_sevlm import push
train.main(sys.argv[1:] + ["--output_dir", "model", "--report_to", "tensorboard", "--log_level", "debug"])
evaluation = ["--num_paintings", "24", "--use_cpu", "--captions", "false", "--update_model_card"]
evaluate_sevlm.main(["model", *evaluation, "--output_dir", "evaluated"])
push.main(["model", "org/again"])
try:
    push.main(["nothing", "org/again"])
except SystemExit as error:
    print(error)
"""


def test_the_token_is_in_no_file_and_no_output(hub, tmp_path):
    arguments = [*QUIET, "--push_to_hub", "--hub_model_id", "org/name", "--hub_token", TOKEN]
    done = visit(hub, tmp_path / "run", ["-c", EVERYTHING, *arguments], python_path=PROJECT, HF_TOKEN=TOKEN)
    assert TOKEN not in done.stdout + done.stderr
    assert {"model", "evaluated"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert holders(tmp_path / "run") == []
    for name in hub.repos:
        for commit in hub.repos[name]["commits"]:
            contents = hub.contents(name, commit["oid"])
            assert not any(TOKEN.encode() in content for content in contents.values()), name


def test_training_arguments_do_not_print_their_token(tmp_path):
    arguments = SEVLMTrainingArguments(output_dir=str(tmp_path), hub_token=TOKEN, use_cpu=True)
    assert TOKEN not in repr(arguments) + str(arguments) + arguments.to_json_string()
    assert TOKEN.encode() not in pickle.dumps(arguments)
    assert arguments.hub_token == TOKEN


@pytest.mark.parametrize("spoilt", [f"{TOKEN}\n", f"{TOKEN} x", f"{TOKEN}\x00", f"{TOKEN}é", f"{TOKEN}\nX-Other: 1"])
def test_an_invalid_token_is_refused_without_repeating_it(processor, tmp_path, spoilt):
    arguments = SEVLMTrainingArguments(output_dir=str(tmp_path), push_to_hub=True, hub_token=spoilt, use_cpu=True)
    for refuse in (lambda: push(tmp_path, "org/name", token=spoilt), lambda: check_push(arguments, processor, None)):
        with pytest.raises(PushError, match="line break") as refused:
            refuse()
        assert TOKEN not in str(refused.value) and refused.value.__cause__ is None


@pytest.mark.parametrize("script", [train, evaluate_sevlm])
@pytest.mark.parametrize("typed", [["--token", TOKEN], [f"--token={TOKEN}"], [TOKEN]])
def test_an_unknown_argument_is_named_without_its_value(script, typed):
    with pytest.raises(SystemExit) as refused:
        script.main(["--output_dir", os.devnull, *typed])
    assert TOKEN not in str(refused.value) and "--help" in str(refused.value)
    assert ("--token" in str(refused.value)) == (len(typed) == 2 or "=" in typed[0])
