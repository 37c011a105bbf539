# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Writes the model card of a checkpoint folder from the template `model_card.md`.

    write_model_card("outputs/sevlm-artemis")       # writes README.md into the folder

Results come from `evaluation_results.json`, which `evaluate_sevlm.py --update_model_card` writes; the training section
from `training.json` and the log, which `train.py` and the converter write. A folder without these records, such as a
downloaded repository, keeps its card if that describes the same weights and the same lexicon.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from processing.files import write_text

from .card_sevlm import (
    CARD_FILE,
    LEXICON_TABLE,
    card_facts,
    is_hub_name,
    license_link,
    read_facts,
    renamed_card,
    stored_tensors,
    training_lexicon,
)
from .configuration_sevlm import SEVLMConfig
from .paper_results import METRICS, PAPER_ROWS
from .training_folder import STATE_FILE


EVALUATION_FILE = "evaluation_results.json"
TRAINING_FILE = "training.json"
LOG_FILE = "training_log.json"
AUTHORS_REPOSITORY = "jing5566/SEVLM"
# Argument in `training.json`, label in the card.
SETTINGS = {
    "per_device_train_batch_size": "paintings per device and step",
    "world_size": "devices",
    "gradient_accumulation_steps": "accumulation steps",
    "learning_rate": "learning rate",
    "vad_learning_rate": "learning rate of the VAD features",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up steps",
    "weight_decay": "weight decay",
    "seed": "seed",
}


def template_path() -> Path:
    """Returns the path of `model_card.md`: next to the packages in a checkout, or where it was installed."""
    for folder in (Path(__file__).resolve().parent.parent, Path(sys.prefix, "share", "sevlm")):
        if (folder / "model_card.md").is_file():
            return folder / "model_card.md"
    raise FileNotFoundError("The template model_card.md is missing. It belongs next to the package modeling_sevlm.")


def describe_data(results: dict) -> tuple[str, str]:
    """Returns type and name of the dataset of a `results.json` or `training.json`; of a local folder only its name."""
    data = results["data"]
    if data.get("annotations"):
        return "artemis", f"ArtEmis {data['version']}"
    if data.get("dataset"):
        name = str(data["dataset"])
        return "custom", name if is_hub_name(name) else Path(name).name
    return "custom", "embedded paintings"


def eval_results(results: dict) -> list[EvalResult]:
    """Returns the metrics of a `results.json` as entries of a model-index, in percent."""
    dataset_type, dataset_name = describe_data(results)
    return [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Emotion and explanation",
            dataset_type=dataset_type,
            dataset_name=dataset_name,
            dataset_split=results["arguments"]["split"],
            metric_type=metric_type,
            metric_name=heading,
            metric_value=round(100 * results[name], 2),
        )
        for name, heading, metric_type in METRICS
        if results.get(name) is not None
    ]


def render_model_card(
    folder: str | os.PathLike, repository: str | None = None, records: str | os.PathLike | None = None
) -> ModelCard:
    """Renders the card of a checkpoint folder.

    Args:
        folder: the folder with config and weights.
        repository: name on the Hub (default: name of the folder).
        records: folder with the records of training and evaluation, or with a card of the same model (default:
            `folder`).
    """
    folder = Path(folder)
    records = Path(folder if records is None else records)
    repository, facts = repository or folder.name, card_facts(folder)
    if not any((records / name).is_file() for name in (EVALUATION_FILE, TRAINING_FILE)):
        if read_facts(records / CARD_FILE) == facts:
            return ModelCard(renamed_card(records / CARD_FILE, repository))
    config = SEVLMConfig.from_pretrained(folder)
    results, record = _read(records / EVALUATION_FILE), _read(records / TRAINING_FILE)
    if not record and (records / STATE_FILE).is_file():  # a checkpoint in the folder of its run
        record = _read(records.parent / TRAINING_FILE)
    trained_on, evaluated_on = (describe_data(about)[1] if "data" in about else None for about in (record, results))
    lexicon = training_lexicon(config.vad_lexicon)
    towers = {"vision_name": _hub_name(config.vision_config), "text_name": _hub_name(config.text_config)}
    return ModelCard.from_template(
        _metadata(repository, record, results, [name for name in towers.values() if name], facts),
        template_path=str(template_path()),
        repository=repository,
        config=config,
        **towers,
        num_parameters=sum(
            math.prod(file.get_slice(name).get_shape())
            for name, file in stored_tensors(folder)
            if not name.startswith(LEXICON_TABLE)
        ),
        lexicon=lexicon,
        lexicon_file=_lexicon_file(lexicon) if lexicon else None,
        converted=record.get("converted"),
        training=_training(records, record),
        training_data=trained_on,
        results=results,
        data_name=evaluated_on,
        decoding=_decoding(results) if results else None,
        table=_table(results) if results else None,
    )


