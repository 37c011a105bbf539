"""What `SEVLMTrainer` and transformers' own trainers do with other arguments, data sets, collators and processors."""

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from modeling_sevlm.trainer import SEVLMTrainer, SEVLMTrainingArguments
from processing.collator import SentencePairs, SEVLMCollator
from processing.toy_artemis import load_toy_artemis
from tests.helpers.training import make_trainer


SHORT = {"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
SHORT |= {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "a_loss"}
OURS = {**SHORT, "eval_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def rows():
    return load_toy_artemis(num_paintings=24)["train"].select(range(4))


@pytest.fixture
def parts(model, processor, rows, tmp_path):
    """Arguments of a trainer."""
    args = SEVLMTrainingArguments(str(tmp_path), **OURS)
    return {"model": model, "args": args, "train_dataset": SentencePairs(rows), "processing_class": processor}


def test_without_a_collator_the_processor_collates(parts):
    assert SEVLMTrainer(**parts).train().global_step == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"processing_class": None}, "data_collator=SEVLMCollator"),
        ({"processing_class": "tokenizer"}, "SEVLMProcessor"),
        ({"args": TrainingArguments}, "SEVLMTrainingArguments.*not TrainingArguments"),
        ({"args": Seq2SeqTrainingArguments}, "SEVLMTrainingArguments"),
        ({"args": None}, "SEVLMTrainingArguments"),
        ({"train_dataset": "stream"}, "has no length.*SentencePairs"),
        ({"eval_dataset": {"test": "stream"}}, "has no length"),
    ],
)
def test_parts_that_do_not_fit_are_refused_with_one_line(parts, processor, tmp_path, change, message):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    ((name, value),) = change.items()
    if value == "tokenizer":
        value = processor.tokenizer
    elif name == "args" and value is not None:
        value = value(str(tmp_path), **SHORT)
    elif "dataset" in name:
        value = Stream() if value == "stream" else {"test": Stream()}
    with pytest.raises((TypeError, ValueError), match=message) as refused:
        SEVLMTrainer(**parts | {name: value})
    assert "\n" not in str(refused.value)


def test_several_data_sets_are_evaluated_by_name(parts, rows):
    pairs = {"first": SentencePairs(rows.select([0, 1, 2])), "second": SentencePairs(rows.select([3]))}
    trainer = SEVLMTrainer(**parts, eval_dataset=pairs)
    metrics = trainer.evaluate()
    for name, dataset in pairs.items():
        alone = trainer.evaluate(dataset)
        assert metrics[f"eval_{name}_loss"] == pytest.approx(alone["eval_loss"], rel=1e-6)
    with pytest.raises(ValueError, match="eval_dataset"):
        SEVLMTrainer(**parts).evaluate()


def test_several_data_sets_are_evaluated_while_training(processor, model, tmp_path):
    trainer = make_trainer(model, processor, tmp_path, max_steps=1, **EVALUATING)
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"eval_a_loss", "eval_b_loss"} <= logged


@pytest.mark.parametrize("trainer_class", [Trainer, Seq2SeqTrainer])
def test_a_trainer_of_transformers_trains_and_evaluates_if_it_keeps_the_columns(
    parts, processor, tmp_path, trainer_class
):
    kind = Seq2SeqTrainingArguments if trainer_class is Seq2SeqTrainer else TrainingArguments
    common = parts | {"data_collator": SEVLMCollator(processor), "eval_dataset": parts["train_dataset"]}
    trainer = trainer_class(**common | {"args": kind(str(tmp_path), remove_unused_columns=False, **SHORT)})
    assert trainer.train().global_step == 1 and trainer.evaluate()["eval_loss"] > 0
    removing = trainer_class(**common | {"args": kind(str(tmp_path), **SHORT)})
    with pytest.raises(ValueError, match="no emotions, explanations, image.*remove_unused_columns=False"):
        removing.train()


def test_generation_from_a_training_batch_is_refused_with_the_remedy(parts, processor, tmp_path):
    options = {"predict_with_generate": True, "remove_unused_columns": False}
    args = Seq2SeqTrainingArguments(str(tmp_path), **SHORT, **options)
    trainer = Seq2SeqTrainer(**parts | {"args": args, "data_collator": SEVLMCollator(processor)})
    with pytest.raises(ValueError, match=r"sentence pairs \(2, 2, .*generation_metrics"):
        trainer.predict(parts["train_dataset"])


@pytest.mark.parametrize("kind", ["stream", "splits", "list"])
def test_pairs_need_the_rows_of_one_split(rows, kind):
    data = {"stream": rows.to_iterable_dataset(), "splits": {"train": rows}, "list": list(rows)}[kind]
    with pytest.raises(ValueError, match="SentencePairs needs a `datasets.Dataset`"):
        SentencePairs(data)


def test_rows_that_are_not_pairs_are_named(processor):
    with pytest.raises(ValueError, match="no emotion_shares.*SentencePairs"):
        SEVLMCollator(processor)([{"image": None, "emotions": ["awe"], "explanations": ["it is wide"]}])
