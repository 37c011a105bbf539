# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What the pipeline accepts: tables, data sets and iterators become numbered images, and names may be misspelt."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch.utils.data import Dataset, IterableDataset
from transformers.pipelines.pt_utils import KeyDataset


@dataclass
class NumberedInput:
    """One of several inputs: its place, counted from 0, and the image, or why its data set cannot give it."""

    index: int
    source: Any = None
    error: Exception | None = None


class NumberedDataset(Dataset):
    """The items of a data set as [`NumberedInput`]."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return NumberedInput(index, self.dataset[index])
        except (OSError, ValueError, MemoryError) as error:
            return NumberedInput(index, error=error)


def numbered_inputs(inputs):
    """Returns a list, data set or generator of [`NumberedInput`] for several images; a single image is unchanged.

    Takes lists, tuples, iterators, torch data sets, and data sets and columns of `datasets` and pandas.

    Raises:
        ValueError: a table without the column "image".
    """
    # The libraries are not required; a caller that passes one of their tables has imported them.
    if (pandas := sys.modules.get("pandas")) is not None:
        if isinstance(inputs, pandas.DataFrame):
            if "image" not in inputs.columns:
                names = ", ".join(map(str, inputs.columns))
                raise ValueError(f"The table has no column 'image' but {names}: pass table[COLUMN].")
            inputs = inputs["image"]
        if isinstance(inputs, pandas.Series):
            inputs = list(inputs)
    if (datasets := sys.modules.get("datasets")) is not None:
        inputs = _from_datasets(inputs, datasets)
    if isinstance(inputs, list | tuple):
        return [NumberedInput(index, source) for index, source in enumerate(inputs)]
    # An open file is an iterator, too, but one image.
    if isinstance(inputs, IterableDataset) or (isinstance(inputs, Iterator) and not hasattr(inputs, "read")):
        return (NumberedInput(index, source) for index, source in enumerate(inputs))
    return NumberedDataset(inputs) if isinstance(inputs, Dataset) else inputs


def _from_datasets(inputs, datasets):
    """Returns data sets and columns of the library as `KeyDataset` or generator. Files stay undecoded where possible:
    the processor reads some that the library cannot decode, and its errors name the file."""
    if isinstance(inputs, datasets.Dataset | datasets.IterableDataset):
        if inputs.column_names is not None and "image" not in inputs.column_names:
            names = ", ".join(inputs.column_names)
            raise ValueError(f"The dataset has no column 'image' but {names}: pass KeyDataset(data, COLUMN).")
        if isinstance(inputs, datasets.IterableDataset):
            if inputs.features is not None and inputs.features.get("image") == datasets.Image():
                inputs = inputs.cast_column("image", datasets.Image(decode=False))
            return (row["image"] for row in inputs)
        inputs = KeyDataset(inputs, "image")
    elif isinstance(inputs, datasets.Column) and isinstance(inputs.source, datasets.Dataset):
        inputs = KeyDataset(inputs.source, inputs.column_name)
    elif isinstance(inputs, datasets.Column | datasets.IterableColumn):
        return (image for image in inputs)
    if isinstance(inputs, KeyDataset) and isinstance(inputs.dataset, datasets.Dataset):
        data, column = inputs.dataset, inputs.key
        if data.features.get(column) == datasets.Image() and data.format["type"] is None:
            inputs = KeyDataset(data.cast_column(column, datasets.Image(decode=False)), column)
    return inputs


def find_label(name: Any, labels: Sequence[str]) -> str:
    """Returns the label that equals `name` up to case, and up to "_" or "-" in place of a space.

    Raises:
        ValueError: there is none; the message suggests a similar one.
    """
    spelled = {_plain(label): label for label in labels} | {label: label for label in labels}
    if isinstance(name, str):
        if (label := spelled.get(name, spelled.get(_plain(name)))) is not None:
            return label
        hint = did_you_mean(_plain(name), map(_plain, labels))
    else:
        hint = ""
    raise ValueError(f"Unknown emotion {name!r}.{hint} Use one of {', '.join(labels)}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean ...?" with the most similar known name, or an empty string."""
    similar = get_close_matches(name, list(known), n=1)
    return f" Did you mean {similar[0]!r}?" if similar else ""


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()
