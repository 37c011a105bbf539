r"""Prepares a comparison of systems by people on some test paintings (Table 4), and reads the filled sheets.

    python -m studies.human_study --models SEVLM=outputs/sevlm-artemis --predictions "GPT-4(V)=gpt4v.json" \
        --paintings 100 --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --output_dir outputs/table4
    python -m studies.human_study --rate outputs/table4/anna.csv outputs/table4/ben.csv --output_dir outputs/table4

`--paintings` is a number, drawn with the seed, or a file, such as the paper's random100_image_names_forGPT4-V.json. A
model is evaluated on these paintings, with results in `OUTPUT_DIR/NAME`. Writes to the output folder:

    paintings.json   names of the paintings, for evaluate_sevlm.py --paintings
    pictures/        the pictures, numbered, at most 768 pixels
    sheet.csv        a row per picture and system, in random order, with empty columns for ratings from 1 to 5
    key.csv          which row is which system; do not give it to the raters

A rater fills in a copy of the sheet. `--rate` prints each system's mean ratings, and the raters' agreement (mean of
Spearman's rank correlation over pairs of raters). Other arguments name the data as for evaluate_sevlm.py.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.stats import spearmanr
from transformers import HfArgumentParser

import evaluate_sevlm
from evaluation.predictions_file import read_painting_list, read_predictions
from processing.files import atomic_write, write_json
from processing.script_utils import DataArguments, errors_as_exit, load_data, parse_arguments

from .summary import named_sources, slug


RATINGS = ["emotion_fits", "explanation_fits"]
PICTURE_SIZE = 768


def choose_paintings(dataset: Dataset, wanted: str, seed: int) -> Dataset:
    """Returns the paintings that a file lists, or a number of them in random order."""
    if not wanted.isdecimal():
        return dataset.select(read_painting_list(wanted, dataset["painting"][:]))
    if not 0 < int(wanted) <= len(dataset):
        raise ValueError(f"--paintings {wanted}: the split has {len(dataset)} paintings.")
    return dataset.shuffle(seed=seed).select(range(int(wanted)))


def make_sheet(systems: dict[str, list[dict]], seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the sheet for the raters, and the key with the system of each of its rows. The order of the systems is
    drawn for each picture."""
    order, rows, names, key = np.random.default_rng(seed), [], list(systems), []
    for number, answers in enumerate(zip(*systems.values(), strict=True), 1):
        for letter, drawn in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", order.permutation(len(names)).tolist(), strict=False):
            place, answer = {"picture": f"{number:03d}.jpg", "answer": letter}, answers[drawn]
            said = {"emotion": answer.get("emotion") or "", "explanation": answer["explanation"]}
            rows.append(place | said | dict.fromkeys(RATINGS, ""))
            key.append(place | {"painting": answer["painting"], "system": names[drawn]})
    return pd.DataFrame(rows), pd.DataFrame(key)


def rate(sheets: list[Path], key: Path) -> pd.DataFrame:
    """Returns each system's mean ratings over pictures and raters, and prints them and the agreement."""
    systems = pd.read_csv(key, dtype={"answer": str}).set_index(["picture", "answer"])["system"]
    read = {sheet: pd.read_csv(sheet).set_index(["picture", "answer"])[RATINGS] for sheet in sheets}
    for sheet, ratings in read.items():
        if set(ratings.index) != set(systems.index) or not ratings.isin([1, 2, 3, 4, 5]).all(axis=None):
            raise ValueError(f"{sheet}: needs every row of the sheet once, with ratings from 1 to 5.")
    means = pd.concat(read.values()).join(systems).groupby("system")[RATINGS].mean()
    print(means.round(2).to_string())
    for name in RATINGS if len(read) > 1 else ():
        pairs = combinations((ratings.loc[systems.index, name] for ratings in read.values()), 2)
        print(f"agreement, {name}: {np.mean([spearmanr(*pair).statistic for pair in pairs]):.2f}")
    return means


