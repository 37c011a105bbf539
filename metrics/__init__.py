# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Metrics of the paper as modules of `evaluate`: one folder each, which can go to the Hub as a Space as it is.

    evaluate.load("metrics/emotion_prediction").compute(predictions=labels, references=histograms)
    from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores

coco_caption: BLEU, METEOR, ROUGE-L; emotion_prediction: ACC and the fit to the human label distribution;
emotional_alignment: EA; explanation_text: Unique, novelty, metaphors. `python -m evaluation.train_emotion_classifier`
trains the judge that EA needs.
"""
