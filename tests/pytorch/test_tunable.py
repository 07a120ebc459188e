"""Trainable weights: what they are, their gradients, and what becomes of them when they are stored again."""

import numpy as np
import pytest
import torch

from codegemm.formats.format import registered
from codegemm.torch.tunable import TunableLinear, check_tunable, tunable

ROWS, COLUMNS = 32, 64
CONFIGS = [
    "m1v4b4g16", "m2v8b4g-1", "m1v16b16g-1", "m1v1b1g1", "q1g32", "q2g16", "q3v4g-1+added", "e8p", "e8p4", "qtip",
    "m1v4b4g16+rotated", "m1v4b4g16+rotated8", "m2v4b4g32+offsets", "m1v4b4g16+added", "m1v4b4g16+ordered",
    "m1v4b4g16+terms2", "m2v4b4g16+ordered+rotated16+added+terms2",
]  # fmt: skip


def single(weight):
    return torch.from_numpy(weight.dequantize(np.float32))


@pytest.mark.parametrize(("config", "parts"), [(config, 1) for config in CONFIGS] + [("m2v4b4g16", 3), ("q1g16", 2)])
def test_the_same_weight_again(config, parts, make_weight):
    """As it is, and rounded to what is stored."""
    weight = make_weight(ROWS, COLUMNS, config, parts)
    own = tunable(weight)
    dense = own.dense()
    assert dense.dtype == torch.float32
    assert torch.allclose(dense, single(weight), rtol=1e-4, atol=1e-4 * float(dense.detach().abs().max()))
    assert own.to_weight() == weight
    assert own.to_weight().spec == weight.spec
    check_tunable(weight.spec.config)
    with torch.no_grad():
        for parameter in own.parameters():
            if parameter.requires_grad:
                parameter *= 1 + 0.1 * torch.rand_like(parameter)
    changed = own.to_weight()
    assert changed.spec == weight.spec
    assert changed != weight
    gap = (single(changed) - own.dense()).norm() / own.dense().norm()
    assert gap < 2e-3  # of float16
    assert (single(changed) - dense).norm() > 1e-2 * dense.norm()


@pytest.mark.parametrize(("config", "parts"), [(config, 1) for config in CONFIGS] + [("m2v4b4g16", 3)])
def test_gradients(config, parts, make_weight):
    """Of the sum of W's numbers times random ones, by differences of the same function."""
    own, slopes = tunable(make_weight(ROWS, COLUMNS, config, parts)), torch.randn(ROWS, COLUMNS)
    (own.dense() * slopes).sum().backward()
    trained = [parameter for parameter in own.parameters() if parameter.requires_grad]
    assert trained
    for parameter in trained:
        assert parameter.grad.shape == parameter.shape
        way = torch.randn_like(parameter)
        before, values = parameter.detach().clone(), []
        for step in (0.5, -0.5):  # W is linear in each of its parameters
            with torch.no_grad():
                parameter.copy_(before + step * way)
                values.append(float((own.dense().double() * slopes).sum()))
        with torch.no_grad():
            parameter.copy_(before)
        assert np.isclose(values[0] - values[1], float((parameter.grad * way).sum()), rtol=5e-3, atol=5e-2)


def test_gradients_of_a_plain_formula(make_weight):
    """By torch's own autograd, of codes as indices."""
    weight = make_weight(ROWS, COLUMNS, "m2v4b4g16")
    own, x = tunable(weight), torch.randn(5, COLUMNS)
    books = torch.from_numpy(weight.codebooks.astype(np.float32)).requires_grad_()
    scales = torch.from_numpy(weight.scales.astype(np.float32)).requires_grad_()
    codes = torch.from_numpy(weight.codes.astype(np.int64))
    W = (books[0][codes[..., 0]] + books[1][codes[..., 1]]).reshape(ROWS, -1, 16) * scales[..., None]
    (x @ W.reshape(ROWS, COLUMNS).T).square().sum().backward()
    (x @ own.dense().T).square().sum().backward()
    assert torch.allclose(own.codebooks.grad, books.grad, rtol=1e-3, atol=1e-3 * float(books.grad.abs().max()))
    assert torch.allclose(own.scales.grad, scales.grad, rtol=1e-3, atol=1e-3 * float(scales.grad.abs().max()))


def test_signs_stay_signs(make_weight):
    own = tunable(make_weight(ROWS, COLUMNS, "q2g16"))
    trained = {name for name, parameter in own.named_parameters() if parameter.requires_grad}
    assert trained == {"core.scales"}
    assert {name for name, _ in tunable(make_weight(ROWS, COLUMNS, "qtip")).named_parameters()} == {"SU", "SV"}


def test_numbers_that_float16_does_not_hold(make_weight):
    """Are the largest that it does."""
    own = tunable(make_weight(ROWS, COLUMNS, "m1v4b4g16"))
    with torch.no_grad():
        own.scales[0, 0], own.scales[1, 0] = 1e6, -1e6
    scales = own.to_weight().scales
    assert (scales[0, 0], scales[1, 0]) == (65504, -65504)


def test_a_layer(make_weight):
    weight, bias = make_weight(ROWS, COLUMNS, "m1v4b4g16"), torch.nn.Parameter(torch.randn(ROWS), requires_grad=False)
    layer, x = TunableLinear(weight, bias), torch.randn(2, 3, COLUMNS)
    assert (layer.out_features, layer.in_features) == weight.shape
    assert torch.allclose(layer(x), torch.nn.functional.linear(x, single(weight), bias), atol=1e-3)
    assert not layer.bias.requires_grad
    assert layer.state_dict().keys() == {"bias", "tunable.codebooks", "tunable.scales"}


def test_formats_that_are_not_trained(make_weight):
    """Of any format's examples a weight is trained if its configuration is said to be."""
    refused = {"e8p+rotated", "e8p4+rotated16+added"}
    for text in (text for each in registered() for text in each.examples if "b16" not in text):
        weight = make_weight(64, 192, text)
        if text in refused:
            for asked, what in ((check_tunable, text), (tunable, weight)):
                with pytest.raises(ValueError, match="weights of this format are not trained"):
                    asked(what)
        else:
            check_tunable(text)
            assert tunable(weight).shape == (64, 192)
