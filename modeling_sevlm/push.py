# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Publish a checkpoint folder: one commit that leaves a complete repository on the Hub, or nothing.

    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis
    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis --space org/sevlm   # the app too
    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis --private --revision v2 --message "35 epochs"

The repository gets config, weights (safetensors), generation config, processor, tokenizer, their code and a model
card, made anew from the folder in a temporary one: optimizer states, logs and pickles stay where they are. A VAD
lexicon goes along only if its owner allows it, or with `--include_vad_lexicon`. A push that breaks off leaves the
repository as it was; run it again. The code is this installation's: what lies in the folder is neither run nor
published. Never copied to the Hub.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from processing import SEVLMProcessor

from .checkpoint_sevlm import CARD_FILE
from .model_card import write_model_card
from .modeling_sevlm import SEVLMForConditionalGeneration


MESSAGE = "Upload SEVLM"
LEXICON_FILE = "vad_lexicon.tsv"
NEEDED = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json", CARD_FILE)
# Files of an earlier push that would be read, or run, beside the new ones; everything else in a repository stays, and
# so does what lies in folders.
OUTDATED = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", LEXICON_FILE, "*_sevlm.py")
OUTDATED += ("chat_template.jinja",)


class PushError(ValueError):
    """The folder cannot be published as it is, the Hub does not take it, or the push broke off; the message says what
    to do."""


@dataclass
class Destination:
    """What stands on the Hub before a push: the full name, and whether there is a model under it."""

    repository: str
    holds_model: bool


def push(
    checkpoint: str | os.PathLike,
    repository: str,
    *,
    processor: SEVLMProcessor | str | os.PathLike | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = MESSAGE,
    include_vad_lexicon: bool = False,
    token: str | None = None,
    blocking: bool = True,
) -> CommitInfo | Future:
    """Publish a folder in one commit.

    Args:
        checkpoint: a local folder with a SEVLM model.
        repository: `"org/name"`; created if there is none, public unless `private`.
        processor: a processor or the folder of one; by default the checkpoint's own.
        private: create the repository as a private one. One that is there and public is not pushed to.
        revision: branch to push to, created if there is none.
        create_pr: open a pull request instead.
        include_vad_lexicon: send along a lexicon that its owner does not allow to be passed on.
        blocking: `False` returns when everything is put together, and asks the Hub and uploads meanwhile.

    Returns:
        The commit, or its future.

    Raises:
        PushError: if something is missing in the folder, if the name or the account will not do, or if the upload
            fails. In all cases nobody who loads the repository sees a change.
    """
    api = HfApi(token=token)
    _check_name(repository)
    # Before the work, so that it is not in vain. A trainer, though, is not to wait for the Hub, nor to end with it.
    destination = find_destination(api, repository, private) if blocking else None
    staging = tempfile.TemporaryDirectory()
    try:
        stage(checkpoint, staging.name, repository, processor=processor, include_vad_lexicon=include_vad_lexicon)
    except BaseException:
        staging.cleanup()
        raise

    def upload() -> CommitInfo:
        with staging:
            folder, there = Path(staging.name), destination or find_destination(api, repository, private)
            try:
                if there.repository != repository:
                    write_model_card(folder, there.repository, records=checkpoint)
                return _commit(api, folder, there.repository, private, revision, create_pr, message)
            # Which errors a broken connection raises depends on the HTTP library behind huggingface_hub.
            except Exception as error:
                _raise_if_refused(error, there.repository)
                state = "Nothing was published."
                if there.holds_model:
                    state = "Whoever loads the repository still gets its previous revision."
                raise PushError(
                    f"The push to {there.repository} broke off: {error}\n{state} Push again to repeat it."
                ) from error

    return upload() if blocking else api.run_as_future(upload)


def _check_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise PushError(f"{repository!r} is no name for a repository: {error} Give it as org/name.") from error


def check_token(token: str | None) -> None:
    """Raises [`PushError`] for a token that can be none; the libraries' errors would print it."""
    if isinstance(token, str) and not (token.isascii() and token.isprintable() and " " not in token):
        raise PushError(
            "The token holds a line break, a space or another character that no token has: take it again from the "
            "Hub's settings, and log in with `hf auth login`, or set HF_TOKEN."
        )


