"""Executes the notebooks and saves them with their outputs.

    python notebooks/execute.py [NOTEBOOK ...]

Pictures, printed lines and tables are saved. What depends on the machine is left out:
standard error (logs and progress), and the counters and times of the cells.
"""

import argparse
import hashlib
import pathlib

import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def execute(
    notebook: nbformat.NotebookNode, folder: pathlib.Path = FOLDER
) -> nbformat.NotebookNode:
    """Returns the notebook after running all cells in `folder`, with stripped outputs.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    resources = {"metadata": {"path": str(folder)}}
    done = nbclient.NotebookClient(notebook, resources=resources).execute()
    for cell in done.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [_stripped(x) for x in cell.outputs if _kept(x)]
    done.metadata.pop("widgets", None)
    done.metadata.language_info = {"name": "python"}
    done.metadata.executed = digest(done)
    return done


def digest(notebook: nbformat.NotebookNode) -> str:
    """Returns a hash of the code, which shows whether the outputs are of this code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def _kept(output: nbformat.NotebookNode) -> bool:
    return output.get("name") != "stderr"


def _stripped(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if "execution_count" in output:
        output.execution_count = None
    if "image/png" in output.get("data", {}):
        output.data.pop("text/plain", None)  # names the object and its address
    return output


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python notebooks/execute.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "notebooks", nargs="*", type=pathlib.Path, default=NOTEBOOKS, metavar="NOTEBOOK"
    )
    for path in parser.parse_args().notebooks:
        print(path.name, flush=True)
        nbformat.write(execute(nbformat.read(path, as_version=4)), path)


if __name__ == "__main__":
    main()
