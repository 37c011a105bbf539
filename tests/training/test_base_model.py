"""train.py --base_model trains a model further, and with --lora_rank an adapter for it."""

import json
import os
import shutil
from types import SimpleNamespace

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModel

import evaluate_sevlm
import train
from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_model_of
from modeling_sevlm.push import PushError, main, stage
from tests.helpers.hub_fixtures import PROCESSOR_FILES, PROJECT, visit
from tests.helpers.images import picture
from tests.helpers.tiny import pixels, tiny_lexicon, tiny_model, tiny_processor


RUN = "--num_paintings 30 --disable_tqdm true --use_cpu true --per_device_train_batch_size 8 --max_steps 4".split()
RUN += "--eval_steps 2 --save_steps 2 --generation_samples 2 --sheet_paintings 0 --learning_rate 0.05".split()
OVERWRITE = "--overwrite-output-dir"
RESUME = ["--resume_from_checkpoint", "true"]


def write(model) -> list:
    return model.eval().generate(pixel_values=pixels(3), do_sample=False, max_new_tokens=12).tolist()


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    """The folder of a trained adapter, and what its model writes."""
    folder = tmp_path_factory.mktemp("adapter")
    trainer = train.main(["--base_model", checkpoint, "--lora_rank", "3", *RUN, "--output_dir", str(folder)])
    return folder, write(trainer.model)


def test_an_adapter_is_trained_saved_and_loaded_on_its_model(checkpoint, adapter):
    folder, words = adapter
    weights = load_file(folder / ADAPTER_WEIGHTS)
    assert weights and all(".lora_" in name and 3 in tensor.shape for name, tensor in weights.items())
    assert {name.split(".lora_")[0].split(".")[-1] for name in weights} == {"c_attn", "q_attn", "c_proj", "c_fc"}
    assert not [*folder.rglob("config.json"), *folder.rglob("model.safetensors"), *folder.rglob("README.md")]
    assert base_model_of(folder) == os.path.abspath(checkpoint)
    assert write(AutoModel.from_pretrained(folder)) == words != write(AutoModel.from_pretrained(checkpoint))
    merged = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(checkpoint), folder).merge_and_unload()
    assert write(merged) == words
    frozen = AutoModel.from_pretrained(checkpoint).state_dict()
    loaded = AutoModel.from_pretrained(folder).state_dict()
    loaded = {name.replace(".base_layer", ""): tensor for name, tensor in loaded.items()}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in frozen.items())
    record = json.loads((folder / "training.json").read_text())
    assert record["base_model"] | {"weights": ""} == {"name": checkpoint, "lora_rank": 3, "weights": ""}


def test_an_interrupted_adapter_continues_to_the_same_bits(checkpoint, adapter, tmp_path):
    folder, _ = adapter
    shutil.copytree(folder / "checkpoint-2", tmp_path / "checkpoint-2")
    train.main(["--base_model", checkpoint, "--lora_rank", "3", *RUN, "--output_dir", str(tmp_path), *RESUME])
    whole, resumed = load_file(folder / ADAPTER_WEIGHTS), load_file(tmp_path / ADAPTER_WEIGHTS)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_adapter_is_evaluated_and_has_a_card(adapter, tmp_path):
    folder = shutil.copytree(adapter[0], tmp_path / "mine")
    arguments = [str(folder), "--num_paintings", "30", "--split", "test", "--batch_size", "4", "--captions", "false"]
    figures = evaluate_sevlm.main([*arguments, "--update_model_card", "--output_dir", str(tmp_path / "out")])
    assert figures["num_paintings"] == 2
    card = ModelCard.load(folder / "README.md")
    assert "LoRA adapter (rank 3, " in card.text and "(weights sha256:" in card.text
    assert str(tmp_path) not in card.content and card.data.base_model_relation == "adapter"
    assert card.data.library_name == "peft" and card.data.license == "other"  # the base model's data are unknown


def test_a_model_is_trained_further_with_its_own_settings(checkpoint, tmp_path):
    trainer = train.main(["--base_model", checkpoint, *RUN, "--output_dir", str(tmp_path)])
    before, after = (SEVLMForConditionalGeneration.from_pretrained(folder) for folder in (checkpoint, tmp_path))
    assert trainer.model.config.contrastive_loss_weight == before.config.contrastive_loss_weight
    assert after.config.emotions == before.config.emotions and after.vad_lookup.has_table
    assert not torch.equal(before.decoder.h[0].attn.c_attn.weight, after.decoder.h[0].attn.c_attn.weight)
    folder = tmp_path / "card"
    shutil.copytree(tmp_path, folder, ignore=lambda *_: ["card"])
    stage(folder, (tmp_path / "staged"), "org/further")
    assert "It was trained further from the model *" in (tmp_path / "staged" / "README.md").read_text()


