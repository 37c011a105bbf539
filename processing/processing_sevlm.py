# Licensed under the Apache License, Version 2.0; see LICENSE.
"""SEVLMProcessor: pictures and words into what the model takes, generated tokens back into words.

    processor(images=image, return_tensors="pt")                               # a prompt for `generate`
    processor(images=image, emotions="awe", return_tensors="pt")               # "why would this move someone to awe?"
    processor(images=images, emotions=labels, explanations=sentences, return_tensors="pt")   # training rows
    processor.read(model.generate(**inputs))                                   # [{"emotion": ..., "explanation": ...}]

The sentence is `<bos> the emotion is LABEL because EXPLANATION<eos>`; everything up to the label is the emotion
segment, " because" opens the explanation segment.
"""

import math
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from transformers import AutoTokenizer, BatchFeature, CLIPImageProcessorPil, ProcessorMixin
from transformers.utils import cached_file, logging

from .images import flatten_images, read_image
from .vad_lexicon import VADLexicon


logger = logging.get_logger(__name__)

ARTEMIS_EMOTIONS = (
    "amusement",
    "awe",
    "contentment",
    "excitement",
    "anger",
    "disgust",
    "fear",
    "sadness",
    "something else",
)
PROMPT = " the emotion is"
BECAUSE = " because"
PAD_TOKEN, EMOTION_TOKEN, EXPLANATION_TOKEN = "<pad>", "<emotion>", "<explanation>"
# <prefix> is unused; the authors have it, and with it their ids and ours agree.
ADDED_TOKENS = (PAD_TOKEN, "<prefix>", EMOTION_TOKEN, EXPLANATION_TOKEN)
VAD_LEXICON_FILE = "vad_lexicon.tsv"
IMAGE_STATISTICS = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    # What the authors normalise with, although their tower is CLIP's.
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


