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
    """Each arm against the first, by prompt: passes, difference, relative gain, McNemar's exact test.

    A prompt passes by most of its verdicts; one without any, or with as many on either side, is left out, of both arms.
    """
    (_, first), *others = passed.items()
    changes = {}
    for arm, second in others:
        rows = [(_most(one), _most(other)) for one, other in zip(first, second, strict=True)]
        kept = [(one, other) for one, other in rows if one is not None and other is not None]
        if not kept:
            continue
        before, after = ([[side] for side in sides] for sides in zip(*kept, strict=True))
        pairs = Counter(kept)
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


def _most(verdicts: Sequence[float]) -> float | None:
    mean = sum(verdicts) / len(verdicts) if verdicts else 0.5
    return None if mean == 0.5 else float(mean > 0.5)


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


def reviewed(folder: Path, answers: Answers, kept: Answers) -> tuple[dict[str, Any], list[Row], list[Row]]:
    """What judge and raters said of the first two arms, alone and together, {} where neither has been asked; and the
    verdicts and votes themselves. `kept` are those of the `answers` that every arm has given: only they count.

    A prompt has one voice, the mean of its judges, and one of its raters; its chance in an interval is one, too.
    """
    arms = list(answers)[:2]
    ids = [row["id"] for row in kept[arms[0]]]
    verdicts = _verdicts(folder / "judge/verdicts.jsonl", {arm: answers[arm] for arm in arms}, ids)
    votes, stale = _votes(folder, arms, ids)
    found: dict[str, Any] = {}
    human = [_mean([WORDS[vote["vote"]] for vote in votes if vote["id"] == id_]) for id_ in ids]
    ai: list[float | None] = [None] * len(ids)
    if verdicts:
        given = judge.scores(verdicts)
        by_id = {row["id"]: _mean(each) for row, each in zip(verdicts, given["pairwise"], strict=True)}
        ai = [by_id.get(id_) for id_ in ids]
        models = {arm: str(answers[arm][0].get("model") or "") for arm in arms}
        found["judge"] = judge.summarise(verdicts, models)
        found["judge"]["win_rate"] = win_rate(_voices(ai))
        found["judge"]["by_prompt"] = _sides(ai)
        found["judge"]["changes"] = _changes(
            {arm: given[name] for arm, name in zip(arms, ("first", "second"), strict=True)}
        )
    if votes or stale:
        found["votes"] = _voted(votes, ids) | {"win_rate": win_rate(_voices(human)), "by_prompt": _sides(human)}
        found["votes"]["on_other_answers"] = stale
    if verdicts and votes:
        found["joint"] = prediction_powered(ai, human)
        found["joint"] |= {"ai": found["judge"]["win_rate"], "human": found["votes"]["win_rate"]}
        labels = [_side(a) for a in ai], [_side(h) for h in human]
        found["joint"]["agreement"] = agreement(list(zip(*labels, strict=True)))
    return found, verdicts, votes


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None


def _voices(scores: Sequence[float | None]) -> list[list[float]]:
    return [[] if score is None else [score] for score in scores]


def _sides(scores: Sequence[float | None]) -> dict[str, int]:
    counts = Counter(map(_side, scores))
    return {name: counts[name] for name in ("win", "tie", "loss")}


def _verdicts(path: Path, answers: Answers, ids: Sequence[str]) -> list[Row]:
    """The verdicts on `ids`, in their order; UserError where they are of other arms or answers, or no verdicts."""
    if not path.exists():
        return []
    hashes = {pair.id: pair.hash for pair in judge.paired(answers)}
    rows = {row["id"]: row for row in (judge.check_row(row, place) for place, row in read_rows(str(path)))}
    if other := next((row["arms"] for row in rows.values() if row["arms"] != list(answers)), None):
        raise UserError(
            f"{path}: verdicts on {' and '.join(other)}, but {' and '.join(answers)} are compared first; "
            f"judge these (arms=[{','.join(answers)}]), or move the file away"
        )
    if any(hashes.get(id_) != row["answers"] for id_, row in rows.items()):
        raise UserError(f"{path}: verdicts on other answers than those that are there; run the judge again")
    return [rows[id_] for id_ in ids if id_ in rows]


def _votes(folder: Path, arms: Sequence[str], ids: Sequence[str]) -> tuple[list[Row], int]:
    """The votes on `ids`, and how many were given on other answers or on failed ones."""
    path = folder / "votes.jsonl"
    if not path.exists():
        return [], 0
    keys = {pair.id: pair.key for pair in review.read_pairs(str(folder), arms) if pair.id in set(ids)}
    votes = review.read_votes(path, keys)
    return votes, len(review.read_votes(path)) - len(votes)


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
    """The four readings of "so much better", each prompt counted once, from the best evidence there is: passes by the
    judge, else by the checks; wins by the judge, else by the raters. `passed_by` and `won_by` say which, of `arm`."""
    known: dict[str, int] = {}
    told: dict[str, str] = {}
    for basis in ("judge", "instructions"):
        for arm, change in list((scored.get(basis, {}).get("changes") or {}).items())[:1]:
            both = change["both"]
            known |= {"before": both + change["lost"], "after": both + change["gained"], "n": change["n"], "both": both}
            told |= {"passed_by": {"judge": "judge", "instructions": "checks"}[basis], "arm": arm}
        if known:
            break
    for basis in ("judge", "votes"):
        counts = scored.get(basis, {}).get("by_prompt", {})
        if sum(counts.values()):
            known |= {"wins": counts["win"], "ties": counts["tie"], "losses": counts["loss"]}
            told["won_by"] = {"judge": "judge", "votes": "raters"}[basis]
            break
    return claim_card(**known) | told if known else {}
