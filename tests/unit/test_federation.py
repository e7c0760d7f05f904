"""Federated training in simulation, and the utility of defenses that comes of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import vleak
from runs import tiny
from vleak.defenses import DpClient, Prune
from vleak.errors import CapabilityError, InputError
from vleak.evaluation import StoppedError, evaluate
from vleak.federated import Client, Federation, LocalTraining, train_federation
from vleak.report import headline, write_report
from vleak.report.costs import cost_table, frontier, undominated
from vleak.report.words import unfinished
from vleak.results import Row, summarise
from vleak.seeds import generator

CLIPS = torch.rand((24, 3, 2, 4, 4), generator=generator("federation")) * 0.2
LABELS = torch.arange(24) % 2
NARROW = "c3d_tiny:width=4,depth=1"
CLIPS[LABELS == 1] += 0.8


def model() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(96, 2))
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def right(net: nn.Module) -> float:
    return float((net(CLIPS).argmax(1) == LABELS).float().mean())


def test_one_round_is_adam_on_the_mean_of_the_clients_gradients() -> None:
    federation = Federation(rounds=1, clients=4, batch=6, server_rate=0.1)
    trained = train_federation(Client(model()), CLIPS, LABELS, federation, generator("one"))
    net = model()
    nn.functional.cross_entropy(net(CLIPS), LABELS).backward()
    torch.optim.Adam(net.parameters(), lr=0.1).step()
    for got, wanted in zip(trained.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert trained.bytes == 4 * (96 * 2 + 2)


def test_a_delta_is_added_as_it_is() -> None:
    client = Client(model(), local=LocalTraining(steps=1, learning_rate=0.5))
    trained = train_federation(client, CLIPS, LABELS, Federation(rounds=1, batch=1), generator("delta"))
    net = model()
    own = [torch.arange(c, 24, 10) for c in range(10)]
    numbers = generator("delta")
    total = [torch.zeros_like(p) for p in net.parameters()]
    for clips in own:
        chosen = clips[torch.randperm(len(clips), generator=numbers)[:1]]
        loss = nn.functional.cross_entropy(net(CLIPS[chosen]), LABELS[chosen])
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        total = [t - 0.5 * g / 10 for t, g in zip(total, gradients, strict=True)]
    for got, wanted in zip(trained.model.parameters(), total, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_training_learns_and_heavy_noise_prevents_it() -> None:
    federation = Federation(rounds=30, clients=4, batch=2, server_rate=0.05)
    plain = train_federation(Client(model()), CLIPS, LABELS, federation, generator("plain"))
    assert right(plain.model) == 1.0
    numbers = [generator("noise", seed) for seed in range(5)]
    noisy = [
        train_federation(
            Client(model(), defense=DpClient(noise_multiplier=100.0)), CLIPS, LABELS, federation, each
        )
        for each in numbers
    ]
    assert sum(right(each.model) for each in noisy) / 5 < 0.8


def test_every_client_has_a_memory_of_its_own() -> None:
    pruned = Prune(fraction=0.99, error_feedback=True)
    federation = Federation(rounds=60, clients=4, batch=6, server_rate=0.05)
    with_memory = train_federation(Client(model(), defense=pruned), CLIPS, LABELS, federation, generator("p"))
    assert right(with_memory.model) == 1.0


def test_weights_that_become_nan_end_the_training() -> None:
    federation = Federation(rounds=1, batch=2, server_rate=float("inf"))
    with pytest.raises(CapabilityError, match=r"'1\.\w+' became NaN"):
        train_federation(Client(model()), CLIPS, LABELS, federation, generator("nan"))


# ---------------------------------------------------------------------------------------------------------
# Utility of a run


@pytest.fixture(autouse=True)
def few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing hundreds of clips takes longer than what is tested."""
    monkeypatch.setattr("vleak.evaluation.utility._DRAWN", 20)
    monkeypatch.setattr("vleak.evaluation.utility._HELD_OUT", 12)


