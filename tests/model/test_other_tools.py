"""Tools that quantise, move or copy models go by the classes and devices of their parts: they reach all of ours."""

import copy
import pickle
from importlib.metadata import version

import peft
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from packaging.version import Version
from torch import nn
from transformers import AutoModel, pipeline
from transformers.pytorch_utils import Conv1D

from modeling_sevlm.pipeline_sevlm import TASK
from tests.helpers.images import picture
from tests.helpers.tiny import pixels


PARTS = (
    *("vision_tower", "vision_projection", "decoder", "vad_lookup", "emotion_encoder"),
    *("lm_head", "vad_head", "contrastive_head"),
)


@pytest.fixture
def model(checkpoint):
    return AutoModel.from_pretrained(checkpoint).eval()


def answers(model) -> dict[str, torch.Tensor]:
    inputs, ids = {"pixel_values": pixels(2)}, torch.arange(60).view(2, 30)
    with torch.no_grad():
        logits = model(input_ids=ids, **inputs).logits
    tokens, fit = model.generate(**inputs, do_sample=False), model.alignment_score(ids, **inputs)
    return {"tokens": tokens, "logits": logits, "fit": fit, "scores": model.emotion_scores(**inputs)}


def assert_same(found: dict, expected: dict, atol: float = 1e-5):
    for name, values in expected.items():
        torch.testing.assert_close(
            found[name], values, atol=atol, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_packing_keeps_the_classes_of_the_layers(model):
    classes = [type(layer) for layer in model.modules()]
    assert classes.count(nn.Linear) > 20 and classes.count(Conv1D) == 14
    assert_same(answers(copy.deepcopy(model)), answers(model))
    assert_same(answers(pickle.loads(pickle.dumps(model))), answers(model))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("tool", ["torch.ao", pytest.param("torchao", marks=pytest.mark.slow)])
def test_quantisers_reach_the_linear_layers(model, tool, linear):
    expected = answers(model)
    if linear:
        assert_same(answers(model.use_linear_layers()), expected)
    matrices = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, (nn.Linear, Conv1D)))
    if tool == "torch.ao":
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    else:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(model, Int8WeightOnlyConfig())
    plain = [
        layer.weight.numel()
        for layer in model.modules()
        if isinstance(layer, (nn.Linear, Conv1D)) and type(layer.weight.detach()) is torch.Tensor
    ]
    transposed = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, Conv1D))
    assert (transposed == 0) == linear
    # The fusion layer of Eq. 2 is a class of its own.
    assert sum(plain) - transposed <= 0.05 * matrices
    found = answers(model)
    del expected["tokens"], found["tokens"]
    assert_same(found, expected, atol=0.12)


def test_layers_with_adapters_or_elsewhere_are_not_replaced(model, checkpoint, tmp_path):
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_attn"]))
    with pytest.raises(ValueError, match="merge these, or call `use_linear_layers` before"):
        adapted.use_linear_layers()
    assert adapted.merge_and_unload().use_linear_layers().saves_weights is False
    places = dict.fromkeys(PARTS, "cpu") | {"decoder": "disk", "lm_head": "disk"}
    split = AutoModel.from_pretrained(checkpoint, device_map=places, offload_folder=tmp_path)
    with pytest.raises(ValueError, match="without a device map"):
        split.use_linear_layers()


def test_a_model_with_replaced_layers_is_not_saved(model, tmp_path):
    with pytest.raises(ValueError, match="transposed"):
        model.use_linear_layers().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


# The decoder's embeddings are the head's weights: accelerate keeps tied weights in one place.
@pytest.mark.parametrize("part", [*sorted({*PARTS} - {"decoder", "lm_head"}), "decoder, lm_head", ", ".join(PARTS)])
def test_every_part_may_be_kept_on_disk(model, processor, checkpoint, tmp_path, part):
    assert sorted(PARTS) == sorted(name for name, _ in model.named_children())
    if "lm_head" in part and Version(version("accelerate")) < Version("1.15"):
        pytest.skip("accelerate before 1.15 loses tied weights on disk")
    places = {name: "disk" if name in part.split(", ") else "cpu" for name in PARTS}
    split = AutoModel.from_pretrained(checkpoint, device_map=places, offload_folder=tmp_path).eval()
    assert split.device.type == "cpu"
    assert_same(answers(split), answers(model))
    explain = (pipeline(TASK, model=one, processor=processor) for one in (split, model))
    first, second = (run(picture(), do_sample=False) for run in explain)
    assert first["explanation"] == second["explanation"] and split.hf_device_map == places


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload])
def test_accelerates_own_offloading_changes_nothing(model, checkpoint, tmp_path, offload):
    folder = {"offload_dir": str(tmp_path)} if offload is disk_offload else {}
    offloaded = AutoModel.from_pretrained(checkpoint).eval()
    offload(offloaded, execution_device=torch.device("cpu"), **folder)
    assert_same(answers(offloaded), answers(model))
