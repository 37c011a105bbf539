"""Tables 1 to 4: evaluations next to the paper's rows, what a model costs, and a study with people."""

import json

import pandas as pd
import pytest
import torch

from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from processing.toy_artemis import load_toy_artemis
from studies import cost, human_study, paper_table
from tests.helpers.studies import made_up_runs


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_1_has_the_papers_rows_and_the_mean_and_deviation_of_ours(tmp_path, capsys):
    made_up_runs(tmp_path)
    (tmp_path / "full").mkdir()
    for seed in range(2):
        (tmp_path / f"0-{seed}").rename(tmp_path / "full" / f"seed-{seed}")
    one = json.loads((tmp_path / "full" / "seed-0" / "results.json").read_text()) | {"num_paintings": 7}
    one |= {"standard_deviation": {"accuracy": 0.01}, "seeds": [0, 1, 2]}
    one |= {"arguments": {"model": "m", "do_sample": True, "judge": "my-judge"}, "judge_accuracy": 0.651}
    (tmp_path / "one.json").write_text(json.dumps(one))
    results = [f"ours={tmp_path / 'full'}", f"a = b={tmp_path / 'one.json'}"]
    paper_table.main([*results, "--table", "1", "--output", str(tmp_path / "table1.md")])
    lines = (tmp_path / "table1.md").read_text().splitlines()
    assert lines == capsys.readouterr().out.splitlines()
    table = {cells(line)[0]: cells(line)[1:] for line in lines if line.startswith("|")}
    assert list(table)[2:] == [f"{name} (paper)" for name in paper_table.TABLES["1"]] + ["ours", "a = b"]
    assert table["SEVLM (paper)"][:2] == ["65.6", "62.1"] and table["ours"][:2] == ["55.0 ± 7.1", "-"]
    assert table["a = b"][0] == "50.0 ± 1.0"
    assert "- a = b: 7 paintings, 3 run(s), nucleus samples, judge my-judge (accuracy 65.1)" in lines
    assert lines[-1].startswith("- Not all systems")
    assert json.loads((tmp_path / "table1.json").read_text())["ours"]["runs"] == 2
    with pytest.raises(SystemExit, match="nowhere: no results.json"):
        paper_table.main([f"ours={tmp_path / 'nowhere'}"])


def test_the_full_size_model_has_the_papers_parameters_and_multiply_adds():
    with torch.device("meta"):
        model = SEVLMForConditionalGeneration(SEVLMConfig(prompt_token_ids=[50256, 262, 9942, 318])).eval()
        multiply_adds = cost.count_flops(model, torch.zeros(1, 3, 224, 224)) / 2
    assert multiply_adds == pytest.approx(19.33e9, rel=2e-3)
    counts = cost.count_parameters(model, trains_tower=False)
    assert round(counts["parameters_with_projection"] / 1e6, 2) == 186.45
    assert counts["parameters"] - counts["trainable_parameters"] == model.vision_tower.num_parameters()


def test_the_table_of_costs_has_times_and_the_hours_of_the_papers_epochs(checkpoint, tmp_path, capsys):
    model = tmp_path / "model"
    model.symlink_to(checkpoint)
    (tmp_path / "run").mkdir()
    for file in model.iterdir():
        (tmp_path / "run" / file.name).symlink_to(file)
    log = [{"loss": 1.0, "epoch": 1.0}, {"train_runtime": 7200.0, "epoch": 4.0}]
    (tmp_path / "run" / "training_log.json").write_text(json.dumps(log))
    small = ["--use_cpu", "--repeats", "1", "--batch_size", "2", "--output", str(tmp_path / "table3.md")]
    found = cost.main([str(tmp_path / "run"), "--baseline", str(model), *small])
    assert found["SEVLM"]["step_seconds"] > 0 < found["SEVLM"]["image_seconds"]
    table = {cells(line)[0]: cells(line) for line in (tmp_path / "table3.md").read_text().splitlines()}
    assert table["SEVLM"][-3:] == ["1800.0", "17.50", "35"] and table["Baseline"][-3:] == ["-", "-", "15"]
    assert json.loads((tmp_path / "table3.json").read_text())["device"].startswith("CPU")


