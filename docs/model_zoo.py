"""Write docs/model_zoo.md from the metafiles that model-index.yml names: ``make model-zoo``."""

from pathlib import Path
from typing import Dict, Iterable, List

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/model_zoo.md'
HEAD = """# Model zoo

<!-- Written by docs/model_zoo.py from the metafiles of configs/. -->

What there is by config. A checkpoint can be had for none of them: train your own, as
[get started](get_started.md) says. `model-index.yml` and the `metafile.yml` of each folder have
the same in OpenMMLab's form.

K is the number of modules; 1 is back-propagation.

"""
MEASURED = """## Measured here

The figures of these configs as they are. How ways to train compare, each at a learning rate of
its own, is measured with other configs: [blood cells](../benchmarks/results/blood_cells.md), and
the other [results](results.md).

"""
REPORTED = """## Reported by the paper

Not ours: what the FBA paper (see [citation](citation.md)) reports for the setting that a config
describes, trained on GPUs for the full schedule. **None of it has been reproduced here.** GPU
memory is as the paper counts it.

"""
CONFIGS = """## Configs without a figure

"""


def read(path: Path) -> dict:
    """One YAML file.

    Args:
        path: The file.
    """
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def models() -> List[dict]:
    """All models of all metafiles, in order."""
    files = [read(ROOT / name) for name in read(ROOT / 'model-index.yml')['Import']]
    return [model for file in files for model in file.get('Models', ())]


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown.

    Args:
        header: Of the columns.
        rows: Their cells.
    """
    header = list(header)
    lines = [header, ['---'] * len(header), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines) + '\n'


def by_data(found: List[dict]) -> Dict[str, List[dict]]:
    """Models by the data that they are trained on, in order.

    Args:
        found: The models.
    """
    groups: Dict[str, List[dict]] = {}
    for model in found:
        groups.setdefault(model['Metadata']['Training Data'], []).append(model)
    return groups


def config_of(model: dict) -> str:
    """A link to a model's config.

    Args:
        model: The model.
    """
    return f'[{model["Config"][len("configs/") :]}](../{model["Config"]})'


def figures(found: List[dict], key: str) -> str:
    """A table for each data set.

    Args:
        found: Models.
        key: ``'Results'`` or ``'Reported Results'``.
    """
    text = ''
    for data, group in by_data([model for model in found if key in model]).items():
        names = list(dict.fromkeys(n for m in group for n in m[key][0]['Metrics']))
        rows = []
        for model in group:
            result = model[key][0]
            source = result['Source']
            if source.endswith('.md'):
                source = f'[{Path(source).stem}](../{source})'
            notes = ', '.join(filter(None, [result.get('Note'), source]))
            values = [str(result['Metrics'].get(name, '')) for name in names]
            rows.append(
                [config_of(model), model['In Collection'], str(model['Metadata']['Modules'])]
                + [*values, notes]
            )
        text += f'**{data}**\n\n' + table(['config', 'method', 'K', *names, 'source'], rows)
    return text


def without_figures(found: List[dict]) -> str:
    """A row for each data set.

    Args:
        found: Models.
    """
    rest = [model for model in found if not {'Results', 'Reported Results'} & set(model)]
    rows = [
        [data, ', '.join(config_of(model) for model in group)]
        for data, group in by_data(rest).items()
    ]
    return table(['data', 'configs'], rows)


def page() -> str:
    """The page."""
    found = models()
    return (
        HEAD
        + MEASURED
        + figures(found, 'Results')
        + REPORTED
        + figures(found, 'Reported Results')
        + CONFIGS
        + without_figures(found)
    ).rstrip('\n') + '\n'


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
