# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The authors' release -> a folder that `AutoModel` and `AutoProcessor` load.

    python -m modeling_sevlm.convert_sevlm_checkpoint RELEASE_DIR --tag best-acc --output_dir OUT \
        [--vad_lexicon NRC-VAD-Lexicon.txt] [--vision_model openai/clip-vit-base-patch16]

The release keeps decoder and heads in `nle_model_<tag>/`, the emotion encoder in `ckpt_stats_<tag>.tar` and the
tokenizer in `nle_gpt2_tokenizer_<n>/`. The vision tower is not in it; without `--vision_model` the result takes
`image_features` only. Torch files are read with `weights_only=True`, so a file that holds code is refused.

A script: unlike the other modules of this folder it uses `processing/` too, and is never copied to the Hub.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, CLIPVisionConfig, GPT2Config, GPT2Tokenizer

from processing import SEVLMProcessor, VADLexicon

from .configuration_sevlm import SEVLMConfig
from .model_card import TRAINING_FILE, write_model_card
from .modeling_sevlm import SEVLMForConditionalGeneration
from .vision_sevlm import load_vision_tower, vision_feature_size


# Authors' parameter names -> ours, applied to the decoder file and to the emotion encoder's part of the statistics.
DECODER_NAMES = [
    (r"^transformer\.VAD_linear\.", "decoder.vad_fusion."),
    (r"^transformer\.", "decoder."),
    (r"^sim_mlp\.pred\.", "contrastive_head.mlp."),
    (r"^VAD_head\.", "vad_head."),
]
EMOTION_ENCODER_NAMES = [
    (r"^pos_encoder\.", "emotion_encoder.positions."),
    (r"^norm\.", "emotion_encoder.norm."),
    (r"^encoder\.layers\.(\d+)\.self_attention\.", r"emotion_encoder.layers.\1."),
    (r"^encoder\.layers\.(\d+)\.fc\.0\.", r"emotion_encoder.layers.\1.fc_in."),
    (r"^encoder\.layers\.(\d+)\.fc\.2\.", r"emotion_encoder.layers.\1.fc_out."),
    (r"^encoder\.layers\.(\d+)\.norm1\.", r"emotion_encoder.layers.\1.norm_attention."),
    (r"^encoder\.layers\.(\d+)\.norm2\.", r"emotion_encoder.layers.\1.norm_output."),
]
# GPT-2's constant masks, and the emotion encoder's output layer, which nothing uses.
UNUSED = re.compile(r"\.(attn|crossattention)\.(bias|masked_bias)$|^decoder\.(weight|bias)$")
WEIGHTS_FILE = "pytorch_model.bin"
EMOTION_ENCODER = "emo_encoder_state_dict"
REMEDY = "Download it again from its authors."


class ReleaseError(ValueError):
    """The folder is not the authors' release, or not the part of it that was asked for."""


def load_release(release_dir: str | Path, tag: str) -> tuple[dict, dict[str, torch.Tensor], Path]:
    """The release's decoder config, all weights under our names, and the tokenizer's folder."""
    root = Path(release_dir)
    # A download into a folder keeps notes on its files under .cache, in folders of the same names.
    files = sorted(root.rglob(f"nle_model_*/{WEIGHTS_FILE}"))
    found = [file for file in files if ".cache" not in file.relative_to(root).parts]
    models = [file.parent for file in found if file.parent.name == f"nle_model_{tag}"]
    if len(models) != 1:
        tags = sorted({file.parent.name.removeprefix("nle_model_") for file in found})
        raise ReleaseError(
            f"{root}: found {len(models)} folders nle_model_{tag} with {WEIGHTS_FILE}. Tags there: {tags or 'none'}."
        )
    folder = models[0].parent
    tokenizers = sorted(folder.glob("nle_gpt2_tokenizer_*"))
    if not tokenizers:
        raise ReleaseError(f"{folder}: no folder nle_gpt2_tokenizer_*.")
    decoder_file, statistics_file = models[0] / WEIGHTS_FILE, folder / f"ckpt_stats_{tag}.tar"
    weights = _rename(_tensors(_torch_load(decoder_file), decoder_file), DECODER_NAMES)
    _need(weights, ("decoder.wte.weight", "lm_head.weight"), decoder_file)
    statistics = _torch_load(statistics_file)
    if "decoder.vad_fusion.weight" in weights:
        # Features that are fused were encoded; without the encoder the model would compute something else.
        _need(statistics, (EMOTION_ENCODER,), statistics_file)
    if EMOTION_ENCODER in statistics:
        encoder = _rename(_tensors(statistics[EMOTION_ENCODER], statistics_file), EMOTION_ENCODER_NAMES)
        needed = ("positions.weight", "layers.0.fc_in.weight")
        _need(encoder, [f"emotion_encoder.{name}" for name in needed], statistics_file)
        weights |= encoder
    return _read_config(models[0] / "config.json"), weights, tokenizers[0]


