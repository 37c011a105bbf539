"""Files of predictions and lists of paintings that others wrote: read as meant, or refused by file and place."""

import json

import pytest

from evaluation.predictions_file import read_emotions, read_painting_list, read_predictions


LABELS = ["awe", "fear"]
GOOD = {"painting": "a", "emotion": "awe", "explanation": "x"}


def read(tmp_path, name: str, content: str | bytes, paintings=("a",)):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_predictions(tmp_path / name, paintings, LABELS)


def as_json(**changes) -> str:
    return json.dumps([GOOD | changes])


@pytest.mark.parametrize(
    "text", ["None", "NaN", "null", "NA", "", '"', "a,b", "a\r\nb", "\u202e\u2028😱", "=1", "x\x1b[0m"]
)
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_any_explanation_arrives_as_it_was_written(tmp_path, text, kind):
    content = as_json(explanation=text) if kind == "json" else json.dumps(GOOD | {"explanation": text})
    assert read(tmp_path, f"p.{kind}", content)[0]["explanation"] == text


HALF = {"awe": float("nan"), "fear": 0.5}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("p.json", "", "not well-formed json"),
        ("p.json", "[]", "no entries"),
        ("p.jsonl", "\n\n", "no entries"),
        ("p.csv", "", "no entries"),
        ("p.csv", "painting,emotion,explanation\n", "no entries"),
        ("p.json", as_json(explanation=float("nan")), "entry 1: explanation is nan, not text"),
        ("p.json", as_json(explanation=5), "entry 1: explanation is 5, not text"),
        ("p.json", as_json(explanation=["x"]), "entry 1: explanation is .*not text"),
        ("p.json", as_json(painting=5), "entry 1: painting is 5, not text"),
        ("p.json", as_json(emotion=1), "entry 1: emotion is 1, not text"),
        ("p.json", as_json(explanation="\ud800"), "entry 1: explanation holds half of a character .*ud800"),
        ("p.json", as_json(emotion_scores=HALF), "a: emotion_scores must hold a probability"),
        ("p.json", as_json(annotation="second"), "a: annotation is 'second'"),
        ("p.json", as_json(annotation=1.7), "a: annotation is 1.7"),
        ("p.json", "[" * 100_000, "brackets"),
        ("p.jsonl", '{"painting": "a", "explanation": "x", "explanation": "y"}', "line 1: .*twice: 'explanation'"),
        ("p.jsonl", json.dumps(GOOD) + "\n{", "line 2: not well-formed json"),
        ("p.jsonl", json.dumps(GOOD).encode("utf-16"), "not UTF-8 text but UTF-16"),
        ("p.json", '[{"painting": "a", "explanation": "caf\u00e9"}]'.encode("latin-1"), "line 1: not UTF-8.*LATIN1"),
        ("p.csv", "painting,explanation,emotion\na,x\n", r"line 2: fewer values \(2\) than columns \(3\)"),
        ("p.csv", "painting,explanation,explanation\na,x,y\n", "line 1: two columns are named explanation"),
        ("p.csv", 'painting,explanation\na,"x\nb,y\n', "line 2: not well-formed CSV"),
        ("p.csv", "painting,explanation\na,x\0\n", "line 2: a NUL character"),
    ],
)
def test_wrong_predictions_are_refused_with_file_place_and_remedy(tmp_path, name, content, problem):
    with pytest.raises(ValueError, match=rf"{name}[,:] .*{problem}"):
        read(tmp_path, name, content)


def test_lists_and_given_emotions_are_as_strict(tmp_path):
    for name, content, problem in [
        ("l.txt", "Style/caf\u00e9\n".encode("latin-1"), "l.txt, line 1: not UTF-8"),
        ("l.json", "[5]", "entry 1: expected an object"),
        ("l.json", '[{"painting": 5}]', "entry 1: painting is 5"),
    ]:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=problem):
            read_painting_list(tmp_path / name, ["a"])
    (tmp_path / "e.csv").write_text("painting,emotion\na\n")
    with pytest.raises(ValueError, match="line 2: fewer values"):
        read_emotions(tmp_path / "e.csv", ["a"], LABELS)
