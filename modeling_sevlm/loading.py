"""Loads the pipeline of a checkpoint for the commands and the page, with errors in one line."""

import os
from pathlib import Path
from typing import Any

from transformers import pipeline

from .pipeline_sevlm import TASK, SEVLMPipeline


CONFIG_FILES = ("config.json", "adapter_config.json")


def open_pipeline(model: str, **options: Any) -> SEVLMPipeline:
    """Returns the pipeline of a checkpoint folder or of a model on the Hub. `options` are those of `pipeline`.

    Raises:
        OSError: a folder without a model, or a name that is neither a folder nor a model on the Hub.
    """
    is_folder = os.path.isdir(model)
    if is_folder and not any(Path(model, file).is_file() for file in CONFIG_FILES):
        raise OSError(f"The folder {model} has no config.json, so it is not a model. Name the folder of a model.")
    try:
        # The type hints of `pipeline` list only transformers' tasks.
        return pipeline(TASK, model=model, **options)  # type: ignore[call-overload]
    except OSError as error:
        if is_folder:
            raise
        reason = str(error).split("\n")[0]
        raise OSError(
            f"There is no folder {model}, and no such model could be loaded from the Hub: {reason}"
        ) from error
