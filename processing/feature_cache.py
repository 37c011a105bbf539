"""Caches the patch features of a frozen vision tower: computed once per image, then read from memory-mapped files.

    train, validation = cache_features(model, processor, [data["train"], data["validation"]], "cache/")
    pairs = SentencePairs(data["train"], features=train)      # its items hold features: no image is decoded
    model.generate(image_features=validation.batch([3, 1]))

The key of an image is the SHA-256 of its encoded bytes. The folder's name depends on everything else that changes
features: the tower's configuration and weights, the preprocessing, the dtype. It does not depend on library versions:
use a new directory if an upgrade decodes or resizes images differently.

A shard is a safetensors file named after its own SHA-256. It gets this name when it is complete, so killed runs, full
disks and concurrent runs leave only complete shards. The images of a damaged shard are encoded again.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets.utils.file_utils import xopen
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .image_column import ImageColumn


try:
    import fcntl
except ImportError:  # Windows, which does not remove open files
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

Encode = Callable[[torch.Tensor], torch.Tensor]
CACHE_DTYPES = ["float16", "bfloat16", "float32"]
FORMAT = 2  # increment it when the preparation of images or the layout of shards changes
# Configuration fields that do not change the features, or that the hash of the weights covers (dtype).
_NO_EFFECT = ("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version")


def cache_features(
    model,
    processor,
    splits: Sequence[datasets.Dataset],
    directory: str | os.PathLike,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    num_workers: int = 0,
) -> list["CachedFeatures"]:
    """Returns the patch features of every image of `splits`, one [`CachedFeatures`] per split.

    Encodes the images that the directory lacks on the model's device. Call it on all processes: they share the work.

    Args:
        dtype: "float16", "bfloat16" or "float32", in which features are stored and returned.
        num_workers: processes that decode and prepare images (0: this process).

    Raises:
        ValueError: the model has no tower, or one in training mode; features exceed the range of `dtype`.
        OSError: an image cannot be read, or a shard cannot be written (for example to a full disk).
        RuntimeError: an image changed while it was read.
    """
    if model.vision_tower is None or model.vision_tower.training:
        raise ValueError("Caching needs a vision tower in evaluation mode: call `model.freeze_vision_tower()`.")

    @torch.no_grad()
    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        return model.encode_images(pixel_values.to(model.device))

    cache = FeatureCache(directory, fingerprint(model.vision_tower, processor.image_processor), dtype=dtype)
    return [cache.fill(data, processor, encode, batch_size=batch_size, num_workers=num_workers) for data in splits]


def fingerprint(tower: PreTrainedModel, image_processor) -> str:
    """Returns 64 hexadecimal digits for the tower (class, configuration, weights) and the preprocessing."""
    digest = hashlib.sha256()
    config = {name: value for name, value in tower.config.to_dict().items() if name not in _NO_EFFECT}
    for part in (type(tower).__name__, config, image_processor.to_dict()):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
    for name, tensor in sorted(tower.state_dict().items()):
        if not name.startswith(("pooler.", "head.")):  # unused, and random if the checkpoint lacks them
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """Stores features `(K, d)` by image, in a subfolder of `directory` per fingerprint and dtype. Can be pickled.

    A killed run loses at most one shard, that is, `shard_bytes` of features.
    """

    def __init__(
        self, directory: str | os.PathLike, fingerprint: str, *, dtype: str = "float16", shard_bytes: int = 2**27
    ):
        if dtype not in CACHE_DTYPES:
            raise ValueError(f"The features' dtype is {dtype!r}. Use {' or '.join(CACHE_DTYPES)}.")
        name = hashlib.sha256(f"{FORMAT} {fingerprint} {dtype}".encode()).hexdigest()[:32]
        # Absolute, because data loader workers may run in another working directory.
        self.folder = Path(directory).absolute() / name
        self.dtype = getattr(torch, dtype)
        self.shard_bytes = shard_bytes
        self.encoded, self.found, self.seconds = 0, 0, 0.0  # distinct images of all calls of `fill`
        self._places: dict[str, tuple[str, int]] = {}  # key -> shard and row
        self._shards: dict[str, torch.Tensor] = {}  # memory maps (N, K, d)

    def __getitem__(self, key: str) -> torch.Tensor:
        """Returns `(K, d)`, a view of the memory map: do not write to it."""
        shard, row = self._places[key]
        if shard not in self._shards:
            self._shards[shard] = self._open(self.folder / shard)[1]
        return self._shards[shard][row]

    def __getstate__(self) -> dict:  # every process maps the files when it first reads from them
        return self.__dict__ | {"_shards": {}}

    def report(self) -> str:
        speed = f" in {self.seconds:.1f} s ({self.encoded / self.seconds:.1f}/s)" if self.encoded else ""
        return f"feature cache {self.folder}: {self.encoded} pictures encoded{speed}, {self.found} found"

    def fill(
        self, dataset: datasets.Dataset, processor, encode: Encode, *, batch_size: int = 32, num_workers: int = 0
    ) -> "CachedFeatures":
        """Verifies the shards that hold images of `dataset`, and encodes the images that no shard holds.

        `encode` maps pixel values `(batch_size, 3, H, W)` on the CPU to features `(batch_size, K, d)`.
        """
        state = PartialState()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale_files()
        images = dataset.with_format(None).select_columns("image")
        mode = images.features["image"].mode
        images = images.cast_column("image", datasets.Image(mode=mode, decode=False))
        with state.split_between_processes(list(range(len(images)))) as share, ThreadPoolExecutor() as threads:
            batches = images.select(share).iter(256)  # bounds the memory of encoded images
            hashes = (threads.map(lambda image: _key(mode, _encoded_bytes(image)), b["image"]) for b in batches)
            keys = gather_object([key for batch in hashes for key in batch])
            mine = [path for path in self._new_shards() if _is_mine(path.name, state)]
            list(threads.map(partial(self._remove_if_damaged, set(keys) - self._places.keys()), mine))
        state.wait_for_everyone()
        self._find(set(keys) - self._places.keys())
        missing = {key: index for index, key in reversed([*enumerate(keys)]) if key not in self._places}
        # Divided by key, not by position: another run's new shards may be visible to some processes only.
        start, share = time.perf_counter(), sorted(index for key, index in missing.items() if _is_mine(key, state))
        self._encode(images.select(share), processor, encode, batch_size, num_workers)
        state.wait_for_everyone()
        self.seconds += time.perf_counter() - start
        self.encoded, self.found = self.encoded + len(missing), self.found + len(set(keys)) - len(missing)
        self._find(missing)
        if lost := missing.keys() - self._places.keys():
            raise RuntimeError(f"{len(lost)} images or shards in {self.folder} changed during the run: run again.")
        return CachedFeatures(self, keys)

    def _encode(self, images: datasets.Dataset, processor, encode: Encode, batch_size: int, num_workers: int) -> None:
        if not len(images):
            return
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.write(bytes(4096))  # fails before the first image is encoded if the folder is not writable
        loader: DataLoader = DataLoader(
            images,  # type: ignore[arg-type]
            batch_size,
            collate_fn=partial(_prepare, processor, images.features["image"].mode),
            num_workers=num_workers,
            generator=torch.Generator(),  # by default the loader would advance the global random state
        )
        keys: list[str] = []
        rows: list[torch.Tensor] = []
        quiet = len(loader) < 10 or not PartialState().is_local_main_process
        for batch_keys, pixel_values in tqdm(loader, desc="Encoding images", disable=quiet):
            # Rounding depends on the batch size. With a full last batch, features do not depend on other images.
            filling = pixel_values[:1].expand(batch_size - len(pixel_values), -1, -1, -1)
            features = encode(torch.cat([pixel_values, filling]))[: len(batch_keys)].to(self.dtype).cpu()
            if not features.isfinite().all():
                raise ValueError(f"The tower's features do not fit into {self.dtype}: use bfloat16 or float32.")
            keys += batch_keys
            rows += features
            size = max(1, self.shard_bytes // features[0].nbytes)
            while len(rows) >= size:
                self._write(keys[:size], rows[:size])
                del keys[:size], rows[:size]
        if rows:
            self._write(keys, rows)

    def _write(self, keys: list[str], rows: list[torch.Tensor]) -> None:
        # One metadata entry: safetensors writes several in random order, but equal shards need equal names.
        index = json.dumps({"cache": self.folder.name, "keys": keys})
        content = save({"features": torch.stack(rows)}, metadata={"index": index})
        # Not `atomic_write`: concurrent runs may write the same shard, and a lock marks a file as in use.
        temporary = self.folder / f"{uuid.uuid4().hex}.tmp"
        shard = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            with _locked_file(temporary) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.replace(temporary, shard)  # after closing, for Windows
            except FileNotFoundError:  # another run has removed it since it was closed
                self._write(keys, rows)
            except PermissionError:
                if not shard.exists():  # Windows does not replace a file that another run reads; it has the same bytes
                    raise
        finally:
            temporary.unlink(missing_ok=True)

    def _open(self, path: Path) -> tuple[list[str], torch.Tensor]:
        """Returns keys and memory map of a shard without reading the data."""
        with safe_open(path, framework="pt") as shard:
            index, features = json.loads(shard.metadata()["index"]), shard.get_tensor("features")
        if (index["cache"], features.dtype, features.dim()) != (self.folder.name, self.dtype, 3):
            raise ValueError("it belongs to another cache")
        if len(index["keys"]) != len(features):
            raise ValueError(f"{len(index['keys'])} keys for {len(features)} images")
        return index["keys"], features

    def _new_shards(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.safetensors") if path.name not in self._shards)

    def _find(self, missing: Collection[str]) -> None:
        """Opens the shards that hold any of `missing`."""
        for path in self._new_shards():
            with suppress(FileNotFoundError):  # removed by another run since it was listed
                keys, features = self._open(path)
                if not set(missing).isdisjoint(keys):
                    self._shards[path.name] = features
                    self._places |= {key: (path.name, row) for row, key in enumerate(keys)}

    def _remove_if_damaged(self, missing: set[str], path: Path) -> None:
        with suppress(FileNotFoundError):
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                try:
                    keys = self._open(path)[0]
                    if missing.isdisjoint(keys) or hashlib.file_digest(file, "sha256").hexdigest() == path.stem:
                        return
                    problem = "its checksum is wrong"
                except (SafetensorError, ValueError, KeyError, TypeError) as error:
                    problem = str(error)
            logger.warning("%s is damaged (%s). It is removed and its images are encoded again.", path, problem)
            # Another run may have replaced it by a complete one.
            if os.path.samestat(status, os.stat(path)):
                path.unlink()

    def _remove_stale_files(self) -> None:
        """Removes the temporary files of killed runs, whose locks ended with the runs."""
        for path in self.folder.glob("*.tmp"):
            with suppress(OSError):  # another process writes it or has removed it
                if fcntl is not None:
                    with open(path, "r+b") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


class CachedFeatures:
    """The features of a dataset's images: `[index] -> (K, d)` and `batch(indices) -> (B, K, d)`, copies on the CPU."""

    def __init__(self, cache: FeatureCache, keys: list[str]):
        self.cache, self.keys = cache, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.cache[self.keys[index]].clone()

    def batch(self, indices: Iterable[int]) -> torch.Tensor:
        return torch.stack([self[index] for index in indices])


def _prepare(processor, mode: str | None, rows: list[dict]) -> tuple[list[str], torch.Tensor]:
    """Reads each image once, and returns the keys and the pixel values `(B, 3, H, W)`."""
    encoded = [_encoded_bytes(row["image"]) for row in rows]
    decoder = ImageColumn(mode=mode)
    files = zip(encoded, rows, strict=True)
    images = [decoder.decode_example({"bytes": content, "path": row["image"]["path"]}) for content, row in files]
    return [_key(mode, content) for content in encoded], processor(images=images, return_tensors="pt")["pixel_values"]


def _locked_file(path: Path) -> BinaryIO:
    """Creates a file that no other process removes while it is open."""
    while True:
        file = open(path, "xb")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.exists(path):
                return file
        except OSError:  # a file system without locks
            return file
        file.close()  # removed between opening and locking


def _encoded_bytes(image: dict) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    with xopen(image["path"], "rb") as file:  # the path may be an address: "zip://a.png::b.zip"
        return file.read()


def _key(mode: str | None, encoded: bytes) -> str:
    return hashlib.sha256((mode or "").encode() + encoded).hexdigest()


def _is_mine(name: str, state: PartialState) -> bool:
    return zlib.crc32(name.encode()) % state.num_processes == state.process_index
