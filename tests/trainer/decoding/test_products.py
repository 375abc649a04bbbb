import pytest
import torch

from dmlm.trainer.decoding.products import multiply


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_rows", [1, 2, 4, 5, 64, 65])
@pytest.mark.parametrize("shape", [(3, 5), (512, 384)], ids=["small", "large"])
def test_rows_are_multiplied_by_the_transposed_weight(
    num_threads: int, num_rows: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x_ND, weight_OD = torch.randn(num_rows, shape[1]), torch.randn(shape)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        product_NO = multiply(x_ND, weight_OD)
    finally:
        torch.set_num_threads(before)
    expected_NO = (x_ND[:, None].double() * weight_OD.double()).sum(dim=2).float()
    torch.testing.assert_close(product_NO, expected_NO, rtol=1e-4, atol=1e-4)
    assert product_NO.is_contiguous()
