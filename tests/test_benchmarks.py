"""What the benchmarks share: trainings that go on where they stopped, the search for options."""

import importlib
import json
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from rich.console import Console

from fba_mm import LocalLearningError
from fba_mm.analysis.synthetic_batch import batch_shape
from fba_mm.config import load_config
from fba_mm.datasets.device_batches import DeviceBatches

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / 'benchmarks'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))


def benchmark(name):
    with mock.patch.object(sys, 'path', [str(FOLDER), *sys.path]):
        return importlib.import_module(name)


@pytest.mark.parametrize('name', NAMES)
def test_import(name):
    benchmark(name)


@pytest.fixture()
def train(tmp_path):
    """``train()`` with a tool that only makes the work directory, and the number of its calls."""
    module = benchmark('seeded_trainings')
    calls = []

    def run(tool, arguments, log, *_):
        calls.append(arguments)
        log.touch()
        return 0

    def of(config, folder=tmp_path / 'training'):
        return module.train(folder, config, lambda work_dir: dict(mAP=0.5))

    with mock.patch.object(module, 'run_tool', run):
        yield SimpleNamespace(of=of, calls=calls)


def test_a_training_is_made_once(train, tmp_path):
    first = train.of('a = 1\nb = dict(c=2)\n')
    # The same settings, however they are written down.
    assert train.of(Config(dict(b=dict(c=2), a=1))) == first and first['mAP'] == 0.5
    assert len(train.calls) == 1
    assert 'config' not in first
    # One that was cut off is begun again.
    (tmp_path / 'training/result.json').unlink()
    train.of('a = 1\nb = dict(c=2)\n')
    assert len(train.calls) == 2


def test_the_result_of_other_settings_is_not_taken(train, tmp_path):
    train.of('a = 1\n')
    before = (tmp_path / 'training/result.json').read_text()
    with pytest.raises(
        LocalLearningError, match='other settings: move it away, or give another --out'
    ):
        train.of('a = 2\n')
    assert (tmp_path / 'training/result.json').read_text() == before and len(train.calls) == 1


