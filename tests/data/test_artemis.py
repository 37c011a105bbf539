"""`load_artemis` on small made-up paintings: columns, splits, images, messages, v2, datasets with images."""

import logging
import re
import unicodedata

import datasets
import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sklearn.model_selection import train_test_split

from processing.artemis import EMOTIONS, dominant_emotion, load_artemis
from tests.helpers.artemis import COLUMNS, JPEG, jpeg, make_rows, splits_of, write_csv, write_images
from tests.helpers.artemis import painting_name as name


@pytest.fixture
def small(tmp_path):
    """Rows, CSV file and image folder of 8 paintings with 2 annotations each; painting 2 starts on line 6."""
    rows = make_rows(8)
    return rows, write_csv(tmp_path / "annotations.csv", rows), write_images(tmp_path / "images", rows)


def load_rows(tmp_path, rows, columns=COLUMNS, **options):
    """Loads a CSV file with these rows, without images."""
    return load_artemis(write_csv(tmp_path / "a.csv", rows, columns), with_images=False, **options)


def test_every_painting_is_one_row_with_its_annotations_in_file_order(tmp_path, small):
    rows, _, images = small
    mixed = rows[1::2] + rows[::2]  # a painting's annotations are neither neighbours nor in order
    data = load_artemis(write_csv(tmp_path / "mixed.csv", mixed), images)
    assert sum(map(len, data.values())) == 8
    features = data["train"].features
    assert list(features) == ["image", "painting", "emotions", "explanations", "emotion_histogram"]
    assert isinstance(features["image"], datasets.Image)
    assert features["emotions"] == List(ClassLabel(names=EMOTIONS))
    assert features["explanations"] == List(Value("string"))
    for split in data:
        assert list(data[split]["painting"]) == sorted(data[split]["painting"])
        for row in data[split]:
            own = [r for r in mixed if name(r) == row["painting"]]
            assert row["explanations"] == [r["utterance"] for r in own]
            assert [EMOTIONS[i] for i in row["emotions"]] == [r["emotion"] for r in own]
            assert row["emotion_histogram"] == [sum(r["emotion"] == e for r in own) for e in EMOTIONS]
            assert row["image"].size == (8, 8)


def test_fewer_emotions_leave_annotations_out_and_keep_every_painting_in_its_split(tmp_path):
    rows = make_rows(60)
    rows += [dict(rows[0], painting="only-something-else", emotion="something else")]
    nine = load_rows(tmp_path, rows)
    eight = load_rows(tmp_path, rows, emotions=EMOTIONS[:8], drop_unknown_emotions=True)
    assert splits_of(eight).items() < splits_of(nine).items()
    assert set(splits_of(nine)) - set(splits_of(eight)) == {"Pop/only-something-else"}
    assert eight["train"].features["emotions"].feature.names == EMOTIONS[:8]
    assert {len(h) for h in eight["train"]["emotion_histogram"]} == {8}


def test_splits_are_those_of_scikit_learn_on_sorted_style_and_painting(tmp_path):
    rows = make_rows(211)
    ids = np.array(sorted({row["art_style"] + row["painting"] for row in rows}))
    train, held_out = train_test_split(ids, test_size=0.15, random_state=2021)
    validation, test = train_test_split(held_out, test_size=round(0.10 * len(ids)), random_state=2021)

    data = load_rows(tmp_path, rows)
    assert set(data) == {"train", "validation", "test"}
    for split, expected in [("train", train), ("validation", validation), ("test", test)]:
        assert {painting.replace("/", "") for painting in data[split]["painting"]} == set(expected)
    assert [len(data[s]) for s in ("train", "validation", "test")] == [179, 11, 21]


@pytest.mark.parametrize("with_column", [True, False])
def test_paintings_with_41_annotations_form_the_rest_and_do_not_change_the_other_splits(tmp_path, with_column):
    usual, forty = make_rows(50), make_rows(1, per_painting=40, prefix="forty")
    many = make_rows(2, per_painting=41, prefix="a-many")
    columns = COLUMNS if with_column else COLUMNS[:4]
    without = load_rows(tmp_path, usual + forty, columns)
    data = load_rows(tmp_path, many + usual + forty, columns)
    assert set(data.pop("rest")["painting"]) == {name(row) for row in many}
    assert splits_of(data) == splits_of(without)
    everything = load_rows(tmp_path, many + usual + forty, columns, max_repetition=None)
    assert set(everything) == {"train", "validation", "test"}
    assert sum(map(len, everything.values())) == 53


