"""Train SEVLM.

    python train.py                                        # a tiny model on the embedded data, two minutes on a CPU
    accelerate launch train.py --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --output_dir outputs/sevlm-artemis                 # the paper's recipe
    python train.py ... --resume_from_checkpoint true      # continue from the newest checkpoint, if any
    python train.py ... --resume_from_checkpoint outputs/sevlm-artemis/checkpoint-2000
    accelerate launch --multi_gpu --num_processes 2 train.py --use_cpu    # two processes without a GPU
    python train.py ... --overwrite_output_dir             # replace the model and the run in --output_dir
    python train.py ... --base_model org/sevlm-artemis     # continue with a trained model and other data
    python train.py ... --base_model org/sevlm-artemis --lora_rank 8      # as a small adapter (pip install peft)
    python train.py ... --cache_features cache/            # compute each image's features only once
    python train.py ... --push_to_hub --hub_model_id org/sevlm-artemis    # a complete repository at every save

`--preset tiny` trains everything from scratch, including vision tower and tokenizer, and downloads nothing.
`--preset paper`, the default when you name data, starts from a frozen CLIP ViT-B/16 and DistilGPT2. `--preset authors`
follows the authors' code instead, item by item of docs/protocol.md. A preset changes defaults; those of `authors`
cannot be overridden. All arguments of transformers' `TrainingArguments` are accepted.
"""

import argparse
import importlib.util
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import GPT2Config, HfArgumentParser, ResNetConfig, set_seed

from evaluation.predict import predict
from evaluation.scoring import bleu_4, score
from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from modeling_sevlm.adapters import add_lora, base_model_of, check_peft, check_resumable, is_adapter, load_config
from modeling_sevlm.callbacks import EarlyStopping, ExplanationSheets
from modeling_sevlm.card_sevlm import is_hub_name, weights_digest
from modeling_sevlm.finite_loss import NonFiniteError
from modeling_sevlm.lexicon import load_with_lexicon
from modeling_sevlm.model_card import EMBEDDED, data_name
from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments
from modeling_sevlm.training_folder import LOG_FILE, TRAINING_FILE, check_writable
from processing import SEVLMProcessor
from processing.artemis import dominant_emotion
from processing.collator import SentencePairs, SEVLMCollator
from processing.feature_cache import CACHE_DTYPES, CachedFeatures, cache_features
from processing.files import write_json
from processing.protocol import TEXT_ARGUMENTS, authors_text, refuse_other_values
from processing.script_utils import DataArguments, errors_as_exit, load_inputs, parse_arguments, text_form
from processing.tiny_tokenizer import train_tokenizer


GENERATION_METRICS = ("accuracy", "unique", "label_nll", "bleu_4")
RECORDED_ARGUMENTS = "learning_rate vad_learning_rate weight_decay lr_scheduler_type warmup_steps seed".split()
RECORDED_ARGUMENTS += "per_device_train_batch_size gradient_accumulation_steps world_size bf16 fp16".split()
RECORDED_ARGUMENTS += "total_batch_size max_grad_norm adam_epsilon adam_epsilon_first fusion_rate".split()
RECORDED_ARGUMENTS += "metric_for_best_model early_stopping_metrics early_stopping_patience".split()
PROCESSOR_ARGUMENTS = "image_size image_statistics resample max_length pad_to_max_length explanation_after".split()
TINY_POSITIONS = 128
# The options of `ModelArguments` that count for a model which is trained already; it brings the others with it.
OPTIONS_WITH_BASE = "preset base_model lora_rank first_annotation ask_every_label cache_features cache_dtype".split()
LORA_LEARNING_RATE = 2e-4
PRESETS = {
    "paper": {"total_batch_size": 32},
    # The authors' code, see docs/protocol.md. `evaluate_sevlm.py` has its part of it, and `authors_text` the text's.
    "authors": {
        "image_statistics": "imagenet",
        "resample": "bilinear",
        "emotion_encoder_attention": "bidirectional",
        "emotion_encoder_attention_dropout": 0.1,
        "emotion_encoder_position_std": 1.0,
        "vad_fusion_init": "normal",
        "contrastive_head_init": "normal",
        "explanation_start": 6,
        "pad_to_max_length": True,
        "explanation_after": "last",
        "vad_matching": "piece",
        "first_annotation": "last",
        "ask_every_label": True,
        "label_loss_weight": 0.0,
        "max_length": 30,
        "drop_single_emotion": True,
        "total_batch_size": 32,
        "weight_decay": 0.0,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "generation_samples": None,
        "max_grad_norm": 0.0,
        "adam_epsilon": 1e-6,
        "adam_epsilon_first": True,
        "fusion_rate": "decoder",
        "metric_for_best_model": "bleu_4",
        "early_stopping_metrics": ["accuracy"],
        "early_stopping_patience": 11,
    },
    "tiny": {
        "image_size": 64,
        "output_dir": "outputs/tiny",
        "per_device_train_batch_size": 16,
        "learning_rate": 1.5e-3,
        "vad_learning_rate": 3e-3,
        "num_train_epochs": 24,
        "warmup_steps": 20,
        "contrastive_loss_weight": 0.1,  # with 2, a tower trained from scratch learns little else
        "ask_every_label": False,
        "eval_steps": 152,
        "save_steps": 152,
        # The accuracy reaches 1 long before the sentences name the right objects.
        "metric_for_best_model": "loss",
        "greater_is_better": None,
        "early_stopping_patience": 0,
        "early_stopping_metrics": [],
        "generation_samples": 60,
        "logging_steps": 38,
    },
}