def test_a_tool_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Its arguments, threads, output and exit status are those of the script run by itself."""
    tool = tmp_path / 'tool.py'
    tool.write_text(
        'import os, sys, torch\n'
        'if __name__ == "__main__":\n'
        '    print(os.getpid(), sys.argv[1:], torch.get_num_threads(), os.getcwd(), flush=True)\n'
        '    os.system("echo of a child")\n'
        '    sys.exit(int(sys.argv[1]))\n'
    )
    module = benchmark('seeded_trainings')
    monkeypatch.setattr(sys, 'path', [str(FOLDER), *sys.path])
    monkeypatch.setattr(module, 'TOOL_IMPORTS', ('fba_mm.config',))
    found = []

    def run(code):
        log = tmp_path / f'{code}.log'
        found.append((code, module.run_tool(tool, [str(code), 'b c'], log, 2, '')))

    threads = [threading.Thread(target=run, args=(code,)) for code in (0, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(0, 0), (3, 3)]
    pids = set()
    for code in (0, 3):
        first, second = (tmp_path / f'{code}.log').read_text().splitlines()
        pid, rest = first.split(' ', 1)
        pids.add(int(pid))
        assert rest == f"['{code}', 'b c'] 2 {FOLDER.parent}" and second == 'of a child'
    assert len(pids | {os.getpid()}) == 3


def test_after_a_failure_no_other_training_begins():
    begun, failed = [], threading.Event()

    def one(name, seed):
        begun.append(name)
        if name == 'a':
            raise LocalLearningError('no data')
        failed.wait(1)
        return {}

    with pytest.raises(LocalLearningError, match='no data'):
        benchmark('seeded_trainings').run_all(list('abcdef'), [0], one, str, 1, Console(quiet=True))
    assert begun in (['a'], ['a', 'b'])


@pytest.mark.parametrize(
    'name',
    [
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        str(FOLDER / 'configs/retinanet_r18_bccd.py'),
    ],
)
@pytest.mark.parametrize('factor', [0.5, 2])
def test_schedules_of_another_length(name, factor):
    """All that counts epochs is stretched alike; what counts iterations stays."""
    cfg = load_config(name)
    before, epochs = [dict(s) for s in cfg.param_scheduler], cfg.train_cfg.max_epochs
    benchmark('compared_trainings').set_length(cfg, round(epochs * factor))
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == epochs * factor
    for old, new in zip(before, cfg.param_scheduler):
        for key in ('begin', 'end', 'T_max'):
            if key in old:
                assert new[key] == old[key] * (factor if old.get('by_epoch', True) else 1)


def test_the_length_of_equal_time_is_measured_once(tmp_path):
    of = benchmark('compared_trainings').length_of_equal_time
    assert of(tmp_path, '8 epochs of FBA, K=4', 13.8) == 14
    assert of(tmp_path, '8 epochs of FBA, K=4', 15.1) == 14
    assert of(tmp_path, '16 epochs of FBA, K=4', 29.2) == 29


def test_trainings_of_several_lengths(tmp_path):
    compared = benchmark('compared_trainings')
    for epochs, seed, value in ((8, 0, 0.3), (8, 1, 0.4), (20, 0, 0.5)):
        folder = tmp_path / f'{epochs}_epochs/seed_{seed}'
        folder.mkdir(parents=True)
        (folder / 'result.json').write_text(json.dumps(dict(mAP=value)))
    found = compared.trained_so_far(tmp_path, 'epochs')
    assert found == {8: {0: dict(mAP=0.3), 1: dict(mAP=0.4)}, 20: {0: dict(mAP=0.5)}}
    comparison = benchmark('detection').COMPARISON
    compared.draw_time({'BP': found}, {'BP': 1.0}, comparison, 'title', tmp_path / 'time.png')
    assert (tmp_path / 'time.png').stat().st_size > 1000


RATES = [0.02, 0.03, 0.045]


def searched(scores, extensions=1, seeds=(0,)):
    """A search among methods whose scores are functions of rate and seed, and what it trained."""
    trained = []

    def one(name, rate, seed):
        trained.append((name, rate, seed))
        score = scores[name](rate, *([seed] if len(seeds) > 1 else []))
        return dict(diverged=True) if score is None else dict(mAP=score)

    search = benchmark('option_search').RateSearch(
        RATES, 'mAP', 'blood cells', extensions, seeds, scale=100
    )
    search.run(list(scores), one, str, 1, Console(quiet=True))
    return search, trained


def test_every_method_gets_the_same_search():
    """As many rates each, one more beyond the edge where the best one is there, and no further."""
    search, trained = searched(
        dict(
            inner=lambda rate: 1 - abs(rate - 0.03),
            upper=lambda rate: rate,
            lower=lambda rate: -rate,
            diverging=lambda rate: rate if rate < 0.04 else None,
        )
    )
    assert sorted(search.tried['inner']) == sorted(search.tried['diverging']) == RATES
    assert sorted(search.tried['upper']) == [*RATES, 0.068]
    assert sorted(search.tried['lower']) == [0.013, *RATES]
    assert len(trained) == len(set(trained)) == 4 * 3 + 2
    assert search.chosen() == dict(inner=0.03, upper=0.068, lower=0.013, diverging=0.03)


def test_what_was_searched_is_written_down(tmp_path):
    search, _ = searched(
        dict(upper=lambda rate: 10 * rate, diverging=lambda rate: rate if rate < 0.04 else None)
    )
    search.write(tmp_path)
    assert (tmp_path / 'search.md').read_text().splitlines() == [
        'blood cells',
        '',
        '| validation | lr 0.02 | lr 0.03 | lr 0.045 | lr 0.068 | extended to | chosen |',
        '|---|---|---|---|---|---|---|',
        '| upper | 20.0 | 30.0 | 45.0 | **68.0** | 0.068 | 0.068, at the edge of what was tried |',
        '| diverging | 2.0 | **3.0** | diverged | – | – | 0.03 |',
    ]
    written = json.loads((tmp_path / 'search.json').read_text())
    assert written['rates'] == RATES and written['extensions'] == 1
    assert written['methods']['upper']['chosen'] == 0.068
    assert dict(lr=0.045, seed=0, diverged=True) in written['methods']['diverging']['trainings']


def test_a_rate_that_another_seed_does_badly_with_is_not_chosen():
    """The two best rates of each method are trained with all seeds, and their means compared."""
    search, trained = searched(
        dict(
            steady=lambda rate, seed: 0.5 - abs(rate - 0.03) - seed / 1000,
            unstable=lambda rate, seed: rate if rate < 0.04 or not seed else rate / 5,
            diverging=lambda rate, seed: rate if rate < 0.04 or not seed else None,
        ),
        extensions=0,
        seeds=(0, 4),
    )
    assert len(trained) == len(set(trained)) == 3 * (3 + 2)
    assert [rate for name, rate, seed in trained if (name, seed) == ('steady', 4)] == [0.03, 0.02]
    assert search.chosen() == dict(steady=0.03, unstable=0.03, diverging=0.03)
    rows = {row[0]: row[1:] for row in search.table()}
    assert rows['unstable'] == ['2.0', '**3.0, 3.0**', '4.5, 0.9', '–', '0.03']
    assert rows['diverging'] == ['2.0', '**3.0, 3.0**', '4.5, diverged', '–', '0.03']


@pytest.mark.parametrize('higher, chosen', [((0.34, 0.28), 0.02), ((0.33, 0.31), 0.03)])
def test_of_rates_that_seeds_cannot_tell_apart_the_smaller_one_is_chosen(higher, chosen):
    """Within a standard error of the better mean, which one score doesn't have."""
    scores = {0.02: (0.31, 0.29), 0.03: higher, 0.045: (0.2, 0.2)}
    search, _ = searched(dict(one=lambda rate, seed: scores[rate][seed]), 0, (0, 1))
    assert search.ranked('one') == [0.03, 0.02]
    assert search.chosen() == dict(one=chosen)
    assert searched(dict(one=lambda rate: scores[rate][0]), 0)[0].chosen() == dict(one=0.03)


