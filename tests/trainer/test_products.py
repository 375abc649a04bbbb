"""Products by oneDNN beside sums in float64, and linear layers that use them."""

import copy

import pytest
import torch
from torch import Tensor

from dmlm.trainer import products
from dmlm.trainer.products import multiply, use_products

needs_onednn = pytest.mark.skipif(not products.HAS_ONEDNN, reason="torch has no oneDNN for this processor")


def exact(x: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    output = (x[..., None, :].double() * weight_OD.double()).sum(dim=-1)
    return output if bias_O is None else output + bias_O.double()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(512, 24),
        torch.randn(300, 24),
        torch.randn(64, 24),
        torch.randn(0, 24),
        torch.randn(24),
        torch.randn(2, 150, 24),
        torch.randn(150, 2, 24).transpose(0, 1),
        torch.randn(24, 512).T,
        torch.randn(24, 300).T,
        torch.randn(512, 48)[:, ::2],
        torch.randn(512, 1).expand(512, 24),
    ],
    ids=[
        "full",
        "padded",
        "few",
        "none",
        "1-D",
        "3-D",
        "transposed 3-D",
        "columns",
        "padded columns",
        "every other",
        "expanded",
    ],
)
@pytest.mark.parametrize(
    "weight_OD",
    [torch.randn(17, 24), torch.randn(24, 17).T, torch.randn(17, 48)[:, ::2]],
    ids=["rows", "columns", "every other"],
)
@pytest.mark.parametrize(
    "bias_O",
    [None, torch.randn(17), torch.randn(34)[::2]],
    ids=["plain", "bias", "bias with strides"],
)
def test_rows_of_any_layout_are_multiplied_by_a_weight_of_any_layout(
    x: Tensor, weight_OD: Tensor, bias_O: Tensor | None
) -> None:
    output = multiply(x, weight_OD, bias_O)
    torch.testing.assert_close(output.double(), exact(x, weight_OD, bias_O), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_onednn_sees_few_numbers_of_rows_as_it_keeps_code_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, multiply_with_onednn = [], products._multiply_with_onednn

    def spy(x_PD: Tensor, *others: Tensor | None) -> Tensor:
        seen.append(len(x_PD))
        return multiply_with_onednn(x_PD, *others)

    monkeypatch.setattr(products, "_multiply_with_onednn", spy)
    weight_OD = torch.randn(5, 4)
    for num_rows in range(1000):
        assert len(multiply(torch.randn(num_rows, 4), weight_OD)) == num_rows
    assert set(seen) == {256, 512, 768, 1024}


@needs_onednn
def test_float32_goes_to_onednn_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(products, "linear", lambda x, *_: taken.append(x.dtype) or x)
    x_ND, weight_OD = torch.randn(256, 4), torch.randn(5, 4)
    multiply(x_ND, weight_OD)
    assert not taken
    for dtype in (torch.float64, torch.bfloat16):
        multiply(x_ND.to(dtype), weight_OD.to(dtype))
    multiply(x_ND.to("meta"), weight_OD.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        multiply(x_ND, weight_OD)
    assert taken == [torch.float64, torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("trained", ["weights", "input", "weights, input"])
@pytest.mark.parametrize("shape", [(300, 24), (2, 256, 24), (7, 24), (24,)], ids=["2-D", "3-D", "few", "1-D"])
def test_a_layer_has_the_output_and_the_gradients_of_the_plain_one_in_float64(
    shape: tuple[int, ...], trained: str, has_bias: bool
) -> None:
    fast = torch.nn.Sequential(torch.nn.Linear(24, 16, bias=has_bias))
    fast.requires_grad_("weights" in trained)
    plain = copy.deepcopy(fast).double()
    use_products(fast)
    x, gradient = torch.randn(shape), torch.randn(*shape[:-1], 16)
    inputs = [x.requires_grad_("input" in trained), x.detach().double().requires_grad_("input" in trained)]
    outputs = [layer(x) for layer, x in zip((fast, plain), inputs, strict=True)]
    torch.testing.assert_close(outputs[0].double(), outputs[1], rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.backward(gradient.to(output.dtype))
    for found, expected in zip(
        (inputs[0], *fast.parameters()), (inputs[1], *plain.parameters()), strict=True
    ):
        assert (found.grad is None) == (expected.grad is None)
        if found.grad is not None:
            torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-4, atol=1e-4)


def test_only_plain_linear_layers_change_and_they_keep_their_names_and_weights() -> None:
    class Special(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), Special(4, 4), torch.nn.LayerNorm(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_products(model)
    use_products(model)
    assert [type(module) for module in model] == [products.Linear, Special, torch.nn.LayerNorm]
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
