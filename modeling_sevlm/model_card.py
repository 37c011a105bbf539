# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The model card: the template `model_card.md` filled in with what a checkpoint folder says of itself.

    write_model_card("outputs/sevlm-artemis")       # writes README.md into the folder

Figures come from `evaluation_results.json` in the folder, which `evaluate_sevlm.py --update_model_card` puts there;
they also become the card's model-index (`EvalResult`). How the model was trained comes from `training.json` and the
log, which `train.py` and the converter leave. A folder with neither of the two files, such as a downloaded repository,
keeps the card that lies in it, if that card's metadata says that it speaks of the same weights and the same lexicon.
Never copied to the Hub.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from .checkpoint_sevlm import (
    CARD_FILE,
    card_facts,
    is_hub_name,
    license_link,
    read_facts,
    renamed_card,
    training_lexicon,
)
from .configuration_sevlm import SEVLMConfig


EVALUATION_FILE = "evaluation_results.json"
TRAINING_FILE = "training.json"
LOG_FILE = "training_log.json"
# Trainer's own record, in checkpoint folders.
STATE_FILE = "trainer_state.json"
AUTHORS_REPOSITORY = "jing5566/SEVLM"
# Figure in results.json, heading, metric type in the model-index.
METRICS = (
    ("accuracy", "ACC", "accuracy"),
    ("emotional_alignment", "EA", "emotional_alignment"),
    ("bleu_1", "B1", "bleu"),
    ("bleu_2", "B2", "bleu"),
    ("bleu_3", "B3", "bleu"),
    ("bleu_4", "B4", "bleu"),
    ("meteor", "METEOR", "meteor"),
    ("rouge_l", "ROUGE-L", "rouge"),
    ("unique", "Unique", "unique"),
)
# Table 1 of the paper, in percent, in the order of METRICS.
PAPER = {
    "v1": {
        "paper, baseline": (63.5, 58.9, 53.2, 29.2, 15.5, 8.4, 13.3, 29.9, 47.6),
        "paper, SEVLM": (65.6, 62.1, 54.2, 30.3, 16.4, 9.2, 13.9, 30.4, 62.0),
    },
    "v2": {
        "paper, baseline": (40.7, 38.7, 51.2, 29.4, 16.4, 9.2, 13.7, 29.9, 61.2),
        "paper, SEVLM": (44.2, 42.6, 51.8, 30.4, 17.2, 10.1, 13.9, 30.4, 63.6),
    },
}
# Names in `training.json`, as the card calls them.
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
    """`model_card.md` beside the packages, or where an installation puts it."""
    for folder in (Path(__file__).resolve().parent.parent, Path(sys.prefix, "share", "sevlm")):
        if (folder / "model_card.md").is_file():
            return folder / "model_card.md"
    raise FileNotFoundError("The template model_card.md is missing; it lies beside the package modeling_sevlm.")


def describe_data(results: dict) -> tuple[str, str]:
    """Type and name of the data set that a `results.json` or a `training.json` is about. Of a folder on this machine
    only the last part is told."""
    data = results["data"]
    if data.get("annotations"):
        return "artemis", f"ArtEmis {data['version']}"
    if data.get("dataset"):
        name = str(data["dataset"])
        return "custom", name if is_hub_name(name) else Path(name).name
    return "custom", "embedded paintings"


def eval_results(results: dict) -> list[EvalResult]:
    """The figures of a `results.json` as entries of a model-index, in percent."""
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
    """The card of a checkpoint folder.

    Args:
        repository: the name it will have on the Hub; the folder's own by default.
        records: the folder with the records of training and evaluation, or with a card of the same model; `folder` by
            default.
    """
    folder = Path(folder)
    records = Path(folder if records is None else records)
    repository, facts = repository or folder.name, card_facts(folder)
    if not any((records / name).is_file() for name in (EVALUATION_FILE, TRAINING_FILE)):
        if read_facts(records / CARD_FILE) == facts:
            return ModelCard(renamed_card(records / CARD_FILE, repository))
    config = SEVLMConfig.from_pretrained(folder)
    results = _read(records / EVALUATION_FILE)
    record = _read(records / TRAINING_FILE)
    if record is None and (records / STATE_FILE).is_file():
        # A checkpoint of a run lies in the run's folder.
        record = _read(records.parent / TRAINING_FILE)
    record = record or {}
    model_name = repository.split("/")[-1]
    known = [heading for name, heading, _ in METRICS if results and results.get(name) is not None]
    towers = {name: _tower_name(getattr(config, f"{name}_config")) for name in ("vision", "text")}
    license = _license(record)
    lexicon = training_lexicon(config.vad_lexicon)
    version = results["data"].get("version") if results and results["data"].get("annotations") else None
    return ModelCard.from_template(
        _metadata(repository, record, towers, license, results, facts),
        template_path=str(template_path()),
        model_name=model_name,
        repository=repository,
        emotions=config.emotions,
        vision_type=config.vision_config.model_type,
        vision_name=towers["vision"],
        text_name=towers["text"],
        decoder_layers=config.text_config.n_layer,
        decoder_width=config.text_config.n_embd,
        num_parameters=_count_parameters(folder),
        takes_pictures=config.use_vision_tower,
        use_vad_features=config.use_vad_features,
        use_vad_head=config.use_vad_head,
        contrastive_negatives=config.contrastive_negatives,
        loss_weights=[
            f"{getattr(config, f'{name}_loss_weight'):g}" for name in ("language", "emotion", "contrastive", "label")
        ],
        lexicon=lexicon,
        lexicon_left_out=bool(lexicon) and not config.vad_lexicon.get("table"),
        lexicon_in_its_place=config.vad_lexicon if lexicon and "trained_with" in config.vad_lexicon else None,
        lexicon_file=_lexicon_file(lexicon) if lexicon else None,
        license=license,
        converted=record.get("converted"),
        authors_repository=AUTHORS_REPOSITORY,
        training=_training(records, record),
        training_data=describe_data(record)[1] if "data" in record else None,
        results=results,
        data_name=describe_data(results)[1] if results else None,
        decoding=_decoding(results) if results else None,
        headings=known,
        row=[f"{100 * results[name]:.1f}" for name, heading, _ in METRICS if heading in known],
        paper_data=f"ArtEmis {version}",
        paper_rows=[
            (system, [f"{value:.1f}" for (_, heading, _), value in zip(METRICS, row, strict=True) if heading in known])
            for system, row in PAPER.get(version, {}).items()
        ],
    )


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _tower_name(config) -> str:
    name = getattr(config, "_name_or_path", "")
    return name if name and is_hub_name(name) else ""


