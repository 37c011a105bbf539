"""Patch features of every kind of vision tower, and models started from a pretrained tower and decoder."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    CLIPImageProcessorPil,
    CLIPVisionModelWithProjection,
    GPT2Model,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2ImageProcessorPil,
)
from transformers.modeling_outputs import BaseModelOutput

from modeling_sevlm import SEVLMForConditionalGeneration, vision_sevlm
from modeling_sevlm.vision_sevlm import vision_feature_size
from processing import SEVLMProcessor
from tests.helpers.tiny import (
    BLOCKS,
    IMAGE_SIZE,
    SENTENCES,
    VISION_SIZES,
    pixels,
    save_gpt2,
    tiny_config,
    tiny_lexicon,
)


PATCH, WIDTH = VISION_SIZES["patch_size"], VISION_SIZES["hidden_size"]
GRID = IMAGE_SIZE // PATCH


def encode_patches(tower, pixel_values):
    return vision_sevlm.encode_patches(tower, pixel_values).pooler_output


class RowTowerConfig(PreTrainedConfig):
    model_type = "row_tower_of_a_test"
    hidden_size: int = 40


class RowTower(PreTrainedModel):
    """A tower of a class that transformers does not have: every row of pixels is a patch."""

    config_class = RowTowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.rows = nn.Linear(3 * IMAGE_SIZE, config.hidden_size)
        self.post_init()

    def forward(self, pixel_values):
        return BaseModelOutput(last_hidden_state=self.rows(pixel_values.transpose(1, 2).flatten(2)))


AutoConfig.register(RowTowerConfig.model_type, RowTowerConfig, exist_ok=True)
AutoModel.register(RowTowerConfig, RowTower, exist_ok=True)

NAFLEX = BLOCKS | {"num_patches": GRID**2, "patch_size": PATCH}
SWIN = {"image_size": IMAGE_SIZE, "patch_size": 4, "embed_dim": 16, "window_size": 2}
STAGES = {"hidden_sizes": [16, WIDTH], "depths": [1, 1]}
CONFIGS = {
    "clip": {"model_type": "clip_vision_model"} | VISION_SIZES,
    "siglip": {"model_type": "siglip_vision_model"} | VISION_SIZES,
    "siglip2": {"model_type": "siglip2_vision_model"} | NAFLEX,
    "dinov2": {"model_type": "dinov2", "mlp_ratio": 2} | VISION_SIZES,
    "dinov2 with registers": {"model_type": "dinov2_with_registers", "mlp_ratio": 2, "num_register_tokens": 4}
    | VISION_SIZES,
    "vit": {"model_type": "vit"} | VISION_SIZES,
    "swin": {"model_type": "swin", "depths": [1, 1], "num_heads": [2, 2]} | SWIN,
    "resnet": {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic"} | STAGES,
    "convnext": {"model_type": "convnext", "num_stages": 2} | STAGES,
    "custom": {"model_type": RowTowerConfig.model_type},
}
# Names of the last block and the final LayerNorm, and the number of tokens before the patches.
PLAIN = {
    "clip": ("encoder.layers.1", "post_layernorm", 1),
    "siglip": ("encoder.layers.1", "post_layernorm", 0),
    "siglip2": ("encoder.layers.1", "post_layernorm", 0),
    "dinov2": ("encoder.layer.1", "layernorm", 1),
    "dinov2 with registers": ("encoder.layer.1", "layernorm", 1 + 4),
    "vit": ("layers.1", "layernorm", 1),
}
SIZES = dict.fromkeys(CONFIGS, (GRID**2, WIDTH)) | {"custom": (IMAGE_SIZE, 40)}


def tower_config(family: str, **kwargs) -> PreTrainedConfig:
    return AutoConfig.for_model(**CONFIGS[family] | kwargs)


def random_tower(family: str, **kwargs) -> nn.Module:
    """A tower of random parameters: with its default ones, a LayerNorm gives the same applied once or twice."""
    torch.manual_seed(0)
    tower = AutoModel.from_config(tower_config(family, **kwargs)).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tower


def model_with_tower(processor, config: PreTrainedConfig) -> SEVLMForConditionalGeneration:
    torch.manual_seed(0)
    return SEVLMForConditionalGeneration(tiny_config(processor, vision_config=config)).eval()


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_with_any_tower_trains_generates_and_survives_saving(processor, family, tmp_path):
    model = model_with_tower(processor, tower_config(family))
    batch = processor(emotions=[["awe", "fear"]] * 2, explanations=[SENTENCES[:2]] * 2, return_tensors="pt")
    outputs = model(pixel_values=pixels(2), **batch)
    assert outputs.image_features.shape == (2, *SIZES[family])
    assert outputs.loss.isfinite()
    outputs.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.vision_tower.parameters())

    generated = model.generate(pixel_values=pixels(2), do_sample=False, max_new_tokens=4)
    assert generated.shape[0] == 2 and 5 <= generated.shape[1] <= 8
    assert len(processor.read(generated)) == 2
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded.vision_tower) is type(model.vision_tower)
    assert torch.equal(loaded.encode_images(pixels(2)), model.encode_images(pixels(2)))
    assert torch.equal(loaded.generate(pixel_values=pixels(2), do_sample=False, max_new_tokens=4), generated)


@pytest.mark.parametrize("family", PLAIN)
def test_patch_features_are_the_patches_of_the_last_block_after_one_layer_norm(family):
    block, norm_name, prefix = PLAIN[family]
    tower, seen = random_tower(family), []
    tower.get_submodule(block).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        features = encode_patches(tower, pixels(2))
    hidden, norm = seen[0][0] if isinstance(seen[0], tuple) else seen[0], tower.get_submodule(norm_name)
    assert hidden.shape == (2, prefix + GRID**2, WIDTH)
    expected = nn.functional.layer_norm(hidden[:, prefix:], (WIDTH,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("family", PLAIN)
def test_patch_features_are_in_row_major_order(family):
    """Without blocks no token sees another, so a change in one patch changes one feature."""
    tower = random_tower(family, num_hidden_layers=0)
    before = pixels(1)
    with torch.no_grad():
        expected = encode_patches(tower, before)
        for row in range(GRID):
            for column in range(GRID):
                after = before.clone()
                after[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 1
                changed = (encode_patches(tower, after) - expected).abs().amax(dim=(0, 2)) > 1e-6
                assert changed.nonzero().flatten().tolist() == [row * GRID + column]


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_the_feature_map_of_a_convolutional_tower_is_read_row_by_row(family):
    tower = random_tower(family)
    with torch.no_grad():
        maps, features = tower(pixels(2)).last_hidden_state, encode_patches(tower, pixels(2))
    for k in range(GRID**2):
        assert torch.equal(features[:, k], maps[:, :, k // GRID, k % GRID])


@torch.no_grad()
def test_towers_without_prefix_tokens_are_read_unchanged_and_wide_images_have_more_patches():
    for tower in map(random_tower, ["swin", "custom"]):
        assert torch.equal(encode_patches(tower, pixels(2)), tower(pixel_values=pixels(2)).last_hidden_state)
    wide = torch.randn(2, 3, 2 * PATCH, 5 * PATCH, generator=torch.Generator().manual_seed(0))
    for family in ("siglip2", "dinov2", "dinov2 with registers"):
        assert encode_patches(random_tower(family), wide).shape == (2, 10, WIDTH)


def test_siglip2_gets_the_patches_that_its_own_image_processor_makes(processor):
    noise = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    image, tower = Image.fromarray(noise), random_tower("siglip2")
    own = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=GRID**2)(image, return_tensors="pt")
    assert own["pixel_values"].shape == (1, GRID**2, 3 * PATCH**2)
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    ours = SEVLMProcessor.from_tokenizer(processor.tokenizer, image_size=IMAGE_SIZE, image_statistics=half)
    with torch.no_grad():
        features = encode_patches(tower, ours(images=image, return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(features, tower(**own).last_hidden_state)


@pytest.mark.parametrize("width", [WIDTH, 48], ids=["another width", "the decoder's width"])
def test_only_a_tower_of_another_width_gets_a_projection(processor, width):
    model = model_with_tower(processor, tower_config("clip", hidden_size=width))
    assert model.encode_images(pixels(1)).shape == (1, GRID**2, width)
    shapes = [tuple(parameter.shape) for parameter in model.vision_projection.parameters()]
    assert (shapes == []) == (width == model.config.hidden_size)


def test_the_projection_of_a_convolutional_tower_normalises_and_needs_a_known_width(processor):
    model = model_with_tower(processor, tower_config("resnet"))
    features = torch.rand(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        once, larger = (model.vision_projection(features * scale) for scale in (1, 50))
    torch.testing.assert_close(once, larger, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="'' tower"):
        vision_feature_size(PreTrainedConfig())


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def image_checkpoint(family: str) -> PreTrainedModel:
    """A model of the class that this family's checkpoints hold, with its text tower or classifier."""
    torch.manual_seed(1)
    if family in ("clip", "siglip", "siglip2"):
        both = AutoConfig.for_model(family, text_config=TEXT, vision_config=tower_config(family).to_dict())
        return AutoModel.from_config(both).eval()
    if family == "clip with projection":
        return CLIPVisionModelWithProjection(tower_config("clip")).eval()
    auto_class = AutoModelForImageClassification if family == "vit" else AutoModel
    return auto_class.from_config(tower_config(family)).eval()


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Folders of a CLIP and of a GPT-2, and the models in them."""
    vision, text = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("gpt2")
    clip = image_checkpoint("clip")
    clip.save_pretrained(vision)
    CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(vision)
    return str(vision), str(text), clip, save_gpt2(text)


def start(backbones, seed=0, **kwargs):
    vision, text = backbones[:2]
    processor = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE, vad_lexicon=tiny_lexicon())
    torch.manual_seed(seed)
    return processor, SEVLMForConditionalGeneration.from_backbones(vision, text, processor, **kwargs)


def test_both_towers_start_from_their_weights(backbones):
    # These checkpoints name their weights as those on the Hub do.
    vision, text = (load_file(f"{folder}/model.safetensors") for folder in backbones[:2])
    assert {"vision_model.embeddings.patch_embedding.weight", "text_projection.weight"} <= vision.keys()
    assert {"transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"} <= text.keys()
    _, model = start(backbones)
    clip, gpt2 = backbones[2].vision_model.state_dict(), backbones[3].transformer.state_dict()
    tower, decoder = model.vision_tower.state_dict(), model.decoder.state_dict()
    assert set(tower) == set(clip) and all(torch.equal(tower[name], clip[name]) for name in clip)
    assert torch.equal(decoder["wte.weight"][: gpt2["wte.weight"].shape[0]], gpt2.pop("wte.weight"))
    assert all(torch.equal(decoder[name], gpt2[name]) for name in gpt2)
    assert model.lm_head.weight is model.decoder.wte.weight
    assert model.vision_tower_is_frozen and not model.training
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("vision_tower."))


def test_new_parts_are_randomly_initialised(backbones):
    processor, model = start(backbones)
    _, other = start(backbones, seed=1)
    base = backbones[3].config.vocab_size
    assert model.decoder.wte.weight.shape[0] == len(processor.tokenizer) == base + 4
    rows, other_rows = (m.decoder.wte.weight[base:] for m in (model, other))
    assert all(0.01 < row.std() < 0.04 for row in rows) and not torch.isclose(rows[0], rows[1:]).all()
    assert not torch.isclose(rows, other_rows).any(dim=1).all()
    known = set(backbones[3].transformer.state_dict())
    for name, weight in model.named_parameters():
        is_new = not name.startswith("vision_tower.") and name.removeprefix("decoder.") not in known
        if is_new and weight.dim() > 1:
            assert weight.std() > 1e-3, f"{name} is (nearly) constant"
            assert not torch.equal(weight, other.get_parameter(name)), f"{name} does not depend on the seed"


def test_a_new_model_takes_config_and_lexicon_from_the_processor(backbones):
    processor, model = start(backbones, contrastive_loss_weight=0.5, emotion_encoder_attention="bidirectional")
    for name, value in processor.token_layout().items():
        assert getattr(model.config, name) == value, name
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert (model.config.contrastive_loss_weight, model.config.emotion_encoder_attention) == (0.5, "bidirectional")
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id
    rows = processor(emotions="awe", explanations="a lonely funeral", return_tensors="pt")
    assert rows["vad_values"].any()
    assert torch.equal(model.vad_lookup(rows["input_ids"]), rows["vad_values"])


def test_a_new_model_without_a_tower_needs_the_towers_config_only(backbones, tmp_path):
    vision, text = backbones[:2]
    processor = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE)
    backbones[2].config.save_pretrained(tmp_path)
    model = SEVLMForConditionalGeneration.from_backbones(str(tmp_path), text, processor, use_vision_tower=False)
    assert model.vision_tower is None and not model.vad_lookup.has_table
    assert model(image_features=torch.zeros(1, 5, WIDTH)).logits.shape == (1, 4, len(processor.tokenizer))


HALVES = {"clip with projection": "vision_model", "siglip": "vision_model", "siglip2": "vision_model", "vit": "vit"}


@pytest.mark.parametrize("family", [*HALVES, "dinov2"])
def test_towers_of_other_families_start_from_their_weights(backbones, family, tmp_path):
    checkpoint = image_checkpoint(family)
    checkpoint.save_pretrained(tmp_path)
    CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    _, model = start((str(tmp_path), backbones[1]))
    with torch.no_grad():
        expected = encode_patches(checkpoint.get_submodule(HALVES.get(family, "")), pixels(2))
        assert torch.equal(model.encode_images(pixels(2)), expected)


def test_a_gpt2_may_be_saved_without_its_language_head_as_the_hubs_is(backbones, tmp_path):
    gpt2 = save_gpt2(tmp_path, model_class=GPT2Model)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    _, model = start((backbones[0], str(tmp_path)))
    assert torch.equal(model.decoder.h[1].mlp.c_fc.weight, gpt2.h[1].mlp.c_fc.weight)


def test_the_processor_takes_the_image_statistics_of_the_tower(backbones):
    vision, text = backbones[:2]
    processor = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE)
    values = processor(images=Image.new("RGB", (50, 20), (255, 0, 51)))["pixel_values"]
    assert values.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    np.testing.assert_allclose(values[0, :, 3, 5], [0.9 / 0.4, -0.2 / 0.5, -0.1 / 0.6], rtol=1e-5)
    imagenet = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE, image_statistics="imagenet")
    values = imagenet(images=Image.new("RGB", (50, 20), "black"))["pixel_values"]
    np.testing.assert_allclose(values[0, :, 0, 0], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-5)
    assert processor.tokenizer.convert_ids_to_tokens([400, 403]) == ["<pad>", "<explanation>"]


@pytest.mark.parametrize("decoder", ["gpt2 with a larger vocabulary", "opt"])
def test_a_decoder_that_does_not_fit_is_an_error(backbones, decoder, tmp_path):
    if decoder == "opt":
        message = "GPT2Config.*OPTConfig"
        OPTConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    else:
        message = "404 tokens.*has 500"
        save_gpt2(tmp_path, vocab_size=500)
    processor = SEVLMProcessor.from_backbones(*backbones[:2], image_size=IMAGE_SIZE)
    with pytest.raises(ValueError, match=message):
        SEVLMForConditionalGeneration.from_backbones(backbones[0], str(tmp_path), processor)
