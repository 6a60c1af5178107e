"""The claim card: what "+39 %" can mean, with counts, 95 % interval, test and n.

    python -m eval.claim 59 82 100                           59 prompts passed before, 82 after, of 100
    python -m eval.claim 59 82 100 --both 54                 54 of them both times
    python -m eval.claim --wins 58 --ties 23 --losses 19     after against before, pairwise

The same prompts are answered before and after, so how many pass both times decides the width. Without `--both` the
card takes the two sides as independent: careful where the same prompts tend to pass on both sides, as they mostly do,
and still not the worst case, which it prints beside. For 59 and 82 of 100 (intervals by bootstrap over prompts):

    --both 54        +38.98 % [+19, +66]      the two sides agree a little more than by chance
    (without)        +38.98 % [+15, +71]      48 pass both times, as by chance
    --both 41        +38.98 % [+12, +75]      the worst that 59 and 82 of 100 allow

Plain percentiles would be up to a point narrower at n = 100; eval/statistics.py says why they are not used.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from eval.statistics import Interval, difference, half_width, relative_gain, sign_test, wilson, win_rate
from recipe import UserError, one_line_errors

MOST = 100_000
HINT = 300  # prompts, as a first evaluation should have

READINGS = {  # label, formula, unit, what it is computed from
    "relative_gain": (
        "相对提升 relative gain",
        "(p₁ − p₀) / p₀",
        "%",
        "需要前后通过数 needs the passes before and after",
    ),
    "absolute_gain": ("绝对提升 absolute gain", "p₁ − p₀", "pp", "需要前后通过数 needs the passes before and after"),
    "net_win": ("净胜率 net win", "(W − L) / n", "%", "需要胜、平、负数 needs wins, ties and losses"),
    "lift": ("高出五成 lift over 50 %", "2 (W + T/2) / n − 1", "%", "需要胜、平、负数 needs wins, ties and losses"),
}
INDEPENDENT = "未给出两次都通过的题数，按独立计 passes on both sides not given, taken as independent"
ALIKE = "各题变化相同，区间按 0/n 的 Wilson 上限 every prompt moved alike: ends by Wilson's bound of 0 out of n"
ZERO = "p₀ = 0，相对提升无定义 p₀ = 0: relative gain undefined"
RARE = "前测通过太少，区间上端无界 too few passes before: the interval has no upper end"


def claim_card(
    before: int | None = None,
    after: int | None = None,
    n: int | None = None,
    both: int | None = None,
    wins: int | None = None,
    ties: int | None = None,
    losses: int | None = None,
) -> dict[str, Any]:
    """The four readings, from passes (before, after, n, perhaps both), from votes (wins, ties, losses), or from both.

    {"counts": {…}, "passed": {"before": interval, "after": interval} or None, "headline": name of a reading,
    "readings": {name: reading}}; a reading:

        label, formula, unit    unit: % or pp, for display; the numbers themselves are shares, 0.39 for 39 %
        value, low, high        None where not defined or not given
        counts, n               what it was computed from, in words; None where not given
        test, p                 p is [least, most]: twice the same, unless the pairing is not known
        worst                   [low, high] at the worst pairing, where the pairing is not known; else None
        hint                    the ± to expect of 300 prompts, where n is smaller; else None
        note                    what must be known to read it, or why there is no value; else ""

    Raises UserError for counts that can't be.
    """
    given: dict[str, dict[str, Any]] = {}
    passes, votes = {"before": before, "after": after, "n": n}, {"wins": wins, "ties": ties, "losses": losses}
    if _complete(passes | ({} if both is None else {"both": both})):
        given |= _from_passes(before, after, n, both)
    if _complete(votes):
        given |= _from_votes(wins, ties, losses)
    if not given:
        raise UserError(
            "no counts: expected BEFORE AFTER N, or --wins, --ties and --losses, or all of them; see --help"
        )
    return {
        "counts": passes | {"both": both} | votes,
        "passed": None if n is None else {"before": wilson(before, n), "after": wilson(after, n)},
        "headline": next(name for name in READINGS if name in given),
        "readings": {name: _reading(name, given.get(name, {})) for name in READINGS},
    }


def _complete(counts: dict[str, int | None]) -> bool:
    """Whether all counts of a kind are given; UserError where only some are, or one can't be."""
    missing = [name for name, count in counts.items() if count is None]
    if missing and len(missing) < len(counts):
        raise UserError(f"{', '.join(missing)}: missing; expected {', '.join(counts)} together")
    for name, count in counts.items():
        if count is not None and not 0 <= count <= MOST:
            raise UserError(f"{name} {count}: expected 0 to {MOST:,}")
    return not missing


def _reading(name: str, known: dict[str, Any]) -> dict[str, Any]:
    label, formula, unit, needs = READINGS[name]
    empty = dict.fromkeys(("value", "low", "high", "counts", "n", "test", "p", "worst", "hint"))
    return {"label": label, "formula": formula, "unit": unit} | empty | {"note": "" if known else needs} | known


