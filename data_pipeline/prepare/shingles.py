"""Similarity of texts by shingles (sequences of words): MinHash finds near-duplicates, containment held-out overlap.

Broder 1997, with the bands of datatrove's MinHash: 14 bands of 8 hashes find pairs of Jaccard similarity 0.8 with
probability 0.92, and of 0.5 with 0.05. Words are hashed with numpy, by prefix sums over the text's bytes. That takes
about 0.3 ms for a paper, a few percent of its tokenization; a Python loop over words takes 20 times as long.
"""

import numpy as np

from transpooler.data_pipeline.order.permutation import GOLDEN, MIX_1, mix_array

SHINGLE_WORDS = 5
NUM_BANDS, BAND_HASHES = 14, 8
OVERLAP_SHINGLE_WORDS = 8
OVERLAP_SAMPLE = 4
"""One shingle in so many is compared: those whose hash it divides, so that sets of different sizes stay comparable."""
MIN_SAMPLED, MAX_SAMPLED = 8, 256
"""Held-out documents with fewer sampled shingles are compared as a whole only; of longer ones MAX_SAMPLED are used."""

_TABLE = bytes(
    byte + 32 if 65 <= byte <= 90 else byte if chr(byte).isalnum() or byte >= 128 else 32 for byte in range(256)
)
_BASE = np.uint64(GOLDEN)  # odd, so that powers have inverses modulo 2^64
_INVERSE = np.uint64(pow(GOLDEN, -1, 1 << 64))
_BLOCK = 1 << 20
_powers = np.ones((2, 1), np.uint64)


def hash_words(text: str) -> np.ndarray:
    """Return the hash of each word, in order, uint64. ASCII case and punctuation do not count; a character of three or
    four UTF-8 bytes (Chinese, Japanese, ...) is a word of its own."""
    data, parts = text.encode().translate(_TABLE), []
    while data:
        cut = len(data) if len(data) <= _BLOCK else data.find(b" ", _BLOCK)
        cut = len(data) if cut < 0 else cut
        parts.append(_hash_block(np.frombuffer(data[:cut], np.uint8)))
        data = data[cut:]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _hash_block(data: np.ndarray) -> np.ndarray:
    inside = data != 32
    start = inside.copy()
    wide = data >= 0xE0
    start[1:] &= ~inside[:-1] | wide[1:] | ((data[1:] < 128) & (data[:-1] >= 128) & _follows_wide(data))
    starts = np.flatnonzero(start)
    if not len(starts):
        return np.zeros(0, np.uint64)
    powers, inverses = _compute_powers(len(data))
    terms = (data * inside).astype(np.uint64) * powers[: len(data)]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])
    return mix_array((sums[np.append(starts[1:], len(data))] - sums[starts]) * inverses[starts])


def hash_shingles(words: np.ndarray, size: int) -> np.ndarray:
    """Return the hashes (uint64) of all sequences of `size` words, or of the whole text if it is shorter."""
    size = min(size, len(words))
    if size == 0:
        return words
    total = np.zeros(len(words) - size + 1, np.uint64)
    for offset in range(size):
        total *= _BASE
        total += words[offset : len(words) - size + 1 + offset]
    return mix_array(total)


def compute_bands(words: np.ndarray) -> np.ndarray:
    """Return NUM_BANDS uint64; texts that agree in one of them are near-duplicates."""
    hashes = hash_shingles(words, SHINGLE_WORDS)
    if not len(hashes):
        hashes = np.zeros(1, np.uint64)
    seeds = mix_array(np.arange(1, NUM_BANDS * BAND_HASHES + 1, dtype=np.uint64) * _BASE)
    smallest = np.array([np.min((hashes ^ seed) * np.uint64(MIX_1)) for seed in seeds])
    band = np.zeros(NUM_BANDS, np.uint64)
    for column in smallest.reshape(NUM_BANDS, BAND_HASHES).T:
        band = mix_array(band * _BASE + column)
    return band


def sample_shingles(words: np.ndarray) -> np.ndarray:
    """Return the sampled shingles (uint64) of one document, sorted and distinct."""
    hashes = hash_shingles(words, OVERLAP_SHINGLE_WORDS)
    return np.unique(hashes[hashes % np.uint64(OVERLAP_SAMPLE) == 0])


class HeldOut:
    """The content of validation and test documents, which training documents must not contain."""

    def __init__(self, samples: list[np.ndarray], hashes: list[bytes]) -> None:
        kept = [sample[:MAX_SAMPLED] if len(sample) >= MIN_SAMPLED else sample[:0] for sample in samples]
        self._sizes = np.array([len(sample) for sample in kept] or [0])
        values = np.concatenate(kept) if kept else np.zeros(0, np.uint64)
        owners = np.repeat(np.arange(len(kept)), self._sizes[: len(kept)])
        order = np.argsort(values, kind="stable")
        self._values, self._owners = values[order], owners[order]
        self._hashes = frozenset(hashes)

    def overlaps(self, words: np.ndarray, content_hash: bytes, share: float) -> bool:
        """Whether the text is a held-out document, or contains `share` of the sampled shingles of one."""
        if content_hash in self._hashes:
            return True
        sample = sample_shingles(words)
        if not len(sample) or not len(self._values):
            return False
        low = np.searchsorted(self._values, sample, "left")
        hit = self._values[np.minimum(low, len(self._values) - 1)] == sample
        if hit.sum() < MIN_SAMPLED * share:
            return False
        high = np.searchsorted(self._values, sample[hit], "right")
        found = np.concatenate([self._owners[a:b] for a, b in zip(low[hit], high, strict=True)])
        return bool((np.bincount(found, minlength=len(self._sizes)) >= np.maximum(share * self._sizes, 1)).any())


def _follows_wide(data: np.ndarray) -> np.ndarray:
    """Return, for each byte but the first, whether the character before it has three or four bytes."""
    wide = np.zeros(len(data) - 1, bool)
    for back in (3, 4):
        wide[back - 1 :] |= data[: len(data) - back] >= (0xE0 if back == 3 else 0xF0)
    return wide


def _compute_powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return at least the powers 0 .. length - 1 of the base and of its inverse, modulo 2^64."""
    global _powers
    if _powers.shape[1] < length:
        steps = np.ones((2, 1 << (length - 1).bit_length()), np.uint64)
        steps[0, 1:], steps[1, 1:] = _BASE, _INVERSE
        _powers = np.cumprod(steps, axis=1)
    return _powers[0], _powers[1]