def test_an_adapter_replaces_a_model_only_with_consent_and_whole(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "run")
    argv = ["--base_model", checkpoint, "--lora_rank", "2", *RUN, "--output_dir", str(folder), "--max_steps", "1"]
    argv += "--eval_strategy no --save_strategy no --load_best_model_at_end false".split()
    with pytest.raises(SystemExit, match="holds a model or an earlier run"):
        train.main(argv)
    train.main([*argv, "--overwrite_output_dir"])
    assert not (folder / "config.json").exists() and not (folder / "model.safetensors").exists()
    AutoModel.from_pretrained(folder)
    with pytest.raises(SystemExit, match="holds a model or an earlier run: .*adapter_model.safetensors"):
        train.main(argv)


@pytest.mark.parametrize(
    ("options", "message"),
    {
        ("--lora_rank", "4"): "--lora_rank needs --base_model",
        ("--base_model", "BASE", "--lora_rank", "0"): "rank of LoRA must be at least 1, not 0",
        ("--base_model", "BASE", "--use_vad_head", "false"): "--use_vad_head is decided by the model",
        ("--base_model", "BASE", "--no_use_vad_head"): "--use_vad_head is decided by the model",
        ("--base_model", "BASE", "--image-size=64"): "--image_size is decided by the model",
        ("--base_model", "BASE", "--labels", "joy", "grief"): "--labels is decided by the model",
        ("--base_model", "BASE", "--preset", "authors"): "leave out --base_model",
        ("--base_model", "ADAPTER"): "is an adapter for .*: merge them first",
        ("--base_model", "ADAPTER/nowhere"): "there is no such folder",
        ("--base_model", "BASE", "--output_dir", "BASE"): "holds the base model, which would be replaced",
        (
            "--base-model",
            "BASE",
            "--lora-rank",
            "2",
            "--output-dir",
            "BASE",
            "--overwrite-output-dir",
        ): "holds the base",
        ("--base_model", "BASE", "--resume_from_checkpoint", "ADAPTER/checkpoint-2"): "an adapter of rank 3",
        ("--base_model", "BASE", "--lora_rank", "2", "--resume_from_checkpoint", "ADAPTER/checkpoint-2"): "of rank 3",
        ("--base_model", "BASE", "--lora_rank", "2", "--clean_text", "true"): "was trained on raw text",
        ("--base_model", "BASE", "--vad_lexicon", "embedded"): "was trained with the VAD lexicon .*test words",
    }.items(),
)
def test_what_does_not_fit_a_base_model_is_refused_in_one_line(checkpoint, adapter, tmp_path, options, message):
    argv = [word.replace("BASE", checkpoint).replace("ADAPTER", str(adapter[0])) for word in options]
    with pytest.raises(SystemExit, match=f"error: .*{message}") as refused:
        train.main([*RUN, "--output_dir", str(tmp_path / "out"), *argv])
    assert "\n" not in str(refused.value).strip() and not (tmp_path / "out" / "training.json").exists()


def test_an_adapter_of_a_changed_or_moved_model_is_not_continued_or_evaluated(checkpoint, adapter, tmp_path):
    run, base = shutil.copytree(adapter[0], tmp_path / "run"), tmp_path / "base"
    tiny_model(tiny_processor(), seed=5).save_pretrained(base)
    tiny_processor().save_pretrained(base)
    argv = ["--base_model", str(base), "--lora_rank", "3", *RUN, "--output_dir", str(run), *RESUME, "--max_steps", "6"]
    with pytest.raises(SystemExit, match="its base model had other weights"):
        train.main(argv)
    about = json.loads((run / ADAPTER_CONFIG).read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}
    (run / ADAPTER_CONFIG).write_text(json.dumps(about))
    with pytest.raises(SystemExit, match="adapter for the model in .*gone, which does not exist"):
        evaluate_sevlm.main([str(run), "--output_dir", str(tmp_path / "out")])


def test_the_terms_of_all_data_are_inherited(checkpoint, tmp_path):
    base = shutil.copytree(checkpoint, tmp_path / "base")
    data = {"annotations": ["artemis.csv"], "version": "v1"}
    (base / "training.json").write_text(json.dumps({"data": data}))
    once = {"name": str(base), "lora_rank": None, "data": "ArtEmis v1"}
    assert train.base_record(SimpleNamespace(base_model=str(base), lora_rank=None)) | {"weights": ""} == once | {
        "weights": ""
    }
    (base / "training.json").write_text(json.dumps({"data": {"dataset": None}, "base_model": once}))
    assert train.base_record(SimpleNamespace(base_model=str(base), lora_rank=2))["data"] == "ArtEmis v1"
    (base / "training.json").write_text(json.dumps({"data": {"dataset": None}}))
    assert train.base_record(SimpleNamespace(base_model=str(base), lora_rank=2))["data"] == "embedded paintings"