@dataclass
class ModelArguments:
    preset: str | None = field(
        default=None,
        metadata={
            "help": "'paper', 'authors' or 'tiny' (default: 'tiny' for the embedded data, else 'paper').",
            "choices": sorted(PRESETS),
        },
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a SEVLM to train further, in place of a new one."}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train a LoRA adapter of this rank for --base_model (extra `lora`)."}
    )
    vision_model: str = field(default="openai/clip-vit-base-patch16", metadata={"help": "Image tower (preset paper)."})
    text_model: str = field(default="distilgpt2", metadata={"help": "GPT-2 model of the decoder (preset paper)."})
    image_size: int = field(default=224, metadata={"help": "Height and width of the model's images in pixels."})
    image_statistics: str | None = field(
        default=None, metadata={"help": "'clip' or 'imagenet' (the authors); default: those of the vision tower."}
    )
    resample: str = field(
        default="bicubic", metadata={"help": "Filter for resizing.", "choices": ["bilinear", "bicubic", "lanczos"]}
    )
    max_length: int = field(default=30, metadata={"help": "Maximum tokens of a training sentence."})
    pad_to_max_length: bool = field(default=False, metadata={"help": "Pad to max_length and count padding as text."})
    explanation_after: str = field(
        default="first",
        metadata={
            "help": 'Which " because" of a generated text begins the explanation.',
            "choices": ["first", "last"],
        },
    )
    first_annotation: str = field(
        default="random",
        metadata={"help": "First annotation of a pair: drawn, or always the last.", "choices": ["random", "last"]},
    )
    vad_matching: str = field(
        default="word", metadata={"help": "Look VAD up by word or by piece of a word.", "choices": ["word", "piece"]}
    )
    vocab_size: int = field(default=2000, metadata={"help": "Size of the tokenizer that preset tiny trains."})
    use_vad_features: bool = field(default=True, metadata={"help": "VAD features (Fig. 5)."})
    use_emotion_encoder: bool = field(default=True, metadata={"help": "Emotion encoder (Fig. 6)."})
    emotion_encoder_attention: str = field(default="causal", metadata={"choices": ["causal", "bidirectional"]})
    emotion_encoder_attention_dropout: float = field(default=0.0, metadata={"help": "Dropout of its attention."})
    emotion_encoder_position_std: float | None = field(
        default=None, metadata={"help": "Initial deviation of its positions (default: the model's initializer_range)."}
    )
    vad_fusion_init: str = field(
        default="identity", metadata={"help": "Initial VAD fusion.", "choices": ["identity", "normal"]}
    )
    contrastive_head_init: str = field(
        default="uniform", metadata={"help": "Initial contrastive head.", "choices": ["uniform", "normal"]}
    )
    explanation_start: int | None = field(
        default=None, metadata={"help": 'Position where the explanation starts (default: after " because").'}
    )
    use_vad_head: bool = field(default=True, metadata={"help": "VAD head and emotion loss (Fig. 5)."})
    contrastive_negatives: list[str] = field(
        default_factory=lambda: ["emotion", "image"],
        metadata={"help": "'emotion', 'image' or both (Fig. 7); 'none': no contrastive head (Fig. 5)."},
    )
    ask_every_label: bool = field(
        default=True, metadata={"help": "Learn the labels of both sentences of a pair (docs/training.md)."}
    )
    contrastive_loss_weight: float = field(default=2.0, metadata={"help": "The paper's alpha (Eq. 8)."})
    dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the decoder (preset paper); default: the text model's."}
    )
    label_loss_weight: float = field(default=0.0, metadata={"help": "Weight of a loss on all viewers' labels."})
    cache_features: str | None = field(default=None, metadata={"help": "Folder for the frozen tower's features."})
    cache_dtype: str = field(default="float16", metadata={"help": "Type of these features.", "choices": CACHE_DTYPES})

    def config_fields(self) -> dict:
        fields = {name: value for name, value in vars(self).items() if name in SEVLMConfig.__annotations__}
        return fields | ({"contrastive_negatives": []} if self.contrastive_negatives == ["none"] else {})


