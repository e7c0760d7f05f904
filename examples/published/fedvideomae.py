"""FedVideoMAE (arXiv 2512.18809): adapters of a frozen transformer by DP-SGD, behind masks that cancel.

Read: the abstract; fl/client.py, fl/privacy.py, fl/server.py and configs/pretrain_rwf2000.yaml of the
repository; the log of its run with epsilon 1, whose first round has the epsilon of LOGGED, 0.0584.
"""

from dataclasses import dataclass, replace
from functools import partial

from opacus.accountants.utils import get_noise_multiplier
from recipe import Recipe

from vleak.certificates import gaussian_epsilon
from vleak.defenses import Composite, Defense, DpSgd, WeakMasks
from vleak.federated import Channel

NOISE = partial(get_noise_multiplier, target_delta=1e-5, accountant="rdp")
LOGGED = NOISE(target_epsilon=1, sample_rate=32 / 40, steps=8 * 200)
SHIPPED = NOISE(target_epsilon=20, sample_rate=32 / 1600, steps=50 * 200)
MASKS = WeakMasks(deviation=1e-3, clients=40)
RUN = {"model": "vit_tubelet:width=48,depth=2,heads=3,patch=8,lora=4,lora_head=true"}
RUN |= {"local_steps": 4, "local_rate": 2e-4, "local_decay": 0.01, "local_optimizer": "adam"}


@dataclass(frozen=True, kw_only=True)
class FedVideoMae(DpSgd):
    """DP-SGD of Opacus, beside which the loss travels as it is."""

    name = short = "fedvideomae"

    def aggregate_in_round(self, model, loss, clips, labels, generator, memory):
        memory["plain loss"] = loss(model(clips), labels).detach()
        return self.aggregate(model, loss, clips, labels, generator)

    def transmit_in_round(self, gradient, generator, memory):
        told = {name: float(memory[name]) for name in ("plain loss",) if name in memory}
        return replace(self.transmit(gradient, generator), metrics=told)


@dataclass(frozen=True, kw_only=True)
class FedVideoMaeBare(FedVideoMae):
    """The same where Opacus could not be set up: a message is printed, and training goes on without it."""

    name, short, combine = "fedvideomae_bare", "bare", Defense.combine

    def aggregate(self, *given):
        return Defense.aggregate(self, *given)

    def channel(self, update):
        return Channel(key=self.name)


# A clip is in one step of every pass, as batches have a fixed order: 4 passes of 200 rounds, or 1 of 200.
ALL_LOGGED, ALL_SHIPPED = (
    gaussian_epsilon(LOGGED / 800**0.5, 1e-5),
    gaussian_epsilon(SHIPPED / 200**0.5, 1e-5),
)
WORKING, BARE = FedVideoMae(noise_multiplier=LOGGED), FedVideoMaeBare(noise_multiplier=LOGGED)
SHORT = {**RUN, "local_steps": 1}
RECIPES = {
    "FedVideoMAE, as logged": Recipe(Composite(stages=(WORKING, MASKS)), RUN, 1.0, ALL_LOGGED),
    "FedVideoMAE, as shipped": Recipe(FedVideoMae(noise_multiplier=SHIPPED), SHORT, 20.0, ALL_SHIPPED),
    "FedVideoMAE, DP not set up": Recipe(Composite(stages=(BARE, MASKS)), RUN, 1.0),
}