def test_a_split_column_is_used(tmp_path):
    given = ["train", "val", "validation", "TEST", "rest", "train", "train", "test"]
    rows = [row | {"split": given[i // 2]} for i, row in enumerate(make_rows(8))]
    expected = {name(rows[2 * i]): {"val": "validation"}.get(s, s).lower() for i, s in enumerate(given)}
    assert splits_of(load_rows(tmp_path, rows, [*COLUMNS, "split"])) == expected


def test_seven_or_more_paintings_fill_all_three_splits(tmp_path):
    for count in [7, 8, 13, 15, 20, 25]:
        assert set(load_rows(tmp_path, make_rows(count, 1))) == {"train", "validation", "test"}
    with pytest.raises(ValueError, match="at least 7 paintings, found 6.*column split"):
        load_rows(tmp_path, make_rows(6))


def test_paintings_with_few_annotations_are_left_out_after_the_splits_are_drawn(tmp_path):
    rows = make_rows(40, per_painting=3) + make_rows(9, per_painting=2, prefix="few")
    every, some = splits_of(load_rows(tmp_path, rows)), splits_of(load_rows(tmp_path, rows, min_repetition=3))
    assert some == {painting: split for painting, split in every.items() if "few" not in painting}


def test_short_utterances_are_left_out_but_stay_in_the_histogram(tmp_path):
    texts = ["So, so sad!!", "Don't look: so sad!"]  # 3 and 5 tokens
    rows = [row | {"utterance": texts[i % 2]} for i, row in enumerate(make_rows(8))]
    for split in load_rows(tmp_path, rows, min_tokens=5).values():
        for row in split:
            assert row["explanations"] == texts[1:] and len(row["emotions"]) == 1
            assert sum(row["emotion_histogram"]) == 2


def test_utterances_above_the_percentile_of_the_train_split_are_left_out_everywhere(tmp_path):
    rows = make_rows(100, per_painting=1)
    for i, row in enumerate(rows):
        row.update(split="train" if i < 80 else "test", utterance="word " * (i + 1))
    data = load_rows(tmp_path, rows, [*COLUMNS, "split"], max_length_percentile=95)
    assert set(data) == {"train"}, "every test utterance is longer than any of train"
    lengths = [len(texts[0].split()) for texts in data["train"]["explanations"]]
    assert max(lengths) == int(np.percentile(range(1, 81), 95))


def test_rows_hold_paths_whose_images_are_decoded_when_they_are_read(small, monkeypatch):
    rows, file, images = small
    (images / f"{name(rows[0])}.jpg").write_bytes(b"no image")
    monkeypatch.chdir(images.parent)
    data = load_artemis(file, "images", verify_images=False)  # a relative folder works after a change of directory
    monkeypatch.chdir("/")
    for split in data.values():
        stored = split.cast_column("image", datasets.Image(decode=False))
        for i, row in enumerate(stored):
            assert row["image"] == {"bytes": None, "path": str(images / f"{row['painting']}.jpg")}
            if row["painting"] == name(rows[0]):
                with pytest.raises(OSError):
                    split[i]
            else:
                assert split[i]["image"].size == (8, 8)


@pytest.mark.parametrize("in_csv, on_disk", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_in_any_unicode_form(tmp_path, in_csv, on_disk):
    rows = make_rows(8)
    for row in rows:
        row["art_style"] += "_é"
        row["painting"] += "andré\u00ad-Ã©tude.no.1"  # an accent, a soft hyphen, mojibake, dots
    stored = [{key: unicodedata.normalize(on_disk, row[key]) for key in ("art_style", "painting")} for row in rows]
    listed = [row | {k: unicodedata.normalize(in_csv, row[k]) for k in ("art_style", "painting")} for row in rows]
    images = write_images(tmp_path / "images", stored)
    before = sorted(images.rglob("*"))
    data = load_artemis(write_csv(tmp_path / "a.csv", listed), images)
    assert set(splits_of(data)) == {name(row) for row in listed}
    assert sorted(images.rglob("*")) == before


def test_a_file_spelled_as_in_the_csv_comes_before_its_other_unicode_form(tmp_path):
    rows = make_rows(8, per_painting=1)
    rows[0]["painting"] = "e\u0301tude"
    images = write_images(tmp_path / "images", [*rows, dict(rows[0], painting="\u00e9tude")])
    if len(list((images / "Pop").iterdir())) == 4:
        pytest.skip("this file system keeps one form only")
    data = load_artemis(write_csv(tmp_path / "a.csv", rows), images)
    split = data[splits_of(data)["Pop/e\u0301tude"]].cast_column("image", datasets.Image(decode=False))
    paths = {row["painting"]: row["image"]["path"] for row in split}
    assert paths["Pop/e\u0301tude"].endswith("/e\u0301tude.jpg")


def test_other_extensions_are_found_if_there_is_no_jpg(tmp_path):
    rows = make_rows(8, per_painting=1)
    images = tmp_path / "images"
    for row, extension in zip(rows, [".jpeg", ".png", ".webp", ".JPG"] * 2, strict=True):
        write_images(images, [row], extension)
    write_images(images, [rows[1]], ".txt")
    assert len(splits_of(load_artemis(write_csv(tmp_path / "a.csv", rows), images))) == 8


def test_missing_images_are_named_with_file_line_count_and_remedy(small):
    rows, file, images = small
    for i in (4, 6):
        (images / f"{name(rows[i])}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 8 images are missing") as error:
        load_artemis(file, images, verify_images=False)
    for i, line in ((4, 6), (6, 8)):
        assert f"{images / name(rows[i])}.jpg: no such file ({file}, line {line})" in str(error.value)
    assert 'on_bad_image="skip" (command line: --on_bad_image skip)' in str(error.value)


@pytest.mark.parametrize("content", [JPEG[:-80], b"", b"<html>not found</html>"], ids=["truncated", "empty", "text"])
def test_damaged_images_are_named_with_file_line_and_remedy(small, content):
    rows, file, images = small
    (images / f"{name(rows[4])}.jpg").write_bytes(content)
    message = rf"1 of 8 images .*{name(rows[4])}\.jpg: .*{file}, line 6\).*--on_bad_image skip"
    with pytest.raises(OSError, match=message):
        load_artemis(file, images)


def test_skipping_bad_images_warns_once_and_moves_no_other_painting(tmp_path, caplog):
    rows = make_rows(40, per_painting=1)
    file, images = write_csv(tmp_path / "a.csv", rows), write_images(tmp_path / "images", rows)
    before = splits_of(load_artemis(file, images))
    bad = [name(rows[i]) for i in (1, 3, 8, 9, 20)]
    for painting in bad[:2]:
        (images / f"{painting}.jpg").unlink()
    for painting in bad[2:]:
        (images / f"{painting}.jpg").write_bytes(JPEG[:-80])
    with caplog.at_level(logging.WARNING):
        after = splits_of(load_artemis(file, images, on_bad_image="skip"))
    assert after == {painting: split for painting, split in before.items() if painting not in bad}
    (record,) = caplog.records
    assert "5 of 40 images are missing (2) or damaged (3)" in record.message
    assert "and 2 more" in record.message


@pytest.mark.parametrize("on_bad_image", ["raise", "skip"])
def test_images_that_are_all_missing_or_all_bad_raise_in_any_mode(small, tmp_path, on_bad_image):
    rows, file, images = small
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"8 of 8 images are missing \(8\).*/empty/.*--images"):
        load_artemis(file, tmp_path / "empty", on_bad_image=on_bad_image)
    for row in rows:
        (images / f"{name(row)}.jpg").write_bytes(b"")
    with pytest.raises(OSError, match="8 of 8 images"):
        load_artemis(file, images, on_bad_image=on_bad_image)


def test_an_unknown_emotion_is_named_with_line_allowed_labels_and_remedies(tmp_path, small):
    rows = small[0]
    rows[4]["emotion"] = rows[9]["emotion"] = "Joy"
    message = rf"a\.csv, line 6: unknown emotion 'Joy' \(2 annotations in total.*{', '.join(EMOTIONS)}.*`emotions=`"
    with pytest.raises(ValueError, match=f"{message}.*drop_unknown_emotions=True"):
        load_rows(tmp_path, rows)
    for count, options in {14: {"drop_unknown_emotions": True}, 16: {"emotions": [*EMOTIONS, "joy"]}}.items():
        data = load_rows(tmp_path, rows, **options)
        assert sum(len(labels) for split in data.values() for labels in split["emotions"]) == count


@pytest.mark.parametrize(
    "problem, column, value",
    [
        *[("the utterance is empty", "utterance", value) for value in ("  ", "NaN")],
        *[("no art_style or painting", column, "") for column in ("art_style", "painting")],
        *[("the repetition is not a positive whole number", "repetition", v) for v in ("five", "inf", "2.5", "-3")],
    ],
)
def test_a_bad_row_is_named_with_line_and_remedy_or_skipped(tmp_path, small, caplog, problem, column, value):
    rows = small[0]
    rows[5][column] = value
    message = rf'a\.csv, line 7: {problem} \(1 annotations in total.*on_bad_row="skip" .*--on_bad_row skip'
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path, rows)
    data = load_rows(tmp_path, rows, on_bad_row="skip")
    assert splits_of(data) == splits_of(load_artemis(*small[1:]))
    assert sum(len(e) for split in data.values() for e in split["emotions"]) == 15
    assert "Skipped 1 annotations" in caplog.text and "line 7" in caplog.text


def test_wrong_arguments_are_explained(small):
    _, file, images = small
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv' do not exist.*--annotations"):
        load_artemis("nowhere.csv", images)
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist.*<art_style>/<painting>\.jpg.*--images"):
        load_artemis(file, "nowhere")
    with pytest.raises(ValueError, match="`images` is missing.*--images"):
        load_artemis(file)
    for problem, arguments in {
        "`annotations` and `images`, or `dataset`": {"annotations": None, "images": None},
        "or `dataset`": {"dataset": "x"},
        "leave out `images`": {"annotations": None, "dataset": "x"},
        "`version` is 'v3'. Use 'v1' or 'v2'": {"version": "v3"},
        "`on_bad_image` is 'ignore'": {"on_bad_image": "ignore"},
        "`on_bad_row` is 'ignore'": {"on_bad_row": "ignore"},
        "none twice": {"emotions": ["awe", "Awe"]},
        "has 2 files": {"annotations": [file, file]},
        "No annotation is left": {"min_tokens": 99},
    }.items():
        with pytest.raises(ValueError, match=problem):
            load_artemis(**{"annotations": file, "images": images} | arguments)


@pytest.fixture
def v2(tmp_path):
    """(new rows, old rows, pair of files): 100 paintings, 40 of them also new, in another Unicode form."""
    new, old = make_rows(40, 2, prefix="é"), make_rows(100, 5, prefix="é")
    for row in new:
        row["painting"] = unicodedata.normalize("NFD", row["painting"])
        row["utterance"] = "new " + row["utterance"]
        row["anchor_painting"] = "something"
    for i, row in enumerate(old):
        row["utterance"] = f"old {i}"
    contrastive = write_csv(tmp_path / "Contrastive.csv", new, [*COLUMNS, "anchor_painting"])
    return new, old, (contrastive, write_csv(tmp_path / "old.csv", old))


def texts_of(split):
    return [text for texts in split["explanations"] for text in texts]


def nfd(row):
    return unicodedata.normalize("NFD", name(row))


def test_v2_selects_new_and_sampled_old_annotations_of_each_split(v2):
    new, old, files = v2
    ids = {painting.replace("/", ""): painting for painting in map(nfd, old)}
    train, held_out = train_test_split(sorted(ids), test_size=0.15, random_state=2021)
    test = [ids[i] for i in train_test_split(held_out, test_size=10, random_state=2021)[1]]
    train = [ids[i] for i in train]
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    data = load_artemis(files, version="v2", with_images=False)
    assert (np.random.get_state()[1] == before).all()

    expected = [row["utterance"] for row in new if nfd(row) in train]
    old_train = pd.Series([row["utterance"] for row in old if nfd(row) in train])
    expected += list(old_train.sample(len(expected), random_state=42))
    assert sorted(texts_of(data["train"])) == sorted(expected) and expected
    for row in data["train"]:
        assert sum(row["emotion_histogram"]) == len(row["explanations"])

    half = set(np.random.RandomState(42).choice(sorted(test), len(test) // 2, replace=False))
    expected = [row["utterance"] for row in new if nfd(row) in test]
    expected += [row["utterance"] for row in old if nfd(row) in half]
    assert sorted(texts_of(data["test"])) == sorted(expected)
    assert not set(data["test"]["painting"]) & set(data["train"]["painting"])


def test_v2_is_the_same_from_a_pair_and_from_one_file_with_a_version_column(tmp_path, v2):
    new, old, files = v2
    rows = [row | {"version": "new"} for row in new] + [row | {"version": "old"} for row in old]
    one = write_csv(tmp_path / "combined.csv", rows, [*COLUMNS, "version"])
    pair = load_artemis(files, version="v2", with_images=False)
    single = load_artemis(one, version="v2", with_images=False)
    assert {split: texts_of(data) for split, data in pair.items()} == {s: texts_of(d) for s, d in single.items()}


def test_v2_names_the_file_of_each_problem(tmp_path, v2):
    new, old, files = v2
    odd = write_csv(tmp_path / "odd.csv", [row | {"version": "odd"} for row in old], [*COLUMNS, "version"])
    half = write_csv(tmp_path / "half.csv", [row | {"split": "train"} for row in new], [*COLUMNS, "split"])
    empty = write_csv(
        tmp_path / "empty.csv", [row | {"utterance": row["utterance"] * (i != 3)} for i, row in enumerate(old)]
    )
    for annotations, problem in [
        (files[1], r"old\.csv, line 1: the column version .* is missing.*pair \(Contrastive\.csv, v1"),
        (files[::-1], r"Contrastive\.csv is the contrastive file: give the pair"),
        (odd, r"odd\.csv, line 2: unknown version 'odd'"),
        ((files[0], empty), r"empty\.csv, line 5: the utterance is empty"),
        ((half, files[1]), r"old\.csv: the column split is missing"),
    ]:
        with pytest.raises(ValueError, match=problem):
            load_artemis(annotations, version="v2", with_images=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def as_dataset(rows, labels="text"):
    emotion = ClassLabel(names=EMOTIONS[::-1]) if labels == "ids" else Value("string")
    text = Value("string")
    features = {"image": datasets.Image(), "art_style": text, "painting": text, "emotion": emotion, "utterance": text}
    columns = {key: [row[key] for row in rows] for key in ("art_style", "painting", "emotion", "utterance")}
    images = [{"bytes": jpeg((8, 8 + int(re.sub(r"\D", "", row["painting"])))), "path": None} for row in rows]
    return Dataset.from_dict({"image": images, **columns}, features=Features(features))


def contents(data):
    names = ["painting", "emotions", "explanations", "emotion_histogram"]
    return {split: data[split].select_columns(names).to_list() for split in data}


@pytest.mark.parametrize("labels", ["text", "ids"])
def test_a_parquet_folder_with_a_row_per_annotation_gives_what_the_csv_gives(tmp_path, labels):
    rows = make_rows(20)
    from_csv = load_artemis(write_csv(tmp_path / "a.csv", rows), write_images(tmp_path / "images", rows))
    (tmp_path / "hub").mkdir()
    as_dataset(rows[1::2] + rows[::2], labels).to_parquet(tmp_path / "hub" / "train.parquet")
    data = load_artemis(dataset=tmp_path / "hub")
    for split in from_csv:
        assert list(data[split]["painting"]) == list(from_csv[split]["painting"])
        assert list(data[split]["emotion_histogram"]) == list(from_csv[split]["emotion_histogram"])
        assert data[split].features == from_csv[split].features
        for row in data[split]:  # every image is with its own painting
            assert row["image"].size == (8, 8 + int(re.sub(r"\D", "", row["painting"])))
            own = [r["utterance"] for r in rows if name(r) == row["painting"]]
            assert row["explanations"] == own[::-1]


def test_a_saved_dataset_with_a_row_per_painting_comes_back_unchanged(tmp_path, small):
    data = load_artemis(small[1], small[2])
    data.save_to_disk(tmp_path / "saved")
    files = sorted((tmp_path / "saved").rglob("*"))
    again = load_artemis(dataset=tmp_path / "saved")
    assert contents(again) == contents(data)
    assert again["train"][0]["image"].size == (8, 8)
    assert sorted((tmp_path / "saved").rglob("*")) == files


def test_an_image_folder_with_metadata_is_read(tmp_path):
    folder = tmp_path / "paintings" / "train"
    folder.mkdir(parents=True)
    lines = ["file_name,title,mood,why"]
    for i in range(8):
        (folder / f"{i}.jpg").write_bytes(JPEG)
        lines.append(f"{i}.jpg,title {i},awe,because {i}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    columns = {"painting_column": "title", "emotion_column": "mood", "explanation_column": "why"}
    data = load_artemis(dataset=tmp_path / "paintings", **columns)
    assert set(splits_of(data)) == {f"title {i}" for i in range(8)}
    assert data["train"][0]["image"].size == (8, 8)
    with pytest.raises(ValueError, match=r"split 'train': there is no column 'emotion'. .*`emotion_column=`.*title"):
        load_artemis(dataset=tmp_path / "paintings", painting_column="title", explanation_column="why")


def test_a_column_of_paths_serves_as_images(small):
    rows, _, images = small
    table = pd.DataFrame([row | {"file": str(images / f"{name(row)}.jpg")} for row in rows])
    data = load_artemis(dataset=Dataset.from_pandas(table), image_column="file")
    assert set(splits_of(data)) == {name(row) for row in rows}
    assert data["train"][0]["image"].size == (8, 8)


def test_given_splits_are_kept_and_val_becomes_validation():
    rows = make_rows(9)
    given = {"train": as_dataset(rows[:8]), "val": as_dataset(rows[8:12]), "test": as_dataset(rows[12:])}
    data = load_artemis(dataset=DatasetDict(given))
    assert {split: len(part) for split, part in data.items()} == {"train": 4, "validation": 2, "test": 3}


def test_a_dataset_is_neither_decoded_nor_copied(monkeypatch):
    rows = make_rows(20)
    source = as_dataset(rows)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kwargs: pytest.fail("decoded"))
    data = load_artemis(dataset=source)
    for split in data.values():
        assert split.data.column("image").chunk(0).field("bytes").buffers()[2].address == (
            source.data.column("image").chunk(0).field("bytes").buffers()[2].address
        )


def test_bad_images_of_a_dataset_are_named_or_skipped(caplog):
    rows = make_rows(20)
    source = as_dataset(rows)
    images = [{"bytes": JPEG, "path": None} for _ in rows]
    images[4], images[9] = {"bytes": JPEG[:-80], "path": None}, None  # 9 is a second annotation: its image is unused
    images[10] = None
    source = source.remove_columns("image").add_column("image", images).cast_column("image", datasets.Image())
    with pytest.raises(OSError, match=r"2 of 20 images.*Pop/p\.002-x: .*\(dataset split 'train', row 5\)"):
        load_artemis(dataset=source)
    data = load_artemis(dataset=source, on_bad_image="skip")
    assert set(splits_of(data)) == {name(row) for row in rows} - {name(rows[4]), name(rows[10])}
    assert len(splits_of(load_artemis(dataset=source, verify_images=False))) == 20


def test_lists_of_different_lengths_are_explained():
    base = {"image": [None] * 8, "painting": list("abcdefgh")}
    uneven = Dataset.from_dict(base | {"emotions": [["awe"]] * 8, "explanations": [["a"]] * 7 + [["a", "b"]]})
    with pytest.raises(ValueError, match="row 8: 'emotions' and 'explanations' differ in length"):
        load_artemis(dataset=uneven)
    mixed = Dataset.from_dict(base | {"emotions": [["awe"]] * 8, "explanation": ["a"] * 8})
    with pytest.raises(ValueError, match="must both be lists"):
        load_artemis(dataset=mixed)


def test_a_dominant_emotion_has_more_than_half_of_the_annotations():
    assert dominant_emotion([0, 3, 2]) == 1
    assert [dominant_emotion(counts) for counts in ([2, 2, 0], [2, 1, 1], [0, 0, 0])] == [None] * 3
