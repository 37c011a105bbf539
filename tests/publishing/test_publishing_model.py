# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`model.push_to_hub` and `from_pretrained`: a card of ours, a lexicon only when asked for, pickles never."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_sevlm import SEVLMForConditionalGeneration
from tests.helpers.hub_fixtures import PROJECT, has_rows, visit
from tests.helpers.tiny import tiny_lexicon, tiny_model, tiny_processor


NAMES = ("plain", "asked", "saved")


def test_pushing_a_model_leaves_a_card_and_a_lexicon_only_if_asked_for(hub, tmp_path):
    processor = tiny_processor(vad_lexicon=tiny_lexicon(redistributable=False))
    tiny_model(processor).save_pretrained(tmp_path / "model", include_vad_lexicon=True)
    code = """
import sys
from modeling_sevlm import SEVLMForConditionalGeneration
model = SEVLMForConditionalGeneration.from_pretrained(sys.argv[1])
model.push_to_hub("org/plain")
model.push_to_hub("org/asked", include_vad_lexicon=True)
model.save_pretrained("saved", push_to_hub=True, repo_id="org/saved")
model.save_pretrained("elsewhere")
model.config.emotion_loss_weight = 0.5
model.push_to_hub("org/asked", include_vad_lexicon=True)
"""
    done = visit(hub, tmp_path / "cache", ["-c", code, tmp_path / "model"], python_path=PROJECT)
    assert done.returncode == 0, done.stderr[-4000:]
    found = {name: has_rows(hub.contents(f"org/{name}")["model.safetensors"], "model.safetensors") for name in NAMES}
    assert found == {"plain": False, "asked": True, "saved": False}
    for name in NAMES:
        assert "## Limits and biases" in hub.contents(f"org/{name}")["README.md"].decode()
    first, second = hub.repos["org/asked"]["commits"][1:]
    assert first["files"]["README.md"] == second["files"]["README.md"], "a card that is there stays"


def pickle_weights(folder, kind):
    """Turn a saved model into one whose weights are pickled, in one of the ways in which the library reads them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    if kind.startswith("index"):
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "pytorch_model.bin")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if kind == "named":
        (folder / "pytorch_model.bin").rename(folder / "adapter_model.bin")
        config["transformers_weights"] = "adapter_model.bin"
    if kind == "index without dtype":
        del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", ["file", "index", "index without dtype", "named"])
def test_a_repository_with_pickled_weights_only_is_not_read(hub, tmp_path, monkeypatch, kind):
    tiny_model(tiny_processor()).save_pretrained(tmp_path)
    pickle_weights(tmp_path, kind)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
        for load in (SEVLMForConditionalGeneration.from_pretrained, AutoModel.from_pretrained):
            with pytest.raises(OSError, match="no weights in safetensors.*save_pretrained"):
                load(tmp_path)
    with pytest.raises(ValueError, match="can run code"):
        SEVLMForConditionalGeneration.from_pretrained(tmp_path, use_safetensors=False)
    name = f"org/pickled-{kind.replace(' ', '-')}"
    code = f"""
import sys, huggingface_hub, torch, transformers
torch.load = lambda *_, **__: sys.exit("a pickle was read")
api = huggingface_hub.HfApi()
api.create_repo("{name}")
api.upload_folder(repo_id="{name}", folder_path=sys.argv[1])
transformers.AutoModel.from_pretrained("{name}", trust_remote_code=True)
"""
    done = visit(hub, tmp_path / "cache", ["-c", code, tmp_path])
    assert done.returncode == 1 and f"{name} has no weights in safetensors" in done.stderr
    with pytest.raises(OSError) as absent:
        SEVLMForConditionalGeneration.from_pretrained(tmp_path / "nowhere")
    assert "run code" not in str(absent.value), "what is not there is no matter of pickles"


def test_weights_that_are_only_out_of_reach_are_not_called_pickles(hub, tmp_path):
    """Offline with the config alone in the cache, and with a Hub that breaks off."""
    tiny_model(tiny_processor()).save_pretrained(tmp_path / "model")
    fill = "import sys; from modeling_sevlm import *; "
    fill += "SEVLMForConditionalGeneration.from_pretrained(sys.argv[1]).push_to_hub('org/reach')"
    done = visit(hub, tmp_path / "owner", ["-c", fill, tmp_path / "model"], python_path=PROJECT)
    assert done.returncode == 0, done.stderr[-4000:]
    code = """
