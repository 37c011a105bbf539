"""Train SEVLM.

    python train.py                                        # a tiny model on the embedded data, two minutes on a CPU
    accelerate launch train.py --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --output_dir outputs/sevlm-artemis                 # the paper's recipe
    python train.py ... --resume_from_checkpoint true      # continue from the newest checkpoint, if any
    python train.py ... --resume_from_checkpoint outputs/sevlm-artemis/checkpoint-2000
    accelerate launch --multi_gpu --num_processes 2 train.py --use_cpu    # two processes without a GPU
    python train.py ... --cache_features cache/            # compute each image's features only once
    python train.py ... --push_to_hub --hub_model_id org/sevlm-artemis    # a complete repository at every save

`--preset tiny` trains everything from scratch, including vision tower and tokenizer, and downloads nothing.
`--preset paper`, the default when you name data, starts from a frozen CLIP ViT-B/16 and DistilGPT2. A preset only
changes defaults. All arguments of transformers' `TrainingArguments` are accepted.
"""

import argparse
import importlib.util
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import CLIPVisionConfig, GPT2Config, HfArgumentParser, set_seed

from evaluation.predict import predict
from evaluation.scoring import score
from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from modeling_sevlm.callbacks import EarlyStopping, ExplanationSheets
from modeling_sevlm.finite_loss import NonFiniteError
from modeling_sevlm.model_card import LOG_FILE, TRAINING_FILE
from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments
from modeling_sevlm.training_folder import check_writable, find_checkpoint
from processing import SEVLMProcessor
from processing.artemis import dominant_emotion
from processing.collator import SentencePairs, SEVLMCollator
from processing.feature_cache import CACHE_DTYPES, CachedFeatures, cache_features
from processing.files import write_json
from processing.script_utils import DataArguments, errors_as_exit, load_inputs, parse_arguments
from processing.tiny_tokenizer import train_tokenizer


GENERATION_METRICS = ("accuracy", "unique", "label_nll")
RECORDED_ARGUMENTS = "learning_rate vad_learning_rate weight_decay lr_scheduler_type warmup_steps seed".split()
RECORDED_ARGUMENTS += "per_device_train_batch_size gradient_accumulation_steps world_size bf16 fp16".split()
TINY_POSITIONS = 128
PRESETS = {
    "paper": {},
    "tiny": {
        "image_size": 64,
        "output_dir": "outputs/tiny",
        "per_device_train_batch_size": 16,
        "learning_rate": 1.5e-3,
        "vad_learning_rate": 3e-3,
        "num_train_epochs": 30,
        "warmup_steps": 20,
        "contrastive_loss_weight": 0.1,  # with 2, a tower trained from scratch learns little else
        "ask_every_label": False,
        "eval_steps": 190,
        "save_steps": 190,
        "early_stopping_patience": 0,
        "generation_samples": 60,
        "logging_steps": 38,
    },
}


@dataclass
class ModelArguments:
    preset: str | None = field(
        default=None, metadata={"help": "'tiny' for the embedded data, else 'paper'.", "choices": sorted(PRESETS)}
    )
    vision_model: str = field(default="openai/clip-vit-base-patch16", metadata={"help": "Image tower (preset paper)."})
    text_model: str = field(default="distilgpt2", metadata={"help": "GPT-2 model of the decoder (preset paper)."})
    image_size: int = field(default=224, metadata={"help": "Height and width of the model's images in pixels."})
    image_statistics: str | None = field(
        default=None, metadata={"help": "'clip' or 'imagenet' (the authors); default: those of the vision tower."}
    )
    max_length: int = field(default=30, metadata={"help": "Maximum tokens of a training sentence."})
    vocab_size: int = field(default=2000, metadata={"help": "Size of the tokenizer that preset tiny trains."})
    use_vad_features: bool = field(default=True, metadata={"help": "VAD features (Fig. 5)."})
    use_emotion_encoder: bool = field(default=True, metadata={"help": "Emotion encoder (Fig. 6)."})
    emotion_encoder_attention: str = field(default="causal", metadata={"choices": ["causal", "bidirectional"]})
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
        names = ("use_vad_features", "use_emotion_encoder", "emotion_encoder_attention", "use_vad_head")
        names += ("contrastive_negatives", "contrastive_loss_weight", "label_loss_weight")
        fields = {name: getattr(self, name) for name in names}
        return fields | ({"contrastive_negatives": []} if self.contrastive_negatives == ["none"] else {})


def build_paper(args: ModelArguments, **processor_fields) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """Builds a model from a frozen pretrained vision tower and a pretrained GPT-2."""
    fields = processor_fields | {"image_size": args.image_size, "image_statistics": args.image_statistics}
    processor = SEVLMProcessor.from_backbones(args.vision_model, args.text_model, **fields)
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
    processor = SEVLMProcessor.from_tokenizer(
        tokenizer, image_size=args.image_size, image_statistics=args.image_statistics or "clip", **processor_fields
    )
    vision_config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=args.image_size,
        patch_size=args.image_size // 8,
    )
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


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, SEVLMTrainingArguments]:
    preset_parser = argparse.ArgumentParser(add_help=False)
    for name in ("--preset", "--annotations", "--dataset"):
        preset_parser.add_argument(name)
    named, _ = preset_parser.parse_known_args(argv)
    preset = named.preset or ("paper" if named.annotations or named.dataset else "tiny")
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, SEVLMTrainingArguments),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(**PRESETS.get(preset, {}), preset=preset)
    return parse_arguments(parser, argv)


