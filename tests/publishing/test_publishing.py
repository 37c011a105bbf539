"""Published models load in fresh processes with empty caches, from a Hub on this machine.

Each process does several things, because starting torch and transformers takes most of its time.
"""

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.hub import PushError
from modeling_sevlm.push import check_complete, check_lexicon_stays, stage
from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments, check_push
from processing import SEVLMProcessor, VADLexicon
from tests.helpers import hub_fixtures as hubs
from tests.helpers.hub_fixtures import COMPLETE, PROJECT, answer, answers, assert_same, script, visit
from tests.helpers.tiny import IMAGE_SIZE, tiny_model, tiny_processor


LEXICON = {"vad_lexicon.tsv"}
RESULTS = {"accuracy": 0.515, "num_paintings": 10, "num_dominant": 5, "judge": None, "seeds": [0]}
RESULTS["data"] = {"annotations": None, "dataset": None}
RESULTS["arguments"] = {"split": "test", "num_candidates": 1, "do_sample": False}
FIGURES = "| this model | 51.5 |"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("publishing")


@pytest.fixture(scope="module")
def image(folder):
    noise = np.random.default_rng(0).integers(0, 255, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "painting.jpg", quality=95)
    return folder / "painting.jpg"


def save(folder, model, processor, **kwargs):
    """Writes a folder like a trainer's, with files that must not be published."""
    model.config.vision_config._name_or_path = str(folder.parent)
    model.save_pretrained(folder, **kwargs)
    processor.save_pretrained(folder, **kwargs)
    torch.save({"learning_rate": 1e-3}, folder / "training_args.bin")
    (folder / "checkpoint-2").mkdir()
    torch.save({}, folder / "checkpoint-2" / "optimizer.pt")
    (folder / "training_log.json").write_text(json.dumps([{"loss": 5.0, "epoch": 1.0, "step": 9}]))
    (folder / "evaluation_results.json").write_text(json.dumps(RESULTS))
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder, image):
    """A folder of a model with a redistributable lexicon, saved twice, and the model's answer."""
    processor = tiny_processor()
    model = tiny_model(processor)
    model.save_pretrained(folder / "first")
    loaded = SEVLMForConditionalGeneration.from_pretrained(folder / "first")
    return save(folder / "open", loaded, processor), answer(model, processor, image)


@pytest.fixture(scope="module")
def restricted(folder, image):
    """The same with a lexicon in the format of NRC-VAD, which may not be redistributed but is in this folder."""
    processor = tiny_processor(vad_lexicon=VADLexicon.from_file(hubs.write_nrc_lexicon(folder)))
    assert not processor.vad_lexicon.redistributable
    model = tiny_model(processor)
    return save(folder / "restricted", model, processor, include_vad_lexicon=True), answer(model, processor, image)


@pytest.fixture(scope="module")
def published(hub, folder, checkpoint):
    command = ["-m", "modeling_sevlm.push", checkpoint[0], "org/first"]
    done = visit(hub, folder / "publisher", command, python_path=PROJECT)
    assert "/org/first/commit/" in done.stdout
    return "org/first"


@pytest.fixture(scope="module")
def visitor(hub, folder, published, image):
    """A process without the project loads `org/first`, saves it again and pushes it."""
    code = """
trust = {"trust_remote_code": True}
found = {"answers": []}
processor = transformers.AutoProcessor.from_pretrained("org/first", **trust)
for name in ("AutoModel", "AutoModelForImageTextToText"):
    model = getattr(transformers, name).from_pretrained("org/first", **trust).eval()
    found["answers"].append(answer(model, processor, IMAGE) | {"module": type(model).__module__.split(".")[0]})
found["config"] = transformers.AutoConfig.from_pretrained("org/first", **trust).model_type
tokenizer = transformers.AutoTokenizer.from_pretrained("org/first", **trust)
found["tokenizer"] = tokenizer("the dark sea")["input_ids"]
read = transformers.AutoImageProcessor.from_pretrained("org/first", **trust)
pixels, expected = (way(images=Image.open(IMAGE), return_tensors="pt")["pixel_values"] for way in (read, processor))
found["pixels"] = float((pixels - expected).abs().max())
model.push_to_hub("org/third")
model.save_pretrained("again")
processor.save_pretrained("again")
model = transformers.AutoModel.from_pretrained("again", **trust)
processor = transformers.AutoProcessor.from_pretrained("again", **trust)
processor.push_to_hub("org/second")
model.push_to_hub("org/second", revision="main")
print(json.dumps(found))
"""
    done = visit(hub, folder / "visitor", script(image, code))
    return answers(done) | {"log": done.stderr}