def test_a_hyphen_in_an_option_changes_nothing(checkpoint):
    more = ["--base_model", checkpoint, "--annotations", "a-b.csv", "--images", "y", "--use_cpu"]
    parsed = [train.parse([option, "8", *more]) for option in ("--lora_rank", "--lora-rank")]
    assert [part[2].learning_rate for part in parsed] == [2e-4, 2e-4]
    assert parsed[0][1].annotations == parsed[1][1].annotations == ["a-b.csv"]


def test_an_adapter_without_peft_says_what_to_install(checkpoint, adapter, tmp_path, monkeypatch):
    find_spec = train.importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "peft" else find_spec(name, *rest)
    )
    with pytest.raises(SystemExit, match=r"need peft: pip install -e '.\[lora\]'"):
        train.main(["--base_model", checkpoint, "--lora_rank", "2", *RUN, "--output_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="need peft"):
        evaluate_sevlm.main([str(adapter[0]), "--output_dir", str(tmp_path / "out")])


def test_an_adapter_needs_the_lexicon_of_its_model(tmp_path):
    processor = tiny_processor(vad_lexicon=tiny_lexicon(redistributable=False))
    for part in (tiny_model(processor), processor):
        part.save_pretrained(tmp_path / "base")
    lexicon = tmp_path / "lexicon.tsv"
    processor.vad_lexicon.save(lexicon)
    argv = ["--base_model", str(tmp_path / "base"), "--lora_rank", "2", *RUN, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="lacks its VAD lexicon 'test words'. Pass --vad_lexicon"):
        train.main(argv)
    trainer = train.main([*argv, "--vad_lexicon", str(lexicon)])
    assert trainer.model.vad_lookup.has_table
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name == "vad_lexicon.tsv"]


def test_a_published_adapter_loads_on_a_machine_without_the_project(hub, checkpoint, adapter, tmp_path):
    folder, words = adapter
    with pytest.raises(PushError, match="not on the Hub. Push that model, and name it with --base_model"):
        stage(folder, tmp_path, "org/adapter")
    with pytest.raises(PushError, match="--base_model is for adapters"):
        stage(folder.parent / "nothing", tmp_path, "org/adapter", base_model="org/base")
    push = """
import sys
from modeling_sevlm.push import push
checkpoint, adapter = sys.argv[1:]
push(checkpoint, "org/base")
for name in ("org/adapter", "org/model"):
    push(adapter, name, base_model="org/base")
push(checkpoint, "org/model")
"""
    visit(hub, tmp_path / "owner", ["-c", push, checkpoint, folder], python_path=PROJECT)
    assert set(hub.listing("org/adapter")) - {".gitattributes"} == {
        "README.md",
        ADAPTER_CONFIG,
        ADAPTER_WEIGHTS,
        "vad_lexicon.tsv",
        *PROCESSOR_FILES,
    }
    card = ModelCard(hub.contents("org/adapter")["README.md"].decode())
    assert card.data.base_model == ["org/base"] and "[org/base](https://huggingface.co/org/base)" in card.text
    picture().save(tmp_path / "a.png")
    code = """
import sys
from transformers import AutoModel, AutoProcessor, pipeline
explain = pipeline("art-emotion-explanation", model="org/adapter", trust_remote_code=True)
result = explain(sys.argv[1])
print(result["explanation"])
model = AutoModel.from_pretrained("org/adapter", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("org/adapter", trust_remote_code=True)
inputs = processor(images=sys.argv[1], emotions=result["emotion"], return_tensors="pt")
print(processor.read(model.generate(**inputs, do_sample=False))[0]["explanation"])
"""
    done = visit(hub, tmp_path / "visitor", ["-c", code, tmp_path / "a.png"])
    first, second = done.stdout.splitlines()[-2:]
    assert first == second != ""
    # A whole model that replaces an adapter is not loaded as one.
    assert not {ADAPTER_CONFIG, ADAPTER_WEIGHTS} & {*hub.listing("org/model")}


def test_an_adapter_for_a_local_model_is_not_pushed_while_it_trains(checkpoint, tmp_path):
    argv = ["--base_model", checkpoint, "--lora_rank", "2", *RUN, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="The adapter's model .* is a local folder"):
        train.main([*argv, "--push_to_hub", "--hub_model_id", "org/adapter"])


def test_a_space_is_for_whole_models(adapter):
    with pytest.raises(SystemExit, match="--space needs a whole model: merge the adapter"):
        main([str(adapter[0]), "org/adapter", "--space", "org/space"])
