"""The control link of a VM on somebody else's machine: the guest dials its daemon, over TCP and TLS, for ever."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Callable, Generator

from agentlab_guest import __version__
from agentlab_guest.console import complain
from agentlab_guest.invitation import Invitation
from agentlab_guest.keepsake import Keepsake
from agentlab_guest.knock import PROTOCOL_MAX, PROTOCOL_MIN, Accepted, GuestSide, Knock, NotLetIn, line
from agentlab_guest.port import READ_BYTES, Port
from agentlab_guest.reactor import READ, WRITE, Reactor, Timer
from agentlab_guest.strict import Malformed

ENTER_S_MAX = 20.0  # from the first packet to the daemon's welcome
AGAIN_S_MIN, AGAIN_S_MAX = 0.2, 5.0  # between two attempts, doubling
REFUSED_S = 30.0  # after a refusal that trying again will hardly change
DEAD_S = 30  # without a sign of life from the other machine
RECORD_BYTES = 16 << 10  # what TLS encrypts at a time
_PROBES = 3
Entering = Generator[int, None, bytes]


class DialledPort(Port):
    """A connection that is made again whenever it breaks.  What was sent and not heard is gone with it, as always."""

    def __init__(self, reactor: Reactor, invitation: Invitation, folder: str) -> None:
        """`folder` is a tmpfs: the credential lies there."""
        super().__init__(reactor)
        self._invitation, self._folder = invitation, folder
        self._keepsake: Keepsake | None = None
        self._tls: ssl.SSLSocket | None = None
        self._socket: socket.socket | None = None
        self._entering: Entering | None = None
        self._limit: Timer | None = None
        self._again_s = AGAIN_S_MIN
        self._told = ""
        self._owed = self._spoiled = False  # OpenSSL has begun with bytes that it must be given again
        self._context = _context()

    # Coming in

    def _open(self) -> None:
        self._reactor.after(0, self._dial)

    def _dial(self) -> None:
        self._limit = self._reactor.after(ENTER_S_MAX, lambda: self._failed(f"no welcome within {ENTER_S_MAX:g} s"))
        try:
            if self._keepsake is None:
                self._keepsake = Keepsake(self._folder, self._invitation.token)
            made = self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            made.setblocking(False)
            _keep_alive(made)
            self._entering = self._enter(made, self._keepsake)
            self._wire, self._mask = made.fileno(), WRITE
            self._reactor.watch(self._wire, WRITE, self._advance)
        except OSError as error:
            self._failed(str(error))
            return
        self._advance(0)

    def _advance(self, _: int) -> None:
        assert self._entering is not None
        try:
            self._watch(next(self._entering))
        except StopIteration as entered:
            self._entered(entered.value)
        except NotLetIn as refused:
            self._failed(f"refused ({refused.code}): {refused}", 0.0 if refused.code == "busy" else REFUSED_S)
        except Malformed as error:
            self._failed(f"it does not speak our protocol: {error}", REFUSED_S)
        except OSError as error:
            self._failed(error.strerror or str(error))

    def _enter(self, made: socket.socket, keepsake: Keepsake) -> Entering:
        """Yields what to wait for; returns what came after the welcome."""
        try:
            made.connect(self._invitation.home)
        except BlockingIOError:
            yield WRITE
        if number := made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(number, os.strerror(number))
        tls = self._tls = self._context.wrap_socket(made, do_handshake_on_connect=False)
        self._socket = None  # it is the TLS socket's now
        while (wanted := _wanted(tls.do_handshake)) is not None:
            yield wanted
        # The daemon proves itself before it is told anything.
        if not hmac.compare_digest(_fingerprint(tls), self._invitation.fingerprint.encode()):
            raise Malformed("its certificate is not the one of the invitation")
        yield from _say(tls, line(self._knock(keepsake)))
        side = GuestSide()
        while (welcome := side.answer((yield from _heard(tls)))) is None:
            pass
        if welcome.credential is not None:
            keepsake.keep(welcome.credential)
            yield from _say(tls, line(Accepted()))
        return bytes(side.rest)

    def _knock(self, keepsake: Keepsake) -> Knock:
        known = keepsake.credential
        return Knock(
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            version=__version__,
            sandbox=self._invitation.sandbox,
            nonce=keepsake.nonce,
            token=self._invitation.token if known is None else None,
            credential=known,
        )

    def _entered(self, rest: bytes) -> None:
        self._stop_waiting()
        self._again_s, self._told = AGAIN_S_MIN, ""
        self._owed = self._spoiled = False
        self._connected = True
        self._reactor.forget(self._wire)
        self._mask = READ
        self._reactor.watch(self._wire, READ, self._ready)
        if rest:
            self._arrived(rest)

    def _failed(self, cause: str, wait_s: float = 0.0) -> None:
        if cause != self._told:
            self._told = cause
            complain(f"{self._invitation.daemon}: {cause}; trying again")
        self._away(wait_s)

    # Going away

    def _away(self, wait_s: float = 0.0) -> None:
        self._stop_waiting()
        if self._wire >= 0:
            self._reactor.forget(self._wire)
            self._wire = -1
        for each in (self._tls, self._socket):
            if each is not None:
                each.close()
        self._tls = self._socket = None
        # Thousands of guests lose their daemon in the same moment; they do not come back in the same one.
        jitter = 0.5 + os.urandom(1)[0] / 255
        self._reactor.after(max(wait_s, self._again_s) * jitter, self._dial)
        self._again_s = min(AGAIN_S_MAX, 2 * self._again_s)

    def _stop_waiting(self) -> None:
        self._entering = None
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    # Bytes

    def drop(self) -> None:
        super().drop()
        # The beginning of what is dropped is on its way, and nothing else can follow it: the connection is of no use.
        self._spoiled = self._owed

    def _get(self) -> bytes:
        assert self._tls is not None
        try:
            return self._tls.recv(READ_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def _put(self, data: bytes | memoryview) -> int:
        tls, whole, done = self._tls, memoryview(data), 0
        if self._spoiled or tls is None:
            raise ConnectionResetError("a record was left half sent")
        while done < len(whole):
            try:
                done += tls.send(whole[done : done + RECORD_BYTES])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._owed = True
                break
            self._owed = False
        if done == 0:
            raise BlockingIOError
        return done


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nobody vouches for the daemon but the invitation: the certificate's fingerprint is compared instead.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _fingerprint(tls: ssl.SSLSocket) -> bytes:
    digest = hashlib.sha256(tls.getpeercert(binary_form=True) or b"").digest()
    return urlsafe_b64encode(digest).rstrip(b"=")


def _keep_alive(made: socket.socket) -> None:
    """Notice a daemon's machine that went without a word."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_S // 2)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_S // 2 // _PROBES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_S * 1000)


def _wanted(act: Callable[[], object]) -> int | None:
    """Do it; what to wait for before it is tried again, or None if it is done."""
    try:
        act()
    except ssl.SSLWantReadError:
        return READ
    except ssl.SSLWantWriteError:
        return WRITE
    return None


def _say(tls: ssl.SSLSocket, data: bytes) -> Generator[int, None, None]:
    """A line is shorter than a record: it goes as a whole."""
    while (wanted := _wanted(lambda: tls.send(data))) is not None:
        yield wanted


def _heard(tls: ssl.SSLSocket) -> Generator[int, None, bytes]:
    while True:
        try:
            data = tls.recv(READ_BYTES)
        except ssl.SSLWantReadError:
            yield READ
            continue
        except ssl.SSLWantWriteError:
            yield WRITE
            continue
        if not data:
            raise ConnectionResetError("it closed the connection")
        return data
