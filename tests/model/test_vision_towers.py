# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Vision towers of every kind as patch features, and models started from pretrained towers and decoders."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ConvNextConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import BaseModelOutput

from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.vision_sevlm import encode_patches, vision_feature_size
from processing import SEVLMProcessor
from processing.artemis import EMOTIONS
from processing.tiny_tokenizer import train_tokenizer
from tests.helpers.tiny import IMAGE_SIZE, SENTENCES, pixels, tiny_config, tiny_lexicon


PATCH = 8
WIDTH = 32
GRID = IMAGE_SIZE // PATCH


class RowTowerConfig(PreTrainedConfig):
    model_type = "row_tower_of_a_test"
    hidden_size: int = 40


class RowTower(PreTrainedModel):
    """A tower nobody has seen: every row of pixels is a patch."""

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

BLOCKS = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
SQUARE = BLOCKS | {"image_size": IMAGE_SIZE, "patch_size": PATCH}
NAFLEX = BLOCKS | {"num_patches": GRID**2, "patch_size": PATCH}


def tower_config(family: str, **kwargs) -> PreTrainedConfig:
    """A small configuration; `kwargs` for those of `PLAIN` only."""
    makers = {
        "clip": lambda: CLIPVisionConfig(**SQUARE | {"intermediate_size": 64} | kwargs),
        "siglip": lambda: SiglipVisionConfig(**SQUARE | {"intermediate_size": 64} | kwargs),
        "siglip2": lambda: Siglip2VisionConfig(**NAFLEX | {"intermediate_size": 64} | kwargs),
        "dinov2": lambda: Dinov2Config(**SQUARE | {"mlp_ratio": 2} | kwargs),
        "dinov2 with registers": lambda: Dinov2WithRegistersConfig(
            **SQUARE | {"mlp_ratio": 2, "num_register_tokens": 4} | kwargs
        ),
        "vit": lambda: ViTConfig(**SQUARE | {"intermediate_size": 64} | kwargs),
        "swin": lambda: SwinConfig(
            image_size=IMAGE_SIZE, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2
        ),
        "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[16, WIDTH], depths=[1, 1], layer_type="basic"),
        "convnext": lambda: ConvNextConfig(num_stages=2, hidden_sizes=[16, WIDTH], depths=[1, 1]),
        "custom": lambda: RowTowerConfig(),
    }
    return makers[family]()


# Where the last block and the final LayerNorm are, and how many tokens precede the patches.
PLAIN = {
    "clip": ("encoder.layers.1", "post_layernorm", 1),
    "siglip": ("encoder.layers.1", "post_layernorm", 0),
    "siglip2": ("encoder.layers.1", "post_layernorm", 0),
    "dinov2": ("encoder.layer.1", "layernorm", 1),
    "dinov2 with registers": ("encoder.layer.1", "layernorm", 1 + 4),
    "vit": ("layers.1", "layernorm", 1),
}
FAMILIES = [*PLAIN, "swin", "resnet", "convnext", "custom"]
SIZES = {family: (GRID**2, WIDTH) for family in FAMILIES} | {"custom": (IMAGE_SIZE, 40)}


def random_tower(family: str, **kwargs) -> nn.Module:
    """Every parameter random, LayerNorms' too: a plain LayerNorm applied twice is the same as once."""
    torch.manual_seed(0)
    tower = AutoModel.from_config(tower_config(family, **kwargs)).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return tower


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_gives_its_patches_in_its_width(processor, family):
    torch.manual_seed(0)
    model = SEVLMForConditionalGeneration(tiny_config(processor, vision_config=tower_config(family))).eval()
    batch = processor(emotions=[["awe", "fear"]] * 2, explanations=[SENTENCES[:2]] * 2, return_tensors="pt")
    outputs = model(pixel_values=pixels(2), **batch)
    assert outputs.image_features.shape == (2, *SIZES[family])
    assert outputs.loss.isfinite()
    outputs.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.vision_tower.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_with_any_tower_generates_and_survives_saving(processor, family, tmp_path):
    torch.manual_seed(0)
    model = SEVLMForConditionalGeneration(tiny_config(processor, vision_config=tower_config(family))).eval()
    generated = model.generate(pixel_values=pixels(2), do_sample=False, max_new_tokens=4)
    assert generated.shape[0] == 2 and 5 <= generated.shape[1] <= 8
    assert len(processor.read(generated)) == 2
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded.vision_tower) is type(model.vision_tower)
    assert torch.equal(loaded.get_image_features(pixels(2)), model.get_image_features(pixels(2)))
    assert torch.equal(loaded.generate(pixel_values=pixels(2), do_sample=False, max_new_tokens=4), generated)


