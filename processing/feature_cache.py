# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Patch features of a frozen vision tower, computed once per picture and read from memory-mapped files from then on.

    train, validation = cache_features(model, processor, [data["train"], data["validation"]], "cache/")
    pairs = SentencePairs(data["train"], features=train)      # its items hold features: no picture is decoded
    model.generate(image_features=validation.batch([3, 1]))

A picture is known by the SHA-256 of its encoded bytes, the folder by what else the features depend on: the tower's
configuration and weights, the preprocessing, the dtype. Change any of them and other entries are used; one directory
serves many models. (Not part of it are the versions of the libraries: begin a new directory if an upgrade decodes or
resizes pictures differently.)

A shard is a safetensors file that is named by its own SHA-256 and appears under this name when it is whole. Killed
runs, a full disk, and several runs or processes that fill the same directory at once leave whole shards only; a shard
that no longer matches its name is removed and its pictures are encoded again. A file is locked while it is written, so
that the next run can tell what a killed one has left; no clock is asked.
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
from pathlib import Path
from typing import BinaryIO

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm


try:
    import fcntl
except ImportError:  # Windows removes no file that is open
    fcntl = None

logger = logging.getLogger(__name__)

CACHE_DTYPES = ["float16", "bfloat16", "float32"]
FORMAT = 1  # one more whenever pictures are prepared or shards are laid out differently
_THREADS = min(8, os.cpu_count() or 1)
# Fields of a configuration that say where it comes from, or what the weights say themselves.
_NO_EFFECT = ("_name_or_path", "_commit_hash", "architectures", "dtype", "torch_dtype", "transformers_version")
# Not part of the patch features, and random where a checkpoint lacks them.
_POOLING_HEADS = ("pooler.", "head.")


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
    """The patch features of every picture of `splits`, one [`CachedFeatures`] each; what the directory lacks is
    encoded first, on the model's device. Call it on all processes: they divide the work.

    Args:
        model: a `SEVLMForConditionalGeneration` whose tower is in evaluation mode.
        processor: its `SEVLMProcessor`.
        dtype, batch_size, num_workers: see [`FeatureCache`] and [`FeatureCache.fill`].

    Raises:
        ValueError: the model has no tower, or one in training mode; its features do not fit `dtype`.
        OSError: a picture or the directory cannot be read or written.
    """
    if model.vision_tower is None or model.vision_tower.training:
        raise ValueError("Features are cached for a vision tower in evaluation mode: `model.freeze_vision_tower()`.")

    @torch.no_grad()
    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        return model.get_image_features(pixel_values.to(model.device))

    cache = FeatureCache(directory, fingerprint(model.vision_tower, processor.image_processor), dtype=dtype)
    return [cache.fill(data, processor, encode, batch_size=batch_size, num_workers=num_workers) for data in splits]


