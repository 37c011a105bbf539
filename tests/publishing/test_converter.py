"""The converter and releases that are downloaded, damaged or dangerous (numerical results: test_fidelity)."""

import json
import os
import shutil

import pytest
import torch

from modeling_sevlm import convert_sevlm_checkpoint
from tests.helpers.hub_fixtures import PROJECT, visit
from tests.model.test_fidelity import write_release


@pytest.fixture
def release(tmp_path):
    return write_release(tmp_path / "release")


def refusal(release, output) -> str:
    """Returns the error message of the converter, which must not write anything."""
    with pytest.raises(SystemExit) as ended:
        convert_sevlm_checkpoint.main([str(release), "--output_dir", str(output)])
    assert not output.exists()
    assert str(ended.value).startswith("error: ")
    return str(ended.value)


def test_a_release_downloaded_into_a_folder_is_converted(hub, release, tmp_path):
    """The download keeps metadata in `.cache`, in folders with the same names as the release's."""
    code = """
import sys, huggingface_hub
from modeling_sevlm.convert_sevlm_checkpoint import main
api = huggingface_hub.HfApi()
api.create_repo("org/release")
api.upload_folder(repo_id="org/release", folder_path=sys.argv[1], path_in_repo="SEVLM/v2.0")
huggingface_hub.snapshot_download("org/release", local_dir="download")
main(["download", "--output_dir", "converted"])
"""
    visit(hub, tmp_path / "visitor", ["-c", code, release], python_path=PROJECT)
    assert list((tmp_path / "visitor" / "download" / ".cache").rglob("nle_model_best-acc"))
    assert (tmp_path / "visitor" / "converted" / "model.safetensors").exists()


def test_a_release_in_the_cache_of_the_library_is_converted(release, tmp_path):
    shutil.move(release, tmp_path / ".cache" / "release")
    convert_sevlm_checkpoint.main([str(tmp_path / ".cache" / "release"), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "model.safetensors").exists()


class Planted:
    """Creates a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("planted",)


DECODER, STATISTICS = "nle_model_best-acc/pytorch_model.bin", "ckpt_stats_best-acc.tar"


@pytest.mark.parametrize("file", [DECODER, STATISTICS])
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ([torch.zeros(1)], "list"),
        (torch.zeros(1), "Tensor"),
        ({}, "lacks"),
        ({"weights": Planted()}, "run code: it calls posix.mkdir"),
        (b"", "EOFError"),
        (b"no pickle", "damaged"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01", "damaged"),
        (b"\x80\x02(u.", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),
        (b"\x80\x02X\x02\x00\x00\x00\xff\xff.", "damaged"),
        ("cut", "damaged"),
    ],
    ids=["list", "tensor", "empty", "code", "nothing", "text", "unfinished", "stack", "memo", "encoding", "cut"],
)
def test_a_file_without_a_dictionary_of_weights_is_named_with_the_cause(release, tmp_path, file, payload, message):
    if payload == "cut":
        content = (release / file).read_bytes()
        (release / file).write_bytes(content[: len(content) // 2])
    elif isinstance(payload, bytes):
        (release / file).write_bytes(payload)
    else:
        torch.save(payload, release / file)
    error = refusal(release, tmp_path / "out")
    assert file in error and message in error and "weights_only" not in error, "no advice to load it unchecked"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"emo_encoder_state_dict": None}, "lacks emo_encoder_state_dict"),
        ({"emo_encoder_state_dict": {}}, "lacks emotion_encoder.positions.weight"),
        ({"emo_encoder_state_dict": [1]}, "list"),
        ({"emo_encoder_state_dict": {"norm.weight": "three"}}, "a dictionary of named tensors"),
    ],
)
def test_statistics_without_the_emotion_encoder_are_an_error(release, tmp_path, changes, message):
    """A model without an emotion encoder would compute something else."""
    statistics = {"epoch": 3} | {name: value for name, value in changes.items() if value is not None}
    torch.save(statistics, release / STATISTICS)
    error = refusal(release, tmp_path / "out")
    assert STATISTICS in error and message in error


@pytest.mark.parametrize(
    ("content", "message"), [(None, "config.json"), ("{", "Expecting"), ("[]", "list"), ("{}", "lacks img_size")]
)
def test_a_broken_config_of_the_release_is_named(release, tmp_path, content, message):
    file = release / "nle_model_best-acc" / "config.json"
    file.write_text(content) if content is not None else file.unlink()
    error = refusal(release, tmp_path / "out")
    assert str(file) in error and message in error


def test_weights_that_do_not_fit_the_config_are_an_error(release, tmp_path):
    file = release / "nle_model_best-acc" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"n_positions": 7}))
    assert "do not fit" in refusal(release, tmp_path / "out")


def test_overwriting_leaves_nothing_of_the_earlier_model(release, tmp_path):
    output = tmp_path / "out"
    convert_sevlm_checkpoint.main([str(release), "--output_dir", str(output)])
    made = sorted(output.iterdir())
    for name in ("training_log.json", "evaluation_results.json", "model.safetensors.index.json"):
        (output / name).write_text("{}")
    (output / "checkpoint-7").mkdir()
    (output / "notes.txt").write_text("mine")
    convert_sevlm_checkpoint.main([str(release), "--output_dir", str(output), "--overwrite_output_dir"])
    assert sorted(output.iterdir()) == sorted([*made, output / "notes.txt"])
