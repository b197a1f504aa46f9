"""Keep small constants on the devices that read them, so that no step copies one there and waits for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_COPIES = WeakTensorKeyDictionary()  # a constant -> what was made of it; gone as soon as the constant is


def resident(constant: Tensor, device: torch.device, make: Callable[[Tensor], Tensor] = Tensor.detach) -> Tensor:
    """Return what `make` makes of a constant, on a device: made and sent once, for as long as the constant lives.

    Args:
        constant: never to be written to. If it is on the device, nothing is kept.
        make: a function of a module, not one made on the spot: with the device it names what is kept.
    """
    if constant.device == device:
        return make(constant)
    kept = _COPIES.setdefault(constant, {})
    if (device, make) not in kept:
        with torch.inference_mode(False), torch.no_grad():
            kept[device, make] = make(constant).to(device, non_blocking=True)  # a blocking copy waits for all before
    return kept[device, make]