@pytest.mark.usefixtures("no_plots")
def test_a_run_trains_under_every_defense_and_a_resumed_one_does_not_again(tmp_path: Path) -> None:
    settings = tiny(
        clips=2, model=NARROW, defenses=("prune:fraction=0.9",), utility=2, engine="reference", enhance="none"
    )
    record = evaluate(settings, tmp_path / "run")
    assert [each.defense for each in record.utility] == ["none", "prune 90 %"]
    assert all(each.ok and len(each.right) == 12 and each.rounds == 2 for each in record.utility)
    again = evaluate(settings, tmp_path / "run")
    assert again.utility == record.utility  # with its seconds, so it was not measured again
    rows = [row for row in summarise(record) if not row.baseline]
    assert all(row.accuracy.n == 12 for row in rows)
    assert rows[0].accuracy_change.mean is None
    assert [row.step_seconds for row in rows] == [each.seconds for each in record.utility]
    page = write_report(tmp_path / "run").read_text()
    assert "What each defense costs" in page
    assert page.count("<b>not beaten</b>") == len(undominated(rows)) > 0
    assert f"{1000 * record.utility[1].seconds:.1f} ms" in page
    assert any(line.startswith("No other defense leaks less and trains") for line in headline(rows))
    assert rows[1].accuracy_change.mean == pytest.approx(rows[1].accuracy.mean - rows[0].accuracy.mean)


def test_a_stopped_training_keeps_the_cells(tmp_path: Path) -> None:
    stop = threading.Event()

    def told(what: str, done: int, total: int) -> None:
        if what.startswith("training under"):
            stop.set()

    with pytest.raises(StoppedError, match="stopped while training"):
        evaluate(
            tiny(clips=2, model=NARROW, utility=2, engine="reference", enhance="none"),
            tmp_path / "run", progress=told, stop=stop,
        )  # fmt: skip
    kept = vleak.load_run(tmp_path / "run").record
    assert kept.cells
    assert not kept.utility
    (sentence,) = unfinished(kept)
    assert sentence.startswith("Trained under 0 of 2 defenses")
    assert (
        unfinished(kept.model_copy(update={"settings": kept.settings.model_copy(update={"utility": 0})}))
        == []
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"utility": -1}, "utility=-1: expected 0 to 100,000 rounds"),
        ({"non_adaptive": -1}, "non_adaptive=-1: expected 0 to 1,000,000 clips"),
        ({"quick": 1}, "quick=1: expected True or False"),
        ({"utility": 2, "pipeline": "feature"}, "take the raw pipeline"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(tiny(**settings))


def test_clips_without_labels_have_no_accuracy() -> None:
    clips = torch.rand((6, 3, 4, 8, 8), generator=generator("unlabelled"))
    with pytest.raises(InputError, match="no labels to be right about"):
        vleak.evaluate(data=clips, utility=2, attacks=["matching"], defenses=["none"])


def test_the_frontier_is_what_no_other_defense_beats() -> None:
    run = evaluate(tiny(clips=1, iterations=1))
    base = next(row for row in summarise(run) if not row.baseline)

    def row(name: str, gain: float, accuracy: float) -> Row:
        return replace(
            base, defense=name, psnr_gain_db=replace(base.psnr_gain_db, mean=gain),
            accuracy=replace(base.accuracy, mean=accuracy),
        )  # fmt: skip

    rows = [row("a", 9, 0.8), row("b", 9, 0.7), row("c", 2, 0.5), row("d", 3, 0.5), row("e", 0, 0.1)]
    assert [each.defense for each in frontier(rows)] == ["a", "c", "e"]
    table = cost_table(rows)
    assert table is not None
    assert [(each.defense, best) for each, best in table.rows] == [
        ("e", True), ("c", True), ("d", False), ("a", True), ("b", False)
    ]  # fmt: skip
    assert (table.praise, table.trained) == ("trains as well", True)
    assert undominated(rows) == ["e", "c", "a"]
    assert undominated([replace(each, accuracy=base.accuracy) for each in rows]) == []
