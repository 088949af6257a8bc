"""A prompt template as it was read: its files, what it wants to be given, and its blocks to fill in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.loaders import FunctionLoader
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context

from llm.errors import TemplateError
from llm.sandbox import FENCES, STEPS, Sandbox, below, steps

MAX_CHARACTERS = 200_000
"""Most characters of one rendered part: far beyond any prompt that a small model could read."""

PARTS = ("system", "user")
"""The blocks that a template may have: how the model shall behave, and what it is asked."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a template: the template itself, or a part that it includes."""

    name: str
    path: Path
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """What a template wants to be given.

    Attributes:
        required: without these it may fail.
        optional: it asks whether they are there.
        bare: those that it prints without the fence, which works for numbers and `Trusted` texts alone.
    """

    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    bare: frozenset[str] = frozenset()


class Compiled:
    """A template with all that it includes, as it was read at one moment.

    Args:
        name: the template.
        read: gives the source of a name; it is called once for each file.

    Attributes:
        sources: the template's file and those of the parts that it includes, by name.
        variables: what it wants to be given.

    Raises:
        TemplateError: a file is missing, or holds what a prompt template cannot hold.
    """

    def __init__(self, name: str, read: Callable[[str], Source]) -> None:
        self.sources: dict[str, Source] = {}
        self._env = Sandbox(FunctionLoader(self._load))
        trees: dict[str, nodes.Template] = {}
        self._read(name, read, trees, ())
        self._blocks = _blocks(self.sources[name], trees[name])
        try:
            made = {each: self._env.get_template(each) for each in self.sources}
        except TemplateSyntaxError as error:  # found when code is made of it: an unknown test, a second block
            raise self._wrong(error) from error
        except (SyntaxError, RecursionError) as error:  # Python's own: 20 loops inside one another
            msg = f"{self.sources[name].path}: it is nested too deeply"
            raise TemplateError(msg) from error
        self._template = made[name]
        self.variables = _variables(name, trees)

    def _load(self, name: str) -> tuple[str, str, Callable[[], bool]]:
        source = self.sources[name]
        return source.text, str(source.path), lambda: True

    def _read(
        self,
        name: str,
        read: Callable[[str], Source],
        trees: dict[str, nodes.Template],
        within: tuple[str, ...],
    ) -> None:
        if name not in self.sources:
            self.sources[name] = read(name)
        source = self.sources[name]
        if name in within:
            msg = f"it includes itself, by {' > '.join((*within, name))}"
            raise TemplateError(msg)
        if name in trees:
            return
        tree = trees[name] = self._parse(source)
        if within and tree.find(nodes.Block):
            msg = f"{source.path} is included, and what is included has no blocks of its own"
            raise TemplateError(msg)
        for node in tree.find_all(nodes.Include):
            part = str(node.template.as_const())
            try:
                self._read(part, read, trees, (*within, name))
            except TemplateError as error:
                msg = f"{source.path}, line {node.lineno}: {error}"
                raise TemplateError(msg) from error

    def _parse(self, source: Source) -> nodes.Template:
        try:
            return self._env.parse(source.text, source.name, str(source.path))
        except TemplateSyntaxError as error:
            raise self._wrong(error) from error
        except RecursionError as error:
            msg = f"{source.path}: it is nested too deeply"
            raise TemplateError(msg) from error

    def _wrong(self, error: TemplateSyntaxError) -> TemplateError:
        return TemplateError(f"{error.filename}, line {error.lineno}: {error.message}")

    def render(self, variables: Mapping[str, Any]) -> dict[str, str]:
        """The blocks with their gaps filled, without the white space round them.

        Args:
            variables: the values, already wrapped (`llm.untrusted`).

        Raises:
            TemplateError: it cannot be filled in; the message names file, line and variable.
        """
        context = self._template.new_context({**variables, STEPS: steps()})
        try:
            return {name: _joined(self._chunks(name, context)).strip() for name in self._blocks or ("user",)}
        except Exception as error:  # whatever a template stumbles over: a filter's TypeError, a division by 0
            raise self._located(error) from error

    def _chunks(self, name: str, context: Context) -> Iterator[str]:
        make = self._template.blocks[name] if self._blocks else self._template.root_render_func
        return make(context)

    def _located(self, error: Exception) -> TemplateError:
        place = str(next(iter(self.sources.values())).path)
        for frame, line in walk_tb(error.__traceback__):
            template = frame.f_globals.get("__jinja_template__")
            if template is not None:
                place = f"{template.filename}, line {template.get_corresponding_lineno(line)}"
        known = isinstance(error, TemplateError | TemplateRuntimeError)
        return TemplateError(f"{place}: {error}" if known else f"{place}: {type(error).__name__}: {error}")


