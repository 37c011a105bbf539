"""The SEVLM model. Importing this package registers the model with transformers' Auto classes, and its pipeline."""

from transformers import AutoModelForImageTextToText
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_sevlm import SEVLMConfig
from .modeling_sevlm import SEVLMForConditionalGeneration, SEVLMOutput
from .pipeline_sevlm import TASK, SEVLMPipeline


PIPELINE_REGISTRY.register_pipeline(TASK, SEVLMPipeline, pt_model=AutoModelForImageTextToText, type="multimodal")
# `pipeline()` would require `trust_remote_code` for the entry `custom_pipelines`, which is saved but not shown to it.
SEVLMConfig.custom_pipelines = property(  # type: ignore[attr-defined]
    lambda config: {}, lambda config, value: vars(config).update(custom_pipelines=value)
)

__all__ = ["SEVLMConfig", "SEVLMForConditionalGeneration", "SEVLMOutput", "SEVLMPipeline"]
