"""Text encoders are captured whole, as pipelines call them, and read inputs of 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5EncoderModel
from whole import sqnr

from qdiff_fx import QDiffConfig, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, save_qdiff
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.errors import InputError
from qdiff_fx.workflow.parts import config_of, recipe
from tests.pipelines.parts import TOKENS, text_encoder

LETTERS, END = 50, 53


def tokens(rows: int, seed: int = 0) -> torch.Tensor:
    found = torch.randint(0, LETTERS, (rows, TOKENS), generator=torch.Generator().manual_seed(seed))
    found[:, TOKENS // 2 :] = END
    return found


def t5() -> T5EncoderModel:
    config = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    return T5EncoderModel(T5Config(vocab_size=100, **config))


MASK = torch.ones(2, TOKENS, dtype=torch.long)
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "CLIP": (text_encoder, {"attention_mask": None}),
    "CLIP with a projection": (lambda: text_encoder(projection=True), {"output_hidden_states": True}),
    "T5": (t5, {"attention_mask": MASK}),
    "CLIP in half precision": (lambda: text_encoder().half(), {}),
}

QUICK = ("CLIP", "T5")


def quantized(network: Any, config: QDiffConfig, more: dict[str, Any]) -> Any:
    prepared = prepare_qdiff(network, config, {"input_ids": tokens(2), **more})
    rows = [{"input_ids": tokens(2, seed), **more} for seed in range(8)]
    calibrate(prepared, CalibrationData(rows), progress=False)
    return convert_qdiff(prepared)


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own classes
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def test_a_text_encoder(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, more = KINDS[kind]
    network = make().eval()
    found = quantized(network, recipe("text"), more)
    call = {"input_ids": tokens(2, 99), **more}
    with torch.no_grad():
        expected = network(**call)
    result = found(**call)
    assert sqnr(expected[0].float(), result[0].float()) > 36
    assert result.last_hidden_state.dtype == network.dtype
    assert found.config.vocab_size == network.config.vocab_size
    assert not any(name.startswith("_") for name in found.config)
    loaded = load_qdiff(save_qdiff(found, tmp_path / "saved"))
    assert torch.equal(loaded(**call)[0], result[0])
    with pytest.raises(InputError, match="input_ids"):
        found(**{**call, "input_ids": tokens(2)[:, :-1]})


def test_wide_inputs_are_worth_it() -> None:
    """One large number at the first token, as trained ones have."""
    torch.manual_seed(0)
    network = text_encoder(layers=3).eval()
    with torch.no_grad():
        network.get_input_embeddings().weight[0, 7] = 60
    call = tokens(2, 99)
    call[:, 0] = 0
    error = {}
    for bits in ("w8a8", "w8a16"):
        found = quantized(network, config_of(bits), {})
        with torch.no_grad():
            error[bits] = sqnr(network(call)[0], found(call)[0])
    assert error["w8a16"] > error["w8a8"] + 3
