"""Every figure command on the embedded data, from saved results."""

import json
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

import evaluate_sevlm
import train
from processing.artemis import EMOTIONS, dominant_emotion
from processing.toy_artemis import load_toy_artemis
from studies.figures import ablation_figure, choose_examples, confusion_figure, main, training_figure
from studies.summary import summarise
from studies.tsne import embed, tsne_figure
from tests.helpers.studies import made_up_runs
from tests.helpers.training import TINY_RUN


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder that `make demo` writes, from a much shorter run."""
    folder = tmp_path_factory.mktemp("demo")
    steps = ["--max_steps", "60", "--learning_rate", "8e-3", "--vad_learning_rate", "8e-3", "--warmup_steps", "4"]
    more = ["--num_paintings", "120", "--logging_steps", "5"]
    train.main(["--output_dir", str(folder), *more, *steps, *TINY_RUN])
    arguments = ["--num_paintings", "120", "--captions", "false", "--use_cpu"]
    evaluate_sevlm.main([str(folder), *arguments, "--output_dir", str(folder / "evaluation")])
    return folder


def check_figure(path, suffixes=(".png", ".svg")):
    """Complete files of both kinds with something drawn on them, and no other files."""
    files = sorted(file.name for file in path.parent.glob(path.stem + ".*"))
    assert files == sorted(path.stem + suffix for suffix in suffixes)
    picture = np.asarray(Image.open(path.with_suffix(".png")).convert("L"))
    assert min(picture.shape) > 200 and (picture < 250).mean() > 0.01
    if ".svg" in suffixes:
        assert xml.etree.ElementTree.parse(path.with_suffix(".svg")).getroot().tag.endswith("svg")


def test_the_confusion_matrix_of_an_evaluation_and_the_training_curves_of_a_run(demo, tmp_path, capsys):
    main(["confusion", str(demo / "evaluation" / "results.json"), "--output", str(tmp_path / "a" / "confusion.png")])
    check_figure(tmp_path / "a" / "confusion.png")
    capsys.readouterr()
    main(["training", str(demo / "training_log.json"), "--prior", "2.0", "--output", str(tmp_path / "curve.pdf")])
    check_figure(tmp_path / "curve.pdf", (".png", ".pdf"))
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "curve.png"), str(tmp_path / "curve.pdf")]


def test_examples_of_two_systems_with_their_references(demo, tmp_path):
    file, other = demo / "evaluation" / "predictions.json", tmp_path / "other.json"
    answer = {"emotion": "awe", "explanation": "it costs $5 or $6"}
    other.write_text(json.dumps([prediction | answer for prediction in json.loads(file.read_text())]))
    data = ["--num_paintings", "120", "--successes", "1", "--failures", "2"]
    main(["examples", f"ours={file}", f"other={other}", *data, "--output", str(tmp_path / "examples")])
    check_figure(tmp_path / "examples.png")


def test_tsne_of_a_model_is_drawn_again_from_its_features(demo, tmp_path):
    main(["tsne", str(demo), "--split", "train", "--max_paintings", "40", "--output", str(tmp_path / "tsne.png")])
    check_figure(tmp_path / "tsne.png", (".npz", ".png", ".svg"))
    main(["tsne", str(tmp_path / "tsne.npz"), "--output", str(tmp_path / "again.png")])
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "tsne.svg").read_bytes()
    main(
        ["tsne", f"a={demo}", f"b={tmp_path / 'tsne.npz'}", "--num_paintings", "60", "--output", str(tmp_path / "two")]
    )
    check_figure(tmp_path / "two.png")
    assert (tmp_path / "two-a.npz").is_file() and not (tmp_path / "two-b.npz").exists()
    with np.load(tmp_path / "tsne.npz") as features:
        assert features["explanation"].shape == features["image"].shape == (40, 128)
        assert set(features["emotion"]) <= {*EMOTIONS, ""}


def test_ablation_bars_of_a_study(tmp_path):
    content = summarise(made_up_runs(tmp_path / "runs"), draws=50)
    (tmp_path / "table.json").write_text(json.dumps(content))
    main(["ablation", str(tmp_path / "table.json"), "--output", str(tmp_path / "bars.svg")])
    check_figure(tmp_path / "bars.svg")
    axes = ablation_figure(content, "ablation").axes[0]
    means = [100 * variant["means"]["accuracy"] for variant in content["variants"].values()]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(means) and axes.get_ylim()[0] == 0


def test_a_range_of_alpha_becomes_a_line_in_its_order(tmp_path):
    variants = {
        f"alpha = {value}": {"means": {"accuracy": accuracy}, "deviations": {"accuracy": 0.01}, "tests": {}}
        for value, accuracy in ((2, 0.5), (0.1, 0.4), (8, 0.3))
    }
    content = {"seeds": 2, "num_paintings": 9, "prior_label_nll": None, "variants": variants}
    (line, *_) = ablation_figure(content, "ablation").axes[0].lines
    assert list(line.get_xdata()) == [0.1, 2, 8] and list(line.get_ydata()) == [40, 50, 30]


def test_cells_of_the_confusion_matrix_are_its_counts():
    matrix = np.zeros((9, 10), dtype=int)
    matrix[1, 6], matrix[2, 2] = 3, 4
    figure = confusion_figure(matrix, EMOTIONS)
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert cells == {(6, 1): "3", (2, 2): "4"}
    assert "(none)" not in [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_examples_are_successes_then_failures_of_many_emotions():
    dataset = load_toy_artemis(240)["test"]
    truth = [dominant_emotion(histogram) for histogram in dataset["emotion_histogram"]]
    named = [EMOTIONS[label if label is not None and row % 2 else 0] for row, label in enumerate(truth)]
    predictions = [{"emotion": emotion, "explanation": "so"} for emotion in named]
    rows = choose_examples(predictions, dataset, successes=4, failures=4)
    right = [named[row] == EMOTIONS[truth[row]] for row in rows]
    assert right == [True] * 4 + [False] * 4 and len(set(rows)) == 8
    assert len({truth[row] for row in rows[:4]}) == 4, "no emotion comes twice before all have come"


def test_tsne_groups_similar_features_and_refuses_too_few():
    groups = np.repeat([0, 1], 15)
    features = np.random.default_rng(0).normal(size=(30, 8)) + 8 * groups[:, None]
    places = embed(features)
    one, two = places[groups == 0], places[groups == 1]
    assert np.linalg.norm(one.mean(axis=0) - two.mean(axis=0)) > max(one.std(), two.std())
    assert not embed(np.ones((5, 8))).any(), "equal features are in one place"
    few = {"explanation": features, "image": features, "emotion": np.array(["awe"] * 28 + ["fear"] * 2)}
    with pytest.raises(ValueError, match="'fear'"):
        tsne_figure({"SEVLM": few}, emotion="fear")
    many = few | {"emotion": np.array(["fear"] * 30)}
    first, lacking, *_ = tsne_figure({"full": many, "baseline": few}, emotion="fear").axes[2:]
    assert first.get_title() == "full\nexplanations and pictures, fear" and len(first.collections) == 2
    assert [text.get_text() for text in lacking.texts] == ["fewer than three explanations"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["confusion", "nowhere.json"], "nowhere.json"),
        (["training", "log.json"], "language_loss"),
        (["examples", "predictions.json", "./predictions.json", "--num_paintings", "24"], "two systems"),
        (["examples", "nowhere.json", "--split", "dev", "--num_paintings", "24"], "no split 'dev'"),
    ],
)
def test_input_that_cannot_be_drawn_ends_with_one_line_and_no_file(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.json").write_text("[]")
    paintings = load_toy_artemis(24)["test"]["painting"]
    predictions = [{"painting": painting, "emotion": "awe", "explanation": "so"} for painting in paintings]
    (tmp_path / "predictions.json").write_text(json.dumps(predictions))
    with pytest.raises(SystemExit, match=words):
        main([*arguments, "--output", "figure.png"])
    assert not (tmp_path / "figure.png").exists()


def test_a_figure_of_a_log_without_an_evaluation_has_training_only():
    (axes,) = training_figure([{"epoch": 1, "language_loss": 2.0}, {"epoch": 2, "language_loss": 1.0}]).axes
    assert [line.get_label() for line in axes.lines] == ["training"]
