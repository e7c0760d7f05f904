"""Guard of a client: it judges an update before it leaves, and lets nothing out that it cannot judge."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vleak.attacks import Attack
from vleak.defenses import Composite, DpSgd, NoDefense, defense_text, parse_defenses
from vleak.errors import CapabilityError, InputError, VleakError, first_line, require
from vleak.federated import Client, Defense, Update, trained_part, without_dropout
from vleak.federated.dropout import one_pass
from vleak.guarding.decision import NO_PROOF, Decision, Tried
from vleak.guarding.findings import Finding
from vleak.guarding.inspection import clip_figures, findings, weight_figures
from vleak.guarding.samples import HonestFacts, honest_facts
from vleak.guarding.scores import WarningScores, flat, warning_scores
from vleak.guarding.self_attack import SHORT_ATTACKS, attack_itself
from vleak.guarding.thresholds import Thresholds
from vleak.seeds import generator as seeded

Tell = Callable[[str], None]

_SAME = 0.99
"""Cosine with the clips' gradient that an update without a defense has at least."""


def guard(
    update: Update | Client,
    clips: Tensor,
    labels: Tensor,
    *,
    model: nn.Module | None = None,
    defense: Defense | str | None = None,
    generator: torch.Generator | None = None,
    public_clips: Tensor | None = None,
    earlier: nn.Module | Mapping[str, Tensor] | None = None,
    thresholds: Mapping[str, float] | Thresholds | None = None,
    stronger: str | Sequence[Defense] = (),
    attacks: Sequence[Attack] = SHORT_ATTACKS,
    seed: int = 0,
    tell: Tell | None = None,
) -> Decision:
    """Decide whether a client should send an update: "send", "defend more" or "refuse".

    First the model that the server sent is inspected (`vleak.inspect_model`); an alarm refuses, since no
    update of a planted model is safe. Then the update is scored and attacked as an attacker would who knows
    the defense. Where a score is above its threshold, the same clips are sent through stronger settings of
    the defense, weakest first, until one passes; where none does, the guard refuses. It also refuses what it
    cannot judge: a model without second derivative, a score that is no number, an update of zeros.

    A passed check is no proof. The attack on itself is a short one, and the checks know known plants; how
    often they miss is measured in `docs/detection.md`. Only a certificate (`Client.privacy`) proves.

    Args:
        update: about to be sent; or the client, which then makes one.
        clips: (B, C, T, H, W) float32 in [0, 1], the private clips behind it.
        labels: (B,) int64.
        model: as the server sent it, in its weights before local training; not beside a client.
        defense: that made the update, an object or one strength as the command line takes it; None for none.
            Not beside a client.
        generator: of a client's update, and beside a client alone. Its seed has to be a secret: who can guess
            it takes the noise out again.
        public_clips: (M, C, T, H, W), clips of the same kind of scene that anybody may have: the attacker
            holds them, and they are what the private clips are told from. Without them he is weaker, and the
            guard too lenient.
        earlier: the model, or its state dict, of the round before.
        thresholds: changed ones by name (`vleak.guarding.Thresholds`).
        stronger: defenses to try where the update does not pass, weakest first, or a name for its sweep; by
            default the client's own, or "dp" where it has none.
        attacks: on itself, such as ``[vleak.ATTACKS.build("strongest")]`` for a stricter and slower guard; by
            default two short descents.
        seed: of what is drawn for judging alone, and is never sent.
        tell: called with what is being done.

    Raises:
        InputError: an update of another model or other clips, NaN, clips or labels of another shape, an
            unknown threshold; nothing is sent then either.
    """
    limits = Thresholds.of(thresholds)
    client, made = _client(update, model, defense, generator)
    strengths = _strengths(client.defense, stronger)
    _check_clips(clips, labels, public_clips)
    if made is not None:
        _check_update(made, client.model)
    case = _Case(
        client, clips, labels, public_clips, limits, attacks, seed, generator, tell or (lambda _: None)
    )
    try:
        if made is not None:
            case.check_origin(made)
        case.check_labels()
    except (CapabilityError, RuntimeError) as error:
        return _unjudged(error, limits)
    try:
        return case.decide(made, earlier, strengths)
    # What was given has been checked: an error from here on is of the model, the defense or the attack.
    except (VleakError, RuntimeError, ArithmeticError, ValueError) as error:
        return _unjudged(error, limits)


def _unjudged(error: Exception, limits: Thresholds) -> Decision:
    return Decision("refuse", (f"it cannot be judged: {first_line(error)}",), thresholds=limits)


