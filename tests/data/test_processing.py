"""The processor: prompts, training rows and their VAD, reading generations, saving and loading."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor, CLIPImageProcessorPil

from processing import SEVLMProcessor, add_sevlm_tokens, processing_sevlm
from processing.artemis import EMOTIONS
from processing.tiny_tokenizer import END_OF_TEXT, train_tokenizer
from tests.helpers.examples import examples
from tests.helpers.images import picture
from tests.helpers.tiny import IMAGE_SIZE, SENTENCES, WORDS, tiny_lexicon, tiny_processor


ROOT = Path(__file__).resolve().parents[2]


def sentence_ids(processor, text: str) -> list[int]:
    """`<bos> text`, encoded in one piece; the processor joins pieces."""
    return [processor.tokenizer.bos_token_id, *processor.tokenizer.encode(text, add_special_tokens=False)]


def expected_vad(processor, ids: list[int]) -> list[tuple[float, float, float]]:
    """For English sentences: looks up the letters at the end of the text so far."""
    rows = []
    for end in range(1, len(ids) + 1):
        letters = re.search(r"[a-z]*$", processor.tokenizer.decode(ids[:end], skip_special_tokens=False))[0]
        rows.append(WORDS.get(letters, (0.0, 0.0, 0.0)))
    return rows


def expected_row(processor, emotion, explanation, width: int, max_length: int = 30) -> dict[str, list]:
    tokenizer = processor.tokenizer
    if emotion is None:
        ids, because = [tokenizer.bos_token_id], 1
    else:
        ids = sentence_ids(processor, f" the emotion is {emotion} because {explanation}") + [tokenizer.eos_token_id]
        ids = ids[:max_length]
        because = [tokenizer.decode([i]) for i in ids].index(" because") if max_length > 10 else len(ids)
    padding = width - len(ids)
    emotion_segment, explanation_segment = tokenizer.convert_tokens_to_ids(["<emotion>", "<explanation>"])
    return {
        "input_ids": ids + [tokenizer.convert_tokens_to_ids("<pad>")] * padding,
        "attention_mask": [1] * len(ids) + [0] * padding,
        "token_type_ids": [emotion_segment] * because + [explanation_segment] * (width - because),
        "labels": [-100] + ids[1:] + [-100] * padding,
        "vad_values": expected_vad(processor, ids) + [(0.0, 0.0, 0.0)] * padding,
    }


def assert_rows_are(batch, sentences, processor, **kwargs):
    """Compares flat arrays `(N, L, ...)` with N pairs (emotion, explanation), token by token."""
    width = batch["input_ids"].shape[1]
    for row, (emotion, explanation) in enumerate(sentences):
        for name, values in expected_row(processor, emotion, explanation, width, **kwargs).items():
            assert np.array_equal(batch[name][row], np.array(values, dtype=batch[name].dtype)), f"{name} of row {row}"


def test_images_alone_or_with_an_emotion_give_one_prompt_each(processor):
    batch = processor(images=[picture(), picture(seed=1)], return_tensors="pt")
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [sentence_ids(processor, " the emotion is")] * 2
    assert batch["attention_mask"].tolist() == [[1] * 4] * 2
    assert batch["pixel_values"].shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert processor(images=picture(), return_tensors="pt")["input_ids"].shape == (1, 4)
    batch = processor(images=picture(), emotions="awe", return_tensors="pt")
    assert batch["input_ids"].tolist() == [sentence_ids(processor, " the emotion is awe because")]
    assert batch["pixel_values"].shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_prompts_of_different_lengths_are_padded_on_the_left(processor):
    emotions = ["awe", "something else", "fear"]
    batch = processor(emotions=emotions, return_tensors="pt")
    assert "pixel_values" not in batch and "labels" not in batch
    prompts = [sentence_ids(processor, f" the emotion is {emotion} because") for emotion in emotions]
    assert [len(prompt) for prompt in prompts] == [6, 7, 6], "the prompts should differ in length"
    pad = processor.tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[pad, *prompts[0]], prompts[1], [pad, *prompts[2]]]
    assert batch["attention_mask"].tolist() == [[0] + [1] * 6, [1] * 7, [0] + [1] * 6]


def test_your_own_prompt_follows_bos(processor):
    batch = processor(text=[" the dark sea", " a"], images=[picture()] * 2)
    pad = processor.tokenizer.pad_token_id
    longer, shorter = sentence_ids(processor, " the dark sea"), sentence_ids(processor, " a")
    assert batch["input_ids"].tolist() == [longer, [pad] * (len(longer) - len(shorter)) + shorter]
    assert processor(text=" a")["input_ids"].tolist() == [shorter]


def test_prompt_and_labels_can_be_changed(tmp_path):
    processor = tiny_processor(prompt=" it looks", emotions=["calm", "cold and dark"])
    rows = processor(emotions=["cold and dark"], explanations=["the sea is grey"])
    prompt, label = sentence_ids(processor, " it looks"), processor.tokenizer.encode(" cold and dark")
    assert processor(images=picture())["input_ids"].tolist() == [prompt]
    assert rows["input_ids"][0].tolist()[: len(prompt) + len(label)] == prompt + label
    assert processor.read(rows["input_ids"]) == [{"emotion": "cold and dark", "explanation": "the sea is grey"}]
    layout = processor.token_layout()
    assert layout["prompt_token_ids"] == prompt and layout["emotion_token_ids"][1] == label
    with pytest.raises(ValueError, match="awe"):
        processor(emotions="awe")
    processor.save_pretrained(tmp_path)
    assert SEVLMProcessor.from_pretrained(tmp_path).token_layout() == layout


def test_the_token_layout_has_the_ids_of_the_tokenizer(processor):
    layout, tokenizer = processor.token_layout(), processor.tokenizer
    assert layout["emotions"] == list(EMOTIONS)
    assert layout["prompt_token_ids"] == sentence_ids(processor, " the emotion is")
    assert [tokenizer.decode(ids) for ids in layout["emotion_token_ids"]] == [f" {emotion}" for emotion in EMOTIONS]
    names = ["because_token_id", "emotion_segment_id", "explanation_segment_id", "pad_token_id"]
    tokens = tokenizer.convert_ids_to_tokens([layout[name] for name in [*names, "bos_token_id", "eos_token_id"]])
    assert tokens == ["Ġbecause", "<emotion>", "<explanation>", "<pad>", END_OF_TEXT, END_OF_TEXT]


FLAT = [
    ("awe", "a lonely funeral, dark and dark"),
    ("something else", "quiet fun"),
    ("fear", "because the violent red (cold) is not calm because of cold!"),
    (None, None),
    ("anger", "sea"),
]


def test_flat_training_rows_equal_sentences_encoded_in_one_piece(processor):
    emotions, explanations = zip(*FLAT, strict=True)
    batch = processor(emotions=list(emotions), explanations=list(explanations))
    assert_rows_are(batch, FLAT, processor)
    assert batch["vad_values"].dtype == np.float32 and batch["labels"].dtype == np.int64
    words = [processor.tokenizer.encode(f" {word}") for word in WORDS]
    assert {len(word) > 1 for word in words} == {True, False}, "the comparison needs words of one and several tokens"
    read = expected_vad(processor, sum(batch["input_ids"].tolist(), []))
    assert {WORDS["lonely"], WORDS["funeral"], WORDS["fun"]} <= set(read), "and short words in longer ones"
    assert processor(emotions=[[None]], explanations=[[None]])["input_ids"].shape == (1, 1, 1)


def test_nested_training_rows_equal_the_flat_ones(processor):
    emotions = [["awe", "something else"], ["fear", None], ["anger", "awe"]]
    explanations = [[SENTENCES[0], "quiet fun"], ["cold, violent", None], ["a funeral", "golden"]]
    batch = processor(images=[picture()] * 3, emotions=emotions, explanations=explanations, return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    length = batch["input_ids"].shape[-1]
    assert batch["vad_values"].shape == (3, 2, length, 3)
    assert all(batch[name].shape == (3, 2, length) for name in ("attention_mask", "token_type_ids", "labels"))
    flat = {name: array.flatten(0, 1).numpy() for name, array in batch.items() if name != "pixel_values"}
    pairs = zip(sum(emotions, []), sum(explanations, []), strict=True)
    assert_rows_are(flat, pairs, processor)


def test_without_a_lexicon_vad_is_zero(processor):
    plain = tiny_processor(vad_lexicon=None)
    sentence = {"emotions": ["awe"], "explanations": ["a lonely funeral"]}
    without, with_lexicon = plain(**sentence), processor(**sentence)
    assert not without["vad_values"].any() and with_lexicon["vad_values"].any()
    plain.vad_lexicon = tiny_lexicon()
    assert np.array_equal(plain(**sentence)["vad_values"], with_lexicon["vad_values"])


@pytest.mark.parametrize("max_length", [12, 6, 3], ids=["in the explanation", "at because", "in the label"])
def test_a_sentence_is_cut_at_max_length(max_length):
    short = tiny_processor(max_length=max_length)
    emotions, explanations = ["awe", "something else", None], ["a lonely funeral in the rain", SENTENCES[1], None]
    batch = short(emotions=emotions, explanations=explanations)
    whole = tiny_processor(max_length=1000)(emotions=emotions, explanations=explanations)
    assert batch["input_ids"].shape == (3, max_length) and batch["attention_mask"][:2].all()
    assert short.tokenizer.eos_token_id not in batch["labels"]
    for name, array in batch.items():
        assert np.array_equal(array, whole[name][:, :max_length]), name


def test_a_single_sentence_needs_no_list_and_white_space_is_normalised(processor):
    listed = processor(emotions=["awe"], explanations=["a quiet meadow"])
    assert listed["input_ids"].ndim == 2
    for sentence in ("a quiet meadow", "  a\tquiet \n\n meadow\u00a0 "):
        single = processor(emotions="awe", explanations=sentence)
        assert all(np.array_equal(single[name], listed[name]) for name in listed)


BOS, EOS, PAD = END_OF_TEXT, END_OF_TEXT, "<pad>"


@pytest.mark.parametrize(
    ("text", "emotion", "explanation"),
    [
        (f"{BOS} the emotion is awe because a quiet meadow{EOS}{PAD}{PAD}", "awe", "a quiet meadow"),
        (f"{PAD}{PAD}{BOS} the emotion is awe because a quiet meadow{EOS}", "awe", "a quiet meadow"),
        (f"{BOS} the emotion is something else because it is strange", "something else", "it is strange"),
        (f"{BOS} the emotion is fear because dark because cold{EOS}", "fear", "dark because cold"),
        (f"{BOS} the emotion is fear because because{EOS}", "fear", "because"),
        (f"{BOS} the emotion is fear because{EOS}{PAD}", "fear", ""),
        (f"{BOS} the emotion is sadness{EOS}", "sadness", ""),
        (f"{BOS} the emotion is sadness in the rain{EOS}", None, ""),
        (f"{BOS} the emotion is joy because it is calm{EOS}", None, "it is calm"),
        (f"{BOS} the emotion is awe awe because it is calm{EOS}", None, "it is calm"),
        (f"{BOS} the emotion is because it is calm{EOS}", None, "it is calm"),
        (f"{BOS} the emotion is{EOS}{PAD}", None, ""),
        (f"{BOS} the emotion is awe because calm{EOS} never read because{EOS}", "awe", "calm"),
        (f"{BOS} the emotion is awe because calm<emotion> and<explanation> cold{EOS}", "awe", "calm and cold"),
        (f"{BOS} the emotion is awe because  calm \n rain {EOS}", "awe", "calm rain"),
        (f"{BOS} in the rain because it is calm{EOS}", None, "it is calm"),
        (f"{BOS}{EOS}", None, ""),
        (BOS, None, ""),
        (PAD * 5, None, ""),
        ("", None, ""),
    ],
)
def test_any_generation_is_read(processor, text, emotion, explanation):
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.read([ids]) == [{"emotion": emotion, "explanation": explanation}]


def test_generations_may_be_tensors_arrays_or_lists(processor):
    batch = processor(emotions=["awe", "something else"], explanations=["calm", "a dark sea"], return_tensors="pt")
    expected = [{"emotion": "awe", "explanation": "calm"}, {"emotion": "something else", "explanation": "a dark sea"}]
    for ids in (batch["input_ids"], batch["input_ids"].numpy(), batch["input_ids"].tolist()):
        assert processor.read(ids) == expected
    # A generation may end within a character.
    ids = processor(emotions="awe", explanations="calm é")["input_ids"][0].tolist()
    assert processor.read([ids[:-2]]) == [{"emotion": "awe", "explanation": "calm \ufffd"}]


@pytest.fixture(scope="module")
def long_processor(tmp_path_factory):
    """Saved and loaded, and so long that it cuts nothing."""
    folder = tmp_path_factory.mktemp("long")
    tiny_processor(max_length=10_000).save_pretrained(folder)
    return SEVLMProcessor.from_pretrained(folder)


# Any text that UTF-8 can encode, and pieces that tokenizers treat specially.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
TRICKY = st.sampled_from(
    [" because", "because ", "<|endoftext|>", "<pad>", " the emotion is awe", "'s", " .", "\ufffd"]
)
EXPLANATIONS = st.lists(ANY_TEXT | TRICKY, min_size=1, max_size=4).map("".join).filter(str.split)


@examples(150)
@given(st.lists(st.tuples(st.sampled_from(EMOTIONS), EXPLANATIONS), min_size=1, max_size=3))
def test_every_label_and_explanation_survives_training_row_and_reading(long_processor, sentences):
    """Only runs of white space change: they become one blank, and none at the ends."""
    emotions, explanations = map(list, zip(*sentences, strict=True))
    rows = long_processor(emotions=emotions, explanations=explanations)
    assert long_processor.read(rows["input_ids"]) == [
        {"emotion": emotion, "explanation": " ".join(explanation.split())} for emotion, explanation in sentences
    ]
    real = rows["attention_mask"].astype(bool)
    assert not (rows["input_ids"] == long_processor.tokenizer.pad_token_id)[real].any()


@pytest.fixture
def processor_warnings(monkeypatch):
    """Collects warnings that transformers shows only once a process."""
    messages = []
    monkeypatch.setattr(processing_sevlm.logger, "warning_once", messages.append)
    return messages


ROWS = {"emotions": ["awe", "fear"], "explanations": ["a lonely funeral", SENTENCES[0]]}


def assert_same_behaviour(first, second):
    expected, actual = first(images=[picture()] * 2, **ROWS), second(images=[picture()] * 2, **ROWS)
    assert set(actual) == set(expected)
    for name in expected:
        assert np.array_equal(actual[name], expected[name]), name
    assert second.token_layout() == first.token_layout()
    assert (second.max_length, second.prompt, second.emotions) == (first.max_length, first.prompt, first.emotions)


def test_a_saved_processor_loads_unchanged(tmp_path, processor_warnings):
    processor = tiny_processor(max_length=12)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "vad_lexicon.tsv").is_file()
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is SEVLMProcessor
    assert loaded.vad_lexicon == processor.vad_lexicon
    assert_same_behaviour(processor, loaded)
    assert not processor_warnings


def test_a_processor_without_a_lexicon_is_saved_without_one(tmp_path, processor_warnings):
    tiny_processor().save_pretrained(tmp_path)
    processor = tiny_processor(vad_lexicon=None)
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "vad_lexicon.tsv").exists(), "an earlier save's lexicon would come back"
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.vad_lexicon is None and not processor_warnings
    assert_same_behaviour(processor, loaded)


def test_a_lexicon_that_may_not_be_passed_on_is_not_saved(tmp_path, processor_warnings):
    tiny_processor().save_pretrained(tmp_path / "first")
    lexicon = tiny_lexicon(redistributable=False)
    processor = tiny_processor(vad_lexicon=lexicon)
    processor.save_pretrained(tmp_path / "first")
    assert not (tmp_path / "first" / "vad_lexicon.tsv").exists(), "the file of an earlier save must be removed"
    assert len(processor_warnings) == 1 and "include_vad_lexicon=True" in processor_warnings[0]
    assert "'test words'" in processor_warnings[0]
    saved = (tmp_path / "first" / "processor_config.json").read_text()
    assert json.loads(saved)["vad_lexicon"] == lexicon.to_metadata()
    assert not any(word in saved for word in ("funeral", "lonely", "golden"))
    assert processor.vad_lexicon is lexicon, "saving must not change the processor"

    loaded = AutoProcessor.from_pretrained(tmp_path / "first")
    assert len(processor_warnings) == 2 and "'test words'" in processor_warnings[1]
    assert loaded.vad_lexicon is None and not loaded(**ROWS)["vad_values"].any()
    loaded.save_pretrained(tmp_path / "second")
    assert json.loads((tmp_path / "second" / "processor_config.json").read_text()) == json.loads(saved)
    loaded.vad_lexicon = lexicon
    assert_same_behaviour(processor, loaded)


def test_a_lexicon_may_be_saved_for_your_own_use(tmp_path, processor_warnings):
    processor = tiny_processor(vad_lexicon=tiny_lexicon(redistributable=False))
    processor.save_pretrained(tmp_path, include_vad_lexicon=True)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert_same_behaviour(processor, loaded)
    assert not processor_warnings and loaded.vad_lexicon.to_metadata() == processor.vad_lexicon.to_metadata()
    loaded.save_pretrained(tmp_path)
    assert not (tmp_path / "vad_lexicon.tsv").exists(), "saving again must leave the lexicon out"


PROBE = """
import json, sys
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
rows = processor(emotions=["awe", "fear"], explanations=["a lonely funeral", sys.argv[3]])
print(json.dumps({"module": type(processor).__module__, "path": sys.path,
                  "rows": {name: array.tolist() for name, array in rows.items()}}))
