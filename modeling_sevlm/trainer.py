# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Training: the paper's recipe as defaults, the weighted loss of Eq. 8, its parts in the log, and whole checkpoints
whenever it is stopped.

Used by `train.py`; never copied to the Hub.
"""

import contextlib
import inspect
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate.utils import gather_object
from huggingface_hub import CommitInfo, HfApi
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    HubStrategy,
    SaveStrategy,
    TrainOutput,
)
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from processing import SEVLMProcessor

from .finite_loss import FiniteWatch, NonFiniteError, Origin
from .heads_sevlm import emotion_targets
from .model_card import write_model_card
from .push import check_token, find_destination, push
from .training_folder import (
    STAGING,
    STATE_FILE,
    SavingError,
    checkpoints,
    clear_staging,
    free_space,
    publish_checkpoint,
    publish_model,
    remove_old_checkpoints,
)


logger = logging.get_logger(__name__)

WEIGHTS = "*.safetensors"
LOSS_PARTS = ("language_loss", "emotion_loss", "contrastive_loss", "label_loss")
PAINTINGS = "paintings"  # in a batch, until the trainer takes it


@dataclass(repr=False)
class TokenSafeTrainingArguments(TrainingArguments):
    """`TrainingArguments` that keep the Hub's token to themselves: `Trainer` pickles them into every folder that it
    saves. (Give subclasses `repr=False` too; theirs hides the token, a dataclass's own does not.)"""

    def __getstate__(self) -> dict:
        return self.__dict__ | {"hub_token": None}


@dataclass(repr=False)
class SEVLMTrainingArguments(TokenSafeTrainingArguments):
    """`TrainingArguments` with the paper's recipe (Sec. 5.1 and its released code) as defaults."""

    output_dir: str | None = field(default="outputs/sevlm", metadata={"help": "Where checkpoints and results go."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Of everything but the VAD features."})
    vad_learning_rate: float = field(default=4e-5, metadata={"help": "Of the emotion encoder and the fusion layer."})
    weight_decay: float = 0.0
    num_train_epochs: float = 35
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Paintings; two sentences each."})
    per_device_eval_batch_size: int = 32
    eval_strategy: str = "steps"
    eval_steps: float | None = 2000
    save_steps: float = 2000
    save_total_limit: int | None = 2
    load_best_model_at_end: bool | None = True
    metric_for_best_model: str | None = "accuracy"
    greater_is_better: bool | None = True
    early_stopping_patience: int = field(
        default=10, metadata={"help": "Evaluations without a better metric before training stops; 0: never."}
    )
    generation_samples: int = field(
        default=500, metadata={"help": "Validation paintings to generate for at each evaluation; 0: none."}
    )
    sheet_paintings: int = field(
        default=6,
        metadata={"help": "Validation paintings drawn with their explanations at each evaluation (sheets/); 0: none."},
    )
    logging_steps: float = 50
    # It would hide a loss that is NaN, and wait for the device at every step; the trainer stops instead.
    logging_nan_inf_filter: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    # Else a resumed run would count its patience from the start, and stop later than one that was left alone.
    restore_callback_states_from_checkpoint: bool = True
    # The collator needs every column, and no output of an evaluation step is worth gathering.
    remove_unused_columns: bool | None = False
    prediction_loss_only: bool = True
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])


class TellEpoch(TrainerCallback):
    """Tells the training data which epoch begins. accelerate's loader does so only if its sampler is not wrapped; in
    distributed and in resumed runs it is."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.dataset.set_epoch(int(state.epoch))


class EarlyStopping(EarlyStoppingCallback):
    """Knows after resuming that it had stopped already, and takes the patience of the run's arguments."""

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience = args.early_stopping_patience
        control.should_training_stop |= self.early_stopping_patience_counter >= self.early_stopping_patience


class NamedBatches:
    """Adds to a collator's batch the names of its paintings; workers may pickle it."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, items: Sequence[dict]) -> dict:
        return self.collator(items) | {PAINTINGS: [str(item.get("painting", "?")) for item in items]}


class SEVLMTrainer(Trainer):
    """
    `Trainer` for [`SEVLMForConditionalGeneration`] and batches of `SEVLMCollator`.

    Every part of the loss is divided by its own number of items (label tokens, explanation words with VAD, paintings)
    over the whole accumulated batch of all processes, and no painting counts twice in an epoch, so that accumulation
    steps and processes do not change the language and emotion parts. (The contrastive part has its negatives within a
    device's batch.)

    Checkpoints and the model appear under their names when they are whole. A loss or gradient that is NaN or infinite
    ends training before the next log, evaluation or save, on a CPU before the update it would spoil.

    Args:
        generation_metrics: `model -> {name: value}`, called at each evaluation; its values are logged with the prefix.

    Raises:
        ValueError: if it is to push to the Hub and cannot leave a complete repository, or would leave more than that;
            if labels are to be smoothed; if the processes are to have different numbers of batches.
        NonFiniteError: a loss or gradient is NaN or infinite.
        SavingError: a checkpoint or the model cannot be written, the disk being full, say.
    """

    def __init__(self, *args, generation_metrics: Callable[[nn.Module], dict[str, float]] | None = None, **kwargs):
        # `Trainer` creates the repository as it begins.
        given = inspect.signature(Trainer.__init__).bind_partial(self, *args, **kwargs).arguments
        if (arguments := given.get("args")) is not None and arguments.push_to_hub:
            check_push(arguments, given.get("processing_class"))
        if arguments is not None and arguments.label_smoothing_factor:
            raise ValueError("`label_smoothing_factor` has no place in the paper's loss (Eq. 8): leave it at 0.")
        super().__init__(*args, **kwargs)
        if self.args.world_size > 1 and not self.args.accelerator_config.even_batches:
            raise ValueError("`even_batches: false` lets processes wait for others that have finished: leave it out.")
        self.generation_metrics = generation_metrics
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(TellEpoch(self.train_dataset))
        # `compute_loss` normalises over the accumulated batch itself: Trainer must not divide once more.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._sums = {}
        self._watch = FiniteWatch(at_once=self.args.device.type == "cpu")
        self._update: list[list[str]] = []  # the paintings of its batches
        self._batch = 0  # of the update
        self._staging: Path | None = None  # while a checkpoint is written

    def _run_epoch(self, *args, **kwargs) -> None:
        # A checkpoint of a run that had come to its end would else be trained for one more step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        collator, self.data_collator = self.data_collator, NamedBatches(self.data_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """As in transformers.

        Raises:
            ValueError: a checkpoint has no weights in safetensors, or something else than tensors and numbers in its
                other files. Nothing in them is run.
        """
        folder = resume_from_checkpoint
        if isinstance(folder, str | os.PathLike) and os.path.isdir(folder) and not any(Path(folder).glob(WEIGHTS)):
            raise ValueError(f"{folder} has no weights in safetensors, so it is no checkpoint to resume from.")
        if self.args.should_save:
            clear_staging(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        except UnpicklingError:
            # The library's advice would be to run it.
            raise ValueError(
                f"{folder} holds a file (optimizer.pt, scheduler.pt or rng_state.pth) that is damaged or could run "
                "code, and it was not read. Resume from a checkpoint of your own; of another's, begin anew from its "
                "weights."
            ) from None
        self._check_finite()
        return output

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_cls(parameter_groups(self.model, self.args), **optimizer_kwargs)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._update, self._batch = [batch.pop(PAINTINGS) for batch in batches], 0
        if not batches:
            return batches, None
        if self.accelerator.gradient_state.end_of_dataloader:
            batches[-1] = self._without_repeats(batches[-1])
        counts = torch.stack([self._count_items(batch) for batch in batches]).sum(dim=0).to(device)
        return batches, self.accelerator.reduce(counts, reduction="sum")

    def _without_repeats(self, last: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The epoch's last batch without the rows that accelerate repeats so that every process has as many. Where no
        other is left, one stays, as the processes have to keep step, and asks for nothing."""
        args, size = self.args, last["labels"].shape[0]
        rest = len(self.train_dataset) % (size * args.world_size)
        if args.world_size == 1 or args.dataloader_drop_last or not rest:
            return last
        own = min(size, max(0, rest - args.process_index * size))
        last = {name: tensor[: max(1, own)] for name, tensor in last.items()}
        if not own:
            last["labels"] = torch.full_like(last["labels"], -100)
            last["vad_values"] = torch.zeros_like(last["vad_values"])
        return last

    def _count_items(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Items that each of `LOSS_PARTS` is a mean over: `(4,)`."""
        explanation = self.model.explanation_mask(inputs["token_type_ids"]) & inputs["attention_mask"].bool()
        asked = inputs["labels"][..., 1:].ne(-100)
        paintings = asked.flatten(1).any(dim=1).sum()
        words = emotion_targets(inputs["vad_values"], explanation).sum()
        return torch.stack([asked.sum(), words, paintings, paintings])

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._batch += 1
        self._see(loss, "loss", self._batch, self._update[self._batch - 1])
        return loss

    def _get_grad_norm(self, *args, **kwargs):
        grad_norm = super()._get_grad_norm(*args, **kwargs)
        # A scaler tries out how far it may go: it skips such a step and goes on.
        if isinstance(grad_norm, torch.Tensor) and self.accelerator.scaler is None:
            self._see(grad_norm, "gradient", None, [name for names in self._update for name in names])
        return grad_norm

    def _see(self, value: torch.Tensor, what: str, batch: int | None, paintings: list[str]) -> None:
        with self._remedy():
            self._watch.see(value, Origin(what, self.state.global_step + 1, self.state.epoch, batch, paintings))

    def _check_finite(self) -> None:
        with self._remedy():
            self._watch.look()

    @contextlib.contextmanager
    def _remedy(self):
        try:
            yield
        except NonFiniteError as error:
            parts = ", ".join(name for name, (total, _) in self._sums.items() if not math.isfinite(total))
            raise NonFiniteError(
                f"{error} {f'Not finite: {parts}. ' if parts else ''}Nothing was saved since; "
                f"{self._last_checkpoint()}. See whether pictures and sentences of these paintings are in order, or "
                "lower --learning_rate, --vad_learning_rate or --max_grad_norm, and go on with "
                "--resume_from_checkpoint true."
            ) from None

    def _last_checkpoint(self) -> str:
        found = checkpoints(self.args.output_dir)
        return f"the last checkpoint is {found[-1]}" if found else f"there is no checkpoint in {self.args.output_dir}"

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        # All of these wait for the device anyway.
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._check_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, skip_logits=True)
        counts = self._count_items(inputs)
        if model.training:
            # Gradients are averaged over processes, the counts are summed over them.
            totals = num_items_in_batch.clamp(min=1)
            shares = dict(zip(LOSS_PARTS, counts * self.accelerator.num_processes / totals, strict=True))
        else:
            shares = dict.fromkeys(LOSS_PARTS, 1.0)
        loss = 0.0
        for name, count in zip(LOSS_PARTS, counts, strict=True):
            part = outputs.get(name)
            if part is not None:
                loss = loss + getattr(self.model.config, f"{name}_weight") * shares[name] * part
                self._add(name, part.detach(), count)
        return (loss, outputs) if return_outputs else loss

    def _add(self, name: str, mean: torch.Tensor, count: torch.Tensor) -> None:
        total, items = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + mean.float() * count, items + count)

    def _take_means(self) -> dict[str, float]:
        """Means of the loss parts since the last call, over all processes: sums are kept and divided once."""
        names = list(self._sums)
        if not names:
            return {}
        sums = torch.stack([torch.stack([total, items.float()]) for total, items in self._sums.values()])
        sums = self.accelerator.reduce(sums, reduction="sum")
        self._sums = {}
        # Nothing to average (no lexicon, say) is no loss of zero.
        return {name: total / items for name, (total, items) in zip(names, sums.tolist(), strict=True) if items}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs = logs | self._take_means()
        super().log(logs, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Whole batches in the data set's order, dealt out to the processes. Unlike accelerate's loader it fills up
        nothing, and a batch (with the negatives it holds) is the same however many processes there are."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        args, size = self.args, self.args.eval_batch_size
        batches = [list(range(start, min(start + size, len(dataset)))) for start in range(0, len(dataset), size)]
        return DataLoader(
            dataset,
            batch_sampler=batches[args.process_index :: args.world_size],
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix: str = "eval"
    ) -> EvalLoopOutput:
        """Means of the loss parts over all items of a loader of [`get_eval_dataloader`], and the generation metrics.
        The figures do not depend on the number of processes."""
        model, args = self.model, self.args
        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        training_sums, sums = self._sums, []
        for inputs in dataloader:
            self._sums = {}
            with torch.no_grad(), self.compute_loss_context_manager():
                self.compute_loss(model, self._prepare_inputs(inputs))
            sums.append({name: (total.item(), items.item()) for name, (total, items) in self._sums.items()})
            self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)
        self._sums = training_sums
        sums = gather_object(sums)
        metrics = {}
        for name in LOSS_PARTS:
            # An exact sum is the same in any order.
            parts = [batch[name] for batch in sums if name in batch]
            items = sum(items for _, items in parts)
            if items:
                metrics[name] = math.fsum(total for total, _ in parts) / items
        if metrics:
            config = self.model.config
            metrics["loss"] = sum(getattr(config, f"{name}_weight") * value for name, value in metrics.items())
        metrics |= self.generation_metrics(model) if self.generation_metrics is not None else {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _get_output_dir(self, trial) -> str:
        return super()._get_output_dir(trial) if self._staging is None else os.fspath(self._staging)

    def _save_checkpoint(self, model, trial) -> None:
        """As `Trainer`'s, but written beside its place and renamed when it is whole. Which old ones go is told by
        their steps, not by a clock."""
        args, name = self.args, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder = Path(self._get_output_dir(trial))
        final, staged = folder / name, folder / STAGING / name
        with self._saving(final):
            self._staging = staged.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            if self.state.best_model_checkpoint == os.fspath(staged):
                self.state.best_model_checkpoint = os.fspath(final)
                if args.should_save:
                    self.state.save_to_json(os.fspath(staged / STATE_FILE))
        self.accelerator.wait_for_everyone()  # each process has a file of its own in it
        if args.should_save:
            with self._saving(final):
                publish_checkpoint(staged, final)
        self.accelerator.wait_for_everyone()
        if args.push_to_hub:
            self._push_from_checkpoint(os.fspath(final))
        if args.should_save:
            best = self.state.best_model_checkpoint
            keep = [final] if best is None else [final, Path(best)]
            remove_old_checkpoints(folder, args.save_total_limit, keep)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer`'s; files that have their names are whole, and weights never lie beside another model's."""
        if self._staging is not None:
            super().save_model(output_dir, _internal_call=True)
            return
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        staged = folder / STAGING / "model"
        with self._saving(folder):
            super().save_model(os.fspath(staged), _internal_call=True)
            if self.args.should_save:
                publish_model(staged, folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @contextlib.contextmanager
    def _saving(self, target: Path):
        """Around what writes, and nothing that waits for others: their end would be told as a full disk."""
        try:
            yield
        # Of a full disk torch and safetensors tell with errors of their own.
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = self.args.output_dir
            if self.args.should_save:
                clear_staging(folder)
            raise SavingError(
                f"{target} could not be saved: {error}. {free_space(folder)} are free there. No file is half-written "
                f"under its final name; {self._last_checkpoint()}. Free space or change the folder's permissions, and "
                "go on with --resume_from_checkpoint true."
            ) from error

    def create_model_card(self) -> None:
        """Our card in place of the one that `Trainer` drafts: `README.md` of the output folder."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, self.hub_model_id or self.args.hub_model_id)

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo | Future | None:
        """Save model and processor and publish them, complete and in one commit; see [`push`]. `None` on all processes
        but the first."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        self._finish_current_push()
        return self._push(self.args.output_dir, commit_message, token=token, revision=revision, blocking=blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer's own copies files to the output folder, the code not among them, and publishes all it finds there.
        args = self.args
        if self._staging is not None:
            return  # `_save_checkpoint` calls again when it has its name
        if not self.is_world_process_zero() or args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        by_steps = args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        job = self._push(checkpoint_folder, f"Training in progress, {when}", blocking=False)
        job.add_done_callback(_report_failure)
        self.push_in_progress = PushInProgress([*(self.push_in_progress.jobs if busy else []), job])

    def _push(self, folder, message, *, token=None, revision=None, blocking=True) -> CommitInfo | Future:
        return push(
            folder,
            self.hub_model_id,
            processor=self.processing_class,
            private=self.args.hub_private_repo,
            revision=revision or self.args.hub_revision,
            message=message,
            token=token or self.args.hub_token,
            blocking=blocking,
        )


def check_push(args: TrainingArguments, processor) -> None:
    """Raises `ValueError` for what would leave a repository without a processor, or with optimizer states and pickles
    in it, or in public what was meant to be private."""
    check_token(args.hub_token)
    if not isinstance(processor, SEVLMProcessor):
        raise ValueError("push_to_hub needs the processor too: pass a `SEVLMProcessor` as `processing_class`.")
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy={args.hub_strategy.value!r} would publish optimizer states and pickled arguments: use "
            "'every_save' or 'end', and keep what training resumes from on your machine."
        )
    if args.hub_private_repo:
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        find_destination(HfApi(token=args.hub_token), name, private=True)


def _report_failure(job: Future) -> None:
    if job.exception() is not None:
        logger.warning(f"{job.exception()} Training goes on; the next save pushes again.")


def parameter_groups(model: nn.Module, args: SEVLMTrainingArguments) -> Sequence[dict]:
    """Every trainable parameter in exactly one of two groups: the VAD features (emotion encoder and fusion layer) with
    `vad_learning_rate`, all the rest with `learning_rate`."""
    vad = {
        id(parameter)
        for module in (model.emotion_encoder, model.decoder.vad_fusion)
        if module is not None
        for parameter in module.parameters()
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in vad], "lr": args.learning_rate},
        {"params": [p for p in trainable if id(p) in vad], "lr": args.vad_learning_rate},
    ]
    return [group | {"weight_decay": args.weight_decay} for group in groups if group["params"]]
