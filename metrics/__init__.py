"""The paper's metrics as modules of the library `evaluate`. Each folder can be pushed to the Hub as a Space.

evaluate.load("metrics/emotion_prediction").compute(predictions=labels, references=counts)
from metrics.emotion_prediction.emotion_prediction import emotion_prediction_scores
"""
