"""Our classes, loaded from the authors' converted release, compute the same as the authors' classes.

The fixture holds a tiny release of random weights and made-up sentences as safetensors and json; the tests rebuild
the torch files from it, so that the converter reads the real file formats.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from modeling_sevlm import convert_sevlm_checkpoint


FIXTURE = Path(__file__).parents[1] / "fixtures" / "authors_release"
GRADIENTS = {
    "contrastive_first": "contrastive_head.mlp.0.weight",
    "emotion_encoder_first_query": "emotion_encoder.layers.0.query.weight",
    "vad_fusion": "decoder.vad_fusion.weight",
    "vad_head": "vad_head.weight",
    "wte": "decoder.wte.weight",
}


def write_release(folder: Path) -> Path:
    """Writes the release's folders and torch files."""
    model = folder / "nle_model_best-acc"
    model.mkdir(parents=True)
    torch.save(load_file(FIXTURE / "decoder.safetensors"), model / "pytorch_model.bin")
    shutil.copy(FIXTURE / "config.json", model / "config.json")
    statistics = {"epoch": 3, "emo_encoder_state_dict": load_file(FIXTURE / "emotion_encoder.safetensors")}
    torch.save(statistics, folder / "ckpt_stats_best-acc.tar")
    shutil.copytree(FIXTURE / "tokenizer", folder / "nle_gpt2_tokenizer_0")
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder with the release in a subfolder, as in a download."""
    root = tmp_path_factory.mktemp("release")
    write_release(root / "SEVLM" / "v2.0")
    return root


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    """Model and processor, loaded from the folder that the command wrote."""
    output = tmp_path_factory.mktemp("converted")
    convert_sevlm_checkpoint.main([str(release), "--tag", "best-acc", "--output_dir", str(output)])
    return AutoModel.from_pretrained(output).eval(), AutoProcessor.from_pretrained(output)


@pytest.fixture(scope="module")
def golden():
    return load_file(FIXTURE / "golden.safetensors")


@pytest.fixture
def outputs(converted, golden):
    """Three pictures, two sentences each; the fixture repeats a picture's features for each of its sentences."""
    model, _ = converted
    model.zero_grad()
    rows = {name: golden[f"in.{name}"] for name in ("input_ids", "token_type_ids", "labels")}
    rows = {name: tensor.view(3, 2, -1) for name, tensor in rows.items()}
    return model(
        image_features=golden["in.image_features"][::2],
        vad_values=golden["in.vad"].view(3, 2, -1, 3),
        **rows,
    )


def test_fixture_rolls_images_by_one_as_we_do(golden):
    assert golden["in.other_image_permutation"].tolist() == [1, 2, 0]


def test_emotion_features_equal_the_authors(converted, golden):
    features = converted[0].emotion_encoder(golden["in.vad"])
    torch.testing.assert_close(features, golden["out.emotion_features"], atol=1e-5, rtol=0)


def test_logits_equal_the_authors(outputs, golden):
    torch.testing.assert_close(outputs.logits.flatten(0, 1), golden["out.logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("part", ["language", "emotion", "contrastive"])
def test_losses_equal_the_authors(outputs, golden, part):
    torch.testing.assert_close(outputs[f"{part}_loss"], golden[f"out.loss_{part}"], rtol=1e-5, atol=0)


def test_gradients_equal_the_authors(converted, outputs, golden):
    (outputs.language_loss + outputs.emotion_loss + outputs.contrastive_loss).backward()
    parameters = dict(converted[0].named_parameters())
    for name, parameter in GRADIENTS.items():
        wanted = golden[f"out.grad.{name}"]
        error = (parameters[parameter].grad - wanted).norm() / wanted.norm()
        assert error < 1e-4, f"{parameter}: relative error {error:.2e}"


@pytest.mark.parametrize(("kind", "prompt_length"), [("conditioned", 6), ("free", 4)])
def test_greedy_generation_equals_the_authors_token_for_token(converted, golden, monkeypatch, kind, prompt_length):
    model, _ = converted
    # The fixture's lexicon is a table by token; other tests cover words.
    monkeypatch.setattr(model.vad_lookup, "forward", lambda ids: golden["in.vad_by_token"][ids])
    wanted = golden[f"out.generated.{kind}"]
    generated = model.generate(
        wanted[:, :prompt_length], image_features=golden["in.image_features"][::2], do_sample=False, max_new_tokens=20
    )
    assert generated.tolist() == wanted.tolist()


def test_converted_processor_writes_the_authors_rows(converted, golden):
    text = json.loads((FIXTURE / "golden_text.json").read_text())
    _, processor = converted
    # The authors' loader puts the second annotation of a picture first.
    order = [1, 0, 3, 2, 5, 4]
    rows = processor(
        emotions=[text["emotions"][i] for i in order],
        explanations=[text["explanations"][i] for i in order],
        return_tensors="pt",
    )
    for name in ("input_ids", "labels", "token_type_ids"):
        assert rows[name].tolist() == golden[f"in.{name}"].tolist()
    assert list(processor.image_processor.image_mean) == [0.485, 0.456, 0.406]


def test_pixels_without_a_tower_are_refused_with_the_remedy(converted):
    with pytest.raises(ValueError, match="image_features"):
        converted[0].generate(pixel_values=torch.zeros(1, 3, 224, 224))


def test_a_missing_tag_names_the_tags_that_are_there(release, tmp_path):
    with pytest.raises(SystemExit, match="best-acc"):
        convert_sevlm_checkpoint.main([str(release), "--tag", "best-bleu", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


class _Malicious:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_a_file_that_holds_code_is_refused_and_not_run(release, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(release, copy)
    witness = tmp_path / "witness"
    torch.save({"x": _Malicious(witness)}, next(copy.rglob("ckpt_stats_*.tar")))
    with pytest.raises(SystemExit, match="run code"):
        convert_sevlm_checkpoint.main([str(copy), "--output_dir", str(tmp_path / "out")])
    assert not witness.exists()
