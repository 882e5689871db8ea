"""A path of the service, which is answered with or without a slash at its end."""

import re
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.routing import Match, Route
from starlette.types import Scope


class PathRoute(Route):
    """A path, with or without a slash at its end; one that answers GET answers HEAD too."""

    def __init__(self, path: str, endpoint: Callable[[Request], Any], method: str) -> None:
        super().__init__(path, endpoint, methods=[method])
        slash = "" if path == "/" else "/?"
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + slash + r"\Z")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Adds the route to the scope, where `http.middleware` reads its path."""
        match, child_scope = super().matches(scope)
        return match, {**child_scope, "route": self} if match != Match.NONE else child_scope
