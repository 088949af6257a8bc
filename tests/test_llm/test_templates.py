"""Prompt templates: found by name, filled in strictly, data behind the fence alone, known by version."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import LLMConfig, Prompt, TemplateError, Templates, Trusted, get_llm_client
from llm.compiled import MAX_CHARACTERS
from llm.events import CallEvent, CallFinished
from llm.fence import fenced
from llm.sandbox import MAX_STEPS
from llm.templates import MAX_BYTES
from llm.untrusted import Untrusted, unwrapped, wrapped

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a template into a folder below the test's own."""

    def written(name: str, text: str, folder: str = "prompts") -> Path:
        path = tmp_path / folder / f"{name}.j2"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return written


@pytest.fixture
def templates(tmp_path: Path) -> Templates:
    return Templates(tmp_path / "own", tmp_path / "prompts", owner="pantry")


class TestFilling:
    def test_a_template_without_blocks_is_what_the_user_asks(
        self, write: Write, templates: Templates
    ) -> None:
        write("dish", "\nWhich dish?\n\n{{ item | untrusted }}\n")
        prompt = templates.render("dish", {"item": "tomatoes"})
        assert (prompt.system, prompt.user) == (None, f"Which dish?\n\n{fenced({'item': 'tomatoes'})}")
        assert [message.role for message in prompt.messages()] == ["user"]

    def test_blocks_are_the_system_prompt_and_the_question(self, write: Write, templates: Templates) -> None:
        write(
            "dish",
            "{# why #}\n{% block system %}\nYou cook.\n{% endblock %}\n"
            "{% block user %}Which?{% endblock %}\n",
        )
        prompt = templates.render("dish", {})
        assert (prompt.system, prompt.user) == ("You cook.", "Which?")
        assert [(m.role, m.content) for m in prompt.messages()] == [
            ("system", "You cook."),
            ("user", "Which?"),
        ]

    def test_lines_of_statements_leave_no_empty_lines(self, write: Write, templates: Templates) -> None:
        write(
            "dish",
            "Choose:\n{% for dish in dishes %}\n  {% if loop.first %}\nfirst\n  {% endif %}\n"
            "{{ loop.index }}\n{% endfor %}\nEnd",
        )
        assert templates.render("dish", {"dishes": ["a", "b"]}).user == "Choose:\nfirst\n1\n2\nEnd"

    def test_several_pieces_stand_behind_one_rule_and_one_mark(
        self, write: Write, templates: Templates
    ) -> None:
        write("pair", '{{ {"offered item": offer, "needed item": need} | untrusted }}')
        prompt = templates.render("pair", {"offer": "limes", "need": "lemons"})
        assert prompt.user == fenced({"offered item": "limes", "needed item": "lemons"})

    def test_a_fence_can_be_named_and_shortened(self, write: Write, templates: Templates) -> None:
        write("mail", '{{ mail | untrusted("the mail", limit=5) }}')
        assert templates.render("mail", {"mail": "tom\x1batoes"}).user == fenced({"the mail": "tomatoes"}, 5)

    def test_the_fence_has_two_names_and_is_one(self, write: Write, templates: Templates) -> None:
        write("one", "{{ mail | untrusted }}")
        write("other", "{{ mail | fenced }}")
        one, other = (templates.render(name, {"mail": "hello"}).user for name in ("one", "other"))
        assert one == other == fenced({"mail": "hello"})

    def test_lists_and_mappings_stand_in_the_fence_as_json(self, write: Write, templates: Templates) -> None:
        write("rows", "{{ rows | untrusted }}")
        rows = [{"item": "jamón", "kg": 2}, {"item": "leeks", "kg": None}]
        assert templates.render("rows", {"rows": rows}).user == fenced({"data": rows})

    def test_a_list_may_be_turned_round_before_it_is_fenced(self, write: Write, templates: Templates) -> None:
        write("rows", "{{ rows | reverse | untrusted('rows') }}")
        assert templates.render("rows", {"rows": ["a", "b"]}).user == fenced({"rows": ["b", "a"]})

    def test_a_part_may_be_included_twice(self, write: Write, templates: Templates) -> None:
        write("twice", "{% include '_part' %} {% include '_part' %}")
        write("_part", "{{ n - 1 }}")
        assert templates.render("twice", {"n": 3}).user == "2 2"
        assert templates.get("twice").variables.bare == {"n"}

    def test_numbers_moments_and_trusted_texts_are_printed_as_they_are(
        self, write: Write, templates: Templates
    ) -> None:
        write("mix", "{{ n + 1 }} {{ half }} {{ price }} {{ day }} {{ language | upper }}")
        values = {
            "n": 2,
            "half": 0.5,
            "price": Decimal("1.20"),
            "day": date(2026, 5, 20),
            "language": Trusted("es"),
        }
        assert templates.render("mix", values).user == "3 0.5 1.20 2026-05-20 ES"

    def test_data_can_be_looked_at_without_being_printed(self, write: Write, templates: Templates) -> None:
        write(
            "look",
            '{% if kind == "tool" and "saw" in item and item | length > 2 %}'
            "A tool.{% else %}Food.{% endif %}",
        )
        assert templates.render("look", {"kind": "tool", "item": "a saw"}).user == "A tool."
        assert templates.render("look", {"kind": "food", "item": "a saw"}).user == "Food."

    def test_an_entry_is_never_a_method(self, write: Write, templates: Templates) -> None:
        write("row", "{{ row.items | untrusted }}")
        assert "three" in templates.render("row", {"row": {"items": "three"}}).user
        with pytest.raises(TemplateError, match=r"row\.j2, line 1: there is no entry 'items'"):
            templates.render("row", {"row": {"keys": 1}})

    def test_what_may_be_missing_may_be_asked_for(self, write: Write, templates: Templates) -> None:
        write(
            "maybe",
            'Which?{% if notes is defined %} {{ notes | untrusted }}{% endif %} {{ n | default("no") }}',
        )
        assert templates.render("maybe", {}).user == "Which? no"
        assert "late" in templates.render("maybe", {"notes": "late", "n": 3}).user

    def test_a_part_is_included_and_sees_the_loop_it_stands_in(
        self, write: Write, templates: Templates
    ) -> None:
        write("list", "{% for row in rows %}\n{{ loop.index }}: {% include '_row' %}\n{% endfor %}\n")
        write("_row", "{{ row.kg }} kg\n\n")
        assert templates.render("list", {"rows": [{"kg": 1}, {"kg": 2}]}).user == "1: 1 kg\n2: 2 kg"

    async def test_a_client_is_asked_with_a_prompt_and_its_observers_hear_of_the_template(
        self, write: Write, templates: Templates
    ) -> None:
        await asyncio.to_thread(
            write, "dish", "{% block system %}S{% endblock %}{% block user %}Q{% endblock %}"
        )
        prompt = await asyncio.to_thread(templates.render, "dish", {})
        events: list[CallEvent] = []
        config = LLMConfig(backend="mock", enable_cache=False)
        async with get_llm_client(config, observers=[events.append]) as client:
            await client.chat(prompt.messages(), template=prompt.template)
        assert [e.template for e in events if isinstance(e, CallFinished)] == [
            f"pantry/dish@{prompt.version}"
        ]


