"""The training benchmark: its rows' lengths, what it counts, its arithmetic and its table; and real runs on a CPU."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import fixture, lengths, preprocess, profiles, table, train, worker
from preflight.cost import flops_per_token, micro_batches, padding_efficiency, read_architecture
from recipe import UserError
from tests.conftest import ROOT

OPTIONS: dict[str, Any] = dict.fromkeys(
    ["batch", "accumulation", "cutoff_len", "attention", "group_by_length", "memory_gib", "card_peak", "model_path"]
)
OPTIONS |= {"profile": "peft", "overrides": [], "steps": 20, "seconds": 300.0, "model": "qwen2.5-7b"}
QWEN_7B = read_architecture(fixture.MODELS["qwen2.5-7b"])


def options(**values: Any) -> argparse.Namespace:
    return argparse.Namespace(**OPTIONS | values)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every package but flash-attn is installed."""
    monkeypatch.setattr(profiles, "installed", lambda module: module != "flash_attn")


# --- lengths, rows, model


@pytest.mark.parametrize("rows", [500, lengths.ROWS])
def test_the_rows_have_the_real_lengths(rows: int) -> None:
    drawn = lengths.draw_lengths(rows)
    figures = [drawn.mean(), *np.percentile(drawn, [50, 95, 99])]
    assert figures == pytest.approx([567, 554, 790, 899], rel=0.02) and drawn.max() <= 1356
    assert rows < lengths.ROWS or drawn.max() == pytest.approx(1356, rel=0.05)


@pytest.mark.parametrize(("batch", "accumulation", "grouped"), [(24, 2, False), (12, 4, True), (8, 6, True)])
def test_a_short_run_sees_a_fair_sample_of_an_epoch(batch: int, accumulation: int, grouped: bool) -> None:
    def parts(steps: list[np.ndarray]) -> list[np.ndarray]:
        return [part for step in steps for part in np.array_split(step, accumulation)]

    drawn, rows = lengths.draw_lengths(), batch * accumulation
    steps = lengths.arrange(drawn, batch, accumulation, grouped, 23)
    assert all(len(step) == rows for step in steps) and steps[0].max() == drawn.max()
    assert np.concatenate(steps[3:]).mean() == pytest.approx(drawn.mean(), rel=0.04)
    epoch = micro_batches(drawn, rows, grouped)
    assert padding_efficiency(parts(steps[3:])) == pytest.approx(padding_efficiency(parts(epoch)), rel=0.015)
    assert len(lengths.arrange(drawn, batch, accumulation, grouped, 600)) == 600  # more than an epoch


def test_a_grouped_epoch_is_transformers_own() -> None:
    from transformers.trainer_pt_utils import get_length_grouped_indices

    drawn = lengths.draw_lengths()
    theirs = drawn[get_length_grouped_indices(drawn.tolist(), 48, generator=torch.Generator().manual_seed(1))]
    ours = np.concatenate(micro_batches(drawn, 48, grouped=True))
    efficiency = [padding_efficiency(np.array_split(order[: 420 * 48], 420 * 4)) for order in (theirs, ours)]
    assert efficiency[0] == pytest.approx(efficiency[1], abs=0.002)


@pytest.mark.parametrize("template", ["deepseekr1", "qwen3"])
def test_llamafactory_encodes_a_row_to_the_drawn_length(template: str, tmp_path: Path) -> None:
    from llamafactory.data import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    tokenizer = fixture.build_tokenizer(2112, template)
    tokenizer.save_pretrained(tmp_path)
    drawn = lengths.draw_lengths(50)
    assert len(tokenizer) == 2112 and fixture.write_rows(tmp_path / "data", drawn, tmp_path) == template
    encoder = get_template_and_fix_tokenizer(tokenizer, DataArguments(template=template))
    for row, length in zip(json.loads((tmp_path / "data/bench.json").read_text()), drawn, strict=True):
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        ((prompt, response),) = encoder.encode_multiturn(tokenizer, turns)
        assert len(prompt) + len(response) == length and tokenizer.unk_token_id not in prompt[2:] + response


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_folder_loads_whole(tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(fixture, "SHARD", 600_000)
    config = fixture.MODELS["demo"] | {"tie_word_embeddings": tied}
    fixture.write_model(tmp_path / "model", config)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    model, loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    weight = model.model.layers[1].mlp.up_proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.02) and len(weight.unique(dim=0)) == len(weight)
    assert (model.model.norm.weight == 1).all() and (model.model.layers[0].self_attn.q_proj.bias == 0).all()
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == config["vocab_size"]
    before = (tmp_path / "model/config.json").stat().st_mtime_ns
    fixture.write_model(tmp_path / "model", config)
    assert (tmp_path / "model/config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen2.5-7b", 7.616), ("qwen2.5-1.5b", 1.544), ("qwen3-0.6b", 0.596), ("demo", 0.00113)]
)
def test_the_architectures_have_their_published_sizes(name: str, billions: float) -> None:
    shapes = fixture.weight_shapes(fixture.MODELS[name])
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert parameters / 1e9 == pytest.approx(billions, rel=0.01)
    model = read_architecture(fixture.MODELS[name])
    assert model.parameters == pytest.approx(parameters, rel=0.002)  # but for norms and biases


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixture.shutil, "disk_usage", lambda _: argparse.Namespace(free=10e9))
    with pytest.raises(UserError, match=r"15\.2 GB are needed and 10\.0 free"):
        fixture.write_model(tmp_path / "model", fixture.MODELS["qwen2.5-7b"])


