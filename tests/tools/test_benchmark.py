"""tools/benchmark.py: every section runs, and the numbers that don't depend on the machine."""

import json

import pytest
import torch

from tests.paths import TOOLS, load_script


@pytest.fixture(scope='module')
def script():
    return load_script(TOOLS / 'benchmark.py')


@pytest.fixture
def run(script, tmp_path):
    """Runs it with a line of arguments, and gives what it writes."""

    def run(arguments):
        arguments += ' --device cpu --repeats 1 --warmup 0 --threads 1 --json'
        script.main([*arguments.split(), str(tmp_path / 'x.json')])
        return json.loads((tmp_path / 'x.json').read_text())

    return run


def test_losses_as_a_share_of_a_training_step(run, capsys):
    rows = run('losses --classes 40 --images 2 --image-size 64')['losses']
    assert [(row['method'], row['formulation']) for row in rows] == [
        ('MDRL', 'paper'), ('MDRL', 'released'), ('MCIBI++', 'update'),
        ('ProtoSeg', 'losses and update'), ('CAR', 'paper'), ('CAR', 'released')]  # fmt: skip
    for row in rows:
        assert row['share'] == pytest.approx(100 * row['losses_ms'] / row['step_ms'])
        assert 0 < row['losses_peak_mib'] < row['step_peak_mib']
        memory_share = 100 * row['losses_peak_mib'] / row['step_peak_mib']
        assert row['memory_share'] == pytest.approx(memory_share)
    # the similarity of 128 pixels and 360 distributions, and its gradient
    assert rows[0]['losses_peak_mib'] > 2 * 128 * 40 * 9 * 4 / 2**20
    assert 'share, %' in capsys.readouterr().out


def test_other_sections_measure_all_their_forms(run, capsys):
    results = run(
        'voting head channel_weighting --head-size 8 --map-sizes 4x5 12x12 --naive-gib 0.01'
    )
    assert [row['form'] for row in results['voting']] == ['naive', 'collapsed']
    # 9 maps of 512 channels against one
    assert results['voting'][0]['peak_mib'] > 8 * results['voting'][1]['peak_mib']
    assert [(row['mode'], row['form']) for row in results['head']] == [
        ('training step', 'FCNHead'), ('training step', 'MDRLHead'),
        ('inference', 'FCNHead'), ('inference', 'MDRLHead')]  # fmt: skip
    # 144^2 pairs of 128 channels are 0.01 GiB, of which the naive form needs several
    layers = [(row['mode'], row['size'], row['form']) for row in results['channel_weighting']]
    assert layers == [
        (mode, size, form)
        for mode in ('training', 'inference')
        for size, form in (('4x5', 'ours'), ('4x5', 'naive'), ('12x12', 'ours'))
    ]
    assert all(row['ms'] > 0 for name, rows in results.items() if name != 'machine' for row in rows)
    shown = capsys.readouterr().out
    assert 'Feature voting + fusion, K=150' in shown
    assert 'Heads, 2x2048x8x8 features' in shown


def test_all_forms_of_an_update_give_the_same_memory(script, run, monkeypatch, capsys):
    monkeypatch.setattr(script, 'UPDATE_SIZE', 8)
    rows = run('update --update-images 2')['update']
    forms = ['ours', 'materialised', 'loop over classes', 'floor']
    assert [(row['method'], row['form']) for row in rows] == [
        *(('MCIBI', form) for form in forms),
        *(('MCIBI++', form) for form in forms),
        *(('ProtoSeg', form) for form in forms if form != 'materialised'),
    ]
    for row in rows:
        if row['form'] == 'floor':
            assert row['difference'] is None
        else:
            assert row['difference'] < 1e-6
    assert '2x512x8x8 features, 64x64 labels' in capsys.readouterr().out


def test_networks_are_plain_and_with_a_memory(run, capsys):
    rows = run('networks --networks segformer_mit-b0s --image-size 64')['networks']
    assert [(row['mode'], row['form']) for row in rows] == [
        (mode, form)
        for mode in ('training step', 'inference')
        for form in ('plain', 'MDRL', 'MCIBI')
    ]
    for plain, *others in (rows[:3], rows[3:]):
        assert plain['ratio'] == plain['memory_ratio'] == 1
        for row in others:
            assert row['ratio'] == pytest.approx(row['ms'] / plain['ms'])
            assert row['memory_ratio'] == pytest.approx(row['peak_mib'] / plain['peak_mib'])
    assert 'segformer_mit-b0s, 2 images of 64x64, K=150' in capsys.readouterr().out


def test_complexity_counts_parameters_and_operations(script, capsys):
    class NoTime:
        device = torch.device('meta')  # shapes are enough to count

        def __call__(self, forms):
            return {name: dict(ms=0.0, peak_mib=0.0) for name in forms}

    rows = {row['module']: row for row in script.benchmark_complexity(NoTime(), None)}
    # FCN: two 3x3 convs, a 3x3 conv on [x, convs(x)], batch norms
    convs = 9 * 512 * (2048 + 512 + 2048 + 512)
    assert rows['none (FCN)']['params_m'] * 1e6 == convs + 3 * 2 * 512
    assert rows['none (FCN)']['gmacs'] * 1e9 == pytest.approx(convs * 128 * 128)
    for name in ('ASPP', 'PPM', 'CCNet', 'DANet', 'ANN', 'DNL', 'APCNet'):
        row = rows[name]
        assert row['params_m'] == pytest.approx(row['paper_m'], rel=2e-3), name
        # the paper's are of the convolutions, and of norms
        assert row['convs_gmacs'] == pytest.approx(row['paper_gmacs'], rel=1e-3), name
    # what it leaves out: the two products of 128^2 pixels each with the other
    left_out = rows['DNL']['gmacs'] - rows['DNL']['convs_gmacs']
    assert left_out == pytest.approx(2 * 128**4 * 256 / 1e9, rel=1e-3)
    assert rows['MDRL']['gmacs'] < rows['PPM+MDRL']['gmacs']
    assert 'MCIBI, table 3' in capsys.readouterr().out


@pytest.mark.parametrize(('arguments', 'message'), [
    ('votting', 'unknown section votting: choose from losses, '),
    ('voting --device cpu --cpu-time --threads 2',
     '--cpu-time goes with --device cpu --threads 1'),
])  # fmt: skip
def test_wrong_arguments_are_refused(script, arguments, message, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(arguments.split())
    assert message in capsys.readouterr().err


def test_medians_of_forms_run_in_turn(script, monkeypatch):
    clock, order = [0.0], []

    def takes(name, *seconds):
        rounds = iter(seconds)

        def run():
            order.append(name)
            clock[0] += next(rounds)

        return run

    monkeypatch.setattr(script.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(script, 'peak_memory', lambda form, device: 2**20)
    timer = script.Timer(torch.device('cpu'), warmup=1, repeats=3)
    measured = timer({'a': takes('a', 99, 1, 7, 2), 'b': takes('b', 99, 4, 3, 5)})
    assert measured == {'a': dict(ms=2000, peak_mib=1), 'b': dict(ms=4000, peak_mib=1)}
    assert order == ['a', 'b'] * 4


def test_cpu_time_leaves_out_what_others_do(script, monkeypatch):
    monkeypatch.setattr(script, 'peak_memory', lambda form, device: 0)
    monkeypatch.setattr(script.time, 'process_time', iter(range(0, 10, 3)).__next__)
    monkeypatch.setattr(script.time, 'perf_counter', None)
    timer = script.Timer(torch.device('cpu'), warmup=0, repeats=2, cpu_time=True)
    assert timer({'a': lambda: None})['a']['ms'] == 3000
