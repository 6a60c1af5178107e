"""One client asks one server all the records of a file, in a process and an environment of its own; see bench/label.py.

    python -P bench/label_worker.py {"engine": "ours", "url": …, "records": …, "concurrency": 64, "journal": …}

The last line that it prints is {"answers": …, "failed": …, "seconds": …}. The seconds are those of the asking, from
before the client is made until the last answer is there; neither the start of the process nor the imports are in them.
Only `ours` has a journal. The others are used as their documentation shows, with nothing switched on.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

KEY = "sk-bench-label"
ASKED = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 4096}
Job = dict[str, Any]


def read_prompts(job: Job) -> list[str]:
    with open(job["records"], encoding="utf-8") as file:
        return [json.loads(line)["feature_content"] for line in file]


def ours(job: Job) -> Job:
    """chat.client and chat.journal as in preprocess.label: an answer is on the disk before the next is taken."""
    from dataclasses import asdict

    from chat.client import Client, Question, Reply, Settings
    from chat.journal import Journal, key_of

    prompts = read_prompts(job)

    async def ask(journal: Journal) -> int:
        answers = 0
        settings = Settings(base_url=job["url"], model="teacher", concurrency=job["concurrency"])
        messages = ([{"role": "user", "content": prompt}] for prompt in prompts)
        asked = ({"model": "teacher", "messages": one, **ASKED} for one in messages)
        async with Client(settings, KEY) as client:
            questions = (Question(str(number), 0, one) for number, one in enumerate(asked))
            async for question, outcome in client.ask_all(questions):
                ok = isinstance(outcome, Reply)
                answers += ok
                entry = {"key": key_of(question.asked, question.id, 0), "ok": ok, "id": question.id, "sample": 0}
                entry |= {"asked": question.asked, ("reply" if ok else "error"): asdict(outcome)}
                await journal.add(entry)
        return answers

    begin = time.perf_counter()
    with Journal(job["journal"], secrets=[KEY]) as journal:
        answers = asyncio.run(ask(journal))
    return {"answers": answers, "failed": len(prompts) - answers, "seconds": time.perf_counter() - begin}


def openai(job: Job) -> Job:
    """The official client as it comes, a semaphore, a task a record."""
    from openai import AsyncOpenAI, OpenAIError

    prompts = read_prompts(job)

    async def ask_all() -> int:
        room = asyncio.Semaphore(job["concurrency"])
        async with AsyncOpenAI(base_url=job["url"], api_key=KEY) as client:

            async def ask(prompt: str) -> bool:
                async with room:
                    try:
                        messages = [{"role": "user", "content": prompt}]
                        reply = await client.chat.completions.create(model="teacher", messages=messages, **ASKED)
                    except OpenAIError:
                        return False
                    return bool(reply.choices[0].message.content)

            return sum(await asyncio.gather(*map(ask, prompts)))

    begin = time.perf_counter()
    answers = asyncio.run(ask_all())
    return {"answers": answers, "failed": len(prompts) - answers, "seconds": time.perf_counter() - begin}


def distilabel(job: Job) -> Job:
    """A pipeline of one TextGeneration whose batches are as large as what may be in flight."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    rows = [{"instruction": prompt} for prompt in read_prompts(job)]
    size = job["concurrency"]
    generation = {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 4096}
    with Pipeline(name="bench", cache_dir=str(Path.home() / "pipelines")) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=size)
        llm = OpenAILLM(model="teacher", base_url=job["url"], api_key=KEY, generation_kwargs=generation)
        load >> TextGeneration(llm=llm, input_batch_size=size)
    begin = time.perf_counter()
    found = pipeline.run(use_cache=False)["default"]["train"]
    answers = sum(bool(text) for text in found["generation"])
    return {"answers": answers, "failed": len(rows) - answers, "seconds": time.perf_counter() - begin}


def curator(job: Job) -> Job:
    """bespoke Curator's LLM with its openai backend, its limits above what the server can give."""
    from bespokelabs import curator
    from datasets import Dataset

    class Asker(curator.LLM):
        def prompt(self, row: dict[str, str]) -> str:
            return row["prompt"]

        def parse(self, row: dict[str, str], response: Any) -> dict[str, str]:
            return {"answer": str(response)}

    rows = Dataset.from_list([{"prompt": prompt} for prompt in read_prompts(job)])
    limits = {"max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**10}
    limits |= {"max_concurrent_requests": job["concurrency"], "require_all_responses": False}
    params = {"base_url": job["url"], "api_key": KEY, **limits}
    asker = Asker(model_name="teacher", backend="openai", backend_params=params, generation_params=ASKED)
    # It has asked for the server's limits by now; that request shall not begin the span.
    urllib.request.urlopen(job["url"].removesuffix("/v1") + "/reset", b"{}").close()
    begin = time.perf_counter()
    answers = sum(bool(row["answer"]) for row in asker(rows).dataset)
    return {"answers": answers, "failed": len(rows) - answers, "seconds": time.perf_counter() - begin}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    result = {engine.__name__: engine for engine in (ours, openai, distilabel, curator)}[job["engine"]](job)
    print(json.dumps(result), flush=True)
