"""From a method and a path to a row, in time that does not grow with the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agentlab.wire.routes import PARAMETER, Route


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    parameter: _Node | None = None
    rest: dict[str, Route] = field(default_factory=dict)  # by method; takes all that follows
    routes: dict[str, Route] = field(default_factory=dict)  # by method; the path ends here


class Matcher:
    """A tree of path segments.  A literal segment comes before a parameter."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = _Node()
        for route in routes:
            self._add(route)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The row and the values in the path; an empty value fits nothing."""
        values: list[str] = []
        node = self._root
        segments = path.split("/")
        for place in range(1, len(segments)):
            segment = segments[place]
            if (following := node.literals.get(segment)) is not None:
                node = following
            elif not segment:
                return None
            elif node.parameter is not None:
                node = node.parameter
                values.append(segment)
            elif (route := node.rest.get(method)) is not None:
                values.append("/".join(segments[place:]))
                return route, dict(zip(route.parameters, values, strict=True))
            else:
                return None
        route_here = node.routes.get(method)
        return None if route_here is None else (route_here, dict(zip(route_here.parameters, values, strict=True)))

    def _add(self, route: Route) -> None:
        node = self._root
        for segment in route.path.split("/")[1:]:
            match = PARAMETER.fullmatch(segment)
            if match is None:
                node = node.literals.setdefault(segment, _Node())
            elif match[2]:
                node.rest[route.method] = route
                return
            else:
                node.parameter = node.parameter or _Node()
                node = node.parameter
        node.routes[route.method] = route
