"""Verdicts and votes on two arms' answers, as pairs for preference training (DPO).

    python -m eval.pairs recipes/medcot_dpo/pairs.yaml

Writes preferences.json to the output folder and registers it as `<dataset>_train` with `ranking: true`; a row:

    {"id": "6b1f…", "system": "", "instruction": "夜里咳嗽三周……", "input": "",
     "chosen": "<think>\\n躺下加重……\\n</think>\\n\\n建议查肺……", "rejected": "<think>\\n……\\n</think>\\n\\n多喝水……"}

A prompt that has votes is decided by more than half of them, another one by more than half of its judges. What is not
decided is left out and counted, and so is a pair of which one answer was cut, is empty or can't be told from its
thought: that text is not what was judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval import review
from eval.judge import RESULTS, VERDICTS, Row, canonical, paired, read_answers, resolve
from preprocess.records import read_rows, text_field
from preprocess.register import entry, locked, registry_text
from preprocess.think import has_tag, join, split
from preprocess.write import JsonFile
from recipe import UserError, main, staged

COLUMNS = {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected", "system": "system"}
Results = dict[str, list[str]]  # by id of a prompt, for the second arm, out of RESULTS


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The keys of pairs.yaml.

    `answers` is the folder of answers-<arm>.jsonl, `verdicts` the file of `eval.judge`, `votes` that of `eval.review`;
    either of these two may be absent.
    """

    answers: str
    output: str
    dataset: str
    arms: list[str] = field(default_factory=lambda: ["base", "tuned"])
    verdicts: str = ""
    votes: str = ""
    dataset_dir: str = "."


def read_results(path: str, hashes: Mapping[str, str]) -> Results:
    """What each judge's verdicts come to; UserError where they were given on other answers than `hashes` has, by id."""
    results: Results = {}
    for place, row in read_rows(path):
        id_ = text_field(row, "id", place)
        if hashes.get(id_, "") != row.get("answers"):
            raise UserError(f"{place}: the verdicts on {id_} were given on other answers; judge these ones first")
        given = row.get("pairwise") or []
        if not all(isinstance(one, dict) and one.get("result") in RESULTS for one in given):
            raise UserError(f"{place}: pairwise: expected a `result` out of {', '.join(RESULTS)}, as eval.judge writes")
        results[id_] = [one["result"] for one in given]
    return results


def results_of(votes: Sequence[Row]) -> Results:
    """What each vote comes to: rows `{"id", "rater", "vote"}`, of VERDICTS, A being the first arm's answer."""
    results: Results = {}
    for vote in votes:
        word = canonical(vote["vote"])
        if not word:
            what = f"vote of {vote['rater']} on {vote['id']}: {vote['vote']!r}"
            raise UserError(f"{what}: expected one of {', '.join(VERDICTS)}")
        results.setdefault(vote["id"], []).append(resolve(word, word))
    return results


def decide(votes: Sequence[str], judged: Sequence[str]) -> str:
    """What more than half of the votes say, where there are any, else of the judges that gave a verdict.

    One of RESULTS, `no_majority`, or `not_judged`.

    >>> decide(["win", "win", "tie"], ["loss"]), decide([], ["win", "tie"]), decide([], ["error", "loss"])
    ('win', 'no_majority', 'loss')
    """
    said = votes or [result for result in judged if result != "error"] or judged
    if not said:
        return "not_judged"
    result, number = Counter(said).most_common(1)[0]
    return result if number > len(said) / 2 else "no_majority"


def spelled(row: Row) -> str:
    """Thought and answer in the one spelling; ValueError where they can't be told apart."""
    parts = split(row["answer"])
    if parts.fault in ("leading", "repeated"):
        raise ValueError(parts.fault)
    return join(row.get("think") or parts.think, parts.answer)


