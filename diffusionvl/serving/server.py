"""Runs the application by uvicorn, which ends only when the running requests have been answered."""

from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Drains on SIGTERM and Ctrl-C: answers what runs, refuses what is new, and ends; a second signal ends it now."""

    def __init__(self, app: FastAPI, host: str, port: int, **settings: Any) -> None:
        super().__init__(uvicorn.Config(app, host, port, **settings))
        self._service = app.state.service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes a signal."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        self._service.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Ends the server, once nothing is open any more or its engine is dead; uvicorn asks ten times a second."""
        service = self._service
        if service.draining and (service.open == 0 or not service.thread.alive):
            self.should_exit = True
        return await super().on_tick(counter)


def run(app: FastAPI, host: str, port: int) -> None:
    """Serves until a signal comes.

    Args:
        app: Of `create_app`.
        host: Address to listen on.
        port: Port to listen on.
    """
    Server(app, host, port, timeout_keep_alive=75).run()
