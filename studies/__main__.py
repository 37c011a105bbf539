r"""The paper's studies: trains the variants, scores them, tests the differences, writes a table and a plot.

    python -m studies ablation --seeds 3                                   # Fig. 5, on the embedded data
    python -m studies emotion_encoder|negatives|alpha --seeds 3            # Figs. 6, 7, 8
    python -m studies protocol --seeds 3 --evaluation_preset paper ...     # our recipe and the authors' protocol
    python -m studies ablation --seeds 3 --judge JUDGE --annotations artemis.csv --images wikiart/ \
        --vad_lexicon NRC-VAD-Lexicon.txt --vision_model ... --text_model ...

All other arguments go to `train.py`. A run is a variant with a seed. A run with a `results.json` is not repeated, and
an interrupted run continues from its newest checkpoint. A run that another study of the output folder has finished
with the same arguments (the full system is in several studies) is copied without its weights. `--part 1/2` and
`--part 2/2` divide the runs between two machines with a common folder. Writes `table.md`, `table.json`, `plot.png` and
`plot.svg` to `OUTPUT_DIR/STUDY`.
"""

import argparse
import json
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import evaluate_sevlm
import train
from modeling_sevlm.training_folder import check_free, checkpoints, defect
from processing.files import write_json, write_text
from processing.script_utils import DataArguments, errors_as_exit

from .figures import ablation_figure, save_figure
from .summary import markdown, slug, summarise


# Study -> variant -> arguments of train.py. The first variant is the paper's choice; the others are compared with it.
STUDIES = {
    "ablation": {
        "full": [],
        "no VAD features": ["--use_vad_features", "false"],
        "no VAD head": ["--use_vad_head", "false"],
        "no contrastive head": ["--contrastive_negatives", "none"],
        "baseline": ["--use_vad_features", "false", "--use_vad_head", "false", "--contrastive_negatives", "none"],
    },
    "emotion_encoder": {
        "with emotion encoder": [],
        "no emotion encoder": ["--use_emotion_encoder", "false"],
        "bidirectional encoder": ["--emotion_encoder_attention", "bidirectional"],
    },
    "negatives": {
        "both negatives": [],
        "other emotion only": ["--contrastive_negatives", "emotion"],
        "other image only": ["--contrastive_negatives", "image"],
        "no negatives": ["--contrastive_negatives", "none"],
    },
    "protocol": {"paper": ["--preset", "paper"], "authors": ["--preset", "authors"]},
    "alpha": {f"alpha = {value:g}": ["--contrastive_loss_weight", str(value)] for value in (2, 0.1, 0.5, 1, 4, 8)},
}


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    # `--seed` belongs to train.py; it must not be read as a short form of `--seeds`.
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__, **style)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--seeds", type=int, default=3, help="runs per variant (default: 3)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="variants to run with the first (default: all)")
    parser.add_argument("--judge", help="text-to-emotion checkpoint for EA")
    parser.add_argument("--split", help="split to score (default: test; for alpha, which the paper tunes, validation)")
    parser.add_argument(
        "--baseline_epochs", type=int, help="epochs of the baseline (the paper: 15; default: as others)"
    )
    parser.add_argument(
        "--evaluation_preset",
        choices=["paper", "authors"],
        help="score on raw texts (paper) or on the authors' (default: as each variant was trained)",
    )
    parser.add_argument("--do_sample", action="store_true", help="score nucleus samples instead of greedy decoding")
    parser.add_argument("--draws", type=int, default=2000, help="draws of the significance tests (default: 2000)")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="only every Nth run, from the Kth on")
    parser.add_argument("--keep_models", action="store_true", help="keep the weights of every run")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/studies"))
    args, train_arguments = parser.parse_known_args(argv)
    part, _, parts = args.part.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        parser.error(f"--part {args.part}: write K/N, such as 1/2 and 2/2 for two machines.")
    args.part = int(part), int(parts)
    args.split = args.split or ("validation" if args.study == "alpha" else "test")
    if args.baseline_epochs and "baseline" not in STUDIES[args.study]:
        parser.error(f"--baseline_epochs: the study {args.study} has no baseline.")
    unknown = set(args.variants or ()) - set(STUDIES[args.study])
    if unknown:
        parser.error(f"no variant {sorted(unknown)}; this study has {', '.join(STUDIES[args.study])}.")
    return args, train_arguments


def data_arguments(arguments: list[str]) -> list[str]:
    """Returns the arguments of train.py that an evaluation also needs: data, feature cache, the preset "authors"."""
    names = {f"--{entry.name}" for entry in fields(DataArguments)} | {"--cache_features", "--cache_dtype"}
    chosen, name = [], None
    for argument in arguments:
        name = argument.split("=")[0] if argument.startswith("--") else name
        chosen += [argument] if name in names else []
    authors = "--preset=authors" in arguments or ("--preset", "authors") in zip(arguments, arguments[1:], strict=False)
    return chosen + (["--preset", "authors"] if authors else [])


