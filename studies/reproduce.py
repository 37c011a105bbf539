r"""Runs every command that makes the paper's tables and figures, and leaves them in a folder laid out as in the paper.

    python -m studies.reproduce --seeds 1 --num_paintings 240 --max_steps 100        # a rehearsal on the embedded data
    python -m studies.reproduce --annotations artemis_dataset_release_v0.csv --contrastive Contrastive.csv \
        --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt --baseline_epochs 15 --output_dir outputs/paper

All other arguments go to `train.py`, such as `--preset`, `--vision_model` and `--text_model`. With `--contrastive`,
the studies of ArtEmis v2 are run, too. Trains the judges, and all variants with all seeds; evaluates them and people;
writes table1.md to table3.md, table4/, figure1.png to figure10.png, and INDEX.md with the command of each file.
Models and evaluations are in runs/. Run it again to continue: a file is made again only if its command or an input has
changed. A command that ends with an error is reported in INDEX.md, and the others are run.
"""

import argparse
import json
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import evaluate_sevlm
import train
from evaluation import train_emotion_classifier
from evaluation.emotion_text_data import EmotionTextArguments
from processing.files import write_json, write_text
from processing.script_utils import DataArguments

from . import __main__ as study
from . import cost, figures, human_study, paper_table
from .summary import named_sources, slug


PROGRAMS = {
    "evaluate_sevlm.py": evaluate_sevlm.main,
    "-m evaluation.train_emotion_classifier": train_emotion_classifier.main,
    "-m studies": study.main,
    "-m studies.cost": cost.main,
    "-m studies.figures": figures.main,
    "-m studies.human_study": human_study.main,
    "-m studies.paper_table": paper_table.main,
}
TSNE_VARIANTS = ("no VAD features", "no VAD head", "no contrastive head", "full")
NOT_MADE = """\
- The rows M2, SAT, NLX-GPT2, LLaVA and GPT-4(V) are the paper's. `--predictions NAME=FILE` adds measured rows of such
  systems to Table 1, and their answers to the sheet of Table 4; `--other_models NAME=MODEL` adds rows of any
  image-text-to-text model to Table 2.
- GPT-4(V)'s answers (Table 4, Fig. 11) need that model; `--predictions` takes a file of answers to the test paintings.
- Ratings need raters: table4/ has the pictures and the sheet.
- Figs. 2, 3 and 4 are drawings of the method, without data.
"""


@dataclass
class Step:
    """A command, the file that it writes last, and the files of earlier steps that it reads."""

    output: Path
    about: str
    program: str
    arguments: list[str]
    needs: tuple[Path, ...] = ()

    @property
    def command(self) -> str:
        return f"python {self.program} {shlex.join(self.arguments)}"

    def is_done(self, made: dict[str, str]) -> bool:
        if not self.output.is_file() or made.get(str(self.output)) != self.command:
            return False
        age = self.output.stat().st_mtime_ns
        return all(path.is_file() and path.stat().st_mtime_ns <= age for path in self.needs)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    layout = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(prog="python -m studies.reproduce", **layout)
    add = parser.add_argument
    add("--annotations", help="ArtEmis v1 CSV file (default: the embedded data)")
    add("--contrastive", help="Contrastive.csv of ArtEmis v2 (default: v1 only)")
    add("--more_annotations", nargs="+", help="CSV files with more explanations for the judge")
    add("--judge", help="--model of evaluation.train_emotion_classifier (default: lstm with --preset authors)")
    add("--judge_epochs", help="epochs of the judge (default: those of its training)")
    add("--seeds", type=int, default=3, help="training runs per variant (default: 3)")
    add("--baseline_epochs", type=int, help="epochs of the baseline (the paper: 15; default: as the others)")
    add("--paintings", default="100", help="number of paintings, or a file of names, for Table 4 (default: 100)")
    add("--emotion", default="amusement", help="emotion in the lower half of Fig. 9 (default: amusement)")
    add("--predictions", nargs="+", default=[], help="NAME=FILE, answers of other systems to the v1 test paintings")
    add("--other_models", nargs="+", default=[], help="NAME=MODEL, image-text-to-text models for Table 2")
    add("--output_dir", type=Path, default=Path("outputs/paper"))
    args, train_arguments = parser.parse_known_args(argv)
    if any(word.startswith("--dataset") for word in train_arguments):
        parser.error("--dataset has no rows for the judge: give ArtEmis' CSV file (--annotations).")
    if args.contrastive and not args.annotations:
        parser.error("--contrastive needs --annotations, the v1 file.")
    if args.annotations and not any(word.startswith("--vad_lexicon") for word in train_arguments):
        parser.error("--annotations needs --vad_lexicon NRC-VAD-Lexicon.txt (the paper's).")
    return args, train_arguments


