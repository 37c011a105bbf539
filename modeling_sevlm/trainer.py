# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Trainer of SEVLM: the paper's recipe as defaults, the weighted loss of Eq. 8, and checkpoints that are complete
whenever training is interrupted."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import gather_object
from huggingface_hub import CommitInfo, HfApi
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy, SaveStrategy, TrainOutput
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from processing import SEVLMProcessor
from processing.collator import SentencePairs

from .callbacks import EpochAnnouncement
from .finite_loss import FiniteWatch, NonFiniteError, Update
from .heads_sevlm import emotion_targets
from .hub import check_token, find_destination
from .model_card import write_model_card
from .modeling_sevlm import SEVLMForConditionalGeneration
from .push import push
from .training_folder import (
    STAGING,
    STATE_FILE,
    SavingError,
    clear_staging,
    free_space,
    last_checkpoint,
    publish_checkpoint,
    publish_model,
    remove_old_checkpoints,
)


logger = logging.get_logger(__name__)

LOSS_PARTS = ("language_loss", "emotion_loss", "contrastive_loss", "label_loss")
PAINTINGS = "paintings"  # names in a batch, until the trainer takes them out


@dataclass(repr=False)
class TokenSafeTrainingArguments(TrainingArguments):
    """`TrainingArguments` without the Hub's token when they are pickled: `Trainer` saves them in every folder.

    Declare subclasses with `@dataclass(repr=False)` too: the `repr` of transformers hides the token."""

    def __getstate__(self) -> dict:
        return self.__dict__ | {"hub_token": None}


@dataclass(repr=False)
class SEVLMTrainingArguments(TokenSafeTrainingArguments):
    """`TrainingArguments` with the paper's recipe (Sec. 5.1 and the authors' code) as defaults."""

    output_dir: str | None = field(default="outputs/sevlm", metadata={"help": "Folder of checkpoints and results."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of all but the VAD features."})
    vad_learning_rate: float = field(
        default=4e-5, metadata={"help": "Learning rate of the emotion encoder and the fusion layer."}
    )
    weight_decay: float = 0.0
    num_train_epochs: float = 35
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Paintings, with two sentences each."})
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
        default=500, metadata={"help": "Validation paintings to explain at each evaluation; 0: none."}
    )
    sheet_paintings: int = field(
        default=6,
        metadata={"help": "Validation paintings on the sheet of explanations of each evaluation (sheets/); 0: none."},
    )
    logging_steps: float = 50
    # The filter hides a loss that is NaN and waits for the device at every step. The trainer stops instead.
    logging_nan_inf_filter: bool = False
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    # Without it a resumed run counts its patience from the start and stops later than an uninterrupted one.
    restore_callback_states_from_checkpoint: bool = True
    # The collator needs every column.
    remove_unused_columns: bool | None = False
    prediction_loss_only: bool = True
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])


def collate_with_names(collator: Callable, items: Sequence[dict]) -> dict:
    return collator(items) | {PAINTINGS: [str(item.get("painting", "?")) for item in items]}


