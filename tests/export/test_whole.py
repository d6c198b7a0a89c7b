"""`export --whole`: the whole model as one graph, with timm's logits and the digest in the manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adc_edge.errors import ParityError
from adc_edge.export import whole as whole_module
from adc_edge.export.build import ExportSettings, export_bundle
from adc_edge.method.split import create_vit, trunk_spec
from adc_edge.onnx.session import cpu_session
from adc_edge.storage.bundle import TRUNK, WHOLE, Bundle
from tests.conftest import TINY

MODEL = "vit_tiny_patch16_224"


@pytest.mark.slow
def test_a_merged_checkpoint_becomes_a_bundle_whose_whole_model_has_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(5)
    vit = create_vit(MODEL, TINY, 10).eval()
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    settings = ExportSettings(
        MODEL, 2, tmp_path / "out", weights=tmp_path / "model.safetensors", model_args=TINY, whole=True
    )
    export_bundle(settings)
    bundle = Bundle.load(tmp_path / "out", (WHOLE, TRUNK))
    images = np.random.default_rng(1).standard_normal((7, 3, 16, 16), np.float32)
    (found,) = cpu_session(str(bundle.file(WHOLE))).run(None, {"images": images})
    with torch.no_grad():
        np.testing.assert_allclose(found, vit(torch.from_numpy(images)).numpy(), atol=1e-5, rtol=0)
    assert load_file(bundle.file(TRUNK)).keys() <= vit.state_dict().keys()


def test_a_graph_that_differs_from_timm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_module, "WHOLE_LIMIT", 0.0)
    vit = create_vit(MODEL, TINY, 10)
    with pytest.raises(ParityError, match="differ from timm's"):
        whole_module.whole_graph(vit, trunk_spec(vit, 2))
