"""Generation gives the same tokens with and without a cache and in any batch, and the tower runs once per image."""

import copy

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from tests.helpers.tiny import pixels, tiny_model


DECODING = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "seeded sampling": {"do_sample": True, "top_p": 0.9, "num_return_sequences": 2},
}


def generate(model, seed=0, **kwargs):
    torch.manual_seed(seed)
    return model.generate(**kwargs)


@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        ({"max_length": 8}, 8),
        ({"max_new_tokens": 3}, 7),
        ({"max_length": 8, "max_new_tokens": 3}, 7),
        ({"generation_config": GenerationConfig(max_length=8)}, 8),
        ({"generation_config": GenerationConfig(max_length=8, max_new_tokens=3)}, 7),
        ({"generation_config": GenerationConfig(max_new_tokens=3)}, 7),
        ({"generation_config": GenerationConfig(max_new_tokens=3), "max_length": 9}, 9),
        ({}, 29),
    ],
    ids=str,
)
def test_lengths_count_as_they_are_given(model, arguments, length):
    assert model.generation_config.max_new_tokens == 25
    endless = copy.deepcopy(arguments) | {"suppress_tokens": [model.config.eos_token_id], "do_sample": False}
    assert model.generate(pixel_values=pixels(2), **endless).shape == (2, length)


@pytest.mark.parametrize("decoding", DECODING)
def test_cached_generation_equals_recomputing(processor, model, decoding):
    # The prompts end in " because", so every new token is fused with VAD.
    inputs = processor(emotions=["awe", "fear", "sadness"], return_tensors="pt")
    inputs |= {"pixel_values": pixels(3), **DECODING[decoding]}
    cached = generate(model, use_cache=True, **inputs)
    assert torch.equal(cached, generate(model, use_cache=False, **inputs))
    assert len(set(map(tuple, cached.tolist()))) > 1, "the test needs different rows"


def test_logits_depend_on_the_vad_of_earlier_words(processor, model):
    """Otherwise the comparison of cached and recomputed generation would say nothing about VAD."""
    inputs = processor(emotions=["awe"], return_tensors="pt") | {"pixel_values": pixels(1)}
    ids = processor(emotions=["awe"], explanations=["a quiet happy funeral"], return_tensors="pt")["input_ids"]
    with_vad = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
    without = model(input_ids=ids, pixel_values=inputs["pixel_values"], vad_values=torch.zeros(*ids.shape, 3)).logits
    assert not torch.allclose(with_vad, without)


@pytest.fixture(scope="module")
def full_size_model():
    """A model of the paper's size with random weights, and features in place of the tower."""
    torch.manual_seed(0)
    config = SEVLMConfig(use_vision_tower=False, prompt_token_ids=[50256, 262, 9942, 318])
    model = SEVLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


@pytest.mark.parametrize("decoding", DECODING)
def test_cached_generation_equals_recomputing_at_full_size(full_size_model, decoding):
    inputs = {
        "input_ids": torch.tensor([[50256, 262, 9942, 318, 25030, 780], [50256, 262, 9942, 318, 3252, 780]]),
        "image_features": torch.randn(2, 196, 768, generator=torch.Generator().manual_seed(1)),
        "max_new_tokens": 8,
        **DECODING[decoding],
    }
    cached = generate(full_size_model, use_cache=True, **inputs)
    assert torch.equal(cached, generate(full_size_model, use_cache=False, **inputs))


def test_left_padding_in_a_batch_does_not_change_the_tokens(processor, model):
    emotions = ["awe", "something else", "contentment"]
    inputs = processor(emotions=emotions, return_tensors="pt")
    assert not inputs["attention_mask"].all(), "the test needs prompts of different lengths"
    batched = model.generate(pixel_values=pixels(3), do_sample=False, **inputs)
    width = inputs["input_ids"].shape[1]
    for row, emotion in enumerate(emotions):
        alone = processor(emotions=[emotion], return_tensors="pt")
        single = model.generate(pixel_values=pixels(3)[row : row + 1], do_sample=False, **alone)
        new = single[0, alone["input_ids"].shape[1] :].tolist()
        assert batched[row, width : width + len(new)].tolist() == new


