"""Every code block of README.md, docs/usage.md and the rendered model card runs as printed.

The blocks run in a folder that looks like a checkout: the project's files, `outputs/demo` trained for a few steps and,
under the names that the documents print, small stand-ins for what a user brings: annotations, images, a lexicon, the
authors' release, and the two pretrained towers (`from_pretrained` reads a folder of that name before it asks a Hub).

Running them is slow, so `make test-slow` does it. `make` blocks are not run; the test checks that the targets exist.
The demo's training run is cut short, and the evaluation skips what needs Java.
"""

import ast
import configparser
import importlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPImageProcessorPil, CLIPModel

import train
from modeling_sevlm.model_card import render_model_card
from processing.artemis import EMOTIONS
from tests.helpers.hub_fixtures import visit, write_nrc_lexicon
from tests.helpers.tiny import save_gpt2
from tests.helpers.training import TINY_RUN, write_artemis
from tests.model.test_fidelity import write_release


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
TEMPLATE = (ROOT / "model_card.md").read_text(encoding="utf-8")
LEXICON_FILE = "NRC-VAD-Lexicon.txt"

# Words that identify a shell block.
MAKE, TRAIN, EVALUATE, PUBLISH = "make demo", "python train.py", "evaluate_sevlm.py", "sevlm push"
IMAGES, CONVERT = "sevlm explain", "convert_sevlm_checkpoint"
# Blocks that have run without an error.
EXECUTED: set[str] = set()


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Returns `(language, code)` of every fenced block."""
    blocks = re.findall(r"^```([^\n`]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert text.count("```") == 2 * len(blocks) and "~~~" not in text, "a block that this pattern misses"
    return blocks


def python_blocks(text: str) -> list[str]:
    return [code for language, code in code_blocks(text) if language == "python"]


def shell_block(words: str, document: str = README) -> str:
    """Returns the only shell block of a document that contains these words."""
    (code,) = [code for language, code in code_blocks(document) if language == "sh" and words in code]
    return code


def commands(code: str) -> list[list[str]]:
    """Returns the commands of a shell block as lists of words, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(checkout: Path, command: list[str], **environment: str) -> str:
    """Runs a command in the checkout with the project's environment and returns what it prints."""
    passed = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    passed |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HF_HOME": str(checkout / ".cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        # Without a GPU, the run is the same on every machine.
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(command, cwd=checkout, env=passed | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def run_block(checkout: Path, block: str, changes: tuple[str, str] = ("", ""), **environment: str) -> str:
    """Runs a shell block and returns what it prints; `changes` replace text that occurs in it once."""
    assert not changes[0] or block.count(changes[0]) == 1
    printed = run(checkout, ["bash", "-euo", "pipefail", "-c", block.replace(*changes)], **environment)
    EXECUTED.add(block)
    return printed


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    write_artemis(folder)
    (folder / "artemis.csv").rename(folder / "artemis_dataset_release_v0.csv")
    (folder / "images").rename(folder / "wikiart")
    write_nrc_lexicon(folder)
    write_towers(folder)
    write_release(folder / "RELEASE_DIR")
    demo = str(folder / "outputs" / "demo")
    train.main(["--output_dir", demo, "--num_paintings", "60", "--max_steps", "3", *TINY_RUN])
    for path in ROOT.iterdir():
        if path.name[0] != "." and path.name != "outputs" and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder


def write_towers(folder: Path) -> None:
    """Writes a CLIP for 224-pixel images with the width of the release's features, and a GPT-2."""
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=layers | {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config=layers | {"image_size": 224, "patch_size": 32},
    )
    tower = folder / "openai" / "clip-vit-base-patch16"
    CLIPModel(config).save_pretrained(tower)
    CLIPImageProcessorPil().save_pretrained(tower)
    save_gpt2(folder / "distilgpt2")


@pytest.fixture(scope="module")
def trained(checkout):
    """The checkout after the README's block on training."""
    short = "python train.py --num_paintings 60 --max_steps 2 --eval_strategy no --load_best_model_at_end false "
    run_block(checkout, shell_block(TRAIN), ("python train.py ", short))
    return checkout


@pytest.fixture(scope="module")
def printed_by_python(checkout):
    """What each Python block of README and usage prints, in a process of its own."""
    blocks = python_blocks(README) + python_blocks(USAGE)
    printed = [run(checkout, ["python", "-c", block]).splitlines() for block in blocks]
    EXECUTED.update(blocks)
    return printed


@pytest.fixture(scope="module")
def explained(checkout):
    """What the commands that explain images print."""
    table = checkout / "outputs" / "pictures.csv"
    run_block(checkout, shell_block(IMAGES))
    table.unlink()
    return run_block(checkout, shell_block(IMAGES, USAGE)), table


@pytest.fixture(scope="module")
def evaluated(checkout):
    """What the README's command for evaluation prints."""
    assert len(commands(shell_block(EVALUATE))) == 1
    return run_block(checkout, shell_block(EVALUATE))


@pytest.fixture(scope="module")
def converted(checkout):
    """The folder that the command for the authors' weights writes."""
    run_block(checkout, shell_block(CONVERT, USAGE))
    return checkout / "outputs" / "authors"


@pytest.fixture(scope="module")
def published(hub, checkout):
    """The Hub after the README's block on publishing, and what the block printed."""
    account = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    return hub, run_block(checkout, shell_block(PUBLISH), **account, HF_HUB_DISABLE_XET="1")


@pytest.mark.slow
def test_every_block_of_readme_and_usage_runs(printed_by_python, explained, trained, evaluated, published, converted):
    blocks = {code for _, code in code_blocks(README) + code_blocks(USAGE)}
    assert all(words[0] == "make" for code in blocks - EXECUTED for words in commands(code))


def test_make_has_the_targets_of_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [words for language, code in code_blocks(README) if language == "sh" for words in commands(code)]
    targets = [words[1:] for words in lines if words[0] == "make"]
    assert ["demo"] in targets and ["test"] in targets
    for (target,) in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_extras_that_the_documents_install_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    documents = [ROOT / "README.md", ROOT / "model_card.md", *(ROOT / "docs").glob("*.md")]
    named = {name for path in documents for name in re.findall(r"'\.\[(\w+)\]'", path.read_text(encoding="utf-8"))}
    assert named and named <= set(extras)


@pytest.mark.slow
def test_the_python_blocks_print_what_they_promise(printed_by_python):
    (notebook,), (read, scores, asked), (result, explanation), quantised = printed_by_python
    assert quantised == []
    read, scores, asked, result = map(ast.literal_eval, (read, scores, asked, result))
    assert set(read[0]) == {"emotion", "explanation"}
    assert set(scores) == set(EMOTIONS) and math.isclose(sum(scores.values()), 1, abs_tol=1e-5)
    assert asked["emotion"] == "sadness" and isinstance(explanation, str)
    assert list(result) == ["emotion", "emotion_scores", "explanation", "alignment_score", "vad"]
    assert list(ast.literal_eval(notebook)) == list(result)
    assert result["emotion_scores"] == pytest.approx(scores, abs=1e-5)


@pytest.mark.slow
def test_the_commands_that_explain_images_print_a_table_and_write_one(explained):
    printed, path = explained
    assert "painting.png" in printed
    table = pd.read_csv(path)
    assert sorted(table["file"]) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.png"))
    assert {"emotion", "explanation"} <= set(table.columns)


@pytest.mark.slow
def test_the_training_commands_write_both_models(trained):
    assert (trained / "outputs" / "tiny" / "model.safetensors").exists()
    output = trained / "outputs" / "sevlm-artemis"
    assert json.loads((output / "training_log.json").read_text())[-1]["epoch"] == 35
    record = json.loads((output / "training.json").read_text())
    assert record["preset"] == "paper" and record["arguments"]["per_device_train_batch_size"] == 32
    model = AutoModel.from_pretrained(output)
    assert model.config.vad_lexicon["name"] == "NRC-VAD"
    tower = AutoModel.from_pretrained(trained / "openai" / "clip-vit-base-patch16").vision_model.state_dict()
    kept = model.vision_tower.state_dict()
    assert tower and all(torch.equal(kept[name.removeprefix("vision_model.")], tower[name]) for name in tower)


@pytest.mark.slow
def test_the_evaluation_command_writes_its_results(checkout, evaluated):
    results = json.loads((checkout / "outputs" / "demo" / "evaluation" / "results.json").read_text())
    for name in ("accuracy", "unique", "language_loss", "emotion_loss", "contrastive_loss"):
        assert math.isfinite(results[name]), name
    for name in ("label_nll", "prior_label_nll"):
        assert math.isfinite(results[name]) and name in evaluated


@pytest.mark.slow
def test_the_publishing_command_leaves_a_complete_repository(published):
    hub, printed = published
    assert "/org/sevlm-demo/commit/" in printed and len(hub.titles("org/sevlm-demo")) == 2
    parts = {"model.safetensors", "processor_config.json", "modeling_sevlm.py", "pipeline_sevlm.py", "README.md"}
    assert parts <= set(hub.listing("org/sevlm-demo"))


@pytest.mark.slow
def test_the_authors_converted_weights_load_from_the_folder_and_from_the_hub(converted, hub, tmp_path):
    output = converted
    model, processor = AutoModel.from_pretrained(output).eval(), AutoProcessor.from_pretrained(output)
    picture = processor(images=Image.open(ROOT / "docs" / "painting.png"), emotions="awe", return_tensors="pt")
    assert processor.read(model.generate(**picture, do_sample=False))[0]["emotion"] == "awe"
    # The card names the release; the lexicon, which may not be redistributed, is not there.
    assert "best-acc" in (output / "README.md").read_text() and not (output / "vad_lexicon.tsv").exists()
    done = visit(hub, tmp_path / "publisher", ["-m", "modeling_sevlm.push", output, "org/authors"], python_path=[ROOT])
    assert done.returncode == 0, done.stderr[-4000:]
    assert "jing5566/SEVLM" in hub.contents("org/authors")["README.md"].decode()
    code = f"""
from PIL import Image
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained("org/authors", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("org/authors", trust_remote_code=True)
image = Image.open({str(ROOT / "docs" / "painting.png")!r})
print(model.generate(**processor(images=image, emotions="awe", return_tensors="pt"), do_sample=False)[0].tolist())
"""
    done = visit(hub, tmp_path / "visitor", ["-c", code])
    assert done.returncode == 0, done.stderr[-4000:]
    assert ast.literal_eval(done.stdout) == model.generate(**picture, do_sample=False)[0].tolist()


@pytest.mark.slow
def test_the_python_of_the_model_card_runs_as_printed(published, trained, tmp_path):
    """Runs two cards in one process without the project: the published model's, and that of a model saved without its
    lexicon, which has every block of the template."""
    hub, _ = published
    cards = [
        hub.contents("org/sevlm-demo")["README.md"].decode(),
        str(render_model_card(trained / "outputs" / "sevlm-artemis", "outputs/sevlm-artemis")),
    ]
    assert len(python_blocks(cards[1])) == len(python_blocks(TEMPLATE)) == 2
    (tmp_path / "outputs").symlink_to(trained / "outputs")
    shutil.copy(trained / LEXICON_FILE, tmp_path)
    Image.open(ROOT / "docs" / "painting.png").convert("RGB").save(tmp_path / "painting.jpg")
    code = "import sys\nassert sys.modules.get('modeling_sevlm') is None\n"
    for card in cards:
        code += "\n".join(python_blocks(card)) + "\n"
        code += "assert type(model).__module__.startswith('transformers_modules.')\n"
        code += "print(processor.vad_lexicon.name, model.vad_lookup.has_table)\n"
    done = visit(hub, tmp_path, ["-c", code])
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    first, second = lines[:4], lines[4:]
    for read, scores, result, _ in (first, second):
        scores, result = ast.literal_eval(scores), ast.literal_eval(result)
        assert set(ast.literal_eval(read)[0]) == {"emotion", "explanation"}
        assert set(scores) == set(EMOTIONS)
        assert list(result) == ["emotion", "emotion_scores", "explanation", "alignment_score", "vad"]
        assert result["emotion_scores"] == pytest.approx(scores, abs=1e-5)
    assert first[3] == "SEVLM embedded lexicon True" and second[3] == "NRC-VAD True"


def test_the_other_blocks_of_the_model_card_are_citations():
    for language, code in code_blocks(TEMPLATE):
        if language != "python":
            assert language == "bibtex", f"no test runs blocks of {language!r}"
            entries = re.findall(r"^@\w+\{\w+,\n((?:  \w+ = \{.*\},?\n)+)\}$", code, re.MULTILINE)
            assert len(entries) == code.count("@") > 0
            for entry in entries:
                assert set(re.findall(r"^  (\w+) = ", entry, re.MULTILINE)) >= {"title", "author", "year"}


# What docs/evaluation.md describes takes hours, so only the arguments of its commands are checked.
EVALUATION_COMMANDS = [
    words
    for language, code in code_blocks((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"))
    for words in commands(code.replace("[arguments of train.py]", ""))
    if words[0] == "python"
]


@pytest.mark.parametrize("words", EVALUATION_COMMANDS, ids=lambda words: " ".join(words[1:3]))
def test_the_commands_of_the_evaluation_document_have_these_arguments(words, capsys, monkeypatch):
    _, *arguments = words
    name = arguments[1] if arguments[0] == "-m" else arguments[0].removesuffix(".py")
    if (ROOT / name / "__main__.py").exists():
        name += ".__main__"
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(name).main(["--help"])
    assert not stopped.value.code
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert known and {word for word in arguments if word.startswith("--")} <= known