# --- what is run


@pytest.mark.parametrize("profile", profiles.PROFILES)
@pytest.mark.usefixtures("machine")
def test_every_profile_parses_by_llamafactorys_own_classes(profile: str) -> None:
    from llamafactory.hparams import parser
    from transformers import HfArgumentParser

    chosen = profiles.settings(options(profile=profile), gpu=True)
    given = profiles.arguments(chosen, "models/x", "deepseekr1", Path("/w"), 23)
    assert given.keys() <= {field.name for cls in parser._TRAIN_ARGS for field in fields(cls)}
    parsed = HfArgumentParser(parser._TRAIN_ARGS).parse_dict(given | {"use_cpu": True})
    assert (parsed[0].quantization_bit, parsed[2].max_steps) == (4, 23)
    assert profile == "best" or parsed[0].use_unsloth == (profile in ("unsloth", "report"))
    assert parsed[2].train_sampling_strategy == ("random" if given.get("neat_packing") else "sequential")


@pytest.mark.usefixtures("machine")
def test_profiles_are_what_they_say() -> None:
    report = profiles.settings(options(profile="report"), gpu=True)
    stated = {"lora_rank": 8, "lora_alpha": 16, "cutoff_len": 2048, "train_sampling_strategy": "random"}
    stated |= {"per_device_train_batch_size": 24, "gradient_accumulation_steps": 2, "use_unsloth": True}
    assert stated.items() <= report.items()
    best = profiles.settings(options(profile="best"), gpu=True)
    assert profiles.recipe_settings("recipes/medcot/train.yaml").items() <= best.items()
    assert not {"dataset", "output_dir", "save_steps", "report_to"} & best.keys()
    on_cpu = profiles.settings(options(profile="packed"), gpu=False)
    assert on_cpu["use_cpu"] and not on_cpu["bf16"] and "enable_liger_kernel" not in on_cpu
    flags = options(batch=16, group_by_length=False, overrides=["lora_rank=8"])
    chosen = profiles.settings(flags, gpu=True)
    assert (chosen[profiles.BATCH], chosen["lora_rank"], chosen["train_sampling_strategy"]) == (16, 8, "random")


