"""The web form of this metric's Space."""

import evaluate
from evaluate.utils import launch_gradio_widget


launch_gradio_widget(evaluate.load(__file__.replace("app.py", "emotional_alignment.py")))