@dataclass(frozen=True)
class _Case:
    """One client with its clips, and how it is judged."""

    client: Client
    clips: Tensor
    labels: Tensor
    public: Tensor | None
    limits: Thresholds
    attacks: Sequence[Attack]
    seed: int
    generator: torch.Generator | None
    tell: Tell

    def decide(
        self,
        made: Update | None,
        earlier: nn.Module | Mapping[str, Tensor] | None,
        strengths: Sequence[Defense],
    ) -> Decision:
        """Return the decision; whatever is raised here means that it cannot be judged."""
        self.tell("inspecting the model")
        model = self._model()
        honest = honest_facts(
            model, self.client.loss, self.clips, self.labels, public_clips=self.public, seed=self.seed
        )
        found = self._inspect(model, honest, earlier)
        alarms = tuple(str(finding) for finding in found if finding.alarm)
        if alarms:
            return Decision("refuse", alarms, findings=found, thresholds=self.limits)
        update = self._own() if made is None else made
        self.tell("attacking the update")
        scores, reasons = self._judge(self.client, update, honest)
        decision = Decision("send", (NO_PROOF,), update, scores, found, thresholds=self.limits)
        return self._defended(decision, reasons, strengths, honest) if reasons else decision

    def _defended(
        self, decision: Decision, reasons: tuple[str, ...], strengths: Sequence[Defense], honest: HonestFacts
    ) -> Decision:
        """Return the decision about an update that does not pass, after trying stronger settings."""
        tried = list[Tried]()
        for index, strength in enumerate(strengths):
            text = defense_text(strength)
            self.tell(f"trying {text}")
            tried.append(Tried(text, self._tried(strength, index + 1, honest)))
            if not tried[-1].reasons:
                return replace(
                    decision, action="defend more", reasons=reasons, update=None, strength=text,
                    tried=tuple(tried),
                )  # fmt: skip
        names = ", ".join(each.defense for each in tried) or "no stronger setting of the defense"
        return replace(
            decision, action="refuse", reasons=(*reasons, f"nothing tried passes: {names}"), update=None,
            tried=tuple(tried),
        )  # fmt: skip

    def _tried(self, strength: Defense, index: int, honest: HonestFacts) -> tuple[str, ...]:
        """Return why an update behind a strength would not pass."""
        try:
            update = self._made(strength, index)
            return self._judge(self._behind(strength), update, honest)[1]
        except CapabilityError as error:
            return (f"it cannot be used: {first_line(error)}",)

    def _judge(
        self, client: Client, update: Update, honest: HonestFacts
    ) -> tuple[WarningScores, tuple[str, ...]]:
        """Return the scores of an update, and why it would not be sent.

        Raises:
            CapabilityError: a score is no number, or there is nothing in the update.
        """
        if not any(bool(tensor.any()) for tensor in update.tensors.values()):
            raise CapabilityError("every entry of the update is zero, so that nothing can be told of it")
        classes = one_pass(self._model(), self.clips[:1]).shape[1]
        attacked = attack_itself(
            client, update, self.clips, self.labels, classes=classes, public_clips=self.public,
            attacks=self.attacks, seed=self.seed,
        )  # fmt: skip
        scores = warning_scores(update, honest, attack=attacked)
        for name, value in scores.numbers().items():
            if math.isnan(value):
                raise CapabilityError(f"score {name} is no number")
        return scores, tuple(self._excesses(scores))

    def _excesses(self, scores: WarningScores) -> list[str]:
        """Return in a sentence each which scores are above their thresholds."""
        limits, attack = self.limits, scores.attack
        assert attack is not None
        compared = (
            (
                "its own attack rebuilds a clip better than guessing, gain in dB",
                attack.gain_db,
                limits.gain_db,
            ),
            ("its own attack's answer follows a clip, correlation", attack.correlation, limits.correlation),
            ("the update follows the clips, Jacobian energy", scores.jacobian_energy, limits.jacobian_energy),
        )
        return [
            f"{what}: {value:.2f}, at most {limit:.2f}" for what, value, limit in compared if value > limit
        ]

    def _inspect(
        self, model: nn.Module, honest: HonestFacts, earlier: nn.Module | Mapping[str, Tensor] | None
    ) -> tuple[Finding, ...]:
        figures = weight_figures(self.client.model, earlier) | clip_figures(model, self.clips, honest)
        return findings(figures, self.limits)

    def check_labels(self) -> None:
        """Refuse clips and labels that the model does not take.

        Raises:
            InputError: it does not.
            CapabilityError: the model cannot compute an update.
        """
        self._made(NoDefense(), 0)

    def check_origin(self, update: Update) -> None:
        """Refuse an update without a defense that is not the gradient of the clips.

        Raises:
            InputError: it is not.
        """
        channel, local = self.client.channel(update), update.facts.local
        if channel is None or not channel.exact or channel.transform is not None:
            return
        if local is not None and (local.steps > 1 or local.step_size(len(self.clips)) < len(self.clips)):
            return  # which clips a step takes is drawn
        sent, honest = (flat(each.as_gradient()) for each in (update, self._made(NoDefense(), 0)))
        cosine = float(sent @ honest) / max(float(sent.norm() * honest.norm()), 1e-300)
        if cosine < _SAME and bool(honest.any()):
            raise InputError(
                f"the update is not the gradient of these clips at this model (cosine {cosine:.3f}, expected "
                "1); give the clips, labels and weights that it was made with, or name its defense"
            )

    def _own(self) -> Update:
        """Return the client's update, the only one that may be sent."""
        assert self.generator is not None
        return self.client.update(self.clips, self.labels, self.generator)

    def _made(self, defense: Defense, draw: int) -> Update:
        """Return an update to judge by; its noise is no secret."""
        return self._behind(defense).update(self.clips, self.labels, seeded(self.seed, "guard", draw))

    def _behind(self, defense: Defense) -> Client:
        client = self.client
        return Client(client.model, client.loss, defense, mode=client.mode, local=client.local)

    def _model(self) -> nn.Module:
        """Return the trained part of the model without dropout, in the client's mode, as a copy."""
        model = copy.deepcopy(trained_part(without_dropout(self.client.model)))
        return model.train(self.client.mode == "train")


