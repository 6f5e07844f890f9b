"""Every notebook runs from top to bottom in a fresh kernel, and is stored with the outputs of such a run."""

import base64
import re
import struct
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~<])/\w[\w.-]*/\w")
PNG = b"\x89PNG\r\n\x1a\n"

REAL = ("02", "03", "04", "05", "06", "07")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def sources(notebook, kind):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == kind)


def printed(notebook):
    """What each cell prints, but for what depends on the machine: bars, numbers, widths of columns."""
    texts = [
        "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        for cell in code_cells(notebook)
    ]
    return [re.sub(r"[\s-]+", " ", re.sub(r"\d[\d.,]*(e[+-]\d+)?", "0", text)) for text in texts]


def beside(path):
    """The bytes of a notebook, and the paths of all other files in its folder."""
    return path.read_bytes(), {p for p in FOLDER.rglob("*") if p.suffix != ".ipynb"}


def test_there_are_notebooks():
    assert NOTEBOOKS, f"no notebook in {FOLDER}"


# Six of them train on real data: four for 20 to 30 s each, the last two for longer (six methods; pictures).
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem[:2] in REAL))
        for path in NOTEBOOKS
    ],
)
def test_runs_to_the_end_and_writes_nothing_into_the_repository(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    if path.stem[:2] in REAL:
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")  # they compute for longer
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # nothing is downloaded by default
    notebook, before, stored = read(path), beside(path), read(path)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert beside(path) == before
    assert printed(notebook) == printed(stored), "store the outputs of a new run in the notebook"


@each
def test_stored_as_one_run_from_top_to_bottom(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each
def test_stored_without_errors_warnings_and_paths_of_a_machine(path):
    text = path.read_text()
    assert len(text.encode()) <= 2**20, "larger than 1 MiB"
    notebook = read(path)
    assert all(cell.source.strip() for cell in notebook.cells), "an empty cell"
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert not [o.text for o in outputs(notebook) if o.get("name") == "stderr"]
    shown = [sources(notebook, "code"), sources(notebook, "markdown")]
    for output in outputs(notebook):
        data = output.get("data", {})
        shown += [output.get("text", ""), *(v for k, v in data.items() if k.startswith("text/"))]
    assert not (paths := [m.group() for part in shown for m in ABSOLUTE_PATH.finditer(part)]), paths


@each
def test_has_a_title_and_finds_the_project_by_itself(path):
    notebook = read(path)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", first.source)
    assert 'sys.path.insert(0, "..")' in code_cells(notebook)[0].source


@each
def test_has_a_figure_of_readable_size(path):
    images = [o.data["image/png"] for o in outputs(read(path)) if "image/png" in o.get("data", {})]
    assert images
    headers = [base64.b64decode(image)[:24] for image in images]
    assert all(header.startswith(PNG) for header in headers)
    sizes = [struct.unpack(">II", header[16:24]) for header in headers]
    assert max(width for width, _ in sizes) >= 400, sizes


@each
def test_says_what_to_change_for_the_hub_where_a_model_is_loaded(path):
    notebook = read(path)
    loads = re.search(r"package:|load_classifier|load_decoder", sources(notebook, "code"))
    if loads:
        assert re.search(r"\bhub\b", sources(notebook, "markdown"))


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("saved in /tmp/xyz", True),
        ("File '/home/someone/lora.py'", True),
        ("/scratch/team/lora", True),
        ("https://example.org/scratch/1", False),
        ("notebooks/runs/x", False),
        ("../runs/x", False),
        ("time / base, r/d", False),
    ],
)
def test_a_path_of_a_machine_is_told_from_others(text, is_path):
    assert bool(ABSOLUTE_PATH.search(text)) == is_path
