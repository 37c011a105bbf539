"""All tables and figures by one command: its plan, what it makes again, what it leaves out, and a small whole run."""

import contextlib
import json
import os
import re

import pytest

import studies.__main__ as study
from studies import reproduce
from tests.helpers.training import QUIET_RUN, WITHOUT_EVALUATION, write_artemis


REAL = "--annotations a.csv --images wikiart/ --vad_lexicon words.txt --preset paper --baseline_epochs 15".split()


def planned(*arguments: str) -> dict[str, reproduce.Step]:
    steps = reproduce.plan(*reproduce.parse([*arguments, "--output_dir", "out", "--use_cpu", "true"]))
    names = [str(step.output.relative_to("out")) for step in steps]
    assert len(set(names)) == len(names), "no two commands write one file"
    return dict(zip(names, steps, strict=True))


def test_the_plan_has_the_papers_tables_and_figures_of_both_versions():
    steps = planned(
        *REAL, "--contrastive", "c.csv", "--predictions", "SAT=sat.json", "--other_models", "LLaVA=org/llava"
    )
    files = {name for name in steps if not name.startswith("runs/")}
    v1 = {"table1.md", "table2.md", "table3.md", "table4/sheet.csv", "table4/table4.md"}
    v1 |= {f"figure{name}.png" for name in ("1", "5a", "6", "7", "9", "10")}
    v2 = {"table1_v2.md", "table2_v2.md", "figure1_v2.png", "figure5b.png", "figure8.png", "figure10_v2.png"}
    assert files == v1 | v2
    assert "runs/v1/alpha/table.json" not in steps, "the paper tunes alpha on v2"
    assert "--annotations c.csv a.csv --version v2" in steps["runs/v2/alpha/table.json"].command
    assert "SAT=out/runs/v1/sat" in steps["table1.md"].command and "sat" not in steps["table1_v2.md"].command
    assert "LLaVA=out/runs/v2/llava" in steps["table2_v2.md"].command
    assert "--baseline_epochs 15" in steps["runs/v1/ablation/table.json"].command


def test_the_authors_protocol_has_their_judge_on_their_text():
    steps = planned(*REAL, "--preset", "authors")
    judge = steps["runs/v1/judge/judge.json"].command
    assert "--model lstm" in judge and "--clean_text true" in judge
    assert "--model" not in planned(*REAL)["runs/v1/judge/judge.json"].command


def test_every_command_that_reads_the_data_reads_it_as_the_training_does():
    steps = planned(*REAL, "--min_tokens", "5", "--drop_unknown_emotions", "true", "--labels", "awe", "something else")
    for name in ("figure1.png", "figure9.png", "table4/sheet.csv", "runs/v1/people/results.json"):
        assert "--labels awe 'something else' --drop_unknown_emotions true --min_tokens 5" in steps[name].command
        assert "--vad_lexicon words.txt" in steps[name].command
    judge = steps["runs/v1/judge/judge.json"].command
    assert "--min_tokens 5" in judge and "--vad_lexicon" not in judge, "the judge reads no VAD"


def test_only_missing_changed_and_outdated_files_are_made_again_and_errors_are_listed(tmp_path, monkeypatch):
    made = []

    def program(name: str):
        def run(arguments: list[str]) -> None:
            step = next(step for step in steps if step.arguments == arguments)
            made.append(step.output.name)
            if name == "-m studies.cost":
                raise SystemExit("error: no device")
            step.output.parent.mkdir(parents=True, exist_ok=True)
            step.output.write_text("{}")

        return run

    monkeypatch.setattr(reproduce, "PROGRAMS", {name: program(name) for name in reproduce.PROGRAMS})
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    steps = reproduce.plan(*reproduce.parse(arguments))
    with pytest.raises(SystemExit, match=f"1 of {len(steps)} steps failed"):
        reproduce.main(arguments)
    index = (tmp_path / "INDEX.md").read_text()
    assert "- table3.md: error: no device" in index and "Figs. 2, 3 and 4" in index and "no `--contrastive`" in index
    assert all(step.command in index for step in steps if step.output.name != "table3.md")
    assert len(made) == len(steps)
    made.clear()
    table = tmp_path / "runs" / "v1" / "negatives" / "table.json"
    os.utime(table, (table.stat().st_atime + 99, table.stat().st_mtime + 99))
    arguments += ["--emotion", "awe"]
    steps = reproduce.plan(*reproduce.parse(arguments))
    with pytest.raises(SystemExit):
        reproduce.main(arguments)
    assert made == ["figure7.png", "figure9.png", "table3.md"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--contrastive", "c.csv"], "--contrastive needs --annotations"),
        (["--annotations", "a.csv"], "--vad_lexicon"),
        (["--dataset", "user/data"], "--dataset has no rows for the judge"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(arguments, problem, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(arguments)
    assert problem in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_run_of_both_versions_leaves_all_tables_and_figures(tmp_path, monkeypatch):
    """Two variants in each study but the ablation. A model of a few steps may answer nothing right (Fig. 1), or name
    the emotion of Fig. 9 too rarely; every other file must be made."""
    short = {name: dict(list(variants.items())[:2]) for name, variants in study.STUDIES.items() if name != "ablation"}
    monkeypatch.setattr(study, "STUDIES", study.STUDIES | short)
    rows = [
        ("Cubism", f"p{i}", emotion, f"the shapes number {i} feel {k} to me because of it", 3)
        for i in range(60)
        for k, emotion in enumerate(("awe", "awe", "fear"))
    ]
    data = write_artemis(tmp_path / "data", rows)
    header = "art_style,painting,emotion,utterance,repetition,anchor_painting"
    write_artemis(tmp_path / "new", [(*row[:2], "anger", *row[3:], "x") for row in rows[::3]], header)
    run = [*data, "--contrastive", str(tmp_path / "new" / "artemis.csv"), "--vad_lexicon", "embedded", "--seeds", "1"]
    run += ["--preset", "tiny", "--judge", "tiny", "--judge_epochs", "1", "--paintings", "3", "--emotion", "awe"]
    run += [*QUIET_RUN, *WITHOUT_EVALUATION, "--save_strategy", "no", "--max_steps", "8", "--generation_samples", "0"]
    folder = tmp_path / "paper"
    with contextlib.suppress(SystemExit):
        reproduce.main([*run, "--output_dir", str(folder)])
    index = (folder / "INDEX.md").read_text()
    left_out = set(re.findall(r"^- (\S+): ", index, re.MULTILINE))
    assert left_out <= {"figure1.png", "figure1_v2.png", "figure9.png"}, index
    expected = {"table1.md", "table1_v2.md", "table2.md", "table2_v2.md", "table3.md", "table4", "figure5a.png"}
    expected |= {f"figure{name}.png" for name in ("1", "1_v2", "5b", "6", "7", "8", "9", "10", "10_v2")} - left_out
    assert expected <= {path.name for path in folder.iterdir()}
    table = (folder / "table1.md").read_text()
    assert "SEVLM (paper)" in table and "| SEVLM |" in table and "| one annotator |" in table
    assert json.loads((folder / "table4" / "table4.json").read_text())["SEVLM"]["figures"]["num_paintings"] == 3
