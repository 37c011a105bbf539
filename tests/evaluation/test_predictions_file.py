"""Files of predictions, given emotions and lists of paintings: read as written, or refused by file and place."""

import csv
import json

import pytest

from evaluation.predictions_file import read_emotions, read_painting_list, read_predictions


LABELS = ["awe", "fear", "something else"]
GOOD = {"painting": "a", "emotion": "awe", "explanation": "x"}


def read(tmp_path, name: str, content: str | bytes, paintings=("a",)):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_predictions(tmp_path / name, paintings, LABELS)


def as_json(**changes) -> str:
    return json.dumps([GOOD | changes])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "dict"])
def test_predictions_are_read_from_several_formats_in_any_order(tmp_path, kind):
    names = ["Style/ä", 'Style/b, "c"', "Style/d"]
    records = [
        {"painting": names[2], "emotion": " Something  Else", "explanation": "line\nbreak, comma"},
        {"painting": "Style/a\u0308", "emotion": "", "explanation": ""},  # NFD; the data has NFC
        {"painting": names[1], "emotion": "AWE", "explanation": 'a "quote"'},
    ]
    path = tmp_path / f"predictions.{'json' if kind == 'dict' else kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    elif kind == "dict":
        path.write_text(json.dumps({record.pop("painting"): record for record in records}))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, ["painting", "emotion", "explanation"])
            table.writeheader()
            table.writerows(records)
    found = [tuple(prediction.values()) for prediction in read_predictions(path, names, LABELS)]
    texts, emotions = ["", 'a "quote"', "line\nbreak, comma"], [None, "awe", "something else"]
    assert found == list(zip(names, texts, emotions, strict=True))


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_any_explanation_is_read_as_written(tmp_path, kind):
    texts = ["None", "NaN", "null", "NA", "", '"', "a,b", "a\r\nb", "\u202e\u2028😱", "=1", "x\x1b[0m"]
    records = [GOOD | {"painting": str(number), "explanation": text} for number, text in enumerate(texts)]
    content = json.dumps(records) if kind == "json" else "\n".join(map(json.dumps, records))
    found = read(tmp_path, f"p.{kind}", content, [record["painting"] for record in records])
    assert [prediction["explanation"] for prediction in found] == texts


def test_unknown_emotions_count_as_unparsed_with_one_warning(tmp_path, caplog):
    assert read(tmp_path, "p.json", as_json(emotion="joy"))[0]["emotion"] is None
    assert "1 predictions" in caplog.text and "'joy'" in caplog.text


TEN = [GOOD | {"painting": f"Style/{i}"} for i in range(10)]
NO_SCORES = dict.fromkeys(LABELS, 0.0)
SCORED = [record | {"emotion_scores": NO_SCORES | {"awe": 1.0}} for record in TEN]


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        (TEN + [GOOD | {"painting": "Style/zzz"}], "1 paintings not in the chosen split: 'Style/zzz'"),
        (TEN + TEN[:1], "1 paintings named twice: 'Style/0'"),
        (TEN[:5], "5 paintings without a prediction: 'Style/5', 'Style/6', 'Style/7' and 2 more"),
        (TEN[:2] + [{"painting": "Style/2"}], "entry 3: explanation missing"),
        (SCORED[:1] + [TEN[1] | {"emotion_scores": {"awe": 1.0}}] + SCORED[2:], "Style/1: emotion_scores .*something"),
        (SCORED[:2] + TEN[2:3] + SCORED[3:], "Style/2: emotion_scores .*or for none"),
        ([TEN[0] | {"emotion_scores": NO_SCORES | {"awe": 1.2}}] + SCORED[1:], "Style/0: emotion_scores .*with sum 1"),
    ],
)
def test_predictions_that_do_not_fit_the_paintings_are_refused_with_count_and_first_names(tmp_path, records, problem):
    with pytest.raises(ValueError, match=rf"p.json[,:] .*{problem}"):
        read(tmp_path, "p.json", json.dumps(records), [record["painting"] for record in TEN])