def find_destination(api: HfApi, repository: str, private: bool | None) -> Destination:
    """Look who pushes and where to, without changing anything.

    Raises:
        PushError: if nobody is logged in, if `private` is asked for and the repository is public, or if there is no
            connection.
    """
    check_token(api.token)
    try:
        if "/" not in repository:
            repository = f"{api.whoami()['name']}/{repository}"
        else:
            api.whoami()
        try:
            info = api.model_info(repository)
        except RepositoryNotFoundError:
            return Destination(repository, False)
    except Exception as error:
        _raise_if_refused(error, repository)
        raise PushError(f"The Hub cannot be asked for {repository}: {error}\nNothing was published.") from error
    if private and not info.private:
        raise PushError(
            f"{repository} is there already and public, so that nothing was uploaded: make it private in its "
            "settings, push to another name, or leave out --private."
        )
    return Destination(repository, any(file.rfilename == "config.json" for file in info.siblings))


def _raise_if_refused(error: Exception, repository: str) -> None:
    """Raises [`PushError`] for an answer that pushing again will not change."""
    if isinstance(error, LocalTokenNotFoundError):
        raise PushError("Nobody is logged in to the Hub: `hf auth login`, or set HF_TOKEN.") from error
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        raise PushError(
            f"The Hub does not take your token (401): log in again with `hf auth login`.\n{error}"
        ) from error
    if status == 403:
        raise PushError(
            f"Your account may not write to {repository} (403): use a token with write access, ask its owners, or "
            f"offer a pull request with --create_pr.\n{error}"
        ) from error


