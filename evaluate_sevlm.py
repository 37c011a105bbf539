r"""Scores explanations of art by SEVLM, another model or human annotators, or from a file, with the paper's metrics.

    python evaluate_sevlm.py outputs/demo                                             # the embedded data
    python evaluate_sevlm.py MODEL --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --judge JUDGE --output_dir outputs/evaluation
    python evaluate_sevlm.py MODEL ... --emotions predicted.csv      # explain given emotions (two-stage systems)
    python evaluate_sevlm.py llava-hf/llava-1.5-7b-hf ... --prompt "..."        # any image-text-to-text model
    python evaluate_sevlm.py --predictions captions.json --annotations artemis.csv         # no model, no images
    python evaluate_sevlm.py --human --annotations artemis.csv       # one annotator against the others
    python evaluate_sevlm.py --preset authors ...                    # the authors' protocol, see docs/protocol.md
    accelerate launch evaluate_sevlm.py MODEL ...                    # several GPUs

Writes `results.json` (figures, settings, seeds, versions, commit), `predictions.json` and `painting_scores.json` to
the output folder; with several seeds, the last two to `seed-N/`. Until all are complete, they are in `unfinished/` of
that folder. Earlier results are replaced only with `--overwrite_output_dir`. docs/evaluation.md explains the figures.

A SEVLM is scored on text of the form that it was trained on (cleaned, filtered), unless you say otherwise.
"""

import argparse
import contextlib
import os
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from transformers import HfArgumentParser, pipeline, set_seed
from transformers.hf_argparser import HfArg

from evaluation.predict import (
    compile_label_pattern,
    human_predictions,
    predict,
    predict_with_pipeline,
    with_several_annotations,
    without_annotations,
)
from evaluation.predictions_file import read_emotions, read_painting_list, read_predictions, read_records
from evaluation.report import git_commit, table, versions
from evaluation.scoring import average, check_judge, score
from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.adapters import load_config
from modeling_sevlm.lexicon import restore_lexicon
from modeling_sevlm.model_card import write_model_card
from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments
from modeling_sevlm.training_folder import EVALUATION_FILE, check_writable
from processing import SEVLMProcessor
from processing.annotations import CLEANED_COLUMN
from processing.collator import SentencePairs, SEVLMCollator
from processing.feature_cache import CACHE_DTYPES, cache_features
from processing.files import write_json
from processing.protocol import TEXT_ARGUMENTS, authors_text, refuse_other_values
from processing.script_utils import DataArguments, errors_as_exit, load_inputs, parse_arguments, text_form
from processing.text_cleaning import clean_texts


RESULTS = ("results.json", "predictions.json", "painting_scores.json")
UNFINISHED = "unfinished"  # folder of the results until all are complete


