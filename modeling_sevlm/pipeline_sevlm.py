# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The pipeline `art-emotion-explanation`: takes an image, returns the emotion it evokes and the explanation.

    explain = pipeline("art-emotion-explanation", model="org/sevlm-artemis", trust_remote_code=True)
    explain("painting.jpg")        # {"emotion", "emotion_scores", "explanation", "alignment_score", "vad"}
    explain(["a.jpg", "b.jpg"], batch_size=2, do_sample=False)                    # greedy decoding
    explain("painting.jpg", emotion="awe")                                        # why would it move someone to awe?
    explain("painting.jpg", num_candidates=8, return_candidates=True)             # 8 samples, best fit first

If the package `modeling_sevlm` is installed, importing it registers the task and you can omit `trust_remote_code`.
"""

import copy
import inspect
import sys
import unicodedata
from collections.abc import Mapping
from itertools import groupby
from numbers import Integral
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, Pipeline
from transformers.pipelines.pt_utils import KeyDataset


TASK = "art-emotion-explanation"
# The entry in a checkpoint's config.json: the pipeline's class, and the auto class that loads the model.
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_sevlm.SEVLMPipeline", "pt": ["AutoModelForImageTextToText"]}}
VAD_NAMES = ("valence", "arousal", "dominance")
# Arguments of each stage with their defaults; a call that passes None gets the default.
PREPROCESS_DEFAULTS = {"timeout": None, "max_megapixels": None, "max_megabytes": None}
FORWARD_DEFAULTS = {"emotion": None, "num_candidates": 1}
POSTPROCESS_DEFAULTS = {"return_candidates": False, "return_all_scores": True}
OWN_ARGUMENTS = {*PREPROCESS_DEFAULTS, *FORWARD_DEFAULTS, *POSTPROCESS_DEFAULTS, "generate_kwargs"}
GENERATION_ARGUMENTS = {
    name
    for name in (*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters)
    if not name.startswith(("_", "negative_prompt"))
} - {"self", "inputs", "kwargs", "return_dict_in_generate"}


class SEVLMPipeline(Pipeline):
    """Names the emotion that an image evokes, explains it, and scores how well both fit the image.

    Takes an image (PIL image, path, URL, array), a list of them, a dataset (of `datasets` with the column "image", a
    `KeyDataset`, any torch dataset of images or of rows with "image") or a generator. A list returns a list; datasets
    and generators return an iterator. `batch_size=` images go through the model together, each once through the tower.

    Arguments of a call. `pipeline(...)` takes them as defaults; `None` in a call restores the value given here:
        emotion (`str`): explain this one of the model's emotions instead of letting the model name one.
        num_candidates (`int`, 1): sample this many explanations; return the one with the highest `alignment_score`.
        return_candidates (`bool`, False): return all of them too, best first.
        return_all_scores (`bool`, True): `emotion_scores` holds every label; False: only the likeliest.
        timeout (`float`, 60): seconds that the download of a URL may take in total.
        max_megapixels (`float`, 178): the largest image from a file or URL that is opened.
        max_megabytes (`float`, 256): the largest file that a URL may send.
        generate_kwargs (`dict`), or its entries as arguments: arguments of `generate`, such as `max_new_tokens` or
            `do_sample=False` (by default the checkpoint samples; `transformers.set_seed` makes samples repeatable).

    Returns a dictionary for each image:
        emotion (`str`, *optional*): the emotion in the sentence; None if it is not one of the labels. A sample may
            have another emotion than the likeliest.
        emotion_scores (`dict[str, float]`): probability of each label, from `model.emotion_scores`.
        explanation (`str`): the text after "because".
        alignment_score (`float`, *optional*): fit of image, emotion and explanation (Eq. 6), comparable within one
            image only; None if the model has no contrastive head.
        vad (`list[dict]`, *optional*): the words of the explanation in order, `{"word", "valence", "arousal",
            "dominance"}` in [-1, 1], None for words outside the lexicon; None if the checkpoint has no lexicon. A word
            like "don't" has the values of its first part in the lexicon.
        candidates (`list[dict]`): with `return_candidates`, the `emotion`, `explanation`, `alignment_score` of each.

    Raises:
        ValueError: unknown emotions or arguments, images that cannot be read, several candidates that the model cannot
            rank.
    """

    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    model: Any
    processor: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.model.config.model_type != "sevlm":
            raise ValueError(f"The task {TASK!r} is for SEVLM models, not for {self.model.config.model_type!r}.")
        if self.model.vision_tower is None:
            raise ValueError("This model has no vision tower: convert it again with --vision_model.")
        if self.processor is None:
            raise ValueError(f"The pipeline {TASK!r} needs the model's processor: pass `processor=` too.")

    # `pipeline()` also passes `local_files_only`, which `generate` does not take.
    def _sanitize_parameters(self, generate_kwargs=None, local_files_only=None, **arguments):
        generation = {name: value for name, value in arguments.items() if name not in OWN_ARGUMENTS}
        generation |= generate_kwargs or {}
        if unknown := sorted(generation.keys() - GENERATION_ARGUMENTS):
            names = ", ".join(sorted(OWN_ARGUMENTS))
            raise ValueError(f"Unknown arguments {unknown}. Use {names} or arguments of `generate`.")

        def given(defaults: dict) -> dict:
            names = [name for name in defaults if name in arguments]
            return {name: defaults[name] if arguments[name] is None else arguments[name] for name in names}

        forward = given(FORWARD_DEFAULTS)
        emotion, num_candidates = forward.get("emotion"), forward.get("num_candidates", 1)
        if emotion is not None and emotion not in self.model.config.emotions:
            raise ValueError(f"Unknown emotion {emotion!r}. Use one of {', '.join(self.model.config.emotions)}.")
        if not isinstance(num_candidates, Integral) or isinstance(num_candidates, bool) or int(num_candidates) < 1:
            raise ValueError(f"num_candidates must be a whole number from 1, not {num_candidates!r}.")
        if int(num_candidates) > 1 and self.model.contrastive_head is None:
            raise ValueError("This model has no contrastive head to rank candidates with: omit num_candidates.")
        self._check_generation(generation, emotion)
        return given(PREPROCESS_DEFAULTS), forward | generation, given(POSTPROCESS_DEFAULTS)

    def _check_generation(self, generation: dict, emotion: str | None):
        """Refuses arguments that `generate` would ignore, or fail on without a clear message."""
        generation_config = generation.get("generation_config")
        arguments = generation if generation_config is None else generation_config.to_dict() | generation
        if (arguments.get("num_return_sequences") or 1) > 1:
            raise ValueError("Instead of `num_return_sequences`, use `num_candidates=` with `return_candidates=True`.")
        if arguments.get("guidance_scale") not in (None, 1):
            raise ValueError("SEVLM cannot generate without the image, which `guidance_scale` needs: omit it.")
        config = self.model.config
        prompt = len(config.prompt_token_ids)
        if emotion is not None:
            prompt += len(config.emotion_token_ids[config.emotions.index(emotion)]) + 1
        for name, room in (("max_new_tokens", config.max_positions - prompt), ("max_length", config.max_positions)):
            if (value := arguments.get(name) or 0) > room:
                raise ValueError(f"{name}={value} is more than this model has positions for: at most {room}.")

    def __call__(self, inputs, **kwargs):
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        # The library is not required; a caller that passes one of its datasets has imported it.
        datasets = sys.modules.get("datasets")
        if datasets is not None and isinstance(inputs, datasets.Dataset | datasets.IterableDataset):
            if inputs.column_names is not None and "image" not in inputs.column_names:
                names = ", ".join(inputs.column_names)
                raise ValueError(f"The dataset has no column 'image' but {names}: pass KeyDataset(data, COLUMN).")
            inputs = KeyDataset(inputs, "image") if hasattr(inputs, "__len__") else (row["image"] for row in inputs)
        elif datasets is not None and isinstance(inputs, datasets.Column | datasets.IterableColumn):
            inputs = (image for image in inputs)
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs, **limits) -> dict[str, torch.Tensor]:
        """Reads an image, or the "image" of a mapping, and returns `{"pixel_values": (1, 3, H, W)}`. The returned
        dictionary is a valid input too. `limits` are `timeout`, `max_megapixels` and `max_megabytes`."""
        row = inputs if isinstance(inputs, Mapping) else {"image": inputs}
        if "pixel_values" in row:
            pixel_values = torch.as_tensor(row["pixel_values"])
        elif "image" in row:
            pixel_values = self.processor(images=[row["image"]], return_tensors="pt", **limits)["pixel_values"]
        else:
            raise ValueError(f"A row needs 'image', not {sorted(row)}: pass KeyDataset(dataset, COLUMN).")
        pixel_values = pixel_values.reshape(-1, *pixel_values.shape[-3:])
        if len(pixel_values) != 1:
            # Later stages would drop the other images, or take them for other inputs of the batch.
            raise ValueError(f"One image at a time: this input holds {len(pixel_values)}. Pass them as a flat list.")
        return {"pixel_values": pixel_values}

    def _forward(self, model_inputs, emotion=None, num_candidates=1, **generation) -> dict[str, torch.Tensor | None]:
        """For B images and N candidates of L tokens returns `sequences` (B, N, L) and `alignment_scores` (B, N), best
        first; `emotion_scores` (B, labels); `vad` (B, L, 3) of the best candidate."""
        generation = {name: value for name, value in generation.items() if value is not None}
        self._check_generation(generation, emotion)
        model = self.model
        features = model.get_image_features(model_inputs["pixel_values"])
        emotions = None if emotion is None else [emotion] * len(features)
        sequences, scores = generate_ranked(
            model, self.processor, features, emotions=emotions, num_candidates=int(num_candidates), **generation
        )
        if scores is None and model.contrastive_head is not None:
            scores = model.alignment_score(sequences[:, 0], image_features=features).unsqueeze(1)
        return {
            "emotion_scores": model.emotion_scores(image_features=features),
            "sequences": sequences,
            "alignment_scores": scores,
            "vad": model.vad_lookup(sequences[:, 0]) if model.vad_lookup.has_table else None,
        }

    def postprocess(self, model_outputs, return_candidates=False, return_all_scores=True) -> dict:
        sequences, alignment_scores = model_outputs["sequences"][0], model_outputs["alignment_scores"]
        candidates = self.processor.read(sequences)
        for i, candidate in enumerate(candidates):
            candidate["alignment_score"] = None if alignment_scores is None else alignment_scores[0, i].item()
        scores = dict(zip(self.model.config.emotions, model_outputs["emotion_scores"][0].tolist(), strict=True))
        if not return_all_scores:
            scores = dict([max(scores.items(), key=lambda item: item[1])])
        vad = None
        if model_outputs["vad"] is not None:
            vad = self._words(sequences[0].tolist(), model_outputs["vad"][0].tolist())
        result = {"emotion": None, "emotion_scores": scores} | candidates[0] | {"vad": vad}
        return result | ({"candidates": candidates} if return_candidates else {})

    def _words(self, ids: list[int], vad: list[list[float]]) -> list[dict]:
        """Returns the words of the explanation with their VAD, given the sentence's tokens and their VAD."""
        lexicon, entries = self.processor.vad_lexicon, []
        for word, positions in explanation_words(self.model, self.tokenizer, ids):
            known: list[float | None] = [None] * len(VAD_NAMES)
            texts = [_decode(self.tokenizer, [ids[position]]).removeprefix(" ") for position in positions]
            for is_alphabetic, run in groupby(zip(texts, positions, strict=True), lambda token: token[0].isalpha()):
                # The token that completes a run of letters carries the run's VAD.
                letters, run_positions = zip(*run, strict=True)
                values = vad[run_positions[-1]]
                # The model's table does not distinguish an unknown word from one whose values are all zero.
                in_lexicon = any(values) or (lexicon is not None and lexicon.get("".join(letters)) == (0, 0, 0))
                if is_alphabetic and in_lexicon:
                    known = [round(value, 4) for value in values]
                    break
            entries.append({"word": word} | dict(zip(VAD_NAMES, known, strict=True)))
        return entries

    def save_pretrained(self, save_directory, *, include_vad_lexicon: bool = False, **kwargs):
        """Saves a complete folder: model, code and processor. Pass `include_vad_lexicon=True` to include a lexicon
        that may not be redistributed; `kwargs` go to the model's `save_pretrained`."""
        if kwargs.pop("push_to_hub", False):
            raise ValueError("Use `pipeline.push_to_hub(name)`, which uploads all files.")
        self.model.save_pretrained(save_directory, include_vad_lexicon=include_vad_lexicon, **kwargs)
        self.processor.save_pretrained(save_directory, include_vad_lexicon=include_vad_lexicon)

    def push_to_hub(self, repo_id: str, *, include_vad_lexicon: bool = False, create_pr: bool = False, **kwargs):
        """Uploads model, code, card and processor in two commits, with `create_pr` to one pull request. Returns the
        last commit. `kwargs` go to both `push_to_hub`; `include_vad_lexicon` is as in `save_pretrained`."""
        kwargs["include_vad_lexicon"] = include_vad_lexicon
        commit = self.model.push_to_hub(repo_id, create_pr=create_pr, **kwargs)
        return self.processor.push_to_hub(repo_id, **kwargs | ({"revision": commit.pr_revision} if create_pr else {}))


