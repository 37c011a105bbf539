"""Convert the authors' release to a folder that `AutoModel` and `AutoProcessor` load.

    python -m modeling_sevlm.convert_sevlm_checkpoint RELEASE_DIR --tag best-acc --output_dir OUT \
        [--vad_lexicon NRC-VAD-Lexicon.txt] [--vision_model openai/clip-vit-base-patch16]

The release has decoder and heads in `nle_model_<tag>/`, the emotion encoder in `ckpt_stats_<tag>.tar`, tokenizer in
`nle_gpt2_tokenizer_<n>/`, and no vision tower: without `--vision_model` the converted model takes `image_features`.
"""

import json
import re
from argparse import ArgumentParser
from pathlib import Path

import torch
from transformers import AutoConfig, CLIPVisionConfig, GPT2Config, GPT2Tokenizer

from processing import SEVLMProcessor, VADLexicon
from processing.files import write_json
from processing.protocol import authors_text
from processing.script_utils import errors_as_exit, load_lexicon

from .configuration_sevlm import SEVLMConfig
from .model_card import write_model_card
from .modeling_sevlm import SEVLMForConditionalGeneration
from .training_folder import TRAINING_FILE, check_free, clear_folder
from .vision_sevlm import load_vision_tower, vision_feature_size


# Applied in this order to the authors' parameter names.
NAMES = {
    r"^transformer\.VAD_linear\.": "decoder.vad_fusion.",
    r"^transformer\.": "decoder.",
    r"^sim_mlp\.pred\.": "contrastive_head.mlp.",
    r"^VAD_head\.": "vad_head.",
    r"^pos_encoder\.": "emotion_encoder.positions.",
    r"^norm\.": "emotion_encoder.norm.",
    r"^encoder\.": "emotion_encoder.",
    r"\.self_attention\.": ".",
    r"\.fc\.0\.": ".fc_in.",
    r"\.fc\.2\.": ".fc_out.",
    r"\.norm1\.": ".norm_attention.",
    r"\.norm2\.": ".norm_output.",
}
# GPT-2's constant masks, and the emotion encoder's output layer.
UNUSED = re.compile(r"\.(attn|crossattention)\.(bias|masked_bias)$|^decoder\.(weight|bias)$")
EMOTION_ENCODER = "emo_encoder_state_dict"
REMEDY = "Download it again from its authors."


def load_release(root: Path, tag: str) -> tuple[dict, dict[str, torch.Tensor], Path]:
    """Returns the release's decoder config, all weights under SEVLM's parameter names, and the tokenizer's folder."""
    # A download into a folder keeps metadata under .cache, in folders with the same names.
    found = root.rglob("nle_model_*/pytorch_model.bin")
    files = [file for file in found if ".cache" not in file.relative_to(root).parts]
    tags = [file.parent.name.removeprefix("nle_model_") for file in files]
    if tags.count(tag) != 1:
        raise ValueError(f"{root} needs one nle_model_{tag}/pytorch_model.bin. Its tags: {', '.join(sorted(tags))}.")
    decoder_file = files[tags.index(tag)]
    folder = decoder_file.parent.parent
    statistics_file = folder / f"ckpt_stats_{tag}.tar"
    weights = _rename(_torch_load(decoder_file), decoder_file, "decoder.wte.weight", "lm_head.weight")
    statistics = _torch_load(statistics_file)
    # The fusion layer was trained on the output of the emotion encoder.
    if "decoder.vad_fusion.weight" in weights or EMOTION_ENCODER in statistics:
        _need(statistics, statistics_file, EMOTION_ENCODER)
        needed = "emotion_encoder.positions.weight", "emotion_encoder.layers.0.fc_in.weight"
        weights |= _rename(statistics[EMOTION_ENCODER], statistics_file, *needed)
    config_file = decoder_file.with_name("config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read {config_file}: {error} {REMEDY}") from error
    _need(config, config_file, "img_size", "max_seq_len", "encoder_dim")
    tokenizers = sorted(folder.glob("nle_gpt2_tokenizer_*"))
    if not tokenizers:
        raise ValueError(f"{folder} has no folder nle_gpt2_tokenizer_*. {REMEDY}")
    return config, weights, tokenizers[0]


def _need(content: object, path: Path, *names: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path} contains a {type(content).__name__} instead of a dictionary. {REMEDY}")
    if missing := [name for name in names if name not in content]:
        raise ValueError(f"{path} lacks {', '.join(missing)}. {REMEDY}")


def _torch_load(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can raise any error. Torch's message is left out: it recommends loading without the check.
    except Exception as error:
        code = re.search(r"unsupported GLOBAL (\S+)", str(error))
        reason = f"it calls {code[1]}" if code else type(error).__name__
        raise ValueError(f"{path} is missing, damaged or would run code: {reason}. {REMEDY}") from error


def _rename(weights: dict[str, torch.Tensor], path: Path, *needed: str) -> dict[str, torch.Tensor]:
    _need(weights, path)
    if not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} must contain a dictionary of named tensors only. {REMEDY}")
    weights = {name: tensor for name, tensor in weights.items() if not UNUSED.search(name)}
    for pattern, replacement in NAMES.items():
        weights = {re.sub(pattern, replacement, name): tensor for name, tensor in weights.items()}
    _need(weights, path, *needed)
    return weights


