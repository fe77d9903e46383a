"""Metafiles and READMEs name configs that exist, all of them, and no figure of unknown origin."""

import json
import re

import pytest
import yaml
from mmengine.config import Config

from mmseg_cmdl.conversion import RELEASED
from tests import car_figures
from tests.paths import ROOT

CONFIGS = ROOT / 'configs'
INDEX = ROOT / 'model-index.yml'
METAFILES = sorted(CONFIGS.glob('*/metafile.yml'))
PATHS = {path.stem: path for path in sorted(CONFIGS.rglob('*.py')) if '_base_' not in path.parts}
SINGLE, MULTI = 'mIoU (paper)', 'mIoU (paper, ms+flip)'
MEASURED = 'mIoU (measured here)'
TOOLBOX = 'mIoU (released toolbox)'
SETTING = {'cityscapes': '4xb2-80k_cityscapes-512x1024', 'ade20k': '4xb4-160k_ade20k-512x512'}

# MDRL, tables 1, 5 and 6: (context, backbone, dataset): (plain, MDRL, MDRL with ms+flip)
PAPER = {
    ('fcn', 'r50', 'cityscapes'): ('75.16', '79.16', None),
    ('pspnet', 'r50', 'cityscapes'): ('78.55', '80.05', None),
    ('ccnet', 'r50', 'cityscapes'): ('79.15', '79.78', None),
    ('pspnet', 'r101', 'cityscapes'): ('79.76', '81.01', None),
    ('fcn', 'r50', 'ade20k'): ('36.96', '42.57', None),
    ('pspnet', 'r50', 'ade20k'): ('42.64', '44.39', '45.43'),
    ('ccnet', 'r50', 'ade20k'): ('42.47', '43.22', None),
    ('pspnet', 'r101', 'ade20k'): (None, None, '46.70'),
}
PAPER = {
    f'mdrl_{context}_{backbone}-d8_{SETTING[dataset]}': figures
    for (context, backbone, dataset), figures in PAPER.items()
}
# MCIBI, table 5: (context, dataset): (plain, MCIBI); table 6: multi-scale and flip; table 4: CIHP
MCIBI_SETTING = {
    **SETTING,
    'lip': '8xb4-140k_lip-473x473',
    'coco-stuff164k': '4xb4-220k_coco-stuff164k-512x512',
    'cihp': '8xb4-140k_lip-473x473_cihp-473x473',
    'trainval': '4xb4-96k_cityscapes-trainval-512x1024',
    'coco-stuff10k': '4xb4-62k_coco-stuff10k-182-512x512',
}
MCIBI_TABLE_5 = {
    'ade20k': dict(
        fcn=('36.96', '42.84'),
        pspnet=('42.64', '43.77'),
        ocrnet=('42.47', '43.34'),
        deeplabv3=('43.19', '44.34'),
    ),
    'cityscapes': dict(
        fcn=('75.16', '78.50'),
        pspnet=('79.05', '79.90'),
        ocrnet=('79.40', '79.98'),
        deeplabv3=('80.57', '81.14'),
    ),
    'lip': dict(
        fcn=('48.63', '51.07'),
        pspnet=('51.94', '52.84'),
        ocrnet=('52.25', '52.80'),
        deeplabv3=('52.35', '53.52'),
    ),
    'coco-stuff164k': dict(
        fcn=('35.11', '39.95'),
        pspnet=('41.01', '41.80'),
        ocrnet=('40.57', '41.10'),
        deeplabv3=('41.86', '42.08'),
    ),
    'cihp': dict(fcn=('27.20', '27.57'), deeplabv3=('27.02', '27.89')),
}
MCIBI_PAPER = {
    f'mcibi_{context}_r50-d8_{MCIBI_SETTING[dataset]}': (*figures, None)
    for dataset, row in MCIBI_TABLE_5.items()
    for context, figures in row.items()
}
# tables 6 to 9, DeepLabV3 with several scales and flip (LIP: flip)
MCIBI_TABLES_6_TO_9 = {
    'ade20k': {'r50-d8': '45.95', 'r101-d8': '47.22', 's101-d8': '47.36', 'vit-l': '50.80'},
    'lip': {'r50-d8': '54.08', 'r101-d8': '55.42', 's101-d8': '56.34', 'hr48': '56.99'},
    'trainval': {'r50-d8': '79.90', 'r101-d8': '82.03', 's101-d8': '81.59', 'hr48': '82.55'},
    'coco-stuff10k': {'r50-d8': '39.68', 'r101-d8': '41.49', 's101-d8': '42.15', 'vit-l': '44.89'},
}
for dataset, row in MCIBI_TABLES_6_TO_9.items():
    for backbone, multi in row.items():
        setting = MCIBI_SETTING[dataset]
        if backbone == 'vit-l':
            setting = setting.replace('4xb4', '8xb2')
        name = f'mcibi_deeplabv3_{backbone}_{setting}'
        MCIBI_PAPER[name] = (*MCIBI_PAPER.get(name, (None, None))[:2], multi)