def generate_ranked(
    model, processor, image_features: torch.Tensor, *, emotions=None, num_candidates: int = 1, **generation
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Generates N = `num_candidates` explanations of each of B images and sorts them by alignment score (Eq. 6).

    Args:
        image_features: `(B, K, d)`, from `model.get_image_features`.
        emotions: the emotion to explain for each image; by default the model names one.
        generation: arguments of `generate`. Several candidates are sampled by default.

    Returns:
        Tokens with prompts `(B, N, L)`, best first, and scores `(B, N)`; for N = 1 None, as nothing is ranked.

    Raises:
        ValueError: several candidates without sampling or beams.
    """
    if emotions is not None:
        encoded = processor(emotions=list(emotions), return_tensors="pt").to(model.device)
        generation |= {name: encoded[name] for name in ("input_ids", "attention_mask")}
    generation_config = copy.deepcopy(generation.pop("generation_config", None))
    if num_candidates > 1:
        if generation_config is None:
            generation.setdefault("do_sample", True)
        if generation.get("do_sample") is False and generation.get("num_beams", 1) < num_candidates:
            n = num_candidates
            raise ValueError(f"{n} candidates need sampling or `num_beams={n}`: omit `do_sample=False`, or pass both.")
    returned = {"num_return_sequences": num_candidates, "return_dict_in_generate": False}
    if generation_config is None:
        generation |= returned
    else:
        vars(generation_config).update(returned)
        generation["generation_config"] = generation_config
    # `stop_strings` needs the tokenizer.
    sequences = model.generate(image_features=image_features, tokenizer=processor.tokenizer, **generation)
    candidates = sequences.view(len(image_features), num_candidates, -1)
    if num_candidates == 1:
        return candidates, None
    scores = model.alignment_score(sequences, image_features=image_features).view(candidates.shape[:2])
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return candidates.gather(1, order.unsqueeze(-1).expand_as(candidates)), scores


def explanation_words(model, tokenizer, ids: list[int]) -> list[tuple[str, list[int]]]:
    """Splits a generated sentence and returns each word after " because" with the positions of its tokens. "don't",
    "1920s" and "café" are one word each."""
    because = model.config.because_token_id
    words: list[list[int]] = []
    inside = False
    # The end token and padding decode to nothing.
    for position in range(ids.index(because) + 1 if because in ids else len(ids), len(ids)):
        text = _decode(tokenizer, [ids[position]])
        # U+FFFD is a part of a character that takes several tokens.
        is_word = any(_is_letter(char) or char in "'\u2019\ufffd" for char in text)
        if is_word:
            if text[0].isspace() or not inside:
                words.append([])
            words[-1].append(position)
        inside = is_word
    entries = []
    for positions in words:
        text = _decode(tokenizer, [ids[position] for position in positions])
        places = [place for place, char in enumerate(text) if _is_letter(char)]
        if places:
            entries.append((text[places[0] : places[-1] + 1], positions))
    return entries


def _decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _is_letter(char: str) -> bool:
    """Whether `char` is a letter, an accent or a digit."""
    return unicodedata.category(char)[0] in "LMN"
