# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Publish a checkpoint folder on the Hub in one commit.

    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis
    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis --space org/sevlm   # the app too
    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis --private --revision v2 --message "35 epochs"

The repository gets config, weights, generation config, processor, tokenizer, a model card and the code of this
installation, but no optimizer states, logs, pickles or code of the folder. A VAD lexicon is published if its owner
allows it or with `--include_vad_lexicon`. An interrupted push leaves the repository unchanged: run it again.
"""

import json
import os
import re
import tempfile
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers.dynamic_module_utils import get_relative_import_files

from processing import SEVLMProcessor
from processing.script_utils import errors_as_exit

from .card_sevlm import CARD_FILE, LEXICON_TABLE, stored_tensors
from .configuration_sevlm import SEVLMConfig
from .hub import PushError, check_token, commit_folder, find_destination, hub_errors, push_parser
from .model_card import write_model_card
from .modeling_sevlm import SEVLMForConditionalGeneration
from .space import push_space


Processor = SEVLMProcessor | str | os.PathLike | None
MESSAGE = "Upload SEVLM"
LEXICON_FILE = "vad_lexicon.tsv"
NEEDED = ["config.json", "generation_config.json", "*.safetensors", CARD_FILE]
NEEDED += ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]
NEEDED_CODE = ("modeling_sevlm.py", "pipeline_sevlm.py", "processing_sevlm.py")
# Files of an earlier push that would be read or run together with the new ones. A push deletes no others.
OUTDATED = re.compile(r"[^/]+(\.(safetensors|bin)(\.index\.json)?|_sevlm\.py)|vad_lexicon\.tsv|chat_template\.jinja")


def push(
    checkpoint: str | os.PathLike,
    repository: str,
    *,
    processor: Processor = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = MESSAGE,
    include_vad_lexicon: bool = False,
    token: str | None = None,
    blocking: bool = True,
) -> CommitInfo | Future:
    """Publishes a checkpoint folder in one commit and returns the commit, or its future if not `blocking`.

    Args:
        checkpoint: local folder with a SEVLM model.
        repository: `"org/name"`; created if it does not exist.
        processor: a processor or its folder (default: the checkpoint's).
        private: create a private repository, and refuse to push to a public one.
        revision: branch to push to; created if it does not exist.
        create_pr: open a pull request instead of pushing.
        include_vad_lexicon: publish the lexicon even if its owner does not allow redistribution.
        blocking: `False` prepares the files and returns; the Hub is then contacted in the background.

    Raises:
        PushError: if the folder is incomplete, you may not write there, or the upload fails. The repository then loads
            as before.
    """
    validate_repo_id(repository)
    check_token(token)
    api = HfApi(token=token)
    # Before the files are prepared, so that this work is not wasted. A trainer must not wait for the Hub, though.
    destination = find_destination(api, repository, private) if blocking else None
    staging = tempfile.TemporaryDirectory()
    folder = Path(staging.name)
    stage(Path(checkpoint), folder, repository, processor=processor, include_vad_lexicon=include_vad_lexicon)

    def upload() -> CommitInfo:
        with staging:
            name, holds_model = destination or find_destination(api, repository, private)
            state = "The repository still has its previous revision." if holds_model else "Nothing was published."
            with hub_errors(name, f"The push to {name} broke off", f"{state} Push again to repeat it."):
                if name != repository:
                    write_model_card(folder, name, records=checkpoint)
                return commit_folder(
                    api, folder, name, message, OUTDATED, private=private, revision=revision, create_pr=create_pr
                )

    return upload() if blocking else api.run_as_future(upload)


def stage(
    checkpoint: Path, folder: Path, repository: str, *, processor: Processor = None, include_vad_lexicon: bool = False
) -> None:
    """Writes the files of the repository to an empty `folder` and checks that they are complete; see [`push`]."""
    if not (checkpoint / "config.json").is_file():
        raise PushError(f"{checkpoint} is not a checkpoint folder: it has no config.json.")
    _load_model(checkpoint).save_pretrained(folder, include_vad_lexicon=include_vad_lexicon)
    if processor is None or isinstance(processor, (str, os.PathLike)):
        processor = _load_processor(Path(processor or checkpoint))
    if not isinstance(processor, SEVLMProcessor):
        raise PushError(
            f"{type(processor)} is another processor class: use `processing.SEVLMProcessor.from_pretrained`."
        )
    processor.save_pretrained(folder, include_vad_lexicon=include_vad_lexicon)
    write_model_card(folder, repository, records=checkpoint)
    check_complete(folder)
    if not include_vad_lexicon:
        check_lexicon_stays(folder)


def _load_model(checkpoint: Path) -> SEVLMForConditionalGeneration:
    try:
        model, info = SEVLMForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise PushError(f"The model in {checkpoint} is damaged or does not fit its config.json: {error}") from error
    missing = sorted(info["missing_keys"])  # random numbers now
    if (SEVLMConfig.from_pretrained(checkpoint).vad_lexicon or {}).get("table") and not model.vad_lookup.has_table:
        missing.append("vad_lookup")
    if missing:
        raise PushError(f"{checkpoint} lacks {len(missing)} weights ({missing[0]}, ...): save the whole model again.")
    return model


def _load_processor(folder: Path) -> SEVLMProcessor:
    if not (folder / "processor_config.json").is_file():
        raise PushError(f"{folder} has no processor: name a folder that has one (--processor FOLDER).")
    try:
        return SEVLMProcessor.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, TypeError) as error:
        raise PushError(f"Cannot load the processor in {folder} without running code from there: {error}") from error


def check_complete(folder: Path) -> None:
    """Raises [`PushError`] unless `folder` has every file that a machine without this project needs to load it."""
    missing = {name for name in NEEDED if not any(folder.glob(name))}
    for name in NEEDED_CODE:
        try:
            get_relative_import_files(folder / name)
        except FileNotFoundError as error:
            missing.add(Path(error.filename).name)
    if missing:
        raise PushError(f"The repository would lack {', '.join(sorted(missing))}.")


def check_lexicon_stays(folder: Path) -> None:
    """Raises [`PushError`] if `folder` has a lexicon, as a file or compiled, whose owner forbids redistribution."""
    for config, is_there, what in (
        ("processor_config.json", (folder / LEXICON_FILE).exists(), LEXICON_FILE),
        (
            "config.json",
            any(name.startswith(LEXICON_TABLE) for name, _ in stored_tensors(folder)),
            "The compiled table",
        ),
    ):
        about = json.loads((folder / config).read_text(encoding="utf-8")).get("vad_lexicon") or {}
        if is_there and not about.get("redistributable"):
            raise PushError(f"{what} would be published, but its owner does not allow that.")


def main(argv: list[str] | None = None) -> None:
    parser = push_parser("push", __doc__)
    parser.add_argument("checkpoint", help="folder with model and processor")
    parser.add_argument("repository", help="org/name on the Hub")
    parser.add_argument("--processor", help="folder of the processor (default: the checkpoint)")
    parser.add_argument("--revision", help="branch to push to; created if it does not exist (default: main)")
    parser.add_argument("--message", default=MESSAGE, help=f"commit message (default: {MESSAGE})")
    parser.add_argument(
        "--include_vad_lexicon", action="store_true", help="publish it in any case; ask its owner first"
    )
    parser.add_argument("--space", help="org/name of a Space to publish too, with an app that shows this model")
    arguments = vars(parser.parse_args(argv))
    space = arguments.pop("space")
    with errors_as_exit():
        commit = push(**arguments)
        if space is not None:
            print(push_space(commit.repo_url.repo_id, space, private=arguments["private"]).commit_url)
    print(commit.pr_url or commit.commit_url)


if __name__ == "__main__":
    main()
