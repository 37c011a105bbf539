# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Score a model on a split: emotion accuracy (ACC), Unique, losses, and the likelihood of the human labels.

    python evaluate_sevlm.py outputs/demo                                             # the embedded data
    python evaluate_sevlm.py MODEL --annotations artemis.csv --images wikiart/ --split test \
        --vad_lexicon NRC-VAD-Lexicon.txt --output_dir outputs/evaluation

Writes `results.json` (figures, settings, seed, versions) and `predictions.json` into the output folder.
"""

import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm
from transformers import HfArgumentParser, set_seed

from modeling_sevlm import SEVLMForConditionalGeneration
from modeling_sevlm.trainer_sevlm import SEVLMTrainer, SEVLMTrainingArguments
from processing import SEVLMProcessor
from processing.artemis import dominant_emotion
from processing.collator import SentencePairs, SEVLMCollator
from processing.data_arguments import DataArguments, load_inputs


@dataclass
class EvaluationArguments:
    model: str = field(metadata={"help": "Checkpoint folder or name on the Hub."})
    split: str = field(default="test", metadata={"choices": ["train", "validation", "test", "rest", "all"]})
    output_dir: str = "outputs/evaluation"
    batch_size: int = 32
    do_sample: bool = field(default=False, metadata={"help": "Nucleus sampling instead of greedy decoding."})
    max_paintings: int | None = field(default=None, metadata={"help": "Only so many of the split, drawn by the seed."})
    seed: int = 0
    use_cpu: bool = False


def predict(
    model, processor, dataset: Dataset, *, batch_size: int = 32, progress: bool = False, **generation
) -> list[dict]:
    """One prediction per painting, in the data set's order: painting, emotion, explanation, emotion_scores.

    Every picture goes through the tower once. Under `accelerate launch` the paintings are divided among the
    processes, and each process gets all predictions back.

    Args:
        generation: arguments of `generate`, greedy decoding by default.
    """
    generation = {"do_sample": False} | generation
    was_training = model.training
    model.eval()
    predictions = []
    with PartialState().split_between_processes(list(range(len(dataset)))) as indices:
        starts = range(0, len(indices), batch_size)
        for start in tqdm(starts, desc="Explaining", disable=not progress):
            rows = [dataset[index] for index in indices[start : start + batch_size]]
            pixel_values = processor(images=[row["image"] for row in rows], return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                features = model.get_image_features(pixel_values.to(model.device))
            scores = model.emotion_scores(image_features=features).cpu()
            sentences = processor.read(model.generate(image_features=features, **generation))
            predictions += [
                {"painting": row["painting"], **sentence, "emotion_scores": distribution.tolist()}
                for row, sentence, distribution in zip(rows, sentences, scores, strict=True)
            ]
    model.train(was_training)
    return gather_object(predictions)


def label_distributions(histograms: Sequence[Sequence[int]]) -> np.ndarray:
    """`(paintings, labels)` shares of the human labels."""
    counts = np.asarray(histograms, dtype=np.float64)
    return counts / counts.sum(axis=1, keepdims=True)


def label_nll(human: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over paintings of the negative log-likelihood (nats) of a human label under the prediction.

    Args:
        human: `(paintings, labels)` shares.
        predicted: the same shape, or `(labels,)` for one prediction for all.
    """
    return float(-(human * np.log(np.maximum(predicted, 1e-12))).sum(axis=-1).mean())


def emotion_accuracy(predictions: Sequence[dict], histograms: Sequence[Sequence[int]], emotions: Sequence[str]):
    """ACC (Sec. 5.1): over paintings one of whose labels has more than half of the annotations, the share whose
    generated label is that one. Returns the accuracy (`None` without such a painting) and how many there are."""
    hits = []
    for prediction, histogram in zip(predictions, histograms, strict=True):
        dominant = dominant_emotion(histogram)
        if dominant is not None:
            hits.append(prediction["emotion"] == emotions[dominant])
    return (float(np.mean(hits)) if hits else None), len(hits)


