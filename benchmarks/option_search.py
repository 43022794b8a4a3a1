"""Learning rates of all methods, chosen on held-out training images, with as many trainings each.

What a benchmark's ``--search`` does: every method is trained at the same rates on four fifths of
the training images and validated on the others. The best rate is its own; where that one is at the
edge of the grid, one more is tried beyond, as often for every method as ``extensions`` says. With
several ``--search-seeds``, a method's two best rates are trained with the others as well: a rate at
the edge of what is stable can look best with one seed. Of the two, the smaller one is chosen where
its mean is within a standard error of the better one's (Breiman et al., Classification and
Regression Trees, 1984): what seeds can't tell apart, the safer rate decides. The test set has no
part in it.
"""

import argparse
import copy
import hashlib
import json
import math
import statistics
from dataclasses import dataclass, field
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
# Rates of a method that are trained with all seeds of the search.
FINALISTS = 2


def hold_out(
    cfg: Config,
    folder: Path,
    share: float = HELD_OUT,
    whole: Callable[[str], str] = lambda name: name,
) -> Config:
    """A config that trains on a part of its training images, and is validated on the others.

    Which image goes where follows from its name alone, so that it is the same for all methods, in
    any order of the files. The test set is in no place of the new config.

    Args:
        cfg: A training config. It is not changed.
        folder: Where the annotations of the held-out images go, if a metric reads them from a file.
        share: Of images that are held out.
        whole: Of an image's name, that of what stays together, as a photo's tiles do.

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
    names = [whole(name) for name in image_names(dataset, cfg)]
    ranked = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    chosen = set(ranked[: round(share * len(ranked))])
    if not chosen or len(chosen) == len(ranked):
        raise LocalLearningError(
            f'{share} of {len(ranked)} training images leaves none on one side: give more images'
        )
    # Not the same places: images without objects are left out in training alone.
    held_out.indices = [
        i for i, name in enumerate(image_names(held_out, cfg)) if whole(name) in chosen
    ]
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
    try:
        with DefaultScope.overwrite_default_scope(scope):
            return DATASETS.build(dict(dataset, pipeline=[]))
    except FileNotFoundError as error:
        raise LocalLearningError(
            f'{error.filename or error} is not there: build or unpack the data first, or give the '
            "folder as data_root in the config's data sets"
        ) from error


def image_names(dataset: dict, cfg: Config) -> List[str]:
    """Of every image of a data set: its file and folder, or what it has instead of a file.

    That is the form it was written on, so that no form is on both sides, or else its place.
    """
    built = _built(dataset, cfg)
    names = []
    for i in range(len(built)):
        info = built.get_data_info(i)
        path = info.get('img_path')
        names.append('/'.join(Path(path).parts[-2:]) if path else str(info.get('form', i)))
    return names


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


def images_of(cfg: Config) -> Dict[str, int]:
    """How many images a config trains on and is validated on."""
    found = {}
    for split in ('train', 'val'):
        loader = cfg[f'{split}_dataloader']
        # mmagic has a list of them.
        loaders = loader if isinstance(loader, list) else [loader]
        found[split] = sum(len(_built(one.dataset, cfg)) for one in loaders)
    return found


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark's command line ask for a search."""
    parser.add_argument(
        '--search',
        action='store_true',
        help='choose the learning rate of each method on images held out of the training set',
    )
    parser.add_argument(
        '--search-only',
        action='store_true',
        help='as --search, and end with it: for what is tried, test images stay untouched',
    )
    parser.add_argument(
        '--rates',
        type=float,
        nargs='+',
        default=[0.5, 1, 2, 4],
        help="of --search, the same for all methods, in parts of the config's",
    )
    parser.add_argument(
        '--extensions',
        type=int,
        default=1,
        help='of --search, trainings beyond the edge of the rates, where the best one is there',
    )
    parser.add_argument(
        '--search-seeds',
        type=int,
        nargs='+',
        default=[0],
        help='of --search, whatever the --seeds: the first for all rates, the others for each '
        "method's two best",
    )


def grid(lr: float, parts: Sequence[float]) -> List[float]:
    """Learning rates in parts of a given one, to two digits."""
    return sorted({float(f'{lr * part:.2g}') for part in parts})