def build_paper(args: ModelArguments, **processor_fields) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """Builds a model from a frozen pretrained vision tower and a pretrained GPT-2."""
    processor = SEVLMProcessor.from_backbones(args.vision_model, args.text_model, **processor_fields)
    text_config = {} if args.dropout is None else dict.fromkeys(("embd_pdrop", "resid_pdrop"), args.dropout)
    model = SEVLMForConditionalGeneration.from_backbones(
        args.vision_model, args.text_model, processor, text_config=text_config, **args.config_fields()
    )
    return model, processor


def build_tiny(
    args: ModelArguments, splits: DatasetDict, **processor_fields
) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """Builds a small model of the same classes with random weights and a trainable tower, and trains its tokenizer."""
    explanations = [sentence for row in splits["train"]["explanations"] for sentence in row]
    tokenizer = train_tokenizer(explanations, processor_fields["emotions"], args.vocab_size)
    tokenizer.model_max_length = TINY_POSITIONS
    processor_fields["image_statistics"] = args.image_statistics or "clip"
    processor = SEVLMProcessor.from_tokenizer(tokenizer, **processor_fields)
    # In a run this short, a transformer learns the brushwork's colours, but hardly which object a picture shows.
    vision_config = ResNetConfig(embedding_size=32, hidden_sizes=[48, 96], depths=[1, 1], layer_type="basic")
    initializer_range = 0.06  # with GPT-2's 0.02, cross-attention hardly learns in a narrow decoder
    text_config = GPT2Config(
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=TINY_POSITIONS,
        vocab_size=len(processor.tokenizer),
        initializer_range=initializer_range,
        bos_token_id=None,  # `token_layout` sets both
        eos_token_id=None,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.05),
    )
    fields = processor.token_layout() | args.config_fields() | {"initializer_range": initializer_range}
    model = SEVLMForConditionalGeneration(SEVLMConfig(vision_config=vision_config, text_config=text_config, **fields))
    if processor.vad_lexicon is not None:
        model.set_vad_lexicon(processor.vad_lexicon, processor.tokenizer)
    return model, processor


def load_base(args: ModelArguments, lexicon) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """Loads the model to train further; with `--lora_rank`, frozen and with an adapter."""
    # An adapter names its model, also when it is loaded from another folder.
    source = os.path.abspath(args.base_model) if os.path.isdir(args.base_model) else args.base_model
    model, processor = load_with_lexicon(source, lexicon)
    return (model if args.lora_rank is None else add_lora(model, args.lora_rank)), processor


def base_record(args: ModelArguments) -> dict:
    """Describes the base model for the record of the training."""
    folder, record = Path(args.base_model), {"name": args.base_model, "lora_rank": args.lora_rank}
    if folder.is_dir():
        record["weights"] = weights_digest(folder)
    if (file := folder / TRAINING_FILE).is_file():
        trained = json.loads(file.read_text(encoding="utf-8"))
        earlier = trained.get("base_model")
        # The terms of all data count, so data that are not the project's own are kept.
        is_own = earlier is None or earlier.get("data") == EMBEDDED
        record["data"] = data_name(trained) if is_own else earlier.get("data")
    return record


