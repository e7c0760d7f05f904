"""Defenses that a client can run, one file a family, and the strengths that a sweep tries."""

from vleak.defenses.compress import Compress
from vleak.defenses.dp import DpSgd
from vleak.defenses.prune import Prune
from vleak.defenses.spelling import parse, spell
from vleak.errors import unknown_name
from vleak.federated.defense import Defense

DEFENSES: dict[str, type[Defense]] = {"none": Defense, "dp": DpSgd, "prune": Prune, "compress": Compress}
"""Every defense by the name that the command line takes."""


def sweep(name: str) -> list[Defense]:
    """Return the strengths, weakest first, that a defense is tried at when only its name is given.

    Raises:
        InputError: there is no such defense.
    """
    if name not in DEFENSES:
        raise unknown_name("defense", name, DEFENSES)
    strengths: dict[str, list[Defense]] = {
        "none": [Defense()],
        "dp": [DpSgd(noise_multiplier=noise) for noise in (0.001, 0.01, 0.1, 1.0)],
        "prune": [Prune(fraction=fraction) for fraction in (0.7, 0.9, 0.99, 0.999)],
        "compress": [Compress(codec="int8"), *(Compress(codec="qsgd", bits=bits) for bits in (8, 4, 2))],
    }
    return strengths[name]


__all__ = ["DEFENSES", "Compress", "Defense", "DpSgd", "Prune", "parse", "spell", "sweep"]