@dataclass
class EvaluationArguments:
    model: str | None = HfArg(default=None, help="Folder or Hub name of a SEVLM or any image-text-to-text model.")
    predictions: str | None = HfArg(default=None, help="File of predictions (json, jsonl, csv) instead of a model.")
    human: bool = HfArg(default=False, help="Score one annotator per painting against the others, not a model.")
    judge: str | None = HfArg(default=None, help="Judge for EA: a checkpoint of evaluation/train_emotion_classifier.")
    preset: Literal["paper", "authors"] | None = HfArg(
        default=None, help="'paper': raw texts; 'authors': theirs (default: the checkpoint's; without a SEVLM: paper)."
    )
    explanation_after: Literal["first", "last"] | None = HfArg(
        default=None, help="The because before the explanation of a SEVLM's text (default: the checkpoint's)."
    )
    split: Literal["train", "validation", "test", "rest", "all"] = HfArg(default="test", help="Split to score.")
    paintings: str | None = HfArg(default=None, help="File with names of the paintings to score (default: all).")
    max_paintings: int | None = HfArg(default=None, help="Number of paintings, drawn with the seed (default: all).")
    emotions: str | None = HfArg(default=None, help="File (painting, emotion) with the emotions to explain.")
    do_sample: bool = HfArg(default=False, help="Nucleus sampling instead of greedy decoding.")
    seeds: int = HfArg(default=1, help="Number of sampling runs for mean and standard deviation.")
    num_candidates: int = HfArg(default=1, help="Number of samples of which the best by alignment_score is kept.")
    max_new_tokens: int | None = HfArg(default=None, help="Tokens of a reply (default: 25 for SEVLM, 60 for others).")
    prompt: str | None = HfArg(default=None, help="Another model's prompt, with {emotions} (the labels) or {emotion}.")
    label_pattern: str | None = HfArg(
        default=None, help="Regular expression for another model's reply, with the groups emotion and explanation."
    )
    captions: bool = HfArg(default=True, help="BLEU, METEOR, ROUGE-L and novelty.")
    novelty: bool = HfArg(default=True, help="Novelty, a comparison with every training sentence.")
    cache_features: str | None = HfArg(default=None, help="Folder of cached features of the frozen vision tower.")
    cache_dtype: str = HfArg(default="float16", help="Type of cached features.", metadata={"choices": CACHE_DTYPES})
    update_model_card: bool = HfArg(default=False, help="Write the figures to the checkpoint's model card.")
    name: str | None = HfArg(default=None, help="Name in the printed table (default: the model's or file's).")
    output_dir: str = HfArg(default="outputs/evaluation", help="Output folder.")
    overwrite_output_dir: bool = HfArg(default=False, help="Replace the results in output_dir.")
    batch_size: int = HfArg(default=32, help="Images per batch.")
    seed: int = HfArg(default=0, help="First seed.")
    use_cpu: bool = HfArg(default=False, help="Run on the CPU even if there is a GPU.")


def main(argv: list[str] | None = None) -> dict:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv[:1] = ["--model", argv[0]]
    layout = argparse.RawDescriptionHelpFormatter
    parser = HfArgumentParser(
        (EvaluationArguments, DataArguments), description=__doc__, formatter_class=layout, allow_abbrev=False
    )
    with errors_as_exit():
        preset = protocol_defaults(argv)
        parser.set_defaults(**preset)
        args, data_args = parse_arguments(parser, argv)
        check_arguments(args)
        if args.preset == "authors":
            refuse_other_values(preset, args, data_args)
    # A long timeout, because the other processes wait while the main process scores.
    state = PartialState(cpu=args.use_cpu, timeout=timedelta(hours=6))
    set_seed(args.seed)
    return evaluate(args, data_args, state)