def convert(
    release_dir: str | Path, tag: str, vad_lexicon: VADLexicon | None = None, vision_model: str | None = None
) -> tuple[SEVLMForConditionalGeneration, SEVLMProcessor]:
    """Returns model and processor of the release's checkpoint `tag` ("best-acc", "best-bleu", ...). Raises
    `ValueError` if a file is missing, damaged or unsafe, or if the parts do not fit together."""
    release, weights, tokenizer_dir = load_release(Path(release_dir), tag)
    if vad_lexicon is not None:
        vad_lexicon.matching = "piece"
    processor = SEVLMProcessor.from_tokenizer(
        GPT2Tokenizer.from_pretrained(tokenizer_dir, clean_up_tokenization_spaces=False),
        image_size=release["img_size"],
        image_statistics="imagenet",
        resample="bilinear",
        vad_lexicon=vad_lexicon,
        max_length=release["max_seq_len"],
        pad_to_max_length=True,
        explanation_after="last",
    )
    if (size := len(processor.tokenizer)) != (expected := len(weights["decoder.wte.weight"])):
        raise ValueError(f"{tokenizer_dir} has {size} tokens, but the weights have {expected}. {REMEDY}")
    width, image_size = release["encoder_dim"], release["img_size"]
    vision_config = CLIPVisionConfig(hidden_size=width, image_size=image_size, patch_size=16, num_attention_heads=1)
    if vision_model is not None:
        vision_config = AutoConfig.from_pretrained(vision_model)
        vision_config = getattr(vision_config, "vision_config", vision_config)
        if vision_feature_size(vision_config) != width:
            raise ValueError(f"The features of {vision_model} are not {width} wide: use openai/clip-vit-base-patch16.")
    encoder: dict = {}
    if "emotion_encoder.positions.weight" in weights:
        encoder = {
            "emotion_encoder_layers": sum(name.endswith(".fc_in.weight") for name in weights),
            "emotion_encoder_intermediate_size": weights["emotion_encoder.layers.0.fc_in.weight"].shape[0],
            "emotion_encoder_max_positions": weights["emotion_encoder.positions.weight"].shape[0],
        }
    text_fields = GPT2Config().to_dict().keys() - {"architectures", "transformers_version", "dtype", "model_type"}
    config = SEVLMConfig(
        vision_config=vision_config,
        text_config=GPT2Config(**{name: value for name, value in release.items() if name in text_fields}),
        use_vision_tower=vision_model is not None,
        use_vad_features="decoder.vad_fusion.weight" in weights,
        use_emotion_encoder=bool(encoder),
        emotion_encoder_attention="bidirectional",
        emotion_encoder_attention_dropout=0.1,
        explanation_start=6,
        protocol={"preset": "authors"} | authors_text(None),
        use_vad_head="vad_head.weight" in weights,
        contrastive_negatives=["emotion", "image"] if "contrastive_head.mlp.0.weight" in weights else [],
        tie_word_embeddings=torch.equal(weights["lm_head.weight"], weights["decoder.wte.weight"]),
        **encoder,
        **processor.token_layout(),
    )
    model = SEVLMForConditionalGeneration(config)
    # The release has neither a tower nor a lexicon.
    ours = {k: v for k, v in model.state_dict().items() if k.startswith(("vision_tower.", "vad_lookup."))}
    try:
        model.load_state_dict(ours | weights)
    except RuntimeError as error:
        raise ValueError(f"The release's weights do not fit its config.json: {error}") from error
    if vision_model is not None:
        model.vision_tower.load_state_dict(load_vision_tower(vision_model, vision_config).state_dict())
        model.freeze_vision_tower()
    model.set_vad_lexicon(vad_lexicon, processor.tokenizer)
    return model.eval(), processor


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("python -m modeling_sevlm.convert_sevlm_checkpoint", description=__doc__.split("\n\n")[0])
    parser.add_argument("release_dir", help="folder that contains nle_model_<tag>/, at any depth")
    parser.add_argument("--tag", default="best-acc", help="checkpoint of the release (default: best-acc)")
    parser.add_argument("--output_dir", required=True, help="folder to write")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="replace the model in that folder")
    parser.add_argument("--vad_lexicon", help="lexicon file (default: none, every word is neutral)")
    parser.add_argument("--vision_model", help="CLIP ViT-B/16 by name or path (default: no tower)")
    parser.add_argument("--include_vad_lexicon", action="store_true", help="save the lexicon in a private folder")
    args = parser.parse_args(argv)
    with errors_as_exit():
        check_free(args.output_dir, args.overwrite_output_dir)
        model, processor = convert(args.release_dir, args.tag, load_lexicon(args.vad_lexicon), args.vision_model)
    clear_folder(args.output_dir, None, args.overwrite_output_dir)
    model.save_pretrained(args.output_dir, include_vad_lexicon=args.include_vad_lexicon)
    processor.save_pretrained(args.output_dir, include_vad_lexicon=args.include_vad_lexicon)
    source = {"tag": args.tag, "vision_model": args.vision_model}
    write_json(Path(args.output_dir, TRAINING_FILE), {"converted": source})
    write_model_card(args.output_dir)
    takes = "`image_features`, because it has no tower" if args.vision_model is None else "pictures"
    print(f"{args.output_dir}: {sum(p.numel() for p in model.parameters()):,} parameters. The model takes {takes}.")


if __name__ == "__main__":
    main()