@pytest.mark.parametrize("family", PLAIN)
def test_patch_features_are_the_last_blocks_patches_behind_one_layer_norm(family):
    block, norm, prefix = PLAIN[family]
    tower, seen = random_tower(family), []

    def keep(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    tower.get_submodule(block).register_forward_hook(keep)
    with torch.no_grad():
        features = encode_patches(tower, pixels(2))
    (hidden,), norm = seen, tower.get_submodule(norm)
    assert hidden.shape == (2, prefix + GRID**2, WIDTH)
    patches = hidden[:, prefix:]
    centred = patches - patches.mean(-1, keepdim=True)
    scaled = centred / (patches.var(-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(features, scaled * norm.weight + norm.bias)


@pytest.mark.parametrize("family", PLAIN)
def test_patch_k_is_the_kth_piece_of_the_picture_row_by_row(family):
    """Without blocks no token sees another: what changes in one piece changes one feature."""
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
def test_the_map_of_a_convolutional_tower_is_read_row_by_row(family):
    tower = random_tower(family)
    with torch.no_grad():
        maps, features = tower(pixels(2)).last_hidden_state, encode_patches(tower, pixels(2))
    assert maps.shape == (2, WIDTH, GRID, GRID)
    for k in range(GRID**2):
        assert torch.equal(features[:, k], maps[:, :, k // GRID, k % GRID])


@pytest.mark.parametrize("family", ["swin", "custom"])
def test_a_tower_without_tokens_in_front_is_read_as_it_is(family):
    tower = random_tower(family)
    with torch.no_grad():
        assert torch.equal(encode_patches(tower, pixels(2)), tower(pixel_values=pixels(2)).last_hidden_state)


@pytest.mark.parametrize("family", ["siglip2", "dinov2", "dinov2 with registers"])
def test_a_picture_that_is_no_square_has_its_own_number_of_patches(family):
    wide = torch.randn(2, 3, 2 * PATCH, 5 * PATCH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert encode_patches(random_tower(family), wide).shape == (2, 10, WIDTH)


def test_siglip2_sees_what_its_own_image_processor_would_show_it(processor):
    noise = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    picture, tower = Image.fromarray(noise), random_tower("siglip2")
    own = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=GRID**2)(picture, return_tensors="pt")
    assert own["pixel_values"].shape == (1, GRID**2, 3 * PATCH**2)
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    ours = SEVLMProcessor.from_tokenizer(processor.tokenizer, image_size=IMAGE_SIZE, image_statistics=half)
    with torch.no_grad():
        features = encode_patches(tower, ours(images=picture, return_tensors="pt")["pixel_values"])
        torch.testing.assert_close(features, tower(**own).last_hidden_state)


@pytest.mark.parametrize("width", [WIDTH, 48], ids=["another width", "the decoder's width"])
def test_a_tower_of_another_width_gets_a_projection(processor, width):
    config = CLIPVisionConfig(**SQUARE | {"hidden_size": width, "intermediate_size": 64})
    model = SEVLMForConditionalGeneration(tiny_config(processor, vision_config=config)).eval()
    assert model.get_image_features(pixels(1)).shape == (1, GRID**2, width)
    if width == model.config.hidden_size:
        assert not list(model.vision_projection.parameters())
    else:
        assert model.vision_projection.weight.shape == (model.config.hidden_size, width)


def test_the_projection_of_a_convolutional_tower_evens_out_the_scale_of_its_features(processor):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, WIDTH], depths=[1, 1], layer_type="basic")
    model = SEVLMForConditionalGeneration(tiny_config(processor, vision_config=config)).eval()
    features = torch.rand(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        once, larger = (model.vision_projection(features * scale) for scale in (1, 50))
    torch.testing.assert_close(once, larger, rtol=1e-3, atol=1e-4)


def test_a_tower_whose_width_cannot_be_told_is_an_error():
    with pytest.raises(ValueError, match="'' tower"):
        vision_feature_size(PreTrainedConfig())


# Models started from pretrained parts.


MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def image_checkpoint(family: str) -> PreTrainedModel:
    """A model of the class that checkpoints of this family are saved from, text tower and classifier included."""
    torch.manual_seed(1)
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=tower_config("clip").to_dict()))
    elif family == "clip with projection":
        model = CLIPVisionModelWithProjection(tower_config("clip"))
    elif family == "siglip":
        model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=tower_config("siglip").to_dict()))
    elif family == "siglip2":
        model = Siglip2Model(Siglip2Config(text_config=TEXT, vision_config=tower_config("siglip2").to_dict()))
    elif family == "dinov2":
        model = Dinov2Model(tower_config("dinov2"))
    else:
        model = ViTForImageClassification(tower_config("vit"))
    return model.eval()