def coco_config(folder, numbers):
    """A config on a COCO data set of so many images; the first one has no objects."""
    images = [dict(id=i, file_name=f'{i}.jpg', width=64, height=48) for i in numbers]
    boxes = [
        dict(id=i, image_id=i, category_id=0, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
        for i in numbers
        if i
    ]
    path = folder / 'train.json'
    categories = [dict(id=0, name='cell')]
    path.write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    dataset = dict(
        type='CocoDataset',
        ann_file=str(path),
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=('cell',)),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=0.5)],
    )
    test = dict(dataset, ann_file='test.json', pipeline=[dict(type='LoadImageFromFile')])
    return Config(
        dict(
            default_scope='mmdet',
            train_dataloader=dict(dataset=dataset),
            val_dataloader=dict(dataset=test),
            test_dataloader=dict(dataset=test),
            val_evaluator=dict(type='CocoMetric', ann_file='test.json'),
            test_evaluator=dict(type='CocoMetric', ann_file='test.json'),
        )
    )


def test_data_that_are_not_there(tmp_path):
    cfg = coco_config(tmp_path, range(20))
    cfg.train_dataloader.dataset.ann_file = str(tmp_path / 'none.json')
    with pytest.raises(LocalLearningError, match=r'none\.json is not there: build or unpack'):
        benchmark('option_search').hold_out(cfg, tmp_path)


