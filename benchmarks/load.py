# Licensed under the Apache License, Version 2.0; see LICENSE.
"""`load`: the time and memory of a user's first lines, each time in a fresh process (`python -m benchmarks.load`)."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


GENERATE = 'processor.read(model.generate(**processor(images=image, return_tensors="pt").to(device)))'
STEPS = {
    "import torch": "import torch",
    "import the rest": "import modeling_sevlm, processing; from transformers import AutoModel, AutoProcessor",
    "model": "model = AutoModel.from_pretrained(folder).eval().to(device)",
    "processor": "processor = AutoProcessor.from_pretrained(folder)",
    "first generation": GENERATE,
    "second generation": GENERATE,
}


def run_load(args) -> dict:
    from PIL import Image

    from .inputs import make_inputs
    from .measure import MIB
    from .results import table

    inputs, runs = make_inputs(args.size), []
    with tempfile.TemporaryDirectory() as folder:
        inputs.model().save_pretrained(folder)
        inputs.processor.save_pretrained(folder)
        Image.new("RGB", (224, 224), "grey").save(f"{folder}/image.png")
        command = [sys.executable, "-m", "benchmarks.load", folder, str(args.device)]
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


def main(folder: str, device: str) -> None:
    scope, seconds, peaks = {"folder": folder, "device": device}, {}, {}
    for name, code in STEPS.items():
        if name == "first generation":
            from PIL import Image

            scope["image"] = Image.open(f"{folder}/image.png")
        start = time.perf_counter()
        exec(code, scope)
        seconds[name] = time.perf_counter() - start
        # On Linux, `getrusage` begins with the peak of the parent process.
        peaks[name] = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    memory = {"weights": sum(parameter.nbytes for parameter in scope["model"].parameters())}
    memory |= {"peak after loading": peaks["processor"], "peak after generating": peaks["second generation"]}
    print(json.dumps({"seconds": seconds, "bytes": memory}))


if __name__ == "__main__":
    main(*sys.argv[1:])
