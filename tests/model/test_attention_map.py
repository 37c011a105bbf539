"""Attention maps: the weights are those of the model, which is not changed."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig

from modeling_sevlm.attention_map import attention_map, overlay_attention, patch_grid, patch_shares
from modeling_sevlm.pipeline_sevlm import SEVLMPipeline, explanation_words
from tests.helpers.tiny import pixels, tiny_config, tiny_model


EXPLANATION = "the dark sea, looks endless and lonely"


@pytest.fixture
def sentence(processor):
    row = processor(emotions=["awe"], explanations=[EXPLANATION])["input_ids"][0]
    return torch.tensor(row)


def test_the_weights_are_those_of_eager_attention(processor, model, sentence):
    features, row = model.get_image_features(pixels(1)), sentence[None]
    heads = [patch_shares(model, row, features, measure="attention", head=head)[0] for head in range(2)]
    _, text = patch_shares(model, row, features, measure="attention")
    assert model.config.text_config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    outputs = model(input_ids=row, image_features=features, output_attentions=True)
    torch.testing.assert_close(torch.stack(heads, dim=1), torch.cat(outputs.cross_attentions))
    torch.testing.assert_close(text, torch.cat(outputs.attentions).mean(dim=1))


def test_the_map_of_a_word_is_the_attention_of_the_steps_that_predicted_its_tokens(processor, model, sentence):
    """Computed by hand: the attention of the last position of the sentence before a token, averaged over layers, heads
    and tokens."""
    features = model.get_image_features(pixels(1))
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


def test_layers_and_heads_average_to_the_mean(maps):
    layers = [[maps(measure="attention", layer=layer, head=head) for head in range(2)] for layer in range(2)]
    mean = maps(measure="attention")
    np.testing.assert_allclose(np.mean(layers, axis=(0, 1)), mean, atol=1e-6)
    np.testing.assert_allclose(np.mean(layers[1], axis=0), maps(measure="attention", layer=-1), atol=1e-6)
    rolled = maps(measure="attention", layer="rollout")
    np.testing.assert_allclose(rolled.sum(axis=(1, 2)), 1, atol=1e-5)
    assert rolled.min() >= 0 and not np.allclose(rolled, mean, atol=1e-3)


def test_contributions_are_the_changes_of_the_attention_output(processor, model, sentence):
    """Computed by hand: the module's output with all weight on one patch, minus that with equal weights, times the
    weight of the patch."""
    features = model.get_image_features(pixels(1))
    shares, _ = patch_shares(model, sentence[None], features, measure="contribution", head=1)
    weights, _ = patch_shares(model, sentence[None], features, measure="attention", head=1)
    attention = model.decoder.h[1].crossattention
    values = attention.c_attn(model._image_embeds(features, 1)).split(48, dim=-1)[1][0]
    only_head = torch.cat([torch.zeros(16, 24), values[:, 24:]], dim=-1)  # head 1 of 2, width 48
    outputs = attention.c_proj(only_head)
    expected = (weights[1].unsqueeze(-1) * (outputs - outputs.mean(dim=0))).norm(dim=-1)
    torch.testing.assert_close(shares[1], expected / expected.sum(dim=-1, keepdim=True))


def test_a_value_common_to_all_patches_does_not_contribute(processor, model, sentence):
    features = model.get_image_features(pixels(1))
    before, _ = patch_shares(model, sentence[None], features, measure="contribution")
    with torch.no_grad():
        for block in model.decoder.h[-1:]:  # the last layer's values do not change weights
            block.crossattention.c_attn.bias[48:] += 5
    after, _ = patch_shares(model, sentence[None], features, measure="contribution")
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)


def test_the_rollout_of_a_single_layer_is_that_layer(processor, sentence):
    model = tiny_model(processor, text_config=tiny_config(processor).text_config.to_dict() | {"n_layer": 1})
    given = {"pixel_values": pixels(1)}
    rolled, first = (
        attention_map(model, processor.tokenizer, sentence, layer=layer, **given)[1] for layer in ("rollout", 0)
    )
    np.testing.assert_allclose(rolled, first, atol=1e-6)


def test_the_words_do_not_depend_on_the_lexicon(processor, model, sentence):
    words = explanation_words(model, processor.tokenizer, sentence.tolist())
    assert [word for word, _ in words] == EXPLANATION.replace(",", "").split()
    bare = tiny_model(processor)
    bare.set_vad_lexicon(None)
    assert explanation_words(bare, processor.tokenizer, sentence.tolist()) == words


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


def test_padding_on_either_side_has_no_effect(processor, model, sentence):
    given = {"pixel_values": pixels(1)}
    pad = torch.full((3,), model.config.pad_token_id)
    words, maps = attention_map(model, processor.tokenizer, sentence, **given)
    padded = torch.cat([pad, sentence, pad])[None]
    more_words, more_maps = attention_map(model, processor.tokenizer, padded, **given)
    assert words == more_words
    np.testing.assert_allclose(maps, more_maps, atol=1e-6)


def test_a_sentence_without_explanation_has_no_words(processor, model):
    words, maps = attention_map(model, processor.tokenizer, model._prompt(1), pixel_values=pixels(1))
    assert words == [] and maps.shape == (0, 4, 4)


def test_the_model_is_not_changed_and_other_threads_can_use_it(processor, model, sentence):
    inputs = processor(emotions=["awe", "fear"], return_tensors="pt")
    features = model.get_image_features(pixels(2))

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
        ({"head": 2}, "0 to 1"),
        ({"measure": "gradient"}, "contribution"),
        ({"grid": (3, 4)}, "3 x 4"),
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
    with pytest.raises(ValueError, match="grid="):
        patch_grid(CLIPVisionConfig(image_size=224, patch_size=32), 8)


def test_the_overlay_is_bright_where_the_model_looked():
    image, weights = Image.new("RGB", (40, 60), (200, 200, 200)), np.zeros((3, 2))
    weights[0, 1] = 0.7
    overlay = np.asarray(overlay_attention(image, weights), dtype=int)
    assert overlay.shape == (60, 40, 3)
    assert overlay[5, 35].sum() > overlay[55, 5].sum() + 150
    assert np.asarray(overlay_attention(image, weights, strength=0)).min() == 200
    assert overlay_attention(image, np.zeros((3, 2))).size == (40, 60)
    with pytest.raises(ValueError, match="rows, columns"):
        overlay_attention(image, np.zeros((4, 3, 2)))
