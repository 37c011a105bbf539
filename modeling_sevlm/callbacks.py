"""Training callbacks: early stopping and sheets of explanations."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.utils import logging

from processing.files import atomic_write
from processing.images import read_image

from .training_folder import SHEETS
from .views import gallery_sheet


logger = logging.get_logger(__name__)

FOLDER, TAG = SHEETS, "explanations"


class EarlyStopping(EarlyStoppingCallback):
    """Stops when no watched metric has improved in `early_stopping_patience` evaluations in a row (0: never).

    Watches `metric_for_best_model` and `early_stopping_metrics`. Stopping holds after a resume. The patience comes
    from the arguments, not from the checkpoint. `best` has the best value of each metric and its step.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.best: dict[str, list] = {}  # a list, because the checkpoint stores it as JSON

    def state(self) -> dict:
        state = super().state()
        return state | {"attributes": state["attributes"] | {"best": self.best}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.early_stopping_patience = args.early_stopping_patience
        self._stop_if_out_of_patience(control)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        improved = False
        for name in dict.fromkeys([args.metric_for_best_model, *args.early_stopping_metrics]):
            value = metrics.get(f"eval_{name.removeprefix('eval_')}")
            sign = -1 if name.endswith(("loss", "nll")) else 1
            if value is not None and (name not in self.best or sign * value > sign * self.best[name][0]):
                self.best[name], improved = [value, state.global_step], True
        self.early_stopping_patience_counter = 0 if improved else self.early_stopping_patience_counter + 1
        self._stop_if_out_of_patience(control)

    def _stop_if_out_of_patience(self, control) -> None:
        patience = self.early_stopping_patience
        control.should_training_stop |= 0 < patience <= self.early_stopping_patience_counter


class ExplanationSheets(TrainerCallback):
    """Draws the same paintings with the model's explanations at every evaluation.

    A sheet is written to `OUTPUT_DIR/sheets/step-N.png` and logged to tensorboard, wandb and mlflow, if `report_to`
    names them. A sheet that cannot be drawn gives a warning. During an evaluation, set `predictions` to what
    `evaluation.predict.predict` returns for the paintings of `dataset`.
    """

    def __init__(self, trainer: Trainer, dataset: Dataset):
        self.trainer, self.dataset = trainer, dataset
        self.predictions: Sequence[Mapping] = []

    def on_evaluate(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or not self.predictions:
            return
        path = Path(args.output_dir, FOLDER, f"step-{state.global_step}.png")
        try:
            self._draw(path, f"step {state.global_step}")
        except (OSError, ValueError) as error:
            logger.warning(f"No sheet of explanations at step {state.global_step}: {error}")
        else:
            for tracker in args.report_to:
                self._log(tracker, path, state.global_step)

    def _draw(self, path: Path, title: str) -> None:
        labels = self.dataset.features["emotions"].feature.names
        texts = self.dataset.select_columns(["emotions", "explanations"])
        scores = [dict(zip(labels, known["emotion_scores"], strict=True)) for known in self.predictions]
        figure = gallery_sheet(
            [read_image(image) for image in self.dataset["image"]],
            [{**known, "emotion_scores": row} for known, row in zip(self.predictions, scores, strict=True)],
            titles=self.dataset["painting"][:],
            references=[f"viewer: {labels[row['emotions'][0]]}, {row['explanations'][0]}" for row in texts],
            columns=6,
            title=title,
        )
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=80, format="png")

    def _log(self, tracker: str, path: Path, step: int) -> None:
        if tracker == "tensorboard":
            pixels = np.asarray(Image.open(path).convert("RGB"))
            for callback in self.trainer.callback_handler.callbacks:
                # There is no writer before training.
                if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                    callback.tb_writer.add_image(TAG, pixels, step, dataformats="HWC")
        elif tracker == "wandb":
            import wandb

            if wandb.run is not None:
                wandb.log({TAG: wandb.Image(os.fspath(path)), "train/global_step": step})
        elif tracker == "mlflow":
            import mlflow

            if mlflow.active_run() is not None:
                mlflow.log_artifact(os.fspath(path), artifact_path=FOLDER)
        else:
            logger.warning_once(f"Explanation sheets are not logged to {tracker!r}; they are in {path.parent}.")
