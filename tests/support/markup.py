"""Reads a page as a browser does not: strictly. What is wrong with it is a list of sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "link", "img", "br", "hr", "input", "rect"}


@dataclass
class Element:
    """An element with its text and its children."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, white space evened out."""
        return " ".join(" ".join(self.pieces).split())

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """The elements within it, in order; `data_part=""` stands for the attribute data-part."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        found = []
        for child in self.children:
            if tag in ("", child.tag) and wanted.items() <= child.attributes.items():
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str) -> Element:
        """The only such element."""
        (found,) = self.all(tag, **attributes)
        return found


class Reader(HTMLParser):
    """Builds the tree, and notes elements that are not closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("document", {})
        self.open = [self.root]
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.problems.append(f"<{tag}> has an attribute twice")
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if self.open[-1].tag == tag:
            self.open.pop()
        else:
            self.problems.append(f"</{tag}> ends <{self.open[-1].tag}>")

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.pieces.append(data)


def parsed(page: str) -> tuple[Element, list[str]]:
    """The page as a tree, and everything that is wrong with it."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    problems = reader.problems + [f"<{each.tag}> is not closed" for each in reader.open[1:]]
    root = reader.root
    if not page.startswith("<!doctype html>\n"):
        problems.append("there is no doctype at the very beginning")
    return root, [*problems, *_structure(root), *_tables(root), *_safety(root)]


def _structure(root: Element) -> list[str]:
    tags = ("html", "head", "body", "title", "h1", "header", "main", "footer")
    problems = [f"there are {len(root.all(tag))} <{tag}>" for tag in tags if len(root.all(tag)) != 1]
    if not root.one("html").attributes.get("lang"):
        problems.append("no language is named")
    ids = Counter(each.attributes["id"] for each in root.all() if "id" in each.attributes)
    problems += [f"the id {name} is there {count} times" for name, count in ids.items() if count > 1]
    levels = [int(each.tag[1]) for each in root.all() if each.tag in {"h1", "h2", "h3", "h4"}]
    problems += [f"h{a} is followed by h{b}" for a, b in pairwise(levels) if b > a + 1]
    return [*problems, *(problem for each in root.all() for problem in _element(each, ids))]


def _element(each: Element, ids: Container[str]) -> list[str]:
    references = ("aria-labelledby", "aria-describedby", "for")
    named = {name: each.attributes[name] for name in references if name in each.attributes}
    problems = [f"{name}={value} leads nowhere" for name, value in named.items() if value not in ids]
    href = each.attributes.get("href", "")
    if href.startswith("#") and href[1:] not in ids:
        problems.append(f"the link {href} leads nowhere")
    if each.tag in {"a", "h1", "h2", "h3", "th", "summary", "title"} and not each.text:
        problems.append(f"<{each.tag}> is empty")
    if each.tag == "img" and "alt" not in each.attributes:
        problems.append("a picture has no text instead")
    if each.tag in {"nav", "section"} and not {"aria-label", "aria-labelledby"} & each.attributes.keys():
        problems.append(f"a <{each.tag}> has no name")
    return problems


def _tables(root: Element) -> list[str]:
    problems = []
    for table in root.all("table"):
        captions = table.all("caption")
        name = captions[0].text if captions else "without a caption"
        if len(captions) != 1 or not name:
            problems.append("a table has no caption")
        problems += [f"{name}: a <th> has no scope" for th in table.all("th") if "scope" not in th.attributes]
        width = len(table.one("thead").all("th"))
        for row in table.one("tbody").all("tr"):
            cells = [each for each in row.children if each.tag in {"td", "th"}]
            if sum(int(cell.attributes.get("colspan", 1)) for cell in cells) != width:
                problems.append(f"{name}: a row has {len(cells)} of {width} cells")
    return problems


def _safety(root: Element) -> list[str]:
    problems = []
    for each in root.all():
        problems += [f"{name} on <{each.tag}>" for name in each.attributes if name.startswith("on")]
        if "style" in each.attributes or each.tag == "style":
            problems.append(f"a style within the page, at <{each.tag}>")
        if each.tag == "script" and (each.text or not each.attributes.get("src", "").startswith("/static/")):
            problems.append("a script within the page")
        for name in ("src", "href", "action"):
            address = each.attributes.get(name, "/")
            if not address.startswith(("/", "#")) or address.startswith("//"):
                problems.append(f"{name}={address} is not ours")
    return problems