def save_text_checkpoint(folder, model_class=GPT2LMHeadModel, **kwargs):
    """A GPT-2 and its tokenizer, which knows nothing of SEVLM's tokens."""
    torch.manual_seed(2)
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    fields = {"n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": len(tokenizer)} | kwargs
    model = model_class(GPT2Config(**fields, bos_token_id=0, eos_token_id=0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Folders of a CLIP and of a GPT-2, and the models in them."""
    vision, text = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("gpt2")
    clip = image_checkpoint("clip")
    clip.save_pretrained(vision)
    CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(vision)
    return str(vision), str(text), clip, save_text_checkpoint(text)


def start(backbones, seed=0, **kwargs):
    vision, text = backbones[:2]
    processor = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE, vad_lexicon=tiny_lexicon())
    torch.manual_seed(seed)
    return processor, SEVLMForConditionalGeneration.from_backbones(vision, text, processor, **kwargs)


def test_the_checkpoints_of_these_tests_look_like_those_of_the_hub(backbones):
    """CLIP and GPT-2 on the Hub name their weights like this; loading has to find them under these names."""
    vision, text = (load_file(f"{folder}/model.safetensors") for folder in backbones[:2])
    assert "vision_model.embeddings.patch_embedding.weight" in vision and "text_projection.weight" in vision
    assert "transformer.wte.weight" in text and "transformer.h.0.attn.c_attn.weight" in text


def test_both_towers_start_from_their_weights(backbones):
    _, model = start(backbones)
    clip, gpt2 = backbones[2].vision_model.state_dict(), backbones[3].transformer.state_dict()
    tower, decoder = model.vision_tower.state_dict(), model.decoder.state_dict()
    assert set(tower) == set(clip) and all(torch.equal(tower[name], clip[name]) for name in clip)
    assert torch.equal(decoder["wte.weight"][: gpt2["wte.weight"].shape[0]], gpt2.pop("wte.weight"))
    assert all(torch.equal(decoder[name], gpt2[name]) for name in gpt2)
    assert model.lm_head.weight is model.decoder.wte.weight


def test_new_parts_are_freshly_initialised(backbones):
    processor, model = start(backbones)
    _, other = start(backbones, seed=1)
    base = backbones[3].config.vocab_size
    assert model.decoder.wte.weight.shape[0] == len(processor.tokenizer) == base + 4
    rows, other_rows = (m.decoder.wte.weight[base:] for m in (model, other))
    assert all(0.01 < row.std() < 0.04 for row in rows) and not torch.isclose(rows[0], rows[1:]).all()
    assert not torch.isclose(rows, other_rows).any(dim=1).all()
    known = set(backbones[3].transformer.state_dict())
    new = {name for name in model.decoder.state_dict() if name not in known}
    assert {name.split(".", 2)[-1].split(".")[0] for name in new} == {
        "crossattention",
        "ln_cross_attn",
        "weight",
        "bias",
    }
    for name, weight in model.named_parameters():
        fresh = not name.startswith("vision_tower.") and name.removeprefix("decoder.") not in known
        if fresh and weight.dim() > 1:
            assert weight.std() > 1e-3, f"{name} is (nearly) constant"
            assert not torch.equal(weight, other.get_parameter(name)), f"{name} does not depend on the seed"


def test_the_tower_of_a_new_model_is_frozen_and_nothing_else_is(backbones):
    _, model = start(backbones)
    assert model.vision_tower_is_frozen and not model.training
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("vision_tower."))


def test_config_and_lexicon_of_a_new_model_come_from_the_processor(backbones):
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


def test_a_new_model_works_with_its_processor_and_survives_saving(backbones, tmp_path):
    processor, model = start(backbones)
    inputs = processor(images=Image.new("RGB", (50, 20), "red"), return_tensors="pt")
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.generate(**inputs, do_sample=False, max_new_tokens=4), generated)


def test_a_new_model_without_a_tower_needs_no_weights_of_one(backbones, tmp_path):
    vision, text = backbones[:2]
    processor = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE)
    backbones[2].config.save_pretrained(tmp_path)
    model = SEVLMForConditionalGeneration.from_backbones(str(tmp_path), text, processor, use_vision_tower=False)
    assert model.vision_tower is None and not model.vad_lookup.has_table
    assert model(image_features=torch.zeros(1, 5, WIDTH)).logits.shape == (1, 4, len(processor.tokenizer))


@pytest.mark.parametrize("family", ["clip with projection", "siglip", "siglip2", "dinov2", "vit"])
def test_towers_of_other_checkpoints_start_from_their_weights(backbones, family, tmp_path):
    checkpoint = image_checkpoint(family)
    checkpoint.save_pretrained(tmp_path)
    CLIPImageProcessorPil(image_mean=MEAN, image_std=STD).save_pretrained(tmp_path)
    _, model = start((str(tmp_path), backbones[1]))
    halves = {
        "clip with projection": "vision_model",
        "siglip": "vision_model",
        "siglip2": "vision_model",
        "vit": "vit",
    }
    half = checkpoint.get_submodule(halves.get(family, ""))
    with torch.no_grad():
        assert torch.equal(model.get_image_features(pixels(2)), encode_patches(half, pixels(2)))


def test_a_gpt2_saved_without_its_language_head_is_as_good(backbones, tmp_path):
    gpt2 = save_text_checkpoint(tmp_path, model_class=GPT2Model)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors"), "as in the Hub's gpt2"
    _, model = start((backbones[0], str(tmp_path)))
    assert torch.equal(model.decoder.wte.weight[: gpt2.config.vocab_size], gpt2.wte.weight)
    assert torch.equal(model.decoder.h[1].mlp.c_fc.weight, gpt2.h[1].mlp.c_fc.weight)


def test_the_processor_takes_the_statistics_of_the_tower(backbones):
    vision, text = backbones[:2]
    processor = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE)
    values = processor(images=Image.new("RGB", (50, 20), (255, 0, 51)))["pixel_values"]
    assert values.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    np.testing.assert_allclose(values[0, :, 3, 5], [0.9 / 0.4, -0.2 / 0.5, -0.1 / 0.6], rtol=1e-5)
    imagenet = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE, image_statistics="imagenet")
    values = imagenet(images=Image.new("RGB", (50, 20), "black"))["pixel_values"]
    np.testing.assert_allclose(values[0, :, 0, 0], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-5)
    assert processor.tokenizer.convert_ids_to_tokens([400, 403]) == ["<pad>", "<explanation>"]


def test_a_tokenizer_smaller_than_the_decoders_vocabulary_is_an_error(backbones, tmp_path):
    save_text_checkpoint(tmp_path, vocab_size=500)
    vision, text = backbones[:2]
    processor = SEVLMProcessor.from_backbones(vision, text, image_size=IMAGE_SIZE)
    with pytest.raises(ValueError, match="404 tokens.*has 500"):
        SEVLMForConditionalGeneration.from_backbones(vision, str(tmp_path), processor)


def test_a_decoder_that_is_no_gpt2_is_an_error(backbones, tmp_path):
    OPTConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    processor = SEVLMProcessor.from_backbones(*backbones[:2], image_size=IMAGE_SIZE)
    with pytest.raises(ValueError, match="GPT2Config.*OPTConfig"):
        SEVLMForConditionalGeneration.from_backbones(backbones[0], str(tmp_path), processor)
