"""Our classes in the test suites that transformers applies to its own. Run by `make upstream`; see `__main__`."""

import unittest

import torch
from transformers import CLIPVisionConfig, GPT2Config
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor
from transformers_tests.test_processing_common import ProcessorTesterMixin

from modeling_sevlm import SEVLMConfig, SEVLMForConditionalGeneration
from processing import SEVLMProcessor
from tests.helpers.tiny import BLOCKS, IMAGE_SIZE, TEXT_SIZES, VISION_SIZES, tiny_processor


class Tester:
    """A tiny model with every part, and a batch of rows with a label, " because" and an explanation."""

    batch_size, seq_length, is_training = 7, 9, True
    num_hidden_layers, num_attention_heads = TEXT_SIZES["n_layer"], TEXT_SIZES["n_head"]
    hidden_size = TEXT_SIZES["n_embd"]

    # The suite shrinks vocabularies to 128 tokens.
    vocab_size = 200
    tokens = {
        **{"prompt_token_ids": [1, 2, 3], "emotion_token_ids": [[10 + i] for i in range(9)], "because_token_id": 30},
        **{"emotion_segment_id": 31, "explanation_segment_id": 32, "pad_token_id": 33},
        **{"bos_token_id": 1, "eos_token_id": 1},
    }

    def __init__(self, parent):
        self.parent = parent

    def get_config(self) -> SEVLMConfig:
        text = GPT2Config(**TEXT_SIZES, vocab_size=self.vocab_size, bos_token_id=None, eos_token_id=None)
        return SEVLMConfig(vision_config=CLIPVisionConfig(**VISION_SIZES), text_config=text, **self.tokens)

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 40) + 40
        ids[:, 2] = self.tokens["because_token_id"]
        inputs = {
            "pixel_values": torch.rand(self.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        return self.get_config(), inputs


class SEVLMModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (SEVLMForConditionalGeneration,)
    _is_composite = True
    additional_model_inputs = ["pixel_values"]

    def setUp(self):
        self.model_tester = Tester(self)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return inputs | ({"labels": inputs["input_ids"]} if return_labels else {})

    # The numbers of layers of the vision tower, for the tests of `get_image_features`.
    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return BLOCKS["num_hidden_layers"] + 1

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        return BLOCKS["num_hidden_layers"]


class SEVLMProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = SEVLMProcessor

    @classmethod
    def setUpClass(cls):
        # The suite expects a class of the library, which saves no reference to code.
        cls.processor_class._auto_class = None
        super().setUpClass()

    @classmethod
    def _setup_component(cls, attribute):
        return getattr(tiny_processor(), attribute)
