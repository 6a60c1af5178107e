"""The claim card against evaluation by hand, and its command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from eval.claim import READINGS, card_lines, claim_card, main
from eval.statistics import sign_test
from recipe import UserError
from tests.conftest import ROOT


def claim(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eval.claim", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )


def percent(reading: dict) -> list[float]:
    return [100 * reading[end] for end in ("value", "low", "high")]


@pytest.mark.parametrize(
    "counts, name, expected",
    [
        # four ways to say 39 %; the ends as a paired bootstrap gives them, to a point
        ({"before": 59, "after": 82, "n": 100, "both": 54}, "relative_gain", [38.98, 19, 65]),
        ({"before": 177, "after": 246, "n": 300, "both": 162}, "relative_gain", [38.98, 27, 53]),
        ({"before": 43, "after": 82, "n": 100, "both": 39}, "absolute_gain", [39, 28, 50]),
        ({"wins": 58, "ties": 23, "losses": 19}, "net_win", [39, 24, 54]),
        ({"wins": 58, "ties": 23, "losses": 19}, "lift", [39, 24, 54]),
    ],
)
def test_the_four_readings_of_39_percent(counts: dict[str, int], name: str, expected: list[float]) -> None:
    reading = claim_card(**counts)["readings"][name]
    assert percent(reading)[0] == pytest.approx(expected[0], abs=0.005)
    assert percent(reading)[1:] == pytest.approx(expected[1:], abs=1.01)
    assert reading["n"] == counts.get("n", 100)
    assert reading["p"][0] == reading["p"][1] < 0.001 and reading["worst"] is None and reading["note"] == ""


def test_all_readings_at_once() -> None:
    card = claim_card(59, 82, 100, 54, 58, 23, 19)
    assert list(card["readings"]) == list(READINGS) and card["headline"] == "relative_gain"
    assert all(reading["value"] is not None for reading in card["readings"].values())
    assert card["readings"]["relative_gain"]["p"] == [sign_test(28, 5)] * 2
    assert card["readings"]["net_win"]["p"] == [sign_test(58, 19)] * 2
    assert card["readings"]["net_win"]["value"] == card["readings"]["lift"]["value"]
    assert card["passed"]["after"]["value"] == 0.82
    assert card == claim_card(59, 82, 100, 54, 58, 23, 19)


def test_what_was_not_given_is_said_not_guessed() -> None:
    passes, votes = claim_card(59, 82, 100), claim_card(wins=58, ties=23, losses=19)
    for card, missing in ((passes, ("net_win", "lift")), (votes, ("relative_gain", "absolute_gain"))):
        for name in missing:
            reading = card["readings"][name]
            assert reading["value"] is reading["low"] is reading["p"] is None and "needs" in reading["note"]
    assert votes["headline"] == "net_win" and votes["passed"] is None


def test_without_the_pairing_the_card_says_what_it_leaves_open() -> None:
    open_, paired, worst = (claim_card(59, 82, 100, both)["readings"]["relative_gain"] for both in (None, 54, 41))
    assert open_["low"] < paired["low"] and paired["high"] < open_["high"]
    assert open_["worst"] == [worst["low"], worst["high"]]
    assert worst["low"] < open_["low"] and open_["high"] < worst["high"]
    assert open_["p"] == [sign_test(23, 0), sign_test(41, 18)]  # 59 and 41 pass both times
    assert "independent" in open_["note"]
    chance = claim_card(50, 60, 100, 30)["readings"]["absolute_gain"]
    assert percent(chance) == percent(claim_card(50, 60, 100)["readings"]["absolute_gain"])
    forced = claim_card(0, 5, 20)["readings"]["absolute_gain"]  # none can pass both times
    assert forced["worst"] is None and forced["note"] == "" and forced["p"][0] == forced["p"][1]


def test_a_relative_gain_without_passes_before() -> None:
    nothing = claim_card(0, 30, 100)["readings"]
    assert nothing["relative_gain"]["value"] is None
    assert "p₀ = 0: relative gain undefined" in nothing["relative_gain"]["note"]
    assert nothing["absolute_gain"]["value"] == pytest.approx(0.3)
    few = claim_card(2, 30, 100, 2)["readings"]["relative_gain"]
    assert few["value"] == 14 and few["low"] is None and "too few" in few["note"]


def test_the_ends_of_the_scale() -> None:
    same = claim_card(50, 50, 100, 50)["readings"]["absolute_gain"]
    assert same["p"] == [1.0, 1.0] and "moved alike" in same["note"]
    assert same["value"] == 0 and same["high"] == -same["low"] == pytest.approx(0.037, abs=1e-3)  # 0 of 100
    won = claim_card(wins=40, ties=0, losses=0)["readings"]["net_win"]
    assert won["value"] == won["high"] == 1 and won["low"] < 0.9
    assert claim_card(300, 300, 300)["readings"]["relative_gain"]["hint"] is None
    hint = claim_card(59, 82, 100, 54)["readings"]["relative_gain"]["hint"]
    assert 100 * hint == pytest.approx(13, abs=1)  # ± of [+27, +53] %


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("159 82 100", "before 159 of 100: expected no more passes than prompts"),
        ("59 101 100", "after 101 of 100: expected no more passes than prompts"),
        ("-5 8 10", "before -5: expected 0 to 100,000"),
        ("0 0 0", "before 0 of 0: expected no more passes than prompts, and one prompt or more"),
        ("1 1 999999999999", "n 999999999999: expected 0 to 100,000"),
        ("59 82", "2 numbers: expected three"),
        ("59 82 百", "'百': expected a whole number"),
        ("59 82 100 --both 5.5", "'5.5': expected a whole number"),
        ("59 82 100 --both 12", "both 12: of 100 prompts, 59 and 82 passed; expected 41 to 59"),
        ("--both 12", "before, after, n: missing"),
        ("--wins 3 --losses 2", "ties: missing; expected wins, ties, losses together"),
        ("--wins 0 --ties 0 --losses 0", "wins, ties and losses are all 0"),
        ("--wins 3 --ties -1 --losses 0", "ties -1: expected 0 to 100,000"),
        ("", "no counts: expected BEFORE AFTER N"),
    ],
)
def test_impossible_counts_are_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["claim", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert message in stopped.value.code and "\n" not in stopped.value.code
    assert capsys.readouterr().out == ""


def test_impossible_counts_are_refused_by_the_function_too() -> None:
    with pytest.raises(UserError, match="before 159 of 100"):
        claim_card(159, 82, 100)


def test_the_command_prints_the_card() -> None:
    done = claim("59", "82", "100", "--both", "54", "--wins", "58", "--ties", "23", "--losses", "19")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == card_lines(claim_card(59, 82, 100, 54, 58, 23, 19))
    assert "相对提升 relative gain (主要 headline) = (p₁ − p₀) / p₀: +38.98 % 95 % [+18.8, +65.6]" in done.stdout
    assert "59 → 82 / 100, n = 100; McNemar 精确检验 exact: p < 0.0001" in done.stdout
    refused = claim("159", "82", "100")
    assert refused.returncode == 1 and refused.stdout == "" and len(refused.stderr.splitlines()) == 1
    narrow = claim("59", "82", "100", PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0 and "relative gain" in narrow.stdout
    assert "python -m eval.claim 59 82 100" in claim("--help").stdout
