"""A defense of your own that claims privacy, in twenty lines, and everything that is checked of it."""

# --8<-- [start:defense]
from dataclasses import dataclass

import torch

import vleak
from vleak.defenses.accounting import gaussian_privacy
from vleak.federated import Channel, ClipsNorm, GaussianNoise, Message


@dataclass(frozen=True, kw_only=True)
class UnitBall(vleak.Defense):
    noise: float = 0.5

    def transmit(self, grads, numbers):
        norm = max(1.0, float(sum(g.square().sum() for g in grads.values())) ** 0.5)
        sent = {k: g / norm + self.noise * torch.randn(g.shape, generator=numbers) for k, g in grads.items()}
        return Message(sent, sum(g.nbytes for g in sent.values()))

    def channel(self, update):
        clips, entries = update.facts.batch_size, sum(map(torch.numel, update.tensors.values()))
        known = {"noise_deviation": self.noise * clips, "clip_norm": 1.0 if clips == 1 else float("inf")}
        return Channel(noise_energy=self.noise**2 * entries, key=self.noise, **known)

    def claims(self):
        return ClipsNorm(limit=1.0, unit="client"), GaussianNoise(deviation=self.noise, unit="client")

    def privacy(self):
        return gaussian_privacy(self.noise, unit="one client", delta=1e-5, rounds=1, sample_rate=1.0)


# --8<-- [end:defense]

if __name__ == "__main__":
    # --8<-- [start:run]
    from vleak.auditing import empirical_epsilon
    from vleak.conformance import conform
    from vleak.seeds import generator

    defense = UnitBall(noise=0.5)

    # Its contract and its claims, on what is sent.
    checks = conform(defense).checks
    print(f"conformance: {sum(check.outcome == 'holds' for check in checks)} of {len(checks)} hold")

    # What it gives away of canaries, beside the epsilon that it claims.
    clips = vleak.load_clips("synthetic", clips=2, frames=4, size=16)
    model = vleak.build_model("c3d_tiny", frames=4, size=16, classes=6, seed=0)
    client = vleak.Client(model, defense=defense)
    audit = empirical_epsilon(client, clips.clips[:1], clips.labels[:1], generator("audit"), draws=300)
    print(f"epsilon: at least {audit.lower.epsilon:.1f}, claimed {audit.claimed:.1f}")

    # Attackers who know its channel, and one who does not; the same as a page by run.report("page.html").
    # It needs no second audit.
    run = vleak.evaluate(
        defenses=[defense], attacks=["matching", "matching_blind"], clips=2, frames=4, size=16, iterations=30,
        audit_draws=0,
    )  # fmt: skip
    for row in run.rows:
        if not row.baseline and row.defense != "none":
            gain = row.psnr_gain_db.mean
            print(
                f"{row.attack}, defense known by {row.defense_knowledge}: {gain:+.1f} dB, linked {row.linked}"
            )
    # --8<-- [end:run]