class SEVLMTrainer(Trainer):
    """`Trainer` for [`SEVLMForConditionalGeneration`] and batches of `SEVLMCollator`.

    Each part of the loss is a mean over its own items (label tokens, explanation words with VAD, paintings) in the
    accumulated batches of all processes. Accumulation and the number of processes therefore change neither the
    language nor the emotion loss. The contrastive loss takes its negatives from one device's batch.

    A loss or gradient that is NaN or infinite ends training before the next log, evaluation or save; on a CPU before
    the update.

    Args:
        generation_metrics: `model -> {name: value}`, called at each evaluation; its values are logged with the prefix.

    Raises:
        ValueError: the arguments ask for label smoothing, for a push to the Hub that is not a complete repository or
            contains more, or for processes with different numbers of batches.
        NonFiniteError: a loss or gradient is NaN or infinite.
        SavingError: a checkpoint or the model cannot be written, for example because the disk is full.
    """

    model: SEVLMForConditionalGeneration
    args: SEVLMTrainingArguments
    train_dataset: SentencePairs
    eval_dataset: SentencePairs
    processing_class: SEVLMProcessor | None
    push_in_progress: PushInProgress | None  # type: ignore[assignment]  # transformers infers None

    def __init__(
        self,
        model: SEVLMForConditionalGeneration,
        args: SEVLMTrainingArguments,
        *,
        processing_class: SEVLMProcessor | None = None,
        generation_metrics: Callable[[nn.Module], dict[str, float]] | None = None,
        **kwargs,
    ):
        # `Trainer` creates the repository as it begins.
        if args.push_to_hub:
            check_push(args, processing_class)
        if args.label_smoothing_factor:
            raise ValueError("The paper's loss (Eq. 8) has no label smoothing: leave `label_smoothing_factor` at 0.")
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        if args.world_size > 1 and not args.accelerator_config.even_batches:
            raise ValueError("With `even_batches: false` processes wait for others that have finished. Leave it out.")
        self.data_collator = functools.partial(collate_with_names, self.data_collator)
        self.generation_metrics = generation_metrics
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(EpochAnnouncement(self.train_dataset))
        # `compute_loss` divides by the items of the accumulated batch; `Trainer` must not divide again.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, torch.Tensor] = {}  # since the last log, of each part: sum over its items, their number
        self._watch = FiniteWatch(interval=1 if args.device.type == "cpu" else 1000)
        self._names: list[list[str]] = []  # of the paintings of each batch of the update
        self._losses: list[torch.Tensor] = []  # of these batches

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """As in transformers.

        Raises:
            ValueError: the checkpoint has no weights in safetensors, or its other files hold more than tensors and
                numbers. Nothing in them is executed.
        """
        folder = resume_from_checkpoint
        if isinstance(folder, str) and os.path.isdir(folder) and not any(Path(folder).glob("*.safetensors")):
            raise ValueError(f"{folder} has no weights in safetensors; training cannot resume from it.")
        if self.args.should_save:
            clear_staging(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except UnpicklingError:
            # The original message recommends to execute the file.
            raise ValueError(
                f"{folder} holds a file (optimizer.pt, scheduler.pt or rng_state.pth) that is damaged or can execute "
                "code, and it was not read. Resume from a checkpoint of your own, or start a new run from its weights."
            ) from None

    def _run_epoch(self, *args, **kwargs) -> None:
        # Otherwise a finished run is trained for one more step when it is resumed.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_cls(parameter_groups(self.model, self.args), **optimizer_kwargs)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._names, self._losses = [batch.pop(PAINTINGS) for batch in batches], []
        if not batches:
            return batches, None
        if self.accelerator.gradient_state.end_of_dataloader:
            batches[-1] = self._without_repeats(batches[-1])
        counts = torch.stack([self._count_items(batch) for batch in batches]).sum(dim=0).to(device)
        return batches, self.accelerator.reduce(counts, reduction="sum")

    def _without_repeats(self, last: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Removes the rows of an epoch's last batch that accelerate repeats to give every process as many. A process
        without other rows keeps one, because all processes must take the step; that row has nothing to learn."""
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
        """Counts the items that each of `LOSS_PARTS` is a mean over: `(4,)`."""
        explanation = self.model.explanation_mask(inputs["token_type_ids"]) & inputs["attention_mask"].bool()
        targets = inputs["labels"][..., 1:].ne(-100)
        paintings = targets.flatten(1).any(dim=1).sum()
        words = emotion_targets(inputs["vad_values"], explanation).sum()
        return torch.stack([targets.sum(), words, paintings, paintings])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, counts = model(**inputs, skip_logits=True), self._count_items(inputs)
        shares = torch.ones_like(counts)
        if num_items_in_batch is not None:
            # Processes average their gradients, and `num_items_in_batch` is a sum over processes.
            shares = counts * self.accelerator.num_processes / num_items_in_batch.clamp(min=1)
        terms = [
            getattr(self.model.config, f"{name}_weight") * share * outputs[name]
            for name, share in zip(LOSS_PARTS, shares, strict=True)
            if outputs.get(name) is not None
        ]
        loss = functools.reduce(torch.add, terms)
        if model.training:
            self._losses.append(loss.detach())
            for name, sums in loss_sums(outputs, counts).items():
                self._sums[name] = self._sums[name] + sums if name in self._sums else sums
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        self._check_finite()
        if "loss" in logs and self._sums:
            totals = self.accelerator.reduce(torch.stack(list(self._sums.values())), reduction="sum").tolist()
            # A part without items (there is no lexicon, for example) has no mean.
            logs |= {name: total / items for name, (total, items) in zip(self._sums, totals, strict=True) if items}
            self._sums = {}
        super().log(logs, *args, **kwargs)

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        values = self._losses
        if self.accelerator.scaler is None:  # else an infinite gradient makes it skip the step and lower its scale
            values = [*values, torch.as_tensor(norm, device=self.args.device)]
        stacked = torch.stack([value.float() for value in values])
        if self._watch.add(Update(self.state.global_step + 1, self.state.epoch, self._names, stacked)):
            self._check_finite()
        return norm

    def _check_finite(self) -> None:
        if problem := self._watch.first_problem():
            parts = ", ".join(name for name, (total, _) in self._sums.items() if not math.isfinite(total))
            parts = f"Not finite: {parts}. " if parts else ""
            raise NonFiniteError(
                f"{problem} {parts}Nothing was saved since; {last_checkpoint(self.args.output_dir)}. Check the images "
                "and sentences of these paintings, or lower --learning_rate, --vad_learning_rate or --max_grad_norm, "
                "and continue with --resume_from_checkpoint true."
            )

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Deals out whole batches, in the dataset's order, to the processes. Unlike with accelerate's loader, no row
        is repeated, and a batch (with the negatives in it) does not depend on the number of processes."""
        args, dataset = self.args, self.eval_dataset if eval_dataset is None else eval_dataset
        batches = list(BatchSampler(range(len(dataset)), args.eval_batch_size, drop_last=False))
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
        """Computes the means of the loss parts over all items, and the generation metrics. They do not depend on the
        number of processes if the loader is that of [`get_eval_dataloader`]."""
        self._check_finite()
        model, config = self.model.eval(), self.model.config
        self.callback_handler.eval_dataloader = dataloader
        sums = []
        for inputs in dataloader:
            inputs.pop(PAINTINGS)
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                batch_sums = loss_sums(model(**inputs, skip_logits=True), self._count_items(inputs))
            sums.append({name: part.tolist() for name, part in batch_sums.items()})
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        sums = gather_object(sums)
        metrics = {}
        for name in LOSS_PARTS:
            parts = [batch[name] for batch in sums if name in batch]
            if items := sum(count for _, count in parts):
                metrics[name] = math.fsum(total for total, _ in parts) / items  # exact: the order does not matter
        if metrics:
            metrics["loss"] = sum(getattr(config, f"{name}_weight") * value for name, value in metrics.items())
        metrics |= self.generation_metrics(model) if self.generation_metrics is not None else {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _get_output_dir(self, trial) -> str:
        """The folder in which `Trainer` writes checkpoints."""
        return os.path.join(super()._get_output_dir(trial), STAGING)

    def _save_checkpoint(self, model, trial) -> None:
        self._check_finite()
        args, state = self.args, self.state
        staged = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        folder = staged.parents[1]
        final = folder / staged.name
        with self._saving(final):
            super()._save_checkpoint(model, trial)
            if state.best_model_checkpoint == os.fspath(staged):
                state.best_model_checkpoint = os.fspath(final)
                if args.should_save:
                    state.save_to_json(os.fspath(staged / STATE_FILE))
        self.accelerator.wait_for_everyone()  # each process has a file of its own in it
        if args.should_save:
            with self._saving(final):
                publish_checkpoint(staged, final)
        self.accelerator.wait_for_everyone()
        if args.push_to_hub:
            self._push_from_checkpoint(os.fspath(final))
        if args.should_save:
            remove_old_checkpoints(folder, args.save_total_limit, {final, Path(state.best_model_checkpoint or final)})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        if folder.parent.name == STAGING:
            super().save_model(output_dir, _internal_call=True)
            return
        with self._saving(folder):
            staged = folder / STAGING / "model"
            super().save_model(os.fspath(staged), _internal_call=True)
            if self.args.should_save:
                publish_model(staged, folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    @contextlib.contextmanager
    def _saving(self, target: Path) -> Iterator[None]:
        """For blocks that write and do not wait for other processes, whose end would be reported as a full disk."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' of a full disk, too
            folder = self.args.output_dir
            if self.args.should_save:
                clear_staging(folder)
            raise SavingError(
                f"{target} could not be saved: {error}. {free_space(folder)} are free there. No file with a final "
                f"name is incomplete; {last_checkpoint(folder)}. Free space or change the folder's permissions, and "
                "continue with --resume_from_checkpoint true."
            ) from error

    def push_to_hub(
        self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs
    ) -> CommitInfo | Future | None:
        """Saves model, processor and model card, and publishes them in one commit.

        Args:
            kwargs: `token`, `revision` and `private` of [`push`]; those of the training arguments by default.

        Returns:
            As [`push`] on the first process, `None` on the others.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"), private=kwargs.get("private"))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        write_model_card(self.args.output_dir, self.hub_model_id)
        self._finish_current_push()
        return self._push(self.args.output_dir, message=commit_message, blocking=blocking, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # `Trainer` would publish all files of the output folder, without the code. It calls this before the checkpoint
        # has its name, too.
        args = self.args
        if Path(checkpoint_folder).parent.name == STAGING or not self.is_world_process_zero():
            return
        jobs = [] if self.push_in_progress is None else [job for job in self.push_in_progress.jobs if not job.done()]
        if args.hub_strategy == HubStrategy.END or (jobs and not args.hub_always_push):
            return
        by_steps = args.save_strategy == SaveStrategy.STEPS
        when = f"step {self.state.global_step}" if by_steps else f"epoch {int(self.state.epoch)}"
        job = self._push(checkpoint_folder, message=f"Training in progress, {when}", blocking=False)
        job.add_done_callback(_report_failure)
        self.push_in_progress = PushInProgress([*jobs, job])  # type: ignore[arg-type]  # takes a list

    def _push(self, folder: str, **kwargs) -> CommitInfo | Future:
        args = self.args
        self.callback_handler.on_push_begin(args, self.state, self.control)
        given: dict[str, Any] = dict(token=args.hub_token, revision=args.hub_revision, private=args.hub_private_repo)
        return push(folder, self.hub_model_id, processor=self.processing_class, **given | kwargs)


def loss_sums(outputs, counts: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the sum over the items and their number `(2,)`, for each of `LOSS_PARTS` that the model computes."""
    return {
        name: torch.stack([outputs[name].detach().float() * count, count.float()])
        for name, count in zip(LOSS_PARTS, counts, strict=True)
        if outputs.get(name) is not None
    }


def check_push(args: SEVLMTrainingArguments, processor) -> None:
    """Raises `ValueError` if a push would publish no processor, optimizer states or pickles, or a private model in a
    public repository."""
    check_token(args.hub_token)
    if not isinstance(processor, SEVLMProcessor):
        raise ValueError("push_to_hub needs the processor: pass a `SEVLMProcessor` as `processing_class`.")
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError(
            f"hub_strategy={HubStrategy(args.hub_strategy).value!r} would publish optimizer states and pickled "
            "arguments. Use 'every_save' or 'end', and keep the files that training resumes from on your machine."
        )
    if args.hub_private_repo:
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        find_destination(HfApi(token=args.hub_token), name, private=True)


def _report_failure(job: Future) -> None:
    if job.exception() is not None:
        logger.warning(f"{job.exception()} Training continues; the next save pushes again.")


def parameter_groups(model: SEVLMForConditionalGeneration, args: SEVLMTrainingArguments) -> list[dict]:
    """Puts every trainable parameter in one of two groups: the emotion encoder and the fusion layer with
    `vad_learning_rate`, all others with `learning_rate`."""
    modules = [module for module in (model.emotion_encoder, model.decoder.vad_fusion) if module is not None]
    vad = {parameter for module in modules for parameter in module.parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p not in vad], "lr": args.learning_rate},
        {"params": [p for p in trainable if p in vad], "lr": args.vad_learning_rate},
    ]
    return [group | {"weight_decay": args.weight_decay} for group in groups if group["params"]]