@pytest.mark.parametrize(
    ("values", "gpu", "said"),
    [
        ({"profile": "pect"}, True, "no such profile"),
        ({"profile": "unsloth"}, False, "needs an NVIDIA GPU"),
        ({"profile": "best"}, False, "needs an NVIDIA GPU"),
        ({"profile": "packed", "attention": "fa2"}, True, "flash-attn"),
        ({"profile": "packed", "group_by_length": True}, True, "one length"),
        ({"profile": "unsloth", "overrides": ["neat_packing=true"], "group_by_length": False}, True, "mixes"),
        ({"batch": 0}, True, "--batch 0"),
        ({"batch": 20_000, "accumulation": 2}, True, "more than an epoch"),
        ({"steps": -1}, True, "--steps -1"),
        ({"cutoff_len": 1000 + 1}, True, "multiple of 8"),
        ({"memory_gib": 24.0}, False, "no GPU here"),
        ({"memory_gib": 1.0}, True, "CUDA context"),
        ({"overrides": ["lora_rank"]}, True, "key=value"),
        ({"overrides": ["output_dir=x"]}, True, "does not set itself"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_what_cannot_be_measured_is_refused_in_one_line(values: dict, gpu: bool, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        profiles.row_lengths(profiles.settings(options(**values), gpu), 23)
    assert "\n" not in str(caught.value)


def test_a_missing_liger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "installed", lambda module: False)
    with pytest.raises(UserError, match="liger-kernel is missing"):
        profiles.settings(options(profile="packed"), gpu=True)


@pytest.mark.usefixtures("machine")
def test_a_dry_run_shows_arguments_and_lengths(capsys: pytest.CaptureFixture) -> None:
    train.main(["packed", "--dry-run", "--steps", "2"])
    out = capsys.readouterr().out
    assert "neat_packing: true" in out and "model_name_or_path: WORK/models/qwen2.5-7b" in out
    assert "rows in 5 steps, 3 of them warm-up; tokens: mean 56" in out


# --- what is counted


def test_padding_is_not_counted() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    counted = worker.count({"input_ids": torch.ones(2, 4), "attention_mask": mask})
    assert counted == {"tokens": 7, "padded": 8, "squares": 9 + 16, "padded_squares": 32}


def test_packed_rows_are_counted_by_their_samples() -> None:
    from llamafactory.data.collator import prepare_4d_attention_mask

    packed, positions = torch.tensor([[1, 1, 2, 2, 2, 0]]), torch.tensor([[0, 1, 0, 1, 2, 0]])
    batch = {"input_ids": torch.ones(1, 6), "position_ids": positions}
    dense = batch | {"attention_mask": prepare_4d_attention_mask(packed, torch.bfloat16)}
    assert worker.count(dense) == {"tokens": 5, "padded": 6, "squares": 4 + 9, "padded_squares": 36}
    flash = {"input_ids": torch.ones(1, 5), "position_ids": positions[:, :5], "attention_mask": None}
    assert worker.count(flash) == {"tokens": 5, "padded": 5, "squares": 13, "padded_squares": 13}


def test_an_interval_holds_the_rate_and_narrows_with_steps() -> None:
    random = np.random.default_rng(0)
    steps = [[seconds, 1000, 1100] for seconds in random.uniform(0.9, 1.1, 100)]
    few, many = table.rate(steps[:10]), table.rate(steps)
    assert many["low"] < many["value"] < many["high"] and many["high"] - many["low"] < few["high"] - few["low"]
    spread = 1000 * np.std([step[0] for step in steps]) / 10
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert table.rate([[2.0, 1000, 1100]]) == {"value": 500, "low": None, "high": None}
    assert table.rate(steps, 2)["value"] == pytest.approx(1.1 * many["value"])


# --- rows and table


def events(forward: str = "unsloth", speed: float = 2000.0, card: str = "NVIDIA GeForce RTX 4090") -> list[dict]:
    engine = {"forward": forward, "attention": "sdpa", "quantised_layers": 196, "checkpointing": True}
    engine |= {"trainable": QWEN_7B.lora(16)}
    out = [{"kind": "card", "card": card, "versions": {"torch": "2.11.0"}}]
    out += [{"kind": "begin", "load_seconds": 60.0, "loading": {}, "engine": engine}]
    for number in range(1, 9):
        tokens = 27_000 + 100 * number
        size = {"tokens": tokens, "padded": 27_900, "squares": tokens * 600, "padded_squares": 27_900 * 620}
        peaks = {"allocated_gib": 18.0, "reserved_gib": 19.0}
        seconds = 100.0 if number <= 3 else tokens / speed * (1 + 0.01 * (number % 3))
        out.append({"kind": "step", "number": number, "seconds": seconds} | size | peaks)
    return [*out, {"kind": "trained"}]


def row(profile: str = "unsloth", seen: list[dict] | None = None, **values: Any) -> dict:
    wanted = options(profile=profile, memory_gib=24.0, **values)
    seen = seen or events()
    chosen = profiles.settings(wanted, gpu=True)
    failed = train.failure(seen, "ended", chosen, 24.0)
    known = train.describe(wanted, chosen) | {"card": seen[0]["card"], "versions": {"torch": "2.11.0"}}
    rest = {"short": failed[0], "error": failed[1]} if failed else train.measured(seen, QWEN_7B, None)
    return json.loads(json.dumps(known | rest))


@pytest.mark.usefixtures("machine")
def test_a_rows_figures_come_from_the_steps_after_the_warm_up() -> None:
    found, steps = row(), events()[5:10]
    seconds, tokens = sum(step["seconds"] for step in steps), sum(step["tokens"] for step in steps)
    assert (found["steps"], found["tokens"]) == (5, tokens) and found["seconds_per_step"] == pytest.approx(seconds / 5)
    assert found["tokens_per_second"]["value"] == pytest.approx(tokens / seconds, rel=1e-4)
    # by hand, training.md 4.2: 28.8 GFLOP a token without recomputation and 42.0 with it, at this rank a little more
    assert found["flops_per_token"] / 1e9 == pytest.approx(28.8, rel=0.02)
    assert found["flops_per_padded_token"] / 1e9 == pytest.approx(42.0, rel=0.02)
    useful = flops_per_token(QWEN_7B, 600, QWEN_7B.lora(16), full=False, recompute=False)
    assert found["mfu"] == pytest.approx(tokens * useful / seconds / 165.2e12, rel=1e-3)
    assert found["padding_efficiency"] == pytest.approx(tokens / (5 * 27_900))


@pytest.mark.usefixtures("machine")
def test_without_a_known_peak_there_is_no_utilisation() -> None:
    unknown = train.measured(events(card="NVIDIA Something"), QWEN_7B, None)
    assert unknown["mfu"] is None and unknown["hfu"] is None
    assert train.measured(events(card="NVIDIA Something"), QWEN_7B, 165.2)["mfu"] == pytest.approx(row()["mfu"])
    assert "| not known | not known |" in table.table([row() | {"mfu": None, "hfu": None}])


def test_no_gpu_no_figure() -> None:
    assert table.NO_GPU in table.table([]) and "Extrapolated" not in table.table([])


@pytest.mark.usefixtures("machine")
def test_the_table_compares_what_is_comparable() -> None:
    plain = row("peft", events("transformers", 1000), batch=12, accumulation=4)
    rows = [row(), plain, row("report", events(speed=900)), row("best", events(speed=2200))]
    rows += [row("peft", events("transformers", 1200), batch=4, accumulation=12)]
    text = table.table(rows)
    assert "equal settings: unsloth 12 × 4 over peft 12 × 4: × 2.00 [" in text
    best = profiles.settings(options(profile="best"), gpu=True)
    size = f"{best[profiles.BATCH]} × {best[profiles.ACCUMULATION]}"
    assert f"each at its fastest: best {size} over peft 4 × 12: × 1.83 [" in text
    assert f"best profile against the report's settings: best {size} over report 24 × 2: × 2.44 [" in text
    assert table.NO_GPU not in text and text.count("Extrapolated") == 2
    others = table.table([row(), plain | {"memory_gib": None}])
    assert "over" not in others  # another cap is another machine


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("card", "peak"), [("NVIDIA GeForce RTX 4090", 165.2e12), ("NVIDIA H200", 989.5e12)])
def test_the_extrapolation_is_the_measured_speed_scaled_by_the_peaks(card: str, peak: float) -> None:
    found = row("best", events(card=card))
    line = table.extrapolation(found)
    expected = 25_000 * 567 / found["tokens_per_second"]["value"] / 3600 * peak / 165.2e12
    assert f"**{expected:.1f} h**" in line and "not measured" in line and line in table.table([found])


@pytest.mark.usefixtures("machine")
def test_the_newest_of_equal_settings_wins() -> None:
    old, new = row("unsloth", events(speed=1000)), row("unsloth", events(speed=3000))
    text = table.table([old, row("unsloth", batch=16, accumulation=3), new])
    assert text.count("| unsloth | unsloth, sdpa |") == 2
    assert f"{new['tokens_per_second']['value']:,.0f}" in text
    assert f" {old['tokens_per_second']['value']:,.0f} " not in text


@pytest.mark.usefixtures("machine")
def test_a_run_that_fails_leaves_a_row_that_says_why() -> None:
    chosen = profiles.settings(options(batch=24, accumulation=2), gpu=True)
    oom = {"kind": "error", "message": "OutOfMemoryError: CUDA out of memory. Tried …", "out_of_memory": True}
    cases = [
        ([*events("transformers")[:3], oom], "ended", "out of memory under 24 GiB in step 2 at batch 24"),
        ([*events("transformers")[:1], oom], "ended", "out of memory under 24 GiB while loading"),
        ([], "killed by signal 9", "machine's own memory is full"),
        (
            [{"kind": "error", "message": "ValueError: bad\nkey", "out_of_memory": False}],
            "ended",
            "ValueError: bad key",
        ),
        (events("transformers")[:5], "timed out", "timed out after 3 steps"),
    ]
    for seen, outcome, said in cases:
        assert said in train.failure(seen, outcome, chosen, 24.0)[1]
    assert train.failure([*events("transformers"), oom], "ended", chosen, 24.0) is None  # it had been measured
    assert train.failure(events("transformers"), "ended", chosen | {"use_unsloth": True}, None)[0] == "no Unsloth"
    assert "the cap of 18 GiB did not hold" in train.failure(events("transformers"), "ended", chosen, 18.0)[1]
    failed = row("peft", cases[0][0], batch=24, accumulation=2)
    assert "| out of memory | — |" in table.table([failed]) and "over" not in table.table([failed, row()])


def test_a_failed_run_ends_in_one_line_and_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fails(job: dict, work: Path, planned: int) -> tuple[list[dict], str]:
        assert job["arguments"]["max_steps"] == planned == 5 and Path(job["arguments"]["dataset_dir"]).is_dir()
        (work / "train.log").write_text("the last of the log")
        return [{"kind": "error", "message": "ValueError: Target modules", "out_of_memory": False}], "ended"

    monkeypatch.setattr(train, "run_worker", fails)
    with pytest.raises(SystemExit, match=r"^error: ValueError: Target modules; a row that says so is in .*rows.jsonl$"):
        train.main(
            ["peft", "--model", "demo", "lora_target=x", "--steps", "2", "--output", str(tmp_path / "rows.jsonl")]
        )
    (found,) = table.read_rows(str(tmp_path / "rows.jsonl"))
    assert found["error"] == "ValueError: Target modules" and found["settings"]["overrides"] == {"lora_target": "x"}
    assert "the last of the log" in capsys.readouterr().err and "| failed | — |" in table.table([found])


def test_a_worker_that_hangs_is_stopped(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert train.follow(process, tmp_path / "none", deadline=0, planned=5) == "timed out"
    assert process.poll() is not None


@pytest.mark.usefixtures("machine")
def test_rows_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep/train.jsonl"
    for found in (row(), row("peft", events("transformers"))):
        train.append(str(path), found)
    assert [found["profile"] for found in table.read_rows(str(path))] == ["unsloth", "peft"]
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"train.jsonl:1: not a row"):
        table.read_rows(str(path))


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "card"}\n{"kind": "st')
    assert train.read_events(path) == [{"kind": "card"}] and train.read_events(tmp_path / "none") == []


# --- for real


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench.train", "--model", "demo", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # two threads wait for each other where CI shares its cores
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_real_run_counts_every_token(tmp_path: Path) -> None:
    output, work = tmp_path / "rows.jsonl", tmp_path / "work"
    places = ["--output", str(output), "--work", str(work)]
    done = run("peft", "--steps", "2", "--batch", "4", "--accumulation", "1", *places)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "No GPU has been measured yet" in done.stdout and "step 5 of 5" in done.stderr
    (found,) = table.read_rows(str(output))
    # independently of tokenizer, template and collator: one word, one token; bos, user, assistant and eos besides
    rows = json.loads((work / "data/bench.json").read_text())[3 * 4 :]
    sizes = [len(row["instruction"].split()) + len(row["output"].split()) + 4 for row in rows]
    padded = sum(4 * math.ceil(max(sizes[i : i + 4]) / 8) * 8 for i in range(0, len(sizes), 4))
    assert (found["steps"], found["tokens"], found["padded_tokens"]) == (2, sum(sizes), padded)
    assert found["card"].startswith("CPU:") and found["mfu"] is None and found["memory"]["resident_gib"] > 0.3
    assert found["engine"]["forward"] == "transformers" and found["engine"]["quantised_layers"] == 21
    assert found["loss"] == pytest.approx(math.log(2112), rel=0.05)

    packed = run("packed", "--steps", "1", "--cutoff-len", "1024", "--accumulation", "1", *places)
    assert packed.returncode == 0, packed.stderr[-3000:]
    found = table.read_rows(str(output))[-1]
    assert found["settings"]["packed"] and found["padded_tokens"] == 1024 and 0.7 < found["padding_efficiency"] <= 1


@pytest.mark.slow
def test_the_data_bench_builds_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "SIZES", (300, 600))
    figures, *lines = preprocess.data(quick=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in figures.splitlines()[2:]]
    assert [row[0] for row in rows] == ["300", "600", "300"] and [row[-1] for row in rows] == ["0", "0", "0"]
    assert all(0 < int(row[-2]) <= int(row[0]) for row in rows)
    assert "near_duplicate" in lines[1] and "contaminated" in lines[1]
