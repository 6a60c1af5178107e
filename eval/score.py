"""What the answers of the arms come to: checks, diagnosis, verdicts, votes, and the claim that they allow.

Every function takes `answers`, {arm: rows of `eval.predict`}, all arms with the same prompts in the same order; the
first arm is the one that the others are compared with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval import checks, diagnosis, judge, review
from eval.claim import claim_card
from eval.statistics import (
    agreement,
    bootstrap,
    difference,
    prediction_powered,
    relative_gain,
    share,
    sign_test,
    win_rate,
)
from preprocess.records import read_rows
from preprocess.think import well_formed
from recipe import UserError

Row = dict[str, Any]
Answers = Mapping[str, Sequence[Row]]

FAILED = "failed"  # the finish reason of a prompt that got no answer: nobody's fault, so nothing to score
WORDS = {"A≫B": 0.0, "A>B": 0.0, "A=B": 0.5, "both-bad": 0.5, "B>A": 1.0, "B≫A": 1.0}


def counts(answers: Answers) -> dict[str, dict[str, int]]:
    """Of each arm: prompts = answered + failed; how many of the answered were cut."""
    return {
        arm: {
            "prompts": len(rows),
            "answered": sum(row["finish_reason"] != FAILED for row in rows),
            "failed": sum(row["finish_reason"] == FAILED for row in rows),
            "cut": sum(row["finish_reason"] == "length" for row in rows),
        }
        for arm, rows in answers.items()
    }


def answered_by_all(answers: Answers) -> dict[str, list[Row]]:
    """The prompts that every arm has answered: the others can't be paired, and are counted as failed."""
    kept = [all(row["finish_reason"] != FAILED for row in rows) for rows in zip(*answers.values(), strict=True)]
    return {arm: [row for row, keep in zip(rows, kept, strict=True) if keep] for arm, rows in answers.items()}


def thoughts(answers: Answers) -> dict[str, Any]:
    """The share of replies with one closed, non-empty thought and then a non-empty answer, by arm."""
    hits = {arm: [[float(well_formed(row["raw"]))] for row in rows] for arm, rows in answers.items()}
    shares = {arm: sum(map(sum, each)) / len(each) for arm, each in hits.items()}
    return shares | {
        "prompts": len(next(iter(hits.values()))),
        "counts": {arm: int(sum(map(sum, each))) for arm, each in hits.items()},
        "intervals": {arm: share(each) for arm, each in hits.items()},
        "changes": _changes(hits),
    }


# --- instructions -----------------------------------------------------------------------------------------------------


def graded(row: Row) -> list[checks.Graded]:
    """The checks of one reply; those that every reply must pass, where its prompt names none."""
    instruction = checks.to_instruction(row | {"question": row["prompt"]}) if row.get("checks") else None
    return checks.grade(
        instruction or checks.Instruction(row["id"], "", row["prompt"], ()), row["raw"], row["finish_reason"]
    )


def instructions(answers: Answers, grades: Mapping[str, Sequence[Sequence[checks.Graded]]]) -> dict[str, Any]:
    """Instruction following over the prompts that name checks: strict and loose, by prompt and by check; the change.

    Intervals are clustered by prompt; `changes` compares each arm with the first, by prompt, strictly.
    """
    asked = [i for i, row in enumerate(next(iter(answers.values()))) if row.get("checks")]
    if not asked:
        return {}
    arms = {arm: _checked([grades[arm][i] for i in asked]) for arm in answers}
    passed = {arm: figures.pop("passed") for arm, figures in arms.items()}
    return {"prompts": len(asked), "arms": arms, "changes": _changes(passed)}


def _checked(graded_rows: Sequence[Sequence[checks.Graded]]) -> dict[str, Any]:
    figures = checks.summarise(graded_rows)
    tallies = figures.pop("per_prompt")
    whole = {side: [[float(passed == n)] for passed, n in tallies[side]] for side in checks.SIDES}
    single = {side: [[1.0] * passed + [0.0] * (n - passed) for passed, n in tallies[side]] for side in checks.SIDES}
    figures["by_prompt"] = {side: share(whole[side]) for side in checks.SIDES}
    figures["by_check"] |= {side: share(single[side]) for side in checks.SIDES}
    return figures | {"passed": whole["strict"]}


