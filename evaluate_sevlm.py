# Licensed under the Apache License, Version 2.0; see LICENSE.
r"""Scores explanations of art with the paper's metrics: of SEVLM, of another model, from a file, or by people.

    python evaluate_sevlm.py outputs/demo                                             # the embedded data
    python evaluate_sevlm.py MODEL --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --judge JUDGE --output_dir outputs/evaluation
    python evaluate_sevlm.py MODEL ... --seeds 5                     # nucleus sampling, mean and standard deviation
    python evaluate_sevlm.py MODEL ... --num_candidates 8            # the best of 8 samples
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
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
    human: bool = HfArg(default=False, help="One annotator of each painting against the others, instead of a model.")
    judge: str | None = HfArg(default=None, help="Checkpoint that judges EA, see evaluation/train_emotion_classifier.")
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
    novelty: bool = HfArg(default=True, help="Comparison with every training sentence.")
    cache_features: str | None = HfArg(default=None, help="Folder of cached features of the frozen vision tower.")
    cache_dtype: str = HfArg(default="float16", help="Type of cached features.", metadata={"choices": CACHE_DTYPES})
    update_model_card: bool = HfArg(default=False, help="Write the figures to the checkpoint's model card.")
    name: str | None = HfArg(default=None, help="Name in the printed table (default: the model's or file's).")
    output_dir: str = HfArg(default="outputs/evaluation", help="Output folder.")
    batch_size: int = HfArg(default=32, help="Images per batch.")
    seed: int = HfArg(default=0, help="First seed.")
    use_cpu: bool = HfArg(default=False, help="The CPU even if there is a GPU.")


@dataclass
class Explainer:
    """A system to score: `explain(seed)` returns predictions and the data set to score them on."""

    explain: Callable[[int], tuple[list[dict], Dataset]]
    losses: dict[str, float] = field(default_factory=dict)
    generation: dict | None = None
    vad_lexicon: dict | None = None


def main(argv: list[str] | None = None) -> dict:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv[:1] = ["--model", argv[0]]
    parser = HfArgumentParser(
        (EvaluationArguments, DataArguments),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    args, data_args = parse_arguments(parser, argv)
    check_arguments(args)
    # The other processes wait while the main process scores.
    state = PartialState(cpu=args.use_cpu, timeout=timedelta(hours=6))
    set_seed(args.seed)
    return evaluate(args, data_args, state)


def check_arguments(args: EvaluationArguments) -> None:
    """Refuses combinations that cannot work, before anything is loaded or written."""
    if sum([args.model is not None, args.predictions is not None, args.human]) != 1:
        raise SystemExit("error: name one thing to score: a MODEL, --predictions FILE, or --human.")
    if args.seeds < 1 or args.num_candidates < 1:
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
        if args.predictions:
            explainer = load_predictions(args, dataset, labels)
        elif args.human:
            explainer = Explainer(lambda seed: human_predictions(dataset, seed))
        elif is_sevlm:
            explainer = load_sevlm(args, dataset, emotions, lexicon, state)
        else:
            explainer = load_other_model(args, dataset, emotions, labels, state)
    output_dir, seeds = Path(args.output_dir), range(args.seed, args.seed + args.seeds)
    if state.is_main_process:
        remove_results(output_dir)
    runs = []
    for seed in seeds:
        folder = output_dir / f"seed-{seed}" if len(seeds) > 1 else output_dir
        predictions, scored = explainer.explain(seed)
        if emotions is not None:
            # The explaining model's scores do not belong to given emotions.
            for index, prediction in enumerate(predictions):
                prediction.pop("emotion_scores", None)
                if emotion_scores is not None:
                    prediction["emotion_scores"] = emotion_scores[index]
        runs.append((folder, predictions, scored))
        if state.is_main_process:  # before scoring, which may fail
            write_json(
                folder / "predictions.json", [with_label_names(prediction, labels) for prediction in predictions]
            )
    if not state.is_main_process:
        return broadcast_object_list([None])[0]

    per_seed = []
    for folder, predictions, scored in runs:
        figures, per_painting = score(
            predictions,
            scored,
            train=splits.get("train"),
            judge=args.judge,
            captions=args.captions,
            # Human explanations may be in the training split themselves.
            novelty=args.novelty and not args.human,
            device=state.device,
        )
        write_json(folder / "painting_scores.json", per_painting)
        per_seed.append(figures)
    figures, deviations = average(per_seed)
    figures |= explainer.losses
    settings = {
        "labels": list(labels),
        "arguments": asdict(args),
        "data": asdict(data_args),
        "split_sizes": {name: len(split) for name, split in splits.items()},
        "seeds": list(seeds),
        "vad_lexicon": explainer.vad_lexicon,
        "generation": explainer.generation,
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
    """Removes the files of an earlier evaluation, so that none is taken for this one's."""
    for where in (folder, *folder.glob("seed-*")):
        for name in ("results.json", "predictions.json", "painting_scores.json"):
            (where / name).unlink(missing_ok=True)
        if where != folder and where.is_dir() and not any(where.iterdir()):
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
        raise ValueError("the selection holds no painting to score.")
    return dataset


