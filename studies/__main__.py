# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The paper's studies: train the variants, score them, test the differences, write a table and a plot.

    python -m studies ablation --seeds 3                                   # Fig. 5, on the embedded data
    python -m studies emotion_encoder|negatives|alpha --seeds 3            # Figs. 6, 7, 8
    python -m studies ablation --seeds 3 --judge JUDGE --annotations artemis.csv --images wikiart/ \
        --vad_lexicon NRC-VAD-Lexicon.txt --vision_model ... --text_model ...

Arguments that are none of `--help`'s go to `train.py`, the same for every variant. A run (a variant with a seed) that
has its `results.json` is not done again, so that a study goes on where it was stopped and grows when `--seeds` does; a
run that was stopped in the middle goes on from its newest checkpoint. `--part 1/2` and `--part 2/2` divide the runs
between two processes or machines with a common folder. Writes `table.md`, `table.json` and `plot.png`
(and `.svg`) into `OUTPUT_DIR/STUDY`.
"""

import argparse
import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

import evaluate_sevlm
import train
from processing.files import write_json, write_text
from processing.script_utils import DataArguments
from studies.summary import draw, markdown, summarise


# Study -> variant -> what it changes in train.py's arguments. Every variant is compared with the study's first one,
# which is the paper's choice.
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
    "alpha": {f"alpha = {value:g}": ["--contrastive_loss_weight", str(value)] for value in (2, 0.1, 0.5, 1, 4, 8)},
}


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # `--seed` is train.py's, and no short form of `--seeds`.
        allow_abbrev=False,
    )
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--seeds", type=int, default=3, help="runs of every variant")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these and the first")
    parser.add_argument("--judge", help="text-to-emotion checkpoint for EA")
    parser.add_argument("--split", default="test", help="that is scored")
    parser.add_argument("--do_sample", action="store_true", help="score nucleus samples instead of greedy decoding")
    parser.add_argument("--draws", type=int, default=2000, help="of the significance tests")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="do every Nth run only, from the Kth on")
    parser.add_argument("--keep_models", action="store_true", help="keep the weights of every run")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/studies"))
    args, train_arguments = parser.parse_known_args(argv)
    if args.seeds < 1:
        parser.error("--seeds is a number from 1.")
    part, _, parts = args.part.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        parser.error(f"--part {args.part}: write K/N, such as 1/2 and 2/2 for two machines.")
    args.part = int(part), int(parts)
    unknown = set(args.variants or ()) - set(STUDIES[args.study])
    if unknown:
        parser.error(f"no variant {sorted(unknown)}; this study has {', '.join(STUDIES[args.study])}.")
    return args, train_arguments


def data_arguments(arguments: list[str]) -> list[str]:
    """Those of train.py's arguments that say which data, and where its features lie: an evaluation needs the same."""
    names = {f"--{entry.name}" for entry in dataclasses.fields(DataArguments)} | {"--cache_features", "--cache_dtype"}
    chosen, wanted = [], False
    for argument in arguments:
        if argument.startswith("--"):
            wanted = argument.split("=")[0] in names
        if wanted:
            chosen.append(argument)
    return chosen


def slug(name: str) -> str:
    """A variant's folder: `no VAD head` -> `no-vad-head`."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def describe(variant: list[str], args: argparse.Namespace, train_arguments: list[str]) -> dict:
    chosen = {name: getattr(args, name) for name in ("split", "judge", "do_sample")}
    return {"train_arguments": train_arguments, "variant": variant} | chosen


def check_settings(folder: Path, variant: list[str], args: argparse.Namespace, train_arguments: list[str]) -> None:
    """A run that was begun otherwise is neither gone on with nor counted."""
    file, wanted = folder / "settings.json", describe(variant, args, train_arguments)
    if file.is_file() and json.loads(file.read_text()) != wanted:
        raise SystemExit(
            f"error: {folder} was made with other arguments (settings.json). Use another --output_dir, or remove it."
        )


def run(folder: Path, variant: list[str], seed: int, args: argparse.Namespace, train_arguments: list[str]) -> dict:
    """Train and score one variant with one seed; what is there already is read."""
    results, model = folder / "results.json", folder / "model"
    check_settings(folder, variant, args, train_arguments)
    if results.is_file():
        return json.loads(results.read_text())
    write_json(folder / "settings.json", describe(variant, args, train_arguments))
    resume = []
    if model.is_dir() and get_last_checkpoint(str(model)):
        resume = ["--resume_from_checkpoint", "true"]
    train.main([*train_arguments, *variant, *resume, "--seed", str(seed), "--output_dir", str(model)])
    data = data_arguments(train_arguments)
    more = ["--judge", args.judge] if args.judge else []
    more += ["--do_sample"] if args.do_sample else []
    more += ["--use_cpu"] if train.parse(train_arguments)[2].use_cpu else []
    figures = evaluate_sevlm.main([str(model), *data, *more, "--split", args.split, "--output_dir", str(folder)])
    if not args.keep_models:
        shutil.copy(model / "training_log.json", folder / "training_log.json")
        shutil.rmtree(model)
    return figures


def main(argv: list[str] | None = None) -> dict:
    args, train_arguments = parse(list(sys.argv[1:] if argv is None else argv))
    varied = {change for change in STUDIES[args.study].values() for change in change[::2]}
    clash = varied & {argument.split("=")[0] for argument in train_arguments}
    if clash:
        raise SystemExit(f"error: {', '.join(sorted(clash))} is what this study varies; leave it out.")
    variants = {
        name: change
        for name, change in STUDIES[args.study].items()
        if args.variants is None or name in args.variants or name == next(iter(STUDIES[args.study]))
    }
    folder = args.output_dir / args.study
    runs = {name: [folder / slug(name) / f"seed-{seed}" for seed in range(args.seeds)] for name in variants}
    # Seed by seed, so that a study that is stopped has every variant as often as possible.
    every = [(name, seed) for seed in range(args.seeds) for name in variants]
    part, parts = args.part
    for name, seed in every[part - 1 :: parts]:
        print(f"== {args.study}: {name}, seed {seed}", flush=True)
        run(runs[name][seed], variants[name], seed, args, train_arguments)
    missing = [f"{name}, seed {seed}" for name, seed in every if not (runs[name][seed] / "results.json").is_file()]
    if missing:
        print(f"{len(missing)} runs are left to the other parts; the table comes when all are done.")
        return {}
    for name, seed in every:
        check_settings(runs[name][seed], variants[name], args, train_arguments)
    content = summarise(runs, draws=args.draws)
    write_json(folder / "table.json", content)
    write_text(folder / "table.md", markdown(content))
    draw(content, args.study, folder / "plot")
    print(markdown(content))
    return content


if __name__ == "__main__":
    main()