NAN_SCORES = {"awe": float("nan"), "fear": 0.5, "something else": 0.5}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.json", "", "not well-formed json"),
        ("p.json", "7", "expected a list"),
        ("p.json", "[]", "no entries"),
        ("p.jsonl", "\n\n", "no entries"),
        ("p.csv", "painting,emotion,explanation\n", "no entries"),
        ("p.json", as_json(explanation=float("nan")), "entry 1: explanation is nan, not text"),
        ("p.json", as_json(painting=5), "entry 1: painting is 5, not text"),
        ("p.json", as_json(emotion=1), "entry 1: emotion is 1, not text"),
        ("p.json", as_json(explanation="\ud800"), "entry 1: explanation has a lone surrogate .*ud800"),
        ("p.json", as_json(emotion_scores=NAN_SCORES), "a: emotion_scores must hold a probability"),
        ("p.json", as_json(annotation=1.7), "a: annotation is 1.7"),
        ("p.json", '{"a": {"explanation": "x"}, "a": {"explanation": "y"}}', "repeated in one object: 'a'"),
        ("p.json", "[" * 100_000, "brackets"),
        ("p.jsonl", '{"painting": "a", "explanation": "x", "explanation": "y"}', "line 1: repeated .*'explanation'"),
        ("p.jsonl", json.dumps(GOOD) + "\n{", "line 2: not well-formed json"),
        ("p.jsonl", json.dumps(GOOD).encode("utf-16"), "not UTF-8 text but UTF-16"),
        ("p.json", '[{"painting": "a", "explanation": "caf\u00e9"}]'.encode("latin-1"), "line 1: not UTF-8.*LATIN1"),
        ("p.csv", "painting,explanation,emotion\na,x\n", r"line 2: fewer values \(2\) than columns \(3\)"),
        ("p.csv", "painting,explanation,explanation\na,x,y\n", "line 1: two columns are named explanation"),
        ("p.csv", 'painting,explanation\na,"x\nb,y\n', "line 2: not well-formed CSV"),
        ("p.csv", "painting,explanation\na,x\0\n", "line 2: a NUL character"),
    ],
)
def test_malformed_predictions_are_refused_with_file_place_and_remedy(tmp_path, name, content, problem):
    with pytest.raises(ValueError, match=rf"{name}[,:] .*{problem}"):
        read(tmp_path, name, content)


def test_a_painting_list_selects_and_orders(tmp_path):
    (tmp_path / "list.txt").write_text("Style/c\n\nStyle/a\n")
    assert read_painting_list(tmp_path / "list.txt", ["Style/a", "Style/b", "Style/c"]) == [2, 0]


def test_a_json_list_of_file_names_is_a_list_of_paintings(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(["Style/c.jpg", "Style/a.PNG"]))
    assert read_painting_list(tmp_path / "list.json", ["Style/a", "Style/b", "Style/c"]) == [2, 0]
    with pytest.raises(ValueError, match="l.json, entry 1: explanation missing. The entry has painting"):
        read(tmp_path, "l.json", '["a.jpg"]')


def test_the_suffix_of_a_picture_is_dropped_only_if_the_painting_is_unknown_with_it(tmp_path):
    names = ["Style/a", "Style/b.jpg", "Style/b", "Style/c.3"]
    given = [GOOD | {"painting": name, "explanation": name} for name in ("Style/b.jpg", "Style/a.webp")]
    given += [GOOD | {"painting": name, "explanation": name} for name in ("Style/b.jpeg", "Style/c.3")]
    found = read(tmp_path, "p.json", json.dumps(given), names)
    assert [entry["explanation"] for entry in found] == ["Style/a.webp", "Style/b.jpg", "Style/b.jpeg", "Style/c.3"]
    (tmp_path / "e.csv").write_text("painting,emotion\na.jpg,awe\nother.jpg,fear\n")
    assert read_emotions(tmp_path / "e.csv", ["a"], LABELS)[0] == ["awe"]


@pytest.mark.parametrize(
    ("reader", "name", "content", "problem"),
    [
        (read_painting_list, "l.txt", b"a\nStyle/x\n", "1 paintings not in the chosen split: 'Style/x'"),
        (read_painting_list, "l.txt", "Style/caf\u00e9\n".encode("latin-1"), "l.txt, line 1: not UTF-8"),
        (read_painting_list, "l.json", b"[5]", "entry 1: expected an object"),
        (read_painting_list, "l.json", b'["a.tar"]', "1 paintings not in the chosen split: 'a.tar'"),
        (read_painting_list, "l.json", b'["a", "a.jpg"]', "1 paintings named twice: 'a'"),
        (read_emotions, "e.csv", b"painting,emotion\na,joy\n", "1 unknown emotions: 'joy'"),
    ],
)
def test_malformed_lists_and_given_emotions_are_refused(tmp_path, reader, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        reader(tmp_path / name, ["a"], *([LABELS] if reader is read_emotions else []))
