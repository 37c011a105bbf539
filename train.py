# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Train SEVLM.

    python train.py                                        # a tiny model on the embedded data, two minutes on a CPU
    accelerate launch train.py --annotations artemis.csv --images wikiart/ --vad_lexicon NRC-VAD-Lexicon.txt \
        --output_dir outputs/sevlm-artemis                 # the paper's recipe
    python train.py ... --resume_from_checkpoint outputs/sevlm-artemis/checkpoint-2000

`--preset tiny` starts everything from nothing, tower and tokenizer included, and downloads nothing; `--preset paper`
(the default once data is named) starts from CLIP ViT-B/16, frozen, and DistilGPT2. All arguments of transformers'
`TrainingArguments` are accepted; presets set defaults only.
"""

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from datasets import DatasetDict
from transformers import CLIPVisionConfig, EarlyStoppingCallback, GPT2Config, HfArgumentParser, set_seed

from evaluate_sevlm import predict, score, write_json
from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from modeling_sevlm.trainer_sevlm import SEVLMTrainer, SEVLMTrainingArguments
from processing import SEVLMProcessor
from processing.artemis import EMOTIONS
from processing.collator import SentencePairs, SEVLMCollator
from processing.data_arguments import DataArguments, load_data, load_lexicon
from processing.tiny_tokenizer import train_tokenizer


PRESETS = {
    "paper": {},
    "tiny": {
        "image_size": 64,
        "output_dir": "outputs/tiny",
        "learning_rate": 1e-3,
        "vad_learning_rate": 2e-3,
        "num_train_epochs": 20,
        "warmup_steps": 20,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "early_stopping_patience": 0,
        "generation_samples": 60,
        "logging_steps": 10,
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
    contrastive_loss_weight: float = field(default=2.0, metadata={"help": "The paper's alpha (Eq. 8)."})

    def config_fields(self) -> dict:
        names = ("use_vad_features", "use_emotion_encoder", "emotion_encoder_attention", "use_vad_head")
        negatives = [] if self.contrastive_negatives == ["none"] else self.contrastive_negatives
        return {name: getattr(self, name) for name in names} | {
            "contrastive_negatives": negatives,
            "contrastive_loss_weight": self.contrastive_loss_weight,
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
    model = SEVLMForConditionalGeneration.from_backbones(
        args.vision_model, args.text_model, processor, **args.config_fields()
    )
    return model, processor


def build_tiny(
    args: ModelArguments, splits: DatasetDict, **processor_fields
) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """A small model of the same classes from nothing; the tower learns too, as there is nothing pretrained in it."""
    explanations = [sentence for row in splits["train"]["explanations"] for sentence in row]
    processor = SEVLMProcessor.from_tokenizer(
        train_tokenizer(explanations, processor_fields["emotions"], args.vocab_size),
        image_size=args.image_size,
        image_statistics=args.image_statistics or "clip",
        **processor_fields,
    )
    layout = processor.token_layout()
    specials = {name: layout[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision_config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=args.image_size,
        patch_size=args.image_size // 8,
    )
    text_config = GPT2Config(
        n_embd=128, n_layer=3, n_head=4, n_positions=128, vocab_size=len(processor.tokenizer), **specials
    )
    config = SEVLMConfig(vision_config=vision_config, text_config=text_config, **layout, **args.config_fields())
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
    return parser.parse_args_into_dataclasses(argv)


def main(argv: list[str] | None = None) -> SEVLMTrainer:
    model_args, data_args, training_args = parse(list(sys.argv[1:] if argv is None else argv))
    emotions = [e for e in EMOTIONS if not (data_args.drop_something_else and e == "something else")]
    splits = load_data(data_args, emotions)
    lexicon = load_lexicon(data_args.vad_lexicon)
    set_seed(training_args.seed)
    processor_fields = {"vad_lexicon": lexicon, "emotions": emotions, "max_length": model_args.max_length}
    if model_args.preset == "tiny":
        model, processor = build_tiny(model_args, splits, **processor_fields)
    else:
        model, processor = build_paper(model_args, **processor_fields)

    validation = splits["validation"]
    shown = validation.select(range(min(training_args.generation_samples, len(validation))))

    def generation_metrics(model) -> dict[str, float]:
        predictions = predict(model, processor, shown, batch_size=training_args.per_device_eval_batch_size)
        figures = score(predictions, shown, None)
        return {name: figures[name] for name in ("accuracy", "unique", "label_nll") if figures[name] is not None}

    trainer = SEVLMTrainer(
        model=model,
        args=training_args,
        train_dataset=SentencePairs(splits["train"], seed=training_args.seed),
        eval_dataset=SentencePairs(validation, seed=training_args.seed),
        data_collator=SEVLMCollator(processor),
        processing_class=processor,
        generation_metrics=generation_metrics if len(shown) else None,
    )
    if training_args.early_stopping_patience and training_args.load_best_model_at_end:
        trainer.add_callback(EarlyStoppingCallback(training_args.early_stopping_patience))
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        write_json(Path(training_args.output_dir, "training_log.json"), trainer.state.log_history)
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return trainer


if __name__ == "__main__":
    main()
