"""Measures whether attention maps highlight the motif in the project's images, where its position is known.

    python -m studies.attention outputs/demo [--minimum 2] [--vad_lexicon FILE]

The model explains held-out images. For every word that correctly names the motif ("balloons", "peak"),
the map's mass inside the motif's box is divided by the box's share of the image: a map without information gives 1.
The table has means over images, inside the motif and inside `cause_box`, which includes the brushwork around it.
Exits with an error if the default map (contributions, mean over layers) has less than `--minimum` in the motif.
"""

import argparse

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from modeling_sevlm.attention_map import attention_map
from modeling_sevlm.lexicon import load_with_lexicon
from processing.script_utils import errors_as_exit, load_lexicon
from processing.toy_artemis import load_toy_artemis, toy_scene
from processing.toy_paintings import Box, motif_box


# The nouns that toy_grammar.toml has for each motif.
NOUNS = {
    "balloons": {"balloons"},
    "clown": {"clown"},
    "mountain": {"mountain", "peak"},
    "tree": {"tree"},
    "boat": {"boat", "sail", "sails"},
    "fireworks": {"fireworks", "bursts", "sparks"},
    "spikes": {"spikes", "points"},
    "slashes": {"slashes", "strokes", "cuts"},
    "blobs": {"blobs", "lumps", "slime", "stains"},
    "eyes": {"eyes"},
    "figure": {"figure", "person"},
    "flower": {"flower", "blossom"},
    "grid": {"grid", "squares", "pattern", "board"},
    "rings": {"target", "rings", "circles"},
}


def mass_inside(maps: np.ndarray, box: Box) -> np.ndarray:
    """`(words, rows, columns)` distributions -> `(words,)`, the share of each map's mass that is inside `box`
    (coordinates as fractions of the image size). A patch that is partly inside counts in part."""
    inside = []
    for low, high, cells in ((box[1], box[3], maps.shape[1]), (box[0], box[2], maps.shape[2])):
        edges = np.arange(cells + 1) / cells
        inside.append(np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * cells)
    return np.einsum("wrc,r,c->w", maps, *inside)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def measure_maps(model, processor, dataset: Dataset) -> dict:
    """Returns `pictures`, the number of images whose explanation names their motif; `words`, the number of such
    words; `ratios`, `{(measure, layer): (motif, cause)}`, means over these images."""
    layers = [*range(model.config.text_config.n_layer), "mean", "rollout"]
    ratios = {(measure, layer): [] for measure in ("contribution", "attention") for layer in layers}
    words_found = 0
    for row in dataset:
        scene = toy_scene(int(row["painting"].removeprefix("toy/").partition("_")[0]))
        boxes = motif_box(scene), tuple(row["cause_box"])
        pixel_values = processor(images=row["image"], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            features = model.encode_images(pixel_values.to(model.device))
        sequence = model.generate(image_features=features, do_sample=False)
        inputs = (model, processor.tokenizer, sequence)
        for (measure, layer), values in ratios.items():
            words, maps = attention_map(*inputs, image_features=features, measure=measure, layer=layer)
            named = [number for number, word in enumerate(words) if word.lower() in NOUNS[scene.motif]]
            if named:
                values.append([mass_inside(maps[named], box).mean() / area(box) for box in boxes])
        words_found += len(named)
    pictures = len(values)
    if not pictures:
        raise ValueError("No sentence of this model names the motif of its image. Train it for longer.")
    means = {way: np.mean(values, axis=0).tolist() for way, values in ratios.items()}
    return {"pictures": pictures, "words": words_found, "ratios": means}


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        prog="python -m studies.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="checkpoint trained on the embedded data")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test", "held-out"])
    parser.add_argument("--num_paintings", type=int, default=720, help="as in training (default: 720)")
    parser.add_argument("--vad_lexicon", help="lexicon file of a checkpoint that was saved without it")
    parser.add_argument("--minimum", type=float, help="lowest accepted ratio inside the motif (default: no check)")
    args = parser.parse_args(argv)
    with errors_as_exit():
        model, processor = load_with_lexicon(args.model, load_lexicon(args.vad_lexicon))
        splits, chosen = load_toy_artemis(args.num_paintings), {"held-out": ["validation", "test"]}
        dataset = concatenate_datasets([splits[split] for split in chosen.get(args.split, [args.split])])
        found = measure_maps(model, processor, dataset)
    print(f"{found['words']} words in {found['pictures']} of {len(dataset)} pictures name what is there.")
    print(f"Mass inside / area:\n{'':26}  motif  with brushwork")
    for (measure, layer), (motif, cause) in found["ratios"].items():
        name = {"mean": "mean over layers", "rollout": "rollout"}.get(layer, f"layer {layer}")
        print(f"{measure + ', ' + name:30} {motif:.2f} {cause:15.2f}")
    default, _ = found["ratios"]["contribution", "mean"]
    if args.minimum is not None and default < args.minimum:
        raise SystemExit(f"error: {default:.2f} inside the motif is less than {args.minimum:g}.")
    return found


if __name__ == "__main__":
    main()
