"""VAD in the model: `VADLookup` agrees with the processor's reader; the emotion encoder is causal by default."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_sevlm.emotion_sevlm import SEVLMEmotionEncoder, VADLookup
from tests.helpers.examples import examples
from tests.helpers.tiny import tiny_config, tiny_lexicon, tiny_processor


PROCESSOR = tiny_processor()
READER = PROCESSOR.vad_lexicon.token_reader(PROCESSOR.tokenizer)
LOOKUP = VADLookup.from_tables(PROCESSOR.vad_lexicon.compile(PROCESSOR.tokenizer))


def assert_readers_agree(ids: list[int]) -> None:
    expected = torch.from_numpy(READER(ids))
    assert torch.equal(LOOKUP(torch.tensor([ids]))[0], expected)


@examples(300)
@given(st.lists(st.integers(0, len(PROCESSOR.tokenizer) - 1), min_size=1, max_size=40))
def test_both_readers_agree_on_any_tokens(ids):
    assert_readers_agree(ids)


@examples(300)
@given(st.lists(st.sampled_from([" ", "fun", "eral", "Funeral", "dark", "(", "’", "é", "\n", "calm,", "x", "日"])))
def test_both_readers_agree_on_unusual_texts(pieces):
    ids = PROCESSOR.tokenizer("".join(pieces) or " ")["input_ids"]
    assert_readers_agree(ids)


def test_the_lookup_takes_any_batch_shape():
    ids = torch.randint(0, len(PROCESSOR.tokenizer), (2, 3, 11), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([LOOKUP(row[None])[0] for row in ids.view(6, 11)]).view(2, 3, 11, 3)
    assert torch.equal(LOOKUP(ids), expected)


def test_a_tokens_vad_does_not_depend_on_later_tokens():
    ids = torch.tensor([PROCESSOR.tokenizer(" a lonely funeral, happy and dark")["input_ids"]])
    whole = LOOKUP(ids)
    assert whole.any()
    for length in range(1, ids.shape[1] + 1):
        assert torch.equal(LOOKUP(ids[:, :length]), whole[:, :length])


def test_words_are_found_in_any_segmentation():
    """A model may generate pieces of a word that the tokenizer would not choose."""
    letters = [PROCESSOR.tokenizer.convert_tokens_to_ids(token) for token in ["Ġ", "f", "u", "n", "e", "r", "a", "l"]]
    vad = LOOKUP(torch.tensor([letters]))[0]
    lexicon = tiny_lexicon()
    assert vad[3].tolist() == pytest.approx(lexicon["fun"], abs=1e-6)
    assert vad[7].tolist() == pytest.approx(lexicon["funeral"], abs=1e-6)
    assert not vad[[0, 1, 2, 4, 5, 6]].any()


def test_without_a_table_every_token_is_neutral():
    lookup = VADLookup()
    assert lookup(torch.arange(12).view(2, 6)).shape == (2, 6, 3)
    assert not lookup(torch.arange(300)).any()


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return SEVLMEmotionEncoder(tiny_config(PROCESSOR)).eval()


def later_words_changed() -> tuple[torch.Tensor, torch.Tensor]:
    vad = torch.rand(2, 9, 3)
    changed = vad.clone()
    changed[:, 5:] = -1
    return vad, changed


def test_the_causal_encoder_sees_no_later_words(encoder):
    first, second = map(encoder, later_words_changed())
    assert torch.equal(first[:, :5], second[:, :5])
    assert not torch.allclose(first[:, 5:], second[:, 5:])


def test_the_bidirectional_encoder_has_the_same_weights_and_sees_later_words(encoder):
    config = tiny_config(PROCESSOR, emotion_encoder_attention="bidirectional")
    other = SEVLMEmotionEncoder(config).eval()
    other.load_state_dict(encoder.state_dict())
    vad, changed = later_words_changed()
    assert not torch.allclose(other(vad)[:, :5], other(changed)[:, :5])
    torch.testing.assert_close(encoder(vad)[:, 0], other(vad[:, :1])[:, 0])


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_padding_on_either_side_does_not_change_the_features(attention):
    torch.manual_seed(0)
    encoder = SEVLMEmotionEncoder(tiny_config(PROCESSOR, emotion_encoder_attention=attention)).eval()
    vad, pad = torch.rand(1, 6, 3), torch.rand(1, 2, 3)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    left = encoder(torch.cat([pad, vad], 1), (mask.cumsum(1) - 1).clamp(min=0), mask)
    right = encoder(torch.cat([vad, pad], 1), None, mask.flip(1))
    torch.testing.assert_close(left[:, 2:], encoder(vad))
    torch.testing.assert_close(right[:, :6], encoder(vad))
    assert left.isfinite().all() and right.isfinite().all()