from transformers import AutoConfig
from modeling_sevlm import SEVLMForConditionalGeneration
config = AutoConfig.from_pretrained("org/reach")
try:
    SEVLMForConditionalGeneration.from_pretrained("org/reach", config=config, local_files_only=True)
except OSError as error:
    print("offline:", error)
import huggingface_hub.file_download
def broken(*_, **__): raise ConnectionError("cut")
huggingface_hub.file_download.get_hf_file_metadata = broken
try:
    SEVLMForConditionalGeneration.from_pretrained("org/reach", config=config)
except OSError as error:
    print("cut:", error)
"""
    done = visit(hub, tmp_path / "visitor", ["-c", code], python_path=PROJECT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "offline: The weights of org/reach are not here" in done.stdout and "cut: " in done.stdout
    assert "run code" not in done.stdout and "pickled" not in done.stdout


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("lost", [["state_vad"], ["transition_keys", "token_pieces"]])
def test_weights_without_the_table_that_the_config_promises_give_no_garbage(
    processor, tmp_path, caplog, sharded, lost
):
    tiny_model(processor).save_pretrained(tmp_path, max_shard_size="100KB" if sharded else "1GB")
    lost = [f"vad_lookup.{name}" for name in lost]
    for file in tmp_path.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if name not in lost}
        save_file(kept, file, metadata={"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == sharded
    if sharded:
        about = json.loads(index.read_text())
        about["weight_map"] = {name: file for name, file in about["weight_map"].items() if name not in lost}
        index.write_text(json.dumps(about))
    caplog.clear()
    model = SEVLMForConditionalGeneration.from_pretrained(tmp_path)
    assert not model.vad_lookup.has_table and model.config.vad_lexicon["table"] is None
    assert not model.vad_lookup(torch.arange(40)[None]).any()
    assert "promises the compiled VAD lexicon 'test words'" in caplog.text and lost[0] in caplog.text
    model.save_pretrained(tmp_path / "again")
    SEVLMForConditionalGeneration.from_pretrained(tmp_path / "again")
    model.set_vad_lexicon(processor.vad_lexicon, processor.tokenizer)
    assert model.vad_lookup.has_table and "trained_with" not in model.config.vad_lexicon


def test_a_table_of_which_nothing_is_known_does_not_travel(processor, model, tmp_path):
    expected = model.vad_lookup(torch.arange(40)[None])
    model.config.vad_lexicon = None
    model.save_pretrained(tmp_path / "public")
    for file in (tmp_path / "public").glob("*.safetensors"):
        assert not has_rows(file.read_bytes(), file.name)
    assert not SEVLMForConditionalGeneration.from_pretrained(tmp_path / "public").vad_lookup.has_table
    model.save_pretrained(tmp_path / "private", include_vad_lexicon=True)
    loaded = SEVLMForConditionalGeneration.from_pretrained(tmp_path / "private")
    assert torch.equal(loaded.vad_lookup(torch.arange(40)[None]), expected)


def test_paths_of_this_machine_are_not_saved(model, tmp_path):
    tower = tmp_path / "tower"
    model.config.vision_config._name_or_path = str(tower)
    model.config.text_config._name_or_path = "distilgpt2"
    model.config.name_or_path = str(tower)
    model.save_pretrained(tmp_path / "model")
    saved = (tmp_path / "model" / "config.json").read_text()
    assert str(tmp_path) not in saved and '"_name_or_path": "distilgpt2"' in saved
    assert model.config.vision_config._name_or_path == str(tower), "the model keeps it"