def multi_key(name):
    """How a metafile calls the paper's figure of the tables 6 to 9."""
    if 'trainval' in name:
        return 'mIoU (paper, test set, ms+flip)'
    return 'mIoU (paper, flip)' if 'lip-473x473' in name else MULTI


HEAD = 'model.decode_head'
# MCIBI, tables 1 and 2; table 1 is without representation consistent learning
NO_RCL = f'{HEAD}.loss_memory=None'
MCIBI_ABLATIONS = {
    f'{HEAD}.fusion=add {NO_RCL}': '40.99',
    f'{HEAD}.fusion=weighted_add {NO_RCL}': '41.17',
    f'{HEAD}.fusion=concat {NO_RCL}': '42.18',
    f'{HEAD}.momentum_power=0 {NO_RCL}': '41.77',
    f'{HEAD}.bank.strategy=mean {NO_RCL}': '41.95',
    NO_RCL: '42.18',
    f'{HEAD}.bank.init=memory.pth {NO_RCL}': '42.20',
    f'{HEAD}.bank.init=memory.pth': '42.75',
}
ALPHA, BETA = (f'{HEAD}.loss_consistency.{index}.loss_weight' for index in (0, 1))
# tables 2, 3 and 4
ABLATIONS = {
    **{
        f'{HEAD}.bank.num_distributions={number}': mIoU
        for number, mIoU in zip(
            range(1, 16, 2),
            ['78.50', '78.64', '78.66', '77.47', '79.16', '78.74', '78.35', '78.54'],
        )
    },
    f'{BETA}=0': '78.20',
    f'{ALPHA}=0': '77.59',
    **{
        f'{ALPHA}=0.01 {BETA}={beta}': mIoU
        for beta, mIoU in zip(
            ['0.01', '0.02', '0.03', '0.05', '0.06', '0.07', '0.1', '0.45'],
            ['78.97', '78.8', '78.00', '79.16', '78.51', '78.03', '78.07', '78.58'],
        )
    },
    f'{ALPHA}=0.02 {BETA}=0.01': '78.36',
}
CLASSES = {
    'Cityscapes': 'CityscapesDataset',
    'ADE20K': 'ADE20KDataset',
    'CamVid': 'CamVidDataset',
    'COCO-Stuff 164k': 'COCOStuffDataset',
    'Synthetic scenes': 'SyntheticScenesDataset',
    'Earth climate': 'EarthClimateDataset',
    'LIP': 'LIPDataset',
    'CIHP': 'CIHPDataset',
    'Pascal Context 59': 'PascalContextDataset59',
    'COCO-Stuff 10k': 'COCOStuffDataset',
    'COCO-Stuff 10k, 182 classes': 'COCOStuff182Dataset',
    'Pascal Context': 'PascalContextDataset',
    'PASCAL VOC 2012': 'PascalVOCDataset',
}
FIGURES = {
    **PAPER,
    **MCIBI_PAPER,
    **{name: (None, single, None) for name, single in car_figures.PAPER.items()},
}
# DGCW, tables 1 and 3 to 6: (context and backbone, setting): metrics
DGCW = {
    ('fcn_r101-d8', '4xb2-80k_cityscapes-769x769'): {SINGLE: 77.81},
    ('pspnet_r101-d8', '4xb2-80k_cityscapes-769x769'): {SINGLE: 79.60},
    ('deeplabv3_r101-d8', '4xb2-80k_cityscapes-769x769'): {SINGLE: 80.43},
    ('deeplabv3_r101-d8-ohem', '4xb2-80k_cityscapes-769x769'): {SINGLE: 80.86, MULTI: 81.80},
    ('deeplabv3_r101-d8-ohem', '4xb2-80k_cityscapes-trainval-769x769'): {
        'mIoU (paper, test set, ms+flip)': 81.6
    },
    ('deeplabv3_r101-d8-ohem', '4xb4-80k_pascal-context-513x513'): {SINGLE: 53.9},
    ('deeplabv3_r101-d8-ohem', '4xb4-160k_ade20k-513x513'): {SINGLE: 45.51},
}
# docs/modelzoo/mcibiplusplus/README.md of sssegmentation, README.md of ProtoSeg's repository
REPORTED = {
    name: model['reported']
    for name, model in json.loads((ROOT / 'tests' / 'data' / 'released_models.json').read_text())[
        'models'
    ].items()
    if name.startswith('mcibiplusplus_')
}
# these have no config of their own
NO_CONFIG = {
    *(f'mcibiplusplus_upernet_resnet{depth}os8_vspw' for depth in (50, 101)),
    *(
        f'mcibiplusplus_upernet_swinlarge_{dataset}'
        for dataset in ('cocostuff10k', 'lip', 'pascalcontext59', 'vspw')
    ),
}
TOOLBOX_FIGURES = {
    **{RELEASED[name].config: row[0] for name, row in REPORTED.items() if name not in NO_CONFIG},
    'protoseg_fcn_hr48_4xb2-80k_cityscapes-512x1024': '80.10',
}
# the toolbox's second figure: several scales and flip, on LIP flip alone
TOOLBOX_MULTI = {
    RELEASED[name].config: float(row[1])
    for name, row in REPORTED.items()
    if name not in NO_CONFIG and row[1] != '-'
}
# MDRL, tables 5 and 6
MDRL_ON_MCIBIPP = {
    f'mcibipp_pspnet_{backbone}-d8_{SETTING[dataset]}': {key: figure}
    for backbone, dataset, key, figure in (
        ('r50', 'ade20k', 'mIoU (MDRL paper, ms+flip)', 44.72),
        ('r101', 'ade20k', 'mIoU (MDRL paper, ms+flip)', 46.06),
        ('r101', 'cityscapes', 'mIoU (MDRL paper)', 80.49),
    )
}
DGCW = {f'dgcw_{network}_{setting}': metrics for (network, setting), metrics in DGCW.items()}


