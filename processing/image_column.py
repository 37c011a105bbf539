# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The images of a dataset, read as everywhere in this project."""

import datasets

from .images import read_image


class ImageColumn(datasets.Image):
    """The feature `datasets.Image`, except that it decodes with [`images.read_image`]: to upright 8-bit RGB, or to
    `mode` if it is given; without regard to metadata; with an `OSError` that names the file."""

    def __eq__(self, other):
        # The same column with either feature can be concatenated.
        return isinstance(other, datasets.Image) and (self.mode, self.decode) == (other.mode, other.decode)

    def decode_example(self, value, token_per_repo_id=None):
        if not isinstance(value, (dict, str)):
            return value  # it is decoded already
        try:
            image = read_image(value)
        except ValueError as error:
            raise OSError(str(error)) from error
        return image if self.mode is None else image.convert(self.mode)


def read_by_project(dataset: datasets.Dataset) -> datasets.Dataset:
    """Returns the dataset with an `ImageColumn` as its column "image", if it has this column."""
    feature = dataset.features.get("image")
    if not isinstance(feature, datasets.Image) or isinstance(feature, ImageColumn):
        return dataset
    return dataset.cast_column("image", ImageColumn(mode=feature.mode, decode=feature.decode))
