"""A published Space runs in a folder of its own, without this checkout."""

import os
import re
import subprocess
import sys
import time
from unittest.mock import MagicMock

import pytest
import yaml
from huggingface_hub import CommitOperationDelete

from modeling_sevlm import space
from modeling_sevlm.hub import PushError
from tests.helpers.hub_fixtures import ROOT


pytest.importorskip("gradio", reason="gradio is missing: pip install -e '.[app]'")

from gradio_client import Client, handle_file  # noqa: E402


def files(folder) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_a_space_has_a_card_pinned_requirements_and_the_code(tmp_path):
    space.stage_space(tmp_path, "org/sevlm-artemis")
    names = files(tmp_path)
    assert {"app.py", "LICENSE", "README.md", "requirements.txt", "model.txt"} <= names
    assert {"modeling_sevlm/__init__.py", "processing/embedded_vad.tsv", "processing/toy_grammar.toml"} <= names
    assert {"app_page.py", "app_uploads.py", "app_page.css", "app_page.js"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    card = yaml.safe_load((tmp_path / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["license"] == "apache-2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", card["sdk_version"]) and card["models"] == ["org/sevlm-artemis"]
    assert len(card["short_description"]) <= 60
    lines = (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert {"torch", "transformers", "pillow"} <= {line.split("==")[0] for line in lines}


def test_modules_next_to_the_app_are_published_and_private_files_are_not(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    packages = {"modeling_sevlm/__init__.py", "processing/__init__.py"}
    for name in ("app.py", "app_page.py", "setup.cfg", "LICENSE", "train.py", *packages):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("[options]\ninstall_requires =\n    torch>=2.6\n" if name == "setup.cfg" else "")
    for private in ("processing/NRC-VAD-Lexicon.txt", "processing/lexicon.tsv", "modeling_sevlm/.env"):
        (checkout / private).write_text("private")
    monkeypatch.setattr(space, "ROOT", checkout)
    (tmp_path / "space").mkdir()
    space.stage_space(tmp_path / "space", "org/model")
    written = {"README.md", "requirements.txt", "model.txt", "app.py", "app_page.py", "LICENSE"}
    assert files(tmp_path / "space") == written | packages
    (checkout / "app.py").unlink()
    with pytest.raises(PushError, match="has no app.py"):
        space.stage_space(tmp_path / "space", "org/model")


def test_a_staged_space_starts_and_answers(tmp_path, model, processor):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    space.stage_space(tmp_path, "model")
    environment = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w") as output:
        app = subprocess.Popen(
            [sys.executable, "app.py"], cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 180
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())):
            assert app.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        visitor = Client(found.group(), verbose=False)
        answer = visitor.predict(handle_file(ROOT / "docs" / "painting.png"), api_name="/explain")
        assert len(answer["emotion_scores"]) == 9
    finally:
        app.terminate()
        app.wait(timeout=30)


def test_a_space_is_pushed_in_one_commit_that_deletes_outdated_code(monkeypatch):
    outdated, api = ["app_old.py", "modeling_sevlm/old_sevlm.py", "web/old.css"], MagicMock()
    api.list_repo_files.return_value = ["README.md", "pictures/mine.png", "mine.py", *outdated]
    monkeypatch.setattr(space, "HfApi", lambda: api)
    assert space.push_space("org/model", "org/space", private=True) is api.create_commit.return_value
    options = {"repo_type": "space", "space_sdk": "gradio", "private": True, "exist_ok": True}
    api.create_repo.assert_called_once_with("org/space", **options)
    api.create_commit.assert_called_once()
    assert api.create_commit.call_args.kwargs["repo_type"] == "space"
    operations = api.create_commit.call_args.args[1]
    assert [o.path_in_repo for o in operations if isinstance(o, CommitOperationDelete)] == outdated

    api.create_commit.side_effect = ConnectionError("gone")
    with pytest.raises(PushError, match="failed: gone"):
        space.push_space("org/model", "org/space")
    with pytest.raises(ValueError, match="Repo id must"):
        space.push_space("org/model", "a/b/c")


def test_a_space_can_be_written_to_an_empty_folder(tmp_path, monkeypatch):
    """A local model is named by its absolute path, because the app runs in another folder."""
    monkeypatch.chdir(tmp_path)
    space.main(["org/model", str(tmp_path / "space")])
    assert (tmp_path / "space" / "model.txt").read_text() == "org/model\n"
    with pytest.raises(SystemExit, match="not empty"):
        space.main(["org/model", str(tmp_path / "space")])

    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    space.main(["outputs/demo", "./local"])
    assert (tmp_path / "local" / "model.txt").read_text() == f"{tmp_path / 'outputs' / 'demo'}\n"
    card = yaml.safe_load((tmp_path / "local" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert "models" not in card, "it is not on the Hub"
