"""The names of our packages are ours, and what they promise to hold is there."""

from __future__ import annotations

import ast
import importlib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("llm", "agents", "daemon")


def promised_to_type_checkers(package: str) -> dict[str, str]:
    """Each name that the package's `if TYPE_CHECKING:` block imports, and from where."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [each for block in blocks for each in block.body if isinstance(each, ast.ImportFrom)]
    return {alias.name: str(each.module) for each in imports for alias in each.names}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_the_name_of_a_package_of_ours(package: str) -> None:
    """simonw/llm, openai-agents and python-daemon would overwrite our files, and delete them when they go."""
    owners = {name.lower() for name in metadata.packages_distributions().get(package, [])}
    assert owners <= {"askfirst"}, f"{owners} overwrite our package {package}: pip uninstall them"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_that_the_tests_run_are_those_of_this_checkout(package: str) -> None:
    assert Path(str(importlib.import_module(package).__file__)).parent == ROOT / package


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_where_type_checkers_and_programs_look_for_it(package: str) -> None:
    module = importlib.import_module(package)
    promised = promised_to_type_checkers(package)
    assert sorted(promised) == sorted(module.__all__) == dir(module)
    for name, home in promised.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_that_does_not_exist_is_an_attribute_error_that_names_it(package: str) -> None:
    with pytest.raises(AttributeError, match=f"'{package}'.*'NoSuchName'"):
        importlib.import_module(package).NoSuchName  # noqa: B018 - the access is what is tested