def test_a_resumed_run_has_no_hours_because_its_log_has_only_the_last_part(tmp_path):
    (tmp_path / "training_log.json").write_text(json.dumps([{"train_runtime": 60.0, "epoch": 4.0}]))
    for resumed, wanted in ((False, 15.0), (True, None)):
        (tmp_path / "training.json").write_text(json.dumps({"resumed": resumed}))
        assert cost.read_epoch_seconds(tmp_path) == wanted


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Predictions of two systems for the embedded test paintings, and for a few of them."""
    folder, paintings = tmp_path_factory.mktemp("answers"), load_toy_artemis(60)["test"]["painting"][:]
    for name, emotion, count in (("ours", "awe", None), ("other", "fear", 3)):
        rows = [{"painting": f"{p}.jpg", "emotion": emotion, "explanation": f"{name} {p}"} for p in paintings[:count]]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "list.json").write_text(json.dumps([f"{name}.jpg" for name in paintings[:3]]))
    return folder


def test_a_study_with_people_hides_the_systems_and_reads_the_ratings(answers, tmp_path, capsys):
    files = ["--predictions", f"ours={answers / 'ours.json'}", f"other={answers / 'other.json'}"]
    data = ["--num_paintings", "60", "--output_dir", str(tmp_path)]
    human_study.main([*files, "--paintings", str(answers / "list.json"), "--seed", "1", *data])
    sheet, key = pd.read_csv(tmp_path / "sheet.csv"), pd.read_csv(tmp_path / "key.csv")
    paintings = json.loads((tmp_path / "paintings.json").read_text())
    assert paintings == [name.removesuffix(".jpg") for name in json.loads((answers / "list.json").read_text())]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["001.jpg", "002.jpg", "003.jpg"]
    assert len(sheet) == 6 and "system" not in sheet and sheet[human_study.RATINGS].isna().all(axis=None)
    # The key tells which row is which: every sentence here begins with its system.
    for row, secret in zip(sheet.itertuples(), key.itertuples(), strict=True):
        assert (row.picture, row.answer) == (secret.picture, secret.answer)
        assert row.explanation == f"{secret.system} {secret.painting}"
    assert len(set(key[key["answer"] == "A"]["system"])) == 2, "the order is drawn for each picture"
    for rater, more in (("anna", 0), ("ben", 1)):
        rated = sheet.assign(emotion_fits=[4 if s == "ours" else 2 for s in key["system"]], explanation_fits=range(6))
        rated["explanation_fits"] = rated["explanation_fits"] // 2 + 1 + more
        rated.sample(frac=1, random_state=more).to_csv(tmp_path / f"{rater}.csv", index=False)
    capsys.readouterr()
    human_study.main(["--rate", str(tmp_path / "anna.csv"), str(tmp_path / "ben.csv"), "--output_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "ours" in printed and "4.0" in printed and "2.5" in printed
    assert "agreement, explanation_fits: 1.00" in printed
    with pytest.raises(SystemExit, match="sheet.csv: needs every row of the sheet once, with ratings from 1 to 5"):
        human_study.main(["--rate", str(tmp_path / "sheet.csv"), "--output_dir", str(tmp_path)])


def test_a_model_in_a_study_with_people_is_evaluated_on_the_drawn_paintings(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.scoring._caption_figures", lambda *_: {})  # they take ten seconds
    data = ["--num_paintings", "60", "--use_cpu", "--output_dir", str(tmp_path)]
    human_study.main(["--models", f"SEVLM={checkpoint}", "--paintings", "2", *data])
    results = json.loads((tmp_path / "sevlm" / "results.json").read_text())
    assert results["num_paintings"] == 2 and len(pd.read_csv(tmp_path / "sheet.csv")) == 2
    with pytest.raises(SystemExit, match="--paintings 200: the split has 5 paintings"):
        human_study.main(["--models", f"SEVLM={checkpoint}", "--paintings", "200", *data])