def test_held_out_images(tmp_path):
    """Each image is on one side, the same one in any order of the file; the test set is on none."""
    option_search, sides = benchmark('option_search'), []
    for numbers in (range(20), range(19, -1, -1)):
        cfg = option_search.hold_out(coco_config(tmp_path, numbers), tmp_path)
        train, val = (
            set(option_search.image_names(cfg[f'{split}_dataloader'].dataset, cfg))
            for split in ('train', 'val')
        )
        # An image without objects is no training image, and so not held out.
        assert train | val == {f'train/{i}.jpg' for i in range(1, 20)} and not train & val
        assert len(val) == 4
        assert 'test.json' not in cfg.pretty_text
        assert cfg.val_dataloader.dataset.pipeline == [dict(type='LoadImageFromFile')]
        written = json.loads(Path(cfg.val_evaluator.ann_file).read_text())
        assert {f'train/{image["file_name"]}' for image in written['images']} == val
        assert len(written['annotations']) == 4
        sides.append(val)
    assert sides[0] == sides[1]
    assert option_search.images_of(cfg) == dict(train=15, val=4)
    # Of what belongs together nothing is on both sides.
    cfg = option_search.hold_out(
        coco_config(tmp_path, range(20)), tmp_path, 0.5, lambda name: str(len(name))
    )
    train, val = (
        {len(n) for n in option_search.image_names(cfg[f'{split}_dataloader'].dataset, cfg)}
        for split in ('train', 'val')
    )
    assert len(train) == len(val) == 1 and train != val
    with pytest.raises(LocalLearningError, match='leaves none on one side: give more images'):
        option_search.hold_out(coco_config(tmp_path, range(2)), tmp_path)


def test_held_out_forms(tmp_path):
    """Of handwritten digits whole forms are held out, as the test's are."""
    pytest.importorskip('mmpretrain')
    option_search = benchmark('option_search')
    cfg = load_config(str(FOLDER.parent / 'configs/classification/digits/resnet32_bp.py'))
    cfg = option_search.hold_out(cfg, tmp_path)
    train, val = (
        set(option_search.image_names(cfg[f'{split}_dataloader'].dataset, cfg))
        for split in ('train', 'val')
    )
    assert train | val == {str(form) for form in range(11)}
    assert len(val) == 2 and not train & val


@pytest.mark.parametrize('epochs', [1, 2, 8])
def test_schedule_of_so_many_epochs(epochs):
    """One of warm-up, where there are others."""
    pytest.importorskip('mmpretrain')
    *rise, cosine = benchmark('classification').schedule(epochs)
    assert [stage['end'] for stage in rise] == [1] * (epochs > 1)
    assert cosine['begin'] + cosine['T_max'] == epochs and cosine['begin'] == len(rise)


@pytest.mark.parametrize(
    'loss, says, diverges',
    [
        (float('nan'), '', True),
        (1.0, '', False),
        (1.0, 'error: iteration 7: the loss of module 1 of 4 is nan: look at the data', True),
    ],
)
def test_a_training_that_diverges(tmp_path, loss, says, diverges):
    """BP goes on with a loss that is no number, FBA stops: either is a result of a search, kept."""
    module = benchmark('seeded_trainings')

    def run(tool, arguments, log, *_):
        logged = Path(arguments[-1]) / 'now/vis_data/scalars.json'
        logged.parent.mkdir(parents=True)
        logged.write_text(json.dumps(dict(loss=loss)) + '\n')
        log.write_text(says)
        return int(bool(says))

    def train(folder, **kwargs):
        return module.train(tmp_path / folder, 'a = 1\n', lambda _: dict(mAP=0.0), **kwargs)

    with mock.patch.object(module, 'run_tool', run):
        assert train('a', may_diverge=True).get('diverged', False) is diverges
        if says:
            with pytest.raises(LocalLearningError, match='the loss of module 1 of 4 is nan'):
                train('b')
    assert train('a', may_diverge=True).get('diverged', False) is diverges


