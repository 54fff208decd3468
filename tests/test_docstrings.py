import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate

import skbsd

DOCS = Path(__file__).parents[1] / "docs"

# Rules of numpydoc that these docstrings need not follow.
NOT_ASKED = {
    "ES01",  # an extended summary: one line may be enough
    "SA01",  # See Also: only if there is a related object
    "RT02",  # no name for a single returned value: scikit-learn names it too
}
# A protocol is not called.
NOT_ASKED_OF_PROTOCOLS = {"PR01"}
# The example of a class shows its methods.
NOT_ASKED_OF_MEMBERS = {"EX01"}


def public_objects():
    """Return the public objects by the name from which users import them."""
    names = [m.name for m in pkgutil.iter_modules(skbsd.__path__, "skbsd.")]
    public = [n for n in names if not n.startswith("skbsd._")]
    found = {f"skbsd.{name}": getattr(skbsd, name) for name in skbsd.__all__}
    for module in map(importlib.import_module, public):
        for name in module.__all__:
            value = getattr(module, name)
            if value is not found.get(f"skbsd.{name}"):  # else handed on
                found[f"{module.__name__}.{name}"] = value
    return found


def members(value):
    """Return the public methods and properties of a class that skbsd defines."""
    kinds = FunctionType | property | classmethod | staticmethod
    return sorted(
        {
            name
            for base in value.__mro__
            if base.__module__.startswith("skbsd.")
            for name, member in vars(base).items()
            if not name.startswith("_") and isinstance(member, kinds)
        }
    )


PUBLIC = public_objects()
CLASSES = {n: v for n, v in PUBLIC.items() if inspect.isclass(v)}
FUNCTIONS = {n: v for n, v in PUBLIC.items() if inspect.isfunction(v)}
MEMBERS = {
    f"{name}.{member}": getattr(value, member)
    for name, value in CLASSES.items()
    for member in members(value)
}
DOCUMENTED = CLASSES | FUNCTIONS | MEMBERS
DATA = sorted(PUBLIC.keys() - DOCUMENTED.keys())  # such as scorers


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_numpydoc_finds_nothing_missing(name):
    not_asked = NOT_ASKED | (NOT_ASKED_OF_MEMBERS if name in MEMBERS else set())
    if getattr(DOCUMENTED[name], "_is_protocol", False):
        not_asked |= NOT_ASKED_OF_PROTOCOLS
    errors = validate(name)["errors"]
    assert not [error for error in errors if error[0] not in not_asked]


@pytest.mark.parametrize(
    "name", sorted(n for n, v in DOCUMENTED.items() if callable(v))
)
def test_defaults_are_those_of_the_signature(name):
    stated = {}
    for names, kind, _ in get_doc_object(DOCUMENTED[name])["Parameters"]:
        default = re.search(r"(?:^|, )(?:default=(.+)|optional)$", kind)
        if default:
            value = eval(default[1] or "None", {"nan": np.nan, "torch": torch})
            stated |= dict.fromkeys(names.split(", "), value)
    parameters = inspect.signature(DOCUMENTED[name]).parameters.values()
    assert stated == {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("name", DATA)
def test_data_is_described_by_its_module(name):
    module, _, name = name.rpartition(".")
    assert f"`{name}`" in importlib.import_module(module).__doc__


@pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no docs")
def test_the_api_pages_list_each_public_name_once():
    pages = "\n".join(page.read_text() for page in sorted(DOCS.glob("api/*.rst")))
    listed, module = [], None
    # An entry of an autosummary is alone on its line.
    for current, entry, data in re.findall(
        r"^\.\. currentmodule:: (\S+)|^ +(\w+)$|^\.\. py:data:: (\w+)", pages, re.M
    ):
        module = current or module
        if not current:
            listed.append(f"{module}.{entry or data}")
    assert sorted(listed) == sorted(PUBLIC)
