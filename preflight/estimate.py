"""What a run will be: its steps, padding, memory, time and disk, as lines to read and as findings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from preflight import REFUSED, UNCHECKED, WARNED, Finding, Recipe, cost
from preflight.machine import check_disk
from preflight.rules import Machine


@dataclass(frozen=True)
class Card:
    """The card that memory and time are estimated for; `known` where it is here or was named."""

    name: str
    bytes: float
    peak: float | None  # FLOP/s
    known: bool


@dataclass(frozen=True)
class Plan:
    """A run in numbers. `computed` counts tokens over all epochs, padding included."""

    steps: int
    world: int
    micro_batch: int  # tokens of the largest one
    efficiency: float  # real tokens over computed ones
    computed: float
    mean: float  # tokens of a row


def estimate(
    recipe: Recipe, machine: Machine, card: Card, lengths: list[int], utilisation: float
) -> tuple[list[Finding], list[str]]:
    """Findings about the size and the rhythm of a training run, and lines that describe it."""
    if not lengths or not recipe.do_train:
        return [], []
    rows = _train_share(recipe, lengths)
    run = plan(recipe, machine, rows)
    batch, accumulation = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps
    facts = [
        f"data     {len(rows):,} rows, {sum(rows):,} tokens (mean {run.mean:.0f}, longest {max(rows)}); "
        f"cutoff_len {recipe.cutoff_len}",
        f"steps    {run.steps:,} of {batch * accumulation * run.world} rows ({batch} x {accumulation} x {run.world}); "
        f"{run.efficiency:.0%} of the computed tokens are real, the rest is padding",
    ]
    findings = list(check_rhythm(recipe, run.steps))
    if recipe.mix_strategy != "concat" and len(recipe.names("dataset")) > 1:
        what = (
            f"steps with mix_strategy {recipe.mix_strategy}: rows are left out or repeated, which is not counted here"
        )
        findings.append(recipe.find(UNCHECKED, "mix_strategy", what, "the log names the number of steps"))
    model = cost.read_architecture(cost.read_config(os.path.expanduser(str(recipe.model_name_or_path))))
    if model is None or recipe.finetuning_type not in ("lora", "full"):
        what = "memory, time and disk of this kind of model or tuning"
        return [*findings, recipe.find(UNCHECKED, "finetuning_type", what, "watch the first steps")], facts
    full = recipe.finetuning_type == "full"
    beside = {"embed_tokens", "lm_head"} & set(recipe.names("additional_target"))
    trainable = model.parameters if full else model.lora(recipe.lora_rank) + len(beside) * model.head
    findings += check_disk(recipe, cost.checkpoint_bytes(model, trainable, full), run.steps)
    if recipe.use_cpu:
        return findings, facts
    if recipe.stage != "sft" or recipe.deepspeed or recipe.fsdp or machine.quantised:
        what = "memory and time: preferences, sharded and pre-quantised models are not estimated"
        return [*findings, recipe.find(UNCHECKED, "stage deepspeed fsdp", what, "watch the first steps")], facts
    more, lines = _on_card(recipe, model, trainable, card, run, utilisation)
    return findings + more, facts + lines


def _train_share(recipe: Recipe, lengths: list[int]) -> list[int]:
    held = recipe.val_size or 0
    return lengths[int(held if held >= 1 else held * len(lengths)) :] or lengths


def plan(recipe: Recipe, machine: Machine, lengths: list[int]) -> Plan:
    """Steps and tokens of the whole run; packed rows by LLaMA-Factory's own knapsack."""
    batch, accumulation, world = recipe.per_device_train_batch_size, recipe.gradient_accumulation_steps, _world(machine)
    if recipe.neat_packing or recipe.packing:
        from llamafactory.data.processor.processor_utils import greedy_knapsack

        room = recipe.cutoff_len - 1
        lengths = [min(length, room) for length in lengths]  # a longer one would make the knapsack run for ever
        rows = sum(len(greedy_knapsack(part, room)) for part in _map_batches(recipe, lengths))
        longest, efficiency = recipe.cutoff_len, sum(lengths) / (rows * recipe.cutoff_len)
    else:
        grouped = recipe.train_sampling_strategy == "group_by_length"
        efficiency = cost.padding_efficiency(cost.micro_batches(lengths, batch, grouped, accumulation))
        rows, longest = len(lengths), -(-max(lengths) // 8) * 8
    max_steps = recipe.max_steps or -1
    drop_last = bool(recipe.dataloader_drop_last)
    steps = cost.steps(rows, batch, accumulation, recipe.num_train_epochs, max_steps, world, drop_last)
    epochs = steps * batch * accumulation * world / rows if max_steps > 0 else recipe.num_train_epochs
    computed = epochs * sum(lengths) / efficiency
    return Plan(steps, world, batch * longest, efficiency, computed, sum(lengths) / len(lengths))


def _map_batches(recipe: Recipe, lengths: list[int]) -> Iterator[list[int]]:
    """The rows as `datasets` hands them to the packing: a contiguous shard a worker, then batches of each shard."""
    size, workers = recipe.preprocessing_batch_size, min(recipe.preprocessing_num_workers or 1, len(lengths))
    whole, rest = divmod(len(lengths), workers)
    start = 0
    for worker in range(workers):
        end = start + whole + (worker < rest)
        yield from (lengths[begin : min(begin + size, end)] for begin in range(start, end, size))
        start = end


def _world(machine: Machine) -> int:
    """Processes of the run, as `llamafactory-cli train` starts them."""
    if os.environ.get("FORCE_TORCHRUN", "0").lower() in ("1", "true", "y") or machine.cards > 1:
        nodes, processes = os.environ.get("NNODES", "1"), os.environ.get("NPROC_PER_NODE", str(max(machine.cards, 1)))
        return int(nodes) * int(processes) if (nodes + processes).isdigit() else 1
    return 1


def _on_card(
    recipe: Recipe, model: cost.Architecture, trainable: int, card: Card, run: Plan, utilisation: float
) -> tuple[list[Finding], list[str]]:
    engine = cost.Engine(
        bits=recipe.quantization_bit or 16,
        full=recipe.finetuning_type == "full",
        unsloth=recipe.use_unsloth,
        fused_loss=recipe.use_unsloth or recipe.enable_liger_kernel,
        checkpointing=not recipe.disable_gradient_checkpointing,
        pure_bf16=recipe.pure_bf16,
    )
    parts = cost.memory(model, run.micro_batch, trainable, engine)
    need, batch = sum(parts.values()), recipe.per_device_train_batch_size
    named = " + ".join(f"{name} {value / cost.GIB:.1f}" for name, value in parts.items() if value)
    facts = [
        f"memory   about {need / cost.GIB:.1f} of {card.bytes / cost.GIB:.0f} GiB ({card.name}): {named}; "
        f"largest micro-batch {batch} x {run.micro_batch // batch} tokens; formulas: preflight/cost.py"
    ]
    findings = []
    if need > card.bytes:
        grade = REFUSED if card.known and need > 1.15 * card.bytes else WARNED
        what = f"about {need / cost.GIB:.1f} GiB are needed, {card.name} has {card.bytes / cost.GIB:.0f}"
        smaller = f"per_device_train_batch_size: {max(batch // 2, 1)}"
        remedy = f"{smaller} and gradient_accumulation_steps: {recipe.gradient_accumulation_steps * 2}"
        findings.append(
            recipe.find(grade, "per_device_train_batch_size", what, remedy if batch > 1 else "a larger card")
        )
    if card.peak:
        flops = cost.flops_per_token(model, run.mean, trainable, engine.full, engine.checkpointing)
        hours = cost.hours(run.computed, flops, card.peak * run.world, utilisation)
        facts.append(
            f"time     about {hours:.2g} h at {utilisation:.0%} of {run.world} x {card.peak / 1e12:.0f} TFLOP/s: "
            f"{run.computed:,.0f} tokens, padding included, x {flops / 1e9:.1f} GFLOP"
        )
    return findings, facts


def check_rhythm(recipe: Recipe, steps: int) -> Iterator[Finding]:
    """Intervals that a run of so few steps never reaches."""
    fifth = max(steps // 5, 1)
    if recipe.logging_steps >= 1 and recipe.logging_steps > steps:
        what = f"logging_steps {recipe.logging_steps:g} and {steps} steps: no loss is ever logged"
        yield recipe.find(WARNED, "logging_steps", what, "write logging_steps: 1")
    if recipe.save_strategy == "steps" and recipe.save_steps > max(steps - 1, 1):
        what = f"save_steps {recipe.save_steps:g} and {steps} steps: there is no checkpoint to resume from"
        yield recipe.find(WARNED, "save_steps", what, f"write save_steps: {fifth}")
    whole = recipe.save_steps >= 1 and recipe.logging_steps >= 1
    if recipe.save_strategy == "steps" and whole and recipe.save_steps % recipe.logging_steps:
        what = f"save_steps {recipe.save_steps:g} is no multiple of logging_steps {recipe.logging_steps:g}: after a"
        what += " resume the first loss is the mean of fewer steps"
        remedy = f"write save_steps: {max(round(recipe.save_steps / recipe.logging_steps), 1) * recipe.logging_steps:g}"
        yield recipe.find(WARNED, "save_steps", what, remedy)
    every = recipe.eval_steps or recipe.logging_steps
    if recipe.eval_strategy == "steps" and every > steps:
        what = f"eval_steps {every:g} and {steps} steps: there is no evaluation on the way"
        yield recipe.find(WARNED, "eval_steps", what, f"write eval_steps: {fifth}")
    if (recipe.warmup_steps or 0) >= max(steps, 2):
        what = f"warmup_steps {recipe.warmup_steps:g} and {steps} steps: the learning rate is never reached"
        yield recipe.find(REFUSED, "warmup_steps", what, "write warmup_steps: 0.1, a tenth of the steps")
