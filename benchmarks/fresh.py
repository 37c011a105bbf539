# Licensed under the Apache License, Version 2.0; see LICENSE.
"""What only a fresh process can show: imports, loading, peak memory.

    fresh("load", folder, size) -> what `load` returns, computed in a Python of its own

Each task prints one line of json; the parent reads it.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent


def fresh(task: str, *arguments, threads: int) -> dict:
    """Run a task of this file; its result with `process_seconds`, the interpreter's start included."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.fresh", task, *map(str, arguments)]
    # Not by `torch.set_num_threads`: when torch is imported is for the task to say.
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    seconds = time.perf_counter() - start
    if finished.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1]) | {"process_seconds": seconds}


def peak_of_process() -> int:
    """The most resident memory that this process has ever had, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # On Linux, `ru_maxrss` begins with what the parent had.
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def load(folder: str, device: str) -> dict:
    """Seconds of a user's first lines: imports, `from_pretrained`, first and second generation."""
    marks = [("start", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    import numpy as np
    import torch
    from PIL import Image

    mark("import torch")
    from transformers import AutoModel, AutoProcessor

    import modeling_sevlm  # noqa: F401
    import processing  # noqa: F401

    mark("import the rest")
    model = AutoModel.from_pretrained(folder).eval().to(device)
    mark("model")
    processor = AutoProcessor.from_pretrained(folder)
    mark("processor")
    after_loading = peak_of_process()
    size = processor.image_processor.size["height"]
    image = Image.fromarray(np.full((size, size, 3), 127, np.uint8))
    for name in ("first generation", "second generation"):
        inputs = processor(images=image, return_tensors="pt").to(device)
        processor.read(model.generate(**inputs))
        mark(name)
    pairs = zip(marks, marks[1:], strict=False)
    seconds = {name: end - start for (_, start), (name, end) in pairs}
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    peak_on_device = torch.cuda.max_memory_allocated() if torch.device(device).type == "cuda" else None
    memory = {"weights": weights, "peak after loading": after_loading, "peak after generating": peak_of_process()}
    return {"seconds": seconds, "bytes": memory | {"peak on the device": peak_on_device}}


def artemis(file: str) -> dict:
    """Seconds and peak memory of reading annotations, pictures left out."""
    from processing.artemis import load_artemis

    before, start = peak_of_process(), time.perf_counter()
    splits = load_artemis(file, with_images=False)
    seconds = time.perf_counter() - start
    rows = sum(map(len, splits.values()))
    return {"seconds": seconds, "rows": rows, "bytes": peak_of_process() - before}


def main(argv: list[str]) -> None:
    task, *arguments = argv
    print(json.dumps({"load": load, "artemis": artemis}[task](*arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
