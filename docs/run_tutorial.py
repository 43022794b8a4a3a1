"""Run the tutorial and keep what it shows: ``make tutorial``.

The outputs lie in the notebook, so that they are seen without running it. A digest of the cells
that made them lies beside them: a test says so where these have changed since.
"""

import hashlib
import json
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parent / 'tutorial.ipynb'


def code_of(notebook: dict) -> list:
    """The code of each cell.

    Args:
        notebook: As JSON has it.
    """
    return [''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code']


def digest(notebook: dict) -> str:
    """What the outputs were made by, as a number.

    Args:
        notebook: As JSON has it.
    """
    return hashlib.sha256('\n'.join(code_of(notebook)).encode()).hexdigest()


def main() -> None:
    """Run all cells in a kernel of their own, and write them with their outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=None, resources=dict(metadata=dict(path=NOTEBOOK.parent))
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop('execution', None)  # Times of day.
        if cell.cell_type == 'code':
            # What other packages warn of, with paths of this machine.
            cell.outputs = [one for one in cell.outputs if one.get('name') != 'stderr']
    notebook.metadata['outputs_of'] = digest(json.loads(nbformat.writes(notebook)))
    nbformat.write(notebook, NOTEBOOK)


if __name__ == '__main__':
    main()
