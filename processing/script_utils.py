# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Shared by all scripts: the arguments that name data and lexicon, argument parsing, errors as exit messages."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from datasets import DatasetDict
from transformers import HfArgumentParser

from .artemis import EMOTIONS, load_artemis
from .images import set_max_megapixels
from .toy_artemis import load_toy_artemis
from .vad_lexicon import VADLexicon


@dataclass
class DataArguments:
    """Which paintings and annotations. Without `annotations` and `dataset`: the embedded data."""

    annotations: list[str] | None = field(
        default=None, metadata={"help": "ArtEmis CSV file; for version v2 Contrastive.csv and the v1 file."}
    )
    images: str | None = field(default=None, metadata={"help": "Folder with <art_style>/<painting>.jpg (WikiArt)."})
    version: str = field(default="v1", metadata={"help": "ArtEmis version.", "choices": ["v1", "v2"]})
    dataset: str | None = field(
        default=None, metadata={"help": "Instead: a dataset with pictures in it, name on the Hub or folder."}
    )
    image_column: str = "image"
    painting_column: str = "painting"
    emotion_column: str | None = None
    explanation_column: str | None = None
    on_bad_image: str = field(
        default="raise", metadata={"help": "What a missing or broken picture does.", "choices": ["raise", "skip"]}
    )
    on_bad_row: str = field(
        default="raise", metadata={"help": "What an empty utterance does.", "choices": ["raise", "skip"]}
    )
    max_megapixels: float | None = field(
        default=None,
        metadata={"help": "The largest picture that is opened (178), a guard against files that are traps."},
    )
    verify_images: bool = field(default=True, metadata={"help": "Decode every picture once before starting."})
    num_paintings: int = field(default=720, metadata={"help": "How many pictures the embedded data has."})
    labels: list[str] = field(
        default_factory=lambda: list(EMOTIONS), metadata={"help": "The labels, in order; ArtEmis' nine by default."}
    )
    drop_unknown_emotions: bool = field(
        default=False, metadata={"help": "Leave out annotations with other labels instead of stopping at them."}
    )
    min_tokens: int | None = field(default=None, metadata={"help": "Drop shorter utterances (ArtEmis: 5)."})
    max_length_percentile: float | None = field(
        default=None, metadata={"help": "Drop utterances longer than this percentile of train (ArtEmis: 95)."}
    )
    vad_lexicon: str | None = field(
        default=None,
        metadata={"help": "Lexicon file (NRC-VAD, Warriner, or word-v-a-d); 'embedded': our own small one; 'none'."},
    )

    @property
    def is_embedded(self) -> bool:
        return self.annotations is None and self.dataset is None


def load_inputs(
    args: DataArguments, emotions: list[str], *, with_images: bool = True
) -> tuple[DatasetDict, VADLexicon | None]:
    """Loads the splits and the lexicon that `args` name. Bad input ends the script before anything is written."""
    with errors_as_exit():
        return load_data(args, emotions, with_images=with_images), load_lexicon(args.vad_lexicon)


def load_data(args: DataArguments, emotions: list[str], *, with_images: bool = True) -> DatasetDict:
    """The splits that `args` name, one row per painting, with these labels; text only without images."""
    if args.max_megapixels is not None:
        set_max_megapixels(args.max_megapixels)
    if args.is_embedded:
        if list(emotions) != list(EMOTIONS):
            raise ValueError(f"The embedded data has the labels {', '.join(EMOTIONS)}; other labels need other data.")
        splits = load_toy_artemis(args.num_paintings)
        return splits if with_images else splits.remove_columns("image")
    if args.annotations is not None and args.images is None and with_images:
        raise ValueError("--annotations needs --images, the folder with <art_style>/<painting>.jpg.")
    annotations = args.annotations
    if annotations is not None and len(annotations) == 1:
        annotations = annotations[0]
    return load_artemis(
        annotations,
        args.images,
        version=args.version,
        dataset=args.dataset,
        emotions=emotions,
        drop_unknown_emotions=args.drop_unknown_emotions,
        on_bad_row=args.on_bad_row,
        on_bad_image=args.on_bad_image,
        verify_images=args.verify_images,
        with_images=with_images,
        min_tokens=args.min_tokens,
        max_length_percentile=args.max_length_percentile,
        image_column=args.image_column,
        painting_column=args.painting_column,
        emotion_column=args.emotion_column,
        explanation_column=args.explanation_column,
    )


def load_lexicon(name: str | None) -> VADLexicon | None:
    """`"embedded"`, `"none"` (or `None`), or a lexicon file."""
    if name is None or name == "none":
        return None
    return VADLexicon.embedded() if name == "embedded" else VADLexicon.from_file(name)


@contextlib.contextmanager
def errors_as_exit(kinds: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Turns errors of these kinds into an exit with the message `error: ...` instead of a traceback.

    Args:
        kinds: exception classes to catch.
    """
    try:
        yield
    except kinds as error:
        raise SystemExit(f"error: {error}") from error


def parse_arguments(parser: HfArgumentParser, argv: Sequence[str]) -> tuple:
    """Parses `argv` into the parser's dataclasses.

    Unknown arguments end the script. Only their names are printed, because their values may be tokens.
    """
    *parsed, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    if unknown:
        names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        raise SystemExit(
            f"error: unknown argument {', '.join(names)}. Run with --help for the list of arguments."
            if names
            else "error: a word does not belong to any argument. Run with --help for the list of arguments."
        )
    return tuple(parsed)