def _read_config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path} cannot be read: {error} {REMEDY}") from error
    if not isinstance(config, dict):
        raise ReleaseError(f"{path} holds a {type(config).__name__} and no settings. {REMEDY}")
    _need(config, ("img_size", "max_seq_len", "encoder_dim"), path)
    return config


def _need(holder: Mapping, names: Sequence[str], path: Path) -> None:
    if lacking := [name for name in names if name not in holder]:
        raise ReleaseError(f"{path} lacks {', '.join(lacking)}. {REMEDY}")


def _tensors(value: object, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(value, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in value.values()):
        raise ReleaseError(f"{path} holds no weights by name, but a {type(value).__name__}. {REMEDY}")
    return value


def _torch_load(path: Path) -> dict:
    if not path.is_file():
        raise ReleaseError(f"{path} is missing.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    # A file that is cut short or made up raises whatever the unpickler stumbles over.
    except Exception as error:
        # Torch's own message goes on to explain how to read it all the same.
        asked = re.search(r"unsupported GLOBAL (\S+)", str(error))
        if asked:
            reason = f"it holds more than plain weights (it calls for {asked[1]})"
        else:
            detail = re.search(r"WeightsUnpickler error:\s*(.*)", str(error))
            told = detail[1] if detail else str(error).partition("\n")[0]
            told = "" if "weights_only" in told else f": {told[:200]}"
            reason = f"it is broken, or no file of weights ({type(error).__name__}{told})"
        raise ReleaseError(
            f"{path} was refused: {reason}, and what is pickled in such a file can run code. {REMEDY}"
        ) from error
    if not isinstance(loaded, dict):
        raise ReleaseError(f"{path} holds a {type(loaded).__name__} and no dictionary. {REMEDY}")
    return loaded


def _rename(weights: dict[str, torch.Tensor], names: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        if UNUSED.search(name):
            continue
        for pattern, replacement in names:
            if re.match(pattern, name):
                name = re.sub(pattern, replacement, name)
                break
        renamed[name] = tensor
    return renamed


def convert(
    release_dir: str | Path,
    tag: str,
    vad_lexicon: VADLexicon | None = None,
    vision_model: str | None = None,
) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """Model and processor of the release's checkpoint `tag` ("best-acc", "best-bleu", ...)."""
    old, weights, tokenizer_dir = load_release(release_dir, tag)
    processor = SEVLMProcessor.from_tokenizer(
        GPT2Tokenizer.from_pretrained(tokenizer_dir, clean_up_tokenization_spaces=False),
        image_size=old["img_size"],
        image_statistics="imagenet",
        vad_lexicon=vad_lexicon,
        max_length=old["max_seq_len"],
    )
    embeddings = weights["decoder.wte.weight"]
    if len(processor.tokenizer) != embeddings.shape[0]:
        raise ReleaseError(
            f"{tokenizer_dir} has {len(processor.tokenizer)} tokens, the weights have {embeddings.shape[0]} rows."
        )
    layers = {int(match[1]) for name in weights if (match := re.match(r"emotion_encoder\.layers\.(\d+)\.", name))}
    if vision_model is not None:
        vision_config = AutoConfig.from_pretrained(vision_model)
        vision_config = getattr(vision_config, "vision_config", vision_config)
        if vision_feature_size(vision_config) != old["encoder_dim"]:
            raise ReleaseError(
                f"{vision_model} gives features of width {vision_feature_size(vision_config)}, the release wants "
                f"{old['encoder_dim']} (the authors' tower is openai/clip-vit-base-patch16)."
            )
    else:
        vision_config = CLIPVisionConfig(
            hidden_size=old["encoder_dim"], image_size=old["img_size"], patch_size=16, num_attention_heads=1
        )
    encoder = {}
    if layers:
        encoder = {
            "emotion_encoder_layers": len(layers),
            "emotion_encoder_intermediate_size": weights["emotion_encoder.layers.0.fc_in.weight"].shape[0],
            "emotion_encoder_max_positions": weights["emotion_encoder.positions.weight"].shape[0],
        }
    layout = processor.token_layout()
    text_fields = set(GPT2Config().to_dict()) - {"architectures", "transformers_version", "dtype", "model_type"}
    text_config = {name: value for name, value in old.items() if name in text_fields}
    config = SEVLMConfig(
        vision_config=vision_config,
        text_config=GPT2Config(**text_config),
        use_vision_tower=vision_model is not None,
        use_vad_features="decoder.vad_fusion.weight" in weights,
        use_emotion_encoder=bool(layers),
        emotion_encoder_attention="bidirectional",
        use_vad_head="vad_head.weight" in weights,
        contrastive_negatives=["emotion", "image"] if "contrastive_head.mlp.0.weight" in weights else [],
        tie_word_embeddings=torch.equal(weights["lm_head.weight"], embeddings),
        **encoder,
        **layout,
    )
    model = SEVLMForConditionalGeneration(config)
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ReleaseError(f"The release's weights do not fit its config.json: {error}") from error
    missing = [name for name in result.missing_keys if not name.startswith(("vision_tower.", "vad_lookup."))]
    if missing or result.unexpected_keys:
        raise ReleaseError(f"Weights missing: {missing}; weights without a place: {result.unexpected_keys}.")
    if vision_model is not None:
        model.vision_tower.load_state_dict(load_vision_tower(vision_model, vision_config).state_dict())
        model.freeze_vision_tower()
    if vad_lexicon is not None:
        model.set_vad_lexicon(vad_lexicon, processor.tokenizer)
    return model.eval(), processor


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("release_dir", help="folder that holds nle_model_<tag>/, at any depth")
    parser.add_argument("--tag", default="best-acc", help="which checkpoint of the release (default: best-acc)")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--vad_lexicon", help="lexicon file; without it every word is neutral")
    parser.add_argument("--vision_model", help="CLIP ViT-B/16 by name or path; without it the tower is left out")
    parser.add_argument(
        "--include_vad_lexicon", action="store_true", help="save the lexicon too, for a folder that stays with you"
    )
    args = parser.parse_args(argv)
    try:
        lexicon = VADLexicon.from_file(args.vad_lexicon) if args.vad_lexicon else None
        model, processor = convert(args.release_dir, args.tag, lexicon, args.vision_model)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    model.save_pretrained(args.output_dir, include_vad_lexicon=args.include_vad_lexicon)
    processor.save_pretrained(args.output_dir, include_vad_lexicon=args.include_vad_lexicon)
    record = {"converted": {"tag": args.tag, "vision_model": args.vision_model}}
    Path(args.output_dir, TRAINING_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_model_card(args.output_dir)
    print(f"{args.output_dir}: {sum(p.numel() for p in model.parameters()):,} parameters")
    if args.vision_model is None:
        print("The vision tower was left out: the model takes `image_features`, no pictures (see --vision_model).")


if __name__ == "__main__":
    main()
