"""New parameters start with the intended distribution, however the model is made.

transformers skips modules without parameters of their own in code outside its package, so a rule for a whole part can
be written and never run. These tests compare every parameter with a table.
"""

import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_sevlm import SEVLMForConditionalGeneration
from tests.helpers.tiny import TEXT_SIZES, save_backbones, tiny_config, tiny_processor


RANGE = 0.02
ATTENTION = {r"\.(attn|crossattention)\.(c_attn|q_attn)\.weight$": ("normal", RANGE)}
# GPT-2 scales what is added to the residual stream by the number of layers.
RESIDUAL = {r"\.(attn|crossattention|mlp)\.c_proj\.weight$": ("normal", RANGE / math.sqrt(2 * TEXT_SIZES["n_layer"]))}
INTENDED = {
    # The first row that matches a name counts. "uniform": PyTorch's own, between +-1 / sqrt(inputs of the layer).
    r"(norm\w*|ln_\w+)\.weight$": ("constant", 1.0),
    r"(norm\w*|ln_\w+)\.bias$": ("constant", 0.0),
    r"^emotion_encoder\.positions\.weight$": ("normal", RANGE),
    r"^emotion_encoder\.": ("uniform", None),
    r"^contrastive_head\..*weight$": ("uniform", None),
    r"^contrastive_head\..*bias$": ("uniform", None),
    r"^decoder\.vad_fusion\.weight$": ("identity", RANGE),
    **RESIDUAL,
    **ATTENTION,
    r"^decoder\.(wte|wpe)\.weight$": ("normal", RANGE),
    r"\.c_fc\.weight$": ("normal", RANGE),
    r"^(vad_head|vision_projection)\.weight$": ("normal", RANGE),
    r"^(vad_head|vision_projection|decoder\..*)\.?bias$": ("constant", 0.0),
}
# The same keys as above replace the rules above.
AUTHORS = {
    r"^emotion_encoder\.positions\.weight$": ("normal", 1.0),
    r"^contrastive_head\..*weight$": ("normal", RANGE),
    r"^contrastive_head\..*bias$": ("constant", 0.0),
    r"^decoder\.vad_fusion\.weight$": ("normal", RANGE),
}
AUTHORS_FIELDS = {"emotion_encoder_position_std": 1.0, "contrastive_head_init": "normal", "vad_fusion_init": "normal"}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def intended(name: str, table: dict) -> tuple[str, tuple]:
    return next((pattern, rule) for pattern, rule in table.items() if re.search(pattern, name))


def check(model, names, table=INTENDED) -> None:
    """Compares bounds of each parameter, and mean and deviation of all parameters of a row of the table."""
    pooled, parameters = {}, dict(model.named_parameters())
    for name in names:
        pattern, (kind, scale) = intended(name, table)
        values = parameters[name].detach().double()
        if kind == "constant":
            assert values.eq(scale).all(), name
            continue
        if kind == "identity":
            width = values.shape[0]
            assert values[:, :width].equal(torch.eye(width).double()), name
            values = values[:, width:] / scale
        elif kind == "uniform":
            layer = parameters[re.sub(r"bias$", "weight", name)]
            values = values * math.sqrt(layer.shape[1])
            assert values.abs().max() <= 1 + 1e-6, name
            assert values.abs().max() > (0.9 if values.numel() > 30 else 0), name
            values = values * math.sqrt(3)  # to variance 1
        else:
            values = values / scale
            assert values.abs().max() < 6, name
        pooled.setdefault(pattern, []).append(values.flatten())
    for pattern, parts in pooled.items():
        values = torch.cat(parts)
        error = 5 / math.sqrt(len(values))  # five standard errors of the mean
        assert abs(values.mean()) < error, (pattern, values.mean())
        assert abs(values.std() - 1) < error, (pattern, values.std())


def own_parameters(model) -> list[str]:
    return [name for name, _ in model.named_parameters() if not name.startswith("vision_tower.")]


def test_every_parameter_of_a_model_from_its_config_starts_as_intended(processor):
    torch.manual_seed(0)
    model = SEVLMForConditionalGeneration(tiny_config(processor))
    check(model, own_parameters(model))


def test_every_new_parameter_between_pretrained_towers_starts_as_intended(tmp_path):
    arguments = save_backbones(tmp_path)
    towers = [arguments[arguments.index(f"--{kind}_model") + 1] for kind in ("vision", "text")]
    processor = type(tiny_processor()).from_backbones(*towers)
    torch.manual_seed(0)
    model = SEVLMForConditionalGeneration.from_backbones(*towers, processor)
    pretrained = {
        f"decoder.{name.removeprefix('transformer.')}" for name in load_file(f"{towers[1]}/model.safetensors")
    }
    new = set(own_parameters(model)) - pretrained
    assert {"vad_head.weight", "decoder.vad_fusion.weight", "decoder.h.0.crossattention.c_proj.weight"} <= new
    assert not {"decoder.wte.weight", "decoder.h.0.attn.c_attn.weight"} & new
    check(model, new)


@pytest.mark.parametrize(
    "part",
    ["emotion_encoder.", "contrastive_head.", "decoder.vad_fusion.", "vad_head.", "decoder.h.1.crossattention."],
)
def test_a_part_that_a_checkpoint_lacks_starts_as_intended_and_the_rest_is_kept(processor, tmp_path, part):
    saved = SEVLMForConditionalGeneration(tiny_config(processor))
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.fill_(0.5)
    saved.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(part)}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    model = SEVLMForConditionalGeneration.from_pretrained(tmp_path)
    check(model, [name for name in own_parameters(model) if name.startswith(part)])
    assert all(model.state_dict()[name].eq(0.5).all() for name in kept if not name.startswith("vad_lookup."))


def test_the_authors_initialisation_can_be_chosen(processor):
    torch.manual_seed(0)
    model = SEVLMForConditionalGeneration(tiny_config(processor, **AUTHORS_FIELDS))
    check(model, own_parameters(model), INTENDED | AUTHORS)


def test_attention_and_feed_forward_of_the_encoder_have_a_say_from_the_start(processor):
    """With weights of N(0, 0.02) they supplied less than a hundredth of the encoder's output."""
    torch.manual_seed(0)
    encoder = SEVLMForConditionalGeneration(tiny_config(processor, **AUTHORS_FIELDS)).emotion_encoder.eval()
    vad = torch.rand(8, 30, 3) * 2 - 1

    def silence(linear):
        linear.weight.data.zero_(), linear.bias.data.zero_()

    whole = encoder(vad)
    for layer in encoder.layers:
        silence(layer.value), silence(layer.fc_out)
    share = (whole - encoder(vad)).norm() / whole.norm()
    assert share > 0.1


@pytest.mark.parametrize("field", ["vad_fusion_init", "contrastive_head_init", "emotion_encoder_attention"])
def test_an_unknown_choice_names_the_choices(processor, field):
    with pytest.raises(ValueError, match=f"{field} must be '.*' or '.*', not 'zeros'"):
        tiny_config(processor, **{field: "zeros"})