@dataclass
class RateSearch:
    """Every method at every rate, and beyond the edge where the best one is there.

    Args:
        rates: Learning rates, the same for all methods.
        score: What is to be highest, a key of what a training found.
        setting: What is trained on what, in a line.
        extensions: How often a method's grid may grow by a rate.
        seeds: The first one trains at all rates, the others at each method's ``FINALISTS`` best.
        scale: Of scores in tables; 100 for shares.
        digits: Of scores in tables.

    Attributes:
        tried: What was found, by method, rate and seed.
    """

    rates: Sequence[float]
    score: str
    setting: str
    extensions: int = 1
    seeds: Sequence[int] = (0,)
    scale: float = 1
    digits: int = 1
    tried: Dict[str, Dict[float, Dict[int, dict]]] = field(default_factory=dict)

    def run(
        self,
        methods: Sequence[str],
        one: Callable[[str, float, int], dict],
        say: Callable[[dict], str],
        jobs: int,
        console: Console,
    ) -> None:
        """Do the trainings.

        Args:
            methods: Names.
            one: Trains a method at a rate with a seed, or returns what an earlier run found.
            say: A result in some words.
            jobs: Trainings at a time.
            console: Where progress goes.
        """
        self.tried = {name: {} for name in methods}

        def add(rates: Dict[str, Sequence[float]], seed: int) -> None:
            pairs = {
                f'{name}, lr {rate:g}': (name, rate) for name, own in rates.items() for rate in own
            }
            found = run_all(
                list(pairs),
                [seed],
                lambda label, seed: one(*pairs[label], seed),
                say,
                jobs,
                console,
                'search seed',
            )
            for label, by_seed in found.items():
                name, rate = pairs[label]
                self.tried[name].setdefault(rate, {}).update(by_seed)

        first, *others = self.seeds
        add(dict.fromkeys(methods, self.rates), first)
        for _ in range(self.extensions):
            further = {name: self.beyond(name) for name in methods}
            add({name: [rate] for name, rate in further.items() if rate is not None}, first)
        finalists = {name: self.ranked(name)[:FINALISTS] for name in methods}
        for seed in others:
            add(finalists, seed)

    def mean(self, name: str, rate: float) -> Optional[float]:
        """A method's mean score at a rate, or None if one of its trainings diverged."""
        found = self.tried[name][rate].values()
        if any(one.get('diverged') or not math.isfinite(one[self.score]) for one in found):
            return None
        return statistics.mean(one[self.score] for one in found)

    def ranked(self, name: str) -> List[float]:
        """A method's rates, the one with the highest mean score first, of equal ones the smallest.

        Of rates that were trained with fewer seeds than others, none is here.

        Args:
            name: The method.

        Raises:
            LocalLearningError: Every training diverged.
        """
        most = max(len(by_seed) for by_seed in self.tried[name].values())
        means = {
            rate: self.mean(name, rate)
            for rate, by_seed in sorted(self.tried[name].items())
            if len(by_seed) == most
        }
        means = {rate: mean for rate, mean in means.items() if mean is not None}
        if not means:
            raise LocalLearningError(
                f'{name}: trainings at the learning rates {sorted(self.tried[name])} '
                'diverged: give lower --rates'
            )
        return sorted(means, key=lambda rate: -means[rate])

    def best(self, name: str) -> float:
        """A method's smallest rate whose mean score is within the best one's standard error.

        Args:
            name: The method.

        Raises:
            LocalLearningError: Every training diverged.
        """
        ranked = self.ranked(name)
        scores = [one[self.score] for one in self.tried[name][ranked[0]].values()]
        error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
        lowest = statistics.mean(scores) - error
        return min(rate for rate in ranked if self.mean(name, rate) >= lowest)

    def beyond(self, name: str) -> Optional[float]:
        """The rate to try next if a method's best is at the edge of those tried, or None."""
        rates, best = sorted(self.tried[name]), self.best(name)
        if len(rates) < 2 or best not in (rates[0], rates[-1]):
            return None
        neighbour = rates[1] if best == rates[0] else rates[-2]
        return float(f'{best * best / neighbour:.2g}')

    def chosen(self) -> Dict[str, float]:
        """Each method's own learning rate."""
        return {name: self.best(name) for name in self.tried}

    def table(self) -> List[List[str]]:
        """A row for each method, its best rate in bold, the columns' names first."""
        columns = sorted({rate for tried in self.tried.values() for rate in tried})
        rows = [['validation', *(f'lr {rate:g}' for rate in columns), 'extended to', 'chosen']]
        for name, tried in self.tried.items():
            best = self.best(name)
            edge = '' if self.beyond(name) is None else ', at the edge of what was tried'
            rows.append(
                [
                    name,
                    *(self._cell(tried.get(rate, {}), rate == best) for rate in columns),
                    ', '.join(f'{rate:g}' for rate in self._extensions_of(name)) or '–',
                    f'{best:g}{edge}',
                ]
            )
        return rows

    def write(self, folder: Path) -> None:
        """Write ``search.json`` and ``search.md``: all that was tried, and what was chosen.

        Args:
            folder: Where they go.
        """
        methods = {
            name: dict(
                trainings=[
                    dict(lr=rate, seed=seed, **found)
                    for rate in sorted(tried)
                    for seed, found in tried[rate].items()
                ],
                extended_to=self._extensions_of(name),
                chosen=self.best(name),
                at_the_edge=self.beyond(name) is not None,
            )
            for name, tried in self.tried.items()
        }
        content = dict(
            setting=self.setting,
            rates=list(self.rates),
            extensions=self.extensions,
            seeds=list(self.seeds),
            methods=methods,
        )
        (folder / 'search.json').write_text(json.dumps(content, indent=1))
        (folder / 'search.md').write_text(f'{self.setting}\n\n{markdown(self.table())}')

    def _extensions_of(self, name: str) -> List[float]:
        return [rate for rate in sorted(self.tried[name]) if rate not in self.rates]

    def _cell(self, by_seed: Dict[int, dict], best: bool) -> str:
        if not by_seed:
            return '–'
        scores = [
            'diverged'
            if found.get('diverged')
            else f'{self.scale * found[self.score]:.{self.digits}f}'
            for found in by_seed.values()
        ]
        text = ', '.join(scores)
        return f'**{text}**' if best else text
