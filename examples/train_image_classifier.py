"""An image emotion classifier: the first stage of two-stage systems, such as the paper's SAT + ResNet-34.

    python examples/train_image_classifier.py --annotations artemis.csv --images wikiart/ \
        --output_dir outputs/classifier
    python evaluate_sevlm.py MODEL ... --emotions outputs/classifier/emotions-test.csv

Any image model of transformers learns the distribution of the viewers' labels. Writes the checkpoint, `results.json`,
and `emotions-SPLIT.csv` (painting, emotion, emotion_scores) for every split.
"""

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    CLIPImageProcessorPil,
    HfArgumentParser,
    Trainer,
    ViTConfig,
    set_seed,
)

from evaluation.scoring import label_distributions
from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores
from modeling_sevlm.trainer import TokenSafeTrainingArguments
from processing.files import write_json, write_text
from processing.script_utils import DataArguments, errors_as_exit, load_inputs


@dataclass
class ClassifierArguments:
    vision_model: str | None = field(
        default=None,
        metadata={"help": "Checkpoint (default: ViT-B/16), or 'tiny': a small new ViT (embedded data's default)."},
    )
    image_size: int = field(default=224, metadata={"help": "Size to which images are resized, in pixels."})
    freeze_tower: bool = field(default=False, metadata={"help": "Train the last layer only, a linear probe."})


@dataclass(repr=False)
class ClassifierTrainingArguments(TokenSafeTrainingArguments):
    output_dir: str | None = "outputs/image_classifier"
    learning_rate: float = 5e-5
    num_train_epochs: float = 10
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    warmup_steps: float = 0.1
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool | None = True
    metric_for_best_model: str | None = "loss"
    remove_unused_columns: bool | None = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)


class DistributionTrainer(Trainer):
    """Cross-entropy with a distribution over the labels."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(pixel_values=inputs["pixel_values"]).logits
        loss = torch.nn.functional.cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


def build(args: ClassifierArguments, emotions: list[str]) -> tuple[torch.nn.Module, CLIPImageProcessorPil]:
    labels = {"id2label": dict(enumerate(emotions)), "label2id": {name: i for i, name in enumerate(emotions)}}
    if args.vision_model == "tiny":
        sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
        sizes |= {"image_size": args.image_size, "patch_size": max(1, args.image_size // 8)}
        model = AutoModelForImageClassification.from_config(ViTConfig(**sizes, **labels))
        mean = std = [0.5] * 3
    else:
        config = AutoConfig.from_pretrained(args.vision_model, **labels)
        loaded = {"config": config, "ignore_mismatched_sizes": True}
        model = AutoModelForImageClassification.from_pretrained(args.vision_model, **loaded)
        tower, _ = CLIPImageProcessorPil.get_image_processor_dict(args.vision_model)
        mean, std = tower["image_mean"], tower["image_std"]
    if args.freeze_tower:
        model.base_model.requires_grad_(False)
    settings = {"size": {"height": args.image_size, "width": args.image_size}, "do_center_crop": False}
    return model, CLIPImageProcessorPil(**settings, image_mean=mean, image_std=std)


def collate(image_processor, rows: list[dict]) -> dict[str, torch.Tensor]:
    pixel_values = image_processor([row["image"].convert("RGB") for row in rows], return_tensors="pt")
    shares = label_distributions([row["emotion_histogram"] for row in rows])
    return {**pixel_values, "labels": torch.tensor(shares, dtype=torch.float32)}


def main(argv: list[str] | None = None) -> dict:
    parser = HfArgumentParser((ClassifierArguments, DataArguments, ClassifierTrainingArguments), description=__doc__)
    args, data_args, training_args = parser.parse_args_into_dataclasses(list(sys.argv[1:] if argv is None else argv))
    emotions, folder = data_args.labels, Path(training_args.output_dir)
    if args.vision_model is None:
        args.vision_model = "tiny" if data_args.is_embedded else "google/vit-base-patch16-224-in21k"
    with errors_as_exit():
        training_args.check_output_dir()
        splits, _ = load_inputs(data_args, emotions)
        if not {"train", "validation"} <= set(splits):
            raise ValueError(f"the data needs the splits train and validation; it has {sorted(splits)}.")
        set_seed(training_args.seed)
        model, image_processor = build(args, emotions)
    splits = splits.select_columns(["image", "painting", "emotion_histogram"])
    trainer = DistributionTrainer(
        model=model,
        args=training_args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=partial(collate, image_processor),
        processing_class=image_processor,
    )
    training_args.clear_output_dir()
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    results = {}
    for split, dataset in splits.items():
        logits = torch.as_tensor(trainer.predict(dataset).predictions, dtype=torch.float64)
        if not trainer.is_world_process_zero():
            continue
        scores = logits.softmax(dim=-1).numpy()
        predicted = [emotions[label] for label in scores.argmax(axis=1)]
        table = pd.DataFrame({"painting": dataset["painting"][:], "emotion": predicted})
        table["emotion_scores"] = [json.dumps(dict(zip(emotions, row, strict=True))) for row in scores.tolist()]
        write_text(folder / f"emotions-{split}.csv", table.to_csv(index=False, lineterminator="\n"))
        figures = emotion_prediction_scores(predicted, dataset["emotion_histogram"][:], emotions, scores=scores)
        results[split] = {"num_paintings": len(dataset)} | figures
        accuracy = "-" if figures["accuracy"] is None else f"{figures['accuracy']:.4f}"
        print(f"{split:>10}  accuracy {accuracy} of {figures['num_dominant']}  label_nll {figures['label_nll']:.4f}")
    if trainer.is_world_process_zero():
        write_json(folder / "results.json", results)
    return results


if __name__ == "__main__":
    main()