def spell_out(data_args: DataArguments, kind: type = DataArguments) -> list[str]:
    """Returns the arguments of the command line that give `kind` the values of `data_args`, except defaults."""
    words, default, known = [], DataArguments(), {entry.name for entry in fields(kind)}
    for entry in fields(DataArguments):
        value = getattr(data_args, entry.name)
        if entry.name in known and value is not None and value != getattr(default, entry.name):
            texts = [str(item) for item in value] if isinstance(value, list) else [str(value)]
            words += [f"--{entry.name}", *([text.lower() for text in texts] if isinstance(value, bool) else texts)]
    return words


def plan(args: argparse.Namespace, train_arguments: list[str]) -> list[Step]:
    steps = version_steps("v1", args, train_arguments)
    return steps + (version_steps("v2", args, train_arguments) if args.contrastive else [])


def version_steps(version: str, args: argparse.Namespace, train_arguments: list[str]) -> list[Step]:
    """Plans the steps of one version of ArtEmis. Fig. 8 and the second half of Fig. 5 belong to v2."""
    folder, runs, is_v1 = args.output_dir, args.output_dir / "runs" / version, version == "v1"
    files = {"v1": [args.annotations], "v2": [args.contrastive, args.annotations]}[version]
    training = train_arguments + (["--annotations", *files, "--version", version] if args.annotations else [])
    model_args, data_args, training_args = train.parse(training)
    data, on_cpu = spell_out(data_args), ["--use_cpu"] if training_args.use_cpu else []
    lexicon = ["--vad_lexicon", data_args.vad_lexicon] if data_args.vad_lexicon else []
    judge, people, replace = runs / "judge", runs / "people", "--overwrite_output_dir"  # a step that is made again
    trained_on = spell_out(data_args, EmotionTextArguments) + (["--use_cpu", "true"] if on_cpu else [])
    judge_model = args.judge or ("lstm" if model_args.preset == "authors" else None)
    trained_on += ["--model", judge_model] if judge_model else []
    trained_on += ["--num_train_epochs", args.judge_epochs] if args.judge_epochs else []
    trained_on += ["--more_annotations", *args.more_annotations] if args.more_annotations else []

    def variant(name: str, *parts: str) -> str:
        return str(Path(runs, "ablation", slug(name), *parts))

    def place(name: str, second: str | None = None) -> Path:
        """The file in the folder: of v1 as in the paper, of v2 with its own name."""
        path = folder / name
        return path if is_v1 else folder / (second or f"{path.stem}_v2{path.suffix}")

    steps = [
        Step(
            judge / "judge.json",
            f"Judge of EA, {version}",
            "-m evaluation.train_emotion_classifier",
            [*trained_on, "--output_dir", str(judge), replace],
        )
    ]
    studies = ["ablation", "emotion_encoder", "negatives"] if is_v1 else ["ablation"]
    # The paper tunes alpha on v2.
    studies += ["alpha"] if not (is_v1 and args.contrastive) else []
    tables = {name: runs / name / "table.json" for name in studies}
    for name, table in tables.items():
        own = ["--keep_models"] if name == "ablation" else []
        own += ["--baseline_epochs", str(args.baseline_epochs)] if name == "ablation" and args.baseline_epochs else []
        own += ["--seeds", str(args.seeds), "--judge", str(judge), "--output_dir", str(runs)]
        steps.append(
            Step(table, f"Study {name}, {version}", "-m studies", [name, *own, *training], (steps[0].output,))
        )
    judged = ["--judge", str(judge), *on_cpu]
    steps.append(
        Step(
            people / "results.json",
            f"One annotator against the others, {version}",
            "evaluate_sevlm.py",
            ["--human", *data, *judged, "--novelty", "false", "--output_dir", str(people), replace],
            (steps[0].output,),
        )
    )
    ours, baseline = f"SEVLM={variant('full')}", f"Baseline={variant('baseline')}"
    measured = {"1": [baseline, ours, f"one annotator={people}"], "2": [ours]}
    asked = [("1", name, ["--predictions", file]) for name, file in named_sources(args.predictions).items() if is_v1]
    asked += [("2", name, [model]) for name, model in named_sources(args.other_models).items()]
    others = []
    for number, name, source in asked:
        output = runs / slug(name)
        arguments = [*source, *data, *judged, "--name", name, "--output_dir", str(output), replace]
        others.append(Step(output / "results.json", f"{name}, {version}", "evaluate_sevlm.py", arguments))
        measured[number].append(f"{name}={output}")
    steps += others
    read = (tables["ablation"], people / "results.json", *(step.output for step in others))
    for number, systems in measured.items():
        output = place(f"table{number}.md")
        arguments = [*systems, "--version", version, "--table", number, "--output", str(output)]
        steps.append(Step(output, f"Table {number}, {version}", "-m studies.paper_table", arguments, read))

    def draw(output: Path, about: str, arguments: list[str], needs: Path = tables["ablation"]) -> None:
        arguments = [*arguments, "--output", str(output)]
        steps.append(Step(output, f"{about}, {version}", "-m studies.figures", arguments, (needs,)))

    answers = [f"{name}={variant(name, 'seed-0', 'predictions.json')}" for name in ("full", "baseline")]
    draw(place("figure1.png"), "Fig. 1", ["examples", *answers, "--successes", "3", "--failures", "0", *data])
    failures = ["examples", answers[0], "--successes", "0", "--failures", "3", *data]
    draw(place("figure10.png"), "Fig. 10", failures)
    for number, name in (("5a", "ablation"), ("6", "emotion_encoder"), ("7", "negatives"), ("8", "alpha")):
        if name in tables:
            second = {"5a": "figure5b.png", "8": "figure8.png"}.get(number)
            draw(
                place(f"figure{number}.png", second),
                f"Fig. {number[0]}",
                ["ablation", str(tables[name])],
                tables[name],
            )
    if is_v1:
        models = [f"{name}={variant(name, 'seed-0', 'model')}" for name in TSNE_VARIANTS]
        draw(folder / "figure9.png", "Fig. 9", ["tsne", *models, "--emotion", args.emotion, *on_cpu, *data])
        full, plain = (variant(name, "seed-0", "model") for name in ("full", "baseline"))
        arguments = [full, "--baseline", plain, *lexicon, *on_cpu, "--output", str(folder / "table3.md")]
        steps.append(Step(folder / "table3.md", "Table 3", "-m studies.cost", arguments, (tables["ablation"],)))
        arguments = ["--models", f"SEVLM={full}", f"Baseline={plain}", "--paintings", args.paintings, *judged, *data]
        arguments += ["--predictions", *args.predictions] if args.predictions else []
        arguments += ["--output_dir", str(folder / "table4")]
        about = "Pictures and sheet for raters of Table 4"
        steps.append(Step(folder / "table4" / "sheet.csv", about, "-m studies.human_study", arguments, read))
        systems = [f"SEVLM={folder / 'table4' / 'sevlm'}", f"Baseline={folder / 'table4' / 'baseline'}"]
        arguments = [*systems, "--table", "4", "--output", str(folder / "table4" / "table4.md")]
        needs = (folder / "table4" / "sheet.csv",)
        steps.append(Step(folder / "table4" / "table4.md", "Table 4", "-m studies.paper_table", arguments, needs))
    return steps


