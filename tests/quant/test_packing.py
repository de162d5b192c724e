import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdiff_fx.errors import ArtifactError, ConfigError, ConversionError
from qdiff_fx.quant.packing import pack_codes, packed_size, unpack_codes

all_bits = st.integers(2, 8)
shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


def random_codes(bits, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), shape, dtype=torch.int8, generator=generator)


@given(all_bits, shapes, st.integers(0, 2**31))
def test_round_trip(bits, shape, seed):
    codes = random_codes(bits, shape, seed)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(codes.numel(), bits),)
    assert torch.equal(unpack_codes(packed, bits, shape), codes)


@given(all_bits, st.integers(1, 50), st.integers(0, 2**31))
def test_layout_is_one_little_endian_bit_stream(bits, count, seed):
    codes = random_codes(bits, (count,), seed)
    stream = sum((code & ((1 << bits) - 1)) << (bits * index) for index, code in enumerate(codes.tolist()))
    assert bytes(pack_codes(codes, bits).tolist()) == stream.to_bytes(packed_size(count, bits), "little")


def test_every_code_survives():
    for bits in range(2, 9):
        codes = torch.arange(-(1 << (bits - 1)), 1 << (bits - 1)).to(torch.int8)
        assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, codes.shape), codes)


def test_low_nibble_first():
    assert pack_codes(torch.tensor([1, -1, 7], dtype=torch.int8), 4).tolist() == [0xF1, 0x07]


def test_packs_tensors_that_are_not_contiguous():
    codes = random_codes(4, (6, 10), 0).t()[1:]
    assert torch.equal(unpack_codes(pack_codes(codes, 4), 4, codes.shape), codes)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_result_shares_no_memory_with_its_argument(bits):
    codes = torch.zeros(8, dtype=torch.int8)
    packed = pack_codes(codes, bits)
    unpacked = unpack_codes(packed, bits, (8,))
    packed.fill_(255)
    assert not codes.any()
    assert not unpacked.any()


@pytest.mark.parametrize("bits", [1, 9, 4.0, True])
def test_refuses_other_widths(bits):
    with pytest.raises(ConfigError, match="unsupported bits"):
        pack_codes(torch.zeros(2, dtype=torch.int8), bits)
    with pytest.raises(ConfigError, match="unsupported bits"):
        unpack_codes(torch.zeros(2, dtype=torch.uint8), bits, (2,))


def test_refuses_codes_that_do_not_fit():
    with pytest.raises(ConversionError, match=r"\[-9, 7\] do not fit in 4 bits"):
        pack_codes(torch.tensor([-9, 7], dtype=torch.int8), 4)
    with pytest.raises(ConversionError, match="must be int8"):
        pack_codes(torch.zeros(2), 4)


@pytest.mark.parametrize("length", [2, 4])
def test_refuses_bytes_of_the_wrong_length(length):
    with pytest.raises(ArtifactError, match=r"5 codes of 4 bits need uint8 \[3\]"):
        unpack_codes(torch.zeros(length, dtype=torch.uint8), 4, (5,))
