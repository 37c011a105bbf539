# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The facts that tie a model card to a checkpoint. A push uses them to keep, rename or replace a card."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import ModelCard, hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError
from safetensors import safe_open


CARD_FILE = "README.md"
# Prefix of the compiled lexicon's tensors.
LEXICON_TABLE = "vad_lookup."


def training_lexicon(vad_lexicon: dict | None) -> dict | None:
    """Returns the part of `config.vad_lexicon` that describes the lexicon used in training."""
    known = (vad_lexicon or {}).get("trained_with", vad_lexicon)
    return {name: value for name, value in known.items() if name != "table"} if known else None


def describe_lexicon(known: dict) -> str:
    version = f" {known['version']}" if known.get("version") else ""
    return f"{known.get('name')}{version} ({known.get('num_listed')} words, {known.get('num_inflected')} forms)"


def is_hub_name(name: str | None) -> bool:
    """Whether a string is the name of a repository and not a path."""
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name or "") is not None and not os.path.exists(name)


def license_link(repository: str) -> str | None:
    """Returns the address of the card's terms. The Hub accepts a URL or a file named LICENSE."""
    return f"https://huggingface.co/{repository}#data-and-terms" if "/" in repository else None


def stored_tensors(folder: str | os.PathLike) -> Iterator[tuple[str, safe_open]]:
    """Yields the name of each tensor in the safetensors files of `folder`, and the open file that holds it."""
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (safe_open is not a dict)
                yield name, file


def weights_digest(folder: str | os.PathLike) -> str:
    """Returns a digest of all weights, independent of sharding, without the compiled lexicon."""
    lines = []
    for name, file in stored_tensors(folder):
        if not name.startswith(LEXICON_TABLE):
            tensor = file.get_tensor(name)
            content = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy()).hexdigest()
            lines.append(f"{name} {tensor.dtype} {list(tensor.shape)} {content}\n")
    return "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()[:32]


def card_facts(folder: str | os.PathLike) -> dict:
    """Returns the facts about the model in `folder` that a card's metadata records."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    return describe_weights(folder, config.get("vad_lexicon"))


def describe_weights(folder: str | os.PathLike, lexicon: dict | None) -> dict:
    """Returns the facts about the weights in `folder`, of a model or an adapter with this `config.vad_lexicon`."""
    facts = {"weights": weights_digest(folder), "vad_lexicon": "none", "includes_vad_lexicon": False}
    if lexicon:
        facts["vad_lexicon"] = describe_lexicon(training_lexicon(lexicon))
        facts["includes_vad_lexicon"] = bool(lexicon.get("table"))
        if "trained_with" in lexicon:
            facts["replaced_by"] = describe_lexicon(lexicon)
    return facts


def read_facts(card: Path | None) -> dict | None:
    """Returns the facts that a card states; `None` if there is no card, or if this project did not write it."""
    try:
        return (metadata_load(card) or {}).get("sevlm") if card is not None else None
    except (OSError, ValueError):
        return None


def renamed_card(card: Path, repository: str) -> str:
    """Returns the text of a card for another repository of the same model."""
    text = card.read_text(encoding="utf-8")
    found = re.search(r'from_pretrained\("([^"]+)"', text)
    if found:
        old = found[1]
        for before, after in (('"', '"'), ("evaluate_sevlm.py ", " "), ("https://huggingface.co/", "#")):
            text = text.replace(f"{before}{old}{after}", f"{before}{repository}{after}")
        old_name, new_name = re.escape(old.split("/")[-1]), repository.split("/")[-1]
        text = re.sub(rf"^(# |- name: ){old_name}$", rf"\g<1>{new_name}", text, flags=re.MULTILINE)
    renamed = ModelCard(text, ignore_metadata_errors=True)
    if renamed.data.get("license") == "other":
        renamed.data["license_link"] = license_link(repository)
    return str(renamed)


def published_card(repository: str, revision: str | None, token: bool | str | None) -> Path | None:
    """Downloads the card that a push to `revision` replaces."""
    try:
        return Path(hf_hub_download(repository, CARD_FILE, revision=revision, token=token))
    except RevisionNotFoundError:  # a new branch starts from `main`, with its card
        return published_card(repository, None, token) if revision is not None else None
    except EntryNotFoundError:
        return None
