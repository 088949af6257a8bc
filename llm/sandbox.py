"""What a prompt template may do: fill gaps, choose and repeat, within limits.

A template is a text that its owner may copy from anywhere, so it is no program: of jinja2's language only
what a prompt needs is understood, and everything else is refused where it stands, before anything is asked.
This module is imported at the first rendering: jinja2 costs some 40 ms of CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import TemplateRuntimeError
from jinja2.loaders import FunctionLoader
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from llm.fence import MAX_FIELD_CHARACTERS, fenced
from llm.untrusted import Harmless, Untrusted, name_of, unwrapped

MAX_STEPS = 10_000
"""Most turns of all loops of one rendering together, and most numbers of one `range`."""

FENCES = frozenset({"untrusted", "fenced"})
"""The one filter that prints data, under both of its names."""

STEPS = "_steps"
"""The variable that counts turns: names that begin with _ are not for templates."""

_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "first", "items", "join", "last", "length", "list"),
    *("lower", "max", "min", "reverse", "title", "trim", "upper"),
)
_ALLOWED: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Block, nodes.For, nodes.If),
    *(nodes.Filter, nodes.Test, nodes.Keyword, nodes.Name, nodes.Const, nodes.List, nodes.Tuple),
    *(nodes.Dict, nodes.Pair, nodes.Getattr, nodes.Getitem, nodes.CondExpr),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos),
    *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod),
)


class _Missing(StrictUndefined):
    """What was not given, in words for whoever calls or writes the template."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        if self._undefined_obj is missing:
            return f"the variable {self._undefined_name!r} was not given"
        return f"there is no entry {self._undefined_name!r} in what it is asked of"


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2, as far as prompts need it: what is missing is an error, data is printed by the fence alone."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})

    def __init__(self, loader: FunctionLoader) -> None:
        super().__init__(
            loader=loader,
            undefined=_Missing,
            autoescape=False,  # a prompt is no HTML; the fence does here what escaping does there
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            finalize=_printable,
        )
        self.filters = {name: self.filters[name] for name in _FILTERS}
        self.filters |= {**dict.fromkeys(FENCES, _untrusted), "_counted": _counted}
        self.tests = {**self.tests, "string": lambda value: isinstance(value, str | Untrusted)}
        self.globals.clear()
        self.globals["range"] = _range

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in below(tree):
            problem = _problem(node)
            if problem:
                raise TemplateSyntaxError(problem, node.lineno, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return tree.set_environment(self)  # type: ignore[return-value]  # it returns the node that it was given

    def getattr(self, obj: Any, attribute: str) -> Any:
        """An entry of a mapping, or what a loop knows of itself; no attribute of anything else."""
        if isinstance(obj, LoopContext):
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An entry of a mapping or a list, and no piece of a text, which would cut a fence open."""
        try:
            return self.undefined(obj=obj, name=argument) if isinstance(obj, str) else obj[argument]
        except (TypeError, LookupError):
            return self.undefined(obj=obj, name=argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, of numbers alone: it cannot make a text, and so no endless one."""
        if not (isinstance(left, int | float) and isinstance(right, int | float)):
            msg = f"{operator} is for numbers"
            raise TemplateRuntimeError(msg)
        return super().call_binop(context, operator, left, right)


def below(node: nodes.Node) -> Iterator[nodes.Node]:
    """A node and everything inside it."""
    yield node
    for child in node.iter_child_nodes():
        yield from below(child)


def _problem(node: nodes.Node) -> str:  # noqa: PLR0911 - a table of what is refused, with a reason for each
    """Why a template may not hold `node`, empty when it may."""
    match node:
        case nodes.Name(name=name) if name.startswith("_"):
            return f"{name}: names that begin with _ are not for templates"
        case nodes.Call(node=nodes.Name(name="range"), kwargs=[], dyn_args=None, dyn_kwargs=None):
            return ""
        case nodes.Call():
            return "nothing can be called but range(); use a filter, or prepare the value in the agent"
        case nodes.Filter(name=name) if name not in FENCES and name not in _FILTERS:
            return f"there is no filter {name!r}; there are {', '.join(sorted((*_FILTERS, *FENCES)))}"
        case nodes.Include(template=nodes.Const(value=str()), ignore_missing=False, with_context=True):
            return ""
        case nodes.Include():
            return 'an include names one part: {% include "_part" %}'
        case nodes.For(recursive=True):
            return "a loop cannot be recursive"
    return "" if isinstance(node, _ALLOWED) else f"a prompt template has no {type(node).__name__.lower()}"


def _printable(value: Any) -> Any:
    """What an expression may print: text of the template's own, `Trusted` text, numbers and moments."""
    if isinstance(value, Untrusted | Undefined):
        return str(value)  # raises, and says which
    if isinstance(value, str) or (isinstance(value, Harmless) and not isinstance(value, bool)):
        return value
    what = "nothing" if value is None else f"a {type(value).__name__}"
    msg = f"{what} cannot be printed; choose a text with `if`, or print it with the filter `untrusted`"
    raise TemplateRuntimeError(msg)


def _untrusted(value: Any, name: str = "", limit: int = MAX_FIELD_CHARACTERS) -> str:
    """The fence: data as a text that cannot be taken for ours, see `llm.fence.fenced`."""
    if isinstance(value, Undefined):
        return str(value)  # raises, and says which
    plain = unwrapped(value)
    pieces = plain if isinstance(plain, Mapping) and not name else {name or name_of(value): plain}
    return fenced(pieces, limit)


@pass_context
def _counted(context: Context, values: Any) -> Iterator[Any]:
    """The values of a loop, as long as the rendering has turns left."""
    if isinstance(values, str | Untrusted):
        msg = "a loop goes over lists and mappings, not over the letters of a text"
        raise TemplateRuntimeError(msg)
    spend: Callable[[], None] = context[STEPS]
    for value in values:
        spend()
        yield value


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > MAX_STEPS:
        msg = f"a range has at most {MAX_STEPS:,} numbers"
        raise TemplateRuntimeError(msg)
    return numbers


def steps() -> Callable[[], None]:
    """A counter of the turns of one rendering, which ends it when there are too many."""
    left = MAX_STEPS

    def spend() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            msg = f"its loops take more than {MAX_STEPS:,} turns"
            raise TemplateRuntimeError(msg)

    return spend
