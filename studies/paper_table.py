r"""Joins evaluations with the paper's rows into one table (Tables 1, 2 and 4), in Markdown.

    python -m studies.paper_table SEVLM=outputs/studies/ablation/full Baseline=outputs/studies/ablation/baseline \
        "one annotator=outputs/human/results.json" --version v1 --output table1.md
    python -m studies.paper_table SEVLM=outputs/evaluation LLaVA=outputs/llava --table 2

A result is NAME=FILE, the `results.json` of an evaluation of any kind (a SEVLM, another model, a file of predictions,
people), or NAME=FOLDER with a `results.json` or with one per training run in `seed-N`, as studies write them. Several
training or sampling runs become a mean ± standard deviation (n - 1). Writes the figures to a .json file as well.
"""

import argparse
import json
from pathlib import Path

from evaluation.report import COLUMNS, TESTED_ON, markdown_table, metric_cells, paper_rows
from evaluation.scoring import average
from processing.files import write_json, write_text
from processing.script_utils import errors_as_exit

from .summary import named_sources


# Table -> the paper's systems that it has; None for all.
TABLES = {
    "1": ["M2", "SAT", "NLX-GPT2", "Baseline", "SEVLM"],
    "2": ["LLaVA-7B, fine-tuned", "SEVLM"],
    "4": None,
    "all": None,
}


def read_system(source: str) -> dict:
    """Returns `figures`, `deviations`, `runs` and `settings` of a result; ValueError if there is none."""
    path = Path(source)
    files = [path / "results.json"] if (path / "results.json").is_file() else sorted(path.glob("seed-*/results.json"))
    files = files if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"{source}: no results.json. Write it with evaluate_sevlm.py, or finish the study.")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    missing = {name for name, _ in COLUMNS} | {"num_paintings"}
    if not missing & set(results[0]):
        raise ValueError(f"{files[0]}: not the results.json of an evaluation.")
    figures, deviations = average([{name: result.get(name) for name in sorted(missing)} for result in results])
    runs = len(files)
    if runs == 1:
        deviations, runs = results[0].get("standard_deviation", {}), len(results[0].get("seeds", [0]))
    return {"figures": figures, "deviations": deviations if runs > 1 else {}, "runs": runs, "settings": results[0]}


def describe(name: str, system: dict) -> str:
    """Returns a line that says what the figures of a system are: paintings, runs, decoding, judge."""
    arguments, accuracy = system["settings"].get("arguments", {}), system["settings"].get("judge_accuracy")
    parts = [f"{system['figures']['num_paintings']} paintings", f"{system['runs']} run(s)"]
    if arguments.get("model"):
        parts.append("nucleus samples" if arguments.get("do_sample") else "greedy decoding")
    if arguments.get("judge"):
        parts.append(f"judge {arguments['judge']}" + ("" if accuracy is None else f" (accuracy {100 * accuracy:.1f})"))
    return f"- {name}: {', '.join(parts)}"


def main(argv: list[str] | None = None) -> dict:
    layout = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m studies.paper_table", **layout)
    parser.add_argument("results", nargs="+", help="NAME=results.json or NAME=FOLDER of each system")
    parser.add_argument("--version", choices=["v1", "v2"], default="v1", help="ArtEmis version (default: v1)")
    parser.add_argument("--table", choices=sorted(TABLES), default="all", help="the paper's table (default: all rows)")
    parser.add_argument("--output", type=Path, help="NAME.md; NAME.json is written, too (default: only print)")
    args = parser.parse_args(argv)
    rows = "100 images" if args.table == "4" else args.version
    with errors_as_exit():
        systems = {name: read_system(source) for name, source in named_sources(args.results).items()}
    ours = [[name, *metric_cells(system["figures"], system["deviations"])] for name, system in systems.items()]
    lines = [
        f"Percent; ± is the standard deviation of runs. Rows marked (paper) are the paper's, on {TESTED_ON[rows]}.",
        "",
        markdown_table([heading for _, heading in COLUMNS], [*paper_rows(rows, TABLES[args.table]), *ours]),
        "",
        *(describe(name, system) for name, system in systems.items()),
    ]
    if len({system["figures"]["num_paintings"] for system in systems.values()}) > 1:
        lines.append("- Not all systems were scored on the same paintings (people need a second annotation).")
    content = {
        name: {key: system[key] for key in ("figures", "deviations", "runs")} for name, system in systems.items()
    }
    print("\n".join(lines))
    if args.output:
        write_json(args.output.with_suffix(".json"), content)
        write_text(args.output, "\n".join(lines) + "\n")
    return content


if __name__ == "__main__":
    main()