class TestTheFence:
    """What strangers wrote reaches a prompt through the filter, or not at all."""

    @pytest.mark.parametrize(
        "text",
        [
            "{{ item }}",
            "{{ item | upper }}",
            "{{ item | trim | title }}",
            "{{ [item] | first }}",
            '{{ [item, item] | join(", ") }}',
            "{{ nothing | default(item) }}",
            '{{ item if item else "" }}',
            "{{ row.item }}",
            '{{ row["item"] }}',
            "{% for each in rows %}{{ each }}{% endfor %}",
            "{% for key, value in row | items %}{{ key }}{% endfor %}",
            "{% for key in row %}{{ key }}{% endfor %}",
            "{{ rows }}",
            "{{ row }}",
            "{{ (rows | list) }}",
            "{{ rows | last }}",
            '{{ item + "" }}',
            '{{ "%s" % item }}',
            '{{ "" ~ item }}',
            "{{ item[0] }}",
            "{{ (item | untrusted)[140:] }}",
            "{{ (item | untrusted)[140] }}",
            "{{ item.format() }}",
            "{{ item | max }}",
            "{{ {item: 1} }}",
            '{{ "x" | default(item, true) }}{{ item }}',
        ],
    )
    def test_data_that_is_printed_past_the_filter_is_an_error(
        self, write: Write, templates: Templates, text: str
    ) -> None:
        write("bare", text)
        values = {"item": "SECRET", "row": {"item": "SECRET", "SECRET": 1}, "rows": ["SECRET"]}
        with pytest.raises(TemplateError, match=r"bare\.j2, line 1: ") as caught:
            templates.render("bare", values)
        assert "SECRET" not in str(caught.value)

    def test_the_error_says_which_line_which_variable_and_what_to_write(
        self, write: Write, templates: Templates
    ) -> None:
        path = write("bare", "Which?\n\n{{ rows[1].title }}\n{{ row.title }}")
        with pytest.raises(TemplateError) as caught:
            templates.render("bare", {"rows": [{"title": 1}, {"title": "x"}], "row": {}})
        assert str(caught.value) == (
            f"{path}, line 3: 'rows[1].title' is data, which is printed with the filter: "
            "{{ rows[1].title | untrusted }}"
        )

    @given(st.text())
    def test_whatever_the_text_it_comes_out_fenced(self, text: str) -> None:
        assert unwrapped(wrapped({"a": [text, {"b": text}]}, "x")) == {"a": [text, {"b": text}]}

    @given(st.text(min_size=1))
    def test_a_wrapped_text_never_shows_itself(self, text: str) -> None:
        untrusted = Untrusted(text, "item")
        assert repr(untrusted) == f"<Untrusted 'item', {len(text)} characters>"
        with pytest.raises(TemplateError, match="'item' is data"):
            str(untrusted)
        with pytest.raises(TemplateError):
            f"{untrusted}"
        assert untrusted == text
        assert {untrusted: 1}[text] == 1
        assert text in untrusted

    def test_a_trusted_text_inside_data_stays_trusted(self) -> None:
        found = wrapped({"language": Trusted("Spanish"), "mail": "hola"}, "x")
        assert type(found["language"]) is str
        assert isinstance(found["mail"], Untrusted)

    @pytest.mark.parametrize("value", [object(), b"bytes", Path("x"), {"a": [object()]}])
    def test_a_value_that_could_hide_a_text_is_refused(
        self, write: Write, templates: Templates, value: object
    ) -> None:
        write("any", "{{ value | untrusted }}")
        with pytest.raises(TemplateError, match=r"'value.*' is a .*; a prompt template takes texts, numbers"):
            templates.render("any", {"value": value})

    def test_a_value_that_contains_itself_is_refused(self, write: Write, templates: Templates) -> None:
        write("any", "{{ value | untrusted }}")
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(TemplateError, match="'value' is nested too deeply"):
            templates.render("any", {"value": circle})