def protocol_defaults(argv: list[str]) -> dict:
    """Returns the defaults of `--preset`, or else those that the checkpoint was trained with."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "model", "text_column", "predictions"):
        parser.add_argument(f"--{name}")
    named, _ = parser.parse_known_args(argv)
    is_model = named.model is not None and named.predictions is None and "--human" not in argv
    if named.preset is not None:
        after = {"authors": "last", "paper": "first"}.get(named.preset)
        reading = {"explanation_after": after} if is_model else {}
        return reading | ({"do_sample": False} | authors_text(named.text_column) if named.preset == "authors" else {})
    if not is_model:
        return {}
    protocol = getattr(load_config(named.model), "protocol", None) or {}
    known = {name: protocol[name] for name in TEXT_ARGUMENTS if name in protocol}
    if named.text_column == CLEANED_COLUMN:  # of a file that is cleaned and filtered already
        known |= authors_text(CLEANED_COLUMN) | {"v2_rules": known.get("v2_rules", "per_split")}
    if changed := {name: value for name, value in known.items() if value not in (None, False, "per_split")}:
        print(f"As in training ({protocol['preset']}): {changed}", flush=True)
    return known


def check_arguments(args: EvaluationArguments) -> None:
    """Refuses combinations that cannot work, before anything is loaded or written."""
    if sum([args.model is not None, args.predictions is not None, args.human]) != 1:
        raise SystemExit("error: name one thing to score: a MODEL, --predictions FILE, or --human.")
    if min(args.seeds, args.num_candidates) < 1:
        raise SystemExit("error: --seeds and --num_candidates must be at least 1.")
    if args.predictions and args.seeds > 1:
        raise SystemExit("error: --seeds has no effect on a file of predictions. Leave it out.")
    if args.model is None:
        needing = ("emotions", "prompt", "label_pattern", "update_model_card", "cache_features", "explanation_after")
        for name in needing:
            if getattr(args, name):
                raise SystemExit(f"error: --{name} needs a model.")
    if args.emotions and args.update_model_card:
        raise SystemExit("error: --update_model_card needs the model's own emotions: leave out --emotions.")
    samples = args.seeds > 1 or args.num_candidates > 1
    if samples and args.preset == "authors":
        raise SystemExit("error: --seeds and --num_candidates draw samples, but --preset authors decodes greedily.")
    args.do_sample |= samples


def evaluate(args: EvaluationArguments, data_args: DataArguments, state: PartialState) -> dict:
    output_dir, seeds = Path(args.output_dir), range(args.seed, args.seed + args.seeds)
    unfinished = output_dir / UNFINISHED
    with errors_as_exit():
        check_results(output_dir, args.overwrite_output_dir, args.predictions, args.emotions, args.paintings)
        check_writable(unfinished)
        state.wait_for_everyone()  # no process writes before all have looked
        config = load_config(args.model) if args.model else None
        is_sevlm = config is not None and config.model_type == "sevlm"
        labels = config.emotions if is_sevlm else data_args.labels
        splits, lexicon = load_inputs(data_args, labels, with_images=args.model is not None)
        dataset = select_paintings(args, splits)
        if args.judge:  # before anything slow
            check_judge(args.judge, labels, dataset["painting"][:], text_form(data_args))
        emotions = emotion_scores = None
        if args.emotions:
            emotions, emotion_scores = read_emotions(args.emotions, dataset["painting"][:], labels)
        # `explain(seed=...)` returns predictions and the data set to score them on.
        losses, settings = {}, {"generation": None, "vad_lexicon": None}
        if args.predictions:
            explain = load_predictions(args, dataset, labels)
        elif args.human:
            explain = partial(human_predictions, dataset)
        elif is_sevlm:
            explain, settings, losses = load_sevlm(args, dataset, emotions, lexicon, state)
        else:
            explain, settings["generation"] = load_other_model(args, dataset, emotions, labels, state)
    if state.is_main_process:
        remove_results(unfinished)
    runs = []
    for seed in seeds:
        folder = unfinished / f"seed-{seed}" if len(seeds) > 1 else unfinished
        predictions, scored = explain(seed=seed)
        if emotions is not None:
            # The model's own scores do not describe the given emotions.
            for index, prediction in enumerate(predictions):
                prediction.pop("emotion_scores", None)
                if emotion_scores is not None:
                    prediction["emotion_scores"] = emotion_scores[index]
        if state.is_main_process:
            write_predictions(folder / "predictions.json", predictions, labels)  # before scoring, which may fail
        runs.append((folder, predictions, scored))
    if not state.is_main_process:
        return broadcast_object_list([None])[0]

    per_seed = []
    for folder, predictions, scored in runs:
        options = {"train": splits.get("train"), "judge": args.judge, "captions": args.captions}
        # Human explanations may be in the training split themselves.
        options |= {"novelty": args.novelty and not args.human, "device": state.device}
        figures, per_painting = score(in_form_of_data(predictions, args, data_args), scored, **options)
        write_json(folder / "painting_scores.json", per_painting)
        per_seed.append(figures)
    figures, deviations = average(per_seed)
    figures |= losses
    settings |= {
        "labels": list(labels),
        "arguments": asdict(args),
        "data": asdict(data_args),
        "text": text_form(data_args),
        "split_sizes": {name: len(split) for name, split in splits.items()},
        "seeds": list(seeds),
        "versions": versions(),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if len(seeds) > 1:
        settings |= {"standard_deviation": deviations, "per_seed": per_seed}
    write_json(unfinished / "results.json", figures | settings)
    publish_results(unfinished, output_dir)
    if args.update_model_card:
        write_json(Path(args.model, EVALUATION_FILE), figures | settings)
        write_model_card(args.model)
    show(figures, deviations if len(seeds) > 1 else {}, args, data_args)
    print(output_dir / "results.json")
    return broadcast_object_list([figures])[0]


def in_form_of_data(predictions: list[dict], args: EvaluationArguments, data_args: DataArguments) -> list[dict]:
    """Returns the predictions with cleaned explanations if the data's are cleaned: references and judge then meet text
    of their own form. People's are cleaned already, and so are those of a SEVLM that was trained on cleaned text."""
    protocol = getattr(load_config(args.model), "protocol", None) if args.model else None
    trained_on = text_form(argparse.Namespace(**{"text_column": None, "clean_text": False} | (protocol or {})))
    if text_form(data_args) != "cleaned" or args.human or trained_on == "cleaned":
        return predictions
    cleaned = clean_texts([prediction["explanation"] for prediction in predictions])
    return [row | {"explanation": text} for row, text in zip(predictions, cleaned, strict=True)]


