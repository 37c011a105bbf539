# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The web form of this metric's Space."""

from pathlib import Path

import evaluate
from evaluate.utils import launch_gradio_widget


launch_gradio_widget(evaluate.load(str(Path(__file__).with_name("emotion_prediction.py"))))