def preferences(arms: Mapping[str, Sequence[Row]], votes: Results, judged: Results) -> tuple[list[Row], dict[str, Any]]:
    """The pairs in the order of the answers, and the counts: prompts = by_votes + by_judges + all that is left out."""
    rows, counts, left_out = [], Counter[str](), Counter[str]()
    for pair, first, second in zip(paired(arms), *arms.values(), strict=True):
        said = votes.get(pair.id, [])
        result, texts = decide(said, judged.get(pair.id, [])), ("", "")
        why = "" if result in ("win", "loss") else result
        why = why or next((answer.empty for answer in pair.answers if answer.empty), "")
        if not why:
            try:
                texts = spelled(first), spelled(second)
                why = "same_text" * (texts[0] == texts[1])
            except ValueError:
                why = "stray_tag"
        if why:
            left_out[why] += 1
            continue
        counts["by_votes" if said else "by_judges"] += 1
        counts["one_thought"] += has_tag(texts[0]) != has_tag(texts[1])
        rejected, chosen = texts if result == "win" else texts[::-1]
        row = {"id": pair.id, "system": first.get("system") or "", "instruction": pair.prompt, "input": ""}
        rows.append(row | {"chosen": chosen, "rejected": rejected})
    known = {name: counts[name] for name in ("by_votes", "by_judges", "one_thought")}
    return rows, {"prompts": len(rows) + left_out.total(), **known, "left_out": dict(sorted(left_out.items()))}


def run(settings: Pairs) -> None:
    """Run pairs.yaml: write the pairs and their entry, both or neither, and print the counts."""
    settings = _with_what_is_there(settings)
    arms = {arm: read_answers(f"{settings.answers}/answers-{arm}.jsonl") for arm in settings.arms}
    judged = read_results(settings.verdicts, {pair.id: pair.hash for pair in paired(arms)}) if settings.verdicts else {}
    votes = read_votes(settings)
    rows, counts = preferences(arms, votes, judged)
    left_out = ", ".join(f"{reason} {number}" for reason, number in counts["left_out"].items()) or "none"
    if not rows:
        what = f"of {counts['prompts']} prompts none is decided with two whole answers"
        raise UserError(f"{settings.answers}: {what} (left out: {left_out}); let more be judged or voted on")
    out, registry = Path(settings.output) / "preferences.json", Path(settings.dataset_dir) / "dataset_info.json"
    ranking = {"file_name": entry(out, settings.dataset_dir)["file_name"], "ranking": True, "columns": COLUMNS}
    with locked(settings.dataset_dir), staged([out, registry]) as files:
        list_ = JsonFile(files[0], brackets=True)
        for row in rows:
            list_.add(row)
        list_.close()
        files[1].write(registry_text({f"{settings.dataset}_train": ranking}, settings.dataset_dir))
    by = f"{counts['by_votes']} by votes, {counts['by_judges']} by judges"
    print(f"{out}: {len(rows)} pairs of {counts['prompts']} prompts, {by}; left out: {left_out}")
    if counts["one_thought"]:
        print(
            f"{counts['one_thought']} pairs have one thought; a reasoning template teaches an empty one for the other"
        )


def _with_what_is_there(settings: Pairs) -> Pairs:
    """The settings without verdicts or votes that are not there yet, which is said; UserError where neither is."""
    there = {name: file for name in ("verdicts", "votes") if (file := getattr(settings, name)) and Path(file).exists()}
    if not there:
        missing = settings.verdicts or "verdicts", settings.votes or "votes"
        raise UserError(f"no {' and no '.join(missing)}: `make judge` or `make review` first")
    for name in {"verdicts", "votes"} - there.keys():
        if file := getattr(settings, name):
            print(f"{file}: not there; without {name}")
    return replace(settings, **{"verdicts": "", "votes": ""} | there)


def read_votes(settings: Pairs) -> Results:
    """The votes on these very answers; how many were given on others is printed."""
    if not settings.votes:
        return {}
    keys = {pair.id: pair.key for pair in review.read_pairs(settings.answers, settings.arms)}
    votes = review.read_votes(settings.votes, keys)
    if other := len(review.read_votes(settings.votes)) - len(votes):
        print(f"{settings.votes}: {other} votes were given on other answers and don't count")
    return results_of(votes)


if __name__ == "__main__":
    main(Pairs, run, __doc__)
