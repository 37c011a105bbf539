# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The example pictures of the app: generated paintings of our own, drawn when it starts.

They belong to the embedded data's test split, so that the demo's model has not seen them.
"""

from pathlib import Path

from processing.toy_artemis import toy_scene
from processing.toy_paintings import paint_scene


# Paintings of the test split (660 to 719): every emotion that has a name.
SCENES = (676, 713, 705, 684, 708, 718, 706, 698)
SIZE = 448  # pixels; the data set's are 64, which is little to look at


def draw_examples(folder: str | Path) -> list[Path]:
    """Paint the examples into `folder`; those that are there already stay."""
    files = []
    for index in SCENES:
        scene = toy_scene(index)
        file = Path(folder, f"{scene.motif}_{scene.setting}.png")
        if not file.exists():
            paint_scene(scene, SIZE)[0].save(file)
        files.append(file)
    return files