def test_the_command_publishes_exactly_the_needed_files_in_one_commit(hub, published, folder):
    assert set(hub.listing(published)) == COMPLETE | LEXICON
    assert hub.titles(published) == ["initial commit", "Upload SEVLM"]
    for name, content in hub.contents(published).items():
        assert str(folder).encode() not in content, name


def test_a_process_without_the_project_computes_the_same(visitor, checkpoint):
    processor = tiny_processor()
    assert len(visitor["answers"]) == 2
    for given in visitor["answers"]:
        assert_same(given, checkpoint[1])
        assert given["module"] == "transformers_modules"
    assert visitor["config"] == "sevlm" and visitor["pixels"] == 0
    assert visitor["tokenizer"] == processor.tokenizer("the dark sea")["input_ids"]


@pytest.fixture(scope="module")
def reader(hub, folder, visitor, trained, image):
    """A process without the project loads what others pushed."""
    code = """
trust = {"trust_remote_code": True}
found = {}
for name in ("org/second", "org/trained"):
    model = transformers.AutoModel.from_pretrained(name, **trust).eval()
    processor = transformers.AutoProcessor.from_pretrained(name, **trust)
    found[name] = answer(model, processor, IMAGE)
    found[name] |= {"lexicon": processor.vad_lexicon.name, "table": model.vad_lookup.has_table}
print(json.dumps(found))
"""
    return answers(visit(hub, folder / "reader", script(image, code)))


def test_a_model_loaded_from_the_hub_and_pushed_again_is_the_same(hub, reader, checkpoint):
    assert set(hub.listing("org/second")) == (COMPLETE | LEXICON) - {"README.md"}
    assert_same(reader["org/second"], checkpoint[1])
    assert reader["org/second"]["lexicon"] and reader["org/second"]["table"]


def test_a_push_of_the_same_weights_brings_their_card(hub, ways, visitor):
    """The card, with its results, comes from where the model was loaded: the Hub or a downloaded copy."""
    first = hub.contents("org/first")["README.md"].decode()
    assert FIGURES in first and "org/first" in first
    for name in ("org/third", "org/snapshot"):
        card = hub.contents(name)["README.md"].decode()
        assert card == re.sub(r"(org/|# |name: )first\b", rf"\1{name[4:]}", first), name
    assert FIGURES not in hub.contents("org/changed")["README.md"].decode(), "measured with other weights"
    assert "org/second gets no model card" in visitor["log"] and "card of org/changed is replaced" in ways.log


def test_a_cached_model_and_a_saved_folder_load_without_a_connection(hub, folder, visitor, checkpoint, image):
    code = """
found = {}
for name in sys.argv[1:]:
    model = transformers.AutoModel.from_pretrained(name, trust_remote_code=True).eval()
    processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=True)
    found[name] = answer(model, processor, IMAGE)
print(json.dumps(found))
"""
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    found = answers(visit(hub, folder / "visitor", [*script(image, code), "org/first", checkpoint[0]], **offline))
    assert len(found) == 2
    for given in found.values():
        assert_same(given, checkpoint[1])


# All other ways of publishing, in one process.
WAYS = """
import pathlib, sys, huggingface_hub
from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.push import main
from processing import SEVLMProcessor
OPEN, RESTRICTED, WORK = map(pathlib.Path, sys.argv[1:])
def model(folder): return SEVLMForConditionalGeneration.from_pretrained(folder)
def processor(folder): return SEVLMProcessor.from_pretrained(folder)

main([str(OPEN), "org/secret", "--private"])
model(OPEN).save_pretrained(WORK / "half")
main([str(WORK / "half"), "org/joined", "--processor", str(OPEN)])
changed = model(OPEN)
changed.config.emotion_loss_weight = 0.5
changed.save_pretrained(WORK / "changed")
processor(OPEN).save_pretrained(WORK / "changed")
main([str(WORK / "changed"), "org/secret", "--create_pr"])
main([str(WORK / "changed"), "org/first", "--revision", "v2", "--message", "a branch"])

main([str(RESTRICTED), "org/restricted"])
main([str(RESTRICTED), "org/asked", "--include_vad_lexicon", "--message", "asked for"])
main([str(RESTRICTED), "org/asked"])

model(OPEN).push_to_hub("org/model")
processor(OPEN).push_to_hub("org/processor")
processor(OPEN).save_pretrained(WORK / "saved", push_to_hub=True, repo_id="org/saved")
huggingface_hub.snapshot_download("org/first", local_dir=WORK / "snapshot")
main([str(WORK / "snapshot"), "org/snapshot"])
changed = SEVLMForConditionalGeneration.from_pretrained("org/first")
changed.push_to_hub("org/changed")
changed.lm_head.weight.data.mul_(-2)
changed.push_to_hub("org/changed")

model(RESTRICTED).save_pretrained(WORK / "parts", push_to_hub=True, repo_id="org/parts")
model(RESTRICTED).push_to_hub("org/parts")
model(RESTRICTED).push_to_hub("org/wanted", include_vad_lexicon=True)
processor(RESTRICTED).push_to_hub("org/parts")
processor(RESTRICTED).push_to_hub("org/parts", include_vad_lexicon=True)
processor(RESTRICTED).push_to_hub("org/parts")
"""


