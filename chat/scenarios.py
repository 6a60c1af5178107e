"""The scenarios of the assistant, read from a scenarios.yaml: one entry a scenario, its id as the key.

pediatric:
  number: 8
  zh: 儿科咨询
  en: Children's health
  aliases: [pediatrics, 儿科]
  specialty: 儿科学 Paediatrics
  prompt: 你是一名儿科医生助手……            # the system prompt, in training and at work
  keywords: [孩子, 宝宝, child, baby]         # in a question, for assigning it
  questions: [两岁孩子发热38.8℃一天，精神还好，怎么护理？]
  notes: [儿童用药的种类和剂量必须由医生按年龄和体重决定。]

>>> scenarios = read_scenarios("recipes/assistant/scenarios.yaml")
>>> find(scenarios, "pediatrics").id, find(scenarios, 8).id
('pediatric', 'pediatric')
>>> of_question(scenarios, "医生，孩子三岁，发热一天，要紧吗？").id
'pediatric'
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from recipe import UserError, read_yaml

DEFAULT = "diagnosis"  # of a question that holds no keyword


@dataclass(frozen=True)
class Scenario:
    """One entry. Of `keywords` one is enough; `questions` are samples; `notes` say what to be careful with."""

    id: str
    number: int
    zh: str
    en: str
    specialty: str
    prompt: str
    aliases: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Any of the keywords: English ones as whole words, Chinese ones, which have no edges, anywhere."""
        edges = {True: "(?<![a-z]){}(?![a-z])", False: "{}"}
        words = [edges[word.isascii()].format(re.escape(word)) for word in self.keywords]
        return re.compile("|".join(words) or "(?!)", re.IGNORECASE)

    @property
    def names(self) -> set[str]:
        """By what it is found, in lower case."""
        return {name.casefold() for name in (self.id, str(self.number), self.zh, self.en, *self.aliases)}


Scenarios = Mapping[str, Scenario]


def read_scenarios(path: str) -> dict[str, Scenario]:
    """The scenarios of a file by id, in its order. UserError names the line and the id of an entry that is wrong."""
    values, places = read_yaml(path)
    scenarios = {id_: _scenario(id_, entry, f"{places[id_]}: scenario {id_!r}") for id_, entry in values.items()}
    taken: dict[str, str] = {}
    for scenario in scenarios.values():
        for name in sorted(scenario.names):
            if (first := taken.setdefault(name, scenario.id)) != scenario.id:
                place = f"{places[scenario.id]}: scenario {scenario.id!r}"
                raise UserError(f"{place}: {name!r} is a name or number of {first!r} already; give each its own")
    if DEFAULT not in scenarios:
        raise UserError(f"{path}: no scenario {DEFAULT!r}, which takes what no other one does; add it")
    return scenarios


def _scenario(id_: str, entry: Any, place: str) -> Scenario:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", id_):
        raise UserError(f"{place}: expected an id of small letters, digits and _")
    known = [field.name for field in fields(Scenario)][1:]
    required, lists = known[:5], known[5:]
    if not isinstance(entry, dict):
        raise UserError(f"{place}: expected the keys {', '.join(known)}")
    if unknown := [str(key) for key in entry if key not in known]:
        raise UserError(f"{place}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    for key in required:
        wanted, name = (int, "a whole number of 1 or more") if key == "number" else (str, "a text")
        value = entry.get(key)
        if type(value) is not wanted or not (value > 0 if key == "number" else value.strip()):
            raise UserError(f"{place}: {key}: expected {name}, got {value!r}")
    for key in lists:
        value = entry.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
            raise UserError(f"{place}: {key}: expected a list of texts, got {value!r}")
    return Scenario(id_, **entry | {key: tuple(entry.get(key, [])) for key in lists})


def find(scenarios: Scenarios, name: str | int) -> Scenario:
    """The scenario of an id, a number, an alias, or its Chinese or English name; UserError with the list for others."""
    wanted = str(name).strip().casefold()
    for scenario in scenarios.values():
        if wanted in scenario.names:
            return scenario
    listed = ", ".join(f"{one.number} {one.id}" for one in by_number(scenarios))
    raise UserError(f"unknown scenario {name!r}; expected one of {listed}")


def by_number(scenarios: Scenarios) -> list[Scenario]:
    """In the order of a menu."""
    return sorted(scenarios.values(), key=lambda one: one.number)


def of_question(scenarios: Scenarios, text: str) -> Scenario:
    """The last scenario of the file that has a keyword in `text`, else `diagnosis`."""
    return next((one for one in reversed(scenarios.values()) if one.pattern.search(text)), scenarios[DEFAULT])
