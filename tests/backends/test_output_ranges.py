"""What layers return is watched for those backends only that quantize it; the others' word is a clear error."""

from __future__ import annotations

import pytest
import torch
from tiny_graphs import Shortcut, prepare

from qdiff_fx import QDiffConfig, convert_qdiff, load_qdiff, save_qdiff
from qdiff_fx.errors import BackendError
from qdiff_fx.observers import TimestepObserver

EXAMPLE = {"x": torch.randn(2, 3, 8, 8), "t": torch.tensor([20, 20])}
ENGINES = [engine for engine in ("x86", "qnnpack") if engine in torch.backends.quantized.supported_engines]


def calibrated(**options):
    torch.manual_seed(0)
    network = prepare(Shortcut(), QDiffConfig(), EXAMPLE, **options)
    with torch.no_grad():
        network(**EXAMPLE)
    return network


def watched(network) -> set[bool]:
    """Whether observers watch outputs, inputs, or both."""
    names = [module.name for module in network.modules() if isinstance(module, TimestepObserver)]
    return {name.endswith(" output") for name in names}


def test_only_inputs_are_watched_by_default():
    assert watched(calibrated()) == {False}


@pytest.mark.parametrize("options", [{"output_quantizers": True}, *({"backend": engine} for engine in ENGINES)])
def test_outputs_are_watched_for_those_who_quantize_them(options):
    network = calibrated(**options)
    assert watched(network) == {True, False}
    for engine in ENGINES:
        assert any(row.integer for row in convert_qdiff(network, engine).explain())
    assert all(row.integer for row in convert_qdiff(network, "reference", output_quantizers=True).explain())


def test_watching_outputs_changes_nothing_for_the_others():
    plain, watching = (convert_qdiff(calibrated(output_quantizers=on), "native") for on in (False, True))
    assert torch.equal(plain(**EXAMPLE), watching(**EXAMPLE))


@pytest.mark.parametrize(
    ("backend", "options"), [("reference", {"output_quantizers": True}), *((e, {}) for e in ENGINES)]
)
def test_without_the_ranges_the_way_out_is_named(backend, options, tmp_path):
    network = calibrated()
    with pytest.raises(BackendError, match='ranges were not measured.*prepare_qdiff.*backend="x86"'):
        convert_qdiff(network, backend, **options)
    folder = save_qdiff(convert_qdiff(network, "reference"), tmp_path / "saved")
    with pytest.raises(BackendError, match='ranges were not measured.*prepare_qdiff.*backend="x86"'):
        load_qdiff(folder, backend, **options)
