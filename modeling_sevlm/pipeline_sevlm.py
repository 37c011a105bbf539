# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The pipeline `art-emotion-explanation`: a picture in, what it makes a viewer feel and why out.

    explain = pipeline("art-emotion-explanation", model="org/sevlm-artemis", trust_remote_code=True)
    explain("painting.jpg")        # {"emotion", "emotion_scores", "explanation", "alignment_score", "vad"}
    explain(["a.jpg", "b.jpg"], batch_size=2, do_sample=False)                    # greedy decoding
    explain("painting.jpg", emotion="awe")                                        # why would it move someone to awe?
    explain("painting.jpg", num_candidates=8, return_candidates=True)             # of 8 samples the best fit first

Where the package `modeling_sevlm` is installed, importing it registers the task and `trust_remote_code` is not needed.
"""

import copy
import inspect
import sys
import unicodedata
from collections.abc import Mapping
from numbers import Integral

import torch
from transformers import GenerationConfig, GenerationMixin, Pipeline
from transformers.pipelines.pt_utils import KeyDataset


TASK = "art-emotion-explanation"
# What a checkpoint's config.json says of it: where the class lies, and which auto class loads its model.
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_sevlm.SEVLMPipeline", "pt": ["AutoModelForImageTextToText"]}}
VAD_NAMES = ("valence", "arousal", "dominance")
# What a call may set, and what holds where it does not, or passes None.
PREPARING = {"timeout": None, "max_megapixels": None, "max_megabytes": None}
EXPLAINING = {"emotion": None, "num_candidates": 1}
SHOWING = {"return_candidates": False, "return_all_scores": True}
OURS = {*PREPARING, *EXPLAINING, *SHOWING, "generate_kwargs"}
GENERATION_ARGUMENTS = {
    name
    for name in (*vars(GenerationConfig()), *inspect.signature(GenerationMixin.generate).parameters)
    if not name.startswith(("_", "negative_prompt"))
} - {"self", "inputs", "kwargs", "num_return_sequences", "return_dict_in_generate"}


class SEVLMPipeline(Pipeline):
    """Emotion, its explanation and how well they fit, for pictures.

    A call takes a picture (PIL image, path, URL, array), a list of them, a data set (of `datasets` with the column
    "image", a `KeyDataset`, any torch data set of pictures or of rows with "image") or a generator. A list gives a
    list; data sets and generators give an iterator that reads pictures as they are needed. With `batch_size=` that
    many go through the model at once; the vision tower sees every picture once. `open_image` beside the processor
    says how pictures are read.

    Arguments, of a call or, as defaults, of `pipeline(...)`:
        emotion (`str`): explain this one of the model's emotions instead of letting the model name one.
        num_candidates (`int`, 1): sample so many explanations and give the one with the highest `alignment_score`.
        return_candidates (`bool`, False): give all of them too, best first.
        return_all_scores (`bool`, True): `emotion_scores` holds every label; False: the likeliest label alone.
        timeout (`float`, 60): seconds that a URL may take, from the connection to the last byte.
        max_megapixels (`float`, 178): the largest picture of a file or URL that is opened; see `images.py` beside
            the processor for a limit that holds everywhere.
        max_megabytes (`float`, 256): the largest file that a URL may send.
        generate_kwargs (`dict`), or its entries as arguments: anything that `generate` takes, such as
            `do_sample=False` (the checkpoint's generation config samples) or `max_new_tokens`. Call
            `transformers.set_seed` for repeatable samples.
    `None` in a call takes back a default given to `pipeline(...)`.

    Returns, for every picture, a dictionary:
        emotion (`str`, *optional*): what the sentence names or was asked to explain; None if that is none of the
            labels. A sampled emotion need not be the likeliest.
        emotion_scores (`dict[str, float]`): probability of each label, as `model.emotion_scores`.
        explanation (`str`): what follows "because".
        alignment_score (`float`, *optional*): fit of picture, emotion and explanation (Eq. 6), comparable for one
            picture only; None if the model has no contrastive head.
        vad (`list[dict]`, *optional*): the explanation's words in order, `{"word", "valence", "arousal", "dominance"}`
            in [-1, 1], None where the lexicon does not know the word; None if the checkpoint holds no lexicon. Of a
            word like "don't", which lexicons know in part, the first part that they know counts.
        candidates (`list[dict]`): with `return_candidates`, the `emotion`, `explanation`, `alignment_score` of each.

    Raises:
        ValueError: for unknown emotions or arguments, for pictures that cannot be read, for several candidates of a
            model that cannot rank them.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.model.config.model_type != "sevlm":
            raise ValueError(f"The task {TASK!r} is for SEVLM models, not for {self.model.config.model_type!r}.")
        if self.model.vision_tower is None:
            raise ValueError(
                "This model was saved without its vision tower and takes no pictures: convert it again with a vision "
                "model."
            )
        if self.processor is None:
            raise ValueError(f"The pipeline {TASK!r} needs the model's processor: pass `processor=` too.")

    def _sanitize_parameters(self, generate_kwargs=None, local_files_only=None, **arguments):
        # (`pipeline()` hands `local_files_only` on.)
        generation = {name: value for name, value in arguments.items() if name not in OURS} | (generate_kwargs or {})
        if "num_return_sequences" in generation:
            raise ValueError("Several explanations of a picture are `num_candidates=` with `return_candidates=True`.")
        if unknown := sorted(generation.keys() - GENERATION_ARGUMENTS):
            raise ValueError(
                f"Unknown arguments {unknown}: the pipeline takes {', '.join(sorted(OURS))} and what `generate` takes."
            )

        def given(defaults):
            names = [name for name in defaults if name in arguments]
            return {name: defaults[name] if arguments[name] is None else arguments[name] for name in names}

        explaining = given(EXPLAINING)
        emotion, num_candidates = explaining.get("emotion"), explaining.get("num_candidates", 1)
        if emotion is not None and emotion not in self.model.config.emotions:
            raise ValueError(f"Unknown emotion {emotion!r}; this model knows {self.model.config.emotions}.")
        if not isinstance(num_candidates, Integral) or isinstance(num_candidates, bool) or num_candidates < 1:
            raise ValueError(f"num_candidates is a whole number from 1, not {num_candidates!r}.")
        if num_candidates > 1 and self.model.contrastive_head is None:
            raise ValueError("This model has no contrastive head to rank candidates with: leave out num_candidates.")
        self._check_generation(generation, emotion)
        return given(PREPARING), explaining | generation, given(SHOWING)

    def _check_generation(self, generation: dict, emotion: str | None):
        """What `generate` would fail at without saying why, or do otherwise than asked."""
        asked = generation
        if (config := generation.get("generation_config")) is not None:
            asked = config.to_dict() | generation
            if (asked.get("num_return_sequences") or 1) > 1:
                raise ValueError(
                    "`generation_config` asks for several sequences: use `num_candidates=` with "
                    "`return_candidates=True`, and leave `num_return_sequences` out of it."
                )
        if asked.get("guidance_scale") not in (None, 1):
            raise ValueError(
                "`guidance_scale` compares with what a model writes without the picture, and SEVLM writes nothing "
                "without one: leave it out."
            )
        config = self.model.config
        prompt = len(config.prompt_token_ids)
        if emotion is not None:
            prompt += len(config.emotion_token_ids[config.emotions.index(emotion)]) + 1
        positions = config.max_positions
        for name, room in (("max_new_tokens", positions - prompt), ("max_length", positions)):
            if (asked.get(name) or 0) > room:
                raise ValueError(f"{name}={asked[name]} is more than this model has positions for: at most {room}.")

    def __call__(self, inputs, **kwargs):
        """See the class."""
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        if isinstance(inputs, list) and not inputs:
            return []
        # Who passes a data set of that library has imported it.
        datasets = sys.modules.get("datasets")
        if datasets is not None and isinstance(inputs, (datasets.Dataset, datasets.IterableDataset)):
            if inputs.column_names is not None and "image" not in inputs.column_names:
                raise ValueError(
                    f"The data set has no column 'image' but {inputs.column_names}: pass KeyDataset(data, COLUMN) of "
                    "transformers.pipelines.pt_utils."
                )
            sized = isinstance(inputs, datasets.Dataset)
            inputs = KeyDataset(inputs, "image") if sized else (row["image"] for row in inputs)
        elif datasets is not None and isinstance(inputs, (datasets.Column, datasets.IterableColumn)):
            inputs = (picture for picture in inputs)
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs, **limits) -> dict[str, torch.Tensor]:
        """A picture, or a mapping with one under "image" -> `{"pixel_values": (1, 3, H, W)}`. What this method has
        returned is an input too, so that pictures can be prepared elsewhere. `limits` are `timeout`, `max_megapixels`
        and `max_megabytes`."""
        if isinstance(inputs, Mapping) and "pixel_values" in inputs:
            pixel_values = torch.as_tensor(inputs["pixel_values"])
        else:
            if isinstance(inputs, Mapping):
                if "image" not in inputs:
                    raise ValueError(f"A row needs its picture under 'image'; this one has {sorted(inputs)}.")
                inputs = inputs["image"]
            pixel_values = self.processor(images=[inputs], return_tensors="pt", **limits)["pixel_values"]
        pixel_values = pixel_values.reshape(-1, *pixel_values.shape[-3:])
        if len(pixel_values) != 1:
            # The pipeline would show the first of them, or in a batch take them for those of other inputs.
            raise ValueError(f"One picture at a time: this input holds {len(pixel_values)}. Pass them as a flat list.")
        return {"pixel_values": pixel_values}

    def _forward(self, model_inputs, emotion=None, num_candidates=1, **generation) -> dict[str, torch.Tensor | None]:
        """B pictures, N candidates of L tokens: `sequences` (B, N, L) and `alignment_scores` (B, N), best first;
        `emotion_scores` (B, labels); `vad` (B, L, 3) of the best candidate."""
        model = self.model
        generation = {name: value for name, value in generation.items() if value is not None}
        self._check_generation(generation, emotion)
        features = model.get_image_features(model_inputs["pixel_values"])
        prompt = {}
        if emotion is not None:
            asked = self.processor(emotions=[emotion] * len(features), return_tensors="pt")
            prompt = {name: asked[name].to(model.device) for name in ("input_ids", "attention_mask")}
        if num_candidates > 1:
            if "generation_config" not in generation:
                generation.setdefault("do_sample", True)
            if generation.get("do_sample") is False and generation.get("num_beams", 1) < num_candidates:
                raise ValueError(
                    f"{num_candidates} candidates without sampling would be the same: leave out `do_sample=False`, or "
                    f"pass `num_beams={num_candidates}` too."
                )
        ours = {"num_return_sequences": int(num_candidates), "return_dict_in_generate": False}
        if "generation_config" in generation:
            generation["generation_config"] = copy.deepcopy(generation["generation_config"])
            vars(generation["generation_config"]).update(ours)
        else:
            generation |= ours
        # `stop_strings` need it, and nothing minds it.
        generation["tokenizer"] = self.tokenizer
        sequences = model.generate(image_features=features, **prompt, **generation)
        sequences = sequences.view(len(features), -1, sequences.shape[-1])
        scores = None
        if model.contrastive_head is not None:
            scores = model.alignment_score(sequences.flatten(0, 1), image_features=features)
            scores, order = scores.view(sequences.shape[:2]).sort(dim=1, descending=True, stable=True)
            sequences = sequences.gather(1, order.unsqueeze(-1).expand_as(sequences))
        return {
            "emotion_scores": model.emotion_scores(image_features=features),
            "sequences": sequences,
            "alignment_scores": scores,
            "vad": model.vad_lookup(sequences[:, 0]) if model.vad_lookup.has_table else None,
        }

    def postprocess(self, model_outputs, return_candidates=False, return_all_scores=True) -> dict:
        sequences = model_outputs["sequences"][0]
        candidates = self.processor.read(sequences)
        fits = model_outputs["alignment_scores"]
        for i, candidate in enumerate(candidates):
            candidate["alignment_score"] = None if fits is None else fits[0, i].item()
        scores = dict(zip(self.model.config.emotions, model_outputs["emotion_scores"][0].tolist(), strict=True))
        if not return_all_scores:
            likeliest = max(scores, key=scores.get)
            scores = {likeliest: scores[likeliest]}
        vad = None
        if model_outputs["vad"] is not None:
            vad = self._words(sequences[0].tolist(), model_outputs["vad"][0].tolist())
        result = {
            "emotion": candidates[0]["emotion"],
            "emotion_scores": scores,
            "explanation": candidates[0]["explanation"],
            "alignment_score": candidates[0]["alignment_score"],
            "vad": vad,
        }
        return result | ({"candidates": candidates} if return_candidates else {})

    def _words(self, ids: list[int], vad: list[list[float]]) -> list[dict]:
        """One entry for each written word of the explanation; `ids` and `vad` of a sentence's L tokens."""
        entries = []
        for spelled, positions in words_of_explanation(self.tokenizer, ids, self.model.config.because_token_id):
            tokens = [(self._decode([ids[position]]).removeprefix(" "), vad[position]) for position in positions]
            entries.append({"word": spelled} | dict(zip(VAD_NAMES, self._known_vad(tokens), strict=True)))
        return entries

    def _known_vad(self, tokens: list[tuple[str, list[float]]]) -> list[float | None]:
        """VAD of the first run of letters in a word that the lexicon knows: what `VADLookup` takes for words."""
        lexicon = self.processor.vad_lexicon
        letters = ""
        for (text, values), (following, _) in zip(tokens, [*tokens[1:], ("", None)], strict=True):
            letters = letters + text if text.isalpha() else ""
            # A run's VAD stands on the token that completes it; earlier tokens may complete shorter words.
            if letters and not following.isalpha():
                # The model's table does not tell an unknown word from one whose numbers are all zero.
                if any(values) or (lexicon is not None and lexicon.get(letters) == (0, 0, 0)):
                    return [round(value, 4) for value in values]
                letters = ""
        return [None] * len(VAD_NAMES)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def save_pretrained(self, save_directory, *, include_vad_lexicon: bool = False, **kwargs):
        """A complete folder: model, code, processor. Lexicons that may not be passed on are left out of both unless
        `include_vad_lexicon=True`; `kwargs` go to the model's `save_pretrained`. Publish with `push_to_hub(name)`."""
        if kwargs.pop("push_to_hub", False):
            raise ValueError("Use `pipeline.push_to_hub(name)`, which uploads all files.")
        self.model.save_pretrained(save_directory, include_vad_lexicon=include_vad_lexicon, **kwargs)
        self.processor.save_pretrained(save_directory, include_vad_lexicon=include_vad_lexicon)

    def push_to_hub(self, repo_id: str, *, include_vad_lexicon: bool = False, create_pr: bool = False, **kwargs):
        """As `model.push_to_hub`, then `processor.push_to_hub`, which take the same arguments: model, code, card and
        processor, in two commits, with `create_pr` of one pull request. Lexicons that may not be passed on stay here
        unless `include_vad_lexicon=True`. Returns the last commit."""
        commit = self.model.push_to_hub(
            repo_id, include_vad_lexicon=include_vad_lexicon, create_pr=create_pr, **kwargs
        )
        if create_pr:
            kwargs["revision"] = commit.pr_revision
        return self.processor.push_to_hub(repo_id, include_vad_lexicon=include_vad_lexicon, **kwargs)


