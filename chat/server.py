"""A `llamafactory-cli api` of one's own: started from a serve.yaml, waited for, and stopped whatever happens.

with serve("recipes/demo/serve.yaml", log="reports/demo/server.log") as server:
    client = server.client()
    client.chat.completions.create(model=server.model, messages=[...])
"""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import openai
from tqdm import tqdm

from recipe import UserError, check_model, read_yaml

HOST = "127.0.0.1"
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Server:
    """A running server: where it answers, the key it asks for, and the model name it goes by."""

    base_url: str
    api_key: str
    model: str

    def client(self, timeout: float = 600.0) -> openai.OpenAI:
        """A client for it; a proxy set for the outside world is not asked about this machine."""
        http = openai.DefaultHttpxClient(trust_env=False)
        return openai.OpenAI(base_url=self.base_url, api_key=self.api_key, timeout=timeout, http_client=http)


@contextmanager
def serve(
    recipe: str, overrides: Sequence[str] = (), log: str = "server.log", wait: float = 600.0, name: str = ""
) -> Iterator[Server]:
    """Start `llamafactory-cli api RECIPE OVERRIDES` on a free port of this machine, yield it, stop it.

    The model goes by `name`, or the recipe's folder; the output goes to `log`. Raises UserError if it ends before it
    answers or doesn't answer in `wait` seconds.
    """
    values, _ = read_yaml(recipe)
    values |= dict(item.split("=", 1) for item in overrides)
    check_model(recipe, str(values.get("model_name_or_path", "")))
    port = _free_port()
    server = Server(f"http://{HOST}:{port}/v1", secrets.token_urlsafe(24), name or Path(recipe).parent.name)
    environment = {"API_HOST": HOST, "API_PORT": str(port), "API_KEY": server.api_key, "API_MODEL_NAME": server.model}
    with _running(["llamafactory-cli", "api", recipe, *overrides], environment, server, log, wait):
        yield server


@contextmanager
def serve_batches(folder: str, log: str = "server.log", wait: float = 600.0, dtype: str = "auto") -> Iterator[Server]:
    """The same by `transformers serve --continuous-batching` of a whole model's folder, which answers many at a time.

    It asks for no key, and goes by its tokenizer's chat template; the model's name does not matter to it.
    """
    port = _free_port()
    server = Server(f"http://{HOST}:{port}/v1", "none", folder)
    command = ["transformers", "serve", folder, "--continuous-batching", "--dtype", dtype]
    command += ["--host", HOST, "--port", str(port)]
    with _running(command, {"HF_HUB_OFFLINE": "1"}, server, log, wait):
        yield server


@contextmanager
def _running(
    command: Sequence[str], environment: dict[str, str], server: Server, log: str, wait: float
) -> Iterator[None]:
    name = " ".join(command[:2])
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [beside(command[0]), *command[1:]],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    previous = signal.signal(signal.SIGTERM, _exit) if _main_thread() else None
    try:
        _wait(process, name, server, log, wait)
        yield
    finally:
        _stop(process)
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def beside(command: str) -> str:
    """The command of the running Python's environment, else the one on PATH."""
    beside = Path(sys.executable).with_name(command)
    return str(beside) if beside.exists() else command


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _exit(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _die_with_parent() -> None:
    """Linux ends the server when this process is gone, even by SIGKILL, which no `finally` sees."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(process: subprocess.Popen, name: str, server: Server, log: str, wait: float) -> None:
    client = server.client(timeout=5.0).with_options(max_retries=0)
    began = time.monotonic()
    with tqdm(desc=f"starting {name}", unit=" s", bar_format="{desc}: {elapsed}", disable=None) as bar:
        while time.monotonic() - began < wait:
            if process.poll() is not None:
                raise UserError(f"{log}: {name} ended with code {process.returncode}; {_last_line(log)}")
            with suppress(openai.APIError):
                client.models.list()
                return
            bar.update()
            time.sleep(0.5)
    raise UserError(f"{log}: {name} did not answer within {wait:.0f} s; {_last_line(log)}")


def _last_line(log: str) -> str:
    lines = [line for line in Path(log).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"its last line: {lines[-1].strip()}" if lines else "it printed nothing"


def _stop(process: subprocess.Popen, grace: float = 10.0) -> None:
    """End the server's whole process group, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
            return
