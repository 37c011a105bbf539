"""The yardstick: the paper's procedure, which recomputes everything but the image features for every token.

It is written from the paper, on transformers' own GPT-2 blocks, and shares its weights with our model, so that both
must give the same tokens. Where the authors compute something else than our model (a bidirectional emotion encoder,
VAD of single pieces), it follows our model: only the time matters.
"""

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, pad
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from modeling_sevlm.heads_sevlm import masked_mean
from modeling_sevlm.vision_sevlm import encode_patches


TRAINING_LENGTH = 30  # tokens; every sentence is padded to it
MAX_WORD_TOKENS = 8  # longer words are not in the lexicon
NO_VAD = (0.0, 0.0, 0.0)


class Recompute:
    """Uses the weights of `model` without copying them. `attention` is "sdpa", transformers' default today, or
    "eager", its default when the paper was written."""

    def __init__(self, model, processor, attention: str = "sdpa"):
        self.model, self.tokenizer, self.lexicon = model, processor.tokenizer, processor.vad_lexicon
        config = copy.deepcopy(model.config.text_config)
        config._attn_implementation = attention
        with torch.device("meta"):
            self.blocks = nn.ModuleList([GPT2Block(config, layer_idx=i) for i in range(config.n_layer)])
        self.blocks.load_state_dict(model.decoder.h.state_dict(keep_vars=True), assign=True)
        self.blocks.train(model.training)

    @torch.no_grad()
    def generate(
        self, pixel_values: torch.Tensor, new_tokens: int, input_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(B, 3, H, W)` and prompts `(B, L)` without padding (default: the config's) -> `(B, L + new_tokens)`."""
        image_features = encode_patches(self.model.vision_tower, pixel_values).pooler_output
        if input_ids is None:
            prompt = [self.model.config.prompt_token_ids] * len(pixel_values)
            input_ids = torch.tensor(prompt, device=pixel_values.device)
        for _ in range(new_tokens):
            logits = self.logits(input_ids, image_features)
            input_ids = torch.cat([input_ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return input_ids

    def logits(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """`(B, L, vocab_size)` for whole sentences `(B, L)` without padding."""
        described = zip(*map(self.describe, input_ids.tolist()), strict=True)
        tensors = [torch.tensor(values, device=input_ids.device) for values in described]
        return self.model.lm_head(self.hidden(input_ids, *tensors, image_features))

    def describe(self, token_ids: list[int]) -> tuple[list[int], list[bool], list[tuple[float, float, float]]]:
        """Segment, membership in the explanation, and VAD of every token, by dictionaries and strings."""
        config, started, word, pieces = self.model.config, False, "", 0
        segments, explanation_mask, vad = [], [], []
        for token_id in token_ids:
            explanation_mask.append(started)
            started = started or token_id == config.because_token_id
            segments.append(config.explanation_segment_id if started else config.emotion_segment_id)
            text = self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
            piece = text.removeprefix(" ")
            if not piece.isalpha() or token_id in self.tokenizer.all_special_ids:
                word = ""
            elif text.startswith(" ") or not word:
                word, pieces = piece.casefold(), 1
            else:
                word, pieces = word + piece.casefold(), pieces + 1
            vad.append(self.lexicon.get(word, NO_VAD) if word and pieces <= MAX_WORD_TOKENS else NO_VAD)
        return segments, explanation_mask, vad

    def hidden(self, input_ids, segments, explanation_mask, vad, image_features, attention_mask=None) -> torch.Tensor:
        """`(N, L, n_embd)` after the last LayerNorm; `image_features` has one row per sentence."""
        model, decoder, length = self.model, self.model.decoder, input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device).unsqueeze(0)
        hidden = decoder.drop(decoder.wte(input_ids) + decoder.wpe(positions) + decoder.wte(segments))
        features = model.emotion_encoder(vad.to(hidden.dtype), positions, attention_mask)
        fused = decoder.vad_fusion(torch.cat([hidden, features], dim=-1))
        hidden = torch.where(explanation_mask.unsqueeze(-1), fused, hidden)
        visible = torch.ones(len(hidden), 1, length, length, dtype=torch.bool, device=hidden.device).tril()
        if attention_mask is not None:
            visible = visible & attention_mask[:, None, None]
        mask = torch.zeros_like(visible, dtype=hidden.dtype).masked_fill(~visible, torch.finfo(hidden.dtype).min)
        image_embeds = model.vision_projection(image_features)
        for block in self.blocks:
            hidden = block(hidden, None, mask, image_embeds)
        return decoder.ln_f(hidden)

    def training_losses(self, pixel_values: torch.Tensor, text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The three losses of images `(B, 3, H, W)` and text `(B, 2, L)` as the authors compute them: every sentence
        is a row of fixed length with its own pass of its image through the tower, and logits at every position."""
        model, config = self.model, self.model.config
        fills = {"input_ids": config.pad_token_id, "labels": -100, "token_type_ids": config.explanation_segment_id}
        missing = TRAINING_LENGTH - text["input_ids"].shape[-1]
        rows = {}
        for name, values in text.items():
            values = values.flatten(0, 1)
            rows[name] = pad(values, (0, 0) * (values.dim() - 2) + (0, missing), value=fills.get(name, 0))
        with torch.no_grad():
            image_features = encode_patches(model.vision_tower, pixel_values.repeat_interleave(2, dim=0)).pooler_output

        segments, vad, present = rows["token_type_ids"], rows["vad_values"], rows["attention_mask"].bool()
        explanation = segments.eq(config.explanation_segment_id)
        explanation = explanation & explanation.roll(1, dims=1)
        hidden = self.hidden(rows["input_ids"], segments, explanation, vad, image_features, present)
        language = cross_entropy(model.lm_head(hidden)[:, :-1].transpose(1, 2), rows["labels"][:, 1:])
        targets = (explanation & present & vad.ne(0).any(dim=-1))[:, 1:]
        emotion = mse_loss(model.vad_head(hidden)[:, :-1][targets], vad[:, 1:][targets])

        image = model.vision_projection(image_features).mean(dim=1)
        label, words = (masked_mean(hidden, present & part) for part in (~explanation, explanation))
        pairs = words.unflatten(0, (-1, 2))
        candidates = words, pairs.flip(1).flatten(0, 1), pairs.roll(-1, dims=0).flatten(0, 1)
        scores = torch.stack([model.contrastive_head(image, label, candidate) for candidate in candidates])
        contrastive = -scores.log_softmax(dim=0)[0].mean()
        return {"language_loss": language, "emotion_loss": emotion, "contrastive_loss": contrastive}
