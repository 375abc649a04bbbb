import pytest
import torch

from dmlm.pipeline.devices import open_device
from dmlm.pipeline.errors import ConfigError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    assert open_device("cuda:1") == torch.device("cuda:1")
    assert open_device("cuda") == open_device("auto") == torch.device("cuda")
    with pytest.raises(ConfigError, match="device cuda:7: torch sees 2 GPUs here, cuda:0 to cuda:1"):
        open_device("cuda:7")


@pytest.mark.parametrize("name", ["gpu", "mps", "meta"])
def test_what_is_no_device_of_dmlm_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device {name}: not a device that dmlm runs on; use auto, cpu"):
        open_device(name)
