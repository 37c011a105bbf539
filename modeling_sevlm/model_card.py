"""Writes the model card of a checkpoint folder from the template `model_card.md`.

    write_model_card("outputs/sevlm-artemis")       # writes README.md into the folder

Results come from `evaluation_results.json` (`evaluate_sevlm.py --update_model_card`), the training section from
`training.json` and the log. A folder without them keeps its card if that describes the same weights and lexicon.
"""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from processing.files import write_text

from .adapters import ADAPTER_CONFIG, load_config
from .card_sevlm import (
    CARD_FILE,
    LEXICON_TABLE,
    describe_weights,
    is_hub_name,
    license_link,
    read_facts,
    renamed_card,
    stored_tensors,
    training_lexicon,
)
from .paper_results import METRICS, PAPER_ROWS
from .training_folder import EVALUATION_FILE, LOG_FILE, STATE_FILE, TRAINING_FILE


Folder = str | os.PathLike
EMBEDDED = "embedded paintings"
TEMPLATES = (Path(__file__).resolve().parents[1] / "model_card.md", Path(sys.prefix, "share/sevlm/model_card.md"))
SETTINGS = {  # argument in `training.json`: label in the card
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


def render_model_card(folder: Folder, repository: str | None = None, records: Folder | None = None) -> ModelCard:
    """Renders the card of a checkpoint folder for `repository`, a name on the Hub (default: the folder's name).
    `records` is the folder of these files, or of a card of the same model (default: `folder`)."""
    folder, records = Path(folder), Path(records or folder)
    repository, adapter = repository or folder.name, _read(folder / ADAPTER_CONFIG)
    # An adapter that is about to be published names a model on the Hub; the original may name a folder.
    original = _read(records / ADAPTER_CONFIG).get("base_model_name_or_path") or ""
    config = load_config(records if is_hub_name(original) or os.path.isdir(original) else folder)
    facts = describe_weights(folder, config.vad_lexicon)
    if adapter:
        facts["includes_vad_lexicon"] = False
    results, record = _read(records / EVALUATION_FILE), _read(records / TRAINING_FILE)
    if not results and not record and read_facts(records / CARD_FILE) == facts:
        return ModelCard(renamed_card(records / CARD_FILE, repository))
    if not record and (records / STATE_FILE).is_file():  # a checkpoint in the folder of its run
        record = _read(records.parent / TRAINING_FILE)
    names = (config.vision_config.name_or_path, config.text_config.name_or_path)
    vision_name, text_name = (name if is_hub_name(name) else None for name in names)
    lexicon = training_lexicon(config.vad_lexicon)
    training_data = data_name(record)
    # Weights trained on other data carry the terms of that data.
    base = record.get("base_model", {})
    is_open = training_data == EMBEDDED and (base.get("data") == EMBEDDED if base else not adapter)
    is_artemis = "converted" in record or record.get("data", {}).get("annotations")
    datasets = ["artemis"] if is_artemis else [training_data] if "/" in (training_data or "") else None
    base_model = ["jing5566/SEVLM"] if "converted" in record else [name for name in (vision_name, text_name) if name]
    if base or adapter:
        name = adapter.get("base_model_name_or_path") or base["name"]
        base_model = [name] if is_hub_name(name) else []
        link = f"[{name}](https://huggingface.co/{name})" if base_model else f"*{Path(name).name}*"
        base |= {"link": link}
    return ModelCard.from_template(
        ModelCardData(
            language="en",
            license="apache-2.0" if is_open else "other",
            license_name=None if is_open else "research-only",
            license_link=None if is_open else license_link(repository),
            library_name="peft" if adapter else "transformers",
            pipeline_tag="image-text-to-text",
            tags=["sevlm", "art", "emotion", "affective-computing", "artemis", "vad"],
            datasets=datasets,
            base_model=base_model or None,
            base_model_relation="adapter" if adapter else None,
            model_name=repository.split("/")[-1],
            eval_results=_eval_results(results) or None,
            sevlm=facts,
        ),
        template_path=str(next(path for path in TEMPLATES if path.is_file())),
        repository=repository,
        config=config,
        vision_name=vision_name,
        text_name=text_name,
        num_parameters=sum(
            math.prod(file.get_slice(name).get_shape())
            for name, file in stored_tensors(folder)
            if not name.startswith(LEXICON_TABLE)
        ),
        adapter=adapter,
        base=base,
        lexicon=lexicon,
        lexicon_file=_lexicon_file(lexicon) if lexicon else None,
        converted=record.get("converted"),
        training=_training(records, record),
        training_data=training_data,
        results=results,
        data_name=data_name(results),
        table=_table(results),
    )


def write_model_card(folder: Folder, repository: str | None = None, records: Folder | None = None) -> None:
    """Writes the card of [`render_model_card`] to the folder's README.md."""
    write_text(Path(folder, CARD_FILE), str(render_model_card(folder, repository, records)))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def data_name(record: dict) -> str | None:
    """Returns the name of the dataset in a `results.json` or `training.json`, without the path of a local folder."""
    if not (data := record.get("data")):
        return None
    if data.get("annotations"):
        return f"ArtEmis {data['version']}"
    name = data.get("dataset") or EMBEDDED
    return name if is_hub_name(name) else Path(name).name


def _lexicon_file(lexicon: dict) -> str:
    """Returns a file name from which `VADLexicon.from_file` recognises the lexicon."""
    name, version = lexicon["name"], lexicon.get("version")
    if name == "NRC-VAD":
        return "NRC-VAD-Lexicon.txt" if version in ("1", "") else f"NRC-VAD-Lexicon-v{version}.txt"
    return "lexicon.csv" if name.startswith("Warriner") else f"{name}.txt"


def _training(records: Path, record: dict) -> dict | None:
    """Returns the template's facts about the run, from `training.json` and the log; `None` without either."""
    state = _read(records / STATE_FILE)
    log: list[dict] = _read(records / LOG_FILE) or state.get("log_history") or []
    if not log and "data" not in record:
        return None
    arguments = record.get("arguments", {})
    rows = [(label, arguments[name]) for name, label in SETTINGS.items() if arguments.get(name) is not None]
    rows = [(label, f"{value:g}" if isinstance(value, float) else str(value)) for label, value in rows]
    losses, accuracies, seconds = (
        [entry[name] for entry in log if entry.get(name) is not None]
        for name in ("loss", "eval_accuracy", "train_runtime")
    )
    rows += [("last training loss", f"{losses[-1]:.3f}")] if losses else []
    rows += [("best accuracy in validation", f"{100 * max(accuracies):.1f} %")] if accuracies else []
    return {
        "epochs": max([entry.get("epoch", 0) for entry in log] + [state.get("epoch") or 0]),
        "steps": max([entry.get("step", 0) for entry in log] + [state.get("global_step") or 0]),
        "hours": seconds[-1] / 3600 if seconds else None,
        "rows": rows,
    }


def _eval_results(results: dict) -> list[EvalResult]:
    """Returns the metrics of a `results.json` as entries of a model-index, in percent."""
    return [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Emotion and explanation",
            dataset_type="artemis" if results["data"].get("annotations") else "custom",
            dataset_name=data_name(results),
            dataset_split=results["arguments"]["split"],
            metric_type=metric_type,
            metric_name=heading,
            metric_value=round(100 * results[name], 2),
        )
        for name, heading, metric_type in METRICS
        if results.get(name) is not None
    ]


def _table(results: dict) -> list[tuple[str, list[str]]]:
    """Returns the rows of the results table: headings, this model and, on ArtEmis, two systems of the paper."""
    known = [(column, *metric) for column, metric in enumerate(METRICS) if results.get(metric[0]) is not None]
    rows = [("", [heading for _, _, heading, _ in known])]
    rows.append(("this model", [f"{100 * results[name]:.1f}" for _, name, _, _ in known]))
    if results.get("data", {}).get("annotations"):
        for label, system in (("paper, baseline", "Baseline"), ("paper, SEVLM", "SEVLM")):
            paper = PAPER_ROWS[results["data"]["version"]][system]
            rows.append((label, [f"{paper[column]:.1f}" for column, *_ in known]))
    return rows
