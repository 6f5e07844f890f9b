"""What MkDocs does not do by itself: files outside of docs/ that pages link to become pages of the site.

Notebooks are shown as they are stored, with their outputs, and are not executed; Markdown is a page like
others, everything else a page with the file's text. In the repository the same links lead to the files.
"""

from __future__ import annotations

import base64
import json
import os
import posixpath
import re
from pathlib import Path

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "files"  # of the site, for what is not in docs/
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md")  # named in the navigation
NESTED = re.compile(r"^( {2,})(?=- )", re.M)  # MkDocs wants four blanks where GitHub takes two
MATH = re.compile(
    r"(`[^`]*`)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.S
)  # code; a formula of its own; one in a line
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every page says which version of the package it is of."""
    text = (ROOT / "lora_jax/__init__.py").read_text()
    version = re.search(r'__version__ = "(.*)"', text)
    assert version is not None
    config.copyright = f"lora_jax {version[1]}, Apache-2.0"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of files outside of docs/, and of what these link to in turn."""
    texts = {f"docs/{f.src_uri}": f.content_string for f in files.documentation_pages()}
    found: set[str] = set()
    left = {target for path, text in texts.items() for target in _outside(path, text)} | {*ALWAYS}
    while left:
        path = left.pop()
        found.add(path)
        if path.endswith(".md"):
            left |= _outside(path, (ROOT / path).read_text()) - found
    for path in sorted(found):
        for name, content in _pages(path).items():
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the repository's links into those of the site."""
    here = page.file.src_uri
    source = _repository_path(here)

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not (ROOT / target).is_file():
            return match[0]  # a link of the site's own, or one that MkDocs will warn of
        uri = _site_uri(target)
        return f"{match[1]}{posixpath.relpath(uri, posixpath.dirname(here) or '.')}{match[3]}"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.M | re.S)
    for number in range(0, len(parts), 2):  # between blocks of code
        text = LINK.sub(site_link, parts[number])
        parts[number] = NESTED.sub(r"\1\1", text)
    return "".join(parts)


def _outside(path: str, text: str) -> set[str]:
    """Files outside of docs/ that a page of the repository links to."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    targets = {
        posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        for match in LINK.finditer(text)
    }
    outside = {target for target in targets if not target.startswith(("docs/", ".."))}
    return {target for target in outside if (ROOT / target).is_file()}


def _site_uri(path: str) -> str:
    """Where a file of the repository is among the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    name = path if path.endswith(".md") else f"{os.path.splitext(path)[0]}.md"
    return f"{FOLDER}/{name}"


def _repository_path(uri: str) -> str:
    """The reverse of `_site_uri`, as far as links in the file need it: its folder."""
    return uri.removeprefix(f"{FOLDER}/") if uri.startswith(f"{FOLDER}/") else f"docs/{uri}"


def _pages(path: str) -> dict[str, str | bytes]:
    """The page of a file, and the pictures on it, by their place among the site's sources."""
    text, uri = (ROOT / path).read_text(), _site_uri(path)
    if path.endswith(".md"):
        return {uri: text}
    if path.endswith(".ipynb"):
        return _notebook(json.loads(text), uri)
    return {uri: f"# {path}\n\n```{path.rpartition('.')[2]}\n{text}\n```\n"}


def _notebook(notebook: dict, uri: str) -> dict[str, str | bytes]:
    """A notebook as Markdown, with its stored outputs."""
    parts: list[str] = []
    result: dict[str, str | bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(MATH.sub(_as_mathml, source))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            if png := output.get("data", {}).get("image/png"):
                name = f"{uri.removesuffix('.md')}_{len(result) + 1}.png"
                result[name] = base64.b64decode("".join(png))
                parts.append(f"![What the cell above draws]({posixpath.basename(name)})")
    result[uri] = "\n\n".join(parts) + "\n"
    return result


def _as_mathml(match: re.Match[str]) -> str:
    """LaTeX as MathML, which browsers show without a script; code stays as it is."""
    code, block, inline = match.groups()
    if code:
        return code
    text = latex2mathml.converter.convert(block or inline, display="block" if block else "inline")
    # A line that begins with <math> would be a paragraph of its own.
    return f"\n\n<div>{text}</div>\n\n" if block else f"<span>{text}</span>"
