"""When one process of a run dies, the others say so and end, instead of waiting for it.

A collective may wait for a dead process until it times out, and one that is sampling or saving
learns of it only afterwards. So every process keeps a connection to the first one, which the
operating system closes however a process ends. Unusual: who learns of a death waits a few seconds
for the main thread to end by itself and then ends the process, since a thread that waits in a
collective cannot be woken otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

GRACE_S = 5.0
_CONNECT_S = 60.0
_TOKEN_BYTES = 16
_MAX_LINE = 4096


class PeerDied(RuntimeError):
    """Another process of the run ended before its work was done; the message says which and why."""


@contextlib.contextmanager
def lifeline(accelerator: Accelerator, end: Callable[[str], None] | None = None) -> Iterator[None]:
    """While the block runs, the death of another process ends this one within seconds.

    All processes enter and leave together. An error inside the block is told to the others. end:
    replaces the end of this process (tests).
    """
    if accelerator.num_processes == 1:
        yield
        return
    line = _Line(accelerator, end or _end_process)
    try:
        yield
    except BaseException as error:
        reason = line.failed(error)
        if reason is not None:
            raise PeerDied(reason) from error
        raise
    line.finished()


class _Line:
    """One process's end of the connections: the first process holds all of them."""

    def __init__(self, accelerator: Accelerator, end: Callable[[str], None]) -> None:
        self.rank, self._end = accelerator.process_index, end
        self._reason: str | None = None  # why the run cannot go on
        self._heard = threading.Event()
        self._over = False  # this process is leaving the block
        listener, token = _agree(accelerator)
        if listener is None:
            peer = _connect(*token, self.rank)
            self._peers = {0: peer}
        else:
            self._peers = _accept(listener, token[1], accelerator.num_processes - 1)
        for rank, peer in self._peers.items():
            threading.Thread(
                target=self._listen, args=(rank, peer), name=f"fastmpi-lifeline-{rank}", daemon=True
            ).start()

    def failed(self, error: BaseException) -> str | None:
        """Tells the others of `error`; the death of another process, if that was the cause."""
        if isinstance(error, RuntimeError):  # perhaps a collective without one of its processes
            self._heard.wait(GRACE_S / 2)
        self._over = True
        if self._reason is None:
            self._tell(f"process {self.rank} failed: {type(error).__name__}: {error}")
        self._close()
        return self._reason

    def finished(self) -> None:
        """The others may end too."""
        self._over = True
        self._tell("")
        self._close()

    def _tell(self, reason: str) -> None:
        line = json.dumps({"reason": reason[: _MAX_LINE // 8]}).encode() + b"\n"
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(line)

    def _close(self) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)  # what was said still arrives

    def _listen(self, rank: int, peer: socket.socket) -> None:
        """Waits for the last word of `rank`."""
        try:
            with peer.makefile("rb") as file:
                line = file.readline(_MAX_LINE)
            reason = str(json.loads(line)["reason"]) if line else f"process {rank} died"
        except (OSError, ValueError, KeyError, TypeError):
            reason = f"process {rank} died"
        if reason and not self._over:
            self._on_death(reason)

    def _on_death(self, reason: str) -> None:
        self._reason = self._reason or reason
        if self.rank == 0:
            self._tell(self._reason)
        self._heard.set()
        time.sleep(GRACE_S)
        if not self._over:
            self._end(self._reason)


def _agree(accelerator: Accelerator) -> tuple[socket.socket | None, tuple[int, bytes]]:
    """The first process's listening socket, and its port and a secret, known to all."""
    listener, port, secret = None, 0, bytes(_TOKEN_BYTES)
    if accelerator.is_main_process:
        listener = socket.create_server(("", 0), backlog=accelerator.num_processes)
        port, secret = listener.getsockname()[1], secrets.token_bytes(_TOKEN_BYTES)
    values = torch.tensor([port, *secret], device=accelerator.device)
    port, *numbers = accelerator.reduce(values, "sum").tolist()
    return listener, (port, bytes(numbers))


def _connect(port: int, secret: bytes, rank: int) -> socket.socket:
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        peer = socket.create_connection((host, port), timeout=_CONNECT_S)
    except OSError as error:
        raise RuntimeError(f"process {rank} cannot reach process 0, {host}:{port}") from error
    _keep_alive(peer)
    peer.sendall(secret + rank.to_bytes(4, "big"))
    return peer


def _accept(listener: socket.socket, secret: bytes, count: int) -> dict[int, socket.socket]:
    """The connections of the `count` other processes by rank; whoever does not know the secret is
    turned away."""
    peers: dict[int, socket.socket] = {}
    ends = time.monotonic() + _CONNECT_S
    with listener:
        while len(peers) < count:
            listener.settimeout(max(0.01, ends - time.monotonic()))
            peer, _ = listener.accept()
            peer.settimeout(5.0)
            hello = b""
            with contextlib.suppress(OSError):
                hello = _read(peer, _TOKEN_BYTES + 4)
            if not secrets.compare_digest(hello[:_TOKEN_BYTES], secret):
                peer.close()
                continue
            _keep_alive(peer)
            peers[int.from_bytes(hello[_TOKEN_BYTES:], "big")] = peer
    return peers


def _keep_alive(peer: socket.socket) -> None:
    """No timeout while the peer lives; a machine that is switched off is noticed in half a
    minute, where the system can be told so."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _read(peer: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count and (part := peer.recv(count - len(found))):
        found += part
    return found


def _end_process(reason: str) -> None:
    print(f"fastmpi ends this process: {reason}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
