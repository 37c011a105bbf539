"""The output folder of training. Files with final names are complete, even after an interruption.

A checkpoint and the final model are written in `OUTPUT_DIR/saving/` and renamed when every byte is on the disk.
"""

import contextlib
import filecmp
import itertools
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from safetensors import safe_open

from .card_sevlm import CARD_FILE, read_facts


EVALUATION_FILE, TRAINING_FILE, LOG_FILE = "evaluation_results.json", "training.json", "training_log.json"
# Weights and configuration of a model, or of an adapter.
STAGING, WEIGHTS, SHEETS = "saving", "*model*.safetensors*", "sheets"
CONFIGS = ("config.json", "adapter_config.json")
# The reports of the image classifier and of the judge.
REPORTS = ("emotions-*.csv", "confusion_matrix.png")
# What training writes, except checkpoints. It leaves all other files alone.
WRITTEN = ("*.safetensors*", "*.bin", "*.json", "*.py", "*.tsv", "*.jinja", CARD_FILE, SHEETS, STAGING, *REPORTS)
STATE_FILE = "trainer_state.json"
# Files for a bit-identical resume. Weights may be sharded, and each process has its own random state. FSDP shards the
# optimizer; DeepSpeed keeps optimizer and scheduler in a folder global_step*.
NEEDED: dict[str, tuple[str, ...]] = {name: (name,) for name in (STATE_FILE, "rng_state*.pth")}
NEEDED |= {"config.json": CONFIGS, "model.safetensors": ("*model*.safetensors",)}
NEEDED |= {"optimizer.pt": ("optimizer*", "global_step*"), "scheduler.pt": ("scheduler.pt", "global_step*")}


class SavingError(OSError):
    """A checkpoint or a model cannot be written. No file with a final name has changed."""


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """Lists the checkpoints in `folder`, complete or not, by step."""
    found = (path for path in Path(folder).glob("checkpoint-*") if path.name[11:].isdecimal() and path.is_dir())
    return sorted(found, key=lambda path: int(path.name[11:]))


def last_checkpoint(folder: str | os.PathLike) -> str:
    found = checkpoints(folder)
    return f"the last checkpoint is {found[-1]}" if found else f"there is no checkpoint in {folder}"


def defect(checkpoint: str | os.PathLike) -> str | None:
    """Says which file of a checkpoint is missing or cut short, or `None` if training can resume from it."""
    checkpoint = Path(checkpoint)
    if missing := [name for name, patterns in NEEDED.items() if not any(any(checkpoint.glob(p)) for p in patterns)]:
        return f"{', '.join(missing).replace('*', '')} is missing"
    damaged = [path.name for path in sorted(checkpoint.iterdir()) if path.is_file() and not _is_readable(path)]
    return f"{damaged[0]} is cut short or damaged" if damaged else None


def _is_readable(file: Path) -> bool:
    try:
        if file.suffix == ".safetensors":
            safe_open(file, "pt")
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        return zipfile.is_zipfile(file) if file.suffix in (".pt", ".pth") else True
    except Exception:  # damaged bytes raise errors of many kinds
        return False


def find_checkpoint(
    folder: str | os.PathLike, resume: str | None, report: Callable[[str], None], overwrite: bool = False
) -> str | None:
    """Returns the checkpoint to resume from, or `None` for a new run. `resume` is a checkpoint, "true" (the newest
    complete one of `folder`) or `None`.

    Raises `ValueError` if the checkpoint is incomplete, or if the run would replace something in `folder` that it does
    not continue: checkpoints (complete or not) or a model. With `overwrite`, [`clear_folder`] removes these instead.
    """
    found = {checkpoint: defect(checkpoint) for checkpoint in checkpoints(folder)}
    complete = [checkpoint for checkpoint, problem in found.items() if problem is None]
    continues = resume is not None and resume.lower() == "true"
    if continues:
        for checkpoint, problem in found.items():
            if problem is not None:
                report(f"{checkpoint} is not complete ({problem}) and is ignored.")
        resume = str(complete[-1]) if complete else None
    elif resume is not None and (problem := defect(resume)):
        raise ValueError(f"training cannot resume from {resume}: {problem}. Use --resume_from_checkpoint true.")
    if _is_in(folder, resume):
        # `clear_folder` renames the incomplete ones.
        in_the_way = [path for path in _later_checkpoints(folder, resume) if path in complete]
    else:
        # An interrupted run that has saved nothing yet starts again.
        restarts = continues and Path(folder, TRAINING_FILE).is_file() and not any(Path(folder).glob(WEIGHTS))
        in_the_way = _later_checkpoints(folder, resume) + ([] if restarts else _existing_files(folder))
    if in_the_way and not overwrite:
        _refuse(folder, in_the_way, "--resume_from_checkpoint true to continue it, " if complete else "")
    if continues:
        report(f"Training continues from {resume}." if resume else f"No checkpoint in {folder} yet: training starts.")
    return resume


def check_free(folder: str | os.PathLike, overwrite: bool = False) -> None:
    """Raises `ValueError` if a saved model would replace files in `folder`, unless `overwrite`."""
    if not overwrite and (found := checkpoints(folder) + _existing_files(folder)):
        _refuse(folder, found)


def check_later(folder: str | os.PathLike, resume: str | bool | None) -> None:
    """Raises `ValueError` if a run from the checkpoint `resume` would replace checkpoints in `folder`."""
    if found := _later_checkpoints(folder, resume):
        _refuse(folder, found)


