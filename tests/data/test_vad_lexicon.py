"""VAD lexicons: the mapping, the files that are read, inflected forms, and saved files.

All values are made up, except the two public examples of NRC-VAD (banquet, funeral).
"""

import itertools
import json
import logging
import os
import sys

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

from processing import vad_lexicon
from processing.vad_lexicon import VADLexicon


FUN, FUNERAL, HAPPY = (0.5, 0.25, 0.125), (-0.854, -0.24, -0.214), (1, 0, -1)
WORDS = {"fun": FUN, "funeral": FUNERAL, "happy": HAPPY, "strasse": (0.1, 0.2, 0.3), "élan": (0.4,) * 3}
LEXICON = VADLexicon(WORDS, name="made up")


def test_a_lexicon_is_a_mapping_from_words_to_three_floats():
    assert LEXICON["Fun"] == LEXICON["FUN"] == FUN and all(type(value) is float for value in LEXICON["happy"])
    assert "HAPPY" in LEXICON and "sad" not in LEXICON and LEXICON.get("sad") is None
    assert list(LEXICON) == list(WORDS) and len(LEXICON) == len(WORDS)
    assert dict(LEXICON.items()) == {word: tuple(map(float, vad)) for word, vad in WORDS.items()}
    assert VADLexicon({"fun": (1 / 3, -2 / 3, 0.00004)}, name="x")["fun"] == (0.3333, -0.6667, 0.0)


def test_metadata_has_the_owner_and_the_size_of_the_lexicon():
    lexicon = VADLexicon({"fun": FUN, "funs": FUN}, name="n", version="3", license="CC0", inflected=["Funs"])
    expected = {"name": "n", "version": "3", "license": "CC0", "redistributable": False}
    assert json.loads(json.dumps(lexicon.to_metadata())) == {**expected, "num_listed": 1, "num_inflected": 1}
    assert lexicon.inflected == {"funs"}


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"two words": FUN}, "'two words' is not one run of letters"),
        ({"": FUN}, "not one run of letters"),
        ({"fun": (0, 0, 1.01)}, r"'fun' has a value outside \[-1, 1\]"),
        ({"fun": (0, float("nan"), 1)}, "outside"),
        ({"fun": FUN, "FUN": HAPPY}, "'FUN' has two entries"),
    ],
)
def test_impossible_entries_are_refused(entries, problem):
    with pytest.raises(ValueError, match=problem):
        VADLexicon(entries, name="x")


def write(folder, content: str | bytes, name="words.txt"):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(path, **options) -> VADLexicon:
    return VADLexicon.from_file(path, **{"expand_inflections": False, **options})


def test_nrc_vad_version_1_is_read(tmp_path):
    content = "banquet\t0.765\t0.571\t0.600\nfuneral\t0.073\t0.380\t0.393\nmade up\t0\t1\t0\n"
    lexicon = load(write(tmp_path, content, "NRC-VAD-Lexicon.txt"))
    assert dict(lexicon.items()) == {"banquet": (0.53, 0.142, 0.2), "funeral": (-0.854, -0.24, -0.214)}
    assert (lexicon.name, lexicon.version, lexicon.redistributable) == ("NRC-VAD", "1", False)


def test_nrc_vad_version_2_is_read(tmp_path, caplog):
    content = "term\tvalence\tarousal\tdominance\nfun\t0.5\t0.25\t0.125\nat sea\t-0.5\t0.1\t0\nnull\t-0.2\t0\t0.1\n"
    with caplog.at_level(logging.INFO):
        lexicon = load(write(tmp_path, content, "NRC-VAD-Lexicon-v2.1.txt"))
    assert dict(lexicon.items()) == {"fun": FUN, "null": (-0.2, 0.0, 0.1)}
    assert (lexicon.name, lexicon.version) == ("NRC-VAD", "2.1")
    assert "2 words of NRC-VAD (bipolar scale), 0 inflected forms, 1 left out" in caplog.text
    assert "'at sea'" in caplog.text