def test_a_method_that_always_diverges():
    with pytest.raises(LocalLearningError, match='diverged: give lower --rates'):
        searched(dict(a=lambda rate: None))


def test_held_out_masks(tmp_path):
    """Images of a folder with masks, as mmseg reads it."""
    pytest.importorskip('mmseg')
    option_search = benchmark('option_search')
    cfg = load_config(str(FOLDER.parent / 'configs/segmentation/digits/fcn_r18_bp.py'))
    for folder in ('train', 'masks/train', 'val', 'masks/val'):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(10):
        (tmp_path / f'train/{number}.jpg').touch()
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.data_root = str(tmp_path)
    cfg = option_search.hold_out(cfg, tmp_path)
    assert option_search.images_of(cfg) == dict(train=8, val=2)
    train, val = (
        set(option_search.image_names(cfg[f'{split}_dataloader'].dataset, cfg))
        for split in ('train', 'val')
    )
    assert train | val == {f'train/{number}.jpg' for number in range(10)} and not train & val


def test_what_a_segmentor_reached(tmp_path):
    log = tmp_path / 'now/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    lines = [dict(loss=0.5, aAcc=10.0), dict(mIoU=30.0, mAcc=40.0, aAcc=90.0, step=1)]
    log.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    found = benchmark('segmentation').figures(tmp_path)
    assert found == dict(mIoU=0.3, mAcc=0.4, aAcc=0.9, classes={})


@pytest.mark.parametrize(
    'name, config, local, title, lr, epochs',
    [
        ('detection', 'benchmarks/configs/retinanet_r18_bccd.py', 'fba', 'shared head', 0.01, 8),
        (
            'segmentation',
            'configs/segmentation/digits/fcn_r18_bp.py',
            'fba_own',
            'own heads',
            0.002,
            10,
        ),
    ],
)
def test_a_search_from_the_command_line(
    name, config, local, title, lr, epochs, tmp_path, monkeypatch, capsys
):
    """Rates are chosen on held-out images, whatever the seeds; each seed then trains once."""
    if name == 'segmentation':
        pytest.importorskip('mmseg')
    module, trained = benchmark(name), []
    scores = module.COMPARISON.scores

    def hold_out(cfg, folder):
        cfg.held_out = True
        return cfg

    def train(folder, cfg, figures, may_diverge=False):
        method = 'local' if cfg.model.backbone.type == 'LocalBackbone' else 'bp'
        part = cfg.optim_wrapper.optimizer.lr / lr
        trained.append(
            (method, 'held_out' in cfg, cfg.randomness.seed, part, cfg.train_cfg.max_epochs)
        )
        value = 0.5 - 0.1 * abs(part - (2 if method == 'bp' else 1))
        found = dict(dict.fromkeys(scores, value), classes=dict(cell=value), minutes=1.0)
        path = folder / 'result.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        return found

    command = [name, '--config', str(FOLDER.parent / config), '--out', str(tmp_path)]
    command += ['--methods', 'bp', 'bp_checkpointed', local, '--rates', '0.5', '1', '2']
    title = f'FBA, {title}, K=4'
    costs = {'BP': 1.0, 'BP, checkpointed (exact)': 1.3, title: 1.9}
    with mock.patch.multiple(
        benchmark('compared_trainings'),
        hold_out=hold_out,
        images_of=lambda cfg: dict(train=80, val=20),
        train=train,
        TrainingStep=mock.DEFAULT,
        peak_bytes=lambda step, device: 2**20,
        predict_memory=lambda cfg, shape: SimpleNamespace(flops=1),
        synthetic_batch=mock.DEFAULT,
        seconds_by_turns=lambda *_: costs,
        processor_seconds=lambda *_: costs,
    ):
        monkeypatch.setattr(sys, 'argv', [*command, '--search-only'])
        module.main()
        assert len(trained) == 2 * 3 + 1 and all(held_out for _, held_out, *_ in trained)
        assert (tmp_path / 'search.md').exists() and not (tmp_path / 'results.json').exists()
        trained.clear()
        monkeypatch.setattr(
            sys, 'argv', [*command, '--search', '--seeds', '3', '5', '--equal-time']
        )
        module.main()
    # BP's best is at the edge.
    parts, equal_time = dict(bp=[0.5, 1, 2, 4], local=[0.5, 1, 2]), round(1.9 * epochs)
    assert sorted(trained) == sorted(
        [(method, True, 0, part, epochs) for method in parts for part in parts[method]]
        + [('bp', False, seed, 2, length) for seed in (3, 5) for length in (epochs, equal_time)]
        + [('local', False, seed, 1, epochs) for seed in (3, 5)]
    )
    table = (tmp_path / 'table.md').read_text()
    for row in (
        f'| training | lr | seeds | {" | ".join(scores)} |',
        f'| BP | {2 * lr:g} | 2 | 50.0 ± 0.0 |',
        f'| BP, checkpointed (exact) | {2 * lr:g} | 2 | 50.0 ± 0.0 |',
        '| 1.300 | 1.30 | 1.30 | 1.00 |',
        f'| {title} | {lr:g} | 2 |',
        f'| BP, {equal_time} epochs (time of {title}) | {2 * lr:g} | 2 |',
        f'{epochs} epochs, last checkpoint, seeds [3, 5], lr of each chosen on 20 held-out',
    ):
        assert row in table
    for name in ('search.md', 'search.json', 'results.json', 'costs.png', 'time.png'):
        assert (tmp_path / name).exists()