def write_model_card(
    folder: str | os.PathLike, repository: str | None = None, records: str | os.PathLike | None = None
) -> Path:
    """Writes the card of [`render_model_card`] to the folder's README.md."""
    write_text(Path(folder, CARD_FILE), str(render_model_card(folder, repository, records)))
    return Path(folder, CARD_FILE)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _hub_name(tower_config) -> str:
    name = getattr(tower_config, "_name_or_path", "")
    return name if is_hub_name(name) else ""


def _lexicon_file(lexicon: dict) -> str:
    """Returns a file name from which `VADLexicon.from_file` recognises the lexicon."""
    name, version = lexicon["name"], lexicon.get("version")
    if name == "NRC-VAD":
        return "NRC-VAD-Lexicon.txt" if version in ("1", "") else f"NRC-VAD-Lexicon-v{version}.txt"
    return "lexicon.csv" if name.startswith("Warriner") else f"{name}.txt"


def _metadata(repository: str, record: dict, results: dict, towers: list[str], facts: dict) -> ModelCardData:
    kind, data = describe_data(record) if "data" in record else ("", "")
    is_open = data == "embedded paintings"  # weights trained on other data carry the terms of that data
    return ModelCardData(
        language="en",
        license="apache-2.0" if is_open else "other",
        license_name=None if is_open else "research-only",
        license_link=None if is_open else license_link(repository),
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["sevlm", "art", "emotion", "affective-computing", "artemis", "vad"],
        datasets=["artemis"] if kind == "artemis" or "converted" in record else [data] if "/" in data else None,
        base_model=([AUTHORS_REPOSITORY] if "converted" in record else towers) or None,
        model_name=repository.split("/")[-1],
        eval_results=(eval_results(results) if results else []) or None,
        sevlm=facts,
    )


def _training(records: Path, record: dict) -> dict | None:
    """Returns the template's facts about the run, from `training.json` and the log; `None` without either."""
    state = _read(records / STATE_FILE)
    log: list[dict] = _read(records / LOG_FILE) or state.get("log_history") or []
    if not log and "data" not in record:
        return None
    arguments = record.get("arguments", {})
    rows = [(label, arguments[name]) for name, label in SETTINGS.items() if arguments.get(name) is not None]
    rows = [(label, f"{value:g}" if isinstance(value, float) else str(value)) for label, value in rows]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    accuracies = [entry["eval_accuracy"] for entry in log if entry.get("eval_accuracy") is not None]
    seconds = [entry["train_runtime"] for entry in log if "train_runtime" in entry]
    rows += [("last training loss", f"{losses[-1]:.3f}")] if losses else []
    rows += [("best accuracy in validation", f"{100 * max(accuracies):.1f} %")] if accuracies else []
    return {
        "epochs": max([entry.get("epoch", 0) for entry in log] + [state.get("epoch") or 0]),
        "steps": max([entry.get("step", 0) for entry in log] + [state.get("global_step") or 0]),
        "hours": seconds[-1] / 3600 if seconds else None,
        "rows": rows,
    }


def _decoding(results: dict) -> str:
    arguments, seeds = results["arguments"], len(results["seeds"])
    if arguments["num_candidates"] > 1:
        return f"the best of {arguments['num_candidates']} samples by alignment score"
    if arguments["do_sample"]:
        return "nucleus sampling" + (f", mean of {seeds} seeds" if seeds > 1 else "")
    return "greedy decoding"


def _table(results: dict) -> list[tuple[str, list[str]]]:
    """Returns the rows of the results table: headings, this model and, on ArtEmis, two systems of the paper."""
    known = [column for column, (name, _, _) in enumerate(METRICS) if results.get(name) is not None]
    rows = [("", [METRICS[column][1] for column in known])]
    rows.append(("this model", [f"{100 * results[METRICS[column][0]]:.1f}" for column in known]))
    if results["data"].get("annotations"):
        paper = PAPER_ROWS[results["data"]["version"]]
        for label, system in (("paper, baseline", "Baseline"), ("paper, SEVLM", "SEVLM")):
            rows.append((label, [f"{paper[system][column]:.1f}" for column in known]))
    return rows