class TestStrictness:
    def test_a_missing_variable_is_named_with_file_and_line(self, write: Write, templates: Templates) -> None:
        path = write("dish", "{% block user %}\nWhich dish?\n{{ itme | untrusted }}\n{% endblock %}")
        with pytest.raises(TemplateError) as caught:
            templates.render("dish", {"item": "x"})
        assert str(caught.value) == f"{path}, line 3: the variable 'itme' was not given"
        assert caught.value.code == "template"

    def test_a_missing_variable_of_a_part_is_named_with_the_parts_file(
        self, write: Write, templates: Templates
    ) -> None:
        write("dish", 'Which?\n{% include "_more" %}')
        path = write("_more", "\n\n{{ missing }}")
        with pytest.raises(TemplateError, match=f"^{re.escape(str(path))}, line 3: the variable 'missing'"):
            templates.render("dish", {})

    @pytest.mark.parametrize("name", ["a b", "1st", "_private", "offered-item", ""])
    def test_a_variable_that_no_template_could_name_is_refused(
        self, write: Write, templates: Templates, name: str
    ) -> None:
        write("dish", "Which?")
        with pytest.raises(TemplateError, match="cannot name a variable"):
            templates.render("dish", {name: "x"})

    @pytest.mark.parametrize(
        ("text", "line", "said"),
        [
            ("Which\n{{ item", 2, "unexpected end of template"),
            ("{% if x %}", 1, "Unexpected end of template"),
            ("\n{% macro f() %}{% endmacro %}", 2, "a prompt template has no macro"),
            ("{% set x = 1 %}", 1, "a prompt template has no assign"),
            ("{% extends 'x' %}", 1, "a prompt template has no extends"),
            ("{% from 'x' import y %}", 1, "a prompt template has no fromimport"),
            ("{{ a ~ b }}", 1, "a prompt template has no concat"),
            ("{{ 2 ** 9 }}", 1, "a prompt template has no pow"),
            ("{{ ''.join([]) }}", 1, "nothing can be called but range()"),
            ("{{ self.user() }}", 1, "nothing can be called but range()"),
            ("{{ range(*[1]) }}", 1, "nothing can be called but range()"),
            ("{{ x | tojson }}", 1, "there is no filter 'tojson'"),
            ("\n{{ 1 is nosuch }}", 2, "No test named 'nosuch'"),
            (
                "{% block user %}x{% endblock %}\n{% block user %}{% endblock %}",
                2,
                "block 'user' defined twice",
            ),
            ("{{ x | _counted }}", 1, "there is no filter '_counted'"),
            ("{{ _steps }}", 1, "names that begin with _"),
            ("{% for x in xs recursive %}{% endfor %}", 1, "a loop cannot be recursive"),
            ("{% include x %}", 1, "an include names one part"),
            ("{% include 'x' ignore missing %}", 1, "an include names one part"),
            ("{% include 'x' without context %}", 1, "an include names one part"),
            ("{% include '../../secret' %}", 1, "cannot be the name of a prompt template"),
            ("\n{% include 'nowhere' %}", 2, "there is no prompt template 'pantry/nowhere'"),
            ("{% include 'bad' %}", 1, "it includes itself, by bad > bad"),
            ("x{% block user %}{% endblock %}", 1, "nothing outside of them"),
            (
                "{% block user %}{% endblock %}\n{% block assistant %}{% endblock %}",
                2,
                "nothing outside of them",
            ),
            (
                "{% block user %}\n{% block system %}{% endblock %}{% endblock %}",
                2,
                "nothing outside of them",
            ),
            ("{% if x %}{% block user %}{% endblock %}{% endif %}", 1, "nothing outside of them"),
        ],
    )
    def test_what_a_prompt_template_cannot_hold_is_refused_with_its_line(
        self, write: Write, templates: Templates, text: str, line: int, said: str
    ) -> None:
        path = write("bad", text)
        with pytest.raises(TemplateError) as caught:
            templates.get("bad")
        assert str(caught.value).startswith(f"{path}, line {line}: ")
        assert said in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{% block system %}x{% endblock %}", "it has a block `system` but no block `user`"),
            ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "it is nested too deeply"),
            ("{% for x in [1] %}" * 25 + "{% endfor %}" * 25, "it is nested too deeply"),
        ],
    )
    def test_a_template_that_cannot_be_used_as_a_whole_is_refused(
        self, write: Write, templates: Templates, text: str, said: str
    ) -> None:
        path = write("bad", text)
        with pytest.raises(TemplateError, match=f"^{re.escape(str(path))}: {re.escape(said)}"):
            templates.get("bad")

    def test_what_is_included_has_no_blocks(self, write: Write, templates: Templates) -> None:
        write("whole", "{% include '_part' %}")
        write("_part", "{% block user %}x{% endblock %}")
        with pytest.raises(TemplateError, match="what is included has no blocks of its own"):
            templates.get("whole")

    @pytest.mark.parametrize(
        "text",
        [
            "{{ ''.__class__ }}",
            "{{ range.__globals__ }}",
            "{{ n.__class__.__mro__ }}",
            "{{ n['real'] }}",
            "{% for x in [1] %}{{ loop.__class__ }}{% endfor %}",
            "{% for x in [1] %}{{ loop._iterator }}{% endfor %}",
            "{{ range }}",
            "{{ rows.append }}",
        ],
    )
    def test_the_inside_of_python_is_out_of_reach(
        self, write: Write, templates: Templates, text: str
    ) -> None:
        write("bad", text)
        with pytest.raises(TemplateError):
            templates.render("bad", {"n": 1, "rows": [1]})

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{{ 1 / 0 }}", "division by zero"),
            ("{{ 'a' * 9 }}", "* is for numbers"),
            ("{{ [1] * 9 }}", "* is for numbers"),
            ("{{ yes }}", "a bool cannot be printed"),
            ("{{ none }}", "nothing cannot be printed"),
            ("{% for x in 3 %}{% endfor %}", "not iterable"),
            ("{% for x in 'abc' %}{% endfor %}", "not over the letters of a text"),
            ("{{ 'x' | untrusted(limit='y') }}", "not supported"),
        ],
    )
    def test_what_fails_while_it_is_filled_in_is_told_with_its_line(
        self, write: Write, templates: Templates, text: str, said: str
    ) -> None:
        path = write("bad", f"Which?\n{text}")
        with pytest.raises(TemplateError) as caught:
            templates.render("bad", {"yes": True})
        assert str(caught.value).startswith(f"{path}, line 2: ")
        assert said in str(caught.value)

    def test_a_question_without_text_is_none(self, write: Write, templates: Templates) -> None:
        path = write("dish", "{% block user %}{% if x is defined %}Which?{% endif %}{% endblock %}")
        with pytest.raises(TemplateError, match=f"^{re.escape(str(path))}: nothing is asked"):
            templates.render("dish", {})


