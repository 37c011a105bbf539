"""The paper's tables and their metrics, for the model card and for evaluation reports."""

METRICS = (  # name in results.json, heading, metric type in a card's model-index
    ("accuracy", "ACC", "accuracy"),
    ("emotional_alignment", "EA", "emotional_alignment"),
    *((f"bleu_{n}", f"B{n}", "bleu") for n in (1, 2, 3, 4)),
    ("meteor", "METEOR", "meteor"),
    ("rouge_l", "ROUGE-L", "rouge"),
    ("unique", "Unique", "unique"),
)
# In percent, in the order of METRICS; None where the paper reports no figure.
PAPER_ROWS: dict[str, dict[str, tuple[float | None, ...]]] = {
    "v1": {
        "M2": (None, 52.1, 51.1, 28.2, 15.4, 9.0, 13.7, 28.6, 23.0),
        "SAT": (60.2, 51.9, 52.0, 28.0, 14.6, 7.9, 13.4, 29.4, 46.0),
        "NLX-GPT2": (None, 54.4, 53.6, 29.3, 15.5, 8.4, 13.6, 30.0, 53.8),
        "Baseline": (63.5, 58.9, 53.2, 29.2, 15.5, 8.4, 13.3, 29.9, 47.6),
        "LLaVA-7B, fine-tuned": (61.8, 60.0, 55.5, 30.7, 16.4, 9.0, 14.3, 30.7, 84.3),
        "SEVLM": (65.6, 62.1, 54.2, 30.3, 16.4, 9.2, 13.9, 30.4, 62.0),
    },
    "v2": {
        "SAT": (None, 38.8, 48.7, 25.3, 13.2, 7.3, 12.8, 27.2, 57.0),
        "NLX-GPT2": (43.3, 36.9, 50.9, 28.8, 16.0, 9.2, 13.6, 29.9, 34.1),
        "Baseline": (40.7, 38.7, 51.2, 29.4, 16.4, 9.2, 13.7, 29.9, 61.2),
        "LLaVA-7B, fine-tuned": (38.4, 39.3, 53.2, 30.6, 16.9, 9.5, 14.3, 30.7, 84.5),
        "SEVLM": (44.2, 42.6, 51.8, 30.4, 17.2, 10.1, 13.9, 30.4, 63.6),
    },
    "100 images": {  # random test images of v1.0 (Sec. 5.2)
        "GPT-4(V)": (52.6, 43.8, 31.5, 10.2, 3.3, 1.3, 8.4, 20.4, 100.0),
        "SEVLM": (63.2, 56.3, 54.8, 30.7, 17.9, 11.4, 14.2, 29.8, 96.0),
    },
}
# Table 3: parameters, training hours, epochs, multiply-adds ("FLOPs" there) of one forward pass, images per second.
PAPER_COSTS: dict[str, tuple[float, float, int, float, float]] = {
    "Baseline": (168e6, 7.5, 15, 19.33e9, 8.71),
    "LLaVA-7B, fine-tuned": (7e9, 8, 2, 4885.89e9, 3.89),
    "SEVLM": (186.45e6, 18, 35, 19.33e9, 8.62),
}
