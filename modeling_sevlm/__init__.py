"""The SEVLM model. Importing this package registers the model and its pipeline with transformers."""

from transformers import AutoModelForImageTextToText
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_sevlm import SEVLMConfig
from .modeling_sevlm import SEVLMForConditionalGeneration, SEVLMOutput
from .pipeline_sevlm import TASK, SEVLMPipeline


PIPELINE_REGISTRY.register_pipeline(TASK, SEVLMPipeline, pt_model=AutoModelForImageTextToText, type="multimodal")
# `pipeline()` requires `trust_remote_code` for a config with `custom_pipelines`: the entry is saved, but reads as {}.
SEVLMConfig.custom_pipelines = property(  # type: ignore[attr-defined]
    lambda config: {}, lambda config, value: vars(config).update(custom_pipelines=value)
)

__all__ = ["SEVLMConfig", "SEVLMForConditionalGeneration", "SEVLMOutput", "SEVLMPipeline"]
