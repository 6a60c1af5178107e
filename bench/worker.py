"""One training run in a process of its own, by LLaMA-Factory's own trainer, timed step by step.

    python -m bench.worker job.json

`job.json` holds `arguments` (LLaMA-Factory's), `memory_gib`, `seconds`, `events`. What is seen is appended to the
`events` file, one JSON object a line, so that a run that is killed loses nothing: `card`, `begin`, `step` and `log`
for each step, `trained`, `error`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from preflight.cost import CONTEXT, GIB
from recipe import UserError

PACKAGES = ("torch", "transformers", "llamafactory", "unsloth", "peft", "bitsandbytes", "liger-kernel", "triton")
PACKAGES += ("accelerate", "trl", "flash-attn", "xformers")


def versions() -> dict[str, str | None]:
    """Installed versions of what decides speed; None for what is not there."""

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {"python": sys.version.split()[0]} | {package: of(package) for package in PACKAGES}


def count(batch: dict[str, Any]) -> dict[str, int]:
    """Tokens of one micro-batch as the model gets it.

    tokens          real ones: in the attention mask (a packed one's diagonal), or all where flash attention drops it
    padded          computed ones
    squares         sum of the rows' (packed: the samples') squared lengths, for the attention's operations
    padded_squares  the same for what is computed
    """
    ids, mask, positions = batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")
    if mask is None:
        real = ids == ids
    elif mask.dim() == 4:
        real = mask.diagonal(dim1=-2, dim2=-1)[:, 0] == 0
    else:
        real = mask != 0
    if positions is None:
        positions = real.cumsum(-1) - 1
    tokens = int(real.sum())
    squares = 2 * int(((positions + 1) * real).sum()) - tokens  # 1 + 2 + … + n = n·(n + 1) / 2
    rows, length = ids.shape
    return {
        "tokens": tokens,
        "padded": rows * length,
        "squares": squares,
        "padded_squares": squares if mask is None else rows * length**2,
    }


def forward_of(base: Any) -> str:
    """The package whose code runs the model: unsloth or liger_kernel where a module of it is theirs, else its own."""
    packages = {type(module).forward.__module__.split(".")[0] for module in base.modules()}
    for name in ("unsloth", "liger_kernel"):
        if any(package.startswith(name) for package in packages):  # Unsloth also runs what it has compiled
            return name
    return type(base).forward.__module__.split(".")[0]


def engine_facts(model: Any) -> dict[str, Any]:
    """What the trainer really uses, read from the model itself."""
    kinds = [f"{type(module).__module__.split('.')[0]}.{type(module).__name__}" for module in model.modules()]
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {
        "forward": forward_of(base),
        "attention": getattr(base.config, "_attn_implementation", None),
        "quantised_layers": kinds.count("bitsandbytes.Linear4bit"),
        "checkpointing": bool(getattr(base, "is_gradient_checkpointing", False)),
        "trainable": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }


class Card:
    """The device that is measured: its clock, its memory, and the cap on it."""

    def __init__(self, memory_gib: float | None) -> None:
        import torch

        self.cuda = torch.cuda if torch.cuda.is_available() else None
        if self.cuda is None:
            self.name, self.total_gib = cpu_name(), None
            return
        self.free = self.cuda.mem_get_info
        total = self.cuda.get_device_properties(0).total_memory
        self.name, self.total_gib = self.cuda.get_device_name(0), total / GIB
        if memory_gib is None:
            return
        limit = memory_gib * GIB - CONTEXT
        if memory_gib > self.total_gib + 1:
            raise UserError(f"--memory-gib {memory_gib:g}: the card has {self.total_gib:.1f} GiB")
        self.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), 0)

        def capped(device: Any = None) -> tuple[int, int]:
            # Unsloth sizes its loss's chunks and its buffers by what is free: let it see the smaller card.
            free, whole = self.free(device)
            return min(free, max(int(limit) - self.cuda.memory_reserved(device), 0)), whole

        self.cuda.mem_get_info = capped

    def now(self) -> float:
        if self.cuda:
            self.cuda.synchronize()
        return time.perf_counter()

    def memory(self) -> dict[str, float]:
        """In GiB, on a GPU: peak allocated and reserved, and what is used outside torch; on a CPU the resident set."""
        if self.cuda:
            free, whole = self.free(0)
            return {
                "allocated_gib": self.cuda.max_memory_allocated() / GIB,
                "reserved_gib": self.cuda.max_memory_reserved() / GIB,
                "outside_gib": (whole - free - self.cuda.memory_reserved()) / GIB,
            }
        return {"resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}


def cpu_name() -> str:
    """`CPU: model name, cores`; a card's name never begins so."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0] if names else 'unknown'}, {os.cpu_count()} cores"


def run(job: dict[str, Any]) -> None:
    """Train as the job says; every step goes to the events file."""
    started = time.monotonic()
    events = open(job["events"], "a", encoding="utf-8")  # noqa: SIM115  (open for the life of the process)

    def tell(kind: str, **values: Any) -> None:
        events.write(json.dumps({"kind": kind} | values) + "\n")
        events.flush()

    try:
        if job["arguments"].get("use_unsloth"):
            import unsloth  # noqa: F401  (before transformers, which it rewrites)
        card = Card(job["memory_gib"])
        tell("card", card=card.name, card_gib=card.total_gib, versions=versions())
        _train(job, card, tell, started)
    except BaseException as error:
        tell("error", message=f"{type(error).__name__}: {error}", out_of_memory=is_out_of_memory(error))
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, torch's or the host's, says that memory ran out."""
    return "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()


def _train(job: dict[str, Any], card: Card, tell: Callable[..., None], started: float) -> None:
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    counted: list[dict[str, int]] = []

    def get_batch_samples(trainer: Any, *arguments: Any, **named: Any) -> Any:
        """The micro-batches of one optimiser step, counted on their way to the model."""
        samples = super(CustomSeq2SeqTrainer, trainer).get_batch_samples(*arguments, **named)
        counted[:] = [count(batch) for batch in samples[0]]
        return samples

    class Meter(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            tell("begin", load_seconds=time.monotonic() - started, loading=card.memory(), engine=engine_facts(model))
            if card.cuda:
                card.cuda.reset_peak_memory_stats()
            self.first = self.last = card.now()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now = card.now()
            sums = {key: sum(batch[key] for batch in counted) for key in counted[0]}
            tell("step", number=state.global_step, seconds=now - self.last, **sums, **card.memory())
            self.last = now
            if now - self.first > job["seconds"]:
                control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell("trained")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in (logs or {}):
                tell("log", loss=float(logs["loss"]))

    CustomSeq2SeqTrainer.get_batch_samples = get_batch_samples
    run_exp(job["arguments"], callbacks=[Meter()])


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
