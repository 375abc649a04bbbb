import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmlm.pipeline.encoders import winograd
from dmlm.pipeline.encoders.winograd import convolve_positive_part, transform_kernel


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convolve_directly(x_BHWC: Tensor, kernel_KC33: Tensor) -> Tensor:
    y_BKHW = F.conv2d(x_BHWC.relu().permute(0, 3, 1, 2).double(), kernel_KC33.double(), padding=1)
    return y_BKHW.permute(0, 2, 3, 1)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 21), st.integers(1, 21), st.integers(1, 9)),
    num_outputs=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_every_shape_gives_the_direct_convolution(
    shape: tuple[int, int, int, int], num_outputs: int, seed: int
) -> None:
    x_BHWC, kernel_KC33 = draw(shape, seed), draw((num_outputs, shape[3], 3, 3), seed + 1)
    y_BHWK = convolve_positive_part(x_BHWC, transform_kernel(kernel_KC33))
    assert y_BHWK.shape == (*shape[:3], num_outputs)
    assert torch.allclose(y_BHWK.double(), convolve_directly(x_BHWC, kernel_KC33), atol=2e-4)


@pytest.mark.parametrize("strip_bytes", [1, 40_000, 10**9])
def test_strips_do_not_show(strip_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "STRIP_BYTES", strip_bytes)
    x_BHWC, kernel_KC33 = draw((2, 30, 17, 5)), draw((4, 5, 3, 3), 1)
    y_BHWK = convolve_positive_part(x_BHWC, transform_kernel(kernel_KC33))
    assert torch.allclose(y_BHWK.double(), convolve_directly(x_BHWC, kernel_KC33), atol=2e-4)


def test_input_is_left_as_it_was() -> None:
    x_BHWC = draw((1, 8, 8, 3))
    before = x_BHWC.clone()
    convolve_positive_part(x_BHWC, transform_kernel(draw((4, 3, 3, 3))))
    assert torch.equal(x_BHWC, before)


def test_a_quarter_of_the_multiplications() -> None:
    kernel_SCK = transform_kernel(draw((7, 5, 3, 3)))
    assert kernel_SCK.shape == (36, 5, 7)  # 36 products for 16 outputs, not 144
