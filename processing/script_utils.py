"""Helpers of the scripts: data arguments, argument parsing, and errors as exit messages."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from datasets import DatasetDict
from transformers import HfArgumentParser

from .artemis import EMOTIONS, load_artemis
from .images import set_max_megapixels
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
    max_megapixels: float | None = field(default=None, metadata={"help": "Largest image in megapixels (default 178)."})
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
        splits = load_toy_artemis(args.num_paintings)
        return splits if with_images else splits.remove_columns("image")
    names = (
        "annotations images version dataset drop_unknown_emotions on_bad_row on_bad_image verify_images min_tokens "
        "max_length_percentile image_column painting_column emotion_column explanation_column"
    ).split()
    return load_artemis(emotions=emotions, with_images=with_images, **{name: getattr(args, name) for name in names})


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
