# Licensed under the Apache License, Version 2.0; see LICENSE.
"""SEVLMProcessor turns images and text into the model's inputs, and generated tokens back into text.

    processor(images=image, return_tensors="pt")                               # a prompt for `generate`
    processor(images=image, emotions="awe", return_tensors="pt")               # a prompt that asks why it evokes awe
    processor(images=images, emotions=labels, explanations=sentences, return_tensors="pt")   # training rows
    processor.read(model.generate(**inputs))                                   # [{"emotion": ..., "explanation": ...}]

A sentence is `<bos> the emotion is LABEL because EXPLANATION<eos>`. The emotion segment ends after the label; the
explanation segment starts with " because".
"""

import math
import os
from collections.abc import Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from PIL.Image import Resampling
from transformers import AutoTokenizer, BatchFeature, CLIPImageProcessorPil, ProcessorMixin
from transformers.utils import ModelOutput, cached_file, logging

from .images import flatten_images, read_image
from .processor_arguments import check_row_length, flatten_groups, image_settings, prompt_length
from .vad_lexicon import VADLexicon


logger = logging.get_logger(__name__)

ARTEMIS_EMOTIONS = (*"amusement awe contentment excitement anger disgust fear sadness".split(), "something else")
PROMPT = " the emotion is"
BECAUSE = " because"
PAD_TOKEN, EMOTION_TOKEN, EXPLANATION_TOKEN = "<pad>", "<emotion>", "<explanation>"
# <prefix> is unused. It keeps the token ids equal to the authors'.
ADDED_TOKENS = (PAD_TOKEN, "<prefix>", EMOTION_TOKEN, EXPLANATION_TOKEN)
VAD_LEXICON_FILE = "vad_lexicon.tsv"
IMAGE_STATISTICS = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    # The authors normalise with these, although their tower is CLIP's.
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