def check_settings(folder: Path, variant: list[str], args: argparse.Namespace, train_arguments: list[str]) -> dict:
    """Returns the settings of a run; refuses a folder that was made with other settings."""
    settings = {"train_arguments": train_arguments, "variant": variant}
    settings |= {name: vars(args)[name] for name in ("split", "judge", "do_sample", "evaluation_preset")}
    file = folder / "settings.json"
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != settings:
        raise SystemExit(f"error: {folder} was made with other arguments. Use another --output_dir, or remove it.")
    return settings


def run(folder: Path, variant: list[str], seed: int, args: argparse.Namespace, train_arguments: list[str]) -> None:
    """Trains and scores one variant with one seed, unless its results exist."""
    settings = check_settings(folder, variant, args, train_arguments)
    if (folder / "results.json").is_file():
        return
    for other in sorted(args.output_dir.glob(f"*/*/{folder.name}/settings.json")):
        if (other.parent / "results.json").is_file() and json.loads(other.read_text(encoding="utf-8")) == settings:
            print(f"Copied from {other.parent}.", flush=True)
            ignore = shutil.ignore_patterns("model", "results.json")
            shutil.copytree(other.parent, folder, dirs_exist_ok=True, ignore=ignore)
            shutil.copy(other.parent / "results.json", folder)  # last, because it marks a finished run
            return
    is_ours, model = (folder / "settings.json").is_file(), folder / "model"
    if not is_ours:
        with errors_as_exit():
            check_free(model)
            evaluate_sevlm.check_results(folder, overwrite=False)
    write_json(folder / "settings.json", settings)
    resume = ["--resume_from_checkpoint", "true"] if any(defect(path) is None for path in checkpoints(model)) else []
    replace = ["--overwrite_output_dir"] if is_ours else []
    train.main([*train_arguments, *variant, *resume, *replace, "--seed", str(seed), "--output_dir", str(model)])
    more = ["--split", args.split, "--output_dir", str(folder), *replace]
    more += ["--judge", args.judge] if args.judge else []
    more += ["--do_sample"] if args.do_sample else []
    more += ["--preset", args.evaluation_preset] if args.evaluation_preset else []
    more += ["--use_cpu"] if train.parse(train_arguments)[2].use_cpu else []
    evaluate_sevlm.main([str(model), *data_arguments(train_arguments), *more])
    shutil.copy(model / "training_log.json", folder / "training_log.json")
    if not args.keep_models:
        shutil.rmtree(model)


def main(argv: list[str] | None = None) -> dict:
    args, train_arguments = parse(list(sys.argv[1:] if argv is None else argv))
    study = dict(STUDIES[args.study])
    if args.study == "emotion_encoder" and train.parse(train_arguments)[0].preset == "authors":
        del study["bidirectional encoder"]  # the preset's encoder is bidirectional already
    first = next(iter(study))
    varied = {argument for change in study.values() for argument in change[::2]}
    if args.baseline_epochs:
        study["baseline"] = [*study["baseline"], "--num_train_epochs", str(args.baseline_epochs)]
    clash = varied & {argument.split("=")[0] for argument in train_arguments}
    if clash:
        raise SystemExit(f"error: this study varies {', '.join(sorted(clash))}: leave it out.")
    folder, runs = args.output_dir / args.study, {}
    for name in study:
        if name == first or name in (args.variants or study):
            runs[name] = [folder / slug(name) / f"seed-{seed}" for seed in range(args.seeds)]
    # Seed by seed, so that an interrupted study has all variants equally often.
    every = [(runs[name][seed], name, seed) for seed in range(args.seeds) for name in runs]
    part, parts = args.part
    for run_folder, name, seed in every[part - 1 :: parts]:
        print(f"== {args.study}: {name}, seed {seed}", flush=True)
        run(run_folder, study[name], seed, args, train_arguments)
    missing = sum(not (run_folder / "results.json").is_file() for run_folder, _, _ in every)
    if missing:
        print(f"The other parts have {missing} runs left. The table is written when all are done.")
        return {}
    for run_folder, name, _ in every:
        check_settings(run_folder, study[name], args, train_arguments)
    content = summarise(runs, draws=args.draws)
    write_json(folder / "table.json", content)
    write_text(folder / "table.md", markdown(content))
    save_figure(ablation_figure(content, args.study.replace("_", " ")), folder / "plot")
    print(markdown(content))
    return content


if __name__ == "__main__":
    main()
