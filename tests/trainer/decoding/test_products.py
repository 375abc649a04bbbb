import pytest
import torch

from dmlm.trainer.decoding.products import make_adding, make_product


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("num_rows", [1, 2, 4, 5, 64, 65])
@pytest.mark.parametrize("shape", [(3, 5), (512, 384)], ids=["small", "large"])
def test_rows_are_multiplied_by_the_transposed_weight(
    shape: tuple[int, int], num_rows: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    h_ND, x_NO, weight_OD = (
        torch.randn(num_rows, shape[1]),
        torch.randn(num_rows, shape[0]),
        torch.randn(shape),
    )
    bias_O = torch.randn(shape[0]) if has_bias else None
    expected_NO = (h_ND[:, None].double() * weight_OD.double()).sum(dim=2).float()
    expected_NO += 0 if bias_O is None else bias_O
    product_NO, sum_NO = make_product(weight_OD, bias_O)(h_ND), make_adding(weight_OD, bias_O)(x_NO, h_ND)
    torch.testing.assert_close(product_NO, expected_NO, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sum_NO, x_NO + expected_NO, rtol=1e-4, atol=1e-4)
    assert product_NO.is_contiguous()
    assert sum_NO.is_contiguous()
