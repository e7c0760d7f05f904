"""Workers that are actors of Ray: on a cluster that is there, or on a Ray that is started for the run."""

from __future__ import annotations

import logging
import os
import pickle
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType
from typing import Any

import numpy as np
import torch

import vleak
from vleak.errors import CapabilityError, InputError, VleakError, argument, first_line
from vleak.evaluation.workers import POLL, ClientCells, Crew, Limits, Outcome, Worker, outcome
from vleak.models.memory import limit_memory
from vleak.native import loader
from vleak.switches import exact_arithmetic, math_attention, one_thread

__all__ = ["LOCAL", "Cluster"]

LOCAL = "local"
"""Address that stands for a Ray of one's own, on this machine, for the time of the run."""
_CONNECT, _ANSWER = 5.0, 10.0
"""Seconds that an address has to take a connection, and then to answer as Ray does."""
_STORE = 2**28
"""Bytes of the object store of a Ray of one's own, beside twice what the workers are sent."""


class Cluster(Crew):
    """Ray, each of whose CPUs has a worker. What the cells share is put into its object store once."""

    starting = "starting Ray"
    remedy = "see the logs of Ray, or use `workers`"

    def __init__(self, address: str) -> None:
        """Take an address, and make sure that Ray answers there.

        Args:
            address: ``HOST:PORT`` of a cluster's head, "auto" for the one of this machine, or "local".

        Raises:
            CapabilityError: Ray is not installed.
            VleakError: nothing answers there.
        """
        if not isinstance(address, str) or not address:
            raise InputError(f"{argument('ray', repr(address))}: expected HOST:PORT, auto or {LOCAL}")
        self._ray, self._address = _installed(), address
        if address != LOCAL and not self._ray.is_initialized():
            _check_answers(address)
        self._limits = Limits()
        self._clients: Any = None
        self._actors: Any = None

    @contextmanager
    def open(self, clients: Sequence[ClientCells], limits: Limits) -> Iterator[int]:
        """Connect to Ray, and share the clients; gives the number of its CPUs.

        Raises:
            InputError: something of the clients cannot be sent.
            VleakError: Ray cannot be started or reached.
        """
        ray, packed = self._ray, _packed(self._ray, clients)
        with _connected(ray, self._address, _STORE + 2 * len(packed)):
            self._clients, self._limits = ray.put(np.frombuffer(packed, np.uint8)), limits
            # A retry is the queue's: it counts them for all kinds of workers.
            self._actors = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Server)
            yield max(int(ray.cluster_resources().get("CPU", 0)), 1)

    def start(self) -> Worker:
        """Ask for an actor; it comes when a CPU is free."""
        actor = self._actors.remote()
        return _Actor(self._ray, actor, actor.load.remote(_versions(), self._clients, self._limits.gibibytes))

    def heard(self, workers: Sequence[Worker]) -> Collection[Worker]:
        """Wait for `POLL` seconds at most, and return the workers that have something to say, or are dead."""
        asked = {actor.answer: actor for actor in workers if isinstance(actor, _Actor) and actor.answer}
        done, _ = self._ray.wait(list(asked), timeout=POLL) if asked else ([], [])
        return [asked[reference] for reference in done]


class _Actor(Worker):
    """One actor.

    Attributes:
        answer: reference to what it will say; None while nothing is asked of it.
    """

    def __init__(self, ray: ModuleType, actor: Any, answer: Any) -> None:
        self._ray, self._actor, self.answer = ray, actor, answer
        self.ready = False

    def _send(self, client: int) -> None:
        self.answer = self._actor.run.remote(client)

    def _receive(self) -> Outcome:
        answer, self.answer = self.answer, None
        try:
            told: Outcome = pickle.loads(self._ray.get(answer))
        except self._ray.exceptions.RayError as error:
            return _ending(error)
        self.ready = True
        return told

    def end(self) -> None:
        """End the actor at once."""
        with suppress(
            self._ray.exceptions.RayError, ValueError
        ):  # the cluster is gone, and the actor with it
            self._ray.kill(self._actor)


class _Server:
    """What an actor is on its node: it runs the cells of the clients that it is told."""

    def __init__(self) -> None:
        self._clients: Sequence[ClientCells] = ()
        self._stack = ExitStack()
        for context in (one_thread(), exact_arithmetic(), math_attention()):
            self._stack.enter_context(context)

    def load(self, wanted: Mapping[str, str], packed: Any, gibibytes: float | None) -> bytes:
        """Take the clients; the answer is "", or an error where they cannot run here as they would there."""
        node, own = platform.node(), _versions()
        for name, version in wanted.items():
            if own[name] != version:
                what = f"node {node} of the cluster has {name} {own[name]}, this machine {version}"
                return pickle.dumps(VleakError(f"{what}; install the same on every node"))
        try:
            self._clients = pickle.loads(memoryview(packed))
        except Exception as error:  # noqa: BLE001  of a module of the user's, which is told
            what = f"node {node} of the cluster cannot load the cells: {type(error).__name__}"
            return pickle.dumps(VleakError(f"{what}: {first_line(error)}; install it on every node"))
        limit_memory(gibibytes)
        return pickle.dumps("")

    def run(self, client: int) -> bytes:
        """Run the cells of a client; the answer is their outcome."""
        return pickle.dumps(outcome(self._clients[client]))