@pytest.fixture()
def photo_pairs(tmp_path):
    """Folders of pairs as the converter makes them: 10 photos in 16 tiles each, and a whole one."""
    pytest.importorskip('mmagic')
    from PIL import Image

    folders = {'train': [f'{n}_{t:03}' for n in range(10) for t in range(16)], 'Set5': ['baby']}
    for name, images in folders.items():
        for kind, side in (('GTmod12', 24), ('LRbicx2', 12)):
            (tmp_path / name / kind).mkdir(parents=True)
            for image in images:
                Image.new('RGB', (side, side), (40, 90, 160)).save(
                    tmp_path / name / kind / f'{image}.png'
                )
    return tmp_path


def test_super_resolution_side_by_side(photo_pairs, monkeypatch):
    """Iterations are counted, PSNR is in dB, and whole photos are held out, a part of them seen."""
    module, option_search = benchmark('super_resolution'), benchmark('option_search')
    held_out, trained = [], []

    def train(folder, cfg, figures, may_diverge=False):
        method = cfg.model.generator.type
        (val,) = cfg.val_dataloader
        (metrics,) = (one['metrics'] for one in cfg.val_evaluator)
        assert cfg.train_cfg.max_iters == cfg.param_scheduler.T_max
        trained.append((method, folder.parts[-2], cfg.optim_wrapper.optimizer.lr))
        names = {metric['prefix'] for metric in metrics}
        if 'held_out' in folder.parts:
            assert names == {'held_out', 'held_out_Y'} and cfg.test_dataloader == [val]
            held_out.append(
                [
                    {Path(name).name[0] for name in option_search.image_names(dataset, cfg)}
                    for dataset in (cfg.train_dataloader.dataset, val.dataset)
                ]
            )
            assert len(val.dataset.indices) == 4
            return {'held_out Y PSNR': 30 - cfg.optim_wrapper.optimizer.lr, 'minutes': 1.0}
        assert names == {'Set5', 'Set5_Y'} and val.dataset.data_root.endswith('Set5')
        assert cfg.train_dataloader.batch_size == 8
        assert cfg.train_dataloader.dataset.pipeline[3].gt_patch_size == 24
        found = dict(dict.fromkeys(module.COMPARISON.scores, 31.256), classes={}, minutes=1.0)
        folder.mkdir(parents=True)
        (folder / 'result.json').write_text(json.dumps(found))
        return found

    train_folder, out = photo_pairs / 'train', photo_pairs / 'out'
    command = ['super_resolution', '--train', str(train_folder), '--test']
    command += [str(photo_pairs / 'Set5'), '--out', str(out), '--iterations', '40', '--search']
    command += ['--rates', '1', '2', '--extensions', '0', '--batch', '8', '--size', '12']
    monkeypatch.setattr(sys, 'argv', [*command, '--seeds', '3', '5', '--equal-time'])
    costs = {'BP': 1.0, 'BP, checkpointed (exact)': 1.3, 'FBA, K=4': 1.5}
    with mock.patch.multiple(
        benchmark('compared_trainings'),
        train=train,
        TrainingStep=mock.DEFAULT,
        peak_bytes=lambda step, device: 2**20,
        predict_memory=lambda cfg, shape: SimpleNamespace(flops=1),
        synthetic_batch=mock.DEFAULT,
        seconds_by_turns=lambda *_: costs,
        processor_seconds=lambda *_: costs,
    ):
        module.main()
    lengths = [length for _, length, _ in trained]
    assert lengths == ['40_iterations'] * 8 + ['60_iterations'] * 2
    assert {lr for _, _, lr in trained[4:]} == {5e-4}
    assert {kind for kind, _, _ in trained[8:]} == {'EDSRNet'}
    photos, others = held_out[0]
    assert not photos & others and len(photos) == 8 and 1 <= len(others) <= 2
    assert all(sides == held_out[0] for sides in held_out)
    table = (out / 'table.md').read_text()
    for row in (
        '| training | lr | seeds | Set5 Y PSNR | Set5 Y SSIM | Set5 RGB PSNR | Set5 RGB SSIM |',
        '| FBA, K=4 | 0.0005 | 2 | 31.26 ± 0.00 | 31.2560 ± 0.0000 |',
        '| BP, 60 iterations (time of FBA, K=4) | 0.0005 | 2 | 31.26 ± 0.00 |',
        '| bicubic | – | – | inf |',
    ):
        assert row in table
    assert 'held_out Y PSNR, dB' in (out / 'search.md').read_text()
    assert (out / 'costs.png').exists() and (out / 'time.png').exists()


