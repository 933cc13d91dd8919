"""Errors of the kernel and of programs, said once in the terms of the backend contract."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentlab.backends.interface import Refused, Unavailable
from agentlab.base.process import ProgramFailed

_PASSING = {errno.EBUSY, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR}


@asynccontextmanager
async def translated(call: str) -> AsyncIterator[None]:
    """Turn what the world does inside into BackendError's subclasses; the rest passes through."""
    try:
        yield
    except TimeoutError as error:
        raise Unavailable(f"{call}: it did not end in time", "Try again; the machine may be overloaded.") from error
    except OSError as error:
        cause = f"{call}: {error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(cause, "The host's disk is full: remove sandboxes, templates or other files.") from error
        if error.errno in _PASSING:
            raise Unavailable(cause, "Try again in a moment.") from error
        raise Refused(cause, "`agentlab doctor` tells what this machine lacks.") from error
    except ProgramFailed as error:
        raise Refused(f"{call}: {error}", "`agentlab doctor` tells what this machine lacks.") from error
    except ValueError as error:
        raise Refused(f"{call}: {error}", "Destroy the sandbox and make a new one.") from error
