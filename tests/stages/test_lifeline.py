"""A process that dies ends the others with an error that says so: here threads play processes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastmpi.stages import lifeline as module
from fastmpi.stages.lifeline import PeerDied, lifeline


class Processes:
    """`num` accelerators whose `reduce` adds up over the threads that play them."""

    def __init__(self, num: int) -> None:
        self.num_processes = num
        self.barrier = threading.Barrier(num)
        self.given: dict[int, torch.Tensor] = {}

    def of(self, rank: int) -> Any:
        shared = self

        class One:
            num_processes, process_index = shared.num_processes, rank
            is_main_process, device = rank == 0, torch.device("cpu")

            def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
                shared.given[rank] = values
                shared.barrier.wait()
                return torch.stack(list(shared.given.values())).sum(0)

        return One()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.4)


def play(num: int, body: Callable[[int], None]) -> tuple[dict[int, BaseException], dict[int, str]]:
    """(what each thread's block raised, why it would have ended its process) by rank."""
    processes = Processes(num)
    raised: dict[int, BaseException] = {}
    ended: dict[int, str] = {}

    def one(rank: int) -> None:
        try:
            with lifeline(processes.of(rank), end=lambda why: ended.update({rank: why})):
                body(rank)
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return raised, ended


def test_one_process_has_none() -> None:
    assert play(1, lambda rank: None) == ({}, {})


def test_all_end_well_at_different_times() -> None:
    assert play(3, lambda rank: time.sleep(0.3 * rank)) == ({}, {})


@pytest.mark.parametrize("who", [0, 2])
def test_an_error_is_told_to_those_that_are_busy(who: int) -> None:
    def body(rank: int) -> None:
        if rank == who:
            raise ValueError("no picture 'a.png'")
        time.sleep(1.5)

    raised, ended = play(3, body)
    assert set(raised) == {who} and isinstance(raised[who], ValueError)
    message = f"process {who} failed: ValueError: no picture 'a.png'"
    assert ended == {rank: message for rank in range(3) if rank != who}


def test_a_collective_that_breaks_names_who_broke_it() -> None:
    def body(rank: int) -> None:
        if rank == 1:
            raise OSError(28, "No space left on device")
        time.sleep(0.1)
        raise RuntimeError("Connection closed by peer")

    raised, ended = play(3, body)
    assert not ended
    for rank in (0, 2):
        assert isinstance(raised[rank], PeerDied)
        assert str(raised[rank]) == "process 1 failed: OSError: [Errno 28] No space left on device"
        assert isinstance(raised[rank].__cause__, RuntimeError)


def test_a_connection_that_breaks_off_is_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = module._connect

    def broken(port: int, secret: bytes, rank: int) -> socket.socket:
        peer = connect(port, secret, rank)
        if rank == 1:
            peer.shutdown(socket.SHUT_WR)  # as the system does for a killed process
        return peer

    monkeypatch.setattr(module, "_connect", broken)
    _, ended = play(3, lambda rank: time.sleep(1.5))
    assert ended[0] == ended[2] == "process 1 died"


def test_strangers_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = module._connect

    def with_stranger(port: int, secret: bytes, rank: int) -> socket.socket:
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"x" * len(secret) + (1).to_bytes(4, "big"))
        return connect(port, secret, rank)

    monkeypatch.setattr(module, "_connect", with_stranger)
    assert play(2, lambda rank: time.sleep(0.2)) == ({}, {})
