"""Fixtures shared by the tests. No test needs a network; the environment says so to every library and subprocess."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny operations on several threads spend their time waiting for one another, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

from modeling_sevlm import explain as command_line  # noqa: E402
from tests.helpers.hub_fixtures import hub  # noqa: E402, F401
from tests.helpers.tiny import tiny_model, tiny_processor  # noqa: E402


# The suite tries the same examples each time; `make torture` tries others, and more (tests/helpers/examples.py):
# pytest --hypothesis-profile=torture --hypothesis-seed=7
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None)
hypothesis.settings.register_profile("torture", deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture
def model(processor):
    return tiny_model(processor)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The path of a saved model with its processor; tests copy it before they change it."""
    folder, processor = tmp_path_factory.mktemp("checkpoint"), tiny_processor()
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def explain(checkpoint):
    """Runs the command with a model that generates two tokens."""
    options = ["--model", checkpoint, "--device", "cpu", "--max_new_tokens", "2"]
    return lambda *arguments: command_line.main([*options, *map(str, arguments)])
