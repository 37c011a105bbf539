"""A linear probe that measures how much a frozen tower knows about emotion. Trained models should beat it.

    python -m studies.linear_probe --vision_model outputs/efficientnet-lite0 --text_model outputs/decoder \
        --annotations artemis.csv --images wikiart/ --cache_features cache/

A softmax regression from the standardised mean of an image's patch features to the distribution of its viewers'
labels, with an L2 penalty chosen on the validation split. Prints, for every split, the negative log-likelihood (nats)
of a viewer's label under the probe and under the training prior.
"""

import sys
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy
from transformers import HfArgumentParser

from evaluation.scoring import label_distributions
from modeling_sevlm import SEVLMForConditionalGeneration
from processing import SEVLMProcessor
from processing.feature_cache import cache_features
from processing.files import write_json
from processing.script_utils import DataArguments, errors_as_exit, load_inputs


PENALTIES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)


@dataclass
class ProbeArguments:
    cache_features: str = field(metadata={"help": "Folder of the tower's features, as for train.py."})
    vision_model: str = field(default="openai/clip-vit-base-patch16", metadata={"help": "The tower."})
    text_model: str = field(default="distilgpt2", metadata={"help": "As for train.py; only its tokenizer is used."})
    image_size: int = field(default=224, metadata={"help": "Size of the images in pixels."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def fit(features: torch.Tensor, shares: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns weights `(d, labels)` and biases of the regression from standardised features `(N, d)` to shares
    `(N, labels)`. The objective is convex, so the result does not depend on a seed."""
    weights = torch.zeros(features.shape[1], shares.shape[1], dtype=features.dtype, requires_grad=True)
    bias = shares.mean(dim=0).clamp(min=1e-6).log().requires_grad_()
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(features @ weights + bias, shares) + penalty * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach(), bias.detach()


def main(argv: list[str] | None = None) -> dict:
    parser = HfArgumentParser((ProbeArguments, DataArguments), description=__doc__)
    args, data_args = parser.parse_args_into_dataclasses(list(sys.argv[1:] if argv is None else argv))
    with errors_as_exit():
        splits, _ = load_inputs(data_args, data_args.labels)
        if not {"train", "validation"} <= set(splits):
            raise ValueError(f"the data needs the splits train and validation; it has {sorted(splits)}.")
        names, emotions = (args.vision_model, args.text_model), data_args.labels
        processor = SEVLMProcessor.from_backbones(*names, image_size=args.image_size, emotions=emotions)
        model = SEVLMForConditionalGeneration.from_backbones(*names, processor)
        cached = cache_features(model, processor, list(splits.values()), args.cache_features)
    features, shares = {}, {}
    for name, rows in zip(splits, cached, strict=True):
        features[name] = torch.stack([rows[index].double().mean(dim=0) for index in range(len(rows))])
        shares[name] = torch.tensor(label_distributions(splits[name]["emotion_histogram"][:]))
    mean, deviation = features["train"].mean(dim=0), features["train"].std(dim=0).clamp(min=1e-6)
    features = {name: (rows - mean) / deviation for name, rows in features.items()}
    scores = {}
    for penalty in PENALTIES:
        weights, bias = fit(features["train"], shares["train"], penalty)
        logits = {name: features[name] @ weights + bias for name in splits}
        scores[penalty] = {name: cross_entropy(logits[name], shares[name]).item() for name in splits}
    penalty = min(PENALTIES, key=lambda penalty: scores[penalty]["validation"])
    prior = shares["train"].mean(dim=0).clamp(min=1e-12).log()
    results = {"penalty": penalty, "splits": {}}
    for split, rows in splits.items():
        prior_nll, nll = cross_entropy(prior.expand_as(shares[split]), shares[split]).item(), scores[penalty][split]
        results["splits"][split] = {"num_paintings": len(rows), "prior_label_nll": prior_nll, "label_nll": nll}
        print(f"{split:>10}  {len(rows)} paintings  prior {prior_nll:.4f}  linear probe {nll:.4f}")
    if args.output:
        write_json(args.output, results)
    return results


if __name__ == "__main__":
    main()