def models():
    """(metafile, entry) of every model."""
    return [
        (path, entry) for path in METAFILES for entry in yaml.safe_load(path.read_text())['Models']
    ]


ENTRIES = {entry['Name']: (path, entry) for path, entry in models()}


def test_index_imports_every_metafile():
    imported = yaml.safe_load(INDEX.read_text())['Import']
    assert sorted(imported) == [path.relative_to(ROOT).as_posix() for path in METAFILES]


def test_every_config_has_one_entry_and_every_entry_a_config():
    names = [entry['Name'] for _, entry in models()]
    assert sorted(names) == sorted(PATHS)
    for name, (metafile, entry) in ENTRIES.items():
        assert ROOT / entry['Config'] == PATHS[name]
        assert PATHS[name].parent == metafile.parent


@pytest.mark.parametrize('name', ENTRIES)
def test_entry_agrees_with_its_config(name):
    metafile, entry = ENTRIES[name]
    cfg = Config.fromfile(PATHS[name], import_custom_modules=False)
    gpus, per_gpu = map(int, re.search(r'_(\d+)xb(\d+)-', name).groups())
    data = entry['Metadata']
    assert data['Batch Size'] == gpus * per_gpu == gpus * cfg.train_dataloader.batch_size
    assert CLASSES[entry['Results']['Dataset']] == cfg.test_dataloader.dataset.type
    trained_on = cfg.train_dataloader.dataset
    for dataset in trained_on.get('datasets', [trained_on]):
        assert CLASSES[data['Training Data']] == dataset.type
    (collection,) = (
        item
        for item in yaml.safe_load(metafile.read_text())['Collections']
        if item['Name'] == entry['In Collection']
    )
    assert data['Training Data'] in collection['Metadata']['Training Data']
    assert (ROOT / collection['README']).parent == metafile.parent
    heads = cfg.model.decode_head
    head = heads[-1] if isinstance(heads, list) else heads
    for method in ('MDRL', 'MCIBI', 'MCIBI++', 'ProtoSeg', 'DGCW'):
        kind = f'{method}Head'.replace('++', 'PlusPlus')
        assert (entry['In Collection'] == method) == (head.type == kind)
    assert (entry['In Collection'] == 'CAR') == cfg.model.type.startswith('CAR')


def table_rows(path):
    """Cells of every row of every table."""
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in path.read_text().splitlines()
        if line.startswith('|')
    ]