def check_base(argv: list[str], model_args: ModelArguments, data_args: DataArguments, output_dir: str) -> None:
    """Raises `ValueError` for options that contradict `--base_model`, and takes over its labels."""
    if model_args.base_model is None:
        if model_args.lora_rank is not None:
            raise ValueError("--lora_rank needs --base_model, the trained SEVLM that the adapter is for.")
        return
    if model_args.preset == "authors":
        raise ValueError("--preset authors builds the authors' model: leave out --base_model.")
    if model_args.lora_rank is not None:
        check_peft()
    given = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
    given |= {name.removeprefix("no_") for name in given}
    if wrong := sorted((vars(model_args).keys() - set(OPTIONS_WITH_BASE) | {"labels"}) & given):
        raise ValueError(f"--{wrong[0]} is decided by the model {model_args.base_model}: leave it out.")
    folder = Path(model_args.base_model).resolve()
    if folder.is_dir() and Path(output_dir).resolve() in (folder, *folder.parents):
        raise ValueError(f"--output_dir {output_dir} holds the base model, which would be replaced: use another one.")
    if not folder.is_dir() and not is_hub_name(model_args.base_model):
        raise ValueError(f"--base_model {model_args.base_model}: there is no such folder.")
    if (base := base_model_of(model_args.base_model)) is not None:
        raise ValueError(f"{model_args.base_model} is an adapter for {base}: merge them first (docs/training.md).")
    config = load_config(model_args.base_model)
    if not isinstance(config, SEVLMConfig):
        raise ValueError(f"--base_model {model_args.base_model} is a {config.model_type}, not a SEVLM.")
    data_args.labels = list(config.emotions)
    learned = text_form(argparse.Namespace(**{"text_column": None, "clean_text": False} | (config.protocol or {})))
    if model_args.lora_rank is not None and text_form(data_args) != learned:
        raise ValueError(
            f"{model_args.base_model} was trained on {learned} text, and so must its adapter: the data are "
            f"{text_form(data_args)} (--clean_text, --text_column)."
        )


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, SEVLMTrainingArguments]:
    # transformers' parser takes `--lora-rank` for `--lora_rank`.
    options = (word.partition("=") if word.startswith("--") else ("", "", word) for word in argv)
    argv = ["--" * bool(name) + name[2:].replace("-", "_") + sign + value for name, sign, value in options]
    preset_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "annotations", "dataset", "text_column", "per_device_train_batch_size", "lora_rank"):
        preset_parser.add_argument(f"--{name}")
    named, _ = preset_parser.parse_known_args(argv)
    preset = named.preset or ("paper" if named.annotations or named.dataset else "tiny")
    defaults = dict(PRESETS.get(preset, {}), preset=preset)
    if preset == "authors":
        defaults |= authors_text(named.text_column)
    elif named.per_device_train_batch_size:
        defaults.pop("total_batch_size", None)
    if named.lora_rank and preset == "paper":
        defaults["learning_rate"] = LORA_LEARNING_RATE
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, SEVLMTrainingArguments),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # the parser above must see the same options
    )
    parser.set_defaults(**defaults)
    with errors_as_exit():
        model_args, data_args, training_args = parse_arguments(parser, argv)
        check_base(argv, model_args, data_args, training_args.output_dir)
        if preset == "authors":
            refuse_other_values(defaults, model_args, data_args, training_args)
        given, size = named.per_device_train_batch_size, training_args.per_device_train_batch_size
        if given is not None and int(given) != size:
            raise ValueError(
                f"--per_device_train_batch_size {given} contradicts --total_batch_size "
                f"{training_args.total_batch_size}, which gives {size}. To use less memory, raise "
                "--gradient_accumulation_steps."
            )
    return model_args, data_args, training_args


def check_arguments(has_base: bool, data_args: DataArguments, training_args: SEVLMTrainingArguments) -> None:
    """Sets the lexicon and the checkpoint to resume from. Exits on an error, before it loads data or writes files."""
    if data_args.vad_lexicon is None and not has_base:
        if not data_args.is_embedded:
            sys.exit("error: no VAD lexicon: use --vad_lexicon NRC-VAD-Lexicon.txt (the paper's), embedded or none.")
        data_args.vad_lexicon = "embedded"
    if training_args.n_gpu > 1:
        sys.exit("error: for several GPUs use `accelerate launch train.py ...`, which starts one process for each.")
    with errors_as_exit():
        training_args.check_output_dir()


