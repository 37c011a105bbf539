"""The output folder of training. Files with final names are complete, even after an interruption.

A checkpoint and the final model are written in `OUTPUT_DIR/saving/` and renamed when every byte is on the disk.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open


STAGING = "saving"
STATE_FILE = "trainer_state.json"
# Files for a bit-identical resume. Weights may be sharded, and each process has its own random state. FSDP shards the
# optimizer; DeepSpeed keeps optimizer and scheduler in a folder global_step*.
NEEDED: dict[str, tuple[str, ...]] = {
    name: (name,) for name in ("config.json", "model*.safetensors", STATE_FILE, "rng_state*.pth")
}
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


def find_checkpoint(folder: str, resume: str | None, report: Callable[[str], None]) -> str | None:
    """Returns the checkpoint to resume from, or `None` for a new run. `resume` is a checkpoint, "true" (the newest
    complete one of `folder`) or `None`. Raises `ValueError` if it is incomplete or `folder` has later checkpoints."""
    complete = []
    for checkpoint in checkpoints(folder):
        if problem := defect(checkpoint):
            report(f"{checkpoint} is not complete ({problem}) and is ignored.")
        else:
            complete.append(checkpoint)
    if resume is not None and resume.lower() == "true":
        resume = str(complete[-1]) if complete else None
        report(f"Training continues from {resume}." if resume else f"No checkpoint in {folder} yet: training starts.")
    elif resume is not None and (problem := defect(resume)):
        raise ValueError(f"training cannot resume from {resume}: {problem}. Use --resume_from_checkpoint true.")
    step = json.loads(Path(resume, STATE_FILE).read_text(encoding="utf-8"))["global_step"] if resume else 0
    # A later resume would pick the other run's checkpoint.
    if later := [str(checkpoint) for checkpoint in complete if int(checkpoint.name[11:]) > step]:
        problem = f"{folder} holds checkpoints of an earlier run: {', '.join(later)}"
        raise ValueError(f"{problem}. Use --resume_from_checkpoint true, delete them, or use another --output_dir.")
    return resume


def check_writable(folder: str | os.PathLike, needed: int = 4096) -> None:
    """Raises [`SavingError`] if `folder` (or its first existing parent) is read-only or lacks `needed` free bytes."""
    try:
        place = Path(folder).absolute()
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
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
    never next to another model's configuration."""
    weights = "model*.safetensors*"
    _sync(*staged.iterdir(), staged)
    for old in folder.glob(weights) if any(staged.glob(weights)) else ():
        old.unlink()
    for file in sorted(staged.iterdir(), key=lambda file: file.match(weights)):
        os.replace(file, folder / file.name)
    _sync(folder)
    clear_staging(folder)


def remove_old_checkpoints(newest: Path, limit: int | None, best: str | None) -> None:
    """Keeps `limit` checkpoints: `newest`, `best` and the newest others; all of them if `limit` is `None` or 0."""
    folder, found = newest.parent, checkpoints(newest.parent)
    kept = {newest.resolve(), Path(best or newest).resolve()}
    others = [path for path in found if path.resolve() not in kept]
    for path in others[: max(0, len(found) - max(limit, len(kept)))] if limit else []:
        # Renamed first, because a partly deleted checkpoint could look complete.
        (folder / STAGING).mkdir(exist_ok=True)
        os.rename(path, folder / STAGING / f"old-{path.name}")
    clear_staging(folder)


def _sync(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
