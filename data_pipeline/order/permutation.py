"""Keyed permutations computed value by value: the same on every machine, since no library's generator decides.

A permutation is a Feistel network whose rounds, and whose keys, are the finaliser of SplitMix64.
"""

import numpy as np

_MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
"""SplitMix64's increment: 2^64 divided by the golden ratio, odd."""
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Multipliers of SplitMix64's finaliser."""
_ROUNDS = 8
_FEW = 16


def key_of(*parts: int) -> int:
    """Make a 64-bit key from integers of any size and sign."""
    key = 0
    for part in parts:
        key = _mix((key + part + GOLDEN) & _MASK)
    return key


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Return the images (int64) of `index` (values in [0, size)) under the permutation of [0, size) that `key` names.

    The permutation is a balanced Feistel network on the next even number of bits, repeated until the result is below
    `size`.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    round_keys = [key_of(key, number) for number in range(_ROUNDS)]
    if len(index) <= _FEW:
        return np.array([_permute_one(int(value), size, half, round_keys) for value in index], np.int64)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [np.uint64(round_key) for round_key in round_keys]

    def network(values: np.ndarray) -> np.ndarray:
        left, right = values >> shift, values & mask
        for round_key in keys:
            left, right = right, left ^ (mix_array(right + round_key) & mask)
        return (left << shift) | right

    images = network(np.asarray(index).astype(np.uint64))
    while (outside := np.flatnonzero(images >= size)).size:
        images[outside] = network(images[outside])
    return images.astype(np.int64)


def _permute_one(value: int, size: int, half: int, keys: list[int]) -> int:
    """Permute one value with Python's integers, which is faster than numpy for a few values."""
    mask = (1 << half) - 1
    while True:
        left, right = value >> half, value & mask
        for key in keys:
            left, right = right, left ^ (_mix((right + key) & _MASK) & mask)
        value = (left << half) | right
        if value < size:
            return value


def _mix(value: int) -> int:
    """Apply the finaliser of SplitMix64 (Steele, Lea and Flood 2014) to one 64-bit integer."""
    value = ((value ^ (value >> 30)) * MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * MIX_2) & _MASK
    return value ^ (value >> 31)


def mix_array(values: np.ndarray) -> np.ndarray:
    """Apply the finaliser of SplitMix64 to each value of a uint64 array."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(MIX_1)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(MIX_2)
    return values ^ (values >> np.uint64(31))
