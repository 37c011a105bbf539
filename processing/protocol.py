"""What `--preset authors` sets in `train.py` and in `evaluate_sevlm.py`. docs/protocol.md has the whole table.

A checkpoint keeps the text options that it was trained with in `config.protocol`, and an evaluation repeats them.
"""

from typing import Any

from .annotations import CLEANED_COLUMN


TEXT_ARGUMENTS = ("text_column", "clean_text", "min_tokens", "max_length_percentile", "v2_rules")


def authors_text(text_column: str | None) -> dict[str, Any]:
    """Returns ArtEmis' cleaning and length filter as options of `DataArguments`. ArtEmis' preprocessed file, which has
    the column `utterance_spelled`, is cleaned and filtered already."""
    cleaning = {"clean_text": True, "min_tokens": 5, "max_length_percentile": 95.0}
    done = {"clean_text": False, "min_tokens": None, "max_length_percentile": None}
    return {"v2_rules": "authors"} | (done if text_column == CLEANED_COLUMN else cleaning)


def refuse_other_values(preset: dict[str, Any], *arguments) -> None:
    """Raises `ValueError` if one of the parsed dataclasses contradicts the preset "authors"."""
    parsed = {name: value for group in arguments for name, value in vars(group).items()}
    for name, value in preset.items():
        if parsed[name] != value:
            raise ValueError(
                f"--{name} {parsed[name]} contradicts --preset authors, which sets {value}. Leave it out, or use "
                "--preset paper with the options of docs/protocol.md that you want."
            )