def _client(
    update: Update | Client,
    model: nn.Module | None,
    defense: Defense | str | None,
    generator: torch.Generator | None,
) -> tuple[Client, Update | None]:
    """Return the client that makes, or would have made, the update; and the update where there is one."""
    if isinstance(update, Client):
        if model is not None or defense is not None:
            raise InputError("a client has its own model and defense; give it alone, or an update with both")
        if generator is None:
            raise InputError(
                "a client draws its noise from generator=; give torch.Generator() with a seed that is secret"
            )
        return update, None
    if not isinstance(update, Update):
        raise InputError(f"update is {type(update).__name__}, expected a vleak.Update or a vleak.Client")
    if model is None:
        raise InputError("an update needs the model that it was made with; give model=")
    facts = update.facts
    client = Client(model, facts.loss, _one_defense(defense), mode=facts.mode, local=facts.local)
    return client, update


def _one_defense(defense: Defense | str | None) -> Defense:
    strengths = parse_defenses("none" if defense is None else defense)
    if len(strengths) > 1:
        raise InputError(
            f"defense {defense!r} is a sweep of {len(strengths)} strengths; name the one that made the "
            f"update, such as {defense_text(strengths[0])}"
        )
    return strengths[0]


def _strengths(defense: Defense, stronger: str | Sequence[Defense]) -> list[Defense]:
    """Return what is tried where an update does not pass, weakest first."""
    if isinstance(stronger, str):
        return parse_defenses(stronger)
    if stronger:
        return list(stronger)
    if isinstance(defense, NoDefense | Composite) or type(defense) is Defense:
        return list(DpSgd.sweep())
    sweep = list(type(defense).sweep())
    return sweep[sweep.index(defense) + 1 :] if defense in sweep else sweep


def _check_clips(clips: Tensor, labels: Tensor, public: Tensor | None) -> None:
    """Refuse what is no batch of clips with labels."""
    for name, value in (("clips", clips), ("labels", labels), ("public_clips", public)):
        if value is not None or name != "public_clips":
            require(f"guard: {name}", value, Tensor, "a torch.Tensor")
    expected = "expected clips of shape (clip, channel, frame, height, width), float32 in [0, 1]"
    if clips.ndim != 5 or not clips.numel() or clips.dtype != torch.float32:
        hint = "; add the clip axis with x[None]" if clips.ndim == 4 else ""
        raise InputError(f"guard: {expected}, got {tuple(clips.shape)}, {clips.dtype}{hint}")
    for name, each in (("clips", clips), ("public_clips", public)):
        if each is not None and len(each) and not bool(((each >= 0) & (each <= 1)).all()):
            raise InputError(f"guard: {name} hold NaN or values outside [0, 1]; scale pixels by 1/255")
    if labels.dtype != torch.int64 or labels.shape != clips.shape[:1]:
        raise InputError(
            f"guard: expected labels of shape ({len(clips)},), int64, got {tuple(labels.shape)}, "
            f"{labels.dtype}"
        )
    if public is not None and public.shape[1:] != clips.shape[1:]:
        raise InputError(
            f"guard: expected public clips of shape (clip, *{tuple(clips.shape[1:])}), got "
            f"{tuple(public.shape)}"
        )


def _check_update(update: Update, model: nn.Module) -> None:
    """Refuse an update of another model, and one with NaN."""
    update.check(model)
    for name, tensor in update.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"update tensor {name!r} holds NaN or infinity; do not send it, compute it again"
            )