def fill_cache(
    model, processor, splits: list[Dataset], model_args: ModelArguments, training_args: SEVLMTrainingArguments
) -> list[CachedFeatures]:
    """Returns the features of each split's images. Those missing in `--cache_features` are computed."""
    if not model.vision_tower_is_frozen:
        sys.exit("error: --cache_features needs a frozen vision tower, and this model trains its tower.")
    if training_args.resume_from_checkpoint:
        # The features must come from the checkpoint's tower, which the trainer loads later.
        saved = SEVLMForConditionalGeneration.from_pretrained(training_args.resume_from_checkpoint)
        model.vision_tower.load_state_dict(saved.vision_tower.state_dict())
    with errors_as_exit():
        features = cache_features(
            model.to(training_args.device),
            processor,
            splits,
            model_args.cache_features,
            dtype=model_args.cache_dtype,
            batch_size=training_args.per_device_train_batch_size,
            num_workers=training_args.dataloader_num_workers,
        )
    training_args.distributed_state.print(features[0].cache.report(), flush=True)
    return features


def choose_metric(training_args: SEVLMTrainingArguments, scored: Dataset) -> None:
    """Replaces a `metric_for_best_model` that cannot be computed: accuracy needs a painting with a dominant emotion,
    and every metric but the loss needs generated explanations."""
    if training_args.metric_for_best_model in GENERATION_METRICS and not len(scored):
        training_args.metric_for_best_model, training_args.greater_is_better = "loss", False
    elif training_args.metric_for_best_model == "accuracy":
        if all(dominant_emotion(histogram) is None for histogram in scored["emotion_histogram"]):
            training_args.metric_for_best_model, training_args.greater_is_better = "label_nll", False


def can_watch_bleu(training_args: SEVLMTrainingArguments, report) -> bool:
    """Returns whether evaluations compute BLEU-4. Exits if it chooses the best model and cannot be computed."""
    chosen = training_args.metric_for_best_model == "bleu_4"
    if not chosen and "bleu_4" not in training_args.early_stopping_metrics:
        return False
    if importlib.util.find_spec("pycocoevalcap") is not None:
        return True
    if chosen:
        sys.exit("error: --metric_for_best_model bleu_4 needs BLEU: pip install -e '.[eval]'.")
    report("BLEU-4 is not watched: pycocoevalcap is missing (pip install -e '.[eval]').", flush=True)
    return False


