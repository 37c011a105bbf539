"""`train`: sentences per second of an optimizer step against the authors' step. With `--epoch`: the time of a whole
epoch through the trainer, without reading features from a slow disk, evaluation and checkpoints."""

import tempfile

import numpy as np
import torch
from datasets import concatenate_datasets
from torch.utils.data import Subset

from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments, parameter_groups
from processing.artemis import load_artemis
from processing.collator import SentencePairs, SEVLMCollator

from .inputs import Inputs, make_inputs, write_annotations
from .measure import interleaved, mib, peak_memory, rate_table, speedup, table
from .recompute import Recompute


YARDSTICK = "authors' step float32"
IMAGE_INPUT = {"authors": "pixel_values", "pixels": "pixel_values", "cached features": "image_features"}
DISTINCT_FEATURES, PAPER_EPOCHS = 4096, 35  # random features, used again for the other paintings


class Step:
    """One optimizer step on one batch; bfloat16 means autocast. Steps may share a model but have own optimizers."""

    def __init__(self, model, processor, batch: dict[str, torch.Tensor], kind: str, dtype: str):
        self.model, self.max_grad_norm = model, None
        self.image = {IMAGE_INPUT[kind]: batch[IMAGE_INPUT[kind]]}
        self.text = {name: batch[name] for name in batch if name not in IMAGE_INPUT.values()}
        self.autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        self.yardstick = Recompute(model, processor) if kind == "authors" else None
        use_cpu = model.device.type == "cpu"
        settings = SEVLMTrainingArguments(output_dir=tempfile.gettempdir(), report_to="none", use_cpu=use_cpu)
        groups = parameter_groups(model, settings)
        if self.yardstick is not None:
            self.optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
        else:
            optimizer, kwargs = SEVLMTrainer.get_optimizer_cls_and_kwargs(settings, model)
            self.optimizer, self.max_grad_norm = optimizer(groups, **kwargs), settings.max_grad_norm

    def losses(self) -> dict[str, torch.Tensor]:
        if self.yardstick is not None:
            self.yardstick.blocks.train(self.model.training)
            return self.yardstick.training_losses(self.image["pixel_values"], self.text)
        with self.autocast:
            output = self.model(**self.image, **self.text, skip_logits=True)  # as in the trainer
        return {name: output[name] for name in ("language_loss", "emotion_loss", "contrastive_loss")}

    def __call__(self) -> None:
        self.model.train()
        sum(getattr(self.model.config, f"{name}_weight") * loss for name, loss in self.losses().items()).backward()
        if self.max_grad_norm:
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def run_train(args) -> dict:
    inputs = make_inputs(args.size)
    if args.epoch is not None:
        return measure_epoch(inputs, args)
    variants = {YARDSTICK: ("authors", "float32")}
    variants |= {f"ours, {kind} {dtype}": (kind, dtype) for dtype in args.dtype for kind in list(IMAGE_INPUT)[1:]}
    steps = make_steps(inputs, variants, args)
    checks, timings = compare_losses(steps), interleaved(steps, args.repeats, args.device)
    title = f"One optimizer step, {args.batch_size} images with 2 sentences each"
    columns = {"x yardstick": lambda name, timing: speedup(timings[YARDSTICK], timing)}
    tables = [rate_table(title, timings, 2 * args.batch_size, "sentences", columns)]
    return {"tables": tables, "checks": checks, "measurements": timings}


def make_steps(inputs: Inputs, variants: dict[str, tuple[str, str]], args) -> dict[str, Step]:
    """Steps of one model on the same sentences, with images or with their features as the cache stores them."""
    model = inputs.model().to(args.device)
    batch = inputs.training_text(args.batch_size) | {"pixel_values": inputs.pixel_values(args.batch_size)}
    batch = {name: values.to(args.device) for name, values in batch.items()}
    with torch.no_grad():
        batch["image_features"] = model.encode_images(batch["pixel_values"]).half()
    return {name: Step(model, inputs.processor, batch, *variant) for name, variant in variants.items()}


@torch.no_grad()
def compare_losses(steps: dict[str, Step]) -> dict[str, float]:
    """Largest relative difference of a loss from the yardstick's, without dropout, for every other variant. Raises an
    AssertionError if float32 losses differ by more than rounding (the cached features are in float16)."""
    steps[YARDSTICK].model.eval()
    losses = {name: torch.stack(list(step.losses().values())) for name, step in steps.items()}
    checks, expected = {}, losses.pop(YARDSTICK)
    for name, found in losses.items():
        difference = (found / expected - 1).abs().max().item()
        checks[f"{name}: largest relative difference of a loss"] = difference
        if name.endswith("float32") and difference > (1e-2 if "features" in name else 1e-4):
            raise AssertionError(f"The losses of {name!r} are not the yardstick's: relative difference {difference}.")
    return checks


def measure_epoch(inputs: Inputs, args) -> dict:
    """An epoch of `args.epoch` paintings through the trainer of `train.py`, in bfloat16 if `args.dtype` has it."""
    model, bf16 = inputs.model(), "bfloat16" in args.dtype
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    features = torch.randn(min(args.epoch, DISTINCT_FEATURES), patches, vision.hidden_size, dtype=torch.float16)
    with tempfile.TemporaryDirectory() as folder:
        write_annotations(inputs.words, f"{folder}/annotations.csv", args.epoch)
        splits = load_artemis(f"{folder}/annotations.csv", with_images=False)
        settings = SEVLMTrainingArguments(
            output_dir=folder,
            use_cpu=args.device.type == "cpu",
            bf16=bf16,
            num_train_epochs=1,
            per_device_train_batch_size=args.batch_size,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            early_stopping_patience=0,
            disable_tqdm=True,
            report_to="none",
        )
        features = Subset(features, np.arange(args.epoch) % len(features))
        trainer = SEVLMTrainer(
            model=model,
            args=settings,
            train_dataset=SentencePairs(concatenate_datasets([*splits.values()]), features=features),
            data_collator=SEVLMCollator(inputs.processor),
            processing_class=inputs.processor,
        )
        peak = peak_memory(trainer.train, args.device)
    seconds, steps = trainer.state.log_history[-1]["train_runtime"], trainer.state.global_step
    row = [args.epoch, steps, 2 * args.epoch / seconds, seconds, PAPER_EPOCHS * seconds / 3600, mib(peak)]
    columns = ["paintings", "steps", "sentences/s", "epoch, s", f"{PAPER_EPOCHS} epochs, h", "peak MiB"]
    dtype = "bfloat16 autocast" if bf16 else "float32"
    title = f"An epoch through the trainer, cached features, {args.batch_size} paintings a step, {dtype}"
    return {"tables": [table(title, columns, [row])]}
