"""Fixtures of the tests of `sevlm explain --output`."""

from pathlib import Path

import pytest

from modeling_sevlm import SEVLMForConditionalGeneration, explain_folder
from tests.helpers.images import draw


@pytest.fixture
def tower(monkeypatch):
    """Records the number of pictures in each call of the vision tower."""
    counts, encode = [], SEVLMForConditionalGeneration.encode_images
    monkeypatch.setattr(
        SEVLMForConditionalGeneration, "encode_images", lambda self, x: counts.append(len(x)) or encode(self, x)
    )
    return counts


@pytest.fixture
def run(explain, tmp_path):
    """Explains twelve pictures and a corrupt one in batches of four; `more` are options."""
    folder, output = draw(tmp_path / "pictures", 12), tmp_path / "out" / "explanations.csv"
    (folder / "0001.jpg").write_text("a painting")

    def run(*more: str, pictures=(folder,)) -> int:
        return explain(*pictures, "--output", output, "--batch_size", 4, "--emotion", "awe", *more)

    run.output, run.part, run.pictures = output, Path(f"{output}.part"), folder
    return run


@pytest.fixture
def interrupt(run, monkeypatch):
    """Runs the command and simulates Ctrl-C after `finished` batches are written."""

    def interrupt(*more: str, finished: int = 1, **kwargs) -> None:
        left, append = [finished], explain_folder.append_line

        def stopping(file, content):
            if isinstance(content, list):
                if not left[0]:
                    raise KeyboardInterrupt
                left[0] -= 1
            append(file, content)

        with monkeypatch.context() as patch:
            patch.setattr(explain_folder, "append_line", stopping)
            assert run(*more, **kwargs) == 130

    return interrupt
