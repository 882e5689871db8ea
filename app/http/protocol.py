"""The protocol of one HTTP/1.1 connection: uvicorn's, with four differences.

    requests with `Upgrade`  get an ordinary response
    bytes that are no HTTP   get a problem document, after the responses to earlier requests
    unread responses         reset the connection after a time, which frees their memory
    trailers                 are ignored, where uvicorn adds them to the headers

The parser of httptools ends a message at the head of a request with `Upgrade`. It would take the
body for another protocol, and what arrives later for the next request. RFC 9110 allows a server to
ignore the header. So the head is parsed a second time, without the header, and the new parser reads
the body. `curl --http2` and the HTTP client of Java send the header with each request.
"""

import asyncio
import socket
import struct
from functools import partial
from typing import Any, cast

import httptools
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..errors import Malformed, MethodNotAllowed
from ..settings import Settings

_METHODS = ("GET", "HEAD", "POST")
"""The methods of all paths together."""


class HttpProtocol(HttpToolsProtocol):
    """The protocol of one connection, which uvicorn creates."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._settings: Settings = cast(FastAPI, self.config.app).state.service.settings
        self._is_reading_body = False
        self._has_failed = False
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Writing is then paused whenever the socket has not taken all bytes.
        transport.set_write_buffer_limits(0)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_write_timer()

    # Requests

    def data_received(self, data: bytes) -> None:
        if self._has_failed:
            return  # bytes behind an error have no meaning
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self._fail(Malformed("request", "HTTP/1.1", "other bytes"))

    def _parse(self, data: bytes) -> None:
        """Parses bytes that have arrived, and each head with `Upgrade` a second time."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            method = self.parser.get_method()
            if method == b"CONNECT":  # all later bytes belong to a tunnel
                allow = {"Allow": ", ".join(_METHODS)}
                self._fail(
                    MethodNotAllowed("method", " or ".join(_METHODS), "'CONNECT'", headers=allow)
                )
                return
            version = self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
            lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_reading_body:  # else it is a trailer
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():  # else `_parse` parses the head a second time
            super().on_headers_complete()
            self._is_reading_body = True

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._is_reading_body = False
            super().on_message_complete()

    def _fail(self, error: Exception) -> None:
        """Answers with an error after which nothing can be parsed, then closes the connection.

        `http.middleware` responds with the error if it comes before the application runs.
        `http.body` raises it if it comes while the body is read.
        """
        self._has_failed = True
        if not self._is_reading_body:
            # The response to an invented request waits for those to earlier requests.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.feed_data(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            self.scope["method"] = self.scope["path"] = "-"  # for the access log
            self.scope["state"]["protocol_error"] = error
        elif self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.scope["state"]["protocol_error"] = error
            self.cycle.keep_alive = False
            self.cycle.more_body = False
            self.cycle.message_event.set()

    # Responses

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, partial(self._run, cycle, app))

    async def _run(
        self,
        cycle: RequestResponseCycle,
        app: ASGI3Application,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Runs the application with a `send` that waits until the socket has taken all bytes.

        An incomplete response resets the connection. Closing it would wait until the client has
        read the buffered bytes, which keep the memory of the whole result.
        """
        has_started = is_complete = False

        async def flushing_send(message: Message) -> None:
            nonlocal has_started, is_complete
            has_started = True
            await self.flow.drain()  # of the response to an earlier request
            if self.transport.is_closing():
                # Of several requests that have arrived, uvicorn marks the last one alone. It would
                # write the responses to all others, which raises.
                cycle.disconnected = True
            await send(message)
            await self.flow.drain()
            is_complete = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await app(scope, receive, flushing_send)  # type: ignore[arg-type]
        finally:
            if has_started and not is_complete:
                cycle.disconnected = True  # else uvicorn logs that the response is incomplete
                self._reset()

    def pause_writing(self) -> None:
        super().pause_writing()
        seconds = self._settings.transfer_seconds(self.transport.get_write_buffer_size())
        self._write_timer = self.loop.call_later(seconds, self._reset)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _reset(self) -> None:
        """Closes the connection without waiting for the client to read what is buffered."""
        if self not in self.connections:
            return  # the client has closed it
        connection = self.transport.get_extra_info("socket")
        if connection is not None:  # the system drops its buffer too
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