def score(predictions: Sequence[dict], dataset: Dataset, train_histograms: Sequence[Sequence[int]] | None) -> dict:
    """The figures that follow from predictions and human annotations alone."""
    emotions = dataset.features["emotions"].feature.names
    histograms = dataset["emotion_histogram"][:]
    human = label_distributions(histograms)
    accuracy, dominant = emotion_accuracy(predictions, histograms, emotions)
    explanations = [prediction["explanation"] for prediction in predictions]
    figures = {
        "accuracy": accuracy,
        "unique": len(set(explanations)) / len(explanations),
        "unparsed": sum(prediction["emotion"] is None for prediction in predictions) / len(predictions),
        "label_nll": label_nll(human, np.asarray([prediction["emotion_scores"] for prediction in predictions])),
        "num_paintings": len(predictions),
        "num_dominant": dominant,
    }
    if train_histograms is not None:
        # What one would say without looking: the training paintings' mean distribution.
        figures["prior_label_nll"] = label_nll(human, label_distributions(train_histograms).mean(axis=0))
    return figures


def write_json(path: Path, content) -> None:
    """Write beside the file first, so that a file under its final name is always whole. NaN and infinity, which json
    does not know, become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _finite(content):
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def versions() -> dict[str, str | None]:
    packages = ("sevlm", "torch", "transformers", "datasets", "accelerate", "tokenizers", "pillow", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # sevlm run from a checkout that is not installed
            found[package] = None
    return found


def main(argv: list[str] | None = None) -> dict:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv[:1] = ["--model", argv[0]]
    parser = HfArgumentParser((EvaluationArguments, DataArguments), description=__doc__.split("\n")[0])
    args, data_args = parser.parse_args_into_dataclasses(argv)
    state = PartialState(cpu=args.use_cpu)
    set_seed(args.seed)
    try:
        model = SEVLMForConditionalGeneration.from_pretrained(args.model).to(state.device).eval()
        processor = SEVLMProcessor.from_pretrained(args.model)
    except OSError as error:
        raise SystemExit(f"error: {error}") from error
    splits, lexicon = load_inputs(data_args, model.config.emotions)
    restore_lexicon(model, processor, lexicon)
    if args.split != "all" and args.split not in splits:
        raise SystemExit(f"error: the data has no split {args.split!r}; it has {sorted(splits)} (or 'all').")
    dataset = concatenate_datasets(list(splits.values())) if args.split == "all" else splits[args.split]
    if args.max_paintings is not None:
        # Rows are sorted by style and painter: the first ones would be of a few styles only.
        dataset = dataset.shuffle(seed=args.seed).select(range(min(args.max_paintings, len(dataset))))
    predictions = predict(
        model, processor, dataset, batch_size=args.batch_size, progress=True, do_sample=args.do_sample
    )
    figures = score(predictions, dataset, splits["train"]["emotion_histogram"][:] if "train" in splits else None)
    figures |= mean_losses(model, processor, dataset, args)

    output_dir = Path(args.output_dir)
    if state.is_main_process:
        labelled = [
            p | {"emotion_scores": dict(zip(model.config.emotions, p["emotion_scores"], strict=True))}
            for p in predictions
        ]
        write_json(output_dir / "predictions.json", labelled)
        settings = {
            "arguments": asdict(args),
            "data": asdict(data_args),
            "vad_lexicon": model.config.vad_lexicon,
            "generation": model.generation_config.to_diff_dict() | {"do_sample": args.do_sample},
            "versions": versions(),
        }
        write_json(output_dir / "results.json", figures | settings)
        for name, value in figures.items():
            print(f"{name:>18} {value:.4f}" if isinstance(value, float) else f"{name:>18} {value}")
        print(f"{output_dir / 'results.json'}")
    return figures


def restore_lexicon(model, processor, lexicon) -> None:
    """Give a checkpoint that was saved without its lexicon the one it was trained with, and no other."""
    known = {name: value for name, value in (model.config.vad_lexicon or {}).items() if name != "table"}
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


def mean_losses(model, processor, dataset: Dataset, args: EvaluationArguments) -> dict[str, float]:
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
        eval_dataset=SentencePairs(dataset, seed=args.seed),
    )
    metrics = trainer.evaluation_loop(trainer.get_eval_dataloader(), description="Losses").metrics
    losses = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.endswith("loss")}
    return {name: value for name, value in losses.items() if not math.isnan(value)}


if __name__ == "__main__":
    main()
