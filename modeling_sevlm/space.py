# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Publish the app as a Hugging Face Space that shows a model of the Hub.

    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis --space org/sevlm     # model and Space
    python -m modeling_sevlm.space org/sevlm-artemis org/sevlm                                  # a Space for it
    python -m modeling_sevlm.space outputs/demo ./space                                # only write the folder

The Space gets `app.py` with the code that it imports, as they are in this checkout, the versions of this environment
as its requirements, a card, and the model's name in `model.txt`. It holds no weights. Never copied to the Hub itself.
"""

import argparse
import configparser
import os
import re
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from .push import PushError, _check_name, _raise_if_refused


ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("modeling_sevlm", "processing", "web")
SUFFIXES = (".py", ".css", ".toml", ".tsv")
MODEL_FILE = "model.txt"
MESSAGE = "Upload the SEVLM app"
CARD = """\
---
title: SEVLM
emoji: 🖼️
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
license: apache-2.0
{models}short_description: What a painting makes a viewer feel, and why
tags:
- art
- emotion
- image-to-text
suggested_hardware: cpu-basic
pinned: false
---

# What a painting makes a viewer feel, and why

Drop a painting: the model names an emotion, explains it, and shows how sure it is, why somebody might feel otherwise,
and where it looked. It predicts what viewers like those in its training data would write, and can be wrong about what
is in the picture. Model: {model}.

`app.py` runs on any machine too: `pip install gradio -r requirements.txt`, then `python app.py`.
"""


def stage_space(folder: str | os.PathLike, model: str) -> list[str]:
    """Put together in an empty `folder` what the Space is to hold.

    Args:
        model: its name on the Hub.

    Returns:
        The names of the files.

    Raises:
        PushError: if this is no checkout with the app, or something it needs is not installed.
    """
    folder = Path(folder)
    if not (ROOT / "app.py").is_file() or not (ROOT / "setup.cfg").is_file():
        raise PushError(f"{ROOT} has no app.py: a Space is published from a checkout of the project.")
    for name in ("app.py", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*")):
            if file.suffix in SUFFIXES and "__pycache__" not in file.parts:
                target = folder / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    (folder / MODEL_FILE).write_text(model + "\n", encoding="utf-8")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
    about = {"gradio": _installed("gradio"), "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    models = f"models:\n- {model}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", model) else ""
    card = CARD.format(model=model, models=models, **about)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def requirements() -> list[str]:
    """What the project needs, pinned to what is installed here; Gradio itself is the card's `sdk_version`."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = [line for line in setup["options"]["install_requires"].split("\n") if line.strip()]
    names = [re.match(r"[\w.-]+", line).group() for line in lines if not line.startswith("#")]
    return [f"{name}=={_installed(name)}" for name in names]


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]  # without "+cpu", which PyPI does not know
    except PackageNotFoundError as error:
        raise PushError(f"{name} is not installed, so that its version is unknown: pip install -e '.[app]'") from error


def push_space(
    model: str,
    space: str,
    *,
    private: bool | None = None,
    create_pr: bool = False,
    message: str = MESSAGE,
    token: str | None = None,
) -> CommitInfo:
    """Publish the app in one commit; code files of an earlier one that are no more go away, all else stays.

    Args:
        model: the name on the Hub of the model to show.
        space: `"org/name"`; created if there is none, public unless `private`.

    Raises:
        PushError: see [`stage_space`]; or the Hub does not take it, which leaves the Space as it was.
    """
    _check_name(space)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        names = stage_space(folder, model)
        try:
            url = api.create_repo(space, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
            there = api.list_repo_files(url.repo_id, repo_type="space")
            outdated = [name for name in there if name.split("/")[0] in PACKAGES and name not in names]
            return api.create_commit(
                url.repo_id,
                [CommitOperationAdd(path_in_repo=name, path_or_fileobj=Path(folder, name)) for name in names]
                + [CommitOperationDelete(path_in_repo=name) for name in outdated],
                repo_type="space",
                commit_message=message,
                create_pr=create_pr,
            )
        # Which errors a broken connection raises depends on the HTTP library behind huggingface_hub.
        except Exception as error:
            _raise_if_refused(error, space)
            raise PushError(f"The push to the Space {space} broke off: {error}\nPush again to repeat it.") from error


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_sevlm.space",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="name of the model on the Hub")
    parser.add_argument("space", help="org/name of the Space, or ./FOLDER to write the files to")
    parser.add_argument("--private", action="store_true", default=None, help="create it private")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of pushing")
    args = parser.parse_args(argv)
    try:
        if args.space.startswith((".", "/", "~")):
            folder = Path(args.space).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise PushError(f"{folder} is not empty: name another folder.")
            # A model on this machine is found from there by its whole path only.
            stage_space(folder, os.path.abspath(args.model) if os.path.isdir(args.model) else args.model)
            print(folder)
        else:
            commit = push_space(args.model, args.space, private=args.private, create_pr=args.create_pr)
            print(commit.pr_url or commit.commit_url)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
