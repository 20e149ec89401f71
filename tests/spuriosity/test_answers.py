"""Answers of language models, good, bad and hostile, and what of them becomes a template."""

import json

import pytest

from starft_hf.spuriosity.answers import TemplateCheck, UnusableError, parse_answer


GOOD = ["{} in the snow.", "a photo of a striped {class}."]

ANSWERS = {
    "JSON": json.dumps(GOOD),
    "JSON with words around it": f"Sure! Here is the list:\n{json.dumps(GOOD)}\nI hope this helps [1].",
    "fenced JSON": f"Here you are:\n```json\n{json.dumps(GOOD, indent=2)}\n```\nDone.",
    "an object with a list": json.dumps({"aspect": "background", "templates": GOOD}),
    "objects with templates": json.dumps([{"template": item, "why": "seen often"} for item in GOOD]),
    "cut off": json.dumps([*GOOD, "{} on the beach."])[:-8],
    "cut off in an escape": json.dumps([*GOOD, "{} \u00fcber"])[:-9],
    "cut off inside a fence": "```json\n" + json.dumps([*GOOD, "{} on the be"])[:-2],
    "numbers": f"1. {GOOD[0]}\n2) {GOOD[1]}",
    "bullets": f"Backgrounds:\n\n- {GOOD[0]}\n* {GOOD[1]}\n\nTell me if you need more.",
    "quoted lines": f'"{GOOD[0]}",\n"{GOOD[1]}"',
    "thoughts first": f'<think>Maybe ["{{}} at home."]? No.</think>{json.dumps(GOOD)}',
    "other things among the strings": json.dumps([GOOD[0], 7, None, ["{} nested."], {"x": 1}, GOOD[1]]),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_lists_are_found_in_what_was_said(case):
    assert parse_answer(ANSWERS[case]) == GOOD


HOSTILE = {
    "nothing": "",
    "a refusal": "I'm sorry, but I can't help with that.",
    "numbers only": "[1, 2, 3]",
    "an endless thought": "<think>" + "and then " * 50_000,
    "brackets": "[" * 200_000,
    "nested objects": '{"a":' * 100_000,
    "zero bytes": "\0" * 1000,
    "quotes": '"' * 100_001,
    "backslashes": '["' + "\\" * 100_000,
    "fences": "```" * 40_000,
    "bad escapes": r'["\ud800\udfff\uZZZZ"]' * 1000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_answers_give_nothing_that_passes(case):
    check = TemplateCheck(["dog"])
    for item in parse_answer(HOSTILE[case]):
        with pytest.raises(UnusableError):
            check(item)


def test_an_endless_list_is_cut():
    assert len(parse_answer(json.dumps([f"{{}} in room {number}." for number in range(50_000)]))) <= 2000


@pytest.fixture
def check():
    return TemplateCheck(["pony", "water_bird", "dog", "fox"])


@pytest.mark.parametrize(
    ("item", "template"),
    [
        ("{} in the snow.", "{} in the snow."),
        ("  {}   in\n the snow ", "{} in the snow."),
        ('"{} in the snow",', "{} in the snow."),
        ("a photo of a striped {class}", "a photo of a striped {class}."),
        ("In the snow", "{} in the snow."),
        ("covered in moss.", "{} covered in moss."),
        ("{} at a caf\u00e9 in M\u00fcnchen.", "{} at a caf\u00e9 in M\u00fcnchen."),
        ("{} on a child\u2019s bed", "{} on a child's bed."),
        ("{} beside a hot dogwood tree.", "{} beside a hot dogwood tree."),
    ],
)
def test_what_can_be_used_becomes_a_template(check, item, template):
    assert check(item) == template


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("a snowy day", "without exactly one"),
        ("{} and {} in the snow.", "without exactly one"),
        ("{} with a {class}.", "without exactly one"),
        ("{0.__class__} in {} snow", "not plain text"),
        ("{class.__init__} in the snow", "not plain text"),
        ("{{}} in the snow.", "without exactly one"),
        ("{} in the snow; DROP TABLE pools", "not plain text"),
        ("<script>{}</script>", "not plain text"),
        ("{} \u202egnp.exe", "not plain text"),
        ("{} \x1b[2J in the snow", "not plain text"),
        ("{} https://example.org", "not plain text"),
        ("{} " + "very " * 30 + "far away.", "too long"),
        ("{} " + "x" * 5000, "too long"),
        ("{}.", "says nothing"),
        ("{} 1 2 3.", "says nothing"),
        ("{} beside another dog.", "names a class"),
        ("{} with Foxes behind.", "names a class"),
        ("{} near a water bird.", "names a class"),
        ("{} near waterbirds.", "names a class"),
        ("{} near a water-bird.", "names a class"),
        ("{} beside ponies.", "names a class"),
        ("{} taken on a Monday.", "not about appearance"),
        ("{} that smells good.", "not about appearance"),
        ("", "not plain text"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_reason(check, item, reason):
    with pytest.raises(UnusableError, match=reason):
        check(item)


def test_builtin_templates_pass():
    from starft_hf import SpuriosityPool

    check = TemplateCheck(["airliner", "zebra"])
    for template in SpuriosityPool.load("all"):
        assert check(template) == template
