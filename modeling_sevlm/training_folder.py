# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The folder of a training run, in which whatever has its final name is whole, whenever the run is stopped.

A checkpoint and the final model are written in `OUTPUT_DIR/saving/` and renamed when every byte is on the disk; a
checkpoint that is to go is renamed back before it is deleted. Which checkpoint is newer is told by its step, never by
a clock. Never copied to the Hub.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path

from safetensors import safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


STAGING = "saving"
STATE_FILE = "trainer_state.json"
# What a run needs to go on with the same bits, and the patterns of its files; the later ones are those of runs that
# divide their optimizer among devices.
NEEDED = {
    "config.json": ["config.json"],
    "model.safetensors": ["model*.safetensors"],
    STATE_FILE: [STATE_FILE],
    "optimizer.pt": ["optimizer*", "global_step*"],
    "scheduler.pt": ["scheduler.pt", "global_step*"],
    "rng_state.pth": ["rng_state*.pth"],
}


class SavingError(OSError):
    """A checkpoint or model that could not be written; nothing under a final name was touched."""


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The checkpoints in `folder`, whole or not, the oldest first."""
    found = Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if os.path.isdir(folder) else ()
    return sorted((path for path in found if _is_numbered(path) and path.is_dir()), key=step_of)


def _is_numbered(path: Path) -> bool:
    return path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))


def defect(checkpoint: str | os.PathLike) -> str | None:
    """Why no run can go on from this folder: what it lacks, or which of its files is cut short. `None`: it can."""
    checkpoint = Path(checkpoint)
    if not checkpoint.is_dir():
        return "there is no such folder"
    lacking = [name for name, patterns in NEEDED.items() if not any(any(checkpoint.glob(p)) for p in patterns)]
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    for file in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        if not _is_readable(file):
            return f"{file.name} is cut short or damaged"
    return None


def _is_readable(file: Path) -> bool:
    """Whether a file's end is where its beginning says. Bytes in between are not looked at."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):
                return True
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        return zipfile.is_zipfile(file) if file.suffix in (".pt", ".pth") else True
    except Exception:  # whatever the readers say of damaged bytes
        return False


def check_writable(folder: str | os.PathLike, needed: int = 4096) -> None:
    """Try to write a little there, so that a run does not find out after an hour. No folder is made: where there is
    none yet, the one that it would be made in is tried.

    Args:
        needed: bytes that have to be free.

    Raises:
        SavingError: if nothing can be written, or less than that.
    """
    try:
        place = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(bytes(4096))
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise SavingError(
            f"{folder} cannot be written ({error.strerror or error}): name a folder that can with --output_dir, or "
            "change its permissions or free space."
        ) from error
    if free < needed:
        raise SavingError(
            f"{folder} has {_size(free)} free and a checkpoint takes about {_size(needed)}: free space there, or name "
            "a folder on another disk with --output_dir."
        )


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def free_space(folder: str | os.PathLike) -> str:
    return _size(shutil.disk_usage(folder).free)


def clear_staging(folder: str | os.PathLike) -> None:
    """Remove what a stopped run was writing."""
    shutil.rmtree(Path(folder, STAGING), ignore_errors=True)


def publish_checkpoint(staged: Path, final: Path) -> None:
    """Give a complete folder its name; one that has it already makes room."""
    _to_disk(staged)
    if final.exists():
        os.rename(final, staged.with_name(f"replaced-{final.name}"))
    os.rename(staged, final)
    _sync(final.parent)
    clear_staging(final.parent)


def publish_model(staged: Path, folder: Path) -> None:
    """Move the files of a complete model into `folder`. Weights come last and old ones go first, so that weights never
    lie beside the configuration or the tokenizer of others."""
    _to_disk(staged)
    files = sorted((path for path in staged.rglob("*") if path.is_file()), key=_is_weights)
    for old in filter(_is_weights, folder.iterdir()):
        if any(map(_is_weights, files)):
            old.unlink()
    for file in files:
        target = folder / file.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    _sync(folder)
    clear_staging(folder)


def _is_weights(path: Path) -> bool:
    return path.name.startswith("model") and path.name.endswith((".safetensors", ".safetensors.index.json"))


def remove_old_checkpoints(folder: Path, limit: int | None, keep: Collection[Path]) -> None:
    """Leave `limit` checkpoints, the newest ones and those of `keep`; `None` or 0: all."""
    found = checkpoints(folder)
    kept = {path.resolve() for path in keep}
    spare = [path for path in found if path.resolve() not in kept]
    for path in spare[: max(0, len(found) - max(limit, len(kept)))] if limit else []:
        # Half deleted under its name it would look like a checkpoint.
        staging = folder / STAGING
        staging.mkdir(exist_ok=True)
        os.rename(path, staging / f"old-{path.name}")
    clear_staging(folder)


def _to_disk(folder: Path) -> None:
    """A name that survives a power failure is worth little if the bytes behind it do not."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