def test_warriners_csv_is_read(tmp_path):
    content = (
        ",Word,V.Mean.Sum,V.SD.Sum,A.Mean.Sum,D.Mean.Sum,V.Mean.M\n"
        '1,fun,8.25,1.0,5.01,"1",9\n2,"Funeral",1.5,2.2,9.0,4.99,2\n3,t-shirt,5,1,5,5,5\n'
    )
    lexicon = load(write(tmp_path, content, "ratings.csv"))
    assert dict(lexicon.items()) == {"fun": (0.8125, 0.0025, -1.0), "funeral": (-0.875, 1.0, -0.0025)}
    assert "Warriner" in lexicon.name and not lexicon.redistributable


@pytest.mark.parametrize(
    "content",
    [
        "fun\t0.5\t0.25\t0.125\nsad\t-1\t0\t1\n",
        "fun,0.5,0.25,0.125\nsad,-1,0,1\n",
        "fun 0.5  0.25 0.125\nsad -1 0 1",
        "Word,Valence,Arousal,Dominance\nfun,0.5,0.25,0.125\nsad,-1,0,1\n",
        '"d","word","a","v","n"\n"0.125","fun","0.25","0.5",""\n1,sad,0,-1,7\n',
        "word v a d\nfun 0.5 0.25 0.125\nsad -1 0 1\n",
        b"\xef\xbb\xbffun\t0.5\t0.25\t0.125\r\n\r\nsad\t-1\t0\t1\r\n",
        "fun\t0.5\t0.25\t0.125\rsad\t-1\t0\t1\r",
        "# of our own making\nfun\t0.5\t0.25\t0.125\nsad\t-1\t0\t1\n",
        "Fun\t0.5\t0.25\t0.125\nsad\t-1\t0\t1\nfun\t0.50\t0.25\t0.125\n",
    ],
)
def test_plain_tables_are_read(tmp_path, content):
    lexicon = load(write(tmp_path, content, "ours.txt"))
    assert dict(lexicon.items()) == {"fun": FUN, "sad": (-1.0, 0.0, 1.0)}
    assert (lexicon.name, lexicon.license, lexicon.redistributable) == ("ours", "unknown", False)
    lexicon = load(tmp_path / "ours.txt", name="mine", license="CC0", redistributable=True)
    assert (lexicon.name, lexicon.license, lexicon.redistributable) == ("mine", "CC0", True)


@pytest.mark.parametrize(
    ("line", "scale", "vad"),
    [
        ("fun 0.75 0 1", "auto", (0.5, -1.0, 1.0)),
        ("fun 0.75 -0.5 1", "auto", (0.75, -0.5, 1.0)),
        ("fun 7 1 9", "auto", (0.5, -1.0, 1.0)),
        ("fun 0.75 0 1", "bipolar", (0.75, 0.0, 1.0)),
        ("fun 1 1 1", "nine_point", (-1.0, -1.0, -1.0)),
        ("fun 0.75 0 1", "unit", (0.5, -1.0, 1.0)),
    ],
)
def test_the_scale_is_detected_or_given(tmp_path, line, scale, vad):
    assert load(write(tmp_path, line), scale=scale)["fun"] == vad


def test_of_words_that_differ_in_case_only_the_lower_case_one_is_kept(tmp_path, caplog):
    for content in ("Fun 0 0 0\nfun 1 1 0", "fun 1 1 0\nFun 0 0 0"):
        with caplog.at_level(logging.INFO):
            assert dict(load(write(tmp_path, content)).items()) == {"fun": (1.0, 1.0, -1.0)}
        assert "1 left out" in caplog.text and "'Fun'" in caplog.text
        caplog.clear()


MADE_UP = ["".join(letters) for letters in itertools.product("bdfgklm", "aeiou", "nprstvw", "aeiou")]
WIDE_UNIT = "".join(f"{word} {i % 11 / 10} 0.5 1\n" for i, word in enumerate(MADE_UP[:200]))
SEVEN_POINTS = "".join(f"{word} {1 + i % 7} 1 4\n" for i, word in enumerate(MADE_UP[:1000]))


