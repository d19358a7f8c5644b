"""Randomness by address."""

import hashlib

import numpy as np
import pytest
import torch
from torch.func import vmap

from fedlightning import keyed_uniform, stream
from fedlightning.randomness import keys, legacy, permute, torch_stream


def test_the_same_address_gives_the_same_numbers_and_others_do_not() -> None:
    def draw(*address: object) -> list[int]:
        return stream(*address).integers(0, 2**62, 4).tolist()  # type: ignore[arg-type]

    addresses = [(s, p, r, c) for s in range(4) for p in ("shuffle", "augment") for r in range(6) for c in range(40)]
    drawn = [tuple(draw(*address)) for address in addresses]
    assert drawn == [tuple(draw(*address)) for address in addresses]
    assert len(set(drawn)) == len(addresses)
    assert draw(1, "a", 11) != draw(1, "a", 1, 1) != draw(11, "a", 1)


def test_neighbouring_addresses_are_uncorrelated() -> None:
    table = np.stack([stream(0, "shuffle", r, c).random(2000) for r in range(4) for c in range(8)])
    correlation = np.corrcoef(table) - np.eye(len(table))
    assert np.abs(correlation).max() < 0.1


def test_a_stream_is_philox_under_the_hash_of_its_address() -> None:
    key = np.frombuffer(hashlib.blake2b(b"3/shuffle/1/2", digest_size=16).digest(), "<u8")
    expected = np.random.Generator(np.random.Philox(key=key)).integers(2**62, size=100)
    np.testing.assert_array_equal(stream(3, "shuffle", 1, 2).integers(2**62, size=100), expected)


@pytest.mark.parametrize("shape", [(1, 50), (3, 7), (2, 1), (0, 4)])
def test_rows_are_permuted_by_the_stream_at_their_address(shape: tuple[int, int]) -> None:
    rows = np.arange(shape[0] * shape[1]).reshape(shape)
    for client in (2, 5, 2):  # a thread's generator keeps nothing from one address to the next
        expected, found = stream(3, "shuffle", 1, client).permuted(rows, axis=1), rows.copy()
        permute(found, 3, "shuffle", 1, client)
        np.testing.assert_array_equal(found, expected)


def test_the_legacy_generator_begins_anew_at_each_seed() -> None:
    for seed in (7, 0, 7):
        new, own = np.random.RandomState(seed), legacy(seed)
        assert np.array_equal(new.choice(1000, 50, replace=False), own.choice(1000, 50, replace=False))
        assert new.standard_normal() == own.standard_normal()  # of each two that are made, one is kept back


def test_torch_streams_are_addressed_too() -> None:
    one, other = (torch.randn(3, generator=torch_stream(0, "init", i)) for i in (1, 2))
    assert torch.equal(one, torch.randn(3, generator=torch_stream(0, "init", 1)))
    assert not torch.equal(one, other)


def test_keyed_numbers_are_uniform_and_the_same_under_vmap() -> None:
    key = keys(50, 0, "client", (3, 7))[:, 0]
    assert len(set(key.tolist())) == 50
    rows = torch.stack([keyed_uniform(k, (30, 40)) for k in key])
    assert torch.equal(vmap(lambda k: keyed_uniform(k, (30, 40)))(key), rows)
    flat = rows.flatten().double()
    assert 0 <= float(flat.min()) <= float(flat.max()) < 1
    assert abs(float(flat.mean()) - 0.5) < 4 * (1 / 12 / len(flat)) ** 0.5
    counts = torch.histc(flat, 64, 0, 1)
    expected = len(flat) / 64
    assert float(((counts - expected) ** 2 / expected).sum()) < 120  # chi-square of 63 degrees, 1e-5 quantile
    correlation = torch.corrcoef(rows.flatten(1).double()) - torch.eye(50)
    assert float(correlation.abs().max()) < 0.15


def test_salts_tell_draws_from_one_key_apart() -> None:
    key = keys(1, 0, "client", (0, 0))[0, 0]
    assert not torch.equal(keyed_uniform(key, (5,)), keyed_uniform(key, (5,), salt=1))