def _changes(passed: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, Any]:
    """Each arm against the first: passes, difference, relative gain, McNemar's exact test."""
    (_, before), *others = passed.items()
    changes = {}
    for arm, after in others:
        pairs = Counter((one[0], other[0]) for one, other in zip(before, after, strict=True) if one and other)
        changes[arm] = {
            "difference": difference(before, after),
            "relative_gain": relative_gain(before, after),
            "gained": pairs[0, 1],
            "lost": pairs[1, 0],
            "both": pairs[1, 1],
            "n": pairs.total(),
            "p": sign_test(pairs[0, 1], pairs[1, 0]),
        }
    return changes


# --- diagnoses --------------------------------------------------------------------------------------------------------


def diagnoses(
    answers: Answers, names: Mapping[str, Sequence[str]] | None = None
) -> tuple[dict[str, Any], dict[str, list[diagnosis.Score | None]]]:
    """The figures over the prompts whose reference is a diagnosis, and each prompt's score, None where it is none.

    `names` are other references, the diseases by prompt id; they have no reason, so none is compared.
    """
    scored = {arm: [_diagnosis(row, names) for row in rows] for arm, rows in answers.items()}
    kept = {arm: [one for one in scores if one] for arm, scores in scored.items()}
    if not all(kept.values()):
        return {}, scored
    figures = {arm: diagnosis.summarise(scores) for arm, scores in kept.items()}
    if names is not None:
        for each in figures.values():
            del each["reason"]
    (_, first), *others = kept.items()
    changes = {arm: {tier: _f1_change(first, scores, tier) for tier in diagnosis.TIERS} for arm, scores in others}
    return {"prompts": len(first), "arms": figures, "changes": changes}, scored


def read_names(path: str) -> dict[str, list[str]]:
    """References beside those of the data set: the diseases by id, from rows of {"id", "diseases": […]}, such as the
    weak_reference.jsonl that `make data` leaves (without its dropped records)."""
    names: dict[str, list[str]] = {}
    for place, row in read_rows(path):
        diseases = row.get("diseases")
        if "id" not in row or not isinstance(diseases, list) or not all(isinstance(name, str) for name in diseases):
            raise UserError(f"{place}: expected id and a list of diseases, as in weak_reference.jsonl of `make data`")
        if row.get("side") != "dropped":
            names[str(row["id"])] = diseases
    return names


def _diagnosis(row: Row, names: Mapping[str, Sequence[str]] | None) -> diagnosis.Score | None:
    if names is not None and row["id"] not in names:
        return None
    reference = row["reference"] if names is None else {"reason": "", "diseases": list(names[row["id"]])}
    try:
        return diagnosis.score(row["raw"], row["finish_reason"], reference, row["prompt"])
    except UserError:
        return None


def _f1_change(
    before: Sequence[diagnosis.Score], after: Sequence[diagnosis.Score], tier: str
) -> dict[str, float] | None:
    """Micro F1 after minus before, records resampled, both arms together."""
    columns = [diagnosis.per_record(scores, tier) for scores in (before, after)]
    rows = np.column_stack([2 * c["tp"] if i == 0 else c["predicted"] + c["expected"] for c in columns for i in (0, 1)])
    return bootstrap(rows, lambda sums: sums[..., 2] / sums[..., 3] - sums[..., 0] / sums[..., 1])


# --- judge and raters -------------------------------------------------------------------------------------------------


