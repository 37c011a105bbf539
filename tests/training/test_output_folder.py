"""What stands in an output folder is continued, refused or left, and replaced only with --overwrite_output_dir."""

import json
import shutil
from pathlib import Path

import pytest

import evaluate_sevlm
import train
from evaluation import train_emotion_classifier
from examples import train_image_classifier
from modeling_sevlm.training_folder import check_free, checkpoints, clear_folder, find_checkpoint
from studies import human_study
from tests.helpers.training import TINY_RUN, WITHOUT_EVALUATION, make_trainer


RESUME, OVERWRITE = ["--resume_from_checkpoint", "true"], ["--overwrite_output_dir"]
RUN = ["--num_paintings", "30", "--max_steps", "2", *TINY_RUN, "--save_strategy", "steps", "--save_steps", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of finished runs."""
    folder = tmp_path_factory.mktemp("made")
    train.main([*RUN, "--output_dir", str(folder / "complete")])
    train.main([*RUN, "--save_only_model", "true", "--output_dir", str(folder / "weights only")])
    return folder


@pytest.fixture
def standing(made, tmp_path):
    def copy(name):
        return shutil.copytree(made / name, tmp_path / "run")

    return copy


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def strip(folder, kept):
    """Removes all files and folders but `kept`."""
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


STATES = {
    "checkpoints and a model": ("complete", None, []),
    "a model without checkpoints": ("complete", "config.json model.safetensors training.json", []),
    "a model and resume": ("complete", "config.json model.safetensors training.json", RESUME),
    "weights-only checkpoints": ("weights only", None, []),
    "weights-only checkpoints and resume": ("weights only", None, RESUME),
    "one weights-only checkpoint": ("weights only", "checkpoint-2", []),
    "one weights-only checkpoint and resume": ("weights only", "checkpoint-2", RESUME),
    "one complete checkpoint": ("complete", "checkpoint-2", []),
    "a log": ("complete", "training_log.json", []),
    "a log and resume": ("complete", "training_log.json", RESUME),
    "the configuration of another program": ("complete", "config.json", RESUME),
}


@pytest.mark.parametrize("state", STATES)
def test_a_repeated_command_does_not_replace_what_stands_there(standing, monkeypatch, state):
    name, kept, more = STATES[state]
    folder = standing(name)
    if kept is not None:
        strip(folder, kept.split())
    before = content(folder)
    monkeypatch.setattr(train, "load_inputs", None)
    with pytest.raises(
        SystemExit, match="error: .*holds a model or an earlier run: .*--overwrite_output_dir"
    ) as refused:
        train.main([*RUN, "--output_dir", str(folder), *more])
    assert content(folder) == before and "\n" not in str(refused.value)


def test_files_that_training_does_not_write_are_left(standing, tmp_path):
    folder = standing("weights only")
    strip(folder, ["checkpoint-1"])
    (folder / "notes.txt").write_text("mine")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text("{}")
    train.main([*RUN, "--output_dir", str(folder), *OVERWRITE, "--save_strategy", "no"])
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "evaluation" / "results.json").exists()
    assert checkpoints(folder) == [], "they are of the earlier run"
    assert (folder / "model.safetensors").exists() and not (folder / "saving").exists()
    strip(folder, ["notes.txt", "evaluation"])
    train.main([*RUN, "--output_dir", str(folder), "--save_strategy", "no"])


def test_an_interrupted_run_that_has_saved_nothing_starts_again(tmp_path):
    (tmp_path / "training.json").write_text("{}")
    (tmp_path / "sheets").mkdir()
    reported = []
    with pytest.raises(ValueError, match="--overwrite_output_dir"):
        find_checkpoint(tmp_path, None, reported.append)
    assert find_checkpoint(tmp_path, "true", reported.append) is None
    assert len(reported) == 1 and "training starts" in reported[0]


def test_incomplete_checkpoints_after_the_resumed_one_are_kept_under_another_name(standing):
    folder = standing("complete")
    first, last = checkpoints(folder)
    (last / "optimizer.pt").unlink()
    before = content(last)
    for more in (RESUME, ["--resume_from_checkpoint", str(first)]):
        train.main([*RUN, "--output_dir", str(folder), *more])
        assert checkpoints(folder) == [first, last] and (last / "optimizer.pt").exists()
        assert content(folder / "incomplete-checkpoint-2-1") == before
        (last / "optimizer.pt").unlink()
    assert (folder / "incomplete-checkpoint-2-2").exists()


def test_overwriting_keeps_the_checkpoint_that_the_run_resumes_from(standing):
    folder = standing("complete")
    first, last = checkpoints(folder)
    report = []
    with pytest.raises(ValueError, match="earlier run: checkpoint-2"):
        find_checkpoint(folder, str(first), report.append)
    assert find_checkpoint(folder, str(first), report.append, overwrite=True) == str(first)
    (folder / "evaluation_results.json").write_text("{}")  # of the model that is replaced
    clear_folder(folder, str(first), overwrite=True)
    assert checkpoints(folder) == [first]
    assert not list(folder.glob("*.safetensors")) and not (folder / "evaluation_results.json").exists()


def test_a_checkpoint_of_another_folder_does_not_open_this_one(standing, made, tmp_path):
    folder = standing("complete")
    for resume in checkpoints(made / "complete"):
        with pytest.raises(
            ValueError, match="holds a model or an earlier run: checkpoint-2, checkpoint-1, model.safe"
        ):
            find_checkpoint(folder, str(resume), print)
    assert find_checkpoint(tmp_path / "new", str(resume), print) == str(resume)


JUDGE = [
    "--num_paintings",
    "24",
    "--max_steps",
    "1",
    *WITHOUT_EVALUATION,
    "--save_strategy",
    "no",
    "--use_cpu",
    "true",
]
CLASSIFIER = [*JUDGE, "--vision_model", "tiny", "--image_size", "32"]


@pytest.mark.parametrize(
    ("main", "arguments", "report"),
    [
        (train_emotion_classifier.main, JUDGE, "confusion_matrix.png"),
        (train_image_classifier.main, CLASSIFIER, "emotions-test.csv"),
    ],
)
def test_the_other_trainings_follow_the_same_rule(tmp_path, main, arguments, report):
    arguments = [*arguments, "--disable_tqdm", "true", "--output_dir", str(tmp_path)]
    (tmp_path / report).write_text("mine")
    with pytest.raises(SystemExit, match=f"holds a model or an earlier run: {report}.*--overwrite_output_dir"):
        main(arguments)
    assert (tmp_path / report).read_text() == "mine"
    (tmp_path / report).unlink()
    main(arguments)
    before = content(tmp_path)
    with pytest.raises(SystemExit, match="holds a model or an earlier run.*--overwrite_output_dir"):
        main(arguments)
    assert content(tmp_path) == before
    main([*arguments, *OVERWRITE])


def test_a_trainer_without_a_script_replaces_checkpoints_only_with_consent(processor, model, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    for step in ("checkpoint-1", "checkpoint-9"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "model.safetensors").write_text("mine, without an optimizer")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="earlier run: checkpoint-9, checkpoint-1. .*overwrite_output_dir"):
        make_trainer(model, processor, tmp_path, **saving).train()
    make_trainer(model, processor, tmp_path, max_steps=1).train()
    assert content(tmp_path) == before
    make_trainer(model, processor, tmp_path, overwrite_output_dir=True, **saving).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    with pytest.raises(ValueError, match="earlier run: checkpoint-2. "):
        make_trainer(model, processor, tmp_path, **saving).train(str(tmp_path / "checkpoint-1"))
    saving["max_steps"] = 3
    assert make_trainer(model, processor, tmp_path, **saving).train(True).global_step == 3


def test_a_saved_model_does_not_replace_another(tmp_path):
    check_free(tmp_path)
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(ValueError, match="holds a model.*model.safetensors.*--overwrite_output_dir"):
        check_free(tmp_path)
    check_free(tmp_path, overwrite=True)


def test_figures_and_card_of_other_weights_are_removed(standing):
    folder = standing("complete")
    described = folder / "evaluation_results.json", folder / "README.md"
    arguments = [str(folder), "--num_paintings", "30", "--captions", "false", "--use_cpu", "--update_model_card"]
    evaluate_sevlm.main([*arguments, "--output_dir", str(folder / "evaluation")])
    train.main([*RUN, "--output_dir", str(folder), *RESUME])
    assert all(file.exists() for file in described), "the run was finished, so the weights are the same"
    train.main([*RUN, "--output_dir", str(folder), *RESUME, "--max_steps", "3"])
    assert not any(file.exists() for file in described)
    (folder / "README.md").write_text("mine")
    train.main([*RUN, "--output_dir", str(folder), *RESUME, "--max_steps", "4"])
    assert (folder / "README.md").read_text() == "mine"


HUMAN = ["--human", "--num_paintings", "60", "--captions", "false", "--use_cpu"]


def test_an_evaluation_replaces_results_only_with_consent(tmp_path):
    arguments = [*HUMAN, "--output_dir", str(tmp_path / "out")]
    evaluate_sevlm.main(arguments)
    before = content(tmp_path / "out")
    with pytest.raises(SystemExit, match="results.json exists. Use --overwrite_output_dir"):
        evaluate_sevlm.main([*arguments, "--seed", "5"])
    assert content(tmp_path / "out") == before
    evaluate_sevlm.main([*arguments, "--seed", "5", *OVERWRITE])
    after = content(tmp_path / "out")
    assert after.keys() == before.keys() and after != before
    for name in ("predictions.json", "painting_scores.json", "unfinished/predictions.json", "seed-1/predictions.json"):
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True)
        file.write_text('[{"painting": "mine", "explanation": "of another system"}]')
        with pytest.raises(SystemExit, match=f"{name} exists"):
            evaluate_sevlm.main([*HUMAN, "--output_dir", str(tmp_path / "mine")])
        assert list(content(tmp_path / "mine")) == [file.relative_to(tmp_path / "mine")]
        shutil.rmtree(tmp_path / "mine")


@pytest.mark.parametrize("place", ["human_predictions", "score"])
def test_an_interrupted_evaluation_leaves_the_earlier_one(tmp_path, monkeypatch, place):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    arguments = [*HUMAN, "--output_dir", str(tmp_path)]
    evaluate_sevlm.main(arguments)
    before = content(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate_sevlm, place, interrupted)
        evaluate_sevlm.main([*arguments, "--seeds", "2", *OVERWRITE])
    left = content(tmp_path)
    assert before.items() <= left.items() and len(left) - len(before) == (2 if place == "score" else 0)
    evaluate_sevlm.main([*arguments, *OVERWRITE])
    assert content(tmp_path).keys() == before.keys() and not (tmp_path / "unfinished").exists()


def test_an_evaluation_into_a_file_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(evaluate_sevlm, "load_inputs", None)
    for folder in ("file", "file/below"):
        with pytest.raises(SystemExit, match="error: .*file.* cannot be written .*--output_dir"):
            evaluate_sevlm.main([*HUMAN, "--output_dir", str(tmp_path / folder)])


def test_an_evaluation_does_not_replace_the_predictions_that_it_reads(tmp_path):
    evaluate_sevlm.main([*HUMAN, "--output_dir", str(tmp_path)])
    before = content(tmp_path)
    arguments = ["--predictions", str(tmp_path / "predictions.json"), *HUMAN[1:], "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="predictions.json is read and would be replaced"):
        evaluate_sevlm.main([*arguments, *OVERWRITE])
    assert content(tmp_path) == before


def test_a_sheet_that_may_have_ratings_is_not_replaced(tmp_path):
    evaluate_sevlm.main([*HUMAN, "--output_dir", str(tmp_path / "people")])
    answers = json.loads((tmp_path / "people" / "predictions.json").read_text())
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    arguments = ["--predictions", f"people={tmp_path / 'answers.json'}", "--paintings", "2", "--num_paintings", "60"]
    arguments += ["--output_dir", str(tmp_path / "study")]
    human_study.main(arguments)
    before = content(tmp_path / "study")
    for moved in ([], ["sheet.csv"], ["sheet.csv", "key.csv"], ["sheet.csv", "key.csv", "paintings.json"]):
        for name in moved:
            (tmp_path / "study" / name).unlink(missing_ok=True)
        left = content(tmp_path / "study")
        with pytest.raises(SystemExit, match="holds a study: .*move the whole folder away"):
            human_study.main([*arguments, "--seed", "1"])
        assert content(tmp_path / "study") == left
    # An interrupted study with the same paintings continues.
    (tmp_path / "study" / "paintings.json").write_bytes(before[Path("paintings.json")])
    human_study.main(arguments)
    assert content(tmp_path / "study") == before