def fingerprint(tower: nn.Module, image_processor) -> str:
    """64 hexadecimal digits that change with the tower's class, configuration and weights, and with the preprocessing.

    The same before and after saving and loading.
    """
    digest = hashlib.sha256()
    config = {name: value for name, value in tower.config.to_dict().items() if name not in _NO_EFFECT}
    for part in (type(tower).__name__, config, image_processor.to_dict()):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
    for name, tensor in sorted(tower.state_dict().items()):
        if not name.startswith(_POOLING_HEADS):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """Features `(K, d)` by picture, in a folder of `directory` that belongs to one fingerprint and dtype.

    May be pickled and forked: every process maps the files for itself, when it first reads from them.

    Args:
        directory: is made if it does not exist.
        fingerprint: of all that the features depend on beside picture and dtype; see [`fingerprint`].
        dtype: "float16", "bfloat16" or "float32", in which features are stored and returned.
        shard_bytes: upper bound of a shard's features, in bytes; a killed run loses no more than that.
    """

    def __init__(
        self, directory: str | os.PathLike, fingerprint: str, *, dtype: str = "float16", shard_bytes: int = 2**27
    ):
        if dtype not in CACHE_DTYPES:
            raise ValueError(f"The features' dtype is {' or '.join(CACHE_DTYPES)}, not {dtype!r}.")
        name = hashlib.sha256(f"{FORMAT} {fingerprint} {dtype}".encode()).hexdigest()[:32]
        # Absolute, because data loader workers may run in another working directory.
        self.folder = Path(directory).absolute() / name
        self.dtype = getattr(torch, dtype)
        self.shard_bytes = shard_bytes
        self.encoded, self.found, self.seconds = 0, 0, 0.0  # distinct pictures of all calls of `fill`
        self._places: dict[str, tuple[str, int]] = {}  # key -> shard and row
        self._shards: dict[str, torch.Tensor] = {}  # memory maps (N, K, d)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> torch.Tensor:
        """`(K, d)`, a view of the memory map: do not write to it. KeyError if `key` is unknown."""
        shard, row = self._places[key]
        if shard not in self._shards:
            self._shards[shard] = self._open(self.folder / shard)[1]
        return self._shards[shard][row]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_shards": {}}

    def report(self) -> str:
        """One line: how many pictures `fill` encoded, how fast, and how many it found."""
        speed = f" in {self.seconds:.1f} s ({self.encoded / self.seconds:.1f}/s)" if self.encoded else ""
        return f"feature cache {self.folder}: {self.encoded} pictures encoded{speed}, {self.found} found"

    def fill(
        self,
        dataset: datasets.Dataset,
        processor,
        encode: Callable[[torch.Tensor], torch.Tensor],
        *,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> "CachedFeatures":
        """Verify the shards that hold pictures of `dataset`, encode the pictures that are in none.

        Args:
            dataset: has a column `image` (`datasets.Image`).
            processor: `processor(images=[...], return_tensors="pt")["pixel_values"]` prepares pictures.
            encode: `(batch_size, 3, H, W)` pixel values, on the CPU -> `(batch_size, K, d)`.
            num_workers: processes that decode and prepare pictures; 0: this one does.

        Raises:
            ValueError: features beyond the range of the cache's dtype.
            OSError: a picture cannot be read, or a shard cannot be written (a full disk, say).
            RuntimeError: a picture changed while it was read.
        """
        state = PartialState()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale_files()
        images = dataset.with_format(None).select_columns("image")
        mode = images.features["image"].mode
        images = images.cast_column("image", datasets.Image(mode=mode, decode=False))
        with state.split_between_processes(list(range(len(images)))) as share:
            keys = gather_object(_picture_keys(images.select(share)))

        self._verify(set(keys) - self._places.keys(), state)
        state.wait_for_everyone()
        self._find(set(keys) - self._places.keys())
        missing = {}
        for index, key in enumerate(keys):
            if key not in self._places:
                missing.setdefault(key, index)
        # By key, not by position: right even if another run's new shards are seen by some of the processes only.
        start, share = time.perf_counter(), [index for key, index in missing.items() if _is_mine(key, state)]
        self._encode(_Pictures(images, share), processor, encode, batch_size, num_workers)
        state.wait_for_everyone()
        self.seconds += time.perf_counter() - start
        self.encoded, self.found = self.encoded + len(missing), self.found + len(set(keys)) - len(missing)
        self._find(missing)
        if lost := missing.keys() - self._places.keys():
            raise RuntimeError(f"{len(lost)} pictures or their shards in {self.folder} changed meanwhile: run again.")
        return CachedFeatures(self, keys)

    def _encode(self, pictures: "_Pictures", processor, encode, batch_size: int, num_workers: int) -> None:
        loader = DataLoader(
            pictures,
            batch_size,
            collate_fn=_Preparation(processor),
            num_workers=num_workers,
            generator=torch.Generator(),  # the loader draws from it: a cache must not change the run's randomness
        )
        if len(pictures):
            self._check_writable()
        keys, rows = [], []
        quiet = len(loader) < 10 or not PartialState().is_local_main_process
        for batch_keys, pixel_values in tqdm(loader, desc="Encoding pictures", disable=quiet):
            # Last bits depend on the batch's shape; a picture's features should not depend on who else was missing.
            filling = pixel_values[:1].expand(batch_size - len(pixel_values), -1, -1, -1)
            features = encode(torch.cat([pixel_values, filling]))[: len(batch_keys)].to(self.dtype).cpu()
            if not features.isfinite().all():
                raise ValueError(f"The tower's features do not fit into {self.dtype}: use bfloat16 or float32.")
            keys, rows = [*keys, *batch_keys], [*rows, *features]
            size = max(1, self.shard_bytes // features[0].nbytes)
            while len(rows) >= size:
                self._write(keys[:size], rows[:size])
                keys, rows = keys[size:], rows[size:]
        if rows:
            self._write(keys, rows)

    def _write(self, keys: list[str], rows: list[torch.Tensor]) -> None:
        # One entry, because the order of several is left to chance; the same features are to have the same name.
        index = json.dumps({"cache": self.folder.name, "keys": keys})
        content = save({"features": torch.stack(rows)}, metadata={"index": index})
        temporary = self.folder / f"{uuid.uuid4().hex}.tmp"
        try:
            with _locked_file(temporary) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors")
        finally:
            temporary.unlink(missing_ok=True)

    def _check_writable(self) -> None:
        """Before the first picture is encoded, not when the first shard is full."""
        try:
            with tempfile.TemporaryFile(dir=self.folder, buffering=0) as file:
                file.write(bytes(4096))
        except OSError as error:
            raise OSError(
                f"The feature cache {self.folder} lacks pictures and cannot be written ({error.strerror}): name "
                "another directory, or change its permissions or free space."
            ) from error

    def _open(self, path: Path) -> tuple[list[str], torch.Tensor]:
        """Keys and memory map of a shard; the data are not read."""
        with safe_open(path, framework="pt") as shard:
            index = json.loads((shard.metadata() or {})["index"])
            features = shard.get_tensor("features")
        if (index["cache"], features.dtype, features.dim()) != (self.folder.name, self.dtype, 3):
            raise ValueError("it belongs to another cache")
        if len(index["keys"]) != len(features):
            raise ValueError(f"{len(index['keys'])} keys for {len(features)} pictures")
        return index["keys"], features

    def _new_shards(self) -> list[Path]:
        return [path for path in sorted(self.folder.glob("*.safetensors")) if path.name not in self._shards]

    def _find(self, wanted: Collection[str]) -> None:
        """Open the shards that hold some of `wanted`."""
        wanted = set(wanted)
        for path in self._new_shards() if wanted else []:
            with suppress(FileNotFoundError):  # removed by another run since it was listed
                keys, features = self._open(path)
                if not wanted.isdisjoint(keys):
                    self._shards[path.name] = features
                    self._places |= {key: (path.name, row) for row, key in enumerate(keys)}

    def _verify(self, wanted: set[str], state: PartialState) -> None:
        """Remove, with a warning, damaged shards among this process's share of those that hold some of `wanted`."""
        with ThreadPoolExecutor(_THREADS) as threads:
            mine = [path for path in self._new_shards() if wanted and _is_mine(path.name, state)]
            list(threads.map(self._remove_if_damaged, mine, [wanted] * len(mine)))

    def _remove_if_damaged(self, path: Path, wanted: set[str]) -> None:
        with suppress(FileNotFoundError), open(path, "rb") as file:
            try:
                keys, _ = self._open(path)
                if wanted.isdisjoint(keys) or hashlib.file_digest(file, "sha256").hexdigest() == path.stem:
                    return
                problem = "its checksum is wrong"
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                problem = str(error)
            logger.warning("%s is damaged (%s) and removed: its pictures are encoded again.", path, problem)
            # Another run may have put a whole one in its place by now.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                path.unlink()

    def _remove_stale_files(self) -> None:
        """What killed runs were writing. Their locks ended with them."""
        for path in self.folder.glob("*.tmp"):
            with suppress(OSError), open(path, "r+b") as file:  # another process is writing it, or was quicker
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


class CachedFeatures:
    """The features of a data set's pictures, in its order: `len`, `[index] -> (K, d)`, `batch(indices) -> (B, K, d)`.
    Tensors on the CPU in the cache's dtype, copies that the caller may keep and change."""

    def __init__(self, cache: FeatureCache, keys: list[str]):
        self.cache = cache
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.cache[self.keys[index]].clone()

    def batch(self, indices: Iterable[int]) -> torch.Tensor:
        return torch.stack([self.cache[self.keys[index]] for index in indices])


class _Pictures(Dataset):
    """Keys and decoded pictures of some rows. The key is of the very bytes that are decoded."""

    def __init__(self, images: datasets.Dataset, indices: list[int]):
        self.images, self.indices = images, indices
        self.decoder = datasets.Image(mode=images.features["image"].mode)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple:
        encoded = _encoded_bytes(self.images[self.indices[index]]["image"])
        return _key(encoded, self.decoder.mode), self.decoder.decode_example({"bytes": encoded, "path": None})


class _Preparation:
    """Collates [`_Pictures`]: keys, and pixel values `(B, 3, H, W)`."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, items: list[tuple]) -> tuple[list[str], torch.Tensor]:
        keys, pictures = zip(*items, strict=True)
        return list(keys), self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]


def _locked_file(path: Path) -> BinaryIO:
    """A new file that no other process removes while it is open."""
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


def _picture_keys(images: datasets.Dataset) -> list[str]:
    mode, keys = images.features["image"].mode, []
    with ThreadPoolExecutor(_THREADS) as threads:
        for batch in images.iter(256):  # bounds the memory that encoded pictures take
            keys += threads.map(lambda image: _key(_encoded_bytes(image), mode), batch["image"])
    return keys


def _encoded_bytes(image: dict) -> bytes:
    return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]


def _key(encoded: bytes, mode: str | None) -> str:
    """SHA-256 of the encoded picture, behind the mode that the column converts it to, if it names one."""
    digest = hashlib.sha256((mode or "").encode())
    digest.update(encoded)
    return digest.hexdigest()


def _is_mine(name: str, state: PartialState) -> bool:
    """Whether this process takes care of `name`."""
    return zlib.crc32(name.encode()) % state.num_processes == state.process_index