@pytest.fixture(scope="module")
def ways(hub, folder, published, checkpoint, restricted):
    command = ["-c", WAYS, checkpoint[0], restricted[0], folder / "ways"]
    done = visit(hub, folder / "publisher", command, python_path=PROJECT)
    assert not hub.unhandled
    hub.log = done.stderr
    return hub


def test_branches_pull_requests_and_private_repositories(ways):
    assert ways.titles("org/first")[-1] == "a branch"
    assert set(ways.listing("org/first", "v2")) == COMPLETE | LEXICON
    assert set(ways.listing("org/first")) == COMPLETE | LEXICON and ways.repos["org/first"]["refs"]["main"]
    assert ways.repos["org/secret"]["private"] and not ways.repos["org/first"]["private"]
    proposed, current = ways.contents("org/secret", "refs/pr/1"), ways.contents("org/secret")
    assert [name for name in current if current[name] != proposed[name]] == ["README.md", "config.json"]


def test_model_and_processor_publish_their_own_files(ways):
    assert "## Limits and biases" in ways.contents("org/wanted")["README.md"].decode()
    assert set(ways.listing("org/joined")) == COMPLETE | LEXICON
    assert set(ways.listing("org/model")) == hubs.MODEL_FILES
    for name in ("org/processor", "org/saved"):
        assert set(ways.listing(name)) == hubs.PROCESSOR_FILES | LEXICON, name


def test_a_restricted_lexicon_is_in_no_published_file(ways):
    asked = ways.repos["org/asked"]["commits"][1]["oid"]
    found = {name for name, content in ways.contents("org/asked", asked).items() if hubs.has_rows(content, name)}
    assert found == {"model.safetensors", "vad_lexicon.tsv"}, "published with --include_vad_lexicon"
    assert hubs.has_rows(ways.contents("org/wanted")["model.safetensors"], "model.safetensors")
    for repository in ("org/restricted", "org/asked", "org/parts"):
        assert set(ways.listing(repository)) == COMPLETE, repository
        for name, content in ways.contents(repository).items():
            assert not hubs.has_rows(content, name), (repository, name)
        assert b"NRC-VAD" in ways.contents(repository)["config.json"]


