"""The same prompts through LLaMA-Factory's own server, through `transformers serve`, and through one of your own.

    python -m bench.predict [recipes/demo/predict.yaml] [--merged models/demo_merged] [--prompts 32] [--concurrency 16]
                            [--base-url http://127.0.0.1:8000/v1 --model NAME]

Asked is the merged model (`make export`), greedily, by the same client; the first two servers are started for it and
stopped; each is warmed by one question that does not count. Printed is a table: seconds from the first question to the
last answer, tokens a second by the servers' own count, and how many answers are those of LLaMA-Factory's server to the
character.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from chat.ask import ask_missing, key_of
from chat.client import Question, Settings
from chat.journal import Journal
from chat.server import serve, serve_batches
from eval.predict import Predict, prompts, questions
from recipe import UserError, load, one_line_errors


class Run(NamedTuple):
    """One server's answers: how many at a time, by prompt the text, the tokens in all, the seconds for all."""

    concurrency: int
    texts: dict[str, str]
    tokens: int
    seconds: float


def timed(at: Settings, key: str, asked: list[Question], folder: Path) -> Run:
    """Ask a question to warm the server up, then all of them against the clock."""
    warm = replace(asked[0], asked=asked[0].asked | {"max_tokens": 4})
    with Journal(folder / "warm.jsonl") as journal:
        ask_missing(at, key, journal, [warm], "warm")
    with Journal(folder / "journal.jsonl") as journal:
        begin = time.monotonic()
        ask_missing(at, key, journal, asked, folder.name)
        seconds = time.monotonic() - begin
        replies = {one.id: journal.get(key_of(one))["reply"] for one in asked if key_of(one) in journal}
    if len(replies) < len(asked):
        raise UserError(f"{folder.name}: {len(asked) - len(replies)} of {len(asked)} questions got no answer")
    tokens = sum(reply["usage"].get("completion_tokens", 0) for reply in replies.values())
    return Run(
        at.concurrency, {id_: reply.get("raw", reply["text"]) for id_, reply in replies.items()}, tokens, seconds
    )


def compare(arguments: argparse.Namespace, work: Path) -> dict[str, Run | str]:
    """Each way's run, or why there is none."""
    settings = load(Predict, arguments.recipe, [f"limit={arguments.prompts}"])
    rows = prompts(settings)[: arguments.prompts]
    merged = Path(arguments.merged).resolve()
    ways: dict[str, Run | str] = {}

    def run(name: str, url: str, key: str, model: str, concurrency: int) -> None:
        folder = work / name.split()[0]
        folder.mkdir()
        at = Settings(base_url=url, model=model, concurrency=concurrency, outage_seconds=60)
        ways[name] = timed(at, key, questions(rows, settings, model, ""), folder)

    overrides = [f"model_name_or_path={merged}", "adapter_name_or_path=null", "quantization_bit=null"]
    with serve(settings.serve, overrides, str(work / "llamafactory.log")) as server:
        run("llamafactory-cli api", server.base_url, server.api_key, server.model, 2)
    name, log = "transformers serve --continuous-batching", str(work / "transformers.log")
    try:
        with serve_batches(str(merged), log) as server:
            run(name, server.base_url, server.api_key, server.model, arguments.concurrency)
    except UserError as error:
        ways[name] = str(error)
    if arguments.base_url:
        key = os.environ.get("OPENAI_API_KEY", "none")
        run(arguments.base_url, arguments.base_url, key, arguments.model, arguments.concurrency)
    return ways


def table(ways: dict[str, Run | str]) -> str:
    """The runs as Markdown."""
    first = next(iter(ways.values()))
    lines = ["| server | at a time | seconds | tokens a second | same answers |", "|---|---|---|---|---|"]
    for name, run in ways.items():
        if isinstance(run, str):
            lines.append(f"| {name} | | | failed: {run} | |")
            continue
        same = sum(run.texts[id_] == text for id_, text in first.texts.items())
        speed = f"{run.tokens / run.seconds:,.0f} ({run.tokens:,} tokens)"
        lines.append(f"| {name} | {run.concurrency} | {run.seconds:.1f} | {speed} | {same} of {len(run.texts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/demo/predict.yaml")
    parser.add_argument("--merged", default="models/demo_merged", help="what `make export` wrote")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--concurrency", type=int, default=16, help="questions at a time, but for LLaMA-Factory")
    parser.add_argument("--base-url", help="a third server, such as vLLM's; its key is read from OPENAI_API_KEY")
    parser.add_argument("--model", default="", help="the model's name there")
    arguments = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("llamafactory", "transformers", "torch"))
    with one_line_errors(), tempfile.TemporaryDirectory() as work:
        ways = compare(arguments, Path(work))
        cores = len(os.sched_getaffinity(0))
        print(f"{datetime.now(UTC):%Y-%m-%d} UTC, Python {platform.python_version()}, {packages}, {cores} cores\n")
        print(table(ways))


if __name__ == "__main__":
    main()