def test_figures_say_whose_they_are():
    """The paper's, or measured here and in the README; no checkpoint is published."""
    for name, (metafile, entry) in ENTRIES.items():
        assert not {'Weights', 'Training log'} & set(entry), name
        _, single, multi = FIGURES.get(name, (None, None, None))
        expected = {
            key: float(figure)
            for key, figure in {SINGLE: single, multi_key(name): multi}.items()
            if figure
        }
        expected.update(DGCW.get(name, {}))
        if TOOLBOX_FIGURES.get(name, '-') != '-':
            expected[TOOLBOX] = float(TOOLBOX_FIGURES[name])
        if name in TOOLBOX_MULTI:
            key = multi_key(name).replace('paper', 'released toolbox')
            expected[key] = TOOLBOX_MULTI[name]
        expected.update(MDRL_ON_MCIBIPP.get(name, {}))
        metrics = dict(entry['Results']['Metrics'])
        measured = metrics.pop(MEASURED, None)
        assert metrics == expected, name
        rows = [
            row
            for row in table_rows(metafile.parent / 'README.md')
            if row[0] == f'[{name}]({name}.py)'
        ]
        assert rows, name
        for row in rows:  # a row may be in two of the paper's tables
            assert (measured is None) == (row[-1] == 'not yet measured'), name
            assert measured is None or str(measured) in row[-1], name
            assert name not in TOOLBOX_FIGURES or row[1] == TOOLBOX_FIGURES[name], name
            (of_mdrl,) = MDRL_ON_MCIBIPP.get(name, {'': '-'}).values()
            assert not name.startswith('mcibipp_') or len(row) < 4 or row[2] == str(of_mdrl), name


@pytest.mark.parametrize(('folder', 'paper'), [('mdrl', PAPER), ('mcibi', MCIBI_PAPER)])
def test_readme_tables_have_the_papers_figures(folder, paper):
    rows = {row[0]: row[1:] for row in table_rows(CONFIGS / folder / 'README.md')}
    for name, (plain, single, multi) in paper.items():
        row = rows[f'[{name}]({name}.py)'][:-1]
        if re.search('trainval|coco-stuff10k', name):
            expected = [multi]
        elif re.search('ade20k|lip-473x473$', name):
            expected = [plain, single, multi]
        else:
            expected = [plain, single]
        assert row == [figure or '-' for figure in expected], name


@pytest.mark.parametrize(
    ('folder', 'head'), [('mcibi', 'MCIBIHead'), ('mcibipp', 'MCIBIPlusPlusHead')]
)
def test_readme_lists_the_released_models(folder, head):
    released = json.loads((ROOT / 'tests' / 'data' / 'released_models.json').read_text())['models']
    rows = {row[0].strip('`'): row[1:] for row in table_rows(CONFIGS / folder / 'README.md')}
    for name, model in RELEASED.items():
        if model.head == head:
            link, *figures, _, converts = rows[name]
            assert link == f'[{model.config}]({model.config}.py)'
            assert figures == released[name]['reported'], name
            assert converts == ('with `--out-config`' if name in NO_CONFIG else 'yes'), name


@pytest.mark.parametrize(('folder', 'expected'), [('mdrl', ABLATIONS), ('mcibi', MCIBI_ABLATIONS)])
def test_readme_ablations_have_the_papers_figures(folder, expected):
    found = {}
    for row in table_rows(CONFIGS / folder / 'README.md'):
        options = [cell.strip('`') for cell in row if cell.startswith(f'`{HEAD}.')]
        if options and re.fullmatch(r'\d\d\.\d+', row[-2]):
            found[options[0]] = row[-2]
    assert found == expected


@pytest.mark.parametrize('folder', [path.parent.name for path in METAFILES])
def test_commands_of_a_readme_name_configs(folder):
    text = (CONFIGS / folder / 'README.md').read_text()
    for name in re.findall(r'configs/\w+/([\w.-]+)\.py', text):
        assert name in PATHS, name


def test_mim_search_lists_every_config():
    """What `mim search mmseg_cmdl` shows, from the file it reads."""
    modelindex = pytest.importorskip('modelindex')
    search = pytest.importorskip('mim.commands.search')
    table = search.convert2df(modelindex.load(str(INDEX)))
    assert set(table.index) == set(PATHS)
    row = table.loc['mdrl_pspnet_r50-d8_4xb4-160k_ade20k-512x512']
    assert row['model'] == 'mdrl'
    assert row['batch_size'] == 16
    assert row['ade20k/miou_(paper)'] == 44.39
    assert row['config'] == 'configs/mdrl/mdrl_pspnet_r50-d8_4xb4-160k_ade20k-512x512.py'
    found = search.filter_by_models(table, ['pspnet'])
    assert set(found.index) == {name for name in PATHS if name.startswith('pspnet')}
