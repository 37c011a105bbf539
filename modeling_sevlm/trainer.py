"""Trainer of SEVLM: the paper's recipe, the weighted loss of Eq. 8, and checkpoints that survive interruptions."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.utils import gather_object
from huggingface_hub import CommitInfo, HfApi
from safetensors import SafetensorError
from torch.utils.data import BatchSampler, DataLoader
from transformers import ProcessorMixin, Trainer, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy, TrainOutput
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from processing import SEVLMProcessor
from processing.collator import SentencePairs, SEVLMCollator

from . import training_folder
from .adamw import EpsilonFirstAdamW
from .adapters import is_adapter
from .callbacks import EarlyStopping
from .card_sevlm import CARD_FILE, is_hub_name
from .finite_loss import FiniteWatch, NonFiniteError, Update
from .heads_sevlm import emotion_targets
from .hub import check_token, find_destination
from .model_card import write_model_card
from .modeling_sevlm import SEVLMForConditionalGeneration
from .push import push


logger = logging.get_logger(__name__)

LOSS_PARTS = ("language_loss", "emotion_loss", "contrastive_loss", "label_loss")
PAINTINGS = "paintings"  # key of the names in a batch, which the trainer removes before the forward pass


@dataclass(repr=False)
class TokenSafeTrainingArguments(TrainingArguments):
    """`TrainingArguments` whose pickle lacks the Hub's token, because `Trainer` saves it with every model. Declare
    subclasses with `@dataclass(repr=False)` to keep transformers' `repr`, which hides the token.

    Scripts call `check_output_dir` before they load data, and `clear_output_dir` before they train."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the model and the checkpoints in output_dir."}
    )

    def __getstate__(self) -> dict:
        return self.__dict__ | {"hub_token": None}

    def check_output_dir(self) -> None:
        """Turns `resume_from_checkpoint` "true" into the newest checkpoint or `None`. Raises `ValueError` if the run
        would replace a model or a run in `output_dir` (see [`training_folder.find_checkpoint`]), and [`SavingError`]
        if it cannot be written."""
        folder, resume = self.output_dir, self.resume_from_checkpoint
        report = functools.partial(self.distributed_state.print, flush=True)
        self.resume_from_checkpoint = training_folder.find_checkpoint(
            folder, resume, report, self.overwrite_output_dir
        )
        self.distributed_state.wait_for_everyone()  # no process writes before all have looked
        if self.should_save:
            training_folder.check_writable(folder)

    def clear_output_dir(self) -> None:
        """Removes what `check_output_dir` allowed to replace."""
        if self.should_save:
            training_folder.clear_folder(self.output_dir, self.resume_from_checkpoint, self.overwrite_output_dir)


@dataclass(repr=False)
class SEVLMTrainingArguments(TokenSafeTrainingArguments):
    """`TrainingArguments` with the paper's recipe (Sec. 5.1 and the authors' code) as defaults."""

    output_dir: str | None = field(default="outputs/sevlm", metadata={"help": "Folder of checkpoints and results."})
    learning_rate: float = field(default=2e-5, metadata={"help": "For all except the emotion encoder and VAD fusion."})
    vad_learning_rate: float = field(default=4e-5, metadata={"help": "Rate of emotion encoder and VAD fusion."})
    fusion_rate: str = field(
        default="vad",
        metadata={
            "help": "The VAD fusion's rate: vad_learning_rate (the paper) or learning_rate (the authors' code).",
            "choices": ["vad", "decoder"],
        },
    )
    adam_epsilon_first: bool = field(
        default=False, metadata={"help": "Add epsilon before Adam's bias correction, as transformers 4 did."}
    )
    weight_decay: float = 0.0
    num_train_epochs: float = 35
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Paintings per process and forward pass, two sentences each."}
    )
    total_batch_size: int | None = field(
        default=None, metadata={"help": "Paintings per step, whatever the number of processes and accumulation steps."}
    )
    per_device_eval_batch_size: int = 32
    eval_strategy: str = "steps"
    eval_steps: float | None = 2000
    save_steps: float = 2000
    save_total_limit: int | None = 2
    load_best_model_at_end: bool | None = True
    metric_for_best_model: str | None = "accuracy"
    greater_is_better: bool | None = True
    early_stopping_patience: int = field(default=10, metadata={"help": "Evaluations without progress; 0: no limit."})
    early_stopping_metrics: list[str] = field(
        default_factory=lambda: ["bleu_4"],
        metadata={
            "help": "Metrics whose improvement is progress, next to metric_for_best_model; their best "
            "checkpoints are kept."
        },
    )
    generation_samples: int | None = field(
        default=None, metadata={"help": "Validation paintings to explain at evaluation (default: all); 0: none."}
    )
    sheet_paintings: int = field(default=6, metadata={"help": "Paintings on each evaluation's sheet; 0: none."})
    logging_steps: float = 50
    logging_nan_inf_filter: bool = False  # True would hide NaN losses; this trainer must stop at them
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available)
    restore_callback_states_from_checkpoint: bool = True  # the counter of early stopping
    remove_unused_columns: bool | None = False  # the collator needs every column

    def __post_init__(self):
        super().__post_init__()
        if self.total_batch_size is not None:
            parts = self.world_size * self.gradient_accumulation_steps
            if self.total_batch_size < 1 or self.total_batch_size % parts:
                raise ValueError(
                    f"total_batch_size={self.total_batch_size} cannot be divided by {self.world_size} process(es) x "
                    f"{self.gradient_accumulation_steps} accumulation step(s): change one of the three."
                )
            self.per_device_train_batch_size = self.total_batch_size // parts


