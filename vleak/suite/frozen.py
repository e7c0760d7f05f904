"""Frozen protocols by name. One that has entries is never changed: a change is a protocol of another name."""

from __future__ import annotations

from collections.abc import Mapping

from vleak.errors import unknown_name
from vleak.suite.protocol import Protocol, Situation

__all__ = ["NEWEST", "PROTOCOLS", "find_protocol"]

NEWEST = "vleak-suite-1"
"""Protocol that runs where none is named."""

PROTOCOLS: Mapping[str, Protocol] = {
    NEWEST: Protocol(
        name=NEWEST,
        about="single clips of 8x32x32 and a small 3-D CNN: the gradient of an untrained one, and ten local "
        "steps of one that has begun to learn",
        situations=(
            Situation(name="gradient", utility_rounds=80, audited=True),
            Situation(name="local-steps", training_state="early", local_steps=10, local_rate=0.01),
        ),
        clips=12,
        seed=4100,
        clip_means=(
            (0.3543, 0.4699, 0.5280, 0.6510, 0.3799, 0.4383, 0.5538, 0.5649),
            (0.5735, 0.5488, 0.4695, 0.4970, 0.4726, 0.5338, 0.5490, 0.5313),
            (0.4254, 0.4444, 0.4465, 0.4613, 0.4531, 0.5032, 0.4171, 0.4217),
            (0.6552, 0.5889, 0.5136, 0.6727, 0.6450, 0.5769, 0.4571, 0.6436),
            (0.4209, 0.3501, 0.4747, 0.3829, 0.3489, 0.4304, 0.4481, 0.4035),
            (0.4831, 0.7421, 0.4383, 0.3854, 0.5068, 0.7393, 0.4455, 0.3890),
            (0.4106, 0.4159, 0.3291, 0.2706, 0.3696, 0.4262, 0.3252, 0.2927),
            (0.5010, 0.4270, 0.5308, 0.4974, 0.5248, 0.4638, 0.5656, 0.5183),
            (0.4334, 0.4025, 0.4169, 0.4915, 0.4529, 0.4475, 0.3903, 0.4479),
            (0.4817, 0.5325, 0.4170, 0.4390, 0.4358, 0.5723, 0.4002, 0.4629),
            (0.5130, 0.5302, 0.4242, 0.4236, 0.4824, 0.5857, 0.3422, 0.5460),
            (0.3559, 0.3636, 0.3285, 0.3122, 0.3134, 0.3588, 0.3779, 0.3362),
        ),
    ),
}


def find_protocol(name: str) -> Protocol:
    """Protocol of a name.

    Raises:
        InputError: there is none; the nearest names are given.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
