"""Names of devices, as `--device` takes them."""

import torch

from dmlm.pipeline.errors import ConfigError


def open_device(name: str) -> torch.device:
    """Device by name: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Raises:
        ConfigError: There is no such device here.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    if name.startswith("cuda") and not has_gpu:
        raise ConfigError(f"device {name}: no GPU that torch can use; try --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name}: not a device that dmlm runs on; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= (num_gpus := torch.cuda.device_count()):
        raise ConfigError(f"device {name}: torch sees {num_gpus} GPUs here, cuda:0 to cuda:{num_gpus - 1}")
    return device
