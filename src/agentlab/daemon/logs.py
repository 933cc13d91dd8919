"""Log lines for people or machines, with secrets taken out."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

from agentlab.base.redaction import Redaction
from agentlab.base.text import printable

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")}


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, redaction: Redaction) -> None:
        super().__init__()
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON: at, level, logger, message, its fields, and the traceback if there is one."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line: dict[str, Any] = {
            "at": at,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= _fields(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return self._redaction.clean(json.dumps(line, default=str, ensure_ascii=False))


class HumanFormatter(logging.Formatter):
    """One line for people, with the fields behind it."""

    def __init__(self, redaction: Redaction) -> None:
        super().__init__()
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        """`12:00:00 warning  message  field=value`, and the traceback if there is one."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "  ".join(f"{name}={value}" for name, value in _fields(record).items())
        line = f"{at} {record.levelname.lower():<8} {record.getMessage()}  {fields}".rstrip()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return self._redaction.clean(printable(line))


def configure(form: str, level: str, redaction: Redaction, stream: TextIO | None = None) -> None:
    """Send all log records to `stream` (standard error), as `json`, `human`, or `auto`: human on a terminal."""
    stream = stream or sys.stderr
    human = form == "human" or (form == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter(redaction) if human else JsonFormatter(redaction))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel("WARNING")
    logging.getLogger("asyncio").setLevel("WARNING")
    logging.getLogger("httpx2").setLevel("WARNING")  # at "info" it tells of every request
