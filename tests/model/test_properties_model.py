"""Properties of any batch and any generation: padding has no effect, rows are independent, a sentence ends once."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from processing.artemis import EMOTIONS
from processing.collator import SEVLMCollator
from tests.helpers.examples import examples
from tests.helpers.tiny import SENTENCES, pixels, tiny_model, tiny_processor


PROCESSOR = tiny_processor(max_length=40)
MODELS = [tiny_model(PROCESSOR, seed=seed) for seed in range(4)]
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()}) + ["because", "<pad>", "é", "😱"]
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
ANNOTATION = st.tuples(st.sampled_from(EMOTIONS), SENTENCE)
PAIRS = st.lists(st.tuples(ANNOTATION, st.none() | ANNOTATION), min_size=1, max_size=4)
TEXT = ("input_ids", "attention_mask", "token_type_ids", "labels", "vad_values")
DECODING = [
    {"do_sample": False},
    {"do_sample": True, "top_p": 1.0},
    {"do_sample": True, "top_p": 1.0, "temperature": 3.0},
    {"do_sample": False, "num_beams": 2, "num_return_sequences": 2},
]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def collate(pairs, seed: int = 0) -> dict[str, torch.Tensor]:
    items = [
        {
            "image_features": pixels(1, seed + row).flatten()[: 16 * 32].view(16, 32),
            "emotions": [None if pair is None else pair[0] for pair in (first, second)],
            "explanations": [None if pair is None else pair[1] for pair in (first, second)],
            "emotion_shares": torch.full((9,), 1 / 9).numpy(),
        }
        for row, (first, second) in enumerate(pairs)
    ]
    return SEVLMCollator(PROCESSOR)(items)


def run(model, batch) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = model(**batch)
    return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}


@examples(12)
@given(pairs=PAIRS, extra=st.integers(1, 6), model=st.sampled_from(MODELS), seed=st.integers(0, 10**6))
def test_the_content_of_padding_has_no_effect(pairs, extra, model, seed):
    batch = collate(pairs)
    expected = run(model, batch)
    chance = torch.Generator().manual_seed(seed)
    wider = dict(batch)
    for name in TEXT:
        tail = batch[name].new_zeros(*batch[name].shape[:2], extra, *batch[name].shape[3:])
        wider[name] = torch.cat([batch[name], tail - 100 if name == "labels" else tail], dim=2)
    padding = wider["attention_mask"] == 0
    noise = torch.randint(0, len(PROCESSOR.tokenizer), padding.shape, generator=chance)
    wider["input_ids"] = torch.where(padding, noise, wider["input_ids"])
    wider["vad_values"] = torch.where(padding[..., None], 0.9, wider["vad_values"])
    found = run(model, wider)
    for name in ("language_loss", "emotion_loss", "contrastive_loss", "loss", "alignment_scores"):
        torch.testing.assert_close(found[name], expected[name], **CLOSE, msg=name)
    real = batch["attention_mask"].bool()
    length = real.shape[-1]
    torch.testing.assert_close(found["logits"][:, :, :length][real], expected["logits"][real], **CLOSE)


@examples(12)
@given(pairs=PAIRS, model=st.sampled_from(MODELS), chance=st.randoms(use_true_random=False))
def test_permuted_rows_give_permuted_results(pairs, model, chance):
    order = list(range(len(pairs)))
    chance.shuffle(order)
    batch = collate(pairs)
    expected = run(model, batch)
    found = run(model, {name: value[order] for name, value in batch.items()})
    for name in ("logits", "vad_predictions", "alignment_scores"):
        torch.testing.assert_close(found[name], expected[name][order], **CLOSE, msg=name)
    # The contrastive loss depends on the order: the next image gives the negative.
    for name in ("language_loss", "emotion_loss"):
        torch.testing.assert_close(found[name], expected[name], **CLOSE, msg=name)


@examples(25, torture=100)
@given(
    model=st.sampled_from(MODELS),
    seed=st.integers(0, 10**6),
    prompts=st.none() | st.lists(st.sampled_from(EMOTIONS), min_size=6, max_size=6),
    decoding=st.sampled_from(DECODING),
    length=st.integers(1, 2) | st.just(24),
)
def test_a_generation_has_one_end_no_padding_before_it_and_a_label_or_none(model, seed, prompts, decoding, length):
    tokenizer, layout = PROCESSOR.tokenizer, PROCESSOR.token_layout()
    inputs = {} if prompts is None else dict(PROCESSOR(emotions=prompts, return_tensors="pt"))
    torch.manual_seed(seed)
    sequences = model.generate(pixel_values=pixels(6, seed), max_new_tokens=length, **inputs, **decoding)
    begin = inputs["input_ids"].shape[1] if inputs else len(layout["prompt_token_ids"])
    forbidden = {layout[name] for name in ("pad_token_id", "emotion_segment_id", "explanation_segment_id")}
    for ids, read in zip(sequences.tolist(), PROCESSOR.read(sequences), strict=True):
        new = ids[begin:]
        end = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
        assert not forbidden & set(new[:end])
        assert set(new[end + 1 :]) <= {tokenizer.pad_token_id}
        text = tokenizer.decode([i for i in ids[:begin] if i != tokenizer.pad_token_id][1:] + new[:end])
        words = text.removeprefix(" the emotion is").split(" because")[0].replace("<prefix>", " ").split()
        label = " ".join(words).lower()
        assert read["emotion"] == (label if label in EMOTIONS else None)
