r"""Measures what a model costs (Table 3): parameters, FLOPs, training step, images per second, training hours.

    python -m studies.cost outputs/sevlm-artemis --baseline outputs/baseline --vad_lexicon NRC-VAD-Lexicon.txt \
        --output table3.md

FLOPs are those of one forward pass of a picture and the prompt, without a cache; the paper's "19.33 G" are
multiply-adds, half of them. The paper counts CLIP's output projection as parameters, which the model does not have.
A training step has 32 pictures with two sentences of the full length, in float32, from pixels on. Images per second:
from pixels to a sentence of exactly 25 tokens, greedy, one picture at a time. Training hours are the mean time of an
epoch in the run's `training_log.json`, with its evaluations, times the paper's number of epochs ("-" for a resumed
run). Inputs are random, since they do not change the figures. Writes the figures to a .json file as well.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from evaluation.report import markdown_table, versions
from modeling_sevlm.lexicon import load_with_lexicon
from modeling_sevlm.paper_results import PAPER_COSTS
from modeling_sevlm.training_folder import LOG_FILE, TRAINING_FILE
from processing.files import write_json, write_text
from processing.script_utils import errors_as_exit, load_lexicon


PAPER_EPOCHS = {"SEVLM": 35, "Baseline": 15}
HEADINGS = (
    "parameters",
    "of them trainable",
    "with CLIP's projection",
    "FLOPs",
    "multiply-adds",
    "ms per training step",
)
HEADINGS += ("images/s", "s per epoch", "training hours", "epochs")


def count_parameters(model, trains_tower: bool) -> dict[str, int | None]:
    projection = getattr(model.config.vision_config, "projection_dim", None)
    total, tower = model.num_parameters(), model.vision_tower.num_parameters()
    unused = None if projection is None else model.config.vision_config.hidden_size * projection
    with_projection = None if unused is None else total + unused
    return {
        "parameters": total,
        "trainable_parameters": total if trains_tower else total - tower,
        "parameters_with_projection": with_projection,
    }


def count_flops(model, pixel_values: torch.Tensor) -> int:
    """Counts one forward pass of a picture and the prompt; attention in eager mode, where every product is counted."""
    # A convolutional tower has no attention to switch.
    parts = [part for part in (model.decoder, model.vision_tower) if part._supports_sdpa]
    implementations = [part.config._attn_implementation for part in parts]
    for part in parts:
        part.set_attn_implementation("eager")
    prompt = torch.tensor([model.config.prompt_token_ids], device=model.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=prompt, pixel_values=pixel_values[:1])
    for part, implementation in zip(parts, implementations, strict=True):
        part.set_attn_implementation(implementation)
    return counter.get_total_flops()


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median over `repeats` calls, after one that is not timed."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def time_training_step(model, processor, pixel_values: torch.Tensor, repeats: int) -> float:
    first, second, *_ = model.config.emotions
    text = "the light over the sea looks calm and endless " * 8  # longer than a sentence may be
    pairs = {"emotions": [[first, second]] * len(pixel_values), "explanations": [[text, text]] * len(pixel_values)}
    batch = dict(processor(**pairs, return_tensors="pt").to(model.device)) | {"pixel_values": pixel_values}
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)

    def step() -> None:
        model(**batch, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    seconds = median_seconds(step, repeats)
    model.eval()
    return seconds


def read_epoch_seconds(folder: Path) -> float | None:
    """Returns the mean seconds per epoch of the run in `folder`; None without its log, or if it was resumed, because
    the log then has the time of the last part only."""
    record = folder / TRAINING_FILE
    resumed = record.is_file() and json.loads(record.read_text(encoding="utf-8")).get("resumed", False)
    if resumed or not (folder / LOG_FILE).is_file():
        return None
    log = json.loads((folder / LOG_FILE).read_text(encoding="utf-8"))
    ends = [entry for entry in log if "train_runtime" in entry]
    return ends[-1]["train_runtime"] / ends[-1]["epoch"] if ends else None


def measure(name: str, folder: str, lexicon, device: str, batch_size: int, repeats: int) -> dict:
    model, processor = load_with_lexicon(folder, lexicon)
    record = Path(folder, TRAINING_FILE)
    trains_tower = record.is_file() and json.loads(record.read_text(encoding="utf-8"))["preset"] == "tiny"
    if not trains_tower:
        model.freeze_vision_tower()
    model.to(device)
    size = processor.image_processor.size["height"]
    pixel_values = torch.randn(batch_size, 3, size, size, device=device)
    figures = count_parameters(model, trains_tower) | {"flops": count_flops(model, pixel_values)}
    figures["multiply_adds"] = figures["flops"] // 2
    figures["image_seconds"] = median_seconds(
        lambda: model.generate(pixel_values=pixel_values[:1], do_sample=False, min_new_tokens=25, max_new_tokens=25),
        repeats,
    )
    figures["step_seconds"] = time_training_step(model, processor, pixel_values, repeats)
    figures["epoch_seconds"], figures["epochs"] = read_epoch_seconds(Path(folder)), PAPER_EPOCHS[name]
    return figures


def row(name: str, figures: dict) -> list[str]:
    def cell(name: str, scale: float = 1, digits: int = 2, unit: str = "") -> str:
        return "-" if figures[name] is None else f"{figures[name] / scale:.{digits}f}{unit}"

    cells = [cell(key, 1e6, unit=" M") for key in ("parameters", "trainable_parameters", "parameters_with_projection")]
    cells += [cell("flops", 1e9, unit=" G"), cell("multiply_adds", 1e9, unit=" G"), cell("step_seconds", 1e-3, 1)]
    seconds = figures["epoch_seconds"]
    hours = "-" if seconds is None else f"{seconds * figures['epochs'] / 3600:.2f}"
    return [
        name,
        *cells,
        f"{1 / figures['image_seconds']:.2f}",
        cell("epoch_seconds", 1, 1),
        hours,
        str(figures["epochs"]),
    ]


def main(argv: list[str] | None = None) -> dict:
    layout = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m studies.cost", **layout)
    parser.add_argument("model", help="folder of a trained SEVLM")
    parser.add_argument("--baseline", help="folder of the trained baseline")
    parser.add_argument("--vad_lexicon", help="lexicon file of checkpoints that were saved without it")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures in a training step (default: 32)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls; the median counts (default: 10)")
    parser.add_argument("--use_cpu", action="store_true", help="run on the CPU even if there is a GPU")
    parser.add_argument("--output", type=Path, help="NAME.md; NAME.json is written, too (default: only print)")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    threads = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    about = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU ({threads})",
        "versions": versions(),
    }
    with errors_as_exit():
        lexicon = load_lexicon(args.vad_lexicon)
        models = {"Baseline": args.baseline, "SEVLM": args.model} if args.baseline else {"SEVLM": args.model}
        options = (lexicon, device, args.batch_size, args.repeats)
        found = {name: measure(name, folder, *options) for name, folder in models.items()}
    paper = [
        [f"{name} (paper)", f"{count / 1e6:.2f} M", "-", "-", "-", f"{work / 1e9:.2f} G", "-", f"{speed:.2f}"]
        + [f"{3600 * hours / epochs:.0f}", f"{hours:g}", str(epochs)]
        for name, (count, hours, epochs, work, speed) in PAPER_COSTS.items()
    ]
    text = "\n".join(
        [
            f"Measured on {about['device']}: training steps of {args.batch_size} pictures, generation for one picture "
            f"at a time, median of {args.repeats}. The paper: an RTX 2080 Ti (LLaVA: four RTX 4090, and an A40).",
            "",
            markdown_table(HEADINGS, [*paper, *(row(name, figures) for name, figures in found.items())]),
        ]
    )
    print(text)
    if args.output:
        write_json(args.output.with_suffix(".json"), found | about)
        write_text(args.output, text + "\n")
    return found


if __name__ == "__main__":
    main()
