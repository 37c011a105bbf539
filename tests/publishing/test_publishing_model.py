"""`from_pretrained` reads only safetensors, and `save_pretrained` leaves out what must not leave this machine."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_sevlm import SEVLMForConditionalGeneration
from tests.helpers.hub_fixtures import PROJECT, has_rows, visit


def pickle_weights(folder, kind):
    """Replaces the weights of a saved model by a pickle in one of the layouts that transformers reads."""
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
def test_a_repository_with_pickled_weights_only_is_not_read(hub, model, tmp_path, monkeypatch, kind):
    model.save_pretrained(tmp_path)
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
    done = visit(hub, tmp_path / "cache", ["-c", code, tmp_path], returncode=1)
    assert f"{name} has no weights in safetensors" in done.stderr
    with pytest.raises(OSError) as absent:
        SEVLMForConditionalGeneration.from_pretrained(tmp_path / "nowhere")
    assert "run code" not in str(absent.value)


def test_unreachable_weights_are_not_called_pickles(hub, model, tmp_path):
    """Offline with only the config in the cache, and with an interrupted connection."""
    model.save_pretrained(tmp_path / "model")
    code = """
import sys, huggingface_hub.file_download
from transformers import AutoConfig
from modeling_sevlm import SEVLMForConditionalGeneration
SEVLMForConditionalGeneration.from_pretrained(sys.argv[1]).push_to_hub("org/reach")
config = AutoConfig.from_pretrained("org/reach")
try:
    SEVLMForConditionalGeneration.from_pretrained("org/reach", config=config, local_files_only=True)
except OSError as error:
    print("offline:", error)
def broken(*_, **__): raise ConnectionError("cut")
huggingface_hub.file_download.get_hf_file_metadata = broken
try:
    SEVLMForConditionalGeneration.from_pretrained("org/reach", config=config)
except OSError as error:
    print("cut:", error)
"""
    done = visit(hub, tmp_path / "visitor", ["-c", code, tmp_path / "model"], python_path=PROJECT)
    assert "offline: Cannot load the weights of org/reach" in done.stdout and "cut: " in done.stdout
    assert "run code" not in done.stdout and "Pickle" not in done.stdout


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("lost", [["state_vad"], ["transition_keys", "token_pieces"]])
def test_weights_without_the_promised_lexicon_load_without_a_lexicon(
    model, processor, tmp_path, caplog, sharded, lost
):
    model.save_pretrained(tmp_path, max_shard_size="100KB" if sharded else "1GB")
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
    assert f"Missing: {', '.join(sorted(lost))} (part of the lexicon 'test words')" in caplog.text
    model.save_pretrained(tmp_path / "again")
    SEVLMForConditionalGeneration.from_pretrained(tmp_path / "again")
    model.set_vad_lexicon(processor.vad_lexicon, processor.tokenizer)
    assert model.vad_lookup.has_table and "trained_with" not in model.config.vad_lexicon


def test_a_lexicon_of_unknown_origin_is_saved_only_on_request(processor, model, tmp_path):
    expected = model.vad_lookup(torch.arange(40)[None])
    model.config.vad_lexicon = None
    model.save_pretrained(tmp_path / "public")
    for file in (tmp_path / "public").glob("*.safetensors"):
        assert not has_rows(file.read_bytes(), file.name)
    assert not SEVLMForConditionalGeneration.from_pretrained(tmp_path / "public").vad_lookup.has_table
    model.save_pretrained(tmp_path / "private", include_vad_lexicon=True)
    loaded = SEVLMForConditionalGeneration.from_pretrained(tmp_path / "private")
    assert torch.equal(loaded.vad_lookup(torch.arange(40)[None]), expected)


def test_local_paths_are_not_saved(model, tmp_path):
    tower = tmp_path / "tower"
    model.config.vision_config._name_or_path = str(tower)
    model.config.text_config._name_or_path = "distilgpt2"
    model.config.name_or_path = str(tower)
    model.save_pretrained(tmp_path / "model")
    saved = (tmp_path / "model" / "config.json").read_text()
    assert str(tmp_path) not in saved and '"_name_or_path": "distilgpt2"' in saved
    assert model.config.vision_config._name_or_path == str(tower), "the model keeps it"