"""


@pytest.mark.parametrize("installed", [True, False], ids=["import processing", "trust_remote_code"])
def test_another_process_loads_the_folder(processor, tmp_path, installed):
    """Importing the project is enough; without it, the code in the folder is."""
    processor.save_pretrained(tmp_path / "saved")
    work = tmp_path / "elsewhere"
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    kwargs = {"trust_remote_code": True}
    # Without it, the process must not find an installed copy of the project either.
    command = f"import sys; sys.modules['processing'] = sys.modules['modeling_sevlm'] = None\n{PROBE}"
    if installed:
        command, kwargs = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import processing\n{PROBE}", {}
    arguments = [str(tmp_path / "saved"), json.dumps(kwargs), SENTENCES[0]]
    run = subprocess.run(
        [sys.executable, "-c", command, *arguments], cwd=work, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["module"].startswith("processing." if installed else "transformers_modules.")
    assert (str(ROOT) in report["path"]) == installed
    expected = processor(**ROWS)
    assert report["rows"] == {name: array.tolist() for name, array in expected.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "images"),
        ({"images": [[]]}, "`images` is empty"),
        ({"emotions": "joy"}, "Unknown emotion 'joy'.*amusement"),
        ({"emotions": ["awe", "joy"], "explanations": ["calm", "calm"]}, "Unknown emotion 'joy'"),
        ({"emotions": ["awe", "awe"], "explanations": ["calm", ""]}, "Sentence 1 .*empty"),
        ({"emotions": ["awe", "awe"], "explanations": [" \n", "calm"]}, "Sentence 0 .*empty"),
        ({"emotions": [["awe", "fear"]], "explanations": [["calm", None]]}, "Sentence 1 .*'fear'"),
        ({"emotions": [["awe", None]], "explanations": [["calm", "calm"]]}, "Sentence 1 .*None"),
        ({"explanations": ["calm"]}, "emotions"),
        ({"images": [picture()], "explanations": ["calm"]}, "`explanations` need `emotions`"),
        ({"emotions": ["awe"], "explanations": ["calm", "calm"]}, "must have the shape of `emotions`"),
        ({"emotions": [["awe"], ["awe"]], "explanations": [["calm"]]}, "must have the shape of `emotions`"),
        ({"emotions": [["awe"], ["awe", "fear"]], "explanations": [["calm"], ["calm", "cold"]]}, "pad with None"),
        ({"emotions": ["awe"], "explanations": [["calm"]]}, "must have the shape of `emotions`"),
        ({"emotions": ["awe"], "explanations": [7]}, "one string per label"),
        ({"images": [picture()] * 2, "text": ["a"] * 3}, "2 images for 3 rows of text"),
        ({"text": " a", "emotions": "awe"}, "either `text` or `emotions`"),
        ({"text": []}, "`text` or `emotions` is empty"),
    ],
)
def test_wrong_arguments_are_refused(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_a_tokenizer_without_the_special_tokens_is_refused_with_a_remedy():
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    images = CLIPImageProcessorPil()
    with pytest.raises(ValueError, match="<pad>, <emotion>, <explanation>.*add_sevlm_tokens"):
        SEVLMProcessor(images, tokenizer)
    tokenizer.add_tokens(["<pad>", "<explanation>"], special_tokens=True)
    with pytest.raises(ValueError, match="lacks <emotion>\\."):
        SEVLMProcessor(images, tokenizer)
    add_sevlm_tokens(tokenizer)
    assert SEVLMProcessor(images, tokenizer)(emotions="awe")["input_ids"].shape == (1, 6)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-text"):
        SEVLMProcessor(images, tokenizer)


def test_tokens_are_added_once_and_in_the_order_of_the_authors():
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    size = len(tokenizer)
    with pytest.raises(ValueError, match="'clip', 'imagenet'"):
        SEVLMProcessor.from_tokenizer(tokenizer, image_statistics="openai")
    assert len(tokenizer) == size, "the tokenizer must not be changed halfway"
    assert add_sevlm_tokens(tokenizer) == 4
    added = tokenizer.convert_ids_to_tokens(range(size, size + 4))
    assert added == ["<pad>", "<prefix>", "<emotion>", "<explanation>"]
    assert add_sevlm_tokens(tokenizer) == 0 and len(tokenizer) == size + 4
    assert tokenizer.pad_token == "<pad>"
    with pytest.raises(ValueError, match="splits ' because' into 8 tokens"):
        SEVLMProcessor.from_tokenizer(train_tokenizer(SENTENCES, EMOTIONS, vocab_size=257))


def test_an_explanation_follows_the_first_or_the_last_because():
    texts = {"first": "it is calm because of the sea", "last": "of the sea"}
    for after, wanted in texts.items():
        processor = tiny_processor(explanation_after=after)
        ids = processor.tokenizer(" the emotion is awe because it is calm because of the sea")["input_ids"]
        assert processor.read([ids]) == [{"emotion": "awe", "explanation": wanted}]
    with pytest.raises(ValueError, match="'first' or 'last', not 'second'"):
        tiny_processor(explanation_after="second")


def test_padding_to_the_maximum_counts_as_text_but_an_empty_slot_does_not():
    processor = tiny_processor(pad_to_max_length=True, max_length=20)
    rows = processor(emotions=[["awe", None]], explanations=[["calm", None]], return_tensors="pt")
    assert rows["input_ids"].shape == (1, 2, 20)
    assert rows["attention_mask"][0].sum(dim=-1).tolist() == [20, 1]
    is_padding = rows["input_ids"].eq(processor.tokenizer.pad_token_id)
    assert rows["labels"][is_padding].eq(-100).all() and rows["vad_values"][is_padding].eq(0).all()
