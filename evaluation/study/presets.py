"""Named defaults for the options of `evaluate`, chosen by ``--preset``."""

from __future__ import annotations

from typing import Any

_RIVALS = "topk,randtopk,c3sl,bottlenetpp"
_PAPER = {
    "methods": f"none,adc,{_RIVALS}",
    "ratios": "0.5,0.4,0.3,0.2,0.1,0.05,0.01",
    "seeds": "43422,51,114",
    "img_size": 224,
    "crop_pct": 1.0,
    "split": 3,
    "pretrained": True,
    "augment": "randaugment,jitter,flip",
    "optimizer": "adam",
    "lr": 1e-4,
    "budget": 1.0,
    "max_epochs": 100.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    # 500 000 and 750 000 images of 50 000 and 75 750, at the paper's batch sizes (paper, section "Experiments").
    "paper-cifar100": {**_PAPER, "batch_size": 128, "epochs": 10.0},
    "paper-food101": {**_PAPER, "batch_size": 256, "epochs": 9.9},
    # The main plot, small.
    "small": {
        "methods": f"none,int4,int2,adc,{_RIVALS}",
        "ratios": "0.02",
        "extra": ("none/pca0.5:pca0.125", "none/pca1:pca0.25"),
        "seeds": "0",
        "img_size": 64,
        "crop_pct": 1.0,
        "epochs": 3.0,
        "compute": "bf16",
        "jobs": 2,
    },
}


def preset(name: str, data: str) -> dict[str, Any]:
    """Return the defaults of a preset; ``paper`` has one set for Food-101 and one for CIFAR-100."""
    if name == "paper":
        name = "paper-food101" if data.startswith("food101") else "paper-cifar100"
    return PRESETS[name]