class SEVLMProcessor(ProcessorMixin):
    r"""
    Args:
        image_processor: any image processor; see [`SEVLMProcessor.from_tokenizer`] for the default one.
        tokenizer: a byte-level BPE tokenizer (GPT-2 family) that has `<pad>`, `<emotion>` and `<explanation>`.
        vad_lexicon (`VADLexicon`, *optional*): where the per-token VAD comes from; without one it is zero.
        emotions (`list[str]`): the labels, ArtEmis' nine by default.
        prompt (`str`): what stands before the label, with a leading space.
        max_length (`int`): tokens at which a training sentence is cut (the paper's 30).
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        vad_lexicon=None,
        emotions=ARTEMIS_EMOTIONS,
        prompt=PROMPT,
        max_length=30,
        chat_template=None,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.emotions = list(emotions)
        self.prompt = prompt
        self.max_length = max_length
        self._ids = _TokenIds(tokenizer, self.emotions, prompt)
        if max_length > tokenizer.model_max_length:
            raise ValueError(f"max_length={max_length} is more than the model takes: {tokenizer.model_max_length}.")
        # What is known of a lexicon that a saved processor was separated from; kept, so that saving again keeps it.
        self._missing_lexicon = vad_lexicon if isinstance(vad_lexicon, dict) else None
        self.vad_lexicon = None if isinstance(vad_lexicon, dict) else vad_lexicon

    @classmethod
    def from_tokenizer(
        cls, tokenizer, *, image_size: int = 224, image_statistics: str | tuple = "clip", **kwargs
    ) -> "SEVLMProcessor":
        """Extend `tokenizer` by the tokens SEVLM needs and pair it with the default image preprocessing: squash to
        `image_size` x `image_size` without a crop, normalise with CLIP's or `"imagenet"`'s statistics, or with a pair
        (mean, standard deviation) of your own."""
        if isinstance(image_statistics, str) and image_statistics not in IMAGE_STATISTICS:
            raise ValueError(f"image_statistics must be one of {sorted(IMAGE_STATISTICS)}, not {image_statistics!r}.")
        mean, std = IMAGE_STATISTICS[image_statistics] if isinstance(image_statistics, str) else image_statistics
        add_sevlm_tokens(tokenizer)
        image_processor = CLIPImageProcessorPil(
            size={"height": image_size, "width": image_size}, do_center_crop=False, image_mean=mean, image_std=std
        )
        return cls(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_backbones(
        cls,
        vision_name_or_path: str,
        text_name_or_path: str,
        *,
        image_size: int = 224,
        image_statistics: str | None = None,
        **kwargs,
    ) -> "SEVLMProcessor":
        """The processor for `SEVLMForConditionalGeneration.from_backbones`: the decoder's tokenizer, and pictures
        squashed to `image_size` and normalised as the tower wants it, unless `image_statistics` says otherwise."""
        tokenizer = AutoTokenizer.from_pretrained(text_name_or_path)
        if image_statistics is None:
            # Only the file's numbers are wanted; the class it names may need packages that this one does not.
            tower, _ = CLIPImageProcessorPil.get_image_processor_dict(vision_name_or_path)
            image_statistics = (tower["image_mean"], tower["image_std"])
        return cls.from_tokenizer(tokenizer, image_size=image_size, image_statistics=image_statistics, **kwargs)

    @property
    def vad_lexicon(self) -> VADLexicon | None:
        return self._vad_lexicon

    @vad_lexicon.setter
    def vad_lexicon(self, lexicon: VADLexicon | None):
        self._vad_lexicon = lexicon
        self._read_vad = lexicon.token_reader(self.tokenizer) if lexicon is not None else None

    def token_layout(self) -> dict[str, Any]:
        """The fields of `SEVLMConfig` that follow from the tokenizer and the labels."""
        return {
            "emotions": self.emotions,
            "prompt_token_ids": self._ids.prompt,
            "emotion_token_ids": [self._ids.emotions[emotion] for emotion in self.emotions],
            "because_token_id": self._ids.because,
            "emotion_segment_id": self._ids.emotion_segment,
            "explanation_segment_id": self._ids.explanation_segment,
            "bos_token_id": self._ids.bos,
            "eos_token_id": self._ids.eos,
            "pad_token_id": self._ids.pad,
        }

    def __call__(
        self,
        images=None,
        text=None,
        emotions=None,
        explanations=None,
        return_tensors=None,
        timeout=None,
        max_megapixels=None,
        max_megabytes=None,
        **image_kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: a picture or a list of B pictures, each as [`images.open_image`] takes it.
            text: prompts of your own, in place of `emotions`.
            emotions: a label or a list of B labels; with `explanations` also a list of B lists of P labels.
            explanations: sentences in the shape of `emotions`. `None` for both leaves a sentence slot empty.
            return_tensors: `"pt"` for tensors, else numpy arrays.
            timeout, max_megapixels, max_megabytes: limits of pictures, see [`images.open_image`].

        Returns:
            `pixel_values` `(B, 3, H, W)` if there are pictures; `input_ids`, `attention_mask` `(B, L)`, padded on the
            left, for prompts; for training rows, padded on the right and cut at `max_length`, `(B, L)` or `(B, P, L)`
            of those and `token_type_ids`, `labels` (-100 on `<bos>` and padding), `vad_values` `(..., L, 3)`.
        """
        if explanations is not None and (emotions is None or text is not None):
            raise ValueError("`explanations` need `emotions`, the labels in front of them, and no `text`.")
        if images is None and text is None and emotions is None:
            raise ValueError("Pass `images`, or `emotions` (with `explanations` for training rows).")
        for name, value in {"images": images, "text": text, "emotions": emotions}.items():
            if isinstance(value, (list, tuple)) and not value:
                raise ValueError(f"`{name}` is empty.")
        # What transformers' pipelines pass for texts; here padding follows from what is asked.
        image_kwargs.pop("padding", None)
        data = {}
        if images is not None:
            limits = (timeout, max_megapixels, max_megabytes)
            pictures = [read_image(picture, *limits) for picture in flatten_images(images)]
            if not pictures:
                raise ValueError("`images` is empty.")
            data["pixel_values"] = self.image_processor(pictures, return_tensors="np", **image_kwargs)["pixel_values"]
        if explanations is not None:
            data |= self._training_rows(emotions, explanations)
        elif emotions is not None or text is not None:
            data |= self._pad_left(self._prompts(text, emotions))
        else:
            data |= self._pad_left([self._ids.prompt] * len(data["pixel_values"]))
        pictures, rows = len(data.get("pixel_values", ())), len(data["input_ids"])
        if pictures and (rows % pictures if explanations is None else rows != pictures):
            raise ValueError(f"{pictures} pictures for {rows} rows of text.")
        return BatchFeature(data, tensor_type=return_tensors)

    def _prompts(self, text, emotions) -> list[list[int]]:
        if text is not None:
            if emotions is not None:
                raise ValueError("Pass either `text` or `emotions`, not both.")
            # A word's token depends on the space in front of it.
            texts = [text] if isinstance(text, str) else list(text)
            if not all(isinstance(prompt, str) for prompt in texts):
                raise ValueError("`text` is a prompt or a list of prompts, each a string.")
            prompts = [[self._ids.bos, *ids] for ids in self._encode([" " + prompt.strip() for prompt in texts])]
            longest = max(map(len, prompts))
            if longest > self.tokenizer.model_max_length:
                raise ValueError(
                    f"A prompt of {longest} tokens; the model takes {self.tokenizer.model_max_length}: shorten it."
                )
            return prompts
        return [self._opening(emotion) for emotion in ([emotions] if isinstance(emotions, str) else emotions)]

    def _opening(self, emotion: str) -> list[int]:
        """`<bos> the emotion is LABEL because`."""
        if not isinstance(emotion, str) or emotion not in self._ids.emotions:
            raise ValueError(f"Unknown emotion {emotion!r}; this processor knows {self.emotions}.")
        return [*self._ids.prompt, *self._ids.emotions[emotion], self._ids.because]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        # Special tokens written out in a sentence are words like any other.
        try:
            return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        except TypeError as error:
            for text in texts:
                if not isinstance(text, str) or any("\ud800" <= char <= "\udfff" for char in text):
                    raise ValueError(
                        f"{ascii(text)[:60]} is no text that has tokens: halves of characters (lone surrogates) come "
                        "from a wrong decoding. Read it as UTF-8."
                    ) from error
            raise

    def _pad_left(self, sequences: list[list[int]]) -> dict[str, np.ndarray]:
        width = max(map(len, sequences))
        input_ids = np.full((len(sequences), width), self._ids.pad, dtype=np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(sequences):
            input_ids[row, width - len(ids) :] = ids
            attention_mask[row, width - len(ids) :] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _training_rows(self, emotions, explanations) -> dict[str, np.ndarray]:
        if isinstance(emotions, str):
            emotions, explanations = [emotions], [explanations]
        nested = isinstance(emotions[0], (list, tuple))
        if isinstance(explanations, str) or any(nested == (e is None or isinstance(e, str)) for e in explanations):
            raise ValueError("`explanations` must have the shape of `emotions`: one string for each label.")
        if nested and len({len(row) for row in [*emotions, *explanations]}) != 1:
            raise ValueError("Every picture needs the same number of sentences; fill up with None.")
        flat_emotions = [e for row in emotions for e in row] if nested else list(emotions)
        flat_explanations = [e for row in explanations for e in row] if nested else list(explanations)
        if len(flat_emotions) != len(flat_explanations) or len(emotions) != len(explanations):
            raise ValueError(f"{len(flat_emotions)} emotions for {len(flat_explanations)} explanations.")
        for row, (emotion, explanation) in enumerate(zip(flat_emotions, flat_explanations, strict=True)):
            if (emotion is None) != (explanation is None) or (explanation is not None and not explanation.split()):
                raise ValueError(f"Sentence {row} ({emotion!r}) has an empty emotion or explanation; drop that row.")

        words = [" " + " ".join(e.split()) for e in flat_explanations if e is not None]
        encoded = iter(self._encode(words)) if words else iter(())
        sequences = []
        for emotion in flat_emotions:
            if emotion is None:
                sequences.append([self._ids.bos])
            else:
                sequences.append([*self._opening(emotion), *next(encoded), self._ids.eos][: self.max_length])

        shape = (len(sequences), max(map(len, sequences)))
        rows = {
            "input_ids": np.full(shape, self._ids.pad, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "token_type_ids": np.full(shape, self._ids.explanation_segment, dtype=np.int64),
            "labels": np.full(shape, -100, dtype=np.int64),
            "vad_values": np.zeros((*shape, 3), dtype=np.float32),
        }
        for row, (emotion, ids) in enumerate(zip(flat_emotions, sequences, strict=True)):
            length = len(ids)
            opening = length if emotion is None else len(self._opening(emotion)) - 1
            rows["input_ids"][row, :length] = ids
            rows["attention_mask"][row, :length] = 1
            rows["token_type_ids"][row, :opening] = self._ids.emotion_segment
            rows["labels"][row, 1:length] = ids[1:]
            if self._read_vad is not None:
                rows["vad_values"][row, :length] = self._read_vad(ids)
        if nested:
            rows = {name: array.reshape(len(emotions), -1, *array.shape[1:]) for name, array in rows.items()}
        return rows

    def read(self, generated_ids) -> list[dict[str, str | None]]:
        """Generated sequences (prompt included) -> `[{"emotion": ..., "explanation": ...}]`.

        The emotion is `None` where the text before " because" is none of the labels; the explanation is empty where
        the text has no " because".
        """
        rows = generated_ids.tolist() if hasattr(generated_ids, "tolist") else generated_ids
        return [self._read_row(row) for row in rows]

    def _read_row(self, ids: Iterable[int]) -> dict[str, str | None]:
        ids = [i for i in ids if i != self._ids.pad]
        if ids and ids[0] == self._ids.bos:
            ids = ids[1:]
        if self._ids.eos in ids:
            ids = ids[: ids.index(self._ids.eos)]
        prompt = self._ids.prompt[1:]
        if ids[: len(prompt)] == prompt:
            ids = ids[len(prompt) :]
        cut = ids.index(self._ids.because) if self._ids.because in ids else len(ids)
        label = self._decode_words(ids[:cut]).lower()
        return {
            "emotion": self._ids.spelled.get(label),
            "explanation": self._decode_words(ids[cut + 1 :]),
        }

    def _decode_words(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return " ".join(text.split())

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        lexicon = self.vad_lexicon
        output["vad_lexicon"] = lexicon.to_metadata() if lexicon is not None else self._missing_lexicon
        return output

    def save_pretrained(self, save_directory, *, include_vad_lexicon: bool = False, **kwargs):
        """As in transformers, plus `vad_lexicon.tsv`. A lexicon that its owner does not allow to be passed on is left
        out unless `include_vad_lexicon=True`, meant for folders that stay on your machine."""
        lexicon, file = self.vad_lexicon, Path(save_directory, VAD_LEXICON_FILE)
        file.unlink(missing_ok=True)
        if lexicon is not None and (lexicon.redistributable or include_vad_lexicon):
            os.makedirs(save_directory, exist_ok=True)
            lexicon.save(file)
        elif lexicon is not None:
            logger.warning_once(
                f"The VAD lexicon {lexicon.name!r} may not be passed on and is left out of saved processors. Restore "
                "it after loading with `processor.vad_lexicon = VADLexicon.from_file(PATH)`, or save with "
                "`include_vad_lexicon=True` if the folder stays with you."
            )
        return super().save_pretrained(os.fspath(save_directory), **kwargs)

    def push_to_hub(self, repo_id: str, *, include_vad_lexicon: bool = False, **kwargs):
        """As in transformers: processor, tokenizer and their code, plus `vad_lexicon.tsv`. A lexicon that its owner
        does not allow to be passed on stays here unless `include_vad_lexicon=True`. Card and model come with
        `model.push_to_hub`."""
        # What the library calls takes no arguments of ours.
        self.save_pretrained = partial(self.save_pretrained, include_vad_lexicon=include_vad_lexicon)
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            del self.save_pretrained

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, **kwargs):
        # Both ways of pushing end here; one takes what was there before it began for old, and the lexicon was.
        files_timestamps.pop(VAD_LEXICON_FILE, None)
        # The card is the model's; the one that the library made up would stand in its way.
        files_timestamps["README.md"] = math.inf
        commit = super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)
        api, branch = HfApi(token=kwargs.get("token")), {"revision": commit.pr_revision or kwargs.get("revision")}
        if not Path(working_dir, VAD_LEXICON_FILE).exists() and api.file_exists(repo_id, VAD_LEXICON_FILE, **branch):
            # An earlier push's, which would be read in place of this processor's.
            api.delete_file(VAD_LEXICON_FILE, repo_id, commit_message="Remove the VAD lexicon", **branch)
        return commit

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        where = ("cache_dir", "force_download", "token", "local_files_only", "revision", "subfolder")
        source = {name: kwargs[name] for name in where if name in kwargs}
        processor_dict, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        known = processor_dict.get("vad_lexicon")
        if known is not None:
            file = cached_file(
                pretrained_model_name_or_path,
                VAD_LEXICON_FILE,
                _raise_exceptions_for_missing_entries=False,
                **source,
            )
            if file is not None:
                processor_dict["vad_lexicon"] = VADLexicon.from_file(file)
            else:
                logger.warning_once(
                    f"{pretrained_model_name_or_path} was saved without its VAD lexicon {known.get('name')!r}: "
                    "training rows get zero VAD until you restore it with "
                    "`processor.vad_lexicon = VADLexicon.from_file(PATH)`."
                )
        return processor_dict, kwargs

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask", "token_type_ids", "vad_values", "labels"]


def add_sevlm_tokens(tokenizer) -> int:
    """Add `<pad>`, `<prefix>`, `<emotion>`, `<explanation>` where missing, in this order; returns how many."""
    missing = [token for token in ADDED_TOKENS if token not in tokenizer.get_vocab()]
    added = tokenizer.add_tokens(missing, special_tokens=True)
    tokenizer.pad_token = PAD_TOKEN
    return added


class _TokenIds:
    """Ids of the fixed pieces of the sentence; says what a tokenizer lacks."""

    def __init__(self, tokenizer, emotions: list[str], prompt: str):
        vocabulary = tokenizer.get_vocab()
        lacking = [token for token in (PAD_TOKEN, EMOTION_TOKEN, EXPLANATION_TOKEN) if token not in vocabulary]
        if lacking or tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer lacks {', '.join(lacking) or 'an end-of-text token'}. Prepare it with "
                "`SEVLMProcessor.from_tokenizer(tokenizer)` or `add_sevlm_tokens(tokenizer)`, and resize the model's "
                "embeddings to len(tokenizer)."
            )

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

        because = encode(BECAUSE)
        if len(because) != 1:
            raise ValueError(
                f"The tokenizer splits {BECAUSE!r} into {len(because)} tokens; SEVLM needs one, as it marks where the "
                "explanation begins. Use a GPT-2 tokenizer, or train one (processing/tiny_tokenizer.py)."
            )
        self.because = because[0]
        self.eos = tokenizer.eos_token_id
        self.bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.eos
        self.pad = vocabulary[PAD_TOKEN]
        self.emotion_segment = vocabulary[EMOTION_TOKEN]
        self.explanation_segment = vocabulary[EXPLANATION_TOKEN]
        self.prompt = [self.bos, *encode(prompt)]
        self.emotions = {emotion: encode(" " + emotion) for emotion in emotions}
        # Generated labels are read back whatever their case.
        self.spelled = {" ".join(emotion.lower().split()): emotion for emotion in emotions}
        # A sentence is read back by them: the label ends where the first " because" stands.
        if "" in self.spelled or len(self.spelled) < len(emotions):
            raise ValueError(f"The labels must be words, and differ in more than case and spaces: {emotions}.")
        for text, ids in {prompt: self.prompt, **self.emotions}.items():
            if self.because in ids:
                raise ValueError(f"{text!r} holds {BECAUSE!r}, which opens the explanation: choose another wording.")


SEVLMProcessor.register_for_auto_class()
