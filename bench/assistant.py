"""How much later than the server's own the first token of the assistant comes.

    python -m bench.assistant [--rounds 50] [--latency 0.2]

One fault-free server on this machine streams, first token after a quarter of `latency`. Asked in turn are the official
client alone and `MedicalAssistant.stream`, with the same messages and a connection that is open; printed are medians
and the largest of the rounds, in milliseconds, of thoughts in a field of their own and of <think> tags.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from statistics import median

import openai

from chat.assistant import MAX_TOKENS, MedicalAssistant
from tests.teacher import teacher


def first(pieces: Iterable[str]) -> float:
    """Seconds until the first text that is not empty; what follows is read to its end."""
    began, seconds = time.perf_counter(), 0.0
    for text in pieces:
        seconds = seconds or (time.perf_counter() - began) * bool(text)
    return seconds


def raw(client: openai.OpenAI, assistant: MedicalAssistant, question: str) -> Iterable[str]:
    """The texts of the official client's stream, thoughts and answer alike."""
    messages, _ = assistant.messages(question, assistant.scenarios["diagnosis"], MAX_TOKENS)
    asked = {"model": assistant.model, "messages": messages, "max_tokens": MAX_TOKENS}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            yield choice.delta.content or getattr(choice.delta, "reasoning_content", "") or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of a whole answer")
    given = parser.parse_args()
    print("| thought | rounds | client alone, median (max) ms | assistant, median (max) ms | later by ms |")
    print("|---|---|---|---|---|")
    for thought in ("reasoning_content", "inline"):
        with (
            teacher(style="cot", thought=thought, latency=given.latency) as server,
            MedicalAssistant(server.base_url) as assistant,
            openai.OpenAI(base_url=server.base_url, api_key="none") as client,
        ):
            alone, ours = [], []
            for number in range(-2, given.rounds):  # two that don't count open the connections
                question = f"第{number}天咳嗽，夜里加重，怎么办？"
                seconds = [first(raw(client, assistant, question))]
                seconds.append(first(piece.text for piece in assistant.stream(question)))
                if number >= 0:
                    alone.append(1000 * seconds[0])
                    ours.append(1000 * seconds[1])
        shown = [f"{median(times):.1f} ({max(times):.1f})" for times in (alone, ours)]
        print(f"| {thought} | {given.rounds} | {shown[0]} | {shown[1]} | {median(ours) - median(alone):.1f} |")


if __name__ == "__main__":
    main()
