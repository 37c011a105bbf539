r"""Scores explanations of art by SEVLM, another model or human annotators, or from a file, with the paper's metrics.

    python evaluate_sevlm.py outputs/demo                                             # the embedded data
    python evaluate_sevlm.py MODEL --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --judge JUDGE --output_dir outputs/evaluation
    python evaluate_sevlm.py MODEL ... --emotions predicted.csv      # explain given emotions (two-stage systems)
    python evaluate_sevlm.py llava-hf/llava-1.5-7b-hf ... --prompt "..."        # any image-text-to-text model
    python evaluate_sevlm.py --predictions captions.json --annotations artemis.csv         # no model, no images
    python evaluate_sevlm.py --human --annotations artemis.csv       # one annotator against the others
    accelerate launch evaluate_sevlm.py MODEL ...                    # several GPUs

Writes `results.json` (figures, settings, seeds, versions, commit), `predictions.json` and `painting_scores.json` to
the output folder; with several seeds, the last two to `seed-N/`. docs/evaluation.md explains the figures.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig, HfArgumentParser, pipeline, set_seed
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
from modeling_sevlm.card_sevlm import training_lexicon
from modeling_sevlm.model_card import EVALUATION_FILE, write_model_card
from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments
from processing import SEVLMProcessor
from processing.collator import SentencePairs, SEVLMCollator
from processing.feature_cache import CACHE_DTYPES, cache_features
from processing.files import write_json
from processing.script_utils import DataArguments, errors_as_exit, load_inputs, parse_arguments


@dataclass
class EvaluationArguments:
    model: str | None = HfArg(default=None, help="Folder or Hub name of a SEVLM or any image-text-to-text model.")
    predictions: str | None = HfArg(default=None, help="File of predictions (json, jsonl, csv) instead of a model.")
    human: bool = HfArg(default=False, help="Score one annotator per painting against the others, not a model.")
    judge: str | None = HfArg(default=None, help="Judge for EA: a checkpoint of evaluation/train_emotion_classifier.")
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
    batch_size: int = HfArg(default=32, help="Images per batch.")
    seed: int = HfArg(default=0, help="First seed.")
    use_cpu: bool = HfArg(default=False, help="Run on the CPU even if there is a GPU.")


def main(argv: list[str] | None = None) -> dict:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv[:1] = ["--model", argv[0]]
    parser = HfArgumentParser(
        (EvaluationArguments, DataArguments), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args, data_args = parse_arguments(parser, argv)
    check_arguments(args)
    # A long timeout, because the other processes wait while the main process scores.
    state = PartialState(cpu=args.use_cpu, timeout=timedelta(hours=6))
    set_seed(args.seed)
    return evaluate(args, data_args, state)


def check_arguments(args: EvaluationArguments) -> None:
    """Refuses combinations that cannot work, before anything is loaded or written."""
    if sum([args.model is not None, args.predictions is not None, args.human]) != 1:
        raise SystemExit("error: name one thing to score: a MODEL, --predictions FILE, or --human.")
    if min(args.seeds, args.num_candidates) < 1:
        raise SystemExit("error: --seeds and --num_candidates must be at least 1.")
    if args.predictions and args.seeds > 1:
        raise SystemExit("error: --seeds has no effect on a file of predictions. Leave it out.")
    if args.model is None:
        for name in ("emotions", "prompt", "label_pattern", "update_model_card", "cache_features"):
            if getattr(args, name):
                raise SystemExit(f"error: --{name} needs a model.")
    if args.emotions and args.update_model_card:
        raise SystemExit("error: --update_model_card needs the model's own emotions: leave out --emotions.")
    args.do_sample |= args.seeds > 1 or args.num_candidates > 1


def evaluate(args: EvaluationArguments, data_args: DataArguments, state: PartialState) -> dict:
    with errors_as_exit():
        config = AutoConfig.from_pretrained(args.model) if args.model else None
        is_sevlm = config is not None and config.model_type == "sevlm"
        labels = config.emotions if is_sevlm else data_args.labels
        splits, lexicon = load_inputs(data_args, labels, with_images=args.model is not None)
        dataset = select_paintings(args, splits)
        if args.judge:  # before anything slow
            check_judge(args.judge, labels, dataset["painting"][:])
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
    output_dir, seeds = Path(args.output_dir), range(args.seed, args.seed + args.seeds)
    if state.is_main_process:
        remove_results(output_dir)
    runs = []
    for seed in seeds:
        folder = output_dir / f"seed-{seed}" if len(seeds) > 1 else output_dir
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
        figures, per_painting = score(predictions, scored, **options)
        write_json(folder / "painting_scores.json", per_painting)
        per_seed.append(figures)
    figures, deviations = average(per_seed)
    figures |= losses
    settings |= {
        "labels": list(labels),
        "arguments": asdict(args),
        "data": asdict(data_args),
        "split_sizes": {name: len(split) for name, split in splits.items()},
        "seeds": list(seeds),
        "versions": versions(),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if len(seeds) > 1:
        settings |= {"standard_deviation": deviations, "per_seed": per_seed}
    write_json(output_dir / "results.json", figures | settings)
    if args.update_model_card:
        write_json(Path(args.model, EVALUATION_FILE), figures | settings)
        write_model_card(args.model)
    show(figures, deviations if len(seeds) > 1 else {}, args, data_args)
    print(output_dir / "results.json")
    return broadcast_object_list([figures])[0]


def remove_results(folder: Path) -> None:
    """Removes the results of an earlier evaluation, so that the folder never mixes two."""
    for where in (*folder.glob("seed-*"), folder):
        for name in ("results.json", "predictions.json", "painting_scores.json"):
            (where / name).unlink(missing_ok=True)
        if where != folder and not any(where.iterdir()):
            where.rmdir()


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
    restore_lexicon(model, processor, lexicon)
    features = None
    if args.cache_features:
        options = {"dtype": args.cache_dtype, "batch_size": args.batch_size}
        (features,) = cache_features(model, processor, [dataset], args.cache_features, **options)
    generation = model.generation_config.to_diff_dict() | {"do_sample": args.do_sample}
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


def restore_lexicon(model, processor, lexicon) -> None:
    """Sets the lexicon of a checkpoint that was saved without it. Refuses any other than in training."""
    known = training_lexicon(model.config.vad_lexicon)
    if lexicon is not None and lexicon.to_metadata() != known:
        raise ValueError(f"the model was trained with the VAD lexicon {known}, not with {lexicon.to_metadata()}.")
    if known and processor.vad_lexicon is None:
        if lexicon is None:
            raise ValueError(f"the checkpoint lacks its VAD lexicon {known['name']!r}. Pass --vad_lexicon FILE.")
        processor.vad_lexicon = lexicon
        model.set_vad_lexicon(lexicon, processor.tokenizer)


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
