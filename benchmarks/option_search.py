"""Learning rates of all methods, chosen on held-out training images, with as many trainings each.

What a benchmark's ``--search`` does: every method is trained at the same rates on four fifths of
the training images and validated on the others. The best rate is its own; where that one is at the
edge of the grid, one more is tried beyond, as often for every method as ``extensions`` says. The
test set has no part in it.
"""

import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from rich.console import Console
from seeded_trainings import markdown, run_all

from fba_mm.config import type_name
from fba_mm.errors import LocalLearningError

# Of the training images, for validation.
HELD_OUT = 0.2

# A method's trainings, by their learning rates.
Tried = Dict[float, dict]


def hold_out(cfg: Config, folder: Path, share: float = HELD_OUT) -> Config:
    """A config that trains on a part of its training images, and is validated on the others.

    Which image goes where follows from its name alone, so that it is the same for all methods, in
    any order of the files. The test set is in no place of the new config.

    Args:
        cfg: A training config. It is not changed.
        folder: Where the annotations of the held-out images go, if a metric reads them from a file.
        share: Of images that are held out.

    Raises:
        LocalLearningError: The training set is made of several, or too small.
    """
    cfg = copy.deepcopy(cfg)
    dataset = cfg.train_dataloader.dataset
    if 'dataset' in dataset or 'datasets' in dataset:
        raise LocalLearningError(
            f'train_dataloader.dataset is a {type_name(dataset.type)}: a search holds images of '
            'one plain data set out, give it in its place'
        )
    held_out = copy.deepcopy(dataset)
    held_out.pipeline = copy.deepcopy(cfg.val_dataloader.dataset.pipeline)
    held_out.test_mode = True
    names = image_names(dataset, cfg)
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen = set(ranked[: round(share * len(ranked))])
    if not chosen or len(chosen) == len(names):
        raise LocalLearningError(
            f'{share} of {len(names)} training images leaves none on one side: give more images'
        )
    # Not the same places: images without objects are left out in training alone.
    held_out.indices = [i for i, name in enumerate(image_names(held_out, cfg)) if name in chosen]
    dataset.indices = [i for i, name in enumerate(names) if name not in chosen]
    cfg.val_dataloader.dataset = held_out
    metrics = cfg.val_evaluator
    for metric in metrics if isinstance(metrics, (list, tuple)) else [metrics]:
        if 'ann_file' in metric:
            metric.ann_file = str(_write_annotations(held_out, cfg, folder))
    if cfg.get('test_dataloader') is not None:
        cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
        cfg.test_evaluator = copy.deepcopy(cfg.val_evaluator)
    return cfg


def _built(dataset: dict, cfg: Config):
    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(dict(dataset, pipeline=[]))


def image_names(dataset: dict, cfg: Config) -> List[str]:
    """Of every image of a data set: its file and folder, or its place if it has no file."""
    built = _built(dataset, cfg)
    paths = [built.get_data_info(i).get('img_path') for i in range(len(built))]
    return ['/'.join(Path(path).parts[-2:]) if path else str(i) for i, path in enumerate(paths)]


def _write_annotations(dataset: dict, cfg: Config, folder: Path) -> Path:
    """COCO annotations of a data set's images alone: a metric takes all that its file has."""
    built = _built(dataset, cfg)
    images = {built.get_data_info(i)['img_id'] for i in range(len(built))}
    content = json.loads(Path(built.ann_file).read_text())
    content['images'] = [image for image in content['images'] if image['id'] in images]
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] in images]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / 'held_out.json'
    path.write_text(json.dumps(content))
    return path


def best_rate(tried: Tried, score: str) -> float:
    """The rate with the highest score, the smallest of these; diverged trainings have none.

    Raises:
        LocalLearningError: All diverged.
    """
    scores = {
        rate: found[score]
        for rate, found in sorted(tried.items())
        if not found.get('diverged') and math.isfinite(found[score])
    }
    if not scores:
        raise LocalLearningError(
            f'every training at the learning rates {sorted(tried)} diverged: give lower --rates'
        )
    return max(scores, key=scores.get)


