# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Score explanations of art as the paper scores them: a SEVLM, any other model, a file of predictions, or people.

    python evaluate_sevlm.py outputs/demo                                             # the embedded data
    python evaluate_sevlm.py MODEL --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --judge JUDGE --output_dir outputs/evaluation
    python evaluate_sevlm.py MODEL ... --seeds 5                     # nucleus sampling, mean and standard deviation
    python evaluate_sevlm.py MODEL ... --num_candidates 8            # of 8 samples the one that fits best
    python evaluate_sevlm.py MODEL ... --emotions predicted.csv      # explain given emotions (two-stage systems)
    python evaluate_sevlm.py llava-hf/llava-1.5-7b-hf ... --prompt "..."        # any image-text-to-text model
    python evaluate_sevlm.py --predictions captions.json --annotations artemis.csv         # no model, no pictures
    python evaluate_sevlm.py --human --annotations artemis.csv       # one annotator against the others
    accelerate launch evaluate_sevlm.py MODEL ...                    # several GPUs

Writes `results.json` (figures, settings, seeds, versions, commit), `predictions.json` and `painting_scores.json` into
the output folder; with several seeds the last two into `seed-N/`. docs/evaluation.md explains the figures.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig, HfArgumentParser, pipeline, set_seed

from evaluation.predictions_file import read_emotions, read_painting_list, read_predictions, read_records
from evaluation.report import git_commit, table, versions
from evaluation.scoring import average, check_judge, score
from evaluation.systems import (
    compile_label_pattern,
    human_predictions,
    predict,
    predict_with_pipeline,
    with_several_annotations,
    without_annotations,
)
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
    model: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or name on the Hub: SEVLM or any image-text-to-text model."}
    )
    predictions: str | None = field(
        default=None,
        metadata={"help": "Instead: a file of predictions (json, jsonl, csv: painting, emotion, explanation)."},
    )
    human: bool = field(
        default=False, metadata={"help": "Instead: one annotator of each painting against the others."}
    )
    judge: str | None = field(
        default=None,
        metadata={"help": "Text-to-emotion checkpoint for EA; see `python -m evaluation.train_emotion_classifier`."},
    )
    split: str = field(default="test", metadata={"choices": ["train", "validation", "test", "rest", "all"]})
    paintings: str | None = field(
        default=None, metadata={"help": "File that names the paintings of the split to use."}
    )
    max_paintings: int | None = field(default=None, metadata={"help": "Only so many of the split, drawn by the seed."})
    emotions: str | None = field(
        default=None, metadata={"help": "File (painting, emotion): explain these emotions instead of naming one."}
    )
    do_sample: bool = field(default=False, metadata={"help": "Nucleus sampling instead of greedy decoding."})
    seeds: int = field(default=1, metadata={"help": "Runs with as many seeds (sampling): mean, standard deviation."})
    num_candidates: int = field(default=1, metadata={"help": "Sample so many, keep the best by alignment_score."})
    max_new_tokens: int | None = field(default=None, metadata={"help": "25 for SEVLM, 60 for others by default."})
    prompt: str | None = field(
        default=None,
        metadata={"help": "What another model is asked; {emotions} stands for the labels, {emotion} for a given one."},
    )
    label_pattern: str | None = field(
        default=None, metadata={"help": "Regular expression for its reply, with groups emotion and explanation."}
    )
    captions: bool = field(default=True, metadata={"help": "BLEU, METEOR, ROUGE-L and novelty."})
    novelty: bool = field(default=True, metadata={"help": "Compare with every training sentence."})
    cache_features: str | None = field(
        default=None,
        metadata={"help": "Folder with the frozen tower's features, as train.py's; missing ones are added."},
    )
    cache_dtype: str = field(default="float16", metadata={"help": "Of these features.", "choices": CACHE_DTYPES})
    update_model_card: bool = field(default=False, metadata={"help": "Put the figures into the checkpoint's card."})
    name: str | None = field(default=None, metadata={"help": "Of the row in the table."})
    output_dir: str = "outputs/evaluation"
    batch_size: int = 32
    seed: int = 0
    use_cpu: bool = False


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
    # The others wait while the main process scores.
    state = PartialState(cpu=args.use_cpu, timeout=timedelta(hours=6))
    set_seed(args.seed)
    return evaluate(args, data_args, state)