def _from_passes(before: int, after: int, n: int, both: int | None) -> dict[str, dict[str, Any]]:
    for name, count in (("before", before), ("after", after)):
        if not count <= n or not n:
            raise UserError(f"{name} {count} of {n}: expected no more passes than prompts, and one prompt or more")
    least, most = max(0, before + after - n), min(before, after)
    if both is None and least == most:  # no other pairing
        both = least
    if both is not None and not least <= both <= most:
        raise UserError(f"both {both}: of {n} prompts, {before} and {after} passed; expected {least} to {most}")
    paired = _pairing(before, after, n, before * after // n if both is None else both)
    p = [sign_test(after - overlap, before - overlap) for overlap in ((most, least) if both is None else (both, both))]
    known = {"counts": f"{before} → {after} / {n}", "n": n, "test": "McNemar 精确检验 exact", "p": p}
    alike = both is not None and (before == after == both or n in (before - both, after - both))
    result = {}
    for name, figure in (("relative_gain", relative_gain), ("absolute_gain", difference)):
        interval = figure(*paired)
        if interval is None:  # relative_gain alone
            value = (after - before) / before if before else None
            result[name] = known | {"value": value, "note": RARE if before else ZERO}
            continue
        notes = [INDEPENDENT] * (both is None) + [ALIKE] * alike
        result[name] = known | interval | {"hint": _hint(interval, n), "note": "; ".join(notes)}
        if both is None and (extreme := figure(*_pairing(before, after, n, least))):
            result[name]["worst"] = [extreme["low"], extreme["high"]]
    return result


def _hint(interval: Interval, n: int) -> float | None:
    return half_width(interval, n, HINT) if n < HINT else None


def _pairing(before: int, after: int, n: int, both: int) -> tuple[list[list[int]], list[list[int]]]:
    """Scores before and after of n prompts with these counts."""
    lost, gained = before - both, after - both
    neither = n - both - lost - gained
    return (
        [[1]] * both + [[1]] * lost + [[0]] * gained + [[0]] * neither,
        [[1]] * both + [[0]] * lost + [[1]] * gained + [[0]] * neither,
    )


def _from_votes(wins: int, ties: int, losses: int) -> dict[str, dict[str, Any]]:
    n = wins + ties + losses
    if not n:
        raise UserError("wins, ties and losses are all 0; expected one vote or more")
    rate = win_rate([[1.0]] * wins + [[0.5]] * ties + [[0.0]] * losses)
    net = {end: 2 * value - 1 for end, value in rate.items()}
    known = net | {
        "counts": f"{wins} 胜 wins, {ties} 平 ties, {losses} 负 losses",
        "n": n,
        "test": "符号检验 exact sign test",
        "p": [sign_test(wins, losses)] * 2,
        "hint": _hint(net, n),
    }
    return {"net_win": known, "lift": known}


def card_lines(card: dict[str, Any]) -> list[str]:
    """The card for a terminal, two lines or more a reading."""
    lines = []
    if card["passed"]:
        sides = [
            f"{100 * p['value']:.1f} % [{100 * p['low']:.1f}, {100 * p['high']:.1f}]" for p in card["passed"].values()
        ]
        lines.append(f"通过 passed: {' → '.join(sides)}")
    for name, reading in card["readings"].items():
        mark = " (主要 headline)" if name == card["headline"] else ""
        lines.append(f"{reading['label']}{mark} = {reading['formula']}: {_figure(reading)}")
        if reading["n"]:
            lines.append(f"    {reading['counts']}, n = {reading['n']}; {reading['test']}: {_p(*reading['p'])}")
        if reading["worst"]:
            lines.append(f"    最不利的配对 worst pairing: {_ends(*reading['worst'])}")
        if reading["hint"]:
            lines.append(f"    {HINT} 题时约 with {HINT} prompts about ± {100 * reading['hint']:.0f} {reading['unit']}")
        if reading["note"] and reading["value"] is not None:
            lines.append(f"    {reading['note']}")
    return lines


def _figure(reading: dict[str, Any]) -> str:
    if reading["value"] is None:
        return f"— {reading['note']}"
    value = f"{100 * reading['value']:+.2f} {reading['unit']}"
    return value if reading["low"] is None else f"{value} {_ends(reading['low'], reading['high'])}"


def _ends(low: float, high: float) -> str:
    return f"95 % [{100 * low:+.1f}, {100 * high:+.1f}]"


def _p(least: float, most: float) -> str:
    texts = ["p < 0.0001" if p < 1e-4 else f"p = {p:.4f}" for p in (least, most)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} 至 to {texts[1]} (取决于配对 by the pairing)"


def _count(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{text!r}: expected a whole number, as in `59 82 100`") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.claim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("passes", nargs="*", type=_count, metavar="BEFORE AFTER N", help="prompts that passed, and all")
    parser.add_argument("--both", type=_count, metavar="N", help="prompts that passed before and after")
    for name in ("wins", "ties", "losses"):
        parser.add_argument(f"--{name}", type=_count, metavar="N", help=f"{name} of after against before")
    sys.stdout.reconfigure(errors="backslashreplace")
    with one_line_errors():
        given = parser.parse_args()
        if len(given.passes) not in (0, 3):
            raise UserError(f"{len(given.passes)} numbers: expected three, passes before, passes after and prompts")
        before, after, n = given.passes or (None, None, None)
        card = claim_card(before, after, n, given.both, given.wins, given.ties, given.losses)
        print("\n".join(card_lines(card)))


if __name__ == "__main__":
    main()
