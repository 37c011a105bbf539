"""Every argument that a caller of the processor may know from other processors: it works or is refused."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.generation import GenerateDecoderOnlyOutput
from transformers.modeling_outputs import CausalLMOutput
from transformers.processing_utils import ImagesKwargs

from tests.helpers.images import picture
from tests.helpers.tiny import IMAGE_SIZE, tiny_processor


SQUARE = {"height": 20, "width": 20}
# Settings of images that have the same effect as with the image processor alone.
APPLIED = [
    {"do_resize": False},
    {"do_resize": True},
    {"size": SQUARE},
    {"size": 20, "default_to_square": True},
    {"size": {"shortest_edge": 20}},
    {"resample": Image.Resampling.NEAREST},
    {"do_normalize": False},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    {"do_center_crop": True, "crop_size": SQUARE},
    {"do_pad": True, "pad_size": {"height": 40, "width": 40}},
]
# Values that describe what happens in any case.
NO_CHANGE = [
    {"do_rescale": True},
    {"rescale_factor": 1 / 255},
    {"do_convert_rgb": True},
    {"data_format": "channels_first"},
    {"device": "cpu"},
    {"device": torch.device("cpu"), "truncation": False},
    {"padding": True},
    {"padding": "longest"},
    {"add_special_tokens": True},
    {"return_attention_mask": True},
    {"return_tensors": None},
    {"return_tensors": "np"},
    {"do_rescale": None, "truncation": None, "max_length": None, "do_normalize": None},
]
REFUSED = {
    "input_data_format": ("channels_first", "are recognised: omit it"),
    "data_format": ("channels_last", "permute the result"),
    "do_convert_rgb": (False, "always read as RGB"),
    "device": ("cuda", r"call `.to\(device\)` on the result"),
    "disable_grouping": (True, "no effect: omit it"),
    "image_seq_length": (3, "no effect: omit it"),
    "crop_size": (SQUARE, "no effect without `do_center_crop=True`"),
    "do_center_crop": (True, "needs `crop_size`"),
    "pad_size": (SQUARE, "no effect without `do_pad=True`"),
    "return_tensors": ("tf", "must be 'pt' or 'np', not 'tf'"),
    "padding_side": ("left", "prompts are padded on the left"),
    "truncation": (True, "never cut"),
    "do_pad": (True, "needs `pad_size`"),
    "add_special_tokens": (False, "the model needs them"),
    "return_attention_mask": (False, "remove `attention_mask` from the result"),
    "explanation": (["calm"], "Unknown argument `explanation`. Did you mean `explanations`"),
    "emotion": ("awe", "Did you mean `emotions`"),
    "image": ("a.png", "Did you mean `images`"),
    "max_megapixel": (3, "Did you mean `max_megapixels`"),
    "nonsense": (1, "Unknown argument `nonsense`. Use .*images"),
}


OF_TWO_SIZES = [picture(size=(50, 20)), picture(size=(20, 50))]
# These depend on the images or on the prompt.
CONDITIONAL = {"do_rescale", "rescale_factor", "padding", "max_length"}


def forms(image: Image.Image) -> dict:
    values = np.asarray(image)
    return {"image": image, "array": values, "tensor": torch.tensor(values / 255).permute(2, 0, 1)}


@pytest.mark.parametrize("arguments", APPLIED, ids=str)
def test_settings_of_images_apply_to_images_of_every_form(processor, arguments):
    expected = processor.image_processor(picture(), return_tensors="np", **arguments)["pixel_values"]
    for form, source in forms(picture()).items():
        values = processor(images=source, return_tensors="pt", **arguments)["pixel_values"]
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-5, err_msg=form)


@pytest.mark.parametrize("arguments", NO_CHANGE, ids=str)
def test_arguments_that_describe_the_default_change_nothing(processor, arguments):
    expected = processor(images=picture(), emotions="awe")
    for form, source in forms(picture()).items():
        batch = processor(images=source, emotions="awe", **arguments)
        assert set(batch) == set(expected), form
        assert all(np.array_equal(batch[name], expected[name]) for name in expected), form


@pytest.mark.parametrize("inputs", [{"images": picture()}, {"emotions": "awe"}, {"text": "a"}], ids=lambda i: [*i][0])
@pytest.mark.parametrize("name", REFUSED)
def test_other_arguments_are_refused_in_one_line_that_says_what_to_do(processor, name, inputs):
    value, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as refused:
        processor(**inputs, **{name: value})
    assert "\n" not in str(refused.value)


def test_every_argument_of_image_processors_and_tokenizers_is_applied_or_refused(processor):
    tokenizer = inspect.signature(PreTrainedTokenizerBase.__call__).parameters.keys() - {"self", "kwargs", "text"}
    tested = {*REFUSED, *CONDITIONAL, *(name for arguments in [*APPLIED, *NO_CHANGE] for name in arguments)}
    assert ImagesKwargs.__annotations__.keys() <= tested
    for name in tokenizer - tested:
        with pytest.raises(ValueError, match=f"Unknown argument `{name}`"):
            processor(text="a", **{name: 1})


@pytest.mark.parametrize(
    "arguments", [{"size": SQUARE}, {"do_normalize": False}, {"timeout": 3}, {"max_megapixels": 9}]
)
def test_settings_of_images_without_images_are_refused(processor, arguments):
    with pytest.raises(ValueError, match="There are no images for"):
        processor(emotions="awe", **arguments)


@pytest.mark.parametrize(
    "arguments", [{"do_rescale": False}, {"rescale_factor": 1.0}, {"rescale_factor": -0.5}], ids=str
)
def test_values_are_rescaled_as_asked_unless_they_are_fractions(processor, arguments):
    expected = processor.image_processor(picture(), return_tensors="np", **arguments)["pixel_values"]
    for source in (picture(), np.asarray(picture())):
        assert np.array_equal(processor(images=source, **arguments)["pixel_values"], expected)
    fractions = np.asarray(picture()) / 255
    grey = Image.fromarray(np.asarray(picture("L"), dtype=np.float32) / 255)
    changed = tiny_processor()
    for name, value in arguments.items():
        setattr(changed.image_processor, name, value)
    for source in (fractions, torch.tensor(fractions).bfloat16(), [picture(), fractions], grey):
        with pytest.raises(ValueError, match="not for fractions"):
            processor(images=source, **arguments)
        with pytest.raises(ValueError, match="not for fractions"):
            changed(images=source)


def test_prompts_are_filled_to_a_length_or_refused_above_it_but_never_cut(processor):
    plain = processor(emotions=["awe", "something else"], return_tensors="pt")
    length = plain["input_ids"].shape[1]
    assert torch.equal(
        processor(emotions="something else", max_length=length, return_tensors="pt")["input_ids"],
        plain["input_ids"][1:],
    )
    filled = processor(emotions="awe", padding="max_length", max_length=40, return_tensors="pt")
    assert filled["input_ids"].shape == (1, 40) and filled["attention_mask"].sum() == plain["attention_mask"][0].sum()
    for arguments in ({}, {"padding": "max_length"}, {"text_kwargs": {"padding": True}}):
        for inputs in ({"emotions": "awe"}, {"text": "a calm sea"}, {"images": picture()}):
            with pytest.raises(ValueError, match="more than max_length=2. Prompts are never cut"):
                processor(**inputs, **arguments, max_length=2)
    with pytest.raises(ValueError, match="needs `max_length`"):
        processor(emotions="awe", padding="max_length")
    for name, value in {"max_length": 8, "padding": "max_length"}.items():
        with pytest.raises(ValueError, match="Training rows are (cut at|padded to) .*: set `processor"):
            processor(emotions="awe", explanations="the sea is grey", **{name: value})


def test_groups_of_arguments_count_as_single_ones(processor):
    groups = {"images_kwargs": {"do_normalize": False}, "common_kwargs": {"return_tensors": "pt"}}
    batch = processor(images=picture(), **groups)
    assert torch.equal(
        batch["pixel_values"], processor(images=picture(), do_normalize=False, return_tensors="pt")["pixel_values"]
    )
    with pytest.raises(ValueError, match="`do_normalize` is given twice"):
        processor(images=picture(), do_normalize=True, **groups)
    with pytest.raises(ValueError, match="Unknown argument `max_lenght`. Did you mean|Use"):
        processor(emotions="awe", text_kwargs={"max_lenght": 3})
    for wrong in (
        {"text_kwargs": {"size": 8}},
        {"images_kwargs": {"max_length": 8}},
        {"common_kwargs": {"timeout": 3}},
    ):
        with pytest.raises(ValueError, match="is not an argument of `.*_kwargs`: pass it directly"):
            processor(images=picture(), **wrong)


def test_training_rows_take_the_lengths_that_they_have_anyway(processor):
    row = {"emotions": "awe", "explanations": "the sea is grey"}
    plain = processor(**row)["input_ids"]
    for arguments in ({"padding": True}, {"padding": "longest"}, {"max_length": processor.max_length}):
        assert np.array_equal(processor(**row, **arguments)["input_ids"], plain)
    filling = tiny_processor(pad_to_max_length=True)
    assert filling(**row, padding="max_length")["input_ids"].shape == (1, filling.max_length)
    with pytest.raises(ValueError, match="padded to `max_length`: set `processor.pad_to_max_length`"):
        filling(**row, padding=True)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": ()}, "is empty"),
        ({"emotions": ()}, "is empty"),
        ({"emotions": np.array([], dtype=object)}, "is empty"),
        ({"emotions": "awe", "max_length": "10"}, "is a number of tokens, not '10'"),
        ({"emotions": "awe", "padding": False}, "prompts of one call are padded to the longest"),
        ({"images": OF_TWO_SIZES, "do_resize": False}, "different sizes, .* x "),
        ({"images": OF_TWO_SIZES, "size": {"shortest_edge": 8}}, "different sizes"),
    ],
)
def test_bad_values_are_refused_with_a_reason(processor, inputs, message):
    with pytest.raises(ValueError, match=message):
        processor(**inputs)


def test_labels_may_be_an_array(processor):
    labels = np.array(["awe", "fear"], dtype=object)
    assert np.array_equal(processor(emotions=labels)["input_ids"], processor(emotions=[*labels])["input_ids"])


def test_the_result_of_generate_is_read_in_every_form(processor):
    row = processor(emotions="awe", explanations="the sea is grey")["input_ids"][0]
    expected = [{"emotion": "awe", "explanation": "the sea is grey"}]
    output = GenerateDecoderOnlyOutput(sequences=torch.tensor(row)[None])
    for ids in (
        output,
        row[None],
        torch.tensor(row)[None],
        [row.tolist()],
        [torch.tensor(row)],
        [tuple(row.tolist())],
    ):
        assert processor.read(ids) == expected
    assert processor.read([]) == processor.read(torch.zeros(0, 5, dtype=torch.long)) == []


@pytest.mark.parametrize(
    "ids",
    [
        "awe because",
        None,
        7,
        ["awe"],
        [1, 2],
        torch.tensor([1, 2]),
        torch.zeros(1, 2),
        torch.zeros(1, 2, 3, dtype=torch.long),
        torch.tensor([[1, -100]]),
        {"input_ids": [[1]]},
        BatchFeature({"input_ids": [[1]]}),
        CausalLMOutput(logits=torch.zeros(1, 2, 3)),
    ],
    ids=lambda ids: type(ids).__name__,
)
def test_what_is_not_token_ids_is_refused(processor, ids):
    with pytest.raises(ValueError, match=r"`read` takes token ids \(N, L\) as `generate` returns them, not"):
        processor.read(ids)


def test_images_of_different_sizes_are_resized_alike(processor):
    assert processor(images=[picture(), picture(size=(9, 9))])["pixel_values"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
