"""From rows to batches: the pair of annotations drawn in each epoch, and its collation."""

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from processing.artemis import EMOTIONS
from processing.collator import SentencePairs, SEVLMCollator
from tests.helpers.tiny import IMAGE_SIZE


# Emotions of the annotations, painting by painting.
ANNOTATIONS = [
    ["awe", "fear", "fear", "awe", "sadness"],
    ["anger", "anger", "anger"],
    ["contentment"],
    ["awe", "something else"],
    ["fear", "fear", "amusement", "fear", "fear", "fear"],
    ["disgust", "disgust"],
    ["excitement", "awe", "contentment"],
]
EPOCHS = 200  # enough for the rarest pair


def paintings(annotations) -> Dataset:
    """One row per painting. Explanations name painting and annotation; every image has its own colour."""
    columns = {
        "image": [Image.new("RGB", (20 + i, 10), (30 * i, 100, 200)) for i in range(len(annotations))],
        "painting": [f"painting {i}" for i in range(len(annotations))],
        "emotions": annotations,
        "explanations": [[f"sea {i} rain {k}" for k in range(len(row))] for i, row in enumerate(annotations)],
    }
    features = {
        "image": ImageFeature(),
        "painting": Value("string"),
        "emotions": List(ClassLabel(names=list(EMOTIONS))),
        "explanations": List(Value("string")),
    }
    return Dataset.from_dict(columns, features=Features(features))


@pytest.fixture(scope="module")
def dataset():
    return paintings(ANNOTATIONS)


def drawn_pairs(pairs: SentencePairs, epoch: int) -> list[tuple[int, int | None]]:
    pairs.set_epoch(epoch)
    return [pairs.pair(index) for index in range(len(pairs))]


def test_an_item_is_an_image_and_two_of_its_annotations(dataset):
    pairs = SentencePairs(dataset)
    assert len(pairs) == len(ANNOTATIONS)
    for index, row in enumerate(ANNOTATIONS):
        item, chosen = pairs[index], pairs.pair(index)
        assert item["image"].getpixel((0, 0)) == (30 * index, 100, 200)
        for position, emotion, explanation in zip(chosen, item["emotions"], item["explanations"], strict=True):
            if position is None:
                assert emotion is None and explanation is None
            else:
                assert (emotion, explanation) == (row[position], f"sea {index} rain {position}")


def test_epochs_draw_every_annotation_and_two_emotions_where_possible(dataset):
    pairs = SentencePairs(dataset)
    epochs = [drawn_pairs(pairs, epoch) for epoch in range(EPOCHS)]
    assert all(before != after for before, after in zip(epochs, epochs[1:], strict=False))
    for index, row in enumerate(ANNOTATIONS):
        first, second = ({epoch[index][place] for epoch in epochs} for place in (0, 1))
        assert first == set(range(len(row)))
        assert second == (set(range(len(row))) if len(row) > 1 else {None})
    for chosen in epochs:
        for row, (first, second) in zip(ANNOTATIONS, chosen, strict=True):
            assert first != second
            if len(set(row)) > 1:
                assert row[first] != row[second]
        assert set(chosen[1]) < {0, 1, 2} and set(chosen[5]) == {0, 1}, "one emotion, two annotations"
        assert chosen[2] == (0, None), "a single annotation"
    item = pairs[2]
    assert item["emotions"] == ["contentment", None] and item["explanations"] == ["sea 2 rain 0", None]


def test_the_first_annotation_is_drawn_evenly():
    """Only then does training see the labels as often as the annotators gave them."""
    row = ["fear", "fear", "amusement", "fear"]
    pairs = SentencePairs(paintings([row] * 50))
    firsts = [first for epoch in range(20) for first, _ in drawn_pairs(pairs, epoch)]
    # 1000 draws among four: 250 each, standard deviation 14.
    assert all(abs(firsts.count(position) - 250) < 70 for position in range(4))


def test_a_pair_depends_on_seed_epoch_and_index_only(dataset):
    expected = [drawn_pairs(SentencePairs(dataset, seed=3), epoch) for epoch in range(4)]
    again = SentencePairs(dataset, seed=3)
    for epoch in (2, 0, 3, 1):
        torch.manual_seed(epoch)
        again.set_epoch(epoch)
        backwards = [again.pair(index) for index in reversed(range(len(again)))]
        assert backwards[::-1] == expected[epoch]
    assert [drawn_pairs(SentencePairs(dataset, seed=4), epoch) for epoch in range(4)] != expected
    same = SentencePairs(paintings([ANNOTATIONS[0]] * 20))
    assert len(set(drawn_pairs(same, 0))) > 1, "paintings with the same annotations draw independently"