def words_of_explanation(tokenizer, ids: list[int], because_token_id: int) -> list[tuple[str, list[int]]]:
    """The words behind " because" and the positions of their tokens: "don't", "1920s" and "café" are one word each."""

    def decode(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    words, goes_on = [], False
    begin = ids.index(because_token_id) + 1 if because_token_id in ids else len(ids)
    # (End token and padding decode to nothing.)
    for position in range(begin, len(ids)):
        text = decode([ids[position]])
        belongs = any(map(_belongs_to_a_word, text))
        if belongs:
            if text[0].isspace() or not goes_on:
                words.append([])
            words[-1].append(position)
        goes_on = belongs
    spelled = [_from_first_to_last_letter(decode([ids[position] for position in word])) for word in words]
    return [(text, word) for text, word in zip(spelled, words, strict=True) if text]


def _belongs_to_a_word(char: str) -> bool:
    """Letters, their accents, digits, apostrophes, and what stands for a part of a character of several tokens."""
    return unicodedata.category(char)[0] in "LMN" or char in "'\u2019\ufffd"


def _from_first_to_last_letter(text: str) -> str:
    places = [place for place, char in enumerate(text) if unicodedata.category(char)[0] in "LMN"]
    return text[places[0] : places[-1] + 1] if places else ""
