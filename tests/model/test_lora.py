"""LoRA adapters of peft: trained, saved, loaded, merged and switched off."""

import peft
import pytest
import torch
from transformers import AutoModel

from tests.helpers.tiny import pixels, training_batch


TARGETS = {"attention": ["c_attn", "q_attn"], "with mlp": ["c_attn", "q_attn", "c_proj", "c_fc"]}


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
def test_an_adapter_learns_and_gives_the_same_words_when_loaded_and_merged(
    checkpoint, processor, tmp_path, task, targets
):
    def write(model):
        return model.eval().generate(pixel_values=pixels(3), do_sample=False)

    config = peft.LoraConfig(r=4, target_modules=targets, task_type=task)
    model = peft.get_peft_model(AutoModel.from_pretrained(checkpoint), config)
    plain = write(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch, losses = training_batch(processor), []
    for _ in range(8):
        losses.append(model.train()(**batch).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    adapted = write(model)
    assert not torch.equal(adapted, plain)

    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(checkpoint)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(write(loaded), adapted)
    with loaded.disable_adapter():
        assert torch.equal(write(loaded), plain)
    # The folder of an adapter names its model, and AutoModel loads both.
    both = AutoModel.from_pretrained(tmp_path)
    assert both.vad_lookup.has_table and torch.equal(write(both), adapted)
    merged = loaded.merge_and_unload()
    assert torch.equal(write(merged), adapted)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(write(AutoModel.from_pretrained(tmp_path / "merged")), adapted)