def check_arguments(args: EvaluationArguments) -> None:
    """Settle what depends on several arguments; stop on what cannot work before anything is loaded or written."""
    if sum([args.model is not None, args.predictions is not None, args.human]) != 1:
        raise SystemExit("error: name one thing to score: a MODEL, --predictions FILE, or --human.")
    if args.seeds < 1 or args.num_candidates < 1:
        raise SystemExit("error: --seeds and --num_candidates are numbers from 1.")
    if args.predictions and args.seeds > 1:
        raise SystemExit("error: a file of predictions is scored once: leave out --seeds.")
    if args.model is None:
        for name in ("emotions", "prompt", "label_pattern", "update_model_card", "cache_features"):
            if getattr(args, name):
                raise SystemExit(f"error: --{name} is for a model.")
    if args.emotions and args.update_model_card:
        raise SystemExit("error: --update_model_card is for the model's own emotions: leave out --emotions.")
    if args.seeds > 1 or args.num_candidates > 1:
        args.do_sample = True


@dataclass
class Given:
    """Emotions to explain, one per painting, and the scores of the system that named them, if known."""

    emotions: list[str] | None = None
    scores: list[list[float]] | None = None

    def replace_scores(self, predictions: list[dict]) -> list[dict]:
        """The explaining model's own scores are not those of the system that named the emotion."""
        if self.emotions is None:
            return predictions
        predictions = [{k: v for k, v in prediction.items() if k != "emotion_scores"} for prediction in predictions]
        if self.scores is None:
            return predictions
        return [
            prediction | {"emotion_scores": scores}
            for prediction, scores in zip(predictions, self.scores, strict=True)
        ]


@dataclass
class System:
    """What is scored: `explain(seed)` gives predictions and the paintings they are scored on."""

    explain: Callable[[int], tuple[list[dict], Dataset]]
    losses: Callable[[], dict[str, float]] = dict
    generation: dict | None = None
    vad_lexicon: dict | None = None


