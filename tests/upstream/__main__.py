"""Runs the test suites of transformers' models and processors on ours: `make upstream`.

    python -m tests.upstream            # for the installed version of transformers

The source distribution on PyPI has the suites, which are not part of the wheel. pip downloads it to `.upstream/`. It
lacks the suites for generation and export and three helpers of the repository: empty modules replace them.

Prints a table of passed, failed and skipped tests, and every failure and skip with its reason. The exit code is 1 if a
test fails or is skipped that `REASONS` or `SKIPS` does not explain, or if a test passes that `REASONS` explains.
"""

import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.metadata import version
from pathlib import Path


CACHE = Path(__file__).parents[2] / ".upstream"
STAND_INS = {
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url): return url\n",
}
MINIMUM = 110  # the lowest number of tests that pass with any supported version
# Failing tests with a part of their message.
REASONS = {
    ("test_generation_tester_mixin_inheritance", "GenerationTesterMixin"): "the mixin for generation is not on PyPI",
    ("test_model_base_model_prefix", "False is not true"): "the model has no part that is a model without heads",
    ("test_call_arguments_not_in_attributes", "{'emotions'}"): "labels of the processor, and of a call",
    ("test_init_arguments_not_in_class_attributes", "{'vad_lexicon'}"): "a property: setting it compiles the look-up",
    ("test_init_arguments_not_in_processor_kwargs", "{'max_length'}"): "at which training sentences are cut",
    ("test_model_input_names", "in the second set but not the first"): "a prompt has fewer inputs than training rows",
    ("test_processor_text_has_no_visual", "2 images for 3 rows"): "every prompt is about an image",
    ("test_subprocessor_defaults_0_text", "not equal"): "a prompt is the text after `<bos>` and a space",
    ("test_subprocessor_defaults_preserved_by_kwargs_0_images", "9 != 117"): "padding is the processor's",
}
# Skipped tests, by a pattern of the suite's message.
SKIPS = {
    "test requires (Flash|Torchcodec|deepspeed|librosa|multiple|accelerator|the kernels)": "not on a test machine",
    "(video_processor|feature_extractor) attribute": "no videos, no audio",
    "chat template|_get_num_multimodal_tokens": "prompts have no turns and no image tokens",
    "grouped_mm|sparse experts|router_logits": "no experts",
    "base_model_class|sliding window": "GPT-2 has neither rotary positions nor sliding windows",
    "(decoder-only|sequence-to-sequence) language modeling head": "the loss is of sentences about an image",
    "does not support SDPA": "for models of one part",
    "both a non-text modality tower": "the parts have other names than the test looks for",
    "inputs_embeds": "VAD features belong to token ids",
    "position embeddings": "the tower's positions are not resized",
    "_keep_in_fp32_modules": "all parts may be in half precision",
    "TP plan": "the model fits on one device",
    "PrefixChange": "old checkpoints differ by prefixes only",
    "Not a prioritized model": "the test is for the library's largest models",
}


def unpack_suites() -> Path:
    """Downloads and unpacks the suites of the installed version, once, and returns the folder to import them from."""
    release = f"transformers-{version('transformers')}"
    folder = CACHE / release
    if (folder / "complete").exists():
        return folder
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(CACHE)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, release.replace("-", "==")], check=True)
    package = folder / "transformers_tests"
    package.mkdir(parents=True, exist_ok=True)
    with tarfile.open(CACHE / f"{release}.tar.gz") as archive:
        for member in archive.getmembers():
            if match := re.fullmatch(rf"{release}/tests/(test_\w+\.py)", member.name):
                source = archive.extractfile(member)
                assert source is not None
                (package / match[1]).write_bytes(source.read())
    for name, text in STAND_INS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "complete").touch()
    return folder


def run(folder: Path) -> list[tuple[str, str, str, str]]:
    """Runs the suites and returns class, test, outcome and reason of every test."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    options = ["-q", "-n", "auto", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore", f"--junit-xml={report}"]
    cases = str(Path(__file__).with_name("cases.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, cases],
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    if done.returncode > 1 or not report.exists():
        sys.exit(f"error: pytest ended with exit code {done.returncode}:\n{done.stdout}")
    results = []
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        reason = "" if outcome is None else outcome.get("message", "").partition("\n")[0]
        kind = {"failure": "failed", "error": "failed", "skipped": "skipped"}.get(
            getattr(outcome, "tag", ""), "passed"
        )
        results.append((case.get("classname", "").rpartition(".")[2], case.get("name", ""), kind, reason))
    # pytest also reports each failing part of a test (`subTest`).
    worst = {
        (suite, test): (kind, reason) for suite, test, kind, reason in sorted(results, key=lambda r: r[2] == "failed")
    }
    return [(*names, *result) for names, result in sorted(worst.items())]


def main() -> int:
    results = run(unpack_suites())
    print(f"transformers {version('transformers')}")
    for suite in sorted({suite for suite, *_ in results}):
        counts = Counter(kind for name, _, kind, _ in results if name == suite)
        print(f"{suite:20} {counts['passed']:4} passed {counts['failed']:4} failed {counts['skipped']:4} skipped")
    explained = set()
    unexplained = 0
    passed = {test for _, test, kind, _ in results if kind == "passed"}
    if len(passed) < MINIMUM:
        sys.exit(f"error: only {len(passed)} tests passed, where {MINIMUM} should")
    for _, test, kind, reason in results:
        if kind == "skipped":
            why = next((why for pattern, why in SKIPS.items() if re.search(pattern, reason)), None)
            unexplained += why is None
            print(f"skipped {test}: {why or 'UNEXPLAINED: ' + reason}")
        if kind == "failed":
            known = next((key for key in REASONS if key[0] == test and key[1] in reason), None)
            explained.add(known)
            unexplained += known is None
            print(f"failed {test}: {REASONS[known] if known else 'UNEXPLAINED: ' + reason}")
    # Older versions lack some of the tests.
    stale = sorted(test for test, _ in REASONS.keys() - explained if test in passed)
    for test in stale:
        print(f"{test} passes: remove its reason")
    return int(bool(unexplained or stale))


if __name__ == "__main__":
    sys.exit(main())
