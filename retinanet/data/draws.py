"""Random numbers that are a function of what they are for.

A generator has a state, and who asks first changes what the next one gets. Here every number
is a hash of (seed, epoch, image id, purpose), so neither processes nor their number nor a
restart can change it. It is computed in integers only: the same on every machine and version.
"""

from __future__ import annotations

import numpy as np

# The purposes. A number keeps its meaning for ever: another one would change every run.
FLIP, SIZE, SCALE, TOP, LEFT, BRIGHTNESS, CONTRAST, SATURATION, ORDER, STEPS = range(10)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epoch: int, image_ids: np.ndarray, purpose: int) -> np.ndarray:
    """One number in [0, 1) for each of (N,) integers: (N,) float64.

    ``purpose`` is a constant of this module; different ones give independent numbers.
    """
    key = np.zeros(1, dtype=np.uint64)
    for word in (seed, epoch, purpose):
        key = _mix(key ^ np.array([word], dtype=np.int64).view(np.uint64))
    bits = _mix(key ^ _mix(np.asarray(image_ids, dtype=np.int64).view(np.uint64)))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: np.ndarray) -> np.ndarray:
    """A bijection of 64 bit words that leaves no pattern; wraps around by intent.

    Source: SplitMix64, Steele et al. 2014, "Fast splittable pseudorandom number generators".
    """
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
