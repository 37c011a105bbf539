# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`train`: sentences per second of one optimizer step against the authors' step, and of a whole epoch through the
trainer (`--epoch`)."""

import io
import tempfile
from collections.abc import Callable

import torch
from PIL import Image

from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments, parameter_groups

from .epoch import measure_epoch
from .inputs import Inputs, make_inputs, make_jpeg
from .measure import PeakMemory, interleaved, speedup
from .recompute import Recompute
from .results import table


YARDSTICK = "authors' step float32"
JPEG_SIZE = (1024, 768)
JPEGS = {"full": 32, "tiny": 2}
SENTENCES = 2  # of a picture


class Step:
    """One optimizer step on one batch, in one of the variants that are compared.

    Args:
        model: on its device; variants may share it, each has its own optimizer states.
        kind: "authors", "pixels" or "features".
        dtype: "bfloat16" for autocast.
    """

    def __init__(self, model, processor, batch: dict[str, torch.Tensor], kind: str, dtype: str):
        self.model, self.kind = model, kind
        self.autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == "bfloat16")
        self.text = {name: batch[name] for name in batch if name not in ("pixel_values", "image_features")}
        self.picture = {name: batch[name] for name in (_PICTURE[kind],)}
        with tempfile.TemporaryDirectory() as folder:
            use_cpu = model.device.type == "cpu"
            settings = SEVLMTrainingArguments(output_dir=folder, report_to="none", use_cpu=use_cpu)
        groups = parameter_groups(model, settings)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        if kind == "authors":
            self.yardstick = Recompute(model, processor)
            self.max_grad_norm = None
            self.optimizer = torch.optim.AdamW(groups, foreach=False, fused=False)
        else:
            self.max_grad_norm = settings.max_grad_norm
            optimizer, kwargs = SEVLMTrainer.get_optimizer_cls_and_kwargs(settings, model)
            self.optimizer = optimizer(groups, **kwargs)

    def losses(self) -> dict[str, torch.Tensor]:
        if self.kind == "authors":
            self.yardstick.blocks.train(self.model.training)
            return self.yardstick.training_losses(self.picture["pixel_values"], self.text)
        with self.autocast:
            output = self.model(**self.picture, **self.text, skip_logits=True)  # as the trainer calls it
        return {name: output[name] for name in ("language_loss", "emotion_loss", "contrastive_loss")}

    def __call__(self) -> None:
        self.model.train()
        total = sum(getattr(self.model.config, f"{name}_weight") * loss for name, loss in self.losses().items())
        total.backward()
        if self.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


_PICTURE = {"authors": "pixel_values", "pixels": "pixel_values", "features": "image_features"}
VARIANTS = {"authors": "authors' step", "pixels": "ours, pixels", "features": "ours, cached features"}


def run_train(args) -> dict:
    """The command `train`."""
    inputs = make_inputs(args.size)
    if args.epoch is not None:
        return measure_epoch(inputs, args)
    if args.batch_size < 2:
        raise SystemExit("error: the contrastive loss takes its negatives from a batch of 2 pictures or more.")
    model = inputs.model().to(args.device)
    batch = make_batch(inputs, model, args)
    names = {YARDSTICK: ("authors", "float32")}
    names |= {f"{VARIANTS[kind]} {dtype}": (kind, dtype) for dtype in args.dtype for kind in ("pixels", "features")}
    steps = {name: Step(model, inputs.processor, batch, *variant) for name, variant in names.items()}
    checks = compare_losses(steps)
    timings = interleaved(steps, args.repeats, device=args.device, warmup=args.warmup)
    sizes = {"sentences": SENTENCES * args.batch_size, "tokens a sentence, longest": batch["input_ids"].shape[-1]}
    del steps, model
    peaks = {name: peak_memory(inputs, args, *variant) for name, variant in names.items()}

    rows = []
    for name, timing in timings.items():
        rate, peak = SENTENCES * args.batch_size / timing.median, peaks[name]
        spread = [timing.median, *timing.quartiles]
        faster = speedup(timings[YARDSTICK], timing)
        rows.append([name, rate, spread, faster, None if peak is None else peak / 2**20])
    columns = ["", "sentences/s", "seconds a step (median, quartiles)", "x yardstick", "peak MiB, model included"]
    title = f"One optimizer step, {args.batch_size} pictures with {SENTENCES} sentences each"
    decoding = decode_pictures(inputs, args)
    return {
        "tables": [table(title, columns, rows), decoding.pop("table")],
        "checks": checks,
        "sizes": sizes,
        "measurements": {name: timing.to_dict() for name, timing in timings.items()},
        "peak_memory_bytes": peaks,
        "decoding": decoding,
    }


def make_batch(inputs: Inputs, model, args) -> dict[str, torch.Tensor]:
    """The same sentences for every variant, with pictures and with their features as the cache stores them."""
    batch = inputs.training_text(args.batch_size) | {"pixel_values": inputs.pixel_values(args.batch_size)}
    batch = {name: values.to(args.device) for name, values in batch.items()}
    with torch.no_grad():
        batch["image_features"] = model.get_image_features(batch["pixel_values"]).half()
    return batch


@torch.no_grad()
def compare_losses(steps: dict[str, Step]) -> dict:
    """Losses of every variant against the yardstick's, without dropout. In float32 they must be equal (from cached
    features up to the rounding of float16).

    Raises:
        AssertionError: they are not.
    """
    checks = {}
    expected = steps[YARDSTICK]
    expected.model.eval()
    wanted = expected.losses()
    for name, step in steps.items():
        if name == YARDSTICK:
            continue
        found = step.losses()
        differences = {part: abs(found[part].item() / wanted[part].item() - 1) for part in wanted}
        checks[f"{name}: largest relative difference of a loss"] = max(differences.values())
        if name.endswith("float32") and max(differences.values()) > (1e-2 if step.kind == "features" else 1e-4):
            raise AssertionError(
                f"The losses of {name!r} are not the yardstick's: relative differences {differences}."
            )
    return checks


def peak_memory(inputs: Inputs, args, kind: str, dtype: str) -> int | None:
    """Of two steps with nothing else on the device: weights (the tower's included), gradients, optimizer states,
    activations. In bytes."""
    memory = PeakMemory(args.device)
    model = inputs.model().to(args.device)
    step = Step(model, inputs.processor, make_batch(inputs, model, args), kind, dtype)
    for _ in range(2):
        step()
    return memory.taken()


def decode_pictures(inputs: Inputs, args) -> dict:
    """How many JPEG files one core decodes, squashes and normalises in a second: what a loader's worker can feed."""
    width, height = JPEG_SIZE
    files = [make_jpeg(width, height, seed) for seed in range(JPEGS[args.size])]
    image_processor = inputs.processor.image_processor

    def each(do: Callable[[Image.Image], object]) -> Callable[[], None]:
        return lambda: [do(Image.open(io.BytesIO(file))) for file in files] and None

    variants = {
        "decode": each(lambda picture: picture.convert("RGB")),
        "decode, squash, normalise": each(lambda picture: image_processor(picture, return_tensors="np")),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timings = interleaved(variants, args.repeats)
    finally:
        torch.set_num_threads(threads)
    rows = [[name, len(files) / timing.median] for name, timing in timings.items()]
    title = f"JPEG files of {width} x {height} pixels to {inputs.size.image_size} x {inputs.size.image_size}"
    return {
        "table": table(title, ["", "pictures/s on one core"], rows),
        "measurements": {name: timing.to_dict() for name, timing in timings.items()},
    }