def test_a_given_scale_is_not_questioned(tmp_path):
    path = write(tmp_path, WIDE_UNIT + "odd -0.5 0 1\n")
    assert load(path, scale="bipolar")["odd"] == (-0.5, 0.0, 1.0)
    assert load(write(tmp_path, SEVEN_POINTS), scale="nine_point")[MADE_UP[1]][0] == -0.75


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds no entries"),
        ("\n# only a comment\n", "holds no entries"),
        ("word\tvalence\tarousal\tdominance\n", "holds no entries"),
        ("two words\t0\t0\t1\n", "no entry is one run of letters .*two words"),
        ("fun 0 0 1\nsad 0 1\n", "line 2: 'sad 0 1': expected 4 fields, not 3; correct or remove"),
        ("fun 0 0 1 1\n", "line 1: .*expected 4 fields, not 5"),
        ("word,v,a,d,n\nfun,0,0,1\n", "line 2: .*expected 5 fields, not 4"),
        ('fun,0,0,1\n"sad,0,0,1\nglad,0,0,1\n', "line 2: .*sad.*expected 4 fields"),
        ("fun 0 0 1\nsad 0 x 1\n", "line 2: 'sad 0 x 1': expected a word and three finite numbers"),
        ("fun 0 nan 1\n", "line 1: .*finite"),
        (",0,0,1\n", "line 1: .*expected a word"),
        ("mot valence reveil emprise\nfun 0 0 1\n", "line 1: .*must name Word, Valence, Arousal and Dominance"),
        ("fun 0 0 1\n" + "x" * 500 + " 0 1\n", r"line 2: 'x{57}\.\.\.': "),
        ("fun 0 -0.5 4.5\n", "words.txt: values run from -0.5 to 4.5.*scale="),
        ("fun 0 0 1\nsad 0 0 1\nfun 0 1 1\n", "line 3: 'fun 0 1 1': other values than in .*line 1: 'fun 0 0 1'"),
        (b"fun 0 0 1\ncaf\xe9 0 0 1\n", "line 2: not UTF-8 .*save it as UTF-8.*LATIN1"),
        ("fun 0 0 1\n".encode("utf-16"), "line 1: not UTF-8 text.*iconv -f UTF-16"),
        ("fun 0 0 1\n".encode("utf-16-le"), "line 1: .*three finite numbers"),
        ("fun\t0,5\t0,5\t0,5\n", "line 1: .*three finite numbers"),
        ("fun\t0\t\t1\n", "line 1: .*three finite numbers"),
        ("fun\t0\t0_5\t1\n", "line 1: .*three finite numbers"),
        ("word,v,valence,a,d\nfun,0,1,0,1\n", "line 1: .*v and valence have the same meaning"),
        ("word,v,a,d\nfun,0,0,1\nword,v,a,d\n", "line 3: .*three finite numbers"),
        (WIDE_UNIT + "odd -0.5 0 1\n", "line 201: .*below 0, as in 1 of 201 lines.*scale='bipolar'"),
        (SEVEN_POINTS, "run from 1 to 7, as on a scale of fewer than nine points.*scale='nine_point'"),
    ],
)
def test_a_damaged_file_is_refused_with_line_and_remedy(tmp_path, content, problem):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=problem) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("scale", "problem"),
    [
        ("unit", "line 2: 'sad 0 0.5 1.5': .*unit scale, 0 to 1.*scale="),
        ("nine_point", "line 1: .*nine_point scale, 1 to 9"),
        ("percent", "scale='percent': choose 'auto' or one of 'unit', 'bipolar', 'nine_point'"),
    ],
)
def test_a_wrong_scale_is_refused(tmp_path, scale, problem):
    with pytest.raises(ValueError, match=problem):
        load(write(tmp_path, "fun 0 0.5 1\nsad 0 0.5 1.5\n"), scale=scale)


def test_a_missing_file_is_refused_with_the_path_to_pass(tmp_path):
    with pytest.raises(FileNotFoundError, match="no VAD lexicon at .*nowhere.txt: pass the path"):
        load(tmp_path / "nowhere.txt")


