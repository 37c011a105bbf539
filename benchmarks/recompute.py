# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The yardstick: the paper's procedure, in which everything but the picture's features is computed anew for every
token.

    yardstick = Recompute(model, processor)
    tokens = yardstick.generate(pixel_values, new_tokens=25)       # greedy
    losses = yardstick.training_losses(pixel_values, text)         # see `training_losses`

It is written from the paper and from what the authors' procedure is known to do, on transformers' own GPT-2 blocks,
and shares its weights with the model that it is compared with, so that both must give the same tokens. Where the
authors differ from our model in what they compute (a bidirectional emotion encoder, VAD of single pieces), it follows
our model: the question here is the time.
"""

import copy

import torch
from torch import nn
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from modeling_sevlm.vision_sevlm import encode_patches


TRAINING_LENGTH = 30  # tokens; every sentence is filled up to it
MAX_WORD_TOKENS = 8  # for which the lexicon's rule follows a word


class Recompute:
    """
    Args:
        model: a `SEVLMForConditionalGeneration`; its weights are used, not copied.
        processor: its processor, for tokenizer and lexicon.
        attn_implementation: "sdpa" is what transformers takes by default today, and the faster one here; "eager" is
            what there was when the paper was written.
    """

    def __init__(self, model, processor, attn_implementation: str = "sdpa"):
        self.model, self.tokenizer, self.lexicon = model, processor.tokenizer, processor.vad_lexicon
        config = copy.deepcopy(model.config.text_config)
        config._attn_implementation = attn_implementation
        decoder = model.decoder
        self.blocks = nn.ModuleList()
        for index, block in enumerate(decoder.h):
            with torch.device("meta"):
                plain = GPT2Block(config, layer_idx=index)
            plain.load_state_dict(block.state_dict(keep_vars=True), assign=True)
            self.blocks.append(plain)
        self.blocks.train(model.training)

    @torch.no_grad()
    def generate(
        self, pixel_values: torch.Tensor, new_tokens: int, input_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`(B, 3, H, W)` and prompts `(B, L)` without padding (the config's by default) -> `(B, L + new_tokens)`."""
        image_features = encode_patches(self.model.vision_tower, pixel_values)
        if input_ids is None:
            prompt = torch.tensor(self.model.config.prompt_token_ids, device=pixel_values.device)
            input_ids = prompt.expand(len(pixel_values), -1)
        for _ in range(new_tokens):
            logits = self.logits(input_ids, image_features)
            input_ids = torch.cat([input_ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return input_ids

    def logits(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """`(B, L, vocab_size)` for whole sentences `(B, L)` without padding."""
        described = [self.describe(row) for row in input_ids.tolist()]
        segments, behind, vad = (
            torch.tensor(values, device=input_ids.device) for values in zip(*described, strict=True)
        )
        return self.model.lm_head(self.hidden(input_ids, segments, behind, vad, image_features))

    def describe(self, token_ids: list[int]) -> tuple[list[int], list[bool], list[tuple[float, float, float]]]:
        """Segment, membership in the explanation, and VAD of every token, by dictionaries and strings."""
        config = self.model.config
        segments, behind, vad = [], [], []
        started, word, pieces = False, "", 0
        for token_id in token_ids:
            behind.append(started)
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
            found = word and pieces <= MAX_WORD_TOKENS
            vad.append(self.lexicon.get(word, (0.0, 0.0, 0.0)) if found else (0.0, 0.0, 0.0))
        return segments, behind, vad

    def hidden(self, input_ids, segments, behind, vad, image_features, attention_mask=None) -> torch.Tensor:
        """`(N, L, n_embd)` behind the last LayerNorm; one row of `image_features` for each sentence."""
        model, decoder, length = self.model, self.model.decoder, input_ids.shape[1]
        positions = torch.arange(length, device=input_ids.device).unsqueeze(0)
        hidden = decoder.drop(decoder.wte(input_ids) + decoder.wpe(positions) + decoder.wte(segments))
        features = model.emotion_encoder(vad.to(hidden.dtype), positions, attention_mask)
        fused = decoder.vad_fusion(torch.cat([hidden, features], dim=-1))
        hidden = torch.where(behind.unsqueeze(-1), fused, hidden)
        visible = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        if attention_mask is not None:
            visible = visible & attention_mask.bool()[:, None, None]
        mask = torch.zeros(visible.shape, dtype=hidden.dtype, device=hidden.device)
        mask = mask.masked_fill(~visible, torch.finfo(hidden.dtype).min).expand(len(hidden), 1, -1, -1)
        image_embeds = model.vision_projection(image_features)
        for block in self.blocks:
            hidden = block(hidden, None, mask, image_embeds)
        return decoder.ln_f(hidden)

    def training_losses(self, pixel_values: torch.Tensor, text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The losses of one batch as the authors compute them: every sentence a row of its own of fixed length, with
        its own pass of its picture through the tower, and logits and losses at every position.

        Args:
            pixel_values: `(B, 3, H, W)`.
            text: as the collator gives it, `(B, 2, L)`.

        Returns:
            `language_loss`, `emotion_loss`, `contrastive_loss`; a mean over words, VAD targets, sentences.
        """
        model, functional = self.model, nn.functional
        fills = {"input_ids": model.config.pad_token_id, "labels": -100}
        fills["token_type_ids"] = model.config.explanation_segment_id
        rows = {name: _fill_up(text[name].flatten(0, 1), fills.get(name, 0)) for name in text}
        pictures = pixel_values.repeat_interleave(2, dim=0)
        with torch.no_grad():
            image_features = encode_patches(model.vision_tower, pictures)

        explanation = rows["token_type_ids"].eq(model.config.explanation_segment_id)
        behind = explanation & explanation.roll(1, dims=1)
        present = rows["attention_mask"].bool()
        hidden = self.hidden(
            rows["input_ids"], rows["token_type_ids"], behind, rows["vad_values"], image_features, present
        )
        logits = model.lm_head(hidden)
        language = functional.cross_entropy(logits[:, :-1].transpose(1, 2), rows["labels"][:, 1:])
        wanted = behind & present & rows["vad_values"].ne(0).any(dim=-1)
        predicted = model.vad_head(hidden)[:, :-1][wanted[:, 1:]]
        emotion = functional.mse_loss(predicted, rows["vad_values"][:, 1:][wanted[:, 1:]])

        image = model.vision_projection(image_features).mean(dim=1)
        label, words = (_mean(hidden, present & part) for part in (~behind, behind))
        other_emotion = words.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        other_picture = words.unflatten(0, (-1, 2)).roll(-1, dims=0).flatten(0, 1)
        scores = [
            model.contrastive_head.mlp(torch.cat([image, label, candidate], dim=-1))
            for candidate in (words, other_emotion, other_picture)
        ]
        contrastive = -torch.cat(scores, dim=-1).log_softmax(dim=-1)[:, 0].mean()
        return {"language_loss": language, "emotion_loss": emotion, "contrastive_loss": contrastive}


def _fill_up(rows: torch.Tensor, value: int) -> torch.Tensor:
    missing = TRAINING_LENGTH - rows.shape[1]
    shape = (rows.shape[0], missing, *rows.shape[2:])
    return torch.cat([rows, rows.new_full(shape, value)], dim=1)


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[chosen].mean(dim=0) for row, chosen in zip(hidden, mask, strict=True)])