def find_results(folder: Path) -> list[Path]:
    """Lists the results of an evaluation in `folder`, `results.json` first."""
    files = (where / name for where in (folder, *sorted(folder.glob("seed-*"))) for name in RESULTS)
    return [file for file in files if file.exists()]


def check_results(folder: Path, overwrite: bool, *inputs: str | None) -> None:
    """Raises `ValueError` if `folder` has results, complete or not, unless `overwrite`, or if one of them is among the
    `inputs`."""
    found = find_results(folder) + find_results(folder / UNFINISHED)
    used = {os.path.realpath(file) for file in inputs if file}
    for file in found:
        if os.path.realpath(file) in used:
            raise ValueError(f"{file} is read and would be replaced. Use another --output_dir.")
    if found and not overwrite:
        raise ValueError(f"{found[0]} exists. Use --overwrite_output_dir to replace it, or another --output_dir.")


def remove_results(folder: Path) -> None:
    for file in find_results(folder):
        file.unlink()
    for where in (*folder.glob("seed-*"), folder):
        with contextlib.suppress(OSError):  # it has other files
            where.rmdir()


def publish_results(unfinished: Path, folder: Path) -> None:
    """Moves complete results into `folder` in place of those that it has. `results.json` goes first and comes last."""
    remove_results(folder)
    for file in reversed(find_results(unfinished)):
        target = folder / file.relative_to(unfinished)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)
    remove_results(unfinished)


def select_paintings(args: EvaluationArguments, splits) -> Dataset:
    if args.split != "all" and args.split not in splits:
        raise ValueError(f"the data has no split {args.split!r}. Use one of {', '.join(sorted(splits))}, or all.")
    dataset = concatenate_datasets(list(splits.values())) if args.split == "all" else splits[args.split]
    if args.paintings:
        dataset = dataset.select(read_painting_list(args.paintings, dataset["painting"][:]))
    if args.max_paintings is not None:
        # Rows are sorted by style and painter, so the first ones cover a few styles only.
        dataset = dataset.shuffle(seed=args.seed).select(range(min(args.max_paintings, len(dataset))))
    if not len(dataset):
        raise ValueError("no painting is left to score.")
    return dataset


def load_predictions(args: EvaluationArguments, dataset: Dataset, labels):
    records = read_records(args.predictions, ("painting",))
    if any(record.get("annotation") not in (None, "") for record in records):
        # Written by --human, which skips paintings with one annotation and takes the drawn one out of the references.
        dataset = with_several_annotations(dataset)
    predictions = read_predictions(args.predictions, dataset["painting"][:], labels)
    if "annotation" in predictions[0]:
        dataset = without_annotations(dataset, [prediction["annotation"] for prediction in predictions])
    return lambda seed: (predictions, dataset)


