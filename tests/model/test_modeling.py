"""The model: size, outputs, losses, ablations, frozen tower, scores, saving, configuration."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from modeling_sevlm.configuration_sevlm import ARTEMIS_EMOTIONS
from processing import add_sevlm_tokens
from processing.artemis import EMOTIONS
from processing.tiny_tokenizer import train_tokenizer
from tests.helpers.tiny import SENTENCES, pixels, tiny_lexicon, tiny_model, tiny_processor, training_batch


def test_the_default_model_has_the_papers_parameters_and_multiply_adds():
    """Tab. 3: 19.33 G for one image and the 4-token prompt. The counter counts a multiply-add as two operations."""
    with torch.device("meta"):
        model = SEVLMForConditionalGeneration(SEVLMConfig()).eval()
        model.set_attn_implementation("eager")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=torch.zeros(1, 4, dtype=torch.long), pixel_values=torch.zeros(1, 3, 224, 224))
    assert sum(parameter.numel() for parameter in model.parameters()) == 186_054_331
    assert counter.get_total_flops() / 2 == pytest.approx(19.33e9, rel=0.005)


def test_model_and_data_have_the_same_labels_in_the_same_order():
    assert list(ARTEMIS_EMOTIONS) == list(EMOTIONS)


@pytest.mark.parametrize("nested", [False, True], ids=["one sentence", "two sentences"])
def test_outputs_have_the_shape_of_the_input(processor, model, nested):
    batch = training_batch(processor)
    if not nested:
        batch = {name: tensor[:, 0] if name != "pixel_values" else tensor for name, tensor in batch.items()}
    outputs = model(**batch)
    if nested:
        with pytest.raises(ValueError, match=r"\(B, P, L\)"):
            flat = {name: batch[name].flatten(0, 1) for name in batch if name != "pixel_values"}
            model(pixel_values=batch["pixel_values"], **flat)
    shape = batch["input_ids"].shape
    assert outputs.logits.shape == (*shape, len(processor.tokenizer))
    assert outputs.vad_predictions.shape == (*shape, 3)
    assert outputs.alignment_scores.shape == shape[:-1]
    assert outputs.image_features.shape == (3, 16, 32)


def test_training_computes_the_logits_of_label_tokens_only(processor):
    batch, model = training_batch(processor), tiny_model(processor)
    rows = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    whole, skipped = model(**batch), model(**batch, skip_logits=True)
    assert rows == [batch["labels"].numel(), batch["labels"][..., 1:].ne(-100).sum()]
    assert skipped.logits is None and whole.logits is not None
    gradients = []
    for outputs in (whole, skipped):
        model.zero_grad()
        outputs.loss.backward()
        gradients.append(model.decoder.wte.weight.grad.clone())
    torch.testing.assert_close(skipped.loss, whole.loss)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_sentences_that_share_an_image_give_the_same_logits_as_with_one_image_each(processor, model):
    batch = training_batch(processor)
    features = model.encode_images(batch.pop("pixel_values"))
    flat = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
    shared = model(**{name: batch[name] for name in flat}, image_features=features).logits.flatten(0, 1)
    torch.testing.assert_close(shared, model(**flat, image_features=features.repeat_interleave(2, dim=0)).logits)
    swapped = model(**flat, image_features=features.flip(0).repeat_interleave(2, dim=0)).logits
    assert not torch.allclose(shared, swapped, atol=1e-3)


def test_one_row_of_segments_is_broadcast_to_all_sentences(processor, model):
    batch = processor(emotions=["awe", "awe"], explanations=["the dark sea"] * 2, return_tensors="pt")
    segments, shared = batch["token_type_ids"], {"input_ids": batch["input_ids"], "pixel_values": pixels(2)}
    first, second = (model(**shared, token_type_ids=rows).logits for rows in (segments, segments[:1]))
    torch.testing.assert_close(second, first)


def test_cross_attentions_have_one_row_per_sentence(processor):
    model = tiny_model(processor)
    model.set_attn_implementation("eager")
    batch = training_batch(processor)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    found = model(**batch, output_attentions=True).cross_attentions
    rows, length = batch["input_ids"].shape[0] * 2, batch["input_ids"].shape[2]
    assert [weights.shape for weights in found] == [(rows, 2, length, 16)] * 2
    torch.testing.assert_close(found[0].sum(dim=-1), torch.ones(rows, 2, length))
    last = {name: tensor[2:] for name, tensor in batch.items()}
    alone = model(**last, output_attentions=True).cross_attentions
    torch.testing.assert_close(found[1][4:], alone[1])


def test_the_loss_is_the_weighted_sum_of_its_parts(processor, model):
    outputs = model(**training_batch(processor))
    expected = outputs.language_loss + outputs.emotion_loss + 2 * outputs.contrastive_loss
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize(
    ("fields", "absent"),
    [
        ({"use_vad_features": False}, "vad_fusion"),
        ({"use_emotion_encoder": False}, "emotion_encoder"),
        ({"use_vad_head": False}, "vad_head"),
        ({"contrastive_negatives": []}, "contrastive_head"),
    ],
)
def test_an_ablated_part_is_absent_and_the_rest_still_trains(processor, fields, absent):
    model = tiny_model(processor, **fields)
    assert not any(absent in name for name, _ in model.named_parameters())
    outputs = model(**training_batch(processor))
    assert (outputs.emotion_loss is None) == (absent == "vad_head")
    assert (outputs.contrastive_loss is None) == (absent == "contrastive_head")
    outputs.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("use_emotion_encoder", [True, False])
def test_vad_changes_the_explanation_but_not_the_prompt(processor, use_emotion_encoder):
    """Fusion changes only the embeddings after " because" (Eq. 2)."""
    model = tiny_model(processor, use_emotion_encoder=use_emotion_encoder)
    batch = training_batch(processor)
    changed = batch | {"vad_values": batch["vad_values"] + 0.5}
    first, second = model(**batch).logits, model(**changed).logits
    torch.testing.assert_close(first[..., :6, :], second[..., :6, :])
    assert not torch.allclose(first, second)


def contrastive_reference(model, batch):
    """Computes Eq. 6-7 sentence by sentence, in plain Python."""
    images, sentences = batch["input_ids"].shape[:2]
    slots = [(image, sentence) for image in range(images) for sentence in range(sentences)]
    features = model.vision_projection(model.encode_images(batch["pixel_values"])).mean(dim=1)
    present, labels, emotions, explanations = {}, {}, {}, {}
    for slot in slots:
        ids = batch["input_ids"][slot][batch["attention_mask"][slot].bool()]
        image = batch["pixel_values"][slot[0]][None]
        hidden = model(input_ids=ids[None], pixel_values=image, output_hidden_states=True).hidden_states[-1][0]
        start = ids.tolist().index(model.config.because_token_id) + 1 if model.config.because_token_id in ids else 1
        present[slot], labels[slot] = len(ids) > 1, ids[:start].tolist()
        emotions[slot], explanations[slot] = hidden[:start].mean(0), hidden[start:].mean(0)

    def score(slot, other):
        return model.contrastive_head.mlp(torch.cat([features[slot[0]], emotions[slot], explanations[other]])).item()

    losses = []
    for image, sentence in slots:
        slot, next_sentence = (image, sentence), (image, (sentence + 1) % sentences)
        negatives = [next_sentence] if labels[slot] != labels[next_sentence] else []
        negatives += [((image + 1) % images, sentence)] if images > 1 else []
        margins = [score(slot, negative) - score(slot, slot) for negative in negatives if present[negative]]
        if present[slot] and margins:
            losses.append(math.log(1 + sum(map(math.exp, margins))))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize(
    "emotions",
    [
        [["awe", "fear"], ["sadness", "something else"], ["anger", "awe"]],
        [["awe", "fear"], ["sadness", "sadness"], ["anger", "awe"]],
        [["awe", "fear"], ["sadness", "something else"], ["anger", None]],
        [["awe", "fear"]],
        [["awe", "awe"]],
    ],
)
def test_contrastive_loss_equals_a_sentence_by_sentence_computation(processor, model, emotions):
    texts = iter([*SENTENCES])
    explanations = [[label and next(texts) for label in pair] for pair in emotions]
    batch = processor(emotions=emotions, explanations=explanations, return_tensors="pt")
    batch = {"pixel_values": pixels(len(emotions)), **batch}
    loss = model(**batch).contrastive_loss
    assert loss.item() == pytest.approx(contrastive_reference(model, batch), abs=2e-5)


def test_the_label_loss_is_the_cross_entropy_between_emotion_scores_and_label_shares(processor):
    batch = training_batch(processor)
    shares = torch.rand(3, len(EMOTIONS), generator=torch.Generator().manual_seed(0))
    shares /= shares.sum(dim=-1, keepdim=True)
    model = tiny_model(processor, label_loss_weight=3.0)
    outputs = model(**batch, emotion_shares=shares)
    scores = model.emotion_scores(pixel_values=batch["pixel_values"])
    assert outputs.label_loss.item() == pytest.approx(-(shares * scores.log()).sum(dim=-1).mean().item(), rel=1e-5)
    plain = tiny_model(processor)(**batch, emotion_shares=shares)
    assert plain.label_loss is None, "off by default"
    assert outputs.loss.item() == pytest.approx(plain.loss.item() + 3 * outputs.label_loss.item(), rel=1e-5)
    outputs.label_loss.backward()
    assert model.decoder.h[0].crossattention.c_attn.weight.grad.abs().sum() > 0


def test_the_emotion_loss_counts_only_explanation_tokens_found_in_the_lexicon(processor, model):
    batch = processor(emotions=["awe"], explanations=["xx a lonely funeral"], return_tensors="pt")
    outputs = model(image_features=torch.zeros(1, 16, 32), **batch)
    vad, predicted = batch["vad_values"][0], outputs.vad_predictions[0]
    because = batch["input_ids"][0].tolist().index(model.config.because_token_id)
    targets = [t for t in range(because + 1, vad.shape[0]) if vad[t].any()]
    assert len(targets) >= 2
    expected = torch.stack([(predicted[t - 1] - vad[t]).square().mean() for t in targets]).mean()
    torch.testing.assert_close(outputs.emotion_loss, expected)


def test_segments_and_vad_are_derived_by_default(processor, model):
    batch = training_batch(processor)
    given = model(**batch)
    derived = model(**{name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "labels")})
    torch.testing.assert_close(given.loss, derived.loss)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_tower_gets_no_gradient_and_stays_in_evaluation_mode(processor, model, frozen):
    if frozen:
        model.freeze_vision_tower()
    model.train()
    assert model.vision_tower.training == (not frozen) and model.decoder.training
    model(**training_batch(processor)).loss.backward()
    assert all((p.grad is None) == frozen for p in model.vision_tower.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_emotion_scores_equal_one_pass_per_label(processor, model):
    features = model.encode_images(pixels(3))
    config, expected = model.config, []
    for tokens in config.emotion_token_ids:
        ids = torch.tensor([[*config.prompt_token_ids, *tokens, config.because_token_id]] * 3)
        log_probs = model(input_ids=ids, image_features=features).logits.log_softmax(dim=-1)
        steps = log_probs[:, :-1].gather(2, ids[:, 1:, None]).squeeze(-1)
        expected.append(steps[:, len(config.prompt_token_ids) - 1 :].sum(dim=1))
    assert {len(tokens) for tokens in config.emotion_token_ids} > {1}, "the test needs labels of several tokens"
    expected = torch.stack(expected, dim=1).softmax(dim=1)
    torch.testing.assert_close(model.emotion_scores(image_features=features), expected)


def test_alignment_score_equals_the_score_of_the_training_pass(processor, model):
    batch = training_batch(processor)
    expected = model(**batch).alignment_scores
    rows = {name: batch[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}
    scores = model.alignment_score(pixel_values=batch["pixel_values"], **rows)
    torch.testing.assert_close(scores, expected.flatten())
    pad = torch.full((6, 3), model.config.pad_token_id)
    for padded in ([rows["input_ids"], pad], [pad, rows["input_ids"]]):
        scores = model.alignment_score(torch.cat(padded, 1), pixel_values=batch["pixel_values"])
        torch.testing.assert_close(scores, expected.flatten())


def test_a_loaded_model_gives_the_same_logits_as_the_saved_one(processor, model, tmp_path):
    batch = training_batch(processor)
    expected = model(**batch)
    model.save_pretrained(tmp_path)
    for auto_class in (AutoModel, AutoModelForImageTextToText):
        loaded = auto_class.from_pretrained(tmp_path).eval()
        assert type(loaded) is SEVLMForConditionalGeneration
        assert torch.equal(loaded(**batch).logits, expected.logits)
        assert torch.equal(loaded.vad_lookup(batch["input_ids"]), batch["vad_values"])
        assert loaded.lm_head.weight is loaded.decoder.wte.weight
    assert loaded.generation_config.top_p == 0.9 and loaded.generation_config.max_new_tokens == 25
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded.vad_lookup(batch["input_ids"]), batch["vad_values"]), "half precision rounds no lexicon"
    assert loaded.generate(pixel_values=pixels(1), max_new_tokens=3).shape[1] <= 7


def test_a_lexicon_without_permission_is_left_out_and_restored_by_one_call(tmp_path):
    lexicon = tiny_lexicon(redistributable=False)
    processor = tiny_processor(vad_lexicon=lexicon)
    model = tiny_model(processor)
    ids = training_batch(processor)["input_ids"]
    expected = model.vad_lookup(ids)
    model.save_pretrained(tmp_path / "public")
    assert model.vad_lookup.has_table, "saving must not change the model"
    loaded = AutoModel.from_pretrained(tmp_path / "public")
    assert not loaded.vad_lookup(ids).any()
    assert loaded.config.vad_lexicon["name"] == "test words"
    loaded.save_pretrained(tmp_path / "again")  # not even an empty table
    assert not any(name.startswith("vad_lookup.") for name in load_file(tmp_path / "again" / "model.safetensors"))
    loaded.set_vad_lexicon(lexicon, processor.tokenizer)
    assert torch.equal(loaded.vad_lookup(ids), expected)

    model.save_pretrained(tmp_path / "private", include_vad_lexicon=True)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "private").vad_lookup(ids), expected)


def test_a_lexicon_is_compiled_only_for_the_models_own_tokenizer(processor, model):
    with pytest.raises(ValueError, match="tokenizer"):
        model.set_vad_lexicon(tiny_lexicon())
    other = train_tokenizer(["entirely other words about the weather and the sea"] * 9, EMOTIONS, vocab_size=300)
    add_sevlm_tokens(other)
    with pytest.raises(ValueError, match="not the model's"):
        model.set_vad_lexicon(tiny_lexicon(), other)
    model.set_vad_lexicon(None)
    assert not model.vad_lookup.has_table and model.config.vad_lexicon is None


def test_embeddings_can_be_resized(processor, model):
    model.resize_token_embeddings(len(processor.tokenizer) + 7)
    assert model.lm_head.weight.shape[0] == model.config.vocab_size == len(processor.tokenizer) + 7
    assert model.lm_head.weight is model.decoder.wte.weight
    new_id = torch.tensor([[len(processor.tokenizer) + 6]])
    assert not model.vad_lookup(new_id).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"emotion_encoder_attention": "sideways"}, "causal"),
        ({"contrastive_negatives": ["colour"]}, "colour"),
        ({"vision_config": {"hidden_size": 3}}, "model_type"),
        ({"emotion_token_ids": [[1]]}, "9 emotions"),
    ],
)
def test_a_bad_config_says_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        SEVLMConfig(**fields)


def test_a_config_survives_its_file(tmp_path, processor):
    config = SEVLMConfig(vision_config={"model_type": "dinov2", "hidden_size": 16}, contrastive_negatives=["image"])
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.vision_config.model_type == "dinov2" and loaded.vision_config.hidden_size == 16
    assert loaded.contrastive_negatives == ["image"]
    assert loaded.to_diff_dict() == config.to_diff_dict()