def parse(argv: list[str]) -> tuple[argparse.Namespace, DataArguments, list[str]]:
    layout = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m studies.human_study", allow_abbrev=False, **layout)
    parser.add_argument(
        "--models", nargs="+", default=[], help="NAME=MODEL, folder or Hub name of a SEVLM or another model"
    )
    parser.add_argument("--predictions", nargs="+", default=[], help="NAME=FILE of other systems")
    parser.add_argument("--paintings", default="100", help="number of paintings, or a file of names (default: 100)")
    parser.add_argument("--split", default="test", help="split of the paintings (default: test)")
    parser.add_argument("--seed", type=int, default=0, help="seed of paintings and order (default: 0)")
    parser.add_argument("--judge", help="judge for EA of the models, as for evaluate_sevlm.py")
    parser.add_argument("--use_cpu", action="store_true", help="run on the CPU even if there is a GPU")
    parser.add_argument("--rate", nargs="+", type=Path, metavar="SHEET", help="filled sheets to read")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/human-study"))
    args, rest = parser.parse_known_args(argv)
    if not args.rate and not args.models + args.predictions:
        parser.error("name a system: --models NAME=MODEL, or --predictions NAME=FILE.")
    (data_args,) = parse_arguments(HfArgumentParser(DataArguments), rest)
    return args, data_args, rest


def check_folder(folder: Path, paintings: list[str], evaluations: list[str]) -> None:
    """Raises `ValueError` if `folder` has files of a study, except of an interrupted one with these paintings: ratings
    cannot be read without the key that belongs to them."""
    file = folder / "paintings.json"
    found = [
        name for name in ("sheet.csv", "key.csv", file.name, "pictures", *evaluations) if (folder / name).exists()
    ]
    if not found or (found[0] == file.name and json.loads(file.read_text(encoding="utf-8")) == paintings):
        return
    raise ValueError(
        f"{folder} holds a study: {', '.join(found)}. Use another --output_dir, or move the whole folder away: "
        "ratings need their key.csv."
    )


def prepare(args: argparse.Namespace, data_args: DataArguments, data_arguments: list[str]) -> None:
    folder = args.output_dir
    models, files = named_sources(args.models), named_sources(args.predictions)
    splits = load_data(data_args, data_args.labels)
    if args.split not in splits:
        raise ValueError(f"the data has no split {args.split!r}; it has {sorted(splits)}.")
    chosen = choose_paintings(splits[args.split], args.paintings, args.seed)
    paintings = chosen["painting"][:]
    check_folder(folder, paintings, list(map(slug, models)))
    systems = {
        name: read_predictions(file, paintings, data_args.labels, complete=False) for name, file in files.items()
    }
    write_json(folder / "paintings.json", paintings)
    options = ["--overwrite_output_dir", "--split", args.split, "--paintings", str(folder / "paintings.json")]
    options += ["--judge", args.judge] if args.judge else []
    options += ["--use_cpu"] if args.use_cpu else []
    for name, model in models.items():
        output = folder / slug(name)
        evaluate_sevlm.main([model, "--name", name, "--output_dir", str(output), *options, *data_arguments])
        systems[name] = read_predictions(output / "predictions.json", paintings, data_args.labels)
    for number, image in enumerate(chosen["image"], 1):
        image.thumbnail((PICTURE_SIZE, PICTURE_SIZE))
        with atomic_write(folder / "pictures" / f"{number:03d}.jpg") as temporary:
            image.convert("RGB").save(temporary, format="JPEG", quality=90)
    for name, table in zip(("key", "sheet"), reversed(make_sheet(systems, args.seed)), strict=True):
        with atomic_write(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n")
        print(folder / f"{name}.csv")


def main(argv: list[str] | None = None) -> None:
    args, data_args, data_arguments = parse(list(sys.argv[1:] if argv is None else argv))
    with errors_as_exit():
        if args.rate:
            rate(args.rate, args.output_dir / "key.csv")
        else:
            prepare(args, data_args, data_arguments)


if __name__ == "__main__":
    main()
