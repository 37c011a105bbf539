# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The pipeline `art-emotion-explanation`: takes an image, returns the likeliest emotion and its explanation.

    explain = pipeline("art-emotion-explanation", model="org/sevlm-artemis", trust_remote_code=True)
    explain("painting.jpg")        # {"emotion", "emotion_scores", "explanation", "alignment_score", "vad"}
    explain(["a.jpg", "b.jpg"], batch_size=2, do_sample=True)                     # other words at every call
    explain("painting.jpg", emotion="awe")                                        # why would it move someone to awe?
    explain("painting.jpg", num_candidates=8, return_candidates=True)             # 8 samples, best fit first

If the package `modeling_sevlm` is installed, importing it registers the task and you can omit `trust_remote_code`.
"""

import copy
import inspect
import unicodedata
from collections.abc import Mapping
from itertools import groupby
from numbers import Integral
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, Pipeline, StoppingCriteria

from .pipeline_inputs_sevlm import NumberedInput, did_you_mean, find_label, numbered_inputs


TASK = "art-emotion-explanation"
# The entry in a checkpoint's config.json: the pipeline's class, and the auto class that loads the model.
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_sevlm.SEVLMPipeline", "pt": ["AutoModelForImageTextToText"]}}
VAD_NAMES = ("valence", "arousal", "dominance")
# Arguments of each stage with their defaults; a call that passes None gets the default.
LIMIT_DEFAULTS = {"timeout": None, "max_megapixels": None, "max_megabytes": None}
PREPROCESS_DEFAULTS = LIMIT_DEFAULTS | {"on_error": "raise"}
FORWARD_DEFAULTS = {"emotion": None, "num_candidates": 1}
POSTPROCESS_DEFAULTS = {"return_candidates": False, "return_all_scores": True}
OWN_ARGUMENTS = {*PREPROCESS_DEFAULTS, *FORWARD_DEFAULTS, *POSTPROCESS_DEFAULTS, "generate_kwargs"}
GENERATION_ARGUMENTS = {
    name
    for name in (*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters)
    if not name.startswith(("_", "negative_prompt", "output_"))
} - {"self", "inputs", "kwargs", "return_dict_in_generate"}
LENGTHS = ("max_length", "max_new_tokens")


class SEVLMPipeline(Pipeline):
    """Names the likeliest emotion of an image, explains it, and scores how well both fit the image.

    The emotion comes first: it is the likeliest of `model.emotion_scores`. The explanation is generated for it, after
    `the emotion is LABEL because`. `model.generate` without a prompt samples both instead, as in the paper.

    Takes an image (PIL image, path, URL, bytes, open file, `{"bytes", "path"}`, array), a list of them, a dataset (of
    `datasets` with the column "image", a `KeyDataset`, any torch dataset of images or of rows with "image"), a table
    of pandas with the column "image" or one of its columns, a generator or a `map`. A list or table returns a list;
    the others return an iterator. `batch_size=` images go through the model together, each once through the tower.

    Arguments of a call. `pipeline(...)` takes them as defaults; `None` in a call restores the value given here:
        emotion (`str`): explain this one of the model's emotions instead of the likeliest, in any case ("Awe",
            "something_else").
        on_error (`str`, "raise"): what to do about an image that cannot be read. "raise": an error with its index
            among the inputs and its name. "skip": its result is `{"error": why, "index": its index}`.
        num_candidates (`int`, 1): sample this many explanations; return the one with the highest `alignment_score`.
        return_candidates (`bool`, False): return all of them too, best first.
        return_all_scores (`bool`, True): `emotion_scores` holds every label; False: only the likeliest.
        timeout (`float`, 60): seconds that the download of a URL may take in total.
        max_megapixels (`float`, 178): the largest image from a file or URL that is opened.
        max_megabytes (`float`, 256): the largest file that a URL may send.
        generate_kwargs (`dict`), or its entries as arguments: arguments of `generate`, such as `max_new_tokens`,
            `max_length` (with the prompt) or `do_sample=True` (by default one explanation is greedy and several are
            sampled, with the checkpoint's nucleus; `transformers.set_seed` makes samples repeatable). `top_k` is an
            argument of sampling, not a number of labels, and needs `do_sample=True`.

    Returns a dictionary for each image:
        emotion (`str`): the emotion that is explained: the likeliest, or the argument `emotion`.
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
            rank; a model whose config has no `emotion_token_ids`, because its emotions have no scores.
    """

    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    model: Any
    processor: Any
    _forward_params: dict = {}  # until `__init__` has read the defaults

    def __init__(self, *args, **kwargs):
        model = kwargs.get("model", args[0] if args else None)
        device_map = getattr(model, "hf_device_map", None)
        if device_map:  # transformers takes the device of the first entry, which may be "disk"
            model.hf_device_map = {"": str(model.device)}
        try:
            super().__init__(*args, **kwargs)
        finally:
            if device_map:
                model.hf_device_map = device_map

    def _check_model(self):
        if self.model.config.model_type != "sevlm":
            raise ValueError(f"The task {TASK!r} is for SEVLM models, not for {self.model.config.model_type!r}.")
        if self.model.vision_tower is None:
            raise ValueError("This model has no vision tower: convert it again with --vision_model.")
        if self.model.config.emotion_token_ids is None:
            remedy = "set them with `model.config.update(processor.token_layout())`"
            raise ValueError(f"This model's config has no `emotion_token_ids`, so no emotion has a score: {remedy}.")
        if self.processor is None:
            raise ValueError(f"The pipeline {TASK!r} needs the model's processor: pass `processor=` too.")

    # `pipeline()` also passes `local_files_only`, which `generate` does not take.
    def _sanitize_parameters(self, generate_kwargs=None, local_files_only=None, **arguments):
        self._check_model()  # here, because `__init__` of transformers' class calls this
        generation = {name: value for name, value in arguments.items() if name not in OWN_ARGUMENTS}
        generation |= generate_kwargs or {}
        # The length in a call replaces the one given to `pipeline(...)`, also if that has the other name.
        config = generation.get("generation_config") or GenerationConfig()
        if any(generation.get(name) or getattr(config, name) for name in LENGTHS):
            generation = dict.fromkeys(LENGTHS) | generation
        if unknown := sorted(generation.keys() - GENERATION_ARGUMENTS):
            names = ", ".join(sorted(OWN_ARGUMENTS))
            hint = did_you_mean(unknown[0], [*OWN_ARGUMENTS, "batch_size", "num_workers", *GENERATION_ARGUMENTS])
            raise ValueError(f"Unknown arguments {unknown}.{hint} Use {names} or arguments of `generate`.")

        def given(defaults: dict) -> dict:
            names = [name for name in defaults if name in arguments]
            return {name: defaults[name] if arguments[name] is None else arguments[name] for name in names}

        forward, preprocess = given(FORWARD_DEFAULTS), given(PREPROCESS_DEFAULTS)
        num_candidates = forward.get("num_candidates", 1)
        if forward.get("emotion") is not None:
            forward["emotion"] = find_label(forward["emotion"], self.model.config.emotions)
        if (on_error := preprocess.get("on_error", "raise")) not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}.")
        if not isinstance(num_candidates, Integral) or isinstance(num_candidates, bool) or int(num_candidates) < 1:
            raise ValueError(f"num_candidates must be a whole number from 1, not {num_candidates!r}.")
        if int(num_candidates) > 1 and self.model.contrastive_head is None:
            raise ValueError("This model has no contrastive head to rank candidates with: omit num_candidates.")
        self._check_generation(**self._forward_params | forward | generation)
        return preprocess, forward | generation, given(POSTPROCESS_DEFAULTS)

    def _check_generation(self, emotion=None, num_candidates=1, **generation):
        """Refuses arguments that `generate` would ignore, or fail on without a clear message."""
        generation = {name: value for name, value in generation.items() if value is not None}
        generation_config = generation.get("generation_config")
        arguments = generation if generation_config is None else generation_config.to_dict() | generation
        if arguments.get("num_return_sequences") not in (None, 1):
            raise ValueError("Instead of `num_return_sequences`, use `num_candidates=` with `return_candidates=True`.")
        if arguments.get("guidance_scale") not in (None, 1):
            raise ValueError("SEVLM cannot generate without the image, which `guidance_scale` needs: omit it.")
        do_sample = arguments.get("do_sample")
        if generation.get("top_k") is not None and not do_sample:
            remark = "all labels are in `emotion_scores`, and `return_all_scores=False` keeps the likeliest"
            raise ValueError(f"`top_k` is an argument of sampling and needs `do_sample=True`; {remark}.")
        for name in ("temperature", "top_p", "min_p", "typical_p"):
            if generation.get(name) is not None and do_sample is None and num_candidates == 1:
                raise ValueError(f"`{name}` is an argument of sampling: add `do_sample=True`, or omit it.")
        config = self.model.config
        labels = dict(zip(config.emotions, config.emotion_token_ids, strict=True))
        # The likeliest emotion is not known yet, and every one must fit.
        label = max(labels.values(), key=len) if emotion is None else labels[emotion]
        prompt = len([*config.prompt_token_ids, *label, config.because_token_id])
        for name, room in (("max_new_tokens", config.max_positions - prompt), ("max_length", config.max_positions)):
            if (value := arguments.get(name) or 0) > room:
                raise ValueError(f"{name}={value} is more than this model has positions for: at most {room}.")
        length = arguments.get("max_length")
        if length is not None and length <= prompt and arguments.get("max_new_tokens") is None:
            raise ValueError(f"max_length={length} has no room after the prompt of {prompt} tokens: raise it.")

    def __call__(self, inputs, **kwargs):
        inputs = numbered_inputs(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs, on_error="raise", **limits) -> dict[str, Any]:
        """Reads an image, or the "image" of a mapping, and returns `{"pixel_values": (1, 3, H, W)}`. The returned
        dictionary is a valid input too. `limits` are `timeout`, `max_megapixels` and `max_megabytes`.

        For one of several inputs, and for a skipped image, `pixel_values` is a list of one or no tensor, next to
        `error`: the result of a skipped image, else None.
        """
        is_numbered = isinstance(inputs, NumberedInput)
        numbered = inputs if is_numbered else NumberedInput(0, inputs)
        try:
            if numbered.error is not None:
                raise numbered.error
            pixel_values = self._read(numbered.source, **limits)
        except (OSError, ValueError, MemoryError) as error:
            reason = str(error) or "there is not enough memory for it"
            if on_error == "skip":
                return {"pixel_values": [], "error": {"error": reason, "index": numbered.index}}
            if not is_numbered or isinstance(error, MemoryError):
                raise
            raise ValueError(f"Input {numbered.index} (counted from 0): {reason}") from error
        return {"pixel_values": [pixel_values], "error": None} if is_numbered else {"pixel_values": pixel_values}

    def _read(self, inputs, **limits) -> torch.Tensor:
        is_row = isinstance(inputs, Mapping) and not (inputs.keys() & {"bytes", "path"} and "image" not in inputs)
        row = inputs if is_row else {"image": inputs}
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
        return pixel_values

    def _forward(self, model_inputs, **arguments) -> dict[str, Any]:
        """Explains the images that were read. A batch of several inputs also has `error`, one for each input, and a
        row for each, which means nothing for a skipped image."""
        if "error" not in model_inputs:
            return self._explain(model_inputs["pixel_values"], **arguments)
        pixel_values, errors = model_inputs["pixel_values"], model_inputs["error"]
        is_batch = isinstance(errors, list)  # with `batch_size=1`, transformers passes the input itself
        readable = [values for one in pixel_values for values in one] if is_batch else pixel_values
        outputs: dict[str, Any] = {"error": errors}
        if readable:
            explained = self._explain(torch.cat(readable), **arguments)
            is_read = torch.tensor([error is None for error in errors] if is_batch else [True])
            rows = (is_read.cumsum(dim=0) - 1).clamp(min=0)
            outputs |= {name: None if values is None else values[rows] for name, values in explained.items()}
        return outputs

    def _explain(self, pixel_values, emotion=None, num_candidates=1, **generation) -> dict[str, torch.Tensor | None]:
        """For B images and N candidates of L tokens returns `sequences` (B, N, L) and `alignment_scores` (B, N), best
        first; `emotion_scores` (B, labels); `vad` (B, L, 3) of the best candidate."""
        generation = {name: value for name, value in generation.items() if value is not None}
        model, config = self.model, generation.get("generation_config")
        if config is None or config.do_sample is None:
            # The checkpoint's own default is to sample.
            generation.setdefault("do_sample", num_candidates > 1)
        features = model.encode_images(pixel_values)
        emotion_scores = model.emotion_scores(image_features=features)
        likeliest = [model.config.emotions[label] for label in emotion_scores.argmax(dim=1).tolist()]
        emotions = likeliest if emotion is None else [emotion] * len(features)
        sequences, scores = generate_ranked(
            model, self.processor, features, emotions=emotions, num_candidates=int(num_candidates), **generation
        )
        if scores is None and model.contrastive_head is not None:
            scores = model.alignment_score(sequences[:, 0], image_features=features).unsqueeze(1)
        return {
            "emotion_scores": emotion_scores,
            "sequences": sequences,
            "alignment_scores": scores,
            "vad": model.vad_lookup(sequences[:, 0]) if model.vad_lookup.has_table else None,
        }

    def postprocess(self, model_outputs, return_candidates=False, return_all_scores=True) -> dict:
        if model_outputs.get("error") is not None:
            return model_outputs["error"]
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


class LengthWithoutPadding(StoppingCriteria):
    """Ends each text at `max_length` tokens, so that it does not depend on the longest prompt of its batch.

    `padding` `(B,)` counts the padding before each prompt.
    """

    def __init__(self, padding: torch.Tensor, max_length: int):
        self.padding, self.max_length = padding, max_length

    def __call__(self, input_ids, scores, **kwargs):
        padding = self.padding.repeat_interleave(len(input_ids) // len(self.padding))
        return input_ids.shape[1] - padding >= self.max_length


def generate_ranked(
    model, processor, image_features: torch.Tensor, *, emotions=None, num_candidates: int = 1, **generation
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Generates N = `num_candidates` explanations of each of B images and sorts them by alignment score (Eq. 6).

    Args:
        image_features: `(B, K, d)`, from `model.encode_images`.
        emotions: the emotion to explain for each image; by default the model names one.
        generation: arguments of `generate`. Several candidates are sampled by default.

    Returns:
        Tokens with prompts `(B, N, L)`, best first, and scores `(B, N)`; for N = 1 None, as nothing is ranked.

    Raises:
        ValueError: several candidates without sampling or beams; a `max_length` that the prompt fills.
    """
    if emotions is not None:
        encoded = processor(emotions=list(emotions), return_tensors="pt").to(model.device)
        generation |= {name: encoded[name] for name in ("input_ids", "attention_mask")}
        padding = encoded["attention_mask"].eq(0).sum(dim=1)
    generation_config = copy.deepcopy(generation.pop("generation_config", None))
    if num_candidates > 1:
        if generation_config is None:
            generation.setdefault("do_sample", True)
        if generation.get("do_sample") is False and generation.get("num_beams", 1) < num_candidates:
            n = num_candidates
            raise ValueError(f"{n} candidates need sampling or `num_beams={n}`: omit `do_sample=False`, or pass both.")
    prompt = len(model.config.prompt_token_ids) if emotions is None else encoded["input_ids"].shape[1]
    shortest = prompt if emotions is None else prompt - int(padding.max())
    for settings in (generation, {} if generation_config is None else vars(generation_config)):
        length = settings.get("max_length")
        # `generate` would ignore `max_length`, because the checkpoint has a `max_new_tokens`.
        if length is not None and settings.get("max_new_tokens") is None:
            if length <= prompt:
                raise ValueError(f"max_length={length} has no room after the prompt of {prompt} tokens: raise it.")
            new = min(length - shortest, model.config.max_positions - prompt)
            settings.update(max_new_tokens=new, max_length=None)
            if shortest < prompt and (settings is generation or generation.get("max_new_tokens") is None):
                criteria = generation.get("stopping_criteria") or ()
                generation["stopping_criteria"] = [*criteria, LengthWithoutPadding(padding, length)]
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