def _blocks(source: Source, tree: nodes.Template) -> tuple[str, ...]:
    """The blocks of a template in their order, empty when the whole of it is what the user asks."""
    found = [node for node in tree.body if isinstance(node, nodes.Block)]
    names = tuple(block.name for block in found)
    if not names and tree.find(nodes.Block) is None:
        return ()
    inner = [block for block in tree.find_all(nodes.Block) if block not in found]
    outside = [node for node in tree.body if node not in found and not _is_blank(node)]
    wrong = [block for block in found if block.name not in PARTS]
    for node in (*inner, *outside, *wrong):
        msg = (
            f"{source.path}, line {node.lineno}: a template with blocks has a block `user`, perhaps a block "
        )
        raise TemplateError(msg + "`system`, and nothing outside of them")
    if "user" not in names:
        msg = f"{source.path}: it has a block `system` but no block `user`"
        raise TemplateError(msg)
    return names


def _is_blank(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Output) and all(
        isinstance(child, nodes.TemplateData) and not child.data.strip() for child in node.nodes
    )


def _variables(name: str, trees: Mapping[str, nodes.Template]) -> Variables:
    names = (node for tree in trees.values() for node in tree.find_all(nodes.Name))
    loops, wanted = {node.name for node in names if node.ctx == "store"}, set[str]()
    for each, tree in trees.items():
        found = find_undeclared_variables(tree)
        wanted |= found if each == name else found - loops  # a part sees the loops that it stands in
    optional = {asked for tree in trees.values() for asked in _asked_for(tree)} & wanted
    printed = {
        shown
        for tree in trees.values()
        for output in tree.find_all(nodes.Output)
        for child in output.nodes
        for shown in _printed(child)
    }
    return Variables(
        required=frozenset(wanted - optional), optional=frozenset(optional), bare=frozenset(printed & wanted)
    )


def _asked_for(tree: nodes.Template) -> Iterator[str]:
    """Variables whose absence a template provides for."""
    for node in below(tree):
        match node:
            case nodes.Test(node=nodes.Name(name=name), name="defined" | "undefined"):
                yield name
            case nodes.Filter(node=nodes.Name(name=name), name="default" | "d"):
                yield name


def _printed(node: nodes.Node) -> Iterator[str]:
    """Variables whose text an expression prints outside of a fence."""
    match node:
        case nodes.Name(name=name):
            yield name
        case nodes.CondExpr(expr1=one, expr2=other):
            for branch in filter(None, (one, other)):
                yield from _printed(branch)
        case nodes.Filter(name=name) if name in FENCES | {"length", "count"}:
            return
        case nodes.Compare() | nodes.Test() | nodes.Not():
            return
        case _:
            for child in node.iter_child_nodes():
                yield from _printed(child)


def _joined(chunks: Iterable[str]) -> str:
    pieces, size = list[str](), 0
    for chunk in chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > MAX_CHARACTERS:
            msg = f"it makes more than {MAX_CHARACTERS:,} characters"
            raise TemplateRuntimeError(msg)
    return "".join(pieces)