def index(steps: list[Step], failed: dict[Path, str], folder: Path, has_v2: bool) -> str:
    """Returns INDEX.md: every file with its command, in order, and what was left out and why."""
    lines = ["# Tables and figures", "", "Each file with the command that makes it, in the order of execution.", ""]
    for step in steps:
        if step.output not in failed:
            lines += [f"**{step.output.relative_to(folder)}** ({step.about})", "", "```sh", step.command, "```", ""]
    lines += ["# Left out", ""]
    lines += [f"- {step.output.relative_to(folder)}: {failed[step.output]}" for step in steps if step.output in failed]
    if not has_v2:
        lines.append("- ArtEmis v2 (figure5b.png and the v2 tables): no `--contrastive`. figure8.png is of v1.")
    return "\n".join([*lines, NOT_MADE])


def main(argv: list[str] | None = None) -> dict[Path, str]:
    """Returns the steps that failed, and exits with an error if there are any."""
    args, train_arguments = parse(list(sys.argv[1:] if argv is None else argv))
    steps, record, failed = plan(args, train_arguments), args.output_dir / "runs" / "made.json", {}
    made = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for number, step in enumerate(steps, 1):
        print(f"== {number}/{len(steps)} {step.about}: {step.output}", flush=True)
        if step.is_done(made):
            continue
        try:
            PROGRAMS[step.program](step.arguments)
        except SystemExit as stopped:
            if stopped.code:
                failed[step.output] = str(stopped.code)
                print(stopped.code, flush=True)
                continue
        made[str(step.output)] = step.command
        write_json(record, made)
    write_text(args.output_dir / "INDEX.md", index(steps, failed, args.output_dir, bool(args.contrastive)))
    print(args.output_dir / "INDEX.md")
    if failed:
        raise SystemExit(f"error: {len(failed)} of {len(steps)} steps failed; INDEX.md says which, and why.")
    return made


if __name__ == "__main__":
    main()