def test_classifiers_side_by_side(tmp_path, monkeypatch):
    """Each method has a rate of its own; checkpointed BP learns what BP does, at its own cost."""
    module, trained = benchmark('classification'), []

    def hold_out(cfg, folder):
        cfg.held_out = True
        return cfg

    def train(folder, cfg, figures, may_diverge=False):
        local, lr = cfg.model.backbone.type == 'LocalBackbone', cfg.optim_wrapper.optimizer.lr
        trained.append(('fba' if local else 'bp', 'held_out' in cfg, cfg.randomness.seed, lr))
        assert cfg.train_cfg.val_interval == cfg.train_cfg.max_epochs == 6
        accuracy = 0.9 - abs(lr - (0.05 if local else 0.1))
        return dict(accuracy=accuracy, classes={}, minutes=1.0)

    command = ['classification', '--out', str(tmp_path), '--search', '--rates', '1', '2', '4']
    command += ['--methods', 'bp', 'bp_checkpointed', 'fba', '--seeds', '3', '5', '--epochs', '6']
    monkeypatch.setattr(sys, 'argv', command)
    costs = {'BP': 1.0, 'BP, checkpointed (exact)': 1.3, 'FBA, SLM': 1.9}
    backbones = []

    def training_step(self, cfg, device):
        backbones.append(cfg.model.backbone)
        return lambda: costs[list(costs)[(len(backbones) - 1) % 3]]

    with mock.patch.multiple(
        benchmark('compared_trainings'),
        hold_out=hold_out,
        images_of=lambda cfg: dict(train=80, val=20),
        train=train,
        TrainingStep=mock.DEFAULT,
        peak_bytes=lambda step, device: 2**20,
        predict_memory=lambda cfg, shape: SimpleNamespace(flops=1e9 if shape[0] == 64 else 0),
        seconds_by_turns=lambda *_: costs,
        processor_seconds=lambda *_: {name: 2 * cost for name, cost in costs.items()},
    ), mock.patch.object(module.Classification, 'training_step', training_step):
        module.main()
        count = len(trained)
        out = tmp_path / 'costs'
        monkeypatch.setattr(sys, 'argv', [*command, '--costs-only', '--out', str(out)])
        module.main()
    assert len(trained) == count and not (out / 'costs.png').exists()
    assert '| FBA, SLM | 0.05 | 0 | – | 1.900 | 1.90 | 1.90 |' in (out / 'table.md').read_text()
    # FBA's best is at the edge.
    rates = dict(bp=[0.05, 0.1, 0.2], fba=[0.025, 0.05, 0.1, 0.2])
    assert sorted(trained) == sorted(
        [(method, True, 0, rate) for method in rates for rate in rates[method]]
        + [('bp', False, seed, 0.1) for seed in (3, 5)]
        + [('fba', False, seed, 0.05) for seed in (3, 5)]
    )
    table = (tmp_path / 'table.md').read_text()
    for row in (
        '| BP | 0.1 | 2 | 90.0 ± 0.0 | 1.000 | 1.00 | 1.00 | 1.00 | 1.0 | 1.00 |',
        '| BP, checkpointed (exact) | 0.1 | 2 | 90.0 ± 0.0 | 1.300 | 1.30 | 1.30 | 1.00 | 1.0 |',
        '| FBA, SLM | 0.05 | 2 | 90.0 ± 0.0 | 1.900 | 1.90 | 1.90 | 1.00 | 1.0 | 1.00 |',
    ):
        assert row in table
    assert backbones[1].num_modules == 1 and backbones[1].recompute == 3
    assert backbones[2].num_modules == 16 and backbones[0].type.endswith('CifarResNet')
    assert (tmp_path / 'costs.png').exists() and (tmp_path / 'search.md').exists()