def evaluate(args: EvaluationArguments, data_args: DataArguments, state: PartialState) -> dict:
    with errors_as_exit():
        config = AutoConfig.from_pretrained(args.model) if args.model else None
        is_sevlm = config is not None and config.model_type == "sevlm"
        labels = config.emotions if is_sevlm else data_args.labels
        splits, lexicon = load_inputs(data_args, labels, with_images=args.model is not None)
        dataset = choose_paintings(args, splits)
        if args.judge:  # found out before anything takes long
            check_judge(args.judge, labels, dataset["painting"][:])
        if args.predictions:
            system = load_predictions(args, dataset, labels)
        elif args.human:
            system = System(lambda seed: human_predictions(dataset, seed))
        else:
            given = Given(*read_emotions(args.emotions, dataset["painting"][:], labels)) if args.emotions else Given()
            load = load_sevlm if is_sevlm else load_other_model
            system = load(args, dataset, given, labels, lexicon, state)
    losses = system.losses()
    seeds = range(args.seed, args.seed + args.seeds)
    folders = [Path(args.output_dir, f"seed-{seed}" if len(seeds) > 1 else "") for seed in seeds]
    if state.is_main_process:
        remove_results(Path(args.output_dir))
    runs = []
    for seed, folder in zip(seeds, folders, strict=True):
        predictions, scored = system.explain(seed)
        runs.append((predictions, scored))
        if state.is_main_process:  # at once: what took long is kept whatever happens later
            write_json(folder / "predictions.json", [_with_labels(prediction, labels) for prediction in predictions])
    if not state.is_main_process:
        return broadcast_object_list([None])[0]

    per_seed = []
    for folder, (predictions, scored) in zip(folders, runs, strict=True):
        figures, per_painting = score(
            predictions,
            scored,
            train=splits.get("train"),
            judge=args.judge,
            captions=args.captions,
            # People's sentences may lie in the training split themselves.
            novelty=args.novelty and not args.human,
            device=state.device,
        )
        write_json(folder / "painting_scores.json", per_painting)
        per_seed.append(figures)
    figures, deviations = average(per_seed)
    figures |= losses
    settings = {
        "labels": list(labels),
        "arguments": asdict(args),
        "data": asdict(data_args),
        "split_sizes": {name: len(split) for name, split in splits.items()},
        "seeds": list(seeds),
        "vad_lexicon": system.vad_lexicon,
        "generation": system.generation,
        "versions": versions(),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if len(seeds) > 1:
        settings |= {"standard_deviation": deviations, "per_seed": per_seed}
    results_file = Path(args.output_dir, "results.json")
    write_json(results_file, figures | settings)
    if args.update_model_card:
        write_json(Path(args.model, EVALUATION_FILE), figures | settings)
        write_model_card(args.model)
    show(figures, deviations if len(seeds) > 1 else None, args, data_args)
    print(results_file)
    return broadcast_object_list([figures])[0]


def remove_results(folder: Path) -> None:
    """An earlier evaluation's files would be taken for this one's."""
    for where in (folder, *folder.glob("seed-*")):
        for name in ("results.json", "predictions.json", "painting_scores.json"):
            (where / name).unlink(missing_ok=True)
        if where != folder and where.is_dir() and not any(where.iterdir()):
            where.rmdir()


def choose_paintings(args: EvaluationArguments, splits) -> Dataset:
    if args.split != "all" and args.split not in splits:
        raise ValueError(f"the data has no split {args.split!r}; it has {sorted(splits)} (or 'all').")
    dataset = concatenate_datasets(list(splits.values())) if args.split == "all" else splits[args.split]
    if args.paintings:
        dataset = dataset.select(read_painting_list(args.paintings, dataset["painting"][:]))
    if args.max_paintings is not None:
        # Rows are sorted by style and painter: the first ones would be of a few styles only.
        dataset = dataset.shuffle(seed=args.seed).select(range(min(args.max_paintings, len(dataset))))
    if not len(dataset):
        raise ValueError("no painting is left to score.")
    return dataset


def load_predictions(args: EvaluationArguments, dataset: Dataset, labels) -> System:
    records = read_records(args.predictions, ("painting",))
    if any(record.get("annotation") not in (None, "") for record in records):
        # Written by --human: paintings with one annotation are not in it, and the drawn one is no reference.
        dataset = with_several_annotations(dataset)
    predictions = read_predictions(args.predictions, dataset["painting"][:], labels)
    if "annotation" in predictions[0]:
        dataset = without_annotations(dataset, [prediction["annotation"] for prediction in predictions])
    return System(lambda seed: (predictions, dataset))


def load_sevlm(
    args: EvaluationArguments, dataset: Dataset, given: Given, labels, lexicon, state: PartialState
) -> System:
    if args.update_model_card and not Path(args.model).is_dir():
        raise ValueError(f"--update_model_card: {args.model} is no local folder.")
    model = SEVLMForConditionalGeneration.from_pretrained(args.model).to(state.device).eval()
    if args.num_candidates > 1 and model.contrastive_head is None:
        raise ValueError(f"--num_candidates: {args.model} has no contrastive head to rank candidates with.")
    processor = SEVLMProcessor.from_pretrained(args.model)
    restore_lexicon(model, processor, lexicon)
    features = None
    if args.cache_features:
        where = {"directory": args.cache_features, "dtype": args.cache_dtype}
        (features,) = cache_features(model, processor, [dataset], batch_size=args.batch_size, **where)
    generation = model.generation_config.to_diff_dict() | {"do_sample": args.do_sample}
    if args.max_new_tokens is not None:
        generation["max_new_tokens"] = args.max_new_tokens

    def explain(seed: int):
        predictions = predict(
            model,
            processor,
            dataset,
            batch_size=args.batch_size,
            features=features,
            emotions=given.emotions,
            num_candidates=args.num_candidates,
            seed=seed,
            progress=True,
            **generation,
        )
        return given.replace_scores(predictions), dataset

    return System(
        explain,
        losses=lambda: mean_losses(model, processor, dataset, features, args),
        generation=generation,
        vad_lexicon=model.config.vad_lexicon,
    )


def load_other_model(args: EvaluationArguments, dataset: Dataset, given: Given, labels, lexicon, state) -> System:
    for name in ("update_model_card", "cache_features"):
        if getattr(args, name):
            raise ValueError(f"--{name} is for a SEVLM, which {args.model} is not.")
    if args.num_candidates > 1:
        raise ValueError(f"--num_candidates ranks by SEVLM's alignment_score; {args.model} has none.")
    compile_label_pattern(args.label_pattern)  # found out before the model is loaded
    model = pipeline("image-text-to-text", model=args.model, device=state.device)
    generation = {"do_sample": args.do_sample, "max_new_tokens": args.max_new_tokens or 60}

    def explain(seed: int):
        predictions = predict_with_pipeline(
            model,
            dataset,
            labels,
            prompt=args.prompt,
            label_pattern=args.label_pattern,
            emotions=given.emotions,
            batch_size=args.batch_size,
            seed=seed,
            progress=True,
            **generation,
        )
        return given.replace_scores(predictions), dataset

    return System(explain, generation=generation)


def _with_labels(prediction: dict, labels) -> dict:
    if "emotion_scores" not in prediction:
        return prediction
    return prediction | {"emotion_scores": dict(zip(labels, prediction["emotion_scores"], strict=True))}


def show(figures: dict, deviations: dict | None, args: EvaluationArguments, data_args: DataArguments) -> None:
    for name, value in figures.items():
        if name == "confusion_matrix":
            continue
        spread = f" ± {deviations[name]:.4f}" if deviations and name in deviations else ""
        print(f"{name:>27} {value:.4f}{spread}" if isinstance(value, float) else f"{name:>27} {value}")
    name = args.name or ("one annotator" if args.human else Path(args.predictions or args.model).name)
    rows = data_args.version if data_args.annotations else None
    if rows == "v1" and args.paintings and figures["num_paintings"] == 100:
        rows = "100 images"
    print()
    print(table(name, figures, deviations, rows))
    if figures.get("emotional_alignment") is None:
        print("(EA needs --judge; python -m evaluation.train_emotion_classifier makes one.)")


def restore_lexicon(model, processor, lexicon) -> None:
    """Give a checkpoint that was saved without its lexicon the one it was trained with, and no other."""
    known = training_lexicon(model.config.vad_lexicon) or {}
    given = lexicon.to_metadata() if lexicon is not None else None
    if given is not None and given != known:
        raise SystemExit(f"error: the model was trained with the VAD lexicon {known or 'none'}, not with {given}.")
    if known and processor.vad_lexicon is None:
        if lexicon is None:
            raise SystemExit(
                f"error: the model was trained with the VAD lexicon {known['name']!r} and saved without it; name its "
                "file with --vad_lexicon."
            )
        processor.vad_lexicon = lexicon
        model.set_vad_lexicon(lexicon, processor.tokenizer)


def mean_losses(model, processor, dataset: Dataset, features, args: EvaluationArguments) -> dict[str, float]:
    """Mean loss parts over one sentence pair per painting (drawn with the seed)."""
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