FRAGMENTS = (
    *(
        "{{ item | untrusted }}",
        "{{ item }}",
        "{{ n }}",
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "item",
        "n",
        "rows",
    ),
    *(
        "{% for x in rows %}",
        "{% endfor %}",
        "{% if item %}",
        "{% else %}",
        "{% endif %}",
        "{{ x | untrusted }}",
    ),
    *(
        "{% block user %}",
        "{% block system %}",
        "{% endblock %}",
        "{% include '_part' %}",
        " is ",
        " | ",
        "(",
        ")",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        "'",
        '"',
        ".",
        ",",
        ":",
        "\n",
        " ",
        "range",
        "loop",
        "_",
        "1",
        "+",
        "*",
        "defined",
        "-",
    ),
    *(
        "raw",
        "endraw",
        "not ",
        " in ",
        "if ",
        "else ",
        "untrusted",
        "join",
        "{% raw %}",
        "{% endraw %}",
        "\x00",
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_whatever_stands_in_a_file_it_is_a_prompt_or_a_template_error_and_data_stays_fenced(
    text: str,
) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "any.j2").write_text(text, encoding="utf-8")
        (Path(folder) / "_part.j2").write_text("part", encoding="utf-8")
        try:
            prompt = Templates(Path(folder)).render("any", {"item": "DATA", "n": 1, "rows": ["DATA"]})
            said = f"{prompt.system} {prompt.user}"
        except TemplateError as error:
            said = str(error)
    outside = re.sub(r"<data-([0-9a-f]{8}) .*?</data-\1>", "", said, flags=re.DOTALL)
    assert "DATA" not in outside


class TestLimits:
    def test_loops_inside_loops_come_to_an_end(self, write: Write, templates: Templates) -> None:
        loop = "{% for x in range(5000) %}"
        write("loop", f"{loop * 4}{'{% endfor %}' * 4}")
        with pytest.raises(
            TemplateError, match=rf"loop\.j2, line 1: its loops take more than {MAX_STEPS:,} turns"
        ):
            templates.render("loop", {})

    def test_the_loops_of_parts_count_too(self, write: Write, templates: Templates) -> None:
        write("loop", "{% for x in range(200) %}{% include '_loop' %}{% endfor %}")
        write("_loop", "{% for x in range(200) %}{% endfor %}")
        with pytest.raises(TemplateError, match="its loops take more than"):
            templates.render("loop", {})

    def test_each_rendering_has_turns_of_its_own(self, write: Write, templates: Templates) -> None:
        write("loop", f"{{% for x in range({MAX_STEPS}) %}}{{% endfor %}}done")
        assert [templates.render("loop", {}).user for _ in range(3)] == ["done"] * 3

    def test_a_range_without_end_is_refused(self, write: Write, templates: Templates) -> None:
        write("range", f"{{% for x in range({MAX_STEPS + 1}) %}}{{% endfor %}}")
        with pytest.raises(TemplateError, match="a range has at most 10,000 numbers"):
            templates.render("range", {})

    def test_a_prompt_of_any_length_is_refused(self, write: Write, templates: Templates) -> None:
        write("long", "{% for x in range(5000) %}" + "word " * 10 + "{% endfor %}")
        with pytest.raises(TemplateError, match=f"it makes more than {MAX_CHARACTERS:,} characters"):
            templates.render("long", {})

    def test_a_file_of_any_length_is_refused(self, write: Write, templates: Templates) -> None:
        write("long", "x" * (MAX_BYTES + 1))
        with pytest.raises(TemplateError, match="has more than 65,536 bytes"):
            templates.get("long")
        write("long", "x" * MAX_BYTES)
        assert templates.render("long", {}).user == "x" * MAX_BYTES


class TestFiles:
    def test_the_first_folder_that_has_a_name_wins(self, write: Write, templates: Templates) -> None:
        write("dish", "shipped")
        write("other", "shipped")
        own = write("dish", "own", "own")
        assert (templates.render("dish", {}).user, templates.render("other", {}).user) == ("own", "shipped")
        assert templates.path("dish") == templates.get("dish").path == own
        assert templates.names() == ("dish", "other")

    def test_a_part_of_the_first_folder_wins_too(self, write: Write, templates: Templates) -> None:
        write("dish", '{% include "_rules" %}')
        write("_rules", "shipped")
        before = templates.render("dish", {})
        write("_rules", "own", "own")
        after = templates.render("dish", {})
        assert (before.user, after.user) == ("shipped", "own")
        assert before.version != after.version

    def test_parts_and_files_of_other_names_are_not_listed(self, write: Write, templates: Templates) -> None:
        for name in ("dish", "_part", "Dish", "a.b", "x" * 65):
            write(name, "x")
        write("readme", "x").rename(templates.folders[1] / "readme.txt")
        assert templates.names() == ("dish",)

    def test_folders_that_do_not_exist_hold_nothing(self, tmp_path: Path) -> None:
        templates = Templates(tmp_path / "nowhere")
        assert templates.names() == ()
        with pytest.raises(
            TemplateError, match=r"there is no prompt template 'dish' in .*nowhere; there are: none"
        ):
            templates.render("dish", {})

    def test_a_folder_that_cannot_be_read_is_named(self) -> None:
        templates = Templates(Path("x" * 300))
        with pytest.raises(TemplateError, match=r"^x{300} cannot be read: File name too long"):
            templates.names()
        with pytest.raises(TemplateError, match=r"^x{300}/dish\.j2 cannot be read: File name too long"):
            templates.render("dish", {})

    def test_a_misspelt_name_gets_the_nearest_one(self, write: Write, templates: Templates) -> None:
        write("dish", "x")
        with pytest.raises(
            TemplateError, match=r"no prompt template 'pantry/dihs' in .*; did you mean 'dish'\?"
        ):
            templates.render("dihs", {})

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", "../dish", "a/b", "/etc/passwd", "dish.j2", "Dish", "a\0b", "a\nb", "é", "x" * 65],
    )
    def test_a_name_never_leads_out_of_the_folders(self, templates: Templates, name: str) -> None:
        with pytest.raises(TemplateError, match="cannot be the name of a prompt template"):
            templates.render(name, {})

    @given(st.text(max_size=80))
    def test_whatever_the_name_it_is_a_template_error(self, name: str) -> None:
        with pytest.raises(TemplateError):
            Templates(Path("nowhere")).render(name, {})

    def test_a_link_is_not_followed(self, write: Write, templates: Templates, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("key")
        link = write("dish", "x")
        link.unlink()
        link.symlink_to(secret)
        with pytest.raises(
            TemplateError, match=r"dish\.j2 cannot be read: it is a link; put the file itself there"
        ):
            templates.render("dish", {})

    def test_a_pipe_or_a_folder_is_no_template(self, write: Write, templates: Templates) -> None:
        pipe = write("pipe", "x")
        pipe.unlink()
        os.mkfifo(pipe)
        (pipe.parent / "folder.j2").mkdir()
        for name in ("pipe", "folder"):
            with pytest.raises(
                TemplateError, match=rf"{name}\.j2 (is no file|cannot be read: Is a directory)"
            ):
                templates.render(name, {})

    def test_a_file_that_is_no_text_is_refused(self, write: Write, templates: Templates) -> None:
        write("dish", "x").write_bytes(b"caf\xe9")
        with pytest.raises(TemplateError, match=r"dish\.j2 is not UTF-8 text: .* at byte 3"):
            templates.render("dish", {})

    def test_a_changed_file_is_noticed_at_the_next_rendering(
        self, write: Write, templates: Templates
    ) -> None:
        path = write("dish", "one {% include '_end' %}")
        part = write("_end", "two")
        first = templates.render("dish", {})
        assert templates.render("dish", {}) == first
        part.write_text("three")
        second = templates.render("dish", {})
        path.write_text("ONE {% include '_end' %}")  # as long as before: its time, or its inode, tells
        os.utime(path, (1, 1))
        third = templates.render("dish", {})
        assert [prompt.user for prompt in (first, second, third)] == ["one two", "one three", "ONE three"]
        assert len({prompt.version for prompt in (first, second, third)}) == 3

    def test_an_unchanged_file_is_compiled_once(self, write: Write, templates: Templates) -> None:
        write("dish", "Which?")
        assert templates._compiled("dish") is templates._compiled("dish")

    def test_a_template_that_was_repaired_works_again(self, write: Write, templates: Templates) -> None:
        path = write("dish", "{{ item")
        with pytest.raises(TemplateError):
            templates.render("dish", {})
        path.write_text("Which?")
        assert templates.render("dish", {}).user == "Which?"
        path.unlink()
        with pytest.raises(TemplateError, match="there is no prompt template"):
            templates.render("dish", {})


class TestVersion:
    def test_it_is_the_hash_of_the_source(self, write: Write, templates: Templates) -> None:
        write("dish", "Which dish?")
        prompt = templates.render("dish", {})
        assert prompt.version == hashlib.sha256(b"11:Which dish?").hexdigest()[:12]
        assert prompt.template == f"pantry/dish@{prompt.version}"
        assert templates.get("dish").version == prompt.version

    def test_it_is_the_same_for_the_same_sources_and_another_for_others(
        self, write: Write, tmp_path: Path
    ) -> None:
        texts = [("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc")]
        versions = set()
        for place, (one, other) in enumerate(texts):
            for copy in ("x", "y"):
                folder = f"{copy}{place}"
                write("dish", f"{one}{{% include '_end' %}}!", folder)
                write("_end", other, folder)
                versions.add(Templates(tmp_path / folder).get("dish").version)
        assert len(versions) == len(texts)

    def test_values_do_not_change_it(self, write: Write, templates: Templates) -> None:
        write("dish", "{{ item | untrusted }}")
        assert len({templates.render("dish", {"item": item}).version for item in ("a", "b")}) == 1

    def test_a_prompt_without_an_owner_is_named_alone(self) -> None:
        assert Prompt(system=None, user="x", name="dish", version="0" * 12).template == "dish@000000000000"


class TestVariables:
    def test_what_a_template_needs_is_known_without_filling_it_in(
        self, write: Write, templates: Templates
    ) -> None:
        write(
            "dish",
            "{{ n }} {{ item | untrusted }} {% for row in rows %}{% include '_row' %}{% endfor %}"
            "{% if notes is defined %}{{ notes | untrusted }}{% endif %}{{ place | default('here') }}",
        )
        write("_row", "{{ row.kg }} {{ unit if row.kg else '' }}")
        found = templates.get("dish")
        assert found.variables.required == {"n", "item", "rows", "unit"}
        assert found.variables.optional == {"notes", "place"}
        assert found.variables.bare == {"n", "unit", "place"}
        assert found.parts == ("_row",)

    def test_what_is_only_looked_at_is_not_printed(self, write: Write, templates: Templates) -> None:
        write(
            "dish", "{{ 'a' if kind == 'tool' else 'b' }} {{ items | length }} {{ {'x': item} | untrusted }}"
        )
        assert templates.get("dish").variables.bare == set()
        assert templates.get("dish").variables.required == {"kind", "items", "item"}


def test_jinja_is_loaded_by_the_first_rendering_and_not_before() -> None:
    code = (
        "import sys, pathlib, tempfile\nfrom llm import Templates, Trusted, Prompt\n"
        "folder = pathlib.Path(tempfile.mkdtemp())\n(folder / 'dish.j2').write_text('Which?')\n"
        "templates = Templates(folder)\ntemplates.names()\nprint('jinja2' in sys.modules)\n"
        "templates.render('dish', {})\nprint('jinja2' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
