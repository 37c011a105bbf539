"""Publish the app as a Hugging Face Space that shows a model from the Hub.

    python -m modeling_sevlm.space org/sevlm-artemis org/sevlm
    python -m modeling_sevlm.space outputs/demo ./space             # only write the folder

The Space gets the app with its code, requirements pinned to the installed versions, a card and the model's name.
"""

import configparser
import re
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.utils import validate_repo_id

from processing.files import write_text
from processing.script_utils import errors_as_exit

from .hub import PushError, commit_folder, hub_errors, push_parser


ROOT = Path(__file__).resolve().parent.parent
DATA_FILES = ("*/py.typed", "processing/embedded_vad.tsv", "processing/toy_grammar.toml")
PAGE_FILES = ("app*.py", "app*.css", "app*.js")
# Version 0.1.0 published a package `web`.
OUTDATED = re.compile(r"(modeling_sevlm|processing|web)/.+|app_\w+\.(py|css|js)")
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

Drop a painting: the model names an emotion, explains it, and shows how sure it is, why someone might feel otherwise,
and where it looked. It predicts what viewers like those in its training data would write, and can be wrong about what
is in the picture. Model: {model}.

`app.py` runs on any machine too: `pip install gradio -r requirements.txt`, then `python app.py`.
"""


def stage_space(folder: Path, model: str) -> None:
    """Writes the files of a Space that shows `model`, a name on the Hub or a path, to an empty `folder`."""
    if not (ROOT / "app.py").is_file():
        raise PushError(f"{ROOT} has no app.py: publish a Space from a checkout of the project.")
    # Only what the packages consist of: a lexicon or a secret next to the code must not be published.
    for pattern in ("modeling_sevlm/*.py", "processing/*.py", *DATA_FILES, "LICENSE", *PAGE_FILES):
        for file in ROOT.glob(pattern):
            target = folder / file.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(file, target)
    write_text(folder / "model.txt", model + "\n")
    write_text(folder / "requirements.txt", "".join(f"{line}\n" for line in requirements()))
    about = {"gradio": _installed("gradio"), "python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    models = f"models:\n- {model}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", model) else ""
    write_text(folder / "README.md", CARD.format(model=model, models=models, **about))


def requirements() -> list[str]:
    """Returns the project's requirements, pinned to the installed versions. The card's `sdk_version` pins Gradio."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    names = re.findall(r"^[\w.-]+", setup["options"]["install_requires"], re.MULTILINE)
    return [f"{name}=={_installed(name)}" for name in names]


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]  # PyPI does not know torch's "+cpu"
    except PackageNotFoundError as error:
        raise PushError(f"{name} is not installed, so its version is unknown: pip install -e '.[app]'") from error


def push_space(model: str, space: str, *, private: bool | None = None, create_pr: bool = False) -> CommitInfo:
    """Publishes a Space that shows `model` of the Hub, in one commit. Raises [`PushError`] if the Hub refuses."""
    validate_repo_id(space)
    with tempfile.TemporaryDirectory() as folder:
        stage_space(Path(folder), model)
        with hub_errors(space, f"The push to the Space {space} failed", "Push again to repeat it."):
            options: dict = {"repo_type": "space", "private": private, "create_pr": create_pr}
            return commit_folder(HfApi(), Path(folder), space, "Upload the SEVLM app", OUTDATED, **options)


def main(argv: list[str] | None = None) -> None:
    parser = push_parser("space", __doc__)
    parser.add_argument("model", help="name of the model on the Hub")
    parser.add_argument("space", help="org/name of the Space, or ./FOLDER to write the files to")
    args = parser.parse_args(argv)
    with errors_as_exit():
        if not args.space.startswith((".", "/", "~")):
            commit = push_space(args.model, args.space, private=args.private, create_pr=args.create_pr)
            print(commit.pr_url or commit.commit_url)
            return
        folder = Path(args.space).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise PushError(f"{folder} is not empty: name another folder.")
        # A relative path would be wrong: the app runs in another folder.
        stage_space(folder, str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model)
        print(folder)


if __name__ == "__main__":
    main()
