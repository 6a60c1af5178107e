"""Prove a LLaMA-Factory recipe before a GPU hour is spent: offline, in seconds, before anything is loaded.

    python -m preflight recipes/medcot/train.yaml [key=value …]

refused      the run would fail, or train on the wrong thing; the exit code is 1
warned       it runs, and may not do what you think
not checked  what could not be looked at from here
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from preflight import REFUSED, UNCHECKED, WARNED, Finding, Recipe, cost
from preflight.checkpoints import check_output, fingerprints, remember
from preflight.data import Encoder, Rows, check_overlap, check_rows, check_template, count_tokens, foreign, load
from preflight.distill import check_distill, read
from preflight.estimate import Card, estimate
from preflight.folders import check_adapter, check_files, check_model
from preflight.keys import check_by_llamafactory, check_keys, kind, other_system
from preflight.machine import Gpu, check_packages, describe, gpus
from preflight.rules import check_rules
from recipe import UserError, one_line_errors

ASSUMED = Gpu("RTX 4090", 24 * cost.GIB, 24 * cost.GIB)


def check(recipe: Recipe, cards: list[Gpu], card: Card, utilisation: float) -> tuple[list[Finding], list[str]]:
    """Everything that is wrong with a recipe, and lines that say what the run will be."""
    if other := other_system(recipe):
        return [other], []
    sets, findings = load(recipe) if kind(recipe) == "train" else ([], [])
    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(count_tokens, str(recipe.model_name_or_path or ""), sets)
        keys = list(check_keys(recipe))  # imports LLaMA-Factory, while the other thread counts
        findings += keys
        machine = describe(recipe, cards)
        findings += check_rules(recipe, machine)
        if not foreign(recipe):
            findings += [*check_model(recipe), *check_adapter(recipe), *check_files(recipe)]
        findings += check_packages(recipe)
        if not any(finding.grade == REFUSED for finding in findings):
            findings += check_by_llamafactory(recipe, bool(cards))
        counts = counting.result()
    if kind(recipe) != "train" or any(finding.grade == REFUSED for finding in keys):
        return findings, []
    findings += check_distill(recipe)
    lengths, more = check_data(recipe, sets, counts)
    data = fingerprints(_files(recipe, sets))
    findings += more
    findings += check_output(recipe, data, refused=any(finding.grade == REFUSED for finding in findings))
    more, facts = estimate(recipe, machine, card, lengths.get("dataset", []), utilisation)
    findings += more
    if recipe.do_train and recipe.output_dir and sets and not any(finding.grade == REFUSED for finding in findings):
        remember(recipe, data)
    return findings, facts


def _files(recipe: Recipe, sets: list[Rows]) -> dict[str, Path]:
    folder = Path(str(recipe.dataset_dir or "data"))
    return {part.name: folder / part.entry["file_name"] for part in sets if part.role == "dataset"}


def check_data(recipe: Recipe, sets: list[Rows], counts: dict[str, int]) -> tuple[dict[str, list[int]], list[Finding]]:
    """Lengths in tokens by role (`dataset`, `eval_dataset`), and what is wrong with the rows."""
    if not sets:
        return {}, []
    findings = list(check_overlap(recipe, sets))
    if recipe.stage == "pt":
        return {}, [*findings, recipe.find(UNCHECKED, "stage", "pre-training rows have no answer to check", "nothing")]
    if not os.path.isfile(os.path.join(os.path.expanduser(str(recipe.model_name_or_path)), "tokenizer.json")):
        what = "no tokenizer.json in the model's folder: lengths, spelling and end token of the rows"
        return {}, [
            *findings,
            recipe.find(UNCHECKED, "model_name_or_path", what, "put the model there, and check again"),
        ]
    lengths: dict[str, list[int]] = {}
    try:
        encoder = Encoder(recipe)
        vocabulary = cost.read_config(os.path.expanduser(str(recipe.model_name_or_path))).get("vocab_size", 0)
        findings += check_template(recipe, encoder, vocabulary)
        for part in sets:
            found, more = check_rows(recipe, encoder, part, counts)
            lengths.setdefault(part.role, []).extend(found)
            findings += more
        if (recipe.val_size or 0) >= (rows := len(lengths.get("dataset", []))) > 0:
            what = f"val_size: {recipe.val_size:g} of {rows} rows are held out, and none is left to train on"
            findings.append(recipe.find(REFUSED, "val_size", what, "write a share, e.g. 0.05"))
    except UserError as error:
        findings.append(recipe.find(REFUSED, "template", str(error), "name the model's own template, e.g. qwen3"))
    except (OSError, ValueError, TypeError, ImportError) as error:
        what = f"LLaMA-Factory can't load the tokenizer: {' '.join(str(error).split())[:200]}"
        findings.append(recipe.find(REFUSED, "model_name_or_path", what, "copy or download the model folder again"))
    return lengths, findings


def card_of(arguments: argparse.Namespace, cards: list[Gpu]) -> Card:
    gpu = cards[0] if cards else ASSUMED
    name = arguments.card or gpu.name
    size = arguments.memory_gib * cost.GIB if arguments.memory_gib else gpu.bytes
    known = bool(cards or arguments.memory_gib or arguments.card)
    return Card(name if known else f"{name}, assumed", size, cost.peak_of(name), known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "recipe", help="a train.yaml, serve.yaml or export.yaml for llamafactory-cli, or a distill.yaml"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, as llamafactory-cli takes them")
    parser.add_argument("--memory-gib", type=float, help="memory of the card to plan for (default: this one's, or 24)")
    parser.add_argument("--card", help="name of the card to plan for, e.g. 'RTX 4090' (default: this machine's)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the card's peak for the time estimate")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    with one_line_errors():
        cards = gpus()
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        recipe = read(arguments.recipe, arguments.overrides)
        with contextlib.redirect_stdout(io.StringIO()):  # of the libraries: what is found is printed below
            try:
                findings, facts = check(recipe, cards, card_of(arguments, cards), arguments.utilisation)
            except (TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
                said = f"{type(error).__name__}: {error}"
                raise UserError(f"{arguments.recipe}: a file that it names has an unexpected form ({said})") from error
    for fact in facts:
        print(fact)
    for grade in (UNCHECKED, WARNED, REFUSED):
        for finding in dict.fromkeys(findings):
            if finding.grade == grade:
                print(f"{grade:<11} {finding.place}: {finding.what}; {finding.remedy}")
    refused = sum(finding.grade == REFUSED for finding in dict.fromkeys(findings))
    print(f"{arguments.recipe}: {refused} refused" if refused else f"{arguments.recipe}: nothing refused")
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
