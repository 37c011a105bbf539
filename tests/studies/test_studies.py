"""Studies: summaries, a small study that is interrupted and continued, the tower, probe and decoder for them."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModel, GPT2LMHeadModel

import studies.__main__ as study
from studies import efficientnet_lite, linear_probe, pretrain_decoder
from studies.summary import markdown, summarise
from tests.helpers.studies import made_up_runs
from tests.helpers.tiny import save_backbones
from tests.helpers.training import QUIET_RUN, TINY_RUN


def test_a_summary_has_means_deviations_tests_and_a_table(tmp_path):
    content = summarise(made_up_runs(tmp_path), draws=200)
    full, without = content["variants"]["full"], content["variants"]["no VAD head"]
    assert full["means"]["accuracy"] == pytest.approx(0.55)
    assert full["deviations"]["accuracy"] == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert "emotional_alignment" not in full["means"] and not full["tests"]
    assert without["tests"]["bleu_4"]["holm_p"] < 0.05 < without["tests"]["label_nll"]["holm_p"]
    text = markdown(content)
    assert "| full | 55.0 ± 7.1 |" in text and "n.s." in text and "**" in text


@pytest.mark.slow
def test_a_study_trains_only_the_missing_runs(tmp_path, monkeypatch, capsys):
    trained = []
    train_main = study.train.main

    def counting(argv):
        trained.append(argv)
        if len(trained) == 2 and "--resume_from_checkpoint" not in argv:
            # Interrupted in the second run, after its first checkpoint.
            train_main([*argv, "--max_steps", "1"])
            raise KeyboardInterrupt
        return train_main(argv)

    monkeypatch.setattr(study.train, "main", counting)
    arguments = ["ablation", "--seeds", "1", "--variants", "no VAD head", "--draws", "100", "--output_dir"]
    arguments += [str(tmp_path), *QUIET_RUN, "--num_paintings", "60", "--generation_samples", "0"]
    arguments += ["--max_steps", "2", "--save_steps", "1", "--eval_steps", "1"]
    with pytest.raises(KeyboardInterrupt):
        study.main(arguments)
    with pytest.raises(SystemExit, match="no-vad-head.* was made with other arguments"):
        study.main([*arguments, "--part", "2/2", "--learning_rate", "1e-2"])
    content = study.main(arguments)
    assert len(trained) == 3 and "--resume_from_checkpoint" in trained[2]
    assert list(content["variants"]) == ["full", "no VAD head"]
    folder = tmp_path / "ablation" / "no-vad-head" / "seed-0"
    assert not (folder / "model").exists(), "weights are not kept"
    log = json.loads((folder / "training_log.json").read_text())
    assert all("emotion_loss" not in entry for entry in log)
    for name in ("table.md", "table.json", "plot.png", "plot.svg"):
        assert (tmp_path / "ablation" / name).stat().st_size > 0
    study.main(arguments)
    assert len(trained) == 3, "nothing is left to do"
    study.main(["negatives", *arguments[1:3], "--part", "1/4", *arguments[5:]])
    assert len(trained) == 3, "the full system is copied from the other study"
    assert not (tmp_path / "negatives" / "both-negatives" / "seed-0" / "model").exists()
    with pytest.raises(SystemExit, match="this study varies --use_vad_head"):
        study.main([*arguments, "--use_vad_head", "false"])


@pytest.mark.parametrize("name", ["predictions.json", "model/checkpoint-1/model.safetensors"])
def test_a_study_never_replaces_what_it_has_not_made(tmp_path, name):
    file = tmp_path / "ablation" / "full" / "seed-0" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for _ in range(2):
        with pytest.raises(SystemExit, match="error: .*--output_dir"):
            study.main(["ablation", "--seeds", "1", "--output_dir", str(tmp_path), *QUIET_RUN, "--max_steps", "1"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file] and file.read_text() == "mine"


def test_alpha_is_scored_on_the_validation_split_and_the_baseline_may_have_its_own_epochs(tmp_path, monkeypatch):
    assert study.parse(["alpha"])[0].split == "validation" and study.parse(["ablation"])[0].split == "test"
    assert study.parse(["alpha", "--split", "test"])[0].split == "test"
    started = {}
    monkeypatch.setattr(study, "run", lambda folder, variant, *_: started.update({folder.parent.name: variant}))
    study.main(["ablation", "--baseline_epochs", "15", "--num_train_epochs", "35", "--output_dir", str(tmp_path)])
    assert started["baseline"][-2:] == ["--num_train_epochs", "15"] and started["full"] == []
    with pytest.raises(SystemExit):
        study.parse(["negatives", "--baseline_epochs", "15"])


def test_an_evaluation_gets_the_arguments_of_the_data():
    arguments = ["--vad_lexicon", "x.txt", "--learning_rate", "1e-3", "--annotations", "a.csv", "b.csv", "--bf16"]
    assert study.data_arguments(arguments) == ["--vad_lexicon", "x.txt", "--annotations", "a.csv", "b.csv"]
    assert study.data_arguments(["--preset", "authors"]) == ["--preset", "authors"]
    assert study.data_arguments(["--preset", "paper"]) == []


def test_the_converted_efficientnet_is_the_original_network(tmp_path):
    weights = torch.load(efficientnet_lite.find_weights(), weights_only=True)
    efficientnet_lite.main([str(tmp_path)])
    tower = AutoModel.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = tower(pixel_values=pixel_values).last_hidden_state
        expected = lite0_features(weights, pixel_values)
    assert features.shape == (2, 1280, 7, 7)
    assert torch.allclose(features, expected, atol=1e-4)
    with pytest.raises(RuntimeError, match="Missing key"):
        efficientnet_lite.convert({"_conv_stem.weight": weights["_conv_stem.weight"]})


def lite0_features(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    def conv(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"]
        # TensorFlow's "same" padding: the surplus is on the right and at the bottom.
        padding = max((-(-x.shape[-1] // stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        x = torch.nn.functional.pad(x, (padding // 2, padding - padding // 2) * 2)
        return torch.nn.functional.conv2d(x, kernel, stride=stride, groups=groups)

    def norm(x, name):
        parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return torch.nn.functional.batch_norm(x, *parts, eps=1e-3)

    relu6 = torch.nn.functional.relu6
    x = relu6(norm(conv(x, "_conv_stem", stride=2), "_bn0"))
    # First block of a stage -> its stride (Tan and Le 2019, Table 1).
    strides = {0: 1, 1: 2, 3: 2, 5: 2, 8: 1, 11: 2, 15: 1}
    for number in range(16):
        block, before = f"_blocks.{number}", x
        if f"{block}._expand_conv.weight" in weights:
            x = relu6(norm(conv(x, f"{block}._expand_conv"), f"{block}._bn0"))
        x = conv(x, f"{block}._depthwise_conv", stride=strides.get(number, 1), groups=x.shape[1])
        x = relu6(norm(x, f"{block}._bn1"))
        x = norm(conv(x, f"{block}._project_conv"), f"{block}._bn2")
        x = x if number in strides else x + before
    return relu6(norm(conv(x, "_conv_head"), "_bn1"))


def test_the_linear_probe_finds_the_optimum_of_its_objective():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 6, dtype=torch.double, generator=generator)
    shares = (features[:, :3] * 1.5).softmax(dim=-1)
    weights, bias = (tensor.requires_grad_() for tensor in linear_probe.fit(features, shares, penalty=0.01))
    logits = features @ weights + bias
    (cross_entropy(logits, shares) + 0.01 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4, "a convex objective's minimum"
    prior = cross_entropy(shares.mean(dim=0).log().expand_as(shares), shares)
    entropy = cross_entropy(shares.log(), shares)
    assert cross_entropy(logits, shares) < prior - (prior - entropy) / 3, "noise would explain nothing"


def test_the_linear_probe_reads_cached_features_of_a_frozen_tower(tmp_path):
    arguments = ["--num_paintings", "240", "--cache_features", str(tmp_path / "cache")]
    results = linear_probe.main([*save_backbones(tmp_path)[2:], *arguments, "--output", str(tmp_path / "probe.json")])
    assert results["splits"]["train"]["label_nll"] < results["splits"]["train"]["prior_label_nll"] - 0.1
    assert json.loads((tmp_path / "probe.json").read_text()) == results


def test_a_decoder_is_pretrained_on_text_and_never_on_held_out_paintings(tmp_path):
    header = "art_style,painting,emotion,utterance,repetition\n"
    rows = "".join(f"Style,p{i},awe,the sea number {i} is wide,5\n" for i in range(30))
    (tmp_path / "text.csv").write_text(f"{header}{rows}Style,h\u00e9ld,fear,unheardofword,5\n")
    # The same name in Unicode's other normal form.
    (tmp_path / "held.csv").write_text(header + "Style,he\u0301ld,fear,unheardofword,5\n")
    arguments = [str(tmp_path / "text.csv"), "--held_out", str(tmp_path / "held.csv"), "--output_dir"]
    arguments += [str(tmp_path / "decoder"), "--max_steps", "3", "--width", "32", "--layers", "1"]
    report = pretrain_decoder.main([*arguments, *TINY_RUN[2:]])
    assert report["train_rows"] + report["validation_rows"] == 30
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "decoder").num_parameters() == report["parameters"] < 200_000
    vocabulary = json.loads((tmp_path / "decoder" / "tokenizer.json").read_text())["model"]["vocab"]
    assert not any("unheard" in token for token in vocabulary)
