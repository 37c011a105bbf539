"""Pushing to the Hub: checks before a push, one commit, and errors that say what to do."""

import argparse
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from .training_folder import CONFIGS


class PushError(ValueError):
    """A push that was refused or interrupted. The message says what to do."""


def check_token(token: str | None) -> None:
    """Raises [`PushError`] if `token` has invalid characters. The libraries' own errors would print it."""
    if token and not re.fullmatch("[!-~]+", token):
        raise PushError("The token has a line break, a space or another invalid character. Run `hf auth login`.")


@contextlib.contextmanager
def hub_errors(repository: str, problem: str, remedy: str) -> Iterator[None]:
    """Turns an error of the Hub or the connection into a [`PushError`] with `problem`, cause and `remedy`."""
    try:
        yield
    # The class of a connection error depends on the HTTP library that huggingface_hub uses.
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status == 401:
            problem, remedy = "The Hub does not accept your token (401)", "Log in again with `hf auth login`."
        elif status == 403:
            problem = f"Your account may not write to {repository} (403)"
            remedy = "Use a token with write access, ask the owners, or open a pull request with --create_pr."
        raise PushError(f"{problem}: {error}\n{remedy}") from error


def find_destination(api: HfApi, repository: str, private: bool | None) -> tuple[str, bool]:
    """Returns the full name of a model repository, and whether it holds a model. Raises [`PushError`] if you are not
    logged in, or if `private` is true and the repository is public."""
    with hub_errors(repository, f"Cannot look up {repository} on the Hub", "Nothing was published."):
        user = api.whoami()["name"]
        repository = repository if "/" in repository else f"{user}/{repository}"
        try:
            info = api.model_info(repository)
        except RepositoryNotFoundError:
            return repository, False
    if private and not info.private:
        raise PushError(f"{repository} is public. Make it private in its settings, or push without --private.")
    return repository, any(file.rfilename in CONFIGS for file in info.siblings)


def commit_folder(
    api: HfApi,
    folder: Path,
    repository: str,
    message: str,
    outdated: re.Pattern,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Uploads `folder` in one commit, which also deletes other files whose paths match `outdated`. Creates repository
    and branch if needed."""
    # The author of a pull request may lack the right to create a repository.
    if not (create_pr and api.repo_exists(repository, repo_type=repo_type)):
        sdk = "gradio" if repo_type == "space" else None
        url = api.create_repo(repository, repo_type=repo_type, space_sdk=sdk, private=private, exist_ok=True)
        repository = url.repo_id
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repository, branch=revision, exist_ok=True)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    published = api.list_repo_files(repository, revision=revision, repo_type=repo_type)
    operations: list = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
    absent = [name for name in published if name not in names and outdated.fullmatch(name)]
    operations += [CommitOperationDelete(path_in_repo=name) for name in absent]
    # `upload_folder` splits large uploads into several commits, and the repository would be inconsistent in between.
    about: dict = {"commit_message": message, "repo_type": repo_type, "revision": revision, "create_pr": create_pr}
    return api.create_commit(repository, operations, **about)


def push_parser(module: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m modeling_sevlm.{module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--private", action="store_true", default=None, help="create a private repository")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of pushing")
    return parser
