"""Packed weights give the same products, follow changes of the weights, and are used only where they are allowed."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from modeling_sevlm import packed_linear_sevlm
from modeling_sevlm.packed_linear_sevlm import make_packable, packed_linears
from tests.helpers.tiny import pixels, tiny_model


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def products(monkeypatch):
    """Records the packed products by number of output features."""
    seen, product = [], packed_linear_sevlm._product
    monkeypatch.setattr(packed_linear_sevlm, "_product", lambda *args: seen.append(len(args[1])) or product(*args))
    return seen


def layers(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 64), nn.GELU(), Conv1D(40, 64), nn.Linear(40, 33, bias=False)).to(dtype)
    nn.init.normal_(model[2].bias)
    make_packable(model)
    return model.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 48), (8, 48), (2, 5, 48), (0, 48)])
def test_packed_layers_give_the_same_products(products, dtype, shape):
    model, rows = layers(dtype), torch.randn(shape, dtype=dtype)
    expected = model(rows)
    assert not products
    with packed_linears(model):
        packed = model(rows)
    assert products == [64, 40, 33]
    torch.testing.assert_close(packed, expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2)


CHANGES = {
    "in place": lambda weight: weight.mul_(2),
    "one number": lambda weight: weight[-1, -1].add_(1),
    "all of .data": lambda weight: weight.data.add_(1),
    "a row of .data": lambda weight: weight.data[3].add_(1),
    "a column of .data": lambda weight: weight.data[:, 5].add_(1),
    "two rows of .data": lambda weight: weight.data.index_copy_(0, torch.tensor([0, 5]), weight.data[[5, 0]]),
    "order of .data": lambda weight: weight.data.copy_(weight.data.flip(0)),
    "signs of .data": lambda weight: weight.data[:, 1::2].neg_(),
}


@pytest.mark.parametrize("layer", [0, 2], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("change", [*CHANGES, "another parameter", "another dtype"])
def test_changed_weights_are_packed_again(products, layer, change):
    model = layers()
    with packed_linears(model):
        model(torch.ones(1, 48))
    weight = model[layer].weight
    if change == "another parameter":
        model[layer].weight = nn.Parameter(weight + 1, requires_grad=False)
    elif change == "another dtype":
        model.bfloat16().float()
        model[layer].weight.data.mul_(3)
    else:
        CHANGES[change](weight)
    rows = torch.randn(4, 48)
    with packed_linears(model):
        packed = model(rows)
    assert len(products) == 6
    torch.testing.assert_close(packed, model(rows), atol=1e-5, rtol=1e-4)


def test_unchanged_weights_are_packed_once(monkeypatch):
    model, packed, reorder = layers(), [], torch.ops.mkldnn._reorder_linear_weight
    counted = lambda *args: packed.append(args) or reorder(*args)  # noqa: E731
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", counted)
    for _ in range(3):
        with packed_linears(model):
            model(torch.ones(1, 48))
    assert len(packed) == 3


def test_autograd_autocast_and_other_dtypes_use_plain_weights(products):
    model = layers()
    weight = model[0].weight.requires_grad_()
    with packed_linears(model), torch.enable_grad():
        model(torch.ones(1, 48)).sum().backward()
    assert weight.grad.abs().sum() > 0
    with packed_linears(model), torch.autocast("cpu", torch.bfloat16):
        assert model(torch.ones(1, 48)).dtype == torch.bfloat16
    model.double()
    with packed_linears(model):
        model(torch.ones(1, 48, dtype=torch.float64))
    assert not products


def test_another_model_and_another_thread_are_not_affected(products):
    """The weights of another model may have changed since they were packed."""
    model, other = layers(), layers()
    with packed_linears(other):
        other(torch.ones(1, 48))
    other[0].weight.mul_(-2)
    products.clear()
    with packed_linears(model):
        expected = nn.Sequential(*other)(torch.ones(1, 48))
        with packed_linears(other):
            packed = other(torch.ones(1, 48))
        model(torch.ones(1, 48))
        with packed_linears(model, enabled=False):
            model(torch.ones(1, 48))
        thread = threading.Thread(target=lambda: model(torch.ones(1, 48)))
        thread.start()
        thread.join()
    assert products == [64, 40, 33] * 2
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["pruned", "parametrized", "inference", "subclass"])
def test_only_plain_parameters_are_packed(products, kind):
    model = layers()
    if kind == "pruned":
        prune.l1_unstructured(model[0], "weight", 0.2)
    elif kind == "parametrized":
        nn.utils.parametrizations.weight_norm(model[0])
    elif kind == "inference":
        with torch.inference_mode():
            model[0].weight = nn.Parameter(torch.randn(64, 48), requires_grad=False)
    else:
        other = model[0].weight.detach().as_subclass(type("Other", (torch.Tensor,), {}))
        model[0].weight = nn.Parameter(other, requires_grad=False)
    expected = model(torch.ones(1, 48))
    with packed_linears(model):
        torch.testing.assert_close(model(torch.ones(1, 48)), expected, atol=1e-5, rtol=1e-4)
    assert 64 not in products


def is_cached(layers) -> list[bool]:
    return [layer in packed_linear_sevlm._cache for layer in layers]


def test_moving_a_model_frees_its_packed_weights(processor):
    model = tiny_model(processor)
    model.generate(pixel_values=pixels(1), do_sample=False)
    packable = packed_linear_sevlm.packable_layers(model)
    assert any(is_cached(packable))
    model.to("meta")
    assert not any(is_cached(packable))


def test_the_tower_is_packed_only_for_pixel_values(processor):
    model = tiny_model(processor)
    features = model.encode_images(pixels(1))
    tower = packed_linear_sevlm.packable_layers(model.vision_tower)
    model.generate(image_features=features, do_sample=False)
    assert tower and not any(is_cached(tower))
    model.generate(pixel_values=pixels(1), do_sample=False)
    assert all(is_cached(tower))


def test_a_model_with_packed_weights_can_be_copied_pickled_and_saved(processor, tmp_path):
    model = tiny_model(processor)
    names = list(model.state_dict())
    expected = model.generate(pixel_values=pixels(2), do_sample=False)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    model.save_pretrained(tmp_path)
    copies.append(type(model).from_pretrained(tmp_path))
    for other in copies:
        assert list(other.state_dict()) == names
        assert torch.equal(other.generate(pixel_values=pixels(2), do_sample=False), expected)


@pytest.mark.parametrize("call", ["generate", "emotion_scores", "alignment_score"])
def test_the_model_uses_packed_weights_unless_pack_weights_is_false(processor, products, call):
    model = tiny_model(processor)
    arguments = {"pixel_values": pixels(2)}
    if call == "generate":
        arguments |= {"do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    if call == "alignment_score":
        arguments["input_ids"] = processor(emotions=["awe"] * 2, return_tensors="pt")["input_ids"]
    packed = getattr(model, call)(**arguments)
    assert products
    products.clear()
    model.pack_weights = False
    assert not any(is_cached(model.modules()))
    plain = getattr(model, call)(**arguments)
    assert not products
    if call == "generate":
        assert torch.equal(packed.sequences, plain.sequences)
        packed, plain = packed.scores[0], plain.scores[0]
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=1e-4)