def load_sevlm(args: EvaluationArguments, dataset: Dataset, emotions, lexicon, state: PartialState):
    if args.update_model_card and not Path(args.model).is_dir():
        raise ValueError(f"--update_model_card: {args.model} is not a local folder.")
    model = SEVLMForConditionalGeneration.from_pretrained(args.model).to(state.device).eval()
    if args.num_candidates > 1 and model.contrastive_head is None:
        raise ValueError(f"--num_candidates: {args.model} has no contrastive head to rank candidates with.")
    processor = SEVLMProcessor.from_pretrained(args.model)
    processor.explanation_after = args.explanation_after or processor.explanation_after
    restore_lexicon(model, processor, lexicon)
    features = None
    if args.cache_features:
        options = {"dtype": args.cache_dtype, "batch_size": args.batch_size}
        (features,) = cache_features(model, processor, [dataset], args.cache_features, **options)
    generation = model.generation_config.to_diff_dict() | {"do_sample": args.do_sample}
    generation.pop("use_cache", None)  # the emotion encoder decides: a bidirectional one decodes without a cache
    if args.max_new_tokens is not None:
        generation["max_new_tokens"] = args.max_new_tokens
    options = {"features": features, "emotions": emotions, "num_candidates": args.num_candidates}
    options |= {"batch_size": args.batch_size, "progress": True} | generation
    settings = {"generation": generation, "vad_lexicon": model.config.vad_lexicon}
    losses = mean_losses(model, processor, dataset, features, args)
    return lambda seed: (predict(model, processor, dataset, seed=seed, **options), dataset), settings, losses


def load_other_model(args: EvaluationArguments, dataset: Dataset, emotions, labels, state: PartialState):
    if args.update_model_card or args.cache_features or args.num_candidates > 1:
        raise ValueError(f"--update_model_card, --cache_features and --num_candidates need a SEVLM, not {args.model}.")
    if args.explanation_after and args.preset is None:
        raise ValueError(f"--explanation_after needs a SEVLM, not {args.model}: use --label_pattern.")
    options = {"prompt": args.prompt, "emotions": emotions, "batch_size": args.batch_size, "progress": True}
    options["pattern"] = compile_label_pattern(args.label_pattern) if args.label_pattern else None
    model = pipeline("image-text-to-text", model=args.model, device=state.device)
    generation = {"do_sample": args.do_sample, "max_new_tokens": args.max_new_tokens or 60}
    explain = partial(predict_with_pipeline, model, dataset, labels, **options, **generation)
    return lambda seed: (explain(seed=seed), dataset), generation


def write_predictions(path: Path, predictions: list[dict], labels) -> None:
    named = [dict(prediction) for prediction in predictions]
    for prediction in named:
        if "emotion_scores" in prediction:
            prediction["emotion_scores"] = dict(zip(labels, prediction["emotion_scores"], strict=True))
    write_json(path, named)


def show(figures: dict, deviations: dict, args: EvaluationArguments, data_args: DataArguments) -> None:
    for name, value in figures.items():
        spread = f" ± {deviations[name]:.4f}" if name in deviations else ""
        if name != "confusion_matrix":
            print(f"{name:>27} {value:.4f}{spread}" if isinstance(value, float) else f"{name:>27} {value}")
    name = args.name or ("one annotator" if args.human else Path(args.predictions or args.model).name)
    rows = data_args.version if data_args.annotations else None
    if rows == "v1" and args.paintings and figures["num_paintings"] == 100:
        rows = "100 images"
    print("\n" + table(name, figures, deviations, rows))
    if figures.get("emotional_alignment") is None:
        print("(EA needs --judge; python -m evaluation.train_emotion_classifier trains one.)")


def mean_losses(model, processor, dataset: Dataset, features, args: EvaluationArguments) -> dict[str, float]:
    """Returns the mean losses over one pair of sentences per painting, drawn with the seed."""
    options = {"per_device_eval_batch_size": args.batch_size, "load_best_model_at_end": False, "disable_tqdm": True}
    training_args = SEVLMTrainingArguments(output_dir=args.output_dir, use_cpu=args.use_cpu, **options)
    pairs = SentencePairs(dataset, seed=args.seed, features=features)
    trainer = SEVLMTrainer(model, training_args, data_collator=SEVLMCollator(processor), eval_dataset=pairs)
    metrics = trainer.evaluation_loop(trainer.get_eval_dataloader(), description="Losses").metrics
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.endswith("loss")}


if __name__ == "__main__":
    main()
