"""Attention maps: the weights are those of the model, which is not changed."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig

from modeling_sevlm.attention_map import attention_map, overlay_attention, patch_grid, patch_shares
from modeling_sevlm.pipeline_sevlm import SEVLMPipeline, explanation_words
from tests.helpers.tiny import pixels


EXPLANATION = "the dark sea, looks endless and lonely"


@pytest.fixture
def sentence(processor):
    row = processor(emotions=["awe"], explanations=[EXPLANATION])["input_ids"][0]
    return torch.tensor(row)


def test_the_weights_are_those_of_eager_attention(processor, model, sentence):
    features, row = model.encode_images(pixels(1)), sentence[None]
    patches, text = patch_shares(model, row, features, measure="attention")
    assert model.config.text_config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    outputs = model(input_ids=row, image_features=features, output_attentions=True)
    torch.testing.assert_close(patches, torch.cat(outputs.cross_attentions).mean(dim=1))
    torch.testing.assert_close(text, torch.cat(outputs.attentions).mean(dim=1))


def test_the_map_of_a_word_is_the_attention_of_the_steps_that_predicted_its_tokens(processor, model, sentence):
    """Computed by hand: the attention of the last position of the sentence before a token, averaged over layers, heads
    and tokens."""
    features = model.encode_images(pixels(1))
    words, maps = attention_map(model, processor.tokenizer, sentence, image_features=features, measure="attention")
    positions = dict(explanation_words(model, processor.tokenizer, sentence.tolist()))
    model.set_attn_implementation("eager")
    several = max(positions, key=lambda word: len(positions[word]))
    assert len(positions[several]) > 1, "a word of several tokens"
    for word in (several, "dark"):
        steps = []
        for position in positions[word]:
            outputs = model(sentence[None, :position], image_features=features, output_attentions=True)
            layers = [layer[0, :, -1] for layer in outputs.cross_attentions]  # (heads, K)
            steps.append(sum(layer.mean(dim=0) for layer in layers) / len(layers))
        expected = (sum(steps) / len(steps)).view(4, 4).detach().numpy()
        np.testing.assert_allclose(maps[words.index(word)], expected, atol=1e-6)


@pytest.fixture
def maps(processor, model, sentence):
    """Returns the maps of the sentence for one image, with the options of `attention_map`."""

    def maps(**options):
        return attention_map(model, processor.tokenizer, sentence, **{"pixel_values": pixels(1)} | options)[1]

    return maps


def test_layers_average_to_the_mean_and_differ_from_the_rollout(maps):
    layers = [maps(measure="attention", layer=layer) for layer in (0, -1)]
    mean = maps(measure="attention")
    np.testing.assert_allclose(np.mean(layers, axis=0), mean, atol=1e-6)
    rolled = maps(measure="attention", layer="rollout")
    np.testing.assert_allclose(rolled.sum(axis=(1, 2)), 1, atol=1e-5)
    assert rolled.min() >= 0 and not np.allclose(rolled, mean, atol=1e-3)


def test_contributions_are_the_changes_of_the_attention_output(processor, model, sentence):
    """Computed by hand: the output of each head with all weight on one patch, minus that with equal weights, times the
    weight of the patch, summed over the heads."""
    features = model.encode_images(pixels(1))
    shares, _ = patch_shares(model, sentence[None], features, measure="contribution")
    attention = model.decoder.h[1].crossattention
    values = attention.c_attn(model._image_embeds(features, 1)).split(48, dim=-1)[1][0]
    model.set_attn_implementation("eager")
    outputs = model(input_ids=sentence[None], image_features=features, output_attentions=True)
    expected = 0
    for head, weights in enumerate(outputs.cross_attentions[1][0]):  # (L, K)
        only_head = torch.zeros_like(values)
        only_head[:, 24 * head : 24 * (head + 1)] = values[:, 24 * head : 24 * (head + 1)]  # 2 heads of width 24
        written = attention.c_proj(only_head)
        expected = expected + weights.unsqueeze(-1) * (written - written.mean(dim=0))
    expected = expected.norm(dim=-1)
    torch.testing.assert_close(shares[1], expected / expected.sum(dim=-1, keepdim=True))


def test_a_value_common_to_all_patches_does_not_contribute(processor, model, sentence):
    features = model.encode_images(pixels(1))
    before, _ = patch_shares(model, sentence[None], features, measure="contribution")
    with torch.no_grad():
        for block in model.decoder.h[-1:]:  # the last layer's values do not change weights
            block.crossattention.c_attn.bias[48:] += 5
    after, _ = patch_shares(model, sentence[None], features, measure="contribution")
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


def test_the_rollout_of_a_single_layer_is_that_layer(maps, model):
    del model.decoder.h[1]
    np.testing.assert_allclose(maps(layer="rollout"), maps(layer=0), atol=1e-6)


@pytest.mark.parametrize(
    "explanation", ["it doesn't look like 1920s art", "a café, naïve and well-known", "don\u2019t"]
)
def test_the_words_are_those_of_the_pipeline(processor, model, explanation):
    row = torch.tensor(processor(emotions=["awe"], explanations=[explanation])["input_ids"])
    vad = SEVLMPipeline(model, processor=processor)._words(row[0].tolist(), model.vad_lookup(row)[0].tolist())
    words, maps = attention_map(model, processor.tokenizer, row, pixel_values=pixels(1))
    assert words == [entry["word"] for entry in vad] == explanation.replace(",", "").replace("-", " ").split()
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("layer", ["mean", "rollout"])
@pytest.mark.parametrize("patches", [1, 16])
def test_identical_patches_share_equally(maps, layer, patches):
    shares = maps(pixel_values=None, image_features=torch.zeros(1, patches, 32), layer=layer)
    np.testing.assert_allclose(shares, 1 / patches, atol=1e-6)


def test_padding_on_either_side_has_no_effect(processor, model, sentence, maps):
    pad = torch.full((3,), model.config.pad_token_id)
    padded = torch.cat([pad, sentence, pad])[None]
    words, more_maps = attention_map(model, processor.tokenizer, padded, pixel_values=pixels(1))
    assert words == EXPLANATION.replace(",", "").split()
    np.testing.assert_allclose(maps(), more_maps, atol=1e-6)


def test_a_sentence_without_explanation_has_no_words(processor, model):
    words, maps = attention_map(model, processor.tokenizer, model._prompt(1), pixel_values=pixels(1))
    assert words == [] and maps.shape == (0, 4, 4)


def test_the_model_is_not_changed_and_other_threads_can_use_it(processor, model, sentence):
    inputs = processor(emotions=["awe", "fear"], return_tensors="pt")
    features = model.encode_images(pixels(2))

    def generate():
        return model.generate(**inputs, image_features=features, do_sample=False, max_new_tokens=8)

    expected, first_maps = generate(), None
    stop, failures = threading.Event(), []

    def work():
        while not stop.is_set() and not failures:
            try:
                assert torch.equal(generate(), expected)
            except Exception as error:  # noqa: BLE001 - the test reports any error
                failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(30):
            _, maps = attention_map(model, processor.tokenizer, sentence, image_features=features[:1])
            first_maps = maps if first_maps is None else first_maps
            np.testing.assert_array_equal(maps, first_maps)
    finally:
        stop.set()
        thread.join()
    assert not failures
    attentions = [module for block in model.decoder.h for module in (block.attn, block.crossattention)]
    assert not any(module._forward_pre_hooks for module in attentions)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layer": 2}, "choose 0 to 1"),
        ({"layer": "last"}, "rollout"),
        ({"measure": "gradient"}, "contribution"),
        ({"image_features": torch.zeros(1, 8, 32)}, "8 patches"),
        ({"pixel_values": pixels(2)}, "one image"),
    ],
)
def test_wrong_arguments_are_refused(maps, wrong, words):
    with pytest.raises(ValueError, match=words):
        maps(**wrong)


def test_the_grid_follows_the_configuration():
    assert patch_grid(CLIPVisionConfig(image_size=224, patch_size=16), 196) == (14, 14)
    assert patch_grid(CLIPVisionConfig(image_size=[32, 64], patch_size=16), 8) == (2, 4)
    assert patch_grid(CLIPVisionConfig(image_size=224, patch_size=32), 16) == (4, 4), "a tower that merges patches"


def test_the_overlay_is_bright_where_the_model_looked():
    image, weights = Image.new("RGB", (40, 60), (200, 200, 200)), np.zeros((3, 2))
    weights[0, 1] = 0.7
    overlay = np.asarray(overlay_attention(image, weights), dtype=int)
    assert overlay.shape == (60, 40, 3)
    assert overlay[5, 35].sum() > overlay[55, 5].sum() + 150
    assert overlay_attention(image, np.zeros((3, 2))).size == (40, 60)
