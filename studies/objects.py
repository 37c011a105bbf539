"""Measures how many sentences name the object that the project's images show.

    python -m studies.objects outputs/demo [--num_paintings 300] [--minimum 0.9] [--vad_lexicon FILE]

The model explains images that no training with up to 3000 training paintings has seen: the last of the 3600 whose
combinations of object, setting, colour, place and size all differ. Each sentence is the pipeline's greedy one for the
likeliest emotion. It is right if it has a noun of the image's motif ("boat", "sail") and none of another motif.
The command prints the share of right sentences with Wilson's 95 % interval. The table has, for each object, the share
of right sentences and the objects that the others name.
"""

import argparse
from collections import Counter
from collections.abc import Iterable

from scipy.stats import binomtest

from modeling_sevlm.lexicon import restore_lexicon
from modeling_sevlm.loading import open_pipeline
from processing.script_utils import errors_as_exit, load_lexicon
from processing.toy_artemis import NUM_COMBINATIONS, load_grammar, toy_scene
from processing.toy_paintings import MOTIFS, Scene, paint_scene
from studies.attention import NOUNS


def named_objects(sentence: str) -> frozenset[str]:
    """Returns the motifs that a sentence names. The brushwork around a motif ("amid magenta sparks") is not one."""
    for words in load_grammar()["emotions"].values():
        sentence = sentence.replace(words["brushwork"], "")
    words = {word.strip(".,").lower() for word in sentence.split()}
    return frozenset(motif for motif, nouns in NOUNS.items() if nouns & words)


def count_objects(motifs: Iterable[str], sentences: Iterable[str]) -> dict[str, Counter]:
    """Returns for each motif how many sentences about it name each object: a motif, "several" or "none"."""
    counts: dict[str, Counter] = {motif: Counter() for motif in MOTIFS}
    for motif, sentence in zip(motifs, sentences, strict=True):
        named = named_objects(sentence)
        counts[motif][next(iter(named)) if len(named) == 1 else "several" if named else "none"] += 1
    return counts


def interval(right: int, total: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share."""
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return float(low), float(high)


def measure_objects(explain, scenes: list[Scene]) -> dict:
    """Explains the scenes' images with the pipeline `explain`. Returns `pictures`; `right`, the number of sentences
    that name the right object; `right_emotion`, the number of images with the motif's emotion; `counts`, see
    [`count_objects`]."""
    results = explain([paint_scene(scene)[0] for scene in scenes], batch_size=32)
    counts = count_objects((scene.motif for scene in scenes), (result["explanation"] for result in results))
    pairs = zip(results, scenes, strict=True)
    return {
        "pictures": len(scenes),
        "right": sum(named[motif] for motif, named in counts.items()),
        "right_emotion": sum(result["emotion"] == MOTIFS[scene.motif].emotion for result, scene in pairs),
        "counts": counts,
    }


def main(argv: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(
        prog="python -m studies.objects", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="checkpoint trained on the embedded data")
    parser.add_argument("--num_paintings", type=int, default=300, help="number of images, at most 600 (default: 300)")
    parser.add_argument("--vad_lexicon", help="lexicon file of a checkpoint that was saved without it")
    parser.add_argument("--minimum", type=float, help="lowest accepted share of right objects (default: no check)")
    args = parser.parse_args(argv)
    if not 1 <= args.num_paintings <= NUM_COMBINATIONS // 6:
        parser.error(f"--num_paintings must be from 1 to {NUM_COMBINATIONS // 6}, not {args.num_paintings}.")
    with errors_as_exit():
        explain = open_pipeline(args.model)
        restore_lexicon(explain.model, explain.processor, load_lexicon(args.vad_lexicon))
    scenes = [toy_scene(NUM_COMBINATIONS - args.num_paintings + number) for number in range(args.num_paintings)]
    found = measure_objects(explain, scenes)
    total, share = found["pictures"], found["right"] / found["pictures"]
    low, high = interval(found["right"], total)
    print(f"{found['right']} of {total} sentences name the right object: {share:.1%} ({low:.1%} to {high:.1%})")
    print(f"{found['right_emotion']} of {total} emotions are the object's: {found['right_emotion'] / total:.1%}\n")
    print(f"{'object':10} pictures   right  others")
    for motif, named in found["counts"].items():
        if pictures := named.total():
            others = ", ".join(f"{name} {count}" for name, count in named.most_common() if name != motif)
            print(f"{motif:10} {pictures:8} {named[motif] / pictures:7.1%}  {others}".rstrip())
    if args.minimum is not None and share < args.minimum:
        raise SystemExit(f"error: {share:.1%} right objects is less than {args.minimum:.1%}.")
    return found


if __name__ == "__main__":
    main()