def _installed() -> ModuleType:
    """Return the module of Ray.

    Raises:
        CapabilityError: there is none.
    """
    try:
        import ray
    except ImportError as error:
        raise CapabilityError(
            f"Ray cannot be imported ({first_line(error)}); pip install 'vleak[ray]', or use `workers`"
        ) from error
    module: ModuleType = ray
    return module


def _versions() -> dict[str, str]:
    """What must be the same on every node for the same numbers."""
    state = loader.status().state
    return {"vleak": vleak.__version__, "torch": torch.__version__, "the extension": state}


def _packed(ray: ModuleType, clients: Sequence[ClientCells]) -> bytes:
    """Return clients as bytes, in one piece: what they share is in it once.

    Raises:
        InputError: a part cannot be sent; names it.
    """
    pack: Callable[[object], bytes] = ray.cloudpickle.dumps
    try:
        return pack(clients)
    except Exception as error:  # what a plug-in's own pickling raises
        unfit = ((part, _unfit(pack, thing)) for part, thing in _parts(clients))
        what, cause = next((found for found in unfit if found[1]), ("the cells", error))
        raise InputError(
            f"{what} cannot be sent to the workers of Ray: {first_line(cause or error)}; leave out what "
            "belongs to one process, such as files and locks, or use `workers`"
        ) from error


def _unfit(pack: Callable[[object], bytes], thing: object) -> Exception | None:
    """Return why a thing cannot be packed; None where it can."""
    try:
        pack(thing)
    except Exception as error:  # noqa: BLE001  it is told to the user
        return error
    return None


def _parts(clients: Sequence[ClientCells]) -> Iterator[tuple[str, object]]:
    """Yield what may be of the user's in clients, each with what it is called."""
    for cells in clients:
        pipeline, case = cells[0].pipeline, cells[0].case
        yield f"attack {case.attack_name!r}", case.attack
        yield f"defense {case.defense.name!r}", case.defense
        yield f"model {pipeline.name!r}", pipeline.model
        yield "the data, or a metric or enhancer,", pipeline.pictures


def _ending(error: Exception) -> str:
    """Return how an actor ended, of Ray's error."""
    if type(error).__name__ == "OutOfMemoryError":
        return "ran out of the memory of its node"
    if type(error).__name__ in ("ActorDiedError", "ActorUnavailableError", "NodeDiedError"):
        cause = next((line for line in str(error).splitlines() if "ModuleNotFoundError" in line), "")
        return f"ended its process, or lost its node{': ' if cause else ''}{cause.strip()}"
    return str(error).strip().splitlines()[-1]


def _check_answers(address: str) -> None:
    """Make sure that Ray answers at an address.

    Ray itself waits for minutes, and ends the process then; so a process of its own asks, which is given
    some seconds.

    Raises:
        VleakError: it does not.
    """
    given = argument("ray", address)
    place = address.removeprefix("ray://")
    host, colon, port = place.rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT).close()
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or first_line(error)
            raise VleakError(f"{given} does not answer: {why}; start Ray there, or give {LOCAL}") from error
    if why := _refusal(address):
        raise VleakError(f"{given} cannot be used: {why}; start Ray there, or give {LOCAL}")


def _refusal(address: str) -> str:
    """Return why a process of its own cannot connect to an address in time; empty where it can."""
    script = "import sys, ray; print(flush=True); ray.init(address=sys.argv[1], log_to_driver=False)"
    with subprocess.Popen(
        [sys.executable, "-c", script, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        asking.stdout.readline()  # the imports are done, which take their time on a busy machine
        try:
            _, told = asking.communicate(timeout=_ANSWER)
        except subprocess.TimeoutExpired:
            asking.kill()
            _, told = asking.communicate()
            if "InvalidAuthToken" in told:  # which Ray asks for over and over
                return "it wants a token of Ray, which RAY_AUTH_MODE=token in the environment sends"
            return f"no Ray answers within {_ANSWER:g} seconds"
        finally:
            asking.kill()
    lines = told.strip().splitlines() or [f"exit code {asking.returncode}"]
    return (lines[-1].partition("Error: ")[2] or lines[-1]) if asking.returncode else ""


@contextmanager
def _connected(ray: ModuleType, address: str, store: int) -> Iterator[None]:
    """Context with a connection to Ray; one that the caller made is used and left.

    Raises:
        VleakError: Ray cannot be started or reached.
    """
    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        stack.callback(ray.shutdown)
        given: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
        if address == LOCAL:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="vleak-ray-", ignore_cleanup_errors=True)
            )
            stack.callback(ray.shutdown)  # before its folder is removed
            given |= {
                "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False,
                "object_store_memory": store, "_temp_dir": folder, "_node_ip_address": "127.0.0.1",
            }  # fmt: skip
        try:
            with _own_signals(), _environment():
                ray.init(**given)
        except SystemExit as error:  # of Ray's handler of SIGTERM
            raise KeyboardInterrupt from error
        except Exception as error:  # Ray raises what is no class of its own
            raise VleakError(
                f"{argument('ray', address)}: Ray cannot be used: {first_line(error)}; use `workers`"
            ) from error
        yield


@contextmanager
def _own_signals() -> Iterator[None]:
    """Leave the handlers of signals as they were before the block: Ray has its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _environment() -> Iterator[None]:
    """Let what Ray starts in the block find the modules of this process, be no nicer, and report nothing."""
    changes = {
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    kept = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