def test_a_model_without_its_lexicon_warns_and_one_call_restores_it(
    ways, folder, restricted, published, checkpoint, image
):
    """Also, the installed package needs no `trust_remote_code`, and the usual arguments of `from_pretrained` work."""
    code = f"""
import modeling_sevlm, processing
from transformers import AutoModel, AutoProcessor
processor = AutoProcessor.from_pretrained("org/first")
model = AutoModel.from_pretrained("org/first").eval()
found = {{"installed": answer(model, processor, IMAGE)}}
found["installed"]["modules"] = [type(thing).__module__.split(".")[0] for thing in (model, processor)]
for name, options in {{
    "revision": {{"revision": "v2", "device_map": "auto", "attn_implementation": "eager"}},
    "dtype": {{"dtype": torch.bfloat16}},
}}.items():
    model = transformers.AutoModelForImageTextToText.from_pretrained("org/first", **options).eval()
    found[name] = answer(model, processor, IMAGE)
    found[name]["read"] = [str(model.dtype), model.config._attn_implementation, model.config.emotion_loss_weight]

for _ in range(2):
    processor = AutoProcessor.from_pretrained("org/restricted")
    model = AutoModel.from_pretrained("org/restricted").eval()
lexicon = processing.VADLexicon.from_file({str(folder / "NRC-VAD-Lexicon.txt")!r})
asked = {{"emotions": ["awe"], "explanations": ["the dark sea looks cold"]}}
found["without"] = answer(model, processor, IMAGE) | {{"vad": processor(**asked)["vad_values"].tolist()}}
model.set_vad_lexicon(lexicon, processor.tokenizer)
processor.vad_lexicon = lexicon
found["restored"] = answer(model, processor, IMAGE) | {{"vad": processor(**asked)["vad_values"].tolist()}}
print(json.dumps(found))
"""
    done = visit(ways, folder / "installed", script(image, code), python_path=PROJECT)
    found = answers(done)
    assert found["installed"]["modules"] == ["modeling_sevlm", "processing"]
    for name in ("installed", "revision"):
        assert_same(found[name], checkpoint[1], rtol=1e-4, atol=1e-5)
    assert found["revision"]["read"] == ["torch.float32", "eager", 0.5]
    assert found["dtype"]["read"] == ["torch.bfloat16", "sdpa", 1.0]
    assert np.allclose(found["dtype"]["scores"], checkpoint[1]["scores"], atol=0.05)

    for part in ("trained with the VAD lexicon 'NRC-VAD'", "saved without its VAD lexicon 'NRC-VAD'"):
        assert done.stderr.count(part) == 1, "model and processor warn once each"
    assert not np.any(found["without"]["vad"])
    assert abs(found["without"]["alignment"][0] - restricted[1]["alignment"][0]) > 1e-3, "the lexicon matters"
    assert_same(found["restored"], restricted[1])
    processor = SEVLMProcessor.from_pretrained(restricted[0])
    expected = processor(emotions=["awe"], explanations=["the dark sea looks cold"])["vad_values"]
    assert np.abs(expected).sum() > 0 and np.array_equal(np.float32(found["restored"]["vad"]), expected)


@pytest.fixture(scope="module")
def trained(hub, folder):
    """Runs `train.py --push_to_hub` for a few steps; it pushes at every save."""
    command = ["-m", "train", "--output_dir", folder / "trained", "--push_to_hub", "--hub_model_id", "org/trained"]
    command += (
        "--num_paintings 60 --image_size 32 --max_steps 4 --save_steps 2 --eval_strategy no --use_cpu true".split()
    )
    command += "--load_best_model_at_end false --disable_tqdm true --per_device_train_batch_size 8".split()
    visit(hub, folder / "trainer", [*command, "--hub_always_push", "true"], python_path=PROJECT)
    return folder / "trained"


def test_training_publishes_complete_repositories_only(hub, trained, reader, image):
    commits = hub.repos["org/trained"]["commits"][1:]
    titles = ["Training in progress, step 2", "Training in progress, step 4", "End of training"]
    assert [commit["title"] for commit in commits] == titles
    for commit in commits:
        assert set(hub.listing("org/trained", commit["oid"])) == COMPLETE | LEXICON, commit["title"]
        card = ModelCard(hub.contents("org/trained", commit["oid"])["README.md"].decode())
        assert card.data.license == "apache-2.0" and "On embedded paintings, for" in card.text, commit["title"]
    assert (trained / "training_args.bin").exists(), "written, but not published"
    model, processor = (kind.from_pretrained(trained) for kind in (SEVLMForConditionalGeneration, SEVLMProcessor))
    assert_same(reader["org/trained"], answer(model.eval(), processor, image))
    assert "On embedded paintings, for 4 steps" in card.text
    assert "SEVLM embedded lexicon" in card.text and "| paintings per device and step | 8 |" in card.text
    assert (trained / "README.md").read_text() == card.content


def test_a_trainer_does_not_publish_pickles_or_a_model_without_a_processor(processor):
    arguments = {"output_dir": "unused", "push_to_hub": True, "use_cpu": True}
    check_push(SEVLMTrainingArguments(**arguments), processor, None)
    for other in (None, processor.tokenizer):
        with pytest.raises(ValueError, match="processing_class"):
            check_push(SEVLMTrainingArguments(**arguments), other, None)
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(ValueError, match="optimizer states"):
            check_push(SEVLMTrainingArguments(**arguments, hub_strategy=strategy), processor, None)