def classification_config(data, method, size, **budget):
    """The training config of a method on images of a size."""
    module = benchmark('classification')
    args = SimpleNamespace(data=data, network='resnet32', size=size, methods=[method])
    vars(args).update({name: budget.get(name) for name in ('images', 'length', 'batch')})
    (variant,) = module.COMPARISON.variants(args)
    return module.COMPARISON.training_config(args, variant, 0)


@pytest.mark.parametrize(('data', 'padding'), [('digits', 2), ('cifar10', 2), ('svhn', 1)])
def test_images_of_another_size_are_moved_as_far(data, padding):
    pipeline = classification_config(data, 'bp', 16).train_dataloader.dataset.pipeline
    assert [t.padding for t in pipeline if t.get('padding')] == [padding]
    assert [t.crop_size for t in pipeline if t.type == 'RandomCrop'] == [16]


@pytest.mark.parametrize('method', ['bp', 'predsim'])
def test_images_of_another_size(method):
    """All that trains or validates sees it, and what an auxiliary network measures in it."""
    cfg = classification_config('digits', method, 16, images=40, length=1, batch=8)
    assert batch_shape(cfg) == (8, 3, 16, 16)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        train, val = (
            DATASETS.build(cfg[f'{split}_dataloader'].dataset) for split in ('train', 'val')
        )
    assert train[0]['inputs'].shape == val[0]['inputs'].shape == (3, 16, 16)
    # What trains is on the device.
    batches = DeviceBatches.from_dataset(train, 8, 40)
    assert next(iter(batches))['inputs'].shape == (8, 3, 16, 16)
    if method == 'predsim':
        assert cfg.model.backbone.auxiliary.image_size == 16