def _lexicon_file(lexicon: dict) -> str:
    """A file name by which `VADLexicon.from_file` knows the lexicon again."""
    name, version = lexicon["name"], lexicon.get("version")
    if name == "NRC-VAD":
        return "NRC-VAD-Lexicon.txt" if version in ("1", "") else f"NRC-VAD-Lexicon-v{version}.txt"
    # One that it does not know by its columns is called like its file.
    return "lexicon.csv" if name.startswith("Warriner") else f"{name}.txt"


def _license(record: dict) -> str:
    """`apache-2.0` for what was trained on the project's own data. Everything else carries terms of data that are not
    ours, unknown ones included, and the Hub calls that `other`."""
    is_ours = "data" in record and describe_data(record)[1] == "embedded paintings"
    return "apache-2.0" if is_ours else "other"


def _metadata(
    repository: str, record: dict, towers: dict, license: str, results: dict | None, facts: dict
) -> ModelCardData:
    kind, data = describe_data(record) if "data" in record else (None, "")
    datasets = ["artemis"] if kind == "artemis" or "converted" in record else [data] if "/" in data else None
    base = [AUTHORS_REPOSITORY] if "converted" in record else [tower for tower in towers.values() if tower]
    terms = {"license_name": "research-only", "license_link": license_link(repository)} if license == "other" else {}
    return ModelCardData(
        language="en",
        license=license,
        **terms,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["sevlm", "art", "emotion", "affective-computing", "artemis", "vad"],
        datasets=datasets,
        base_model=base or None,
        model_name=repository.split("/")[-1],
        eval_results=(eval_results(results) or None) if results else None,
        sevlm=facts,
    )


def _training(records: Path, record: dict) -> dict | None:
    """What the template says of the run, from `training.json` and from the log; `None` without either."""
    state = _read(records / STATE_FILE) or {}
    log = _read(records / LOG_FILE) or state.get("log_history")
    if not log and "data" not in record:
        return None
    log = log or []
    arguments = record.get("arguments", {})
    rows = [(text, _plain(arguments[name])) for name, text in SETTINGS.items() if arguments.get(name) is not None]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    accuracies = [entry["eval_accuracy"] for entry in log if entry.get("eval_accuracy") is not None]
    rows += [("last training loss", f"{losses[-1]:.3f}")] if losses else []
    rows += [("best accuracy in validation", f"{100 * max(accuracies):.1f} %")] if accuracies else []
    seconds = [entry["train_runtime"] for entry in log if "train_runtime" in entry]
    return {
        "epochs": max([entry.get("epoch", 0) for entry in log] + [state.get("epoch") or 0]),
        "steps": max([entry.get("step", 0) for entry in log] + [state.get("global_step") or 0]),
        "hours": seconds[-1] / 3600 if seconds else None,
        "rows": rows,
    }


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def write_model_card(
    folder: str | os.PathLike, repository: str | None = None, records: str | os.PathLike | None = None
) -> Path:
    """Write the card of [`render_model_card`] as the folder's README.md."""
    path = Path(folder, CARD_FILE)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(str(render_model_card(folder, repository, records)), encoding="utf-8")
    os.replace(temporary, path)
    return path


def _decoding(results: dict) -> str:
    arguments = results["arguments"]
    if arguments["num_candidates"] > 1:
        return f"the best of {arguments['num_candidates']} samples by alignment score"
    seeds = len(results["seeds"])
    if arguments["do_sample"]:
        return "nucleus sampling" + (f", mean of {seeds} seeds" if seeds > 1 else "")
    return "greedy decoding"


def _count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files, without the lexicon's table."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is no dict)
                if not name.startswith("vad_lookup."):
                    size = 1
                    for length in tensors.get_slice(name).get_shape():
                        size *= length
                    total += size
    return total
