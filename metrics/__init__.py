"""The paper's metrics as modules of the library `evaluate`. Each folder can be pushed to the Hub as a Space.

Load one with `evaluate.load("metrics/emotion_prediction")`, or import its function:
`from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores`.
"""
