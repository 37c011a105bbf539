# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Train SEVLM.

    python train.py                                        # a tiny model on the embedded data, two minutes on a CPU
    accelerate launch train.py --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --output_dir outputs/sevlm-artemis                 # the paper's recipe
    python train.py ... --resume_from_checkpoint true      # go on from the newest checkpoint; begin if there is none
    python train.py ... --resume_from_checkpoint outputs/sevlm-artemis/checkpoint-2000
    accelerate launch --multi_gpu --num_processes 2 train.py --use_cpu    # two processes without a GPU
    python train.py ... --cache_features cache/            # every picture through the frozen tower once, ever
    python train.py ... --push_to_hub --hub_model_id org/sevlm-artemis    # a complete repository at every save

`--preset tiny` starts everything from nothing, tower and tokenizer included, and downloads nothing; `--preset paper`
(the default once data is named) starts from CLIP ViT-B/16, frozen, and DistilGPT2. All arguments of transformers'
`TrainingArguments` are accepted; presets set defaults only.
"""

import argparse
import contextlib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import CLIPVisionConfig, GPT2Config, HfArgumentParser, set_seed

from evaluation.predict import predict
from evaluation.scoring import score
from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from modeling_sevlm.callbacks import ExplanationSheets
from modeling_sevlm.finite_loss import NonFiniteError
from modeling_sevlm.model_card import LOG_FILE, TRAINING_FILE
from modeling_sevlm.trainer import EarlyStopping, SEVLMTrainer, SEVLMTrainingArguments
from modeling_sevlm.training_folder import STATE_FILE, check_writable, checkpoints, defect, step_of
from processing import SEVLMProcessor
from processing.artemis import dominant_emotion
from processing.collator import SentencePairs, SEVLMCollator
from processing.feature_cache import CACHE_DTYPES, CachedFeatures, cache_features
from processing.files import write_json
from processing.script_utils import DataArguments, errors_as_exit, load_inputs, parse_arguments
from processing.tiny_tokenizer import train_tokenizer


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
        # From nothing, the paper's weight of 2 lets the contrastive loss drown the words: the tower learns to tell
        # pictures apart instead of what is in them.
        "contrastive_loss_weight": 0.1,
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
    vision_model: str = field(default="openai/clip-vit-base-patch16", metadata={"help": "Tower (preset paper)."})
    text_model: str = field(default="distilgpt2", metadata={"help": "A GPT-2 (preset paper)."})
    image_size: int = field(default=224, metadata={"help": "Pictures are squashed to this, in pixels."})
    image_statistics: str | None = field(
        default=None, metadata={"help": "'clip' or 'imagenet' (the authors); the tower's own by default."}
    )
    max_length: int = field(default=30, metadata={"help": "Tokens of a training sentence."})
    vocab_size: int = field(default=2000, metadata={"help": "Of the tokenizer that preset tiny trains."})
    use_vad_features: bool = field(default=True, metadata={"help": "VAD features (Fig. 5)."})
    use_emotion_encoder: bool = field(default=True, metadata={"help": "Emotion encoder (Fig. 6)."})
    emotion_encoder_attention: str = field(default="causal", metadata={"choices": ["causal", "bidirectional"]})
    use_vad_head: bool = field(default=True, metadata={"help": "VAD head and emotion loss (Fig. 5)."})
    contrastive_negatives: list[str] = field(
        default_factory=lambda: ["emotion", "image"],
        metadata={"help": "'emotion', 'image' or both (Fig. 7); 'none': no contrastive head (Fig. 5)."},
    )
    ask_every_label: bool = field(
        default=True,
        metadata={"help": "Learn the labels of both sentences of a pair, as the authors do (docs/training.md)."},
    )
    contrastive_loss_weight: float = field(default=2.0, metadata={"help": "The paper's alpha (Eq. 8)."})
    dropout: float | None = field(
        default=None, metadata={"help": "Of the decoder's embeddings and blocks (preset paper); its own by default."}
    )
    label_loss_weight: float = field(
        default=0.0, metadata={"help": "Of a loss beyond the paper: all viewers' labels at once (docs/training.md)."}
    )
    cache_features: str | None = field(
        default=None, metadata={"help": "Folder in which the frozen tower's features are kept, to train from them."}
    )
    cache_dtype: str = field(default="float16", metadata={"help": "Of these features.", "choices": CACHE_DTYPES})

    def config_fields(self) -> dict:
        names = ("use_vad_features", "use_emotion_encoder", "emotion_encoder_attention", "use_vad_head")
        negatives = [] if self.contrastive_negatives == ["none"] else self.contrastive_negatives
        return {name: getattr(self, name) for name in names} | {
            "contrastive_negatives": negatives,
            "contrastive_loss_weight": self.contrastive_loss_weight,
            "label_loss_weight": self.label_loss_weight,
        }


def build_paper(args: ModelArguments, **processor_fields) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """Pretrained towers, the vision tower frozen."""
    processor = SEVLMProcessor.from_backbones(
        args.vision_model,
        args.text_model,
        image_size=args.image_size,
        image_statistics=args.image_statistics,
        **processor_fields,
    )
    text_config = {} if args.dropout is None else dict.fromkeys(("embd_pdrop", "resid_pdrop"), args.dropout)
    model = SEVLMForConditionalGeneration.from_backbones(
        args.vision_model, args.text_model, processor, text_config=text_config, **args.config_fields()
    )
    return model, processor


def build_tiny(
    args: ModelArguments, splits: DatasetDict, **processor_fields
) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """A small model of the same classes from nothing; the tower learns too, as there is nothing pretrained in it."""
    explanations = [sentence for row in splits["train"]["explanations"] for sentence in row]
    tokenizer = train_tokenizer(explanations, processor_fields["emotions"], args.vocab_size)
    tokenizer.model_max_length = TINY_POSITIONS
    processor = SEVLMProcessor.from_tokenizer(
        tokenizer,
        image_size=args.image_size,
        image_statistics=args.image_statistics or "clip",
        **processor_fields,
    )
    vision_config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=args.image_size,
        patch_size=args.image_size // 8,
    )
    # GPT-2's 0.02 is made for a width of 768; in a narrow decoder cross-attention would hardly wake up with it.
    initializer_range = 0.06
    text_config = GPT2Config(
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=TINY_POSITIONS,
        embd_pdrop=0.05,
        attn_pdrop=0.05,
        resid_pdrop=0.05,
        vocab_size=len(processor.tokenizer),
        initializer_range=initializer_range,
        bos_token_id=None,  # the processor's, below
        eos_token_id=None,
    )
    config = SEVLMConfig(
        vision_config=vision_config,
        text_config=text_config,
        initializer_range=initializer_range,
        **processor.token_layout(),
        **args.config_fields(),
    )
    model = SEVLMForConditionalGeneration(config)
    if processor.vad_lexicon is not None:
        model.set_vad_lexicon(processor.vad_lexicon, processor.tokenizer)
    return model, processor


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, SEVLMTrainingArguments]:
    first_look = argparse.ArgumentParser(add_help=False)
    for name in ("--preset", "--annotations", "--dataset"):
        first_look.add_argument(name)
    named, _ = first_look.parse_known_args(argv)
    preset = named.preset or ("paper" if named.annotations or named.dataset else "tiny")
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, SEVLMTrainingArguments),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(**PRESETS.get(preset, {}), preset=preset)
    return parse_arguments(parser, argv)


def check_arguments(data_args: DataArguments, training_args: SEVLMTrainingArguments) -> None:
    """Settle what depends on several arguments; stop on what cannot work before anything is loaded or written."""
    if data_args.vad_lexicon is None:
        if not data_args.is_embedded:
            sys.exit(
                "error: name the VAD lexicon: --vad_lexicon NRC-VAD-Lexicon.txt (the paper's), 'embedded' (a small "
                "one of our own) or 'none'."
            )
        data_args.vad_lexicon = "embedded"
    if training_args.n_gpu > 1:
        sys.exit("error: several GPUs are used through `accelerate launch train.py ...`, one process each.")
    settle_resumption(training_args)
    if training_args.should_save:
        with failures_as_exit():
            check_writable(training_args.output_dir)


def settle_resumption(training_args: SEVLMTrainingArguments) -> None:
    """Put the folder of a whole checkpoint in place of `--resume_from_checkpoint true`, or nothing where none is."""
    folder, chosen = training_args.output_dir, training_args.resume_from_checkpoint
    usable = []
    for checkpoint in checkpoints(folder):
        if problem := defect(checkpoint):
            tell(training_args, f"{checkpoint} is not whole ({problem}) and is left alone.")
        else:
            usable.append(checkpoint)
    if chosen is not None and chosen.lower() == "true":
        chosen = str(usable[-1]) if usable else None
        where = f"Training goes on from {chosen}." if chosen else f"No checkpoint in {folder} yet: training begins."
        tell(training_args, where)
    elif chosen is not None and (problem := defect(chosen)):
        sys.exit(
            f"error: training cannot go on from {chosen}: {problem}. Name another checkpoint, or let "
            "--resume_from_checkpoint true find the newest whole one."
        )
    training_args.resume_from_checkpoint = chosen
    step = json.loads(Path(chosen, STATE_FILE).read_text(encoding="utf-8"))["global_step"] if chosen else 0
    # Two runs in a folder: the next one to resume would take up the wrong one.
    if later := [str(checkpoint) for checkpoint in usable if step_of(checkpoint) > step]:
        sys.exit(
            f"error: {folder} holds checkpoints of an earlier run: {', '.join(later)}. Go on with it "
            "(--resume_from_checkpoint true), remove them, or name another --output_dir."
        )


def tell(training_args: SEVLMTrainingArguments, text: str) -> None:
    if training_args.process_index == 0:
        print(text, flush=True)


@contextlib.contextmanager
def failures_as_exit():
    """What the machine or the data do to a run ends it with a line that says what to do, instead of a traceback."""
    try:
        yield
    except (OSError, NonFiniteError) as error:
        sys.exit(f"error: {error}")


def fill_cache(
    model, processor, splits: list[Dataset], model_args: ModelArguments, training_args: SEVLMTrainingArguments
) -> list[CachedFeatures]:
    """The features of each split's pictures, from `--cache_features`; what is not there is encoded."""
    if not model.vision_tower_is_frozen:
        sys.exit("error: --cache_features needs a frozen vision tower; here (preset tiny) the tower learns too.")
    if training_args.resume_from_checkpoint:
        # The trainer is going to load the checkpoint's tower; the features have to be the same one's.
        saved = SEVLMForConditionalGeneration.from_pretrained(training_args.resume_from_checkpoint)
        model.vision_tower.load_state_dict(saved.vision_tower.state_dict())
    try:
        features = cache_features(
            model.to(training_args.device),
            processor,
            splits,
            model_args.cache_features,
            dtype=model_args.cache_dtype,
            batch_size=training_args.per_device_train_batch_size,
            num_workers=training_args.dataloader_num_workers,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if training_args.process_index == 0:
        print(features[0].cache.report(), flush=True)
    return features


def choose_metric(training_args: SEVLMTrainingArguments, shown: Dataset) -> None:
    """Fall back from accuracy to a metric that exists: without a painting that has a dominant emotion there is no
    accuracy, without generation no more than the loss."""
    generated = ("accuracy", "unique", "label_nll")
    if training_args.metric_for_best_model in generated and not len(shown):
        training_args.metric_for_best_model, training_args.greater_is_better = "loss", False
    elif training_args.metric_for_best_model == "accuracy":
        if all(dominant_emotion(histogram) is None for histogram in shown["emotion_histogram"]):
            training_args.metric_for_best_model, training_args.greater_is_better = "label_nll", False


def main(argv: list[str] | None = None) -> SEVLMTrainer:
    model_args, data_args, training_args = parse(list(sys.argv[1:] if argv is None else argv))
    check_arguments(data_args, training_args)
    splits, lexicon = load_inputs(data_args, data_args.labels)
    missing = {"train", "validation"} - set(splits)
    if missing:
        sys.exit(f"error: the data has no split {' and no split '.join(sorted(missing))}; it has {sorted(splits)}.")
    set_seed(training_args.seed)
    processor_fields = {"vad_lexicon": lexicon, "emotions": data_args.labels, "max_length": model_args.max_length}
    with errors_as_exit():
        if model_args.preset == "tiny":
            model, processor = build_tiny(model_args, splits, **processor_fields)
        else:
            model, processor = build_paper(model_args, **processor_fields)

    # Rows are sorted by style and painter: a slice of them would be judged on a few styles only.
    validation = splits["validation"].shuffle(seed=training_args.seed)
    shown = validation.select(range(min(training_args.generation_samples, len(validation))))
    choose_metric(training_args, shown)

    train_features = validation_features = None
    if model_args.cache_features:
        train_features, validation_features = fill_cache(
            model, processor, [splits["train"], validation], model_args, training_args
        )

    def generation_metrics(model) -> dict[str, float]:
        predictions = predict(
            model,
            processor,
            shown,
            batch_size=training_args.per_device_eval_batch_size,
            features=validation_features,
        )
        figures, _ = score(predictions, shown, captions=False)
        return {name: figures[name] for name in ("accuracy", "unique", "label_nll") if figures[name] is not None}

    trainer = SEVLMTrainer(
        model=model,
        args=training_args,
        train_dataset=SentencePairs(splits["train"], seed=training_args.seed, features=train_features),
        eval_dataset=SentencePairs(validation, seed=training_args.seed, features=validation_features),
        data_collator=SEVLMCollator(processor, ask_every_label=model_args.ask_every_label),
        processing_class=processor,
        generation_metrics=generation_metrics if len(shown) else None,
    )
    if training_args.early_stopping_patience and training_args.eval_strategy != "no":
        trainer.add_callback(EarlyStopping(training_args.early_stopping_patience))
    watch(trainer, processor, validation)
    if trainer.is_world_process_zero():
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(
            f"{model.num_parameters():,} parameters, {learning:,} of them learning; {len(splits['train'])} paintings; "
            f"{training_args.world_size} process(es) on {training_args.device.type}",
            flush=True,
        )
    with failures_as_exit():
        train_and_save(trainer, training_record(model_args, data_args, trainer))
    return trainer


def train_and_save(trainer: SEVLMTrainer, record: dict) -> None:
    """Train, and leave model, log and record in the output folder and, if asked to, on the Hub."""
    args = trainer.args
    if trainer.is_world_process_zero():
        if args.save_strategy != "no":
            check_writable(args.output_dir, checkpoint_size(trainer.model))
        # Before a push, as the model card tells of it; that of a checkpoint does so too.
        write_json(Path(args.output_dir, TRAINING_FILE), record | {"best_metric": trainer.state.best_metric})
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        write_json(Path(args.output_dir, LOG_FILE), trainer.state.log_history)
        write_json(Path(args.output_dir, TRAINING_FILE), record | {"best_metric": trainer.state.best_metric})
    if args.push_to_hub:
        trainer.push_to_hub()  # saves the model, too
    else:
        trainer.save_model()
    trainer.accelerator.wait_for_everyone()  # whoever returns finds the files whole


def checkpoint_size(model: SEVLMForConditionalGeneration) -> int:
    """Bytes of the weights and of the two means that Adam keeps of each parameter that learns."""
    return sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in model.parameters())


def watch(trainer: SEVLMTrainer, processor: SEVLMProcessor, validation: Dataset) -> None:
    """Sheets of a few validation paintings, where they can be drawn."""
    number = min(trainer.args.sheet_paintings, len(validation))
    if number <= 0 or trainer.args.eval_strategy == "no":
        return
    if importlib.util.find_spec("matplotlib") is None:
        print("No sheets of explanations, as matplotlib is missing: pip install -e '.[demo]', or --sheet_paintings 0.")
        return
    trainer.add_callback(ExplanationSheets(trainer, processor, validation.select(range(number))))


def training_record(model_args: ModelArguments, data_args: DataArguments, trainer: SEVLMTrainer) -> dict:
    """What the model card tells of a run beyond its log."""
    names = ("learning_rate", "vad_learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "seed")
    names += ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "bf16", "fp16")
    return {
        "data": asdict(data_args),
        "preset": model_args.preset,
        "arguments": {name: getattr(trainer.args, name) for name in names},
    }


if __name__ == "__main__":
    main()
