"""Helpers of the scripts: data arguments, argument parsing, and errors as exit messages."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from datasets import DatasetDict
from transformers import HfArgumentParser

from .annotations import is_cleaned
from .artemis import EMOTIONS, load_artemis
from .images import MAX_MEGAPIXELS, set_max_megapixels
from .toy_artemis import load_toy_artemis
from .vad_lexicon import VADLexicon


@dataclass
class DataArguments:
    """Paintings and annotations. Without `annotations` and `dataset`: the embedded data."""

    annotations: list[str] | None = field(
        default=None, metadata={"help": "ArtEmis CSV file; for v2 Contrastive.csv and the v1 file."}
    )
    images: str | None = field(default=None, metadata={"help": "Folder with <art_style>/<painting>.jpg (WikiArt)."})
    version: Literal["v1", "v2"] = field(default="v1", metadata={"help": "ArtEmis version."})
    dataset: str | None = field(default=None, metadata={"help": "Name on the Hub or folder of a dataset with images."})
    image_column: str = "image"
    painting_column: str = "painting"
    emotion_column: str | None = None
    explanation_column: str | None = None
    on_bad_image: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "Action for a missing or damaged image."}
    )
    on_bad_row: Literal["raise", "skip"] = field(default="raise", metadata={"help": "Action for an empty utterance."})
    max_megapixels: float | None = field(
        default=None, metadata={"help": f"Largest image in megapixels (default {MAX_MEGAPIXELS})."}
    )
    verify_images: bool = field(default=True, metadata={"help": "Decode every image once to find damaged ones."})
    num_paintings: int = field(default=720, metadata={"help": "Number of paintings in the embedded data."})
    labels: list[str] = field(
        default_factory=lambda: list(EMOTIONS), metadata={"help": "Emotion labels, in order (default: ArtEmis' nine)."}
    )
    drop_unknown_emotions: bool = field(default=False, metadata={"help": "Leave out annotations with other labels."})
    min_tokens: int | None = field(default=None, metadata={"help": "Shortest utterance, in tokens (ArtEmis: 5)."})
    max_length_percentile: float | None = field(
        default=None, metadata={"help": "Longest utterance, as a percentile of the train split (ArtEmis: 95)."}
    )
    text_column: str | None = field(
        default=None,
        metadata={"help": "Column in place of utterance, such as utterance_spelled of ArtEmis' preprocessed file."},
    )
    clean_text: bool = field(default=False, metadata={"help": "Clean the utterances as ArtEmis' preprocessing does."})
    drop_single_emotion: bool = field(
        default=False, metadata={"help": "Leave out training paintings whose annotations have one emotion."}
    )
    v2_rules: Literal["per_split", "authors"] = field(
        default="per_split",
        metadata={"help": "v2: a sample of old annotations per split, or as in ArtEmis v2's code."},
    )
    vad_lexicon: str | None = field(
        default=None,
        metadata={"help": "Lexicon file (NRC-VAD, Warriner, or word-v-a-d), 'embedded' (a small one) or 'none'."},
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
    """Loads the splits that `args` name, one row per painting, with the column `image` if `with_images`."""
    if args.max_megapixels is not None:
        set_max_megapixels(args.max_megapixels)
    if args.is_embedded:
        if list(emotions) != list(EMOTIONS):
            raise ValueError(f"The embedded data have the labels {', '.join(EMOTIONS)}. Other labels need other data.")
        if args.text_column:
            raise ValueError(
                "The embedded data have no columns to choose: leave out --text_column, or give --annotations."
            )
        splits = load_toy_artemis(args.num_paintings)
        filters = ("clean_text", "min_tokens", "max_length_percentile", "drop_single_emotion")
        options = {name: getattr(args, name) for name in filters}
        if any(options.values()):
            splits = load_artemis(dataset=splits, verify_images=False, **options)
        return splits if with_images else splits.remove_columns("image")
    names = (
        "annotations images version dataset drop_unknown_emotions on_bad_row on_bad_image verify_images min_tokens "
        "max_length_percentile text_column clean_text drop_single_emotion v2_rules image_column painting_column "
        "emotion_column explanation_column"
    ).split()
    return load_artemis(emotions=emotions, with_images=with_images, **{name: getattr(args, name) for name in names})


def text_form(args) -> str:
    """Names the form of the texts that `DataArguments` or `EmotionTextArguments` select: raw, cleaned, or a column."""
    column = None if args.text_column == "utterance" else args.text_column
    return "cleaned" if is_cleaned(column, args.clean_text) else column or "raw"


def load_lexicon(name: str | None) -> VADLexicon | None:
    """Loads a lexicon file, or the `"embedded"` one; `"none"` and `None` mean no lexicon."""
    if name is None or name == "none":
        return None
    return VADLexicon.embedded() if name == "embedded" else VADLexicon.from_file(name)


@contextlib.contextmanager
def errors_as_exit(kinds: tuple[type[Exception], ...] = (ValueError, OSError)) -> Iterator[None]:
    """Ends the script with the message `error: ...` after errors of these kinds."""
    try:
        yield
    except kinds as error:
        raise SystemExit(f"error: {error}") from error


def parse_arguments(parser: HfArgumentParser, argv: Sequence[str]) -> tuple:
    """Parses `argv` into the parser's dataclasses. Errors do not show unknown values, which may be access tokens."""
    *parsed, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    if unknown:
        names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        problem = f"unknown argument {', '.join(names)}" if names else "a word does not belong to any argument"
        raise SystemExit(f"error: {problem}. Run with --help for the list of arguments.")
    return tuple(parsed)
