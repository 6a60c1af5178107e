from __future__ import annotations

from chat.budget import Budget, Cost, estimate


def test_what_could_pass_a_cap_is_not_reserved() -> None:
    budget = Budget(max_tokens=1000)
    cost = Cost(100, 400)
    assert not budget.exceeded_by(cost)
    budget.reserve(cost)
    budget.reserve(cost)
    assert budget.exceeded_by(Cost(1, 0)) == "max_total_tokens"
    budget.settle(cost, Cost(90, 10))
    assert budget.spent == [90, 10] and not budget.exceeded_by(Cost(100, 300))
    assert budget.exceeded_by(Cost(100, 301)) == "max_total_tokens"


def test_money_is_counted_by_the_million() -> None:
    budget = Budget(max_usd=1.0, usd_in=0.5, usd_out=2.0)
    assert budget.usd(1_000_000, 500_000) == 1.5
    assert (
        not budget.exceeded_by(Cost(1_000_000, 250_000)) and budget.exceeded_by(Cost(1_000_000, 250_001)) == "max_usd"
    )


def test_time_is_a_cap_too() -> None:
    budget = Budget(max_hours=1.0)
    assert not budget.exceeded_by(Cost(0, 0))
    budget.begun -= 3601
    assert budget.exceeded_by(Cost(0, 0)) == "max_hours"


def test_an_estimate_is_rather_too_high() -> None:
    assert estimate("夜间咳嗽三周") == 6 and estimate("cough at night") == 5 and estimate("") == 0