class SEVLMProcessor(ProcessorMixin):
    """
    Args:
        image_processor: any image processor. [`SEVLMProcessor.from_tokenizer`] makes the default one.
        tokenizer: a byte-level BPE tokenizer (GPT-2's family) that has `<pad>`, `<emotion>` and `<explanation>`.
        vad_lexicon (`VADLexicon`, *optional*): source of the tokens' VAD values. Without one they are zero.
        emotions (`list[str]`): the emotion labels (default: ArtEmis' nine).
        prompt (`str`): text before the label, with a leading space.
        max_length (`int`): length in tokens at which a training sentence is cut (default: the paper's 30).
        pad_to_max_length (`bool`): fill training sentences to `max_length` and count the padding as text, as the
            authors' code does: the emotion encoder and the means of Eq. 6 see it. It has no label and no VAD.
        explanation_after (`str`): `read` cuts a text at its `"first"` " because", or at its `"last"` as the authors
            do (3.9 % of ArtEmis' explanations contain the word).
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        vad_lexicon=None,
        emotions=ARTEMIS_EMOTIONS,
        prompt=PROMPT,
        max_length=30,
        pad_to_max_length=False,
        explanation_after="first",
        chat_template=None,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.emotions = list(emotions)
        self.prompt = prompt
        self.max_length = max_length
        self.pad_to_max_length = pad_to_max_length
        if explanation_after not in ("first", "last"):
            raise ValueError(f"explanation_after must be 'first' or 'last', not {explanation_after!r}.")
        self.explanation_after = explanation_after
        self._ids = _TokenIds(tokenizer, self.emotions, prompt)
        self._spelled = {" ".join(emotion.lower().split()): emotion for emotion in emotions}
        if "" in self._spelled or len(self._spelled) < len(self.emotions):
            raise ValueError(f"The labels must be words that differ in more than case and spaces: {self.emotions}.")
        if max_length > tokenizer.model_max_length:
            raise ValueError(f"max_length={max_length} exceeds the model's limit of {tokenizer.model_max_length}.")
        # A processor saved without its lexicon gets only its metadata, which a later save must keep.
        self._missing_lexicon = vad_lexicon if isinstance(vad_lexicon, dict) else None
        self.vad_lexicon = None if isinstance(vad_lexicon, dict) else vad_lexicon

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer,
        *,
        image_size: int = 224,
        image_statistics: str | tuple = "clip",
        resample: str = "bicubic",
        **kwargs,
    ) -> "SEVLMProcessor":
        """Adds SEVLM's tokens to `tokenizer` and pairs it with the default image processor.

        Images are resized to `image_size` x `image_size` without a crop, with Pillow's filter `resample`, and
        normalised with the statistics `"clip"`, `"imagenet"` or a pair (mean, standard deviation).
        """
        if isinstance(image_statistics, str) and image_statistics not in IMAGE_STATISTICS:
            raise ValueError(f"image_statistics must be one of {sorted(IMAGE_STATISTICS)}, not {image_statistics!r}.")
        mean, std = IMAGE_STATISTICS[image_statistics] if isinstance(image_statistics, str) else image_statistics
        add_sevlm_tokens(tokenizer)
        image_processor = CLIPImageProcessorPil(
            size={"height": image_size, "width": image_size},
            do_center_crop=False,
            image_mean=mean,
            image_std=std,
            resample=Resampling[resample.upper()],
        )
        return cls(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_backbones(cls, vision_name_or_path: str, text_name_or_path: str, **kwargs) -> "SEVLMProcessor":
        """Returns the processor for `SEVLMForConditionalGeneration.from_backbones`: the decoder's tokenizer, and the
        vision tower's image statistics by default. `kwargs` are those of [`SEVLMProcessor.from_tokenizer`]."""
        if kwargs.get("image_statistics") is None:
            # Reads only the JSON file: the image processor's class may need packages that are not installed.
            tower, _ = CLIPImageProcessorPil.get_image_processor_dict(vision_name_or_path)
            kwargs["image_statistics"] = (tower["image_mean"], tower["image_std"])
        return cls.from_tokenizer(AutoTokenizer.from_pretrained(text_name_or_path), **kwargs)

    @property
    def vad_lexicon(self) -> VADLexicon | None:
        return self._vad_lexicon

    @vad_lexicon.setter
    def vad_lexicon(self, lexicon: VADLexicon | None):
        self._vad_lexicon = lexicon
        self._read_vad = lexicon.token_reader(self.tokenizer) if lexicon is not None else None

    def token_layout(self) -> dict[str, Any]:
        """Returns the fields of `SEVLMConfig` that depend on the tokenizer and the labels."""
        return {"emotions": self.emotions, **vars(self._ids)}

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        emotions: str | Sequence | None = None,
        explanations: str | Sequence | None = None,
        timeout: float | None = None,
        max_megapixels: float | None = None,
        max_megabytes: float | None = None,
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: an image or a list of B images, each as [`images.open_image`] takes it.
            text: a prompt or a list of prompts, in place of `emotions`.
            emotions: a label or a list of B labels; with `explanations` also a list of B lists of P labels.
            explanations: sentences in the shape of `emotions`. `None` in both leaves a slot empty.
            timeout, max_megapixels, max_megabytes: limits on images, see [`images.open_image`].
            kwargs: `return_tensors`: `"pt"` for tensors, `"np"` for numpy arrays (default). `max_length` for prompts,
                which are not cut but refused above it; `padding="max_length"` fills them. Settings of the image
                processor for this call, such as `size`. All of them also in `images_kwargs`, `text_kwargs` or
                `common_kwargs`.

        Returns:
            `pixel_values` `(B, 3, H, W)` for images. For prompts, `input_ids` and `attention_mask` `(B, L)`, padded
            on the left. For training rows, these and `token_type_ids`, `labels` (-100 on `<bos>` and padding) of shape
            `(B, L)` or `(B, P, L)`, and `vad_values` `(..., L, 3)`, padded on the right and cut at `max_length`.

        Raises:
            ValueError: an argument that is unknown, has no effect, or would be applied wrongly;
                images that cannot be read; labels, explanations or prompts that do not fit together.
        """
        if explanations is not None and (emotions is None or text is not None):
            raise ValueError("`explanations` need `emotions`, one label per explanation, and no `text`.")
        if images is None and text is None and emotions is None:
            raise ValueError("Pass `images`, or `emotions` (with `explanations` for training rows).")
        for given in (text, emotions):
            if given is not None and not isinstance(given, str) and not len(given):
                raise ValueError("`text` or `emotions` is empty.")
        kwargs = flatten_groups(kwargs)
        return_tensors = kwargs.pop("return_tensors", None)
        if return_tensors not in (None, "np", "pt"):
            raise ValueError(f"`return_tensors` must be 'pt' or 'np', not {return_tensors!r}.")
        if explanations is None:
            max_length, is_filled = prompt_length(kwargs)
        else:
            check_row_length(kwargs, self.max_length, self.pad_to_max_length)
        limits = (timeout, max_megapixels, max_megabytes)
        settings = image_settings(kwargs, self.image_processor)
        if images is None and (settings or limits != (None, None, None)):
            names = [*settings] or "limits of images"
            raise ValueError(f"There are no images for {names}: pass `images`, or omit these arguments.")
        data = {} if images is None else {"pixel_values": self._pixel_values(images, limits, settings)}
        if explanations is not None:
            data |= self._training_rows(emotions, explanations)
        else:
            prompts = self._prompts(text, emotions, len(data.get("pixel_values", ())))
            if max_length is not None and (longest := max(map(len, prompts))) > max_length:
                problem = f"A prompt has {longest} tokens, more than max_length={max_length}."
                raise ValueError(f"{problem} Prompts are never cut: shorten it, or omit `max_length`.")
            data |= self._pad(prompts, "left", max_length if is_filled else 0)
        num_images, num_rows = len(data.get("pixel_values", ())), len(data["input_ids"])
        if num_images and (num_rows % num_images if explanations is None else num_rows != num_images):
            raise ValueError(f"{num_images} images for {num_rows} rows of text; pass as many rows as images.")
        return BatchFeature(data, tensor_type=return_tensors)

    def _pixel_values(self, images, limits: tuple, settings: dict[str, Any]) -> np.ndarray:
        sources = list(flatten_images(images))
        if not sources:
            raise ValueError("`images` is empty.")
        do_rescale, factor = (
            settings.get(name, getattr(self.image_processor, name)) for name in ("do_rescale", "rescale_factor")
        )
        if (factor if do_rescale else 1) != 1 / 255 and any(map(_has_fractions, sources)):
            raise ValueError("`do_rescale` and `rescale_factor` are for values from 0 to 255, not for fractions.")
        pixels = self.image_processor([read_image(source, *limits) for source in sources], **settings)["pixel_values"]
        if len(shapes := {array.shape[-2:] for array in pixels}) > 1:
            sizes = ", ".join(f"{width} x {height}" for height, width in sorted(shapes))
            raise ValueError(f"The images have different sizes, {sizes}: resize them alike, or pass one at a time.")
        return np.stack(pixels)

    def _prompts(self, text, emotions, num_images: int) -> list[list[int]]:
        if text is None and emotions is None:
            return [self._ids.prompt_token_ids] * num_images
        if text is None:
            return [self._opening(emotion) for emotion in ([emotions] if isinstance(emotions, str) else emotions)]
        if emotions is not None:
            raise ValueError("Pass either `text` or `emotions`, not both.")
        texts = [text] if isinstance(text, str) else text
        # GPT-2 has different tokens for a word with and without a space before it.
        encoded = self._encode([" " + prompt.strip() for prompt in texts])
        longest, limit = max(map(len, encoded)) + 1, self.tokenizer.model_max_length
        if longest > limit:
            raise ValueError(f"A prompt has {longest} tokens, but the model takes at most {limit}: shorten it.")
        return [[self._ids.bos_token_id, *ids] for ids in encoded]

    def _opening(self, emotion: str) -> list[int]:
        """Returns the ids of `<bos> the emotion is LABEL because`."""
        if emotion not in self.emotions:
            raise ValueError(f"Unknown emotion {emotion!r}; this processor knows {self.emotions}.")
        label = self._ids.emotion_token_ids[self.emotions.index(emotion)]
        return [*self._ids.prompt_token_ids, *label, self._ids.because_token_id]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            excerpt = ascii(error.object[max(0, error.start - 20) : error.end + 20])
            raise ValueError(f"{excerpt} has lone surrogates, from a wrong decoding. Read it as UTF-8.") from error
        # Special tokens spelled out in a sentence are plain text.
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _pad(self, sequences: list[list[int]], side: str, width: int = 0) -> dict[str, np.ndarray]:
        lengths = np.array([[len(ids)] for ids in sequences])
        width = max(width, lengths.max())
        positions = np.arange(width)
        is_token = positions < lengths if side == "right" else positions >= width - lengths
        input_ids = np.full(is_token.shape, self._ids.pad_token_id)
        input_ids[is_token] = np.concatenate(sequences)
        return {"input_ids": input_ids, "attention_mask": is_token.astype(np.int64)}

    def _training_rows(self, emotions, explanations) -> dict[str, np.ndarray]:
        labels, sentences = np.array(emotions, dtype=object), np.array(explanations, dtype=object)
        # numpy keeps rows of unequal lengths as lists.
        is_text = [value is None or isinstance(value, str) for value in [*labels.flat, *sentences.flat]]
        if labels.shape != sentences.shape or not all(is_text):
            rule = "one string per label, and the same number for every image; pad with None"
            raise ValueError(f"`explanations` must have the shape of `emotions`: {rule}.")
        shape = labels.shape or (1,)
        for row, (label, sentence) in enumerate(zip(labels.flat, sentences.flat, strict=True)):
            if (label is None) != (sentence is None) or (sentence is not None and not sentence.split()):
                raise ValueError(f"Sentence {row} ({label!r}) has an empty emotion or explanation; drop that row.")

        texts = [" " + " ".join(text.split()) for text in sentences.flat if text is not None]
        encoded = iter(self._encode(texts) if texts else ())
        sequences, emotion_lengths = [], []
        for label in labels.flat:
            ids, emotion_length = [self._ids.bos_token_id], 1
            if label is not None:
                opening = self._opening(label)
                ids, emotion_length = [*opening, *next(encoded), self._ids.eos_token_id], len(opening) - 1
            sequences.append(ids[: self.max_length])
            emotion_lengths.append([emotion_length])

        rows = self._pad(sequences, "right", self.max_length if self.pad_to_max_length else 0)
        is_token = rows["attention_mask"] == 1
        in_emotion = np.arange(is_token.shape[1]) < np.array(emotion_lengths)
        rows["token_type_ids"] = np.where(in_emotion, self._ids.emotion_segment_id, self._ids.explanation_segment_id)
        rows["labels"] = np.where(is_token, rows["input_ids"], -100)
        rows["labels"][:, 0] = -100
        rows["vad_values"] = np.zeros((*is_token.shape, 3), dtype=np.float32)
        if self._read_vad is not None:
            rows["vad_values"][is_token] = np.concatenate([self._read_vad(ids) for ids in sequences])
        if self.pad_to_max_length:
            rows["attention_mask"][np.array([label is not None for label in labels.flat])] = 1
        return {name: array.reshape(*shape, *array.shape[1:]) for name, array in rows.items()}

    def read(self, generated_ids) -> list[dict[str, str | None]]:
        """Turns generated sequences, prompt included, into `[{"emotion": ..., "explanation": ...}]`.

        `generated_ids` are `(N, L)`: a tensor, an array, lists, or the result of `generate` with
        `return_dict_in_generate=True`. The emotion is `None` if the text before " because" is not a label (case is
        ignored). The explanation is empty if there is no " because".

        Raises:
            ValueError: `generated_ids` are not token ids `(N, L)`.
        """
        ids = generated_ids.get("sequences") if isinstance(generated_ids, ModelOutput) else generated_ids
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows] if isinstance(rows, list) else None
        if rows is None or not all(isinstance(row, (list, tuple)) and all(map(_is_token_id, row)) for row in rows):
            shape = f" of shape {tuple(ids.shape)}" if hasattr(ids, "shape") else ""
            kind = type(generated_ids).__name__
            raise ValueError(f"`read` takes token ids (N, L) as `generate` returns them, not {kind}{shape}.")
        return [self._read_row(row) for row in rows]

    def _read_row(self, ids: Sequence[int]) -> dict[str, str | None]:
        ids = [i for i in ids if i != self._ids.pad_token_id]
        if ids and ids[0] == self._ids.bos_token_id:
            ids = ids[1:]
        if self._ids.eos_token_id in ids:
            ids = ids[: ids.index(self._ids.eos_token_id)]
        prompt = self._ids.prompt_token_ids[1:]
        if ids[: len(prompt)] == prompt:
            ids = ids[len(prompt) :]
        cuts = [place for place, token in enumerate(ids) if token == self._ids.because_token_id] or [len(ids)]
        emotion = self._spelled.get(self._decode_words(ids[: cuts[0]]).lower())
        start = cuts[0 if self.explanation_after == "first" else -1] + 1
        return {"emotion": emotion, "explanation": self._decode_words(ids[start:])}

    def _decode_words(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return " ".join(text.split())

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        lexicon = self.vad_lexicon
        output["vad_lexicon"] = lexicon.to_metadata() if lexicon is not None else self._missing_lexicon
        return output

    def save_pretrained(self, save_directory, *, include_vad_lexicon: bool = False, **kwargs):
        """Saves as in transformers, plus `vad_lexicon.tsv`.

        A lexicon that is not `redistributable` is saved only with `include_vad_lexicon=True`. Do not publish it.
        """
        lexicon, file = self.vad_lexicon, Path(save_directory, VAD_LEXICON_FILE)
        file.unlink(missing_ok=True)
        if lexicon is not None and (lexicon.redistributable or include_vad_lexicon):
            os.makedirs(save_directory, exist_ok=True)
            lexicon.save(file)
        elif lexicon is not None:
            logger.warning_once(
                f"The VAD lexicon {lexicon.name!r} may not be passed on and is not saved. Set `processor.vad_lexicon` "
                "after loading, or save with `include_vad_lexicon=True` if you do not publish the folder."
            )
        return super().save_pretrained(os.fspath(save_directory), **kwargs)

    def push_to_hub(self, repo_id: str, *, include_vad_lexicon: bool = False, **kwargs):
        """Pushes processor, tokenizer and their code, plus `vad_lexicon.tsv` as in [`save_pretrained`]."""
        # transformers calls `save_pretrained` without `include_vad_lexicon`.
        save = partial(self.save_pretrained, include_vad_lexicon=include_vad_lexicon)
        self.save_pretrained = save  # type: ignore[method-assign]
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            del self.save_pretrained

    def _upload_modified_files(self, working_dir, repo_id, files_timestamps, **kwargs):
        # Always uploads the lexicon, and never transformers' generated card, which would replace the model's.
        files_timestamps.pop(VAD_LEXICON_FILE, None)
        files_timestamps["README.md"] = math.inf
        commit = super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)
        api, branch = HfApi(token=kwargs.get("token")), {"revision": commit.pr_revision or kwargs.get("revision")}
        if not Path(working_dir, VAD_LEXICON_FILE).exists() and api.file_exists(repo_id, VAD_LEXICON_FILE, **branch):
            # Left by an earlier push. It would be loaded with this processor.
            api.delete_file(VAD_LEXICON_FILE, repo_id, commit_message="Remove the VAD lexicon", **branch)
        return commit

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        where = ("cache_dir", "force_download", "token", "local_files_only", "revision", "subfolder")
        source = {name: kwargs[name] for name in where if name in kwargs}
        processor_dict, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if (metadata := processor_dict.get("vad_lexicon")) is not None:
            source["_raise_exceptions_for_missing_entries"] = False
            if (file := cached_file(pretrained_model_name_or_path, VAD_LEXICON_FILE, **source)) is not None:
                processor_dict["vad_lexicon"] = VADLexicon.from_file(file)
            else:
                saved = f"{pretrained_model_name_or_path} was saved without its VAD lexicon {metadata.get('name')!r}"
                logger.warning_once(f"{saved}: VAD is zero until you set `processor.vad_lexicon`.")
        return processor_dict, kwargs

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "input_ids", "attention_mask", "token_type_ids", "vad_values", "labels"]


def _has_fractions(image) -> bool:
    return "float" in str(getattr(image, "dtype", "")) or getattr(image, "mode", None) == "F"


def _is_token_id(value) -> bool:
    return isinstance(value, Integral) and int(value) >= 0


def add_sevlm_tokens(tokenizer) -> int:
    """Adds `<pad>`, `<prefix>`, `<emotion>`, `<explanation>` where missing, in this order. Returns how many."""
    missing = [token for token in ADDED_TOKENS if token not in tokenizer.get_vocab()]
    added = tokenizer.add_tokens(missing, special_tokens=True)
    tokenizer.pad_token = PAD_TOKEN
    return added


class _TokenIds:
    """Ids of the fixed parts of a sentence, by their names in `SEVLMConfig`."""

    def __init__(self, tokenizer, emotions: list[str], prompt: str):
        vocabulary = tokenizer.get_vocab()
        lacking = [token for token in (PAD_TOKEN, EMOTION_TOKEN, EXPLANATION_TOKEN) if token not in vocabulary]
        if lacking or tokenizer.eos_token_id is None:
            missing = ", ".join(lacking) or "an end-of-text token"
            raise ValueError(f"The tokenizer lacks {missing}. Prepare it with `add_sevlm_tokens(tokenizer)`.")

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

        because = encode(BECAUSE)
        if len(because) != 1:
            raise ValueError(f"The tokenizer splits {BECAUSE!r} into {len(because)} tokens. Use a GPT-2 tokenizer.")
        self.eos_token_id = tokenizer.eos_token_id
        self.bos_token_id = self.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.pad_token_id = vocabulary[PAD_TOKEN]
        self.because_token_id = because[0]
        self.emotion_segment_id = vocabulary[EMOTION_TOKEN]
        self.explanation_segment_id = vocabulary[EXPLANATION_TOKEN]
        self.prompt_token_ids = [self.bos_token_id, *encode(prompt)]
        self.emotion_token_ids = [encode(" " + emotion) for emotion in emotions]
        for text, ids in zip([prompt, *emotions], [self.prompt_token_ids, *self.emotion_token_ids], strict=True):
            if self.because_token_id in ids:
                raise ValueError(f"{text!r} contains {BECAUSE!r}, which starts the explanation. Reword it.")


SEVLMProcessor.register_for_auto_class()