def beyond(tried: Tried, score: str) -> Optional[float]:
    """The rate to try next if the best one is at the edge of those tried; None if it isn't."""
    rates, best = sorted(tried), best_rate(tried, score)
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    neighbour = rates[1] if best == rates[0] else rates[-2]
    return float(f'{best * best / neighbour:.2g}')


def search(
    methods: Sequence[str],
    rates: Sequence[float],
    one: Callable[[str, float], dict],
    score: str,
    say: Callable[[dict], str],
    jobs: int,
    console: Console,
    extensions: int = 1,
) -> Dict[str, Tried]:
    """Train every method at every rate, and beyond the edge where the best one is there.

    Args:
        methods: Names.
        rates: Learning rates, the same for all.
        one: Trains a method at a rate, or returns what an earlier run found.
        score: What is to be highest, a key of what ``one`` returns.
        say: A result in some words.
        jobs: Trainings at a time.
        console: Where progress goes.
        extensions: How often a method's grid may grow by a rate.
    """
    found = run_all(methods, rates, one, say, jobs, console)
    for _ in range(extensions):
        further = {name: beyond(found[name], score) for name in methods}
        further = {name: rate for name, rate in further.items() if rate is not None}
        more = run_all(
            list(further),
            [0],
            lambda name, _, further=further: one(name, further[name]),
            say,
            jobs,
            console,
        )
        for name, rate in further.items():
            found[name][rate] = more[name][0]
    return found


def search_table(found: Dict[str, Tried], rates: Sequence[float], score: str) -> List[List[str]]:
    """A row for each method, its best rate in bold, the columns' names first.

    Args:
        found: Of :func:`search`.
        rates: Those that every method was tried at.
        score: As in :func:`search`.
    """
    columns = sorted({rate for tried in found.values() for rate in tried})
    rows = [['validation', *(f'lr {rate:g}' for rate in columns), 'extended to', 'chosen']]
    for name, tried in found.items():
        best = best_rate(tried, score)
        edge = '' if beyond(tried, score) is None else ', at the edge of what was tried'
        rows.append(
            [
                name,
                *(_cell(tried.get(rate), score, rate == best) for rate in columns),
                ', '.join(f'{rate:g}' for rate in sorted(tried) if rate not in rates) or '–',
                f'{best:g}{edge}',
            ]
        )
    return rows


def _cell(found: Optional[dict], score: str, best: bool) -> str:
    if found is None:
        return '–'
    if found.get('diverged'):
        return 'diverged'
    text = f'{100 * found[score]:.1f}'
    return f'**{text}**' if best else text


def write_search(
    folder: Path,
    found: Dict[str, Tried],
    rates: Sequence[float],
    score: str,
    setting: str,
    extensions: int = 1,
) -> None:
    """Write ``search.json`` and ``search.md``: all that was tried, and what was chosen.

    Args:
        folder: Where they go.
        found: Of :func:`search`.
        rates: As in :func:`search`.
        score: As in :func:`search`.
        setting: What was trained on what, in a line.
        extensions: As in :func:`search`.
    """
    methods = {
        name: dict(
            trainings=[dict(lr=rate, **tried[rate]) for rate in sorted(tried)],
            extended_to=[rate for rate in sorted(tried) if rate not in rates],
            chosen=best_rate(tried, score),
            at_the_edge=beyond(tried, score) is not None,
        )
        for name, tried in found.items()
    }
    content = dict(setting=setting, rates=list(rates), extensions=extensions, methods=methods)
    (folder / 'search.json').write_text(json.dumps(content, indent=1))
    (folder / 'search.md').write_text(f'{setting}\n\n{markdown(search_table(found, rates, score))}')


def chosen_rates(found: Dict[str, Tried], score: str) -> Dict[str, float]:
    """Each method's own learning rate."""
    return {name: best_rate(tried, score) for name, tried in found.items()}


def images_of(cfg: Config) -> Dict[str, int]:
    """How many images a config trains on and is validated on."""
    return {
        split: len(_built(cfg[f'{split}_dataloader'].dataset, cfg)) for split in ('train', 'val')
    }