def check_arguments(data_args: DataArguments, training_args: SEVLMTrainingArguments) -> None:
    """Sets the lexicon and the checkpoint to resume from. Exits on an error, before it loads data or writes files."""
    if data_args.vad_lexicon is None:
        if not data_args.is_embedded:
            sys.exit("error: no VAD lexicon: use --vad_lexicon NRC-VAD-Lexicon.txt (the paper's), embedded or none.")
        data_args.vad_lexicon = "embedded"
    if training_args.n_gpu > 1:
        sys.exit("error: for several GPUs use `accelerate launch train.py ...`, which starts one process for each.")
    with errors_as_exit():
        report = partial(training_args.distributed_state.print, flush=True)
        folder, resume = training_args.output_dir, training_args.resume_from_checkpoint
        training_args.resume_from_checkpoint = find_checkpoint(folder, resume, report)
        if training_args.should_save:
            check_writable(folder)


def fill_cache(
    model, processor, splits: list[Dataset], model_args: ModelArguments, training_args: SEVLMTrainingArguments
) -> list[CachedFeatures]:
    """Returns the features of each split's images. Those missing in `--cache_features` are computed."""
    if not model.vision_tower_is_frozen:
        sys.exit("error: --cache_features needs a frozen vision tower, and preset tiny trains its tower.")
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


def main(argv: list[str] | None = None) -> SEVLMTrainer:
    model_args, data_args, training_args = parse(list(sys.argv[1:] if argv is None else argv))
    check_arguments(data_args, training_args)
    splits, lexicon = load_inputs(data_args, data_args.labels)
    if missing := {"train", "validation"} - set(splits):
        sys.exit(f"error: the data has no split {' and no split '.join(sorted(missing))}; it has {sorted(splits)}.")
    set_seed(training_args.seed)
    processor_fields = {"vad_lexicon": lexicon, "emotions": data_args.labels, "max_length": model_args.max_length}
    with errors_as_exit():
        if model_args.preset == "tiny":
            model, processor = build_tiny(model_args, splits, **processor_fields)
        else:
            model, processor = build_paper(model_args, **processor_fields)

    # Rows are sorted by style and painter, so the first ones would cover few styles.
    validation = splits["validation"].shuffle(seed=training_args.seed)
    scored = validation.select(range(min(training_args.generation_samples, len(validation))))
    choose_metric(training_args, scored)
    train_features = validation_features = None
    if model_args.cache_features:
        cached = [splits["train"], validation]
        train_features, validation_features = fill_cache(model, processor, cached, model_args, training_args)

    trainer = SEVLMTrainer(
        model=model,
        args=training_args,
        train_dataset=SentencePairs(splits["train"], seed=training_args.seed, features=train_features),
        eval_dataset=SentencePairs(validation, seed=training_args.seed, features=validation_features),
        data_collator=SEVLMCollator(processor, ask_every_label=model_args.ask_every_label),
        processing_class=processor,
    )
    sheet_paintings = training_args.sheet_paintings if training_args.eval_strategy != "no" else 0
    if sheet_paintings > 0 and importlib.util.find_spec("matplotlib") is None:
        trainer.accelerator.print("No sheets of explanations: matplotlib is missing (pip install -e '.[demo]').")
        sheet_paintings = 0
    drawn = validation.select(range(min(sheet_paintings, len(validation))))
    sheets = ExplanationSheets(trainer, drawn)

    def generation_metrics(model) -> dict[str, float]:
        sizes = {"batch_size": training_args.per_device_eval_batch_size, "features": validation_features}
        predictions = predict(model, processor, max(scored, drawn, key=len), **sizes)
        sheets.predictions = predictions[: len(drawn)]
        figures = score(predictions[: len(scored)], scored, captions=False)[0] if len(scored) else {}
        return {name: figures[name] for name in GENERATION_METRICS if figures.get(name) is not None}

    if len(scored) or len(drawn):
        trainer.generation_metrics = generation_metrics
        trainer.add_callback(sheets)
    if training_args.early_stopping_patience and training_args.eval_strategy != "no":
        trainer.add_callback(EarlyStopping(training_args.early_stopping_patience))
    trainer.accelerator.print(
        f"{model.num_parameters():,} parameters, {model.num_parameters(only_trainable=True):,} of them trainable; "
        f"{len(splits['train'])} paintings; {training_args.world_size} process(es) on {training_args.device.type}",
        flush=True,
    )
    arguments = {name: getattr(training_args, name) for name in RECORDED_ARGUMENTS}
    record = {"data": asdict(data_args), "preset": model_args.preset, "arguments": arguments}
    with errors_as_exit((OSError, NonFiniteError)):
        train_and_save(trainer, record)
    return trainer


def train_and_save(trainer: SEVLMTrainer, record: dict) -> None:
    """Trains, writes model, log and record to the output folder, and with `--push_to_hub` publishes the model."""
    args = trainer.args
    if trainer.is_world_process_zero():
        if args.save_strategy != "no":
            # The weights, and Adam's two moments of the trainable ones.
            sizes = (p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in trainer.model.parameters())
            check_writable(args.output_dir, sum(sizes))
        write_json(Path(args.output_dir, TRAINING_FILE), record | {"best_metric": None})  # for a checkpoint's card
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir, LOG_FILE), trainer.state.log_history)
        write_json(Path(args.output_dir, TRAINING_FILE), record | {"best_metric": trainer.state.best_metric})
    if args.push_to_hub:
        trainer.push_to_hub()  # saves the model, too
    else:
        trainer.save_model()
    trainer.accelerator.wait_for_everyone()  # no process returns before the files are complete


if __name__ == "__main__":
    main()
