"""The benchmarks at a tiny size: every command writes its results, the yardstick computes what the model computes, and
unequal outputs are errors. No test looks at times."""

import json

import pytest
import torch

from benchmarks import generation, inputs, measure, training
from benchmarks.__main__ import environment, main, markdown, parse
from benchmarks.recompute import Recompute
from tests.helpers.training import without_dropout


@pytest.fixture(scope="module")
def made():
    return inputs.make_inputs("tiny")


@pytest.fixture
def model(made):
    return made.model()


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a command at the smallest size and returns its result as read from JSON."""

    def run(command, *arguments):
        file = tmp_path / "results" / f"{command}.json"
        settings = ["--size", "tiny", "--repeats", "1", "--threads", "1", "--batch_size", "2"]
        main([command, *settings, *arguments, "--output", str(file)])
        printed = capsys.readouterr().out
        result = json.loads(file.read_text(encoding="utf-8"))
        assert result["command"] == command and result["tables"]
        assert result["environment"]["versions"]["torch"] == torch.__version__
        for entry in result["tables"]:
            assert entry["rows"] and all(len(row) == len(entry["columns"]) for row in entry["rows"])
            assert f"**{entry['title']}**" in printed
        for timing in result["measurements"].values():
            assert len(timing["seconds"]) == 1 and timing["median"] > 0
        main(["table", str(file)])
        assert capsys.readouterr().out.strip() in printed
        return result

    return run


@pytest.mark.slow
def test_generate_measures_yardstick_tower_and_model_and_finds_their_tokens_equal(run):
    result = run("generate")
    ours = [f"{what} {dtype}" for dtype in ("float32", "bfloat16") for what in ("tower alone", "ours")]
    assert list(result["measurements"]) == ["recompute float32", "recompute, eager attention float32", *ours]
    for text in ("free", "after a label"):
        assert result["checks"][f"float32 tokens equal to the yardstick's, {text}"] == 1
        assert result["checks"][f"bfloat16 tokens equal to the yardstick's, {text}"] <= 1
    steps = [(dtype, batch) for batch in (1, 8) for dtype in ("float32", "bfloat16")]
    assert [tuple(row[:2]) for row in result["tables"][1]["rows"]] == steps


def test_peers_generate_equally_many_tokens(run):
    result = run("peers", "--dtype", "float32")
    assert list(result["measurements"]) == ["SEVLM float32", "BLIP-base float32", "GIT-base float32"]
    assert set(result["checks"].values()) == {6}


def test_train_measures_the_authors_step_and_ours_and_finds_their_losses_equal(run):
    result = run("train")
    assert len(result["measurements"]) == 5
    for name, difference in result["checks"].items():
        assert difference < (1e-4 if "pixels float32" in name else 0.1)


def test_an_epoch_goes_through_the_trainer(run):
    assert parse(["train", "--epoch"]).epoch == round(0.85 * 80_031), "ArtEmis by default"
    result = run("train", "--epoch", "12", "--dtype", "float32")
    row = dict(zip(result["tables"][0]["columns"], result["tables"][0]["rows"][0], strict=True))
    assert (row["paintings"], row["steps"]) == (12, 6)
    assert row["35 epochs, h"] == pytest.approx(35 * row["epoch, s"] / 3600)


def test_vad_measures_reader_and_compilation(run):
    assert list(run("vad")["measurements"]) == ["processor's VAD", "compile the lexicon"]


def test_metrics_says_that_meteor_is_missing_without_java(run, monkeypatch):
    monkeypatch.setattr("metrics.coco_caption.coco_caption.find_java", lambda: None)
    assert "without METEOR, which needs Java" in run("metrics")["tables"][0]["rows"][0][0]


def test_growth_writes_exponents_and_a_plot(run, tmp_path):
    result = run("growth", "--plots", str(tmp_path / "plots"))
    assert len(result["series"]) == len(result["tables"][0]["rows"]) == 4
    assert all(len(entry["sizes"]) == len(entry["seconds"]) for entry in result["series"].values())
    assert (tmp_path / "plots" / "performance_generation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_yardstick_gives_the_models_logits_on_text_with_vad(made, model, attention):
    text = made.training_text(3)
    length = int(text["attention_mask"].sum(dim=-1).min())
    ids, features = text["input_ids"][:, 0, :length], model.encode_images(made.pixel_values(3))
    with torch.no_grad():
        assert model.vad_lookup(ids).ne(0).any(dim=-1).sum() > 9, "the lexicon should know some of the words"
        found = Recompute(model, made.processor, attention).logits(ids, features)
        torch.testing.assert_close(found, model(input_ids=ids, image_features=features).logits)


def test_the_yardstick_recomputes_everything_but_the_tower(made, model):
    yardstick, lengths, towers = Recompute(model, made.processor), [], []
    yardstick.blocks[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    model.vision_tower.register_forward_pre_hook(lambda module, args, kwargs: towers.append(1), with_kwargs=True)
    yardstick.generate(made.pixel_values(2), 3)
    assert lengths == [4, 5, 6] and towers == [1]


def test_tokens_that_differ_from_the_yardsticks_are_an_error(made, model):
    yardstick, pixel_values = Recompute(model, made.processor), made.pixel_values(2)
    with pytest.raises(AssertionError, match="Other tokens than recomputing"):
        generation.compare_tokens(made, yardstick, {"float32": made.model(seed=1)}, pixel_values)


@pytest.fixture
def steps(made):
    variants = {training.YARDSTICK: ("authors", "float32"), "ours float32": ("pixels", "float32")}
    return training.make_steps(made, variants, parse(["train", "--batch_size", "2"]))


def test_losses_that_differ_from_the_yardsticks_are_an_error(steps):
    steps["ours float32"].text["vad_values"] = -steps["ours float32"].text["vad_values"]
    with pytest.raises(AssertionError, match="'ours float32' are not the yardstick's"):
        training.compare_losses(steps)


def test_the_authors_step_and_ours_have_the_same_gradients(steps, monkeypatch):
    gradients = []
    for step in steps.values():
        model, step.max_grad_norm = step.model, None
        without_dropout(model)
        if step.yardstick is not None:
            without_dropout(step.yardstick.blocks)
        with monkeypatch.context() as patch:
            # The weights are shared, so they must not move before the second step.
            patch.setattr(step.optimizer, "zero_grad", lambda set_to_none: None)
            patch.setattr(step.optimizer, "step", lambda: None)
            step()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        model.zero_grad()
    assert any(name.startswith("contrastive_head") for name in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    before = model.decoder.wte.weight.clone()
    step()
    assert model.decoder.wte.weight.ne(before).any()


def test_variants_take_turns_and_each_has_its_own_median():
    now, calls = [0.0], []

    def call(name, durations):
        calls.append(name)
        now[0] += next(durations)

    durations = {"a": iter([9, 1, 5, 2]), "b": iter([9, 10, 30, 20])}
    variants = {name: lambda name=name: call(name, durations[name]) for name in durations}
    timings = measure.interleaved(variants, repeats=3, clock=lambda: now[0])
    assert calls == 4 * ["a", "b"]
    assert timings["a"].seconds == [1, 5, 2] and timings["a"].median == 2
    assert timings["b"].seconds == [10, 30, 20] and timings["b"].spread == [20, 15, 25]
    assert measure.speedup(timings["b"], timings["a"]) == 10  # of 10, 6 and 10


def test_peak_memory_is_that_of_the_call():
    large = measure.peak_memory(lambda: torch.ones(2**24).sum(), "cpu")
    if large is None:
        pytest.skip("the system does not report it")
    assert 2**25 < large < 2**28
    assert measure.peak_memory(lambda: torch.ones(2**10).sum(), "cpu") < 2**24


def test_exponents_are_slopes():
    assert measure.growth_exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert measure.growth_exponent([1, 10, 100], [1, 100, 10_000]) == pytest.approx(2)


def test_a_decoding_step_reads_all_weights_except_those_of_the_cached_patches(model):
    width, layers = model.config.hidden_size, 2
    # Rows are taken out of the embeddings; the words' matrix is read as the vocabulary projection.
    unread = model.decoder.wpe.weight.numel() + 2 * width  # and the last LayerNorm
    unread += layers * (width * 2 * width + 2 * width)  # projections to the keys and values of the patches
    weights = sum(p.numel() for p in model.decoder.parameters()) - unread
    assert measure.step_bytes(model) == 4 * weights


def test_tables_show_missing_figures_and_ratios():
    settings = {"size": "tiny", "dtype": ["float32"], "batch_size": 2, "repeats": 1}
    result = {"command": "train", "arguments": settings, "environment": environment(torch.device("cpu"))}
    result["tables"] = [measure.table("T", ["", "x"], [["a", 1.23456], ["b|c", None], ["d", 12345.6]])]
    shown = markdown(result | {"checks": {"equal": True}})
    assert "| a | 1.23 |\n| b/c | - |\n| d | 12,346 |" in shown and "equal: yes" in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error():
    with pytest.raises(SystemExit, match="no CUDA device"):
        main(["generate", "--device", "cuda"])
