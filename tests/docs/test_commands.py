"""The commands on the pages exist, with the flags and the fields of configs that the pages give them."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "notebooks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]  # fmt: skip
COMMAND = re.compile(r"python -m ((?:experiments|benchmarks)[\w.]*\w)([^\n`]*)")
FLAG = re.compile(r"--([\w.]+)(?:=(\"[^\"]*\"|'[^']*'|[^\s)]+))?")
_FOLDER_FIRST = ("configs/record.py", "configs/subspace/folders.py")  # their argument is a folder


def source(module):
    """The file of a module or of a command's `__main__`; None if it is not of this project."""
    path = ROOT / module.replace(".", "/")
    known = (path.with_suffix(".py"), path / "__main__.py", path / "__init__.py")
    return next((file for file in known if file.is_file()), None)


@functools.cache
def strings(module):
    """The texts in quotation marks in a command and in what it imports of the project's commands."""
    found, left, seen = set(), {module}, set()
    while left:
        name = left.pop()
        seen.add(name)
        file = source(name)
        if file is None:
            continue
        text = file.read_text()
        found |= set(re.findall(r"[\"']-*(\w+)[\"']", text))
        for package, names in re.findall(
            r"from ((?:experiments|benchmarks)[\w.]*) import ([\w, ]+)", text
        ):
            parts = [part.split(" ")[0] for part in names.split(", ")]
            left |= {package, *(f"{package}.{part}" for part in parts)} - seen
    return found


@functools.cache
def config_of(value):
    """The config of a --config=FILE:ARGUMENT; of an argument in capitals the config without it."""
    path, _, argument = value.strip("\"'").partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    if path in _FOLDER_FIRST:
        return None
    fill_in = re.search(r"\b[A-Z]{3,}\b", argument)
    config: ConfigDict = (
        module.get_config(argument) if argument and not fill_in else module.get_config()
    )
    return config


def missing(config, field):
    """The part of a field's path that a config has not, "" if it has it whole."""
    for name in field.split(".")[1:]:
        if name not in config:
            return name
        config = config[name]
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_flags_and_fields_of_the_pages(page):
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for path in re.findall(r"configs/[\w/]+\.py", text):
        assert (ROOT / path).is_file(), path
    for module, rest in COMMAND.findall(text):
        assert source(module), module
        flags = FLAG.findall(rest.split(" #")[0])
        files = [value for name, value in flags if name == "config" and value != "..."]
        config = config_of(files[0]) if files else None
        for name, _ in flags:
            if name.startswith("config."):
                assert config is None or not missing(config, name), (module, name)
            else:
                known = name == "config" or {name, name.removeprefix("no")} & strings(module)
                assert known, (module, name)


def test_pages_name_commands_and_configs():
    """The patterns above find something, and every command is on a page."""
    text = "".join(page.read_text() for page in PAGES)
    found = COMMAND.findall(text)
    assert len(found) > 150 and len(re.findall(r"configs/[\w/]+\.py", text)) > 40
    commands = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}
    commands |= {path.parent.name for path in (ROOT / "experiments").glob("*/__main__.py")}
    assert {name for name in commands if f"experiments.{name}" not in text} == set()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (
            "python -m experiments.glue --config=configs/glue/minilm.py:rte,lora --config.epoch=1",
            "config.epoch",
        ),
        ("python -m experiments.glue --config=configs/glue/minilm.py --workdirs=DIR", "workdirs"),
    ],
)
def test_a_wrong_flag_is_found(tmp_path, line, wrong):
    page = tmp_path / "page.md"
    page.write_text(f"`{line}`")
    with pytest.raises(AssertionError, match=wrong):
        test_commands_have_the_flags_and_fields_of_the_pages(page)
