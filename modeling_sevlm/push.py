"""Publish a checkpoint folder on the Hub in one commit.

    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis
    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis --space org/sevlm   # the app too
    python -m modeling_sevlm.push outputs/sevlm-artemis org/sevlm-artemis --private --revision v2 --message "35 epochs"

The repository gets config, weights, generation config, processor, tokenizer, a model card and the code of this
installation, but no optimizer states, logs, pickles or code from the folder. A VAD lexicon is published if its owner
allows it or with `--include_vad_lexicon`. An interrupted push leaves the repository unchanged: run it again.

    python -m modeling_sevlm.push outputs/adapter org/sevlm-mine --base_model org/sevlm-artemis

publishes a LoRA adapter for a model that is on the Hub: its weights, processor, tokenizer and card.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.dynamic_module_utils import get_relative_import_files

from processing import SEVLMProcessor, processing_sevlm
from processing.files import write_json
from processing.script_utils import errors_as_exit

from .adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .card_sevlm import CARD_FILE, LEXICON_TABLE, is_hub_name, stored_tensors
from .configuration_sevlm import SEVLMConfig
from .hub import PushError, check_token, commit_folder, find_destination, hub_errors, push_parser
from .model_card import write_model_card
from .modeling_sevlm import SEVLMForConditionalGeneration
from .space import push_space


Processor = SEVLMProcessor | str | os.PathLike | None
MESSAGE = "Upload SEVLM"
PROCESSOR_FILES = ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]
PROCESSOR_FILES += [Path(file).name for file in get_relative_import_files(processing_sevlm.__file__)]
PROCESSOR_FILES += [Path(processing_sevlm.__file__).name]
NEEDED = [CARD_FILE, "config.json", "generation_config.json", "*.safetensors", *PROCESSOR_FILES]
NEEDED += [path.name for path in Path(__file__).parent.glob("*_sevlm.py")]
NEEDED_BY_ADAPTER = [CARD_FILE, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *PROCESSOR_FILES]
# Files of an earlier push that would be read or run together with the new ones. A push deletes no others.
OUTDATED = re.compile(
    r"[^/]+(\.(safetensors|bin)(\.index\.json)?|_sevlm\.py)|vad_lexicon\.tsv|chat_template\.jinja"
    r"|(adapter_|generation_)?config\.json"
)


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
    base_model: str | None = None,
    token: str | None = None,
    blocking: bool = True,
) -> CommitInfo | Future:
    """Publishes a checkpoint folder in one commit and returns the commit, or its future if not `blocking`.

    Args:
        repository: `"org/name"`; created if it does not exist, as is the branch `revision`.
        processor: a processor or its folder (default: the checkpoint's).
        private: create a private repository, and refuse to push to a public one.
        include_vad_lexicon: publish the lexicon even if its owner does not allow redistribution.
        base_model: for an adapter, the name of its model on the Hub (default: as the adapter names it).
        blocking: `False` prepares the files and returns; the Hub is then contacted in the background.

    Raises:
        PushError: the folder is incomplete or the upload fails. The repository then loads as before.
    """
    validate_repo_id(repository)
    check_token(token)
    api = HfApi(token=token)
    # A trainer must not wait for the Hub.
    destination = find_destination(api, repository, private) if blocking else None
    staging = tempfile.TemporaryDirectory()
    folder = Path(staging.name)
    staged: dict = {"processor": processor, "include_vad_lexicon": include_vad_lexicon, "base_model": base_model}
    stage(Path(checkpoint), folder, repository, **staged)

    def upload() -> CommitInfo:
        with staging:
            name, holds_model = destination or find_destination(api, repository, private)
            state = "The repository still has its previous revision." if holds_model else "Nothing was published."
            with hub_errors(name, f"The push to {name} failed", f"{state} Push again to repeat it."):
                if name != repository:
                    write_model_card(folder, name, records=checkpoint)
                options: dict = {"private": private, "revision": revision, "create_pr": create_pr}
                return commit_folder(api, folder, name, message, OUTDATED, **options)

    return upload() if blocking else api.run_as_future(upload)


def stage(
    checkpoint: Path,
    folder: Path,
    repository: str,
    *,
    processor: Processor = None,
    include_vad_lexicon: bool = False,
    base_model: str | None = None,
) -> None:
    """Writes the files of the repository to an empty `folder` and checks that they are complete."""
    is_adapter = (checkpoint / ADAPTER_CONFIG).is_file()
    if is_adapter:
        _copy_adapter(checkpoint, folder, base_model)
    elif base_model is not None:
        raise PushError(f"--base_model is for adapters, and {checkpoint} is a model: leave it out.")
    else:
        _load_model(checkpoint).save_pretrained(folder, include_vad_lexicon=include_vad_lexicon)
    if processor is None or isinstance(processor, (str, os.PathLike)):
        source = Path(processor or checkpoint)
        if not (source / "processor_config.json").is_file():
            raise PushError(f"{source} has no processor: name a folder that has one (--processor FOLDER).")
        try:
            processor = SEVLMProcessor.from_pretrained(source, trust_remote_code=False)
        except (ValueError, OSError, TypeError) as error:
            raise PushError(f"Cannot load the processor in {source} without running code: {error}") from error
    if not isinstance(processor, SEVLMProcessor):
        raise PushError(f"The processor is a {type(processor).__name__}: load it with `processing.SEVLMProcessor`.")
    processor.save_pretrained(folder, include_vad_lexicon=include_vad_lexicon)
    write_model_card(folder, repository, records=checkpoint)
    check_complete(folder, NEEDED_BY_ADAPTER if is_adapter else NEEDED)
    if not include_vad_lexicon:
        check_lexicon_stays(folder)


def _load_model(checkpoint: Path) -> SEVLMForConditionalGeneration:
    if not (checkpoint / "config.json").is_file():
        raise PushError(f"{checkpoint} is not a checkpoint folder: it has no config.json.")
    try:
        model, info = SEVLMForConditionalGeneration.from_pretrained(checkpoint, output_loading_info=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise PushError(f"The model in {checkpoint} is damaged or does not fit its config.json: {error}") from error
    missing = sorted(info["missing_keys"])  # they hold random numbers now
    if (SEVLMConfig.from_pretrained(checkpoint).vad_lexicon or {}).get("table") and not model.vad_lookup.has_table:
        missing.append("vad_lookup")
    if missing:
        raise PushError(f"{checkpoint} lacks {len(missing)} weights ({missing[0]}, ...): save the whole model again.")
    return model


def _copy_adapter(checkpoint: Path, folder: Path, base_model: str | None) -> None:
    """Copies the adapter's files, which then name `base_model` or the model on the Hub that they named before."""
    about = json.loads((checkpoint / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    name = base_model or about["base_model_name_or_path"]
    if not is_hub_name(name):
        raise PushError(f"The adapter is for {name}, not on the Hub. Push that model, and name it with --base_model.")
    try:
        safe_open(checkpoint / ADAPTER_WEIGHTS, "pt")
        shutil.copyfile(checkpoint / ADAPTER_WEIGHTS, folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise PushError(f"The adapter in {checkpoint} is damaged: {error}") from error
    write_json(folder / ADAPTER_CONFIG, about | {"base_model_name_or_path": name})


def check_complete(folder: Path, needed: Sequence[str] = NEEDED) -> None:
    """Raises [`PushError`] unless `folder` has every file that a machine without this project needs to load it."""
    if missing := sorted(name for name in needed if not any(folder.glob(name))):
        raise PushError(f"The repository would lack {', '.join(missing)}.")


def check_lexicon_stays(folder: Path) -> None:
    """Raises [`PushError`] if `folder` has a lexicon, as a file or compiled, whose owner forbids redistribution."""
    lexicon, tensors = folder / "vad_lexicon.tsv", [name for name, _ in stored_tensors(folder)]
    found = [("processor_config.json", lexicon.exists(), lexicon.name)]
    if (folder / "config.json").is_file():
        found += [("config.json", any(name.startswith(LEXICON_TABLE) for name in tensors), "The compiled table")]
    for config, is_there, part in found:
        about = json.loads((folder / config).read_text(encoding="utf-8")).get("vad_lexicon") or {}
        if is_there and not about.get("redistributable"):
            raise PushError(f"{part} would be published, but its owner does not allow that.")


def main(argv: list[str] | None = None) -> None:
    parser = push_parser("push", __doc__)
    parser.add_argument("checkpoint", help="folder with model and processor")
    parser.add_argument("repository", help="org/name on the Hub")
    parser.add_argument("--processor", help="folder of the processor (default: the checkpoint)")
    parser.add_argument("--revision", help="branch to push to; created if it does not exist (default: main)")
    parser.add_argument("--message", default=MESSAGE, help=f"commit message (default: {MESSAGE})")
    parser.add_argument("--include_vad_lexicon", action="store_true", help="publish a lexicon whose terms forbid it")
    parser.add_argument("--base_model", help="name on the Hub of the model that an adapter is for")
    parser.add_argument("--space", help="org/name of a Space to publish too, with an app that shows this model")
    arguments = vars(parser.parse_args(argv))
    space = arguments.pop("space")
    with errors_as_exit():
        if space is not None and Path(arguments["checkpoint"], ADAPTER_CONFIG).is_file():
            raise PushError("--space needs a whole model: merge the adapter (docs/training.md), and push the result.")
        commit = push(**arguments)
        if space is not None:
            print(push_space(commit.repo_url.repo_id, space, private=arguments["private"]).commit_url)
    print(commit.pr_url or commit.commit_url)


if __name__ == "__main__":
    main()
