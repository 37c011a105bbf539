# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Training one can watch: at every evaluation a sheet of the same paintings with what the model says of them now.

    trainer.add_callback(ExplanationSheets(trainer, processor, validation.select(range(6))))

writes `OUTPUT_DIR/sheets/step-N.png` and logs it to the trackers of `report_to` that take pictures: tensorboard, wandb
and mlflow. Never copied to the Hub.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging

from processing.images import read_image

from .views import gallery_sheet


logger = logging.get_logger(__name__)

FOLDER, TAG = "sheets", "explanations"


class ExplanationSheets(TrainerCallback):
    """
    Args:
        trainer: whose trackers are to get the sheets.
        dataset: a few paintings: `image`, `painting`, `emotions`, `explanations`.
    """

    def __init__(self, trainer: Trainer, processor, dataset: Dataset):
        self.trainer, self.processor, self.dataset = trainer, processor, dataset

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        # No other process takes part, so nothing here may gather.
        if not state.is_world_process_zero or not len(self.dataset):
            return
        # A look at training is no reason to end it.
        try:
            path = self._draw(args, state, model)
        except (OSError, ValueError) as error:
            logger.warning(f"No sheet of explanations at step {state.global_step}: {error}")
            return
        self._log(args.report_to, path, state.global_step)

    def _draw(self, args, state, model) -> Path:
        images = [read_image(image) for image in self.dataset["image"]]
        labels = self.dataset.features["emotions"].feature.names
        figure = gallery_sheet(
            images,
            explain(model, self.processor, images),
            titles=self.dataset["painting"][:],
            references=[f"viewer: {labels[row['emotions'][0]]}, {row['explanations'][0]}" for row in self._texts()],
            columns=min(6, len(images)),
            title=f"step {state.global_step}",
        )
        path = Path(args.output_dir, FOLDER, f"step-{state.global_step}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".png.tmp")
        try:
            figure.savefig(temporary, dpi=80, format="png")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _texts(self) -> Dataset:
        return self.dataset.select_columns(["emotions", "explanations"])

    def _log(self, report_to: Sequence[str], path: Path, step: int) -> None:
        for tracker in report_to:
            if tracker == "tensorboard":
                picture = np.asarray(Image.open(path).convert("RGB"))
                for callback in self.trainer.callback_handler.callbacks:
                    # Without a writer there is no run yet: an evaluation before training.
                    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                        callback.tb_writer.add_image(TAG, picture, step, dataformats="HWC")
                        callback.tb_writer.flush()
            elif tracker == "wandb":
                import wandb

                if wandb.run is not None:
                    wandb.log({TAG: wandb.Image(os.fspath(path)), "train/global_step": step})
            elif tracker == "mlflow":
                import mlflow

                if mlflow.active_run() is not None:
                    mlflow.log_artifact(os.fspath(path), artifact_path=FOLDER)
            else:
                logger.warning_once(f"Sheets of explanations do not go to {tracker!r}; they are in {path.parent}.")


@torch.no_grad()
def explain(model, processor, images: Sequence[Image.Image]) -> list[dict]:
    """`[{"emotion", "explanation", "emotion_scores"}]`, greedily decoded; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    try:
        pixel_values = processor(images=list(images), return_tensors="pt")["pixel_values"].to(model.device)
        features = model.get_image_features(pixel_values)
        scores = model.emotion_scores(image_features=features).tolist()
        sentences = processor.read(model.generate(image_features=features, do_sample=False))
    finally:
        model.train(was_training)
    return [
        sentence | {"emotion_scores": dict(zip(model.config.emotions, row, strict=True))}
        for sentence, row in zip(sentences, scores, strict=True)
    ]
