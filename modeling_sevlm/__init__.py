"""The SEVLM model. Importing this package registers the model with transformers' Auto classes, and its pipeline."""

from transformers import AutoModelForImageTextToText
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_sevlm import SEVLMConfig
from .modeling_sevlm import SEVLMForConditionalGeneration, SEVLMOutput
from .pipeline_sevlm import TASK, SEVLMPipeline


def _hide_custom_pipelines():
    """Hides the entry `custom_pipelines` of a config, which is still saved. If `pipeline()` saw the entry, it would
    require `trust_remote_code` although the task is registered."""

    def store(config, value):
        vars(config)["custom_pipelines"] = value

    SEVLMConfig.custom_pipelines = property(lambda config: {}, store)  # type: ignore[attr-defined]


PIPELINE_REGISTRY.register_pipeline(TASK, SEVLMPipeline, pt_model=AutoModelForImageTextToText, type="multimodal")
_hide_custom_pipelines()

__all__ = ["SEVLMConfig", "SEVLMForConditionalGeneration", "SEVLMOutput", "SEVLMPipeline"]