def loaded_epochs(dataset, processor, epochs, **loader_arguments) -> list[list[dict[str, torch.Tensor]]]:
    pairs = SentencePairs(dataset, seed=1)
    loader = DataLoader(pairs, batch_size=3, collate_fn=SEVLMCollator(processor), **loader_arguments)
    batches = []
    for epoch in epochs:
        pairs.set_epoch(epoch)
        batches.append(list(loader))
    return batches


@pytest.mark.parametrize("persistent", [False, True])
def test_loader_workers_change_nothing(dataset, processor, persistent):
    epochs = [0, 1, 5]
    expected = loaded_epochs(dataset, processor, epochs)
    texts = [torch.cat([batch["input_ids"].flatten() for batch in epoch]).tolist() for epoch in expected]
    assert texts[0] != texts[1] != texts[2], "otherwise workers could stay in the first epoch unnoticed"
    workers = loaded_epochs(dataset, processor, epochs, num_workers=2, persistent_workers=persistent)
    for batch, other in zip(sum(workers, []), sum(expected, []), strict=True):
        assert set(batch) == set(other)
        assert all(torch.equal(batch[name], other[name]) for name in batch)


def test_a_batch_has_images_and_pairs_padded_to_the_longest_sentence(dataset, processor):
    pairs = SentencePairs(dataset)
    items = [pairs[index] for index in range(len(pairs))]
    batch = SEVLMCollator(processor)(items)
    sentences = [
        len(processor(emotions=emotion, explanations=explanation)["input_ids"][0])
        for item in items
        for emotion, explanation in zip(item["emotions"], item["explanations"], strict=True)
        if emotion is not None
    ]
    length = max(sentences)
    assert len(set(sentences)) > 1, "the sentences should differ in length"
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
    text = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "labels"), (7, 2, length))
    images = {"pixel_values": (7, 3, IMAGE_SIZE, IMAGE_SIZE), "emotion_shares": (7, len(EMOTIONS))}
    assert shapes == {**images, "vad_values": (7, 2, length, 3), **text}
    for row, shares in zip(dataset, batch["emotion_shares"].tolist(), strict=True):
        counts = [row["emotions"].count(label) for label in range(len(EMOTIONS))]
        assert shares == pytest.approx([count / len(row["emotions"]) for count in counts])
    assert batch["attention_mask"].sum(-1).flatten().tolist() == [
        1 if emotion is None else sentences.pop(0) for item in items for emotion in item["emotions"]
    ]
    padding = batch["attention_mask"] == 0
    assert (batch["input_ids"][padding] == processor.tokenizer.pad_token_id).all()
    assert (batch["labels"][padding] == -100).all() and not batch["vad_values"][padding].any()
    assert processor.read(batch["input_ids"].flatten(0, 1)) == [
        {"emotion": emotion, "explanation": explanation or ""}
        for item in items
        for emotion, explanation in zip(item["emotions"], item["explanations"], strict=True)
    ]


def test_permuted_items_give_the_permuted_batch(dataset, processor):
    pairs, collator = SentencePairs(dataset), SEVLMCollator(processor)
    items = [pairs[index] for index in range(len(pairs))]
    order = [4, 0, 6, 2, 5, 1, 3]
    batch, permuted = collator(items), collator([items[index] for index in order])
    pixel_values = processor(images=dataset["image"][:], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch["pixel_values"], pixel_values)
    for name in batch:
        assert torch.equal(permuted[name], batch[name][order]), name


def test_features_replace_images_and_no_image_is_decoded(dataset, processor, monkeypatch):
    expected = SEVLMCollator(processor)([SentencePairs(dataset)[index] for index in (3, 1)])
    monkeypatch.setattr(ImageFeature, "decode_example", None)
    features = torch.arange(7 * 4 * 2, dtype=torch.bfloat16).view(7, 4, 2)
    pairs = SentencePairs(dataset, features=features)
    batch = SEVLMCollator(processor)([pairs[3], pairs[1]])
    assert torch.equal(batch.pop("image_features"), features[[3, 1]])
    del expected["pixel_values"]
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    with pytest.raises(ValueError, match="6 features for 7 paintings"):
        SentencePairs(dataset, features=features[:6])


def test_ask_every_label_false_learns_the_first_label_only(dataset, processor):
    items = [SentencePairs(dataset, seed=3)[index] for index in range(len(ANNOTATIONS))]
    both = SEVLMCollator(processor)(items)
    first = SEVLMCollator(processor, ask_every_label=False)(items)
    assert all(torch.equal(first[name], both[name]) for name in both if name != "labels")
    assert torch.equal(first["labels"][:, 0], both["labels"][:, 0])
    layout = processor.token_layout()
    for row, ids in zip(first["labels"][:, 1].tolist(), both["labels"][:, 1].tolist(), strict=True):
        if layout["because_token_id"] in ids:  # not an empty slot
            because = ids.index(layout["because_token_id"])
            assert set(row[:because]) == {-100}
            assert row[because:] == ids[because:]
            assert set(ids[1:because]) != {-100}
