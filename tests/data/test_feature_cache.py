"""The feature cache equals encoding every time. It is never stale, never half written and never read as a whole."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionModel,
    ConvNextConfig,
    Dinov2Config,
    SiglipVisionConfig,
    ViTConfig,
    ViTModel,
)

import train
from modeling_sevlm import SEVLMForConditionalGeneration
from processing import SEVLMProcessor, feature_cache
from processing.collator import SentencePairs, SEVLMCollator
from processing.feature_cache import CACHE_DTYPES, FeatureCache, cache_features, fingerprint
from processing.toy_artemis import load_toy_artemis
from tests.helpers.ranks import in_ranks
from tests.helpers.tiny import save_backbones, tiny_config, tiny_model, tiny_processor


PATCHES, WIDTH = 16, 32  # of the tiny tower
IMAGE_BYTES = PATCHES * WIDTH * 4
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def noise(seed: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8))


def make_images(*seeds: int) -> Dataset:
    return as_dataset([noise(seed) for seed in seeds])


def as_dataset(images: list) -> Dataset:
    return Dataset.from_dict({"image": images}, features=Features({"image": ImageFeature()}))


@pytest.fixture(scope="module")
def frozen(processor):
    model = tiny_model(processor)
    model.freeze_vision_tower()
    return model


def encoded(model, processor, dataset) -> torch.Tensor:
    """The features without a cache."""
    pixel_values = processor(images=[row["image"] for row in dataset], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model.encode_images(pixel_values)


def fill(directory, model, processor, dataset, per_shard=4, **kwargs):
    """`cache_features` with small shards, in float32."""
    identity = fingerprint(model.vision_tower, processor.image_processor)
    cache = FeatureCache(directory, identity, dtype="float32", shard_bytes=per_shard * IMAGE_BYTES)
    with torch.no_grad():
        return cache.fill(dataset, processor, model.encode_images, **{"batch_size": 2} | kwargs)


def shards(features) -> list[Path]:
    return sorted(features.cache.folder.glob("*.safetensors"))


def assert_whole(features, model, processor, dataset):
    assert torch.equal(features.batch(range(len(dataset))), encoded(model, processor, dataset))
    assert not list(features.cache.folder.glob("*.tmp"))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    return save_backbones(tmp_path_factory.mktemp("backbones"), WIDTH)


def run_train(backbones, output_dir, *more):
    quiet = ["--generation_samples", "0", "--disable_tqdm", "true", "--use_cpu", "true", "--logging_steps", "1"]
    steps = ["--num_paintings", "36", "--per_device_train_batch_size", "8", "--max_steps", "6", "--eval_steps", "6"]
    rates = ["--learning_rate", "1e-3", "--save_steps", "6", "--load_best_model_at_end", "false"]
    return train.main([*backbones, *quiet, *steps, *rates, "--output_dir", str(output_dir), *more])


def losses(trainer) -> list[dict[str, float]]:
    return [{name: v for name, v in entry.items() if name.endswith("loss")} for entry in trainer.state.log_history]


def test_training_on_cached_features_equals_training_on_images(backbones, tmp_path, monkeypatch, capsys):
    """In float32, including dropout, the order of the paintings and a shorter last batch. In float16, losses change by
    less than a thousandth. A full cache opens no image."""
    uncached = run_train(backbones, tmp_path / "uncached")
    cached = run_train(
        backbones, tmp_path / "float32", "--cache_features", str(tmp_path / "cache"), "--cache_dtype", "float32"
    )
    assert losses(cached) == losses(uncached) and len(losses(cached)) == 8
    weights, others = cached.model.state_dict(), uncached.model.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in others)

    capsys.readouterr()
    cache = ("--cache_features", str(tmp_path / "cache"), "--sheet_paintings", "0")  # sheets show the images
    first = run_train(backbones, tmp_path / "model", *cache)
    assert ": 33 pictures encoded" in capsys.readouterr().out

    monkeypatch.setattr(PIL.Image, "open", lambda *args, **kwargs: pytest.fail("an image is opened"))
    second = run_train(backbones, tmp_path / "again", *cache, "--dataloader_num_workers", "2")
    assert ": 0 pictures encoded, 33 found" in capsys.readouterr().out
    assert losses(second) == losses(first)
    for entry, other in zip(losses(first), losses(uncached), strict=True):
        assert entry == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_a_resumed_run_uses_the_features_of_the_checkpoints_tower(backbones, tmp_path, capsys):
    cache = ("--cache_features", str(tmp_path / "cache"))
    run_train(backbones, tmp_path / "model", *cache)
    other = CLIPVisionModel.from_pretrained(backbones[3])
    other.get_parameter("post_layernorm.weight").data.mul_(2)
    other.save_pretrained(tmp_path / "other")
    CLIPImageProcessorPil().save_pretrained(tmp_path / "other")
    capsys.readouterr()
    more = ("--vision_model", str(tmp_path / "other"), "--resume_from_checkpoint", "true", "--max_steps", "7")
    run_train(backbones, tmp_path / "model", *cache, *more)
    assert ": 0 pictures encoded, 33 found" in capsys.readouterr().out


def test_a_trainable_tower_is_refused(model, processor, tmp_path):
    with pytest.raises(SystemExit, match="error: --cache_features needs a frozen vision tower"):
        arguments = ["--num_paintings", "36", "--output_dir", str(tmp_path / "model"), "--use_cpu"]
        train.main([*arguments, "--cache_features", str(tmp_path / "cache")])
    with pytest.raises(ValueError, match="freeze_vision_tower"):
        cache_features(model.train(), processor, [make_images(0)], tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_workers_and_pickling_change_nothing(frozen, processor, tmp_path):
    data = load_toy_artemis(12, image_size=32)["train"]
    (features,) = cache_features(frozen, processor, [data], tmp_path / "cache", dtype="bfloat16", num_workers=2)
    expected = encoded(frozen, processor, data).bfloat16()
    assert torch.equal(features.batch(range(10)), expected)
    pickled = pickle.dumps(features)
    assert len(pickled) < expected.nbytes / 2, "features are not pickled"
    features = pickle.loads(pickled)
    batches = [
        list(DataLoader(SentencePairs(data, features=features), 4, collate_fn=SEVLMCollator(processor), num_workers=n))
        for n in (0, 2)
    ]
    assert torch.equal(torch.cat([batch["image_features"] for batch in batches[0]]), expected)
    for batch, other in zip(*batches, strict=True):
        assert batch.keys() == other.keys() and all(torch.equal(batch[name], other[name]) for name in batch)


@pytest.mark.parametrize(
    "config",
    [
        SiglipVisionConfig(**SMALL, intermediate_size=16),
        Dinov2Config(**SMALL),
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]),
    ],
    ids=lambda config: config.model_type,
)
def test_any_tower_can_be_cached(processor, config, tmp_path):
    torch.manual_seed(0)
    model = SEVLMForConditionalGeneration(tiny_config(processor, vision_config=config)).eval()
    (features,) = cache_features(model, processor, [make_images(0, 1, 2)], tmp_path, dtype="float32")
    expected = encoded(model, processor, make_images(0, 1, 2))
    assert features[1].shape == (16, 16)
    torch.testing.assert_close(features.batch([2, 0, 1]), expected[[2, 0, 1]])


def test_tower_preprocessing_and_dtype_have_their_own_entries(processor, tmp_path):
    def folder(model, processor, dtype="float16"):
        identity = fingerprint(model.vision_tower, processor.image_processor)
        return FeatureCache(tmp_path, identity, dtype=dtype).folder

    model = tiny_model(processor)
    folders = [folder(model, processor, dtype) for dtype in CACHE_DTYPES]
    weight = model.vision_tower.get_parameter("post_layernorm.bias").data
    weight[3] = torch.nextafter(weight[3], torch.tensor(1.0))  # one bit
    folders.append(folder(model, processor))
    model.vision_tower.config.layer_norm_eps = 1e-6
    folders.append(folder(model, processor))
    for changes in ({"image_mean": [0.5, 0.4, 0.4]}, {"resample": 2}, {"do_convert_rgb": False}):
        changed = tiny_processor()
        for name, value in changes.items():
            setattr(changed.image_processor, name, value)
        folders.append(folder(model, changed))
    assert len(set(folders)) == len(folders) == 8
    with pytest.raises(ValueError, match="is 'int8'. Use float16 or bfloat16 or float32"):
        folder(model, processor, "int8")


def test_a_saved_and_loaded_tower_has_the_same_entries_with_any_pooling_head(frozen, processor, tmp_path):
    """A pooling head is random where a checkpoint lacks one, and would give every run its own entries."""
    frozen.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, loaded = SEVLMForConditionalGeneration.from_pretrained(tmp_path), SEVLMProcessor.from_pretrained(tmp_path)
    expected = fingerprint(frozen.vision_tower, processor.image_processor)
    assert fingerprint(model.vision_tower, loaded.image_processor) == expected
    tower = ViTModel(ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    before = fingerprint(tower, processor.image_processor)
    tower.pooler.dense.weight.data.add_(1)
    assert fingerprint(tower, processor.image_processor) == before
    tower.layernorm.weight.data.add_(1)
    assert fingerprint(tower, processor.image_processor) != before


def test_only_a_changed_image_is_encoded_again(frozen, processor, tmp_path):
    files = [tmp_path / f"{seed}.bmp" for seed in range(4)]
    for seed, file in enumerate(files):
        noise(seed).save(file)
    data = as_dataset([str(file) for file in files])
    fill(tmp_path / "cache", frozen, processor, data)
    before = files[2].stat()
    noise(7).save(files[2])
    os.utime(files[2], ns=(before.st_atime_ns, before.st_mtime_ns))  # same size and time
    assert files[2].stat().st_size == before.st_size
    features = fill(tmp_path / "cache", frozen, processor, data)
    assert (features.cache.encoded, features.cache.found) == (1, 3)
    assert_whole(features, frozen, processor, make_images(0, 1, 7, 3))


def test_images_at_addresses_are_encoded_as_the_same_files(frozen, processor, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for seed in range(3):
            noise(seed).save(tmp_path / f"{seed}.bmp")
            archive.write(tmp_path / f"{seed}.bmp", f"{seed}.bmp")
    data = as_dataset([f"zip://{seed}.bmp::{tmp_path / 'all.zip'}" for seed in range(3)])
    features = fill(tmp_path / "cache", frozen, processor, data)
    assert features.cache.encoded == 3
    assert_whole(features, frozen, processor, make_images(0, 1, 2))


def test_equal_images_share_an_entry_per_mode(frozen, processor, tmp_path):
    data = make_images(0, 1, 0, 2, 1, 0)
    randomness = torch.get_rng_state()
    features = fill(tmp_path, frozen, processor, data)
    assert torch.equal(torch.get_rng_state(), randomness), "a cache does not change the random state"
    features[0].zero_()  # a copy
    features.batch([1]).zero_()
    assert len(pickle.dumps(features[0])) < 1.5 * IMAGE_BYTES, "an item does not contain its shard"
    assert_whole(features, frozen, processor, data)
    assert sum(file.stat().st_size // IMAGE_BYTES for file in shards(features)) == 3 == features.cache.encoded
    more = fill(tmp_path, frozen, processor, make_images(2, 3))
    assert (more.cache.encoded, more.cache.found) == (1, 1)
    grey = make_images(0).cast_column("image", ImageFeature(mode="L"))
    features = fill(tmp_path, frozen, processor, grey)
    assert features.cache.encoded == 1
    assert_whole(features, frozen, processor, grey)


def test_the_tower_sees_batches_of_one_size_and_its_features_must_fit_the_dtype(processor, tmp_path):
    """Otherwise the last bits would depend on which images are missing."""
    sizes = []

    def encode(pixel_values):
        sizes.append(len(pixel_values))
        return pixel_values.mean(dim=1)

    features = FeatureCache(tmp_path, "mean").fill(make_images(0, 1, 2, 3, 4), processor, encode, batch_size=3)
    assert sizes == [3, 3] and len(features) == 5
    cache = FeatureCache(tmp_path, "large")
    with pytest.raises(ValueError, match="do not fit into torch.float16: use bfloat16"):
        cache.fill(make_images(0), processor, lambda pixel_values: 1e6 + pixel_values.mean(dim=1))
    assert not list(cache.folder.iterdir())


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGES = {
    "truncated": lambda content: content[:-100],
    "empty": lambda content: b"",
    "one bit of the features": lambda content: flip(content, len(content) - 1000),
    "one bit of the header's length": lambda content: flip(content, 0),
    "one bit of a key": lambda content: flip(content, content.index(b'keys\\": [\\"') + 20),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_and_encoded_again(frozen, processor, tmp_path, caplog, damage):
    data = make_images(*range(10))
    whole = {file: file.read_bytes() for file in shards(fill(tmp_path, frozen, processor, data))}
    assert len(whole) == 3
    file = next(file for file, content in whole.items() if len(content) == max(map(len, whole.values())))
    file.write_bytes(DAMAGES[damage](whole[file]))
    features = fill(tmp_path, frozen, processor, data)
    assert [str(file) in record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    assert (features.cache.encoded, features.cache.found) == (4, 6)
    assert {file: file.read_bytes() for file in shards(features)} == whole
    assert_whole(features, frozen, processor, data)


def test_a_shard_that_another_run_has_repaired_is_kept(frozen, processor, tmp_path, monkeypatch):
    (file,) = shards(fill(tmp_path, frozen, processor, make_images(0, 1)))
    whole, repaired = file.read_bytes(), tmp_path / "repaired"
    repaired.write_bytes(whole)
    file.write_bytes(whole[:-1])
    monkeypatch.setattr(feature_cache.logger, "warning", lambda *args: os.replace(repaired, file))
    features = fill(tmp_path, frozen, processor, make_images(0, 1))
    assert features.cache.encoded == 0
    assert_whole(features, frozen, processor, make_images(0, 1))


def in_processes(*functions) -> list[int]:
    """Runs each in a forked process and returns the exit codes."""
    processes = [multiprocessing.get_context("fork").Process(target=function) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def test_a_run_killed_during_writing_leaves_complete_shards_and_is_finished_by_the_next(frozen, processor, tmp_path):
    data, replace, written = make_images(*range(14)), os.replace, []

    def replace_twice_then_die(source, target):
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(target)
        replace(source, target)

    def run():
        os.replace = replace_twice_then_die
        fill(tmp_path, frozen, processor, data)

    assert in_processes(run) == [-signal.SIGKILL]
    (temporary,) = tmp_path.glob("*/*.tmp")
    os.utime(temporary, (2e9, 2e9))  # in the future, as after a clock that jumped back
    other = temporary.with_name("of_another_run.tmp")
    with feature_cache._locked_file(other):
        os.utime(other, (0, 0))
        features = fill(tmp_path, frozen, processor, data)
        assert (features.cache.encoded, features.cache.found) == (6, 8)
        assert list(tmp_path.glob("*/*.tmp")) == [other], "the file of a running process is kept, however old it looks"
    other.unlink()
    assert_whole(features, frozen, processor, data)
    undisturbed = fill(tmp_path / "undisturbed", frozen, processor, data)
    assert torch.equal(features.batch(range(14)), undisturbed.batch(range(14)))


def test_two_runs_can_fill_a_directory_at_once(frozen, processor, tmp_path):
    """They share some images and a damaged shard."""
    (damaged,) = shards(fill(tmp_path, frozen, processor, make_images(8, 9, 10, 11)))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    runs = [list(range(12)), list(range(15, 3, -1))]
    start = multiprocessing.get_context("fork").Barrier(2)

    def run(seeds):
        data = make_images(*seeds)
        start.wait()
        features = fill(tmp_path, frozen, processor, data, per_shard=2)
        assert torch.equal(features.batch(range(12)), encoded(frozen, processor, data))

    assert in_processes(*[lambda seeds=seeds: run(seeds) for seeds in runs]) == [0, 0]
    features = fill(tmp_path, frozen, processor, make_images(*range(16)))
    assert features.cache.encoded == 0
    assert_whole(features, frozen, processor, make_images(*range(16)))


def test_launched_processes_share_the_work_and_get_all_features(frozen, processor, tmp_path):
    data = make_images(*range(11))

    def run(rank):
        assert PartialState(cpu=True).num_processes == 2
        seen = []

        def encode(pixel_values):
            seen.append(1)
            return frozen.encode_images(pixel_values)

        cache = FeatureCache(tmp_path, "two", dtype="float32")
        with torch.no_grad():
            features = cache.fill(data, processor, encode, batch_size=1)
        assert torch.equal(features.batch(range(11)), encoded(frozen, processor, data))
        Path(tmp_path, f"{rank}.json").write_text(json.dumps([len(seen), cache.encoded]))

    assert in_ranks(2, run) == [0, 0]
    (first, total), (second, other) = (json.loads(Path(tmp_path, f"{rank}.json").read_text()) for rank in (0, 1))
    assert first + second == total == other == 11 and first and second


def test_a_full_disk_is_an_error_and_leaves_no_file(frozen, processor, tmp_path):
    """Simulated by a limit on the size of files."""
    cache = fill(tmp_path, frozen, processor, make_images(0), per_shard=1).cache
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OSError):
            fill(tmp_path, frozen, processor, make_images(0, 1, 2))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        with pytest.raises(OSError):
            cache.fill(make_images(1), processor, lambda pixel_values: pytest.fail("an image is encoded"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list(tmp_path.glob("*/*"))) == 1
    assert fill(tmp_path, frozen, processor, make_images(0, 1, 2)).cache.found == 1


def test_an_image_that_changes_during_reading_is_an_error(frozen, processor, tmp_path, monkeypatch):
    file = tmp_path / "picture.png"
    noise(0).save(file)
    data = as_dataset([str(file)])
    find = FeatureCache._find

    def change_and_find(*args):  # after the keys are computed
        noise(1).save(file)
        find(*args)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="changed during the run"):
        patch.setattr(FeatureCache, "_find", change_and_find)
        fill(tmp_path / "cache", frozen, processor, data)
    features = fill(tmp_path / "cache", frozen, processor, data)
    assert features.cache.encoded == 0, "an entry has the key of the bytes that were encoded"
    assert_whole(features, frozen, processor, make_images(1))


def test_shards_are_bounded_and_reading_one_image_does_not_load_them(processor, tmp_path):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    shape = (1024, 1024)  # 2 MB an image
    cache = FeatureCache(tmp_path, "large", shard_bytes=2**25)
    data = make_images(*range(40))
    cache.fill(data, processor, lambda pixel_values: pixel_values.mean((1, 2, 3))[:, None, None].expand(-1, *shape))
    sizes = [file.stat().st_size for file in cache.folder.iterdir()]
    assert len(sizes) == 3 and max(sizes) < 2**25 + 2**14
    assert load_file(next(cache.folder.iterdir())).keys() == {"features"}, "shards are ordinary safetensors files"
    features = FeatureCache(tmp_path, "large").fill(data, processor, None)
    features = pickle.loads(pickle.dumps(features))  # no file is open
    before = resident()
    for index in (0, 20, 39):
        assert features[index].shape == shape
    assert resident() - before < 16 * 2**20, "80 MB are mapped"


def test_a_shard_of_another_cache_is_not_read(frozen, processor, tmp_path, caplog):
    data = make_images(0, 1)
    (file,) = shards(fill(tmp_path / "a", frozen, processor, data))
    other = FeatureCache(tmp_path / "b", "another tower", dtype="float16")
    other.folder.mkdir(parents=True)
    shutil.copy(file, other.folder)
    features = other.fill(data, processor, lambda pixels: frozen.encode_images(pixels).half(), batch_size=2)
    assert (features.cache.encoded, features.cache.found) == (2, 0) and "another cache" in caplog.text