def load_predictions(args: EvaluationArguments, dataset: Dataset, labels) -> Explainer:
    records = read_records(args.predictions, ("painting",))
    if any(record.get("annotation") not in (None, "") for record in records):
        # Written by --human, which skips paintings with one annotation and takes the drawn one out of the references.
        dataset = with_several_annotations(dataset)
    predictions = read_predictions(args.predictions, dataset["painting"][:], labels)
    if "annotation" in predictions[0]:
        dataset = without_annotations(dataset, [prediction["annotation"] for prediction in predictions])
    return Explainer(lambda seed: (predictions, dataset))


def load_sevlm(args: EvaluationArguments, dataset: Dataset, emotions, lexicon, state: PartialState) -> Explainer:
    if args.update_model_card and not Path(args.model).is_dir():
        raise ValueError(f"--update_model_card: {args.model} is not a local folder.")
    model = SEVLMForConditionalGeneration.from_pretrained(args.model).to(state.device).eval()
    if args.num_candidates > 1 and model.contrastive_head is None:
        raise ValueError(f"--num_candidates: {args.model} has no contrastive head to rank candidates with.")
    processor = SEVLMProcessor.from_pretrained(args.model)
    restore_lexicon(model, processor, lexicon)
    features = None
    if args.cache_features:
        cache = {"directory": args.cache_features, "dtype": args.cache_dtype, "batch_size": args.batch_size}
        (features,) = cache_features(model, processor, [dataset], **cache)
    generation = model.generation_config.to_diff_dict() | {"do_sample": args.do_sample}
    if args.max_new_tokens is not None:
        generation["max_new_tokens"] = args.max_new_tokens
    options = {"features": features, "emotions": emotions, "num_candidates": args.num_candidates}
    options |= {"batch_size": args.batch_size, "progress": True}
    return Explainer(
        lambda seed: (predict(model, processor, dataset, seed=seed, **options, **generation), dataset),
        losses=mean_losses(model, processor, dataset, features, args),
        generation=generation,
        vad_lexicon=model.config.vad_lexicon,
    )


def load_other_model(args: EvaluationArguments, dataset: Dataset, emotions, labels, state: PartialState) -> Explainer:
    for name in ("update_model_card", "cache_features"):
        if getattr(args, name):
            raise ValueError(f"--{name} needs a SEVLM; {args.model} is another model.")
    if args.num_candidates > 1:
        raise ValueError(f"--num_candidates ranks by SEVLM's alignment_score; {args.model} has none.")
    options = {"prompt": args.prompt, "emotions": emotions, "batch_size": args.batch_size, "progress": True}
    options["pattern"] = compile_label_pattern(args.label_pattern) if args.label_pattern else None
    model = pipeline("image-text-to-text", model=args.model, device=state.device)
    generation = {"do_sample": args.do_sample, "max_new_tokens": args.max_new_tokens or 60}
    return Explainer(
        lambda seed: (predict_with_pipeline(model, dataset, labels, seed=seed, **options, **generation), dataset),
        generation=generation,
    )


def with_label_names(prediction: dict, labels) -> dict:
    if "emotion_scores" not in prediction:
        return prediction
    return prediction | {"emotion_scores": dict(zip(labels, prediction["emotion_scores"], strict=True))}


def show(figures: dict, deviations: dict, args: EvaluationArguments, data_args: DataArguments) -> None:
    for name, value in figures.items():
        spread = f" ± {deviations[name]:.4f}" if name in deviations else ""
        if name != "confusion_matrix":
            print(f"{name:>27} {value:.4f}{spread}" if isinstance(value, float) else f"{name:>27} {value}")
    name = args.name or ("one annotator" if args.human else Path(args.predictions or args.model).name)
    rows = data_args.version if data_args.annotations else None
    if rows == "v1" and args.paintings and figures["num_paintings"] == 100:
        rows = "100 images"
    print()
    print(table(name, figures, deviations, rows))
    if figures.get("emotional_alignment") is None:
        print("(EA needs --judge; python -m evaluation.train_emotion_classifier trains one.)")


def restore_lexicon(model, processor, lexicon) -> None:
    """Gives a checkpoint that was saved without its lexicon the one that it was trained with, and no other."""
    known = training_lexicon(model.config.vad_lexicon)
    if lexicon is not None and lexicon.to_metadata() != known:
        raise ValueError(f"the model was trained with the VAD lexicon {known}, not with {lexicon.to_metadata()}.")
    if known and processor.vad_lexicon is None:
        if lexicon is None:
            raise ValueError(
                f"the model was saved without its VAD lexicon {known['name']!r}. Name its file with --vad_lexicon."
            )
        processor.vad_lexicon = lexicon
        model.set_vad_lexicon(lexicon, processor.tokenizer)


def mean_losses(model, processor, dataset: Dataset, features, args: EvaluationArguments) -> dict[str, float]:
    """Returns the mean losses over one pair of sentences per painting, drawn with the seed."""
    trainer = SEVLMTrainer(
        model=model,
        args=SEVLMTrainingArguments(
            output_dir=args.output_dir,
            per_device_eval_batch_size=args.batch_size,
            use_cpu=args.use_cpu,
            load_best_model_at_end=False,
            disable_tqdm=True,
        ),
        data_collator=SEVLMCollator(processor),
        eval_dataset=SentencePairs(dataset, seed=args.seed, features=features),
    )
    metrics = trainer.evaluation_loop(trainer.get_eval_dataloader(), description="Losses").metrics
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.endswith("loss")}


if __name__ == "__main__":
    main()