@pytest.mark.parametrize("decoding", DECODING)
def test_sdpa_and_eager_attention_generate_the_same_tokens(processor, model, decoding):
    inputs = {"pixel_values": pixels(3), **DECODING[decoding]}
    expected = generate(model, **inputs)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.decoder.config._attn_implementation == "eager"
    assert torch.equal(generate(model, **inputs), expected)


@pytest.mark.parametrize("decoding", DECODING)
def test_tower_projection_and_cross_attention_read_each_image_once(model, decoding):
    tower, other = [], []
    model.vision_tower.register_forward_hook(lambda module, args, output: tower.append(len(output[0])))
    for module in (model.vision_projection, model.decoder.h[0].crossattention.c_attn):
        module.register_forward_hook(lambda module, args, output: other.append(len(output)))
    model.generate(pixel_values=pixels(3), use_cache=True, **DECODING[decoding])
    assert sum(tower) == 3 and other == [3, 3]


def test_several_prompts_share_an_image(processor, model):
    seen = []
    model.vision_tower.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    prompts = processor(emotions=["awe", "fear", "awe", "fear"], return_tensors="pt")
    shared = model.generate(pixel_values=pixels(2), do_sample=False, **prompts)
    assert sum(seen) == 2
    repeated = model.generate(pixel_values=pixels(2).repeat_interleave(2, dim=0), do_sample=False, **prompts)
    assert torch.equal(shared, repeated)


def test_images_without_prompts_get_the_prompt_of_the_config(processor, model):
    from_config = model.generate(pixel_values=pixels(2), do_sample=False)
    prompt = processor(text=[processor.prompt] * 2, return_tensors="pt")
    assert torch.equal(from_config, model.generate(pixel_values=pixels(2), do_sample=False, **prompt))
    from_features = model.generate(image_features=model.encode_images(pixels(2)), do_sample=False)
    assert torch.equal(from_features, from_config)


def test_a_static_cache_gives_the_same_tokens(processor, model):
    inputs = processor(emotions=["awe", "something else"], return_tensors="pt")
    inputs |= {"pixel_values": pixels(2), "do_sample": False}
    assert torch.equal(model.generate(cache_implementation="static", **inputs), model.generate(**inputs))


def test_generate_uses_the_callers_cache(model):
    inputs = {"pixel_values": pixels(2), "do_sample": False, "num_return_sequences": 1}
    cache = EncoderDecoderCache(DynamicCache(config=model.decoder.config), DynamicCache(config=model.decoder.config))
    assert torch.equal(model.generate(past_key_values=cache, **inputs), model.generate(**inputs))
    assert cache.self_attention_cache.get_seq_length() > 4


def test_the_cache_refuses_to_select_rows(model):
    found = model.generate(
        pixel_values=pixels(2), do_sample=True, num_return_sequences=3, return_dict_in_generate=True, use_cache=True
    )
    with pytest.raises(NotImplementedError, match="new cache"):
        found.past_key_values.batch_select_indices(torch.tensor([0, 3]))


def test_nucleus_sampling_is_the_default_and_at_most_25_tokens(model):
    generation = model.generation_config
    assert (generation.do_sample, generation.top_p, generation.temperature, generation.top_k) == (True, 0.9, 1.0, 0)
    first, second = (generate(model, seed=seed, pixel_values=pixels(4)) for seed in (0, 1))
    assert first.shape[1] <= 4 + 25
    assert not torch.equal(first, second)


def test_a_bidirectional_emotion_encoder_decodes_without_a_cache(processor):
    model = tiny_model(processor, emotion_encoder_attention="bidirectional")
    lengths = []
    handle = model.decoder.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    model.generate(pixel_values=pixels(1), do_sample=False, max_new_tokens=4, eos_token_id=None)
    handle.remove()
    assert lengths == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="use_cache"):
        model.generate(pixel_values=pixels(1), use_cache=True)


def test_too_few_or_no_images_for_the_prompts_are_an_error(processor, model):
    prompts = processor(emotions=["awe", "fear", "awe"], return_tensors="pt")
    with pytest.raises(ValueError, match="3 prompts .* 2 images"):
        model.generate(pixel_values=pixels(2), **prompts)
    for call in (model.generate, model):
        with pytest.raises(ValueError, match="pixel_values"):
            call(input_ids=prompts["input_ids"])