def collate_with_names(collator: Callable, items: list[dict]) -> dict:
    return collator(items) | {PAINTINGS: [str(item.get("painting", "?")) for item in items]}


class SEVLMTrainer(Trainer):
    """`Trainer` for [`SEVLMForConditionalGeneration`] and batches of `SEVLMCollator`.

    Each part of the loss is a mean over its own items (label tokens, explanation words with VAD, paintings) in the
    accumulated batches of all processes. The contrastive loss takes its negatives from one device's batch.
    `generation_metrics`, `model -> {name: value}`, is called at each evaluation. `data_collator` is by default a
    `SEVLMCollator` of the processor `processing_class`. `eval_dataset` may be a dictionary of data sets.

    Raises:
        TypeError: `args` are not `SEVLMTrainingArguments`, there is neither collator nor processor, or
            `processing_class` is not a processor.
        ValueError: a data set has no length, a push would not publish a complete repository, or processes have
            different numbers of batches.
        NonFiniteError: a loss or gradient is NaN or infinite; raised before the next log, evaluation or save.
        SavingError: a checkpoint or the model cannot be written, for example because the disk is full.
    """

    model: SEVLMForConditionalGeneration
    args: SEVLMTrainingArguments
    train_dataset: SentencePairs
    eval_dataset: SentencePairs | dict[str, SentencePairs]  # type: ignore[assignment]
    processing_class: SEVLMProcessor | None
    push_in_progress: PushInProgress | None  # type: ignore[assignment]  # transformers infers None

    def __init__(self, model, args, *, processing_class=None, generation_metrics=None, data_collator=None, **kwargs):
        if not isinstance(args, SEVLMTrainingArguments):
            given = type(args).__name__
            raise TypeError(f"SEVLMTrainer needs `SEVLMTrainingArguments` (same module, same arguments), not {given}.")
        if args.push_to_hub:
            check_push(args, processing_class, model)  # first: `Trainer` creates the repository
        if args.label_smoothing_factor:
            raise ValueError("The paper's loss (Eq. 8) has no label smoothing. Leave label_smoothing_factor at 0.")
        if processing_class is not None and not isinstance(processing_class, ProcessorMixin):
            given = type(processing_class).__name__
            raise TypeError(f"`processing_class` is a {given}. Pass the `SEVLMProcessor`, which has the tokenizer.")
        if data_collator is None and processing_class is None:
            raise TypeError("Pass `data_collator=SEVLMCollator(processor)`, or the processor as `processing_class`.")
        check_lengths(kwargs.get("train_dataset"), kwargs.get("eval_dataset"))
        data_collator = SEVLMCollator(processing_class) if data_collator is None else data_collator
        super().__init__(model, args, data_collator, processing_class=processing_class, **kwargs)
        if args.world_size > 1 and not args.accelerator_config.even_batches:
            raise ValueError("With `even_batches: false`, processes wait for others that have ended. Leave it out.")
        self.data_collator = functools.partial(collate_with_names, self.data_collator)
        self.generation_metrics = generation_metrics
        self.model_accepts_loss_kwargs = True  # `Trainer` must not divide the loss: `compute_loss` does
        self._sums = torch.zeros(len(LOSS_PARTS), 2, device=args.device)  # `loss_sums` since the last log
        self._writes_checkpoint = False
        self._watch = FiniteWatch(interval=1 if args.device.type == "cpu" else 1000)
        self._names: list[list[str]] = []  # paintings of each batch in this update
        self._losses: list[torch.Tensor] = []  # one per batch

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """Raises `ValueError` if the checkpoint has no safetensors or has a file that could execute code, or if the
        run would replace checkpoints that it does not continue. `overwrite_output_dir` removes these."""
        folder, output_dir = resume_from_checkpoint or None, self.args.output_dir
        if isinstance(folder, str | os.PathLike) and not any(Path(folder).glob("*.safetensors")):
            raise ValueError(f"{folder} has no weights in safetensors; training cannot resume from it.")
        if self.args.should_save:
            training_folder.clear_staging(output_dir)
            if self.args.overwrite_output_dir:
                training_folder.clear_folder(output_dir, folder, overwrite=True)
        self.accelerator.wait_for_everyone()
        if self.args.save_strategy != "no":
            training_folder.check_later(output_dir, folder)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except UnpicklingError:  # its message recommends loading the file unsafely
            problem = f"{folder}: optimizer.pt, scheduler.pt or rng_state.pth is damaged or can execute code"
            raise ValueError(f"{problem}. Resume from your own checkpoint, or start from its weights.") from None

    def _run_epoch(self, *args, **kwargs) -> None:
        # Without this, resuming a finished run trains it for one more step.
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps
        if hasattr(self.train_dataset, "set_epoch"):  # accelerate calls it only in new runs with one process
            self.train_dataset.set_epoch(int(self.state.epoch))
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    @property
    def best_values(self) -> dict[str, list]:
        """The best value of each metric that `EarlyStopping` watches, and its step; empty without that callback."""
        # A resumed run replaces the callback that was passed in.
        callbacks = [callback for callback in self.callback_handler.callbacks if isinstance(callback, EarlyStopping)]
        return callbacks[0].best if callbacks else {}

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if self.args.adam_epsilon_first:
                if optimizer_cls is not torch.optim.AdamW:
                    raise ValueError(f"--adam_epsilon_first is for AdamW, not for --optim {self.args.optim}.")
                optimizer_cls = EpsilonFirstAdamW
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
        """Removes the rows that accelerate repeats in an epoch's last batch. A process that has only
        repeats keeps one row without targets, because every process must take the step."""
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
        """Returns the number of items that each of `LOSS_PARTS` averages over, `(4,)`."""
        explanation = self.model.explanation_mask(inputs["token_type_ids"]) & inputs["attention_mask"].bool()
        targets = inputs["labels"][..., 1:].ne(-100)
        paintings = targets.flatten(1).any(dim=1).sum()
        words = emotion_targets(inputs["vad_values"], explanation).sum()
        return torch.stack([targets.sum(), words, paintings, paintings])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs, counts = model(**inputs, skip_logits=True), self._count_items(inputs)
        # DDP averages gradients over the processes, but `num_items_in_batch` is summed over them.
        shares = counts * self.accelerator.num_processes / num_items_in_batch.clamp(min=1)
        loss = sum(
            getattr(self.model.config, f"{name}_weight") * share * outputs[name]
            for name, share in zip(LOSS_PARTS, shares, strict=True)
            if outputs.get(name) is not None
        )
        self._losses.append(loss.detach())
        self._sums += loss_sums(outputs, counts)
        return loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        self._check_finite()
        if "loss" in logs:
            totals = self.accelerator.reduce(self._sums, reduction="sum").tolist()
            # A part without items, such as the emotion loss without a lexicon, has no mean.
            logs |= {name: total / items for name, (total, items) in zip(LOSS_PARTS, totals, strict=True) if items}
            self._sums.zero_()
        super().log(logs, *args, **kwargs)

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        if self.accelerator.scaler is None:  # a scaler skips steps with infinite gradients
            self._losses.append(torch.as_tensor(norm, device=self.args.device))
        values = torch.stack([value.float() for value in self._losses])
        self._watch.updates.append(Update(self.state.global_step + 1, self.state.epoch, self._names, values))
        if len(self._watch.updates) >= self._watch.interval:
            self._check_finite()
        return norm

    def _check_finite(self) -> None:
        if problem := self._watch.first_problem():
            totals = zip(LOSS_PARTS, self._sums[:, 0].tolist(), strict=True)
            parts = ", ".join(name for name, total in totals if not math.isfinite(total))
            parts = f"Not finite: {parts}. " if parts else ""
            raise NonFiniteError(
                f"{problem} {parts}Check these paintings, or lower --learning_rate or --max_grad_norm, and continue "
                f"with --resume_from_checkpoint true: {training_folder.last_checkpoint(self.args.output_dir)}."
            )

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """Gives every process whole batches: no row is repeated, and a batch has the same negatives with any number of
        processes."""
        args = self.args
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]  # type: ignore[index]  # the name of one of several
        if dataset is None:
            raise ValueError("There is nothing to evaluate on: pass an `eval_dataset`.")
        check_lengths(dataset)
        batches = list(BatchSampler(range(len(dataset)), args.eval_batch_size, drop_last=False))
        batches = batches[args.process_index :: args.world_size]
        loading: dict = {"num_workers": args.dataloader_num_workers, "pin_memory": args.dataloader_pin_memory}
        return DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator, **loading)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        """Computes the means of the loss parts over all items, and the generation metrics."""
        self._check_finite()
        model, config = self.model.eval(), self.model.config
        self.callback_handler.eval_dataloader = dataloader
        sums = []
        for inputs in dataloader:
            inputs.pop(PAINTINGS)
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                sums.append(loss_sums(model(**inputs, skip_logits=True), self._count_items(inputs)).tolist())
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {}
        for name, batches in zip(LOSS_PARTS, zip(*gather_object(sums), strict=True), strict=True):
            if items := sum(count for _, count in batches):
                metrics[name] = math.fsum(total for total, _ in batches) / items  # fsum is exact in any order
        if metrics:
            metrics["loss"] = sum(getattr(config, f"{name}_weight") * value for name, value in metrics.items())
        metrics |= self.generation_metrics(model) if self.generation_metrics is not None else {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return f"{folder}/{training_folder.STAGING}" if self._writes_checkpoint else folder

    def _save_checkpoint(self, model, trial) -> None:
        self._check_finite()
        args, state = self.args, self.state
        final = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        staged = final.parent / training_folder.STAGING / final.name
        with self._saving(final):
            self._writes_checkpoint = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._writes_checkpoint = False
            if state.best_model_checkpoint == str(staged):
                state.best_model_checkpoint = str(final)
                if args.should_save:
                    state.save_to_json(str(staged / training_folder.STATE_FILE))
        self.accelerator.wait_for_everyone()  # each process writes its random state into the folder
        if args.should_save:
            with self._saving(final):
                training_folder.publish_checkpoint(staged, final)
        self.accelerator.wait_for_everyone()
        if args.push_to_hub:
            self._push_from_checkpoint(str(final))
        if args.should_save:
            best = [] if state.best_model_checkpoint is None else [Path(state.best_model_checkpoint)]
            best += [final.with_name(f"{PREFIX_CHECKPOINT_DIR}-{step}") for _, step in self.best_values.values()]
            training_folder.remove_old_checkpoints(final, args.save_total_limit, best)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        if self._writes_checkpoint:
            super().save_model(output_dir, _internal_call=True)
            return
        with self._saving(folder):
            staged = folder / training_folder.STAGING / "model"
            super().save_model(str(staged), _internal_call=True)
            if self.args.should_save:
                training_folder.publish_model(staged, folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        if is_adapter(self.model):  # peft's draft of a card
            Path(output_dir or self.args.output_dir, CARD_FILE).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _saving(self, target: Path) -> Iterator[None]:
        """Reports errors as a full disk, so never wait for other processes inside: the wait raises if one dies."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise the latter two
            folder = self.args.output_dir
            if self.args.should_save:
                training_folder.clear_staging(folder)
            raise training_folder.SavingError(
                f"{target} could not be saved: {error}. {training_folder.free_space(folder)} are free there. Free up "
                f"space, then continue with --resume_from_checkpoint true: {training_folder.last_checkpoint(folder)}."
            ) from error

    def create_model_card(self, *args, **kwargs) -> None:
        """Writes the project's card to the output folder, instead of the draft of `Trainer`."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, self.hub_model_id or self.args.hub_model_id)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs) -> CommitInfo | Future | None:
        """Saves and publishes model, processor and model card in one commit, which the first process returns.
        `kwargs` go to [`push`]. Token, revision and privacy default to the training arguments."""
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"), private=kwargs.get("private"))
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.create_model_card()
        self._finish_current_push()
        return self._push(self.args.output_dir, message=commit_message, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # `Trainer` calls this before the checkpoint has its final name; `_save_checkpoint` calls it again.
        if self._writes_checkpoint or not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        jobs = [] if self.push_in_progress is None else [job for job in self.push_in_progress.jobs if not job.done()]
        if not jobs or self.args.hub_always_push:
            message = f"Training in progress, step {self.state.global_step}"
            job = self._push(checkpoint_folder, message=message, blocking=False)
            job.add_done_callback(_report_failure)
            self.push_in_progress = PushInProgress([*jobs, job])  # type: ignore[arg-type]  # takes a list

    def _push(self, folder: str, **kwargs) -> CommitInfo | Future:
        args = self.args
        given: dict = dict(token=args.hub_token, revision=args.hub_revision, private=args.hub_private_repo)
        given |= {name: value for name, value in kwargs.items() if value is not None}
        return push(folder, self.hub_model_id, processor=self.processing_class, **given)


def loss_sums(outputs, counts: torch.Tensor) -> torch.Tensor:
    """Returns sum and number of items for each of `LOSS_PARTS`, `(4, 2)`; zeros for a part that is not computed."""
    sums = torch.zeros(len(LOSS_PARTS), 2, device=counts.device)
    for row, name, count in zip(sums, LOSS_PARTS, counts, strict=True):
        if outputs.get(name) is not None:
            row[0], row[1] = outputs[name].detach().float() * count, count
    return sums


def check_lengths(*datasets) -> None:
    """Raises `ValueError` if a data set, or one in a dictionary of data sets, has no length, as streams have none."""
    for dataset in datasets:
        for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
            if part is not None and not isinstance(part, Sized):
                raise ValueError(
                    f"A {type(part).__name__} has no length. Pass `SentencePairs` of a `datasets.Dataset`."
                )


def check_push(args: SEVLMTrainingArguments, processor, model) -> None:
    """Raises `ValueError` if a push would omit the processor, publish an adapter without its model, add pickles or put
    a private model in a public repository."""
    check_token(args.hub_token)
    if not isinstance(processor, SEVLMProcessor):
        raise ValueError("push_to_hub needs the processor: pass a `SEVLMProcessor` as `processing_class`.")
    if is_adapter(model) and not is_hub_name(model.name_or_path):
        raise ValueError(f"The adapter's model {model.name_or_path} is a local folder: push that first, and name it.")
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ValueError("hub_strategy would publish optimizer states and pickles: use 'every_save' or 'end'.")
    if args.hub_private_repo:
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        find_destination(HfApi(token=args.hub_token), name, private=True)


def _report_failure(job: Future) -> None:
    if job.exception() is not None:
        logger.warning(f"{job.exception()} Training continues; the next save pushes again.")


def parameter_groups(model: SEVLMForConditionalGeneration, args: SEVLMTrainingArguments) -> list[dict]:
    """Gives the emotion encoder and, with `fusion_rate="vad"`, the fusion layer `vad_learning_rate`, other trainable
    parameters `learning_rate`."""
    modules = [model.emotion_encoder, model.decoder.vad_fusion if args.fusion_rate == "vad" else None]
    vad = {parameter for module in modules if module is not None for parameter in module.parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p not in vad], "lr": args.learning_rate},
        {"params": [p for p in trainable if p in vad], "lr": args.vad_learning_rate},
    ]
    return [group | {"weight_decay": args.weight_decay} for group in groups if group["params"]]