def test_a_trainer_that_cannot_push_creates_no_repository(model, processor, tmp_path, monkeypatch):
    created = []
    monkeypatch.setattr(SEVLMTrainer, "init_hf_repo", lambda *_, **__: created.append("a repository"))
    quiet = {"use_cpu": True, "eval_strategy": "no", "load_best_model_at_end": False}
    arguments = SEVLMTrainingArguments(output_dir=str(tmp_path), push_to_hub=True, **quiet)
    given = {"train_dataset": [0], "data_collator": list}
    with pytest.raises(ValueError, match="processing_class"):
        SEVLMTrainer(model, arguments, **given)
    assert not created
    SEVLMTrainer(model, arguments, processing_class=processor, **given)
    assert created, "a complete trainer starts"


def test_an_interrupted_push_changes_nothing_and_can_be_repeated(hub, folder, checkpoint, image):
    code = f"""
import time, urllib.request
from modeling_sevlm.push import PushError, SEVLMForConditionalGeneration, SEVLMProcessor, push

time.sleep = lambda seconds: None  # between the retries of huggingface_hub
OLD = {str(checkpoint[0])!r}

def cut(what):
    urllib.request.urlopen(urllib.request.Request({hub.url!r} + "/_cut/" + what, method="POST"))

def load(cache):
    model = transformers.AutoModel.from_pretrained("org/cut", cache_dir=cache).eval()
    return answer(model, transformers.AutoProcessor.from_pretrained("org/cut", cache_dir=cache), IMAGE)

push(OLD, "org/cut", message="old")
found = {{"old": load("before")}}
model, processor = SEVLMForConditionalGeneration.from_pretrained(OLD), SEVLMProcessor.from_pretrained(OLD)
model.lm_head.weight.data.mul_(-1)
model.save_pretrained("new")
processor.save_pretrained("new")
for what in ("uploads", "commits"):
    cut(what)
    try:
        push("new", "org/cut", message="new")
    except PushError as error:
        found[what] = load(what) | {{"error": str(error)}}
    cut("nothing")
push("new", "org/cut", message="new")
found["new"] = load("after")
found["expected"] = answer(model.eval(), processor, IMAGE)
print(json.dumps(found))
"""
    found = answers(visit(hub, folder / "cut", script(image, code), python_path=PROJECT))
    for moment in ("old", "uploads", "commits"):
        assert_same(found[moment], checkpoint[1])
        assert moment == "old" or re.search(r"failed(.|\n)*Push again", found[moment]["error"])
    assert_same(found["new"], found["expected"])
    assert found["new"]["ids"] != found["old"]["ids"]
    assert hub.titles("org/cut") == ["initial commit", "old", "new"]
    assert set(hub.listing("org/cut")) == COMPLETE | LEXICON


def test_an_incomplete_folder_is_not_published(checkpoint, tmp_path):
    with pytest.raises(PushError, match="no config.json"):
        stage(tmp_path / "nothing", tmp_path / "out", "org/name")
    processor = SEVLMProcessor.from_pretrained(checkpoint[0])
    tiny_model(processor).save_pretrained(tmp_path / "model")
    with pytest.raises(PushError, match="--processor"):
        stage(tmp_path / "model", tmp_path / "out", "org/name")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(PushError, match="safetensors.*save_pretrained"):
        stage(tmp_path / "model", tmp_path / "out", "org/name")

    stage(checkpoint[0], tmp_path / "staged", "org/name")
    assert {path.name for path in (tmp_path / "staged").iterdir()} == COMPLETE | LEXICON
    for name in sorted(COMPLETE):
        content = (tmp_path / "staged" / name).read_bytes()
        (tmp_path / "staged" / name).unlink()
        with pytest.raises(PushError, match=re.escape(name.replace("model.safetensors", "*.safetensors"))):
            check_complete(tmp_path / "staged")
        (tmp_path / "staged" / name).write_bytes(content)
    check_complete(tmp_path / "staged")


def test_the_final_check_finds_a_restricted_lexicon(restricted, tmp_path):
    stage(restricted[0], tmp_path, "org/name")
    check_lexicon_stays(tmp_path)
    SEVLMProcessor.from_pretrained(restricted[0]).save_pretrained(tmp_path, include_vad_lexicon=True)
    with pytest.raises(PushError, match="vad_lexicon.tsv"):
        check_lexicon_stays(tmp_path)
    (tmp_path / "vad_lexicon.tsv").unlink()
    model = SEVLMForConditionalGeneration.from_pretrained(restricted[0])
    model.save_pretrained(tmp_path, include_vad_lexicon=True)
    with pytest.raises(PushError, match="compiled"):
        check_lexicon_stays(tmp_path)