def _commit(api: HfApi, folder: Path, repository, private, revision, create_pr, message) -> CommitInfo:
    # Whoever only proposes something may not be allowed to create anything.
    if not (create_pr and api.repo_exists(repository)):
        api.create_repo(repository, private=private, exist_ok=True)
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repository, branch=revision, exist_ok=True)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    outdated = [
        name
        for name in api.list_repo_files(repository, revision=revision)
        if name not in names and "/" not in name and any(fnmatch(name, pattern) for pattern in OUTDATED)
    ]
    # Not `upload_folder`: with xet it makes several commits, and between them the repository would be half old.
    return api.create_commit(
        repository,
        [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
        + [CommitOperationDelete(path_in_repo=name) for name in outdated],
        commit_message=message,
        revision=revision,
        create_pr=create_pr,
    )


def stage(
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    repository: str,
    *,
    processor: SEVLMProcessor | str | os.PathLike | None = None,
    include_vad_lexicon: bool = False,
) -> list[str]:
    """Put together in an empty `folder` what the repository is to hold; see [`push`].

    Returns:
        The names of the files.

    Raises:
        PushError: if a part is missing, or a lexicon would travel that may not.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if not (checkpoint / "config.json").is_file():
        raise PushError(f"{checkpoint} is no checkpoint folder: it has no config.json.")
    if not any(checkpoint.glob("*.safetensors")):
        raise PushError(
            f"{checkpoint} has no weights in safetensors. Pickled ones (pytorch_model.bin) are neither read nor "
            "published, as they can run code: save the model again with `save_pretrained`."
        )
    _load_model(checkpoint).save_pretrained(folder, include_vad_lexicon=include_vad_lexicon)
    if processor is None or isinstance(processor, (str, os.PathLike)):
        processor = _load_processor(Path(checkpoint if processor is None else processor))
    if not isinstance(processor, SEVLMProcessor):
        raise PushError(
            f"The processor is a {type(processor).__module__}.{type(processor).__name__}, whose code would be "
            "published: load it with this installation's `processing.SEVLMProcessor.from_pretrained`."
        )
    processor.save_pretrained(folder, include_vad_lexicon=include_vad_lexicon)
    write_model_card(folder, repository, records=checkpoint)
    check_complete(folder)
    if not include_vad_lexicon:
        check_lexicon_stays(folder)
    return sorted(path.name for path in folder.iterdir())


def _load_model(checkpoint: Path) -> SEVLMForConditionalGeneration:
    """The model, if all of it is in the folder: what is not would be published as random numbers."""
    try:
        model, info = SEVLMForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    except (RuntimeError, SafetensorError) as error:
        raise PushError(f"The weights in {checkpoint} do not fit its config.json or are damaged: {error}") from error
    missing = sorted(info["missing_keys"])
    about = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if (about.get("vad_lexicon") or {}).get("table") and not model.vad_lookup.has_table:
        missing.append("vad_lookup")
    if missing:
        named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise PushError(f"The weights in {checkpoint} lack {named}: save the whole model again, then push.")
    return model


def _load_processor(folder: Path) -> SEVLMProcessor:
    if not (folder / "processor_config.json").is_file():
        raise PushError(f"{folder} holds no processor: name a folder that does (--processor FOLDER).")
    try:
        return SEVLMProcessor.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, TypeError) as error:
        raise PushError(f"The processor in {folder} cannot be loaded without code from there: {error}") from error


def check_complete(folder: Path) -> None:
    """Raises [`PushError`] unless `folder` holds everything that a machine without this project needs."""
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        missing.append("tokenizer.json")
    for name in ("config.json", "processor_config.json"):
        if (folder / name).is_file():
            references = list(_code_references(json.loads((folder / name).read_text(encoding="utf-8"))))
            if not references:
                missing.append(f"auto_map in {name}")
            for module in {reference.split(".")[0] for reference in references}:
                try:
                    get_relative_import_files(folder / f"{module}.py")
                except FileNotFoundError as error:
                    missing.append(Path(error.filename).name)
    if missing:
        raise PushError(f"The repository would lack {', '.join(sorted(set(missing)))}.")


def _code_references(config: dict) -> Iterator[str]:
    """`module.Class` of everything that a config says is read from code files."""
    for reference in config.get("auto_map", {}).values():
        yield from [reference] if isinstance(reference, str) else filter(None, reference)
    for pipeline in config.get("custom_pipelines", {}).values():
        yield pipeline["impl"]


def check_lexicon_stays(folder: Path) -> None:
    """Raises [`PushError`] if `folder` holds, as a file or compiled, a lexicon that may not be passed on."""
    about_model = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vad_lexicon") or {}
    about_processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))["vad_lexicon"] or {}
    if not about_processor.get("redistributable") and (folder / LEXICON_FILE).exists():
        raise PushError(f"{LEXICON_FILE} would be published, and its owner does not allow that.")
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            compiled = any(name.startswith("vad_lookup.") for name in tensors.keys())  # noqa: SIM118  (no dict)
        if compiled and not about_model.get("redistributable"):
            raise PushError("The compiled VAD lexicon would be published, and its owner does not allow that.")


def main(argv: list[str] | None = None) -> CommitInfo:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_sevlm.push",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="folder with model and processor")
    parser.add_argument("repository", help="org/name on the Hub")
    parser.add_argument("--processor", help="folder of the processor, if the checkpoint has none")
    parser.add_argument(
        "--private", action="store_true", default=None, help="create it private; never push to a public one"
    )
    parser.add_argument("--revision", help="branch to push to; created if there is none")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of pushing")
    parser.add_argument("--message", default=MESSAGE, help=f"of the commit (default: {MESSAGE})")
    parser.add_argument(
        "--include_vad_lexicon",
        action="store_true",
        help="publish the lexicon even if its owner does not allow it to be passed on; ask the owner first",
    )
    parser.add_argument("--space", help="org/name of a Space to publish too, an app that shows this model")
    args = parser.parse_args(argv)
    arguments = vars(args)
    space = arguments.pop("space")
    try:
        commit = push(**arguments)
        if space is not None:
            from .space import push_space  # which imports this module

            print(push_space(commit.repo_url.repo_id, space, private=args.private).commit_url)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(commit.pr_url or commit.commit_url)
    return commit


if __name__ == "__main__":
    main()