def main(argv: list[str] | None = None) -> SEVLMTrainer:
    model_args, data_args, training_args = parse(list(sys.argv[1:] if argv is None else argv))
    check_arguments(model_args.base_model is not None, data_args, training_args)
    splits, lexicon = load_inputs(data_args, data_args.labels)
    if missing := {"train", "validation"} - set(splits):
        sys.exit(f"error: the data has no split {' and no split '.join(sorted(missing))}; it has {sorted(splits)}.")
    set_seed(training_args.seed)
    if lexicon is not None and model_args.base_model is None:
        lexicon.matching = model_args.vad_matching
    processor_fields = {name: getattr(model_args, name) for name in PROCESSOR_ARGUMENTS}
    processor_fields |= {"vad_lexicon": lexicon, "emotions": data_args.labels}
    with errors_as_exit():
        if model_args.base_model is not None:
            model, processor = load_base(model_args, lexicon)
        elif model_args.preset == "tiny":
            model, processor = build_tiny(model_args, splits, **processor_fields)
        else:
            model, processor = build_paper(model_args, **processor_fields)
    model.config.protocol = {"preset": model_args.preset} | {name: getattr(data_args, name) for name in TEXT_ARGUMENTS}

    # Rows are sorted by style and painter, so the first ones would cover few styles.
    validation = splits["validation"].shuffle(seed=training_args.seed)
    samples = training_args.generation_samples
    scored = validation.select(range(len(validation) if samples is None else min(samples, len(validation))))
    choose_metric(training_args, scored)
    train_features = validation_features = None
    if model_args.cache_features:
        cached = [splits["train"], validation]
        train_features, validation_features = fill_cache(model, processor, cached, model_args, training_args)

    trainer = SEVLMTrainer(
        model=model,
        args=training_args,
        train_dataset=SentencePairs(
            splits["train"], seed=training_args.seed, features=train_features, first=model_args.first_annotation
        ),
        eval_dataset=SentencePairs(validation, seed=training_args.seed, features=validation_features),
        data_collator=SEVLMCollator(processor, ask_every_label=model_args.ask_every_label),
        processing_class=processor,
    )
    sheet_paintings = training_args.sheet_paintings if training_args.eval_strategy != "no" else 0
    if sheet_paintings > 0 and importlib.util.find_spec("matplotlib") is None:
        trainer.accelerator.print("No sheets of explanations: matplotlib is missing (pip install -e '.[demo]').")
        sheet_paintings = 0
    drawn = validation.select(range(min(sheet_paintings, len(validation))))
    watches_bleu = bool(len(scored)) and can_watch_bleu(training_args, trainer.accelerator.print)
    sheets = ExplanationSheets(trainer, drawn)

    def generation_metrics(model) -> dict[str, float]:
        sizes = {"batch_size": training_args.per_device_eval_batch_size, "features": validation_features}
        predictions = predict(model, processor, max(scored, drawn, key=len), **sizes)
        sheets.predictions = predictions[: len(drawn)]
        figures = score(predictions[: len(scored)], scored, captions=False)[0] if len(scored) else {}
        if watches_bleu:
            figures["bleu_4"] = bleu_4(predictions[: len(scored)], scored)
        return {name: figures[name] for name in GENERATION_METRICS if figures.get(name) is not None}

    if len(scored) or len(drawn):
        trainer.generation_metrics = generation_metrics
        trainer.add_callback(sheets)
    if training_args.eval_strategy != "no":
        trainer.add_callback(EarlyStopping(training_args.early_stopping_patience))
    trainer.accelerator.print(
        f"{model.num_parameters():,} parameters, {model.num_parameters(only_trainable=True):,} of them trainable; "
        f"{len(splits['train'])} paintings; {training_args.world_size} process(es) on {training_args.device.type}",
        flush=True,
    )
    arguments = {name: getattr(training_args, name) for name in RECORDED_ARGUMENTS}
    arguments |= {name: getattr(model_args, name) for name in ("first_annotation", "ask_every_label")}
    record = {"data": asdict(data_args), "preset": model_args.preset, "arguments": arguments}
    if model_args.base_model is not None:
        record["base_model"] = base_record(model_args)
    if (resumed := training_args.resume_from_checkpoint) is not None:
        with errors_as_exit():
            check_resumable(resumed, model_args.lora_rank, record.get("base_model", {}).get("weights"))
    record["resumed"] = training_args.resume_from_checkpoint is not None
    with errors_as_exit((OSError, NonFiniteError)):
        train_and_save(trainer, record)
    return trainer


def train_and_save(trainer: SEVLMTrainer, record: dict) -> None:
    """Trains, writes model, log and record to the output folder, and with `--push_to_hub` publishes the model."""
    args = trainer.args
    if trainer.is_world_process_zero():
        if args.save_strategy != "no":
            # The weights, without those that an adapter leaves as they are, and Adam's two moments of the trainable.
            rest = 0 if is_adapter(trainer.model) else 1
            parameters = trainer.model.parameters()
            sizes = (p.numel() * p.element_size() * (3 if p.requires_grad else rest) for p in parameters)
            check_writable(args.output_dir, sum(sizes))
        args.clear_output_dir()
        write_json(Path(args.output_dir, TRAINING_FILE), record | {"best_metric": None})  # for a checkpoint's card
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir, LOG_FILE), trainer.state.log_history)
        best = {"best_metric": trainer.state.best_metric, "best_values_and_steps": trainer.best_values}
        write_json(Path(args.output_dir, TRAINING_FILE), record | best)
    if args.push_to_hub:
        trainer.push_to_hub()  # saves the model, too
    else:
        trainer.save_model()
    trainer.accelerator.wait_for_everyone()  # no process returns before the files are complete


if __name__ == "__main__":
    main()