def reviewed(folder: Path, answers: Answers) -> tuple[dict[str, Any], list[Row], list[Row]]:
    """What judge and raters said of the first two arms, alone and together, {} where neither has been asked; and the
    verdicts and votes themselves."""
    arms = list(answers)[:2]
    ids = [row["id"] for row in answers[arms[0]]]
    verdicts = _verdicts(folder / "judge/verdicts.jsonl", {arm: answers[arm] for arm in arms})
    votes = _votes(folder, arms)
    found: dict[str, Any] = {}
    human = [[WORDS[vote["vote"]] for vote in votes if vote["id"] == id_] for id_ in ids]
    ai: list[list[float]] = [[] for _ in ids]
    if verdicts:
        by_id = {row["id"]: row for row in verdicts}
        rows = [by_id[id_] for id_ in ids if id_ in by_id]
        given = judge.scores(rows)
        ai = [dict(zip(by_id, given["pairwise"], strict=True)).get(id_, []) for id_ in ids]
        found["judge"] = judge.summarise(rows, {arm: str(answers[arm][0].get("model", "")) for arm in arms})
        found["judge"]["win_rate"] = win_rate(given["pairwise"])
        found["judge"]["changes"] = _changes(
            {arm: given[name] for arm, name in zip(arms, ("first", "second"), strict=True)}
        )
    if votes:
        found["votes"] = _voted(votes, ids) | {"win_rate": win_rate(human)}
    if verdicts and votes:
        mean = (
            [float(np.mean(each)) if each else None for each in ai],
            [float(np.mean(e)) if e else None for e in human],
        )
        found["joint"] = prediction_powered(*mean)
        labels = [_side(a) for a in mean[0]], [_side(h) for h in mean[1]]
        found["joint"]["agreement"] = agreement(list(zip(*labels, strict=True)))
    return found, verdicts, votes


def _verdicts(path: Path, answers: Answers) -> list[Row]:
    if not path.exists():
        return []
    hashes = {pair.id: pair.hash for pair in judge.paired(answers)}
    rows = [row for _, row in read_rows(str(path))]
    if any(hashes.get(row["id"]) != row["answers"] for row in rows):
        raise UserError(f"{path}: verdicts on other answers than those that are there; run the judge again")
    return rows


def _votes(folder: Path, arms: Sequence[str]) -> list[Row]:
    path = folder / "votes.jsonl"
    if not path.exists():
        return []
    return review.read_votes(path, {pair.id: pair.key for pair in review.read_pairs(str(folder), arms)})


def _voted(votes: Sequence[Row], ids: Sequence[str]) -> dict[str, Any]:
    raters = sorted({vote["rater"] for vote in votes})
    given = {(vote["id"], vote["rater"]): _side(WORDS[vote["vote"]]) for vote in votes}
    ratings = [[given.get((id_, rater)) for rater in raters] for id_ in ids]
    results = Counter(_side(WORDS[vote["vote"]]) for vote in votes)
    return {
        "votes": len(votes),
        "raters": len(raters),
        "prompts": len({vote["id"] for vote in votes}),
        "results": {name: results[name] for name in ("win", "tie", "loss")},
        "both_bad": sum(vote["vote"] == "both-bad" for vote in votes),
        "tags": dict(Counter(tag for vote in votes for tag in vote.get("tags", ())).most_common()),
        "agreement": agreement(ratings),
    }


def _side(score: float | None) -> str | None:
    return None if score is None else "win" if score > 0.5 else "loss" if score < 0.5 else "tie"


# --- the claim --------------------------------------------------------------------------------------------------------


def claim(scored: Mapping[str, Any]) -> dict[str, Any]:
    """The four readings of "so much better" from the best evidence there is: judged passes, else checks; and votes."""
    known: dict[str, int] = {}
    changes = scored.get("judge", {}).get("changes") or scored.get("instructions", {}).get("changes") or {}
    for change in list(changes.values())[:1]:
        both = change["both"]
        known |= {"before": both + change["lost"], "after": both + change["gained"], "n": change["n"], "both": both}
    pairwise = scored.get("judge", {}).get("pairwise")
    if pairwise and pairwise["scored"]:
        ties = pairwise["scored"] - pairwise["win"] - pairwise["loss"]
        known |= {"wins": pairwise["win"], "ties": ties, "losses": pairwise["loss"]}
    elif votes := scored.get("votes"):
        known |= {f"{name}s" if name != "loss" else "losses": votes["results"][name] for name in ("win", "tie", "loss")}
    return claim_card(**known) if known.get("n", 1) and known else {}
