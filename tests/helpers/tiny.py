"""Small components of the real classes for the tests: a tokenizer, a processor, a model, backbones on disk."""

from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, GPT2Config, GPT2LMHeadModel

from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from processing import SEVLMProcessor, VADLexicon
from processing.artemis import EMOTIONS
from processing.tiny_tokenizer import train_tokenizer


SENTENCES = [
    "the dark sea looks endless and cold",
    "the bright garden makes me feel calm and happy",
    "a lonely funeral in the grey rain",
    "the red spikes look violent and terrible",
    "golden light falls on a quiet meadow",
    "the strange shapes leave me a little puzzled",
]
WORDS = {
    "dark": (-0.6, 0.1, -0.2),
    "cold": (-0.4, -0.1, -0.15),
    "bright": (0.7, 0.3, 0.25),
    "calm": (0.6, -0.7, 0.2),
    "happy": (0.9, 0.35, 0.5),
    "lonely": (-0.7, -0.25, -0.5),
    "fun": (0.85, 0.5, 0.3),
    "funeral": (-0.8, -0.2, -0.2),
    "violent": (-0.9, 0.8, 0.35),
    "golden": (0.55, 0.2, 0.45),
    "quiet": (0.3, -0.85, -0.1),
}
IMAGE_SIZE = 32
TEXT_SIZES = {"n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 64}
BLOCKS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION_SIZES = BLOCKS | {"image_size": IMAGE_SIZE, "patch_size": 8}


def tiny_lexicon(redistributable: bool = True) -> VADLexicon:
    return VADLexicon(WORDS, name="test words", redistributable=redistributable)


def tiny_processor(**kwargs) -> SEVLMProcessor:
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    kwargs = {"vad_lexicon": tiny_lexicon()} | kwargs
    return SEVLMProcessor.from_tokenizer(tokenizer, image_size=IMAGE_SIZE, **kwargs)


def tiny_config(processor: SEVLMProcessor, **kwargs) -> SEVLMConfig:
    text = GPT2Config(**TEXT_SIZES, vocab_size=len(processor.tokenizer), bos_token_id=None, eos_token_id=None)
    towers = {"vision_config": CLIPVisionConfig(**VISION_SIZES), "text_config": text}
    return SEVLMConfig(**towers | processor.token_layout() | kwargs)


def tiny_model(processor: SEVLMProcessor, seed: int = 1, **kwargs) -> SEVLMForConditionalGeneration:
    """A model with random weights, enlarged so that different inputs give different outputs."""
    torch.manual_seed(seed)
    model = SEVLMForConditionalGeneration(tiny_config(processor, **kwargs))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and name.startswith("vision_tower."):
                parameter.mul_(4)
            elif parameter.dim() > 1:
                parameter.normal_(std=0.08)
                if name.startswith("contrastive_head."):
                    parameter.mul_(2)
    if processor.vad_lexicon is not None:
        model.set_vad_lexicon(processor.vad_lexicon, processor.tokenizer)
    return model.eval()


def pixels(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def training_batch(processor: SEVLMProcessor, images: int = 3) -> dict[str, torch.Tensor]:
    """A batch of `images` images with two sentences of different emotions each."""
    emotions = [[EMOTIONS[2 * i % 9], EMOTIONS[(2 * i + 1) % 9]] for i in range(images)]
    explanations = [[SENTENCES[2 * i % 6], SENTENCES[(2 * i + 1) % 6]] for i in range(images)]
    batch = processor(emotions=emotions, explanations=explanations, return_tensors="pt")
    return {"pixel_values": pixels(images), **batch}


def save_gpt2(folder: Path | str, model_class=GPT2LMHeadModel, **fields):
    """Saves a random GPT-2 and its tokenizer, which has none of SEVLM's tokens. Returns the model."""
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    fields = TEXT_SIZES | {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0} | fields
    model = model_class(GPT2Config(**fields))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save_backbones(folder: Path, width: int = 32, patch_size: int = 8) -> list[str]:
    """Saves a CLIP and a GPT-2. Returns the arguments of train.py that name them, with preset "paper"."""
    vision, text = str(folder / "clip"), str(folder / "gpt2")
    torch.manual_seed(0)
    sizes = VISION_SIZES | {"hidden_size": width, "patch_size": patch_size}
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(vision)
    CLIPImageProcessorPil().save_pretrained(vision)
    save_gpt2(text)
    named = ["--vision_model", vision, "--text_model", text, "--image_size", str(IMAGE_SIZE)]
    return ["--preset", "paper", *named]