def test_unlisted_forms_get_the_values_of_their_listed_word(tmp_path):
    lexicon = VADLexicon.from_file(write(tmp_path, "walk 0.1 0.2 0.3\nhappy 1 0 0\nchild 0 1 0\nwalking 0 0 0.5\n"))
    assert {"walks", "walked", "happier", "happiest", "children"} <= lexicon.inflected
    assert lexicon["walked"] == lexicon["walk"] and lexicon["children"] == lexicon["child"]
    assert lexicon["walking"] == (-1.0, -1.0, 0.0) and "walking" not in lexicon.inflected
    assert list(lexicon)[:4] == ["walk", "happy", "child", "walking"] and lexicon.inflected == {*list(lexicon)[4:]}


def test_a_form_of_two_words_has_the_values_of_the_shorter_then_alphabetically_first_one(tmp_path):
    lines = ["leave 0.1 0 0", "leaf 0.2 0 0", "live 0.3 0 0", "life 0.4 0 0", "caddie 0.5 0 0", "caddy 0.6 0 0"]
    for ordered in (lines, lines[::-1]):
        lexicon = VADLexicon.from_file(write(tmp_path, "\n".join(ordered)))
        assert lexicon["leaves"] == lexicon["leaf"] != lexicon["leave"]
        assert lexicon["lives"] == lexicon["life"] != lexicon["live"]
        assert lexicon["caddies"] == lexicon["caddy"] != lexicon["caddie"]


def test_only_inflected_forms_need_lemminflect(tmp_path, monkeypatch):
    path = write(tmp_path, "walk 0.1 0.2 0.3")
    monkeypatch.setitem(sys.modules, "lemminflect", None)
    assert list(load(path)) == ["walk"]
    with pytest.raises(ImportError, match="pip install lemminflect.*expand_inflections=False"):
        VADLexicon.from_file(path)


SAVED = VADLexicon(
    {**WORDS, "funerals": FUNERAL, "strasses": WORDS["strasse"]},
    **{"name": "made  up\nof nothing", "version": "1.2", "license": "CC0: take it", "redistributable": True},
    inflected=["funerals", "strasses"],
)


# That any lexicon is read back exactly is a property in test_properties_text.py.
def test_a_saved_file_has_metadata_lines_and_marked_forms(tmp_path):
    SAVED.save(tmp_path / "saved.tsv")
    lines = (tmp_path / "saved.tsv").read_text(encoding="utf-8").splitlines()
    assert {"# name: made up of nothing", "# license: CC0: take it", "# redistributable: true"} <= set(lines)
    assert "funeral\t-0.854\t-0.24\t-0.214" in lines and "funerals\t-0.854\t-0.24\t-0.214\tinflected" in lines
    lexicon = VADLexicon.from_file(tmp_path / "saved.tsv", name="mine", redistributable=False)
    assert (lexicon.name, lexicon.license, lexicon.redistributable) == ("mine", "CC0: take it", False)
    VADLexicon.from_file(tmp_path / "saved.tsv").save(tmp_path / "again.tsv")
    assert (tmp_path / "again.tsv").read_bytes() == (tmp_path / "saved.tsv").read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("_format: 1", "_format: 2", "vad_lexicon_format is '2', not 1; .*update"),
        ("redistributable: true", "redistributable: perhaps", "redistributable is 'perhaps', not false; .*save it"),
        ("\nhappy\t1.0\t0.0\t-1.0", "", "num_listed is '5', not 4; the file is truncated or was edited"),
        ("\tinflected", "", "num_listed is '5', not 6"),
        ("\tinflected", "\tguessed", "expected 4 fields"),
        ("happy\t1.0", "happy\t1.1", "off the bipolar scale"),
    ],
)
def test_an_edited_saved_file_is_refused(tmp_path, old, new, problem):
    path = tmp_path / "saved.tsv"
    SAVED.save(path)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=problem):
        VADLexicon.from_file(path)


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    SAVED.save(tmp_path / "saved.tsv")
    before = (tmp_path / "saved.tsv").read_bytes()

    def fail(*paths):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        LEXICON.save(tmp_path / "saved.tsv")
    assert [path.name for path in tmp_path.iterdir()] == ["saved.tsv"]
    assert (tmp_path / "saved.tsv").read_bytes() == before


def test_the_module_can_be_copied_to_the_hub_alone():
    assert get_relative_imports(vad_lexicon.__file__) == []
    assert set(get_imports(vad_lexicon.__file__)) - set(sys.stdlib_module_names) == {"numpy", "torch"}