def _refuse(folder: str | os.PathLike, found: Sequence[Path], more: str = "") -> NoReturn:
    names = ", ".join(path.name for path in found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    remedy = f"Use {more}--overwrite_output_dir to replace it, or another --output_dir."
    raise ValueError(f"{folder} holds a model or an earlier run: {names}. {remedy}")


def _existing_files(folder: str | os.PathLike) -> list[Path]:
    return list(dict.fromkeys(path for pattern in WRITTEN for path in sorted(Path(folder).glob(pattern))))


def clear_folder(folder: str | os.PathLike, resume: str | bool | None, overwrite: bool) -> None:
    """Makes room for a run from the checkpoint `resume`, before it writes. Removes what [`find_checkpoint`] allowed to
    replace; without `overwrite` that is nothing, and later checkpoints, which are incomplete, get another name."""
    folder, later = Path(folder), _later_checkpoints(folder, resume)
    if overwrite:
        outdated = (WEIGHTS, *CONFIGS, SHEETS, LOG_FILE, *REPORTS)
        _remove(folder, [*later, *(path for pattern in outdated for path in folder.glob(pattern))])
        _remove_records(folder)
        return
    for checkpoint in later:
        free = (checkpoint.with_name(f"incomplete-{checkpoint.name}-{i}") for i in itertools.count(1))
        os.rename(checkpoint, next(path for path in free if not path.exists()))


def _remove_records(folder: Path) -> None:
    """Removes the figures and the model card, which describe weights that are replaced."""
    (folder / EVALUATION_FILE).unlink(missing_ok=True)
    if read_facts(folder / CARD_FILE):  # not another program's file
        (folder / CARD_FILE).unlink()


def _is_in(folder: str | os.PathLike, resume: str | None) -> bool:
    return resume is not None and Path(resume).resolve().parent == Path(folder).resolve()


def _later_checkpoints(folder: str | os.PathLike, resume: str | bool | None) -> list[Path]:
    """Lists the checkpoints in `folder`, newest first, that are not a part of the run until `resume`; `True` is the
    newest one."""
    if resume is True:
        return []
    step = -1
    if resume and _is_in(folder, resume):
        step = json.loads(Path(resume, STATE_FILE).read_text(encoding="utf-8"))["global_step"]
    return [path for path in reversed(checkpoints(folder)) if int(path.name[11:]) > step]


def check_writable(folder: str | os.PathLike, needed: int = 4096) -> None:
    """Raises [`SavingError`] if `folder` (or its first existing parent) is read-only or lacks `needed` free bytes."""
    try:
        place = Path(folder).absolute()
        while not place.exists():
            place = place.parent
        with tempfile.NamedTemporaryFile(dir=place, buffering=0) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise SavingError(f"{folder} cannot be written ({error.strerror}). Use another --output_dir.") from error
    if shutil.disk_usage(place).free < needed:
        size = f"{free_space(place)} free, and a checkpoint takes about {needed / 1e9:.2f} GB"
        raise SavingError(f"{folder} has {size}. Free more, or use an --output_dir on another disk.")


def free_space(folder: str | os.PathLike) -> str:
    return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB"


def clear_staging(folder: str | os.PathLike) -> None:
    shutil.rmtree(Path(folder, STAGING), ignore_errors=True)


def publish_checkpoint(staged: Path, final: Path) -> None:
    """Renames a complete checkpoint and replaces one of the same name."""
    _sync(*staged.rglob("*"), staged)
    if final.exists():
        os.rename(final, staged.with_name(f"replaced-{final.name}"))
    os.rename(staged, final)
    _sync(final.parent)
    clear_staging(final.parent)


def publish_model(staged: Path, folder: Path) -> None:
    """Moves the files of a complete model into `folder`. Old weights go first and new weights come last: weights are
    never next to another model's configuration or figures."""
    _sync(*staged.iterdir(), staged)
    old, new = list(folder.glob(WEIGHTS)), [file.name for file in staged.glob(WEIGHTS)]
    if new and filecmp.cmpfiles(staged, folder, new, shallow=False)[0] != new:
        _remove_records(folder)
    for file in old if new else ():
        file.unlink()
    for file in sorted(staged.iterdir(), key=lambda file: file.match(WEIGHTS)):
        os.replace(file, folder / file.name)
    _sync(folder)
    clear_staging(folder)


def remove_old_checkpoints(newest: Path, limit: int | None, best: Sequence[Path]) -> None:
    """Keeps `newest` and all of `best`, and the newest others up to `limit` checkpoints in total; all of them if
    `limit` is `None` or 0."""
    folder, found = newest.parent, checkpoints(newest.parent)
    kept = {path.resolve() for path in (newest, *best) if path.exists()}
    others = [path for path in found if path.resolve() not in kept]
    _remove(folder, others[: max(0, len(found) - max(limit, len(kept)))] if limit else [])


def _remove(folder: Path, paths: Sequence[Path]) -> None:
    for path in paths:
        # Renamed first, because a partly deleted checkpoint could look complete.
        (folder / STAGING).mkdir(exist_ok=True)
        os.replace(path, folder / STAGING / f"old-{path.name}")
    clear_staging(folder)


def _sync(*paths: Path) -> None:
    for path in paths:
        # Windows can sync neither a folder nor a file that is open for reading only.
        is_folder = path.is_dir()
        with contextlib.suppress(OSError if is_folder else PermissionError):
            descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
