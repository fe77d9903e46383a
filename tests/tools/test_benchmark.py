"""tools/benchmark.py: every section runs, and the numbers that don't depend on the machine."""

import json
import sys

import pytest
import torch

from tests.paths import TOOLS, load_script


@pytest.fixture(scope='module')
def benchmark():
    return load_script(TOOLS / 'benchmark.py')


def run(benchmark, monkeypatch, tmp_path, *arguments):
    options = ['--device', 'cpu', '--repeats', '1', '--warmup', '0', '--threads', '1']
    monkeypatch.setattr(
        sys, 'argv', ['benchmark.py', *arguments, *options, '--json', str(tmp_path / 'x.json')]
    )
    benchmark.main()
    return json.loads((tmp_path / 'x.json').read_text())


def test_losses_as_a_share_of_a_training_step(benchmark, monkeypatch, tmp_path, capsys):
    arguments = ['losses', '--classes', '40', '--images', '2', '--image-size', '64']
    rows = run(benchmark, monkeypatch, tmp_path, *arguments)['losses']
    assert [(row['method'], row['formulation']) for row in rows] == [
        ('MDRL', 'paper'), ('MDRL', 'released'), ('MCIBI++', 'update'),
        ('ProtoSeg', 'losses and update'), ('CAR', 'paper'), ('CAR', 'released')]  # fmt: skip
    for row in rows:
        assert row['share'] == pytest.approx(row['losses_ms'] / row['step_ms'])
        assert 0 < row['losses_peak_mib'] < row['step_peak_mib']
        assert row['memory_share'] == row['losses_peak_mib'] / row['step_peak_mib']
    # the similarity of 128 pixels and 360 distributions, and its gradient
    assert rows[0]['losses_peak_mib'] > 2 * 128 * 40 * 9 * 4 / 2**20
    assert 'share, %' in capsys.readouterr().out


def test_other_sections_measure_all_their_forms(benchmark, monkeypatch, tmp_path, capsys):
    results = run(benchmark, monkeypatch, tmp_path, 'voting', 'head', '--head-size', '8')
    assert [row['form'] for row in results['voting']] == ['naive', 'collapsed']
    # 9 maps of 512 channels against one
    assert results['voting'][0]['peak_mib'] > 8 * results['voting'][1]['peak_mib']
    assert [(row['mode'], row['head']) for row in results['head']] == [
        ('training step', 'FCNHead'), ('training step', 'MDRLHead'),
        ('inference', 'FCNHead'), ('inference', 'MDRLHead')]  # fmt: skip
    assert all(row['ms'] > 0 for section in ('voting', 'head') for row in results[section])
    shown = capsys.readouterr().out
    assert 'Feature voting + fusion, K=150' in shown
    assert 'Heads, 2x2048x8x8 features' in shown


def test_all_forms_of_an_update_give_the_same_memory(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, 'UPDATE_SIZE', 8)
    rows = run(benchmark, monkeypatch, tmp_path, 'update', '--update-images', '2')['update']
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


def test_networks_are_plain_and_with_a_memory(benchmark, monkeypatch, tmp_path, capsys):
    arguments = ['networks', '--networks', 'segformer_mit-b0s', '--image-size', '64']
    rows = run(benchmark, monkeypatch, tmp_path, *arguments)['networks']
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


def test_complexity_counts_parameters_and_operations(benchmark, capsys):
    class NoTime:
        device = torch.device('meta')  # shapes are enough to count

        def __call__(self, forms):
            return {name: dict(ms=0.0, peak_mib=0.0) for name in forms}

    rows = {row['module']: row for row in benchmark.benchmark_complexity(NoTime(), None)}
    # FCN: two 3x3 convs, a 3x3 conv on [x, convs(x)], batch norms
    convs = 9 * 512 * (2048 + 512 + 2048 + 512)
    assert rows['none (FCN)']['params_m'] * 1e6 == convs + 3 * 2 * 512
    assert rows['none (FCN)']['gmacs'] * 1e9 == pytest.approx(convs * 128 * 128)
    for name in ('ASPP', 'PPM', 'CCNet', 'DANet', 'ANN', 'DNL', 'APCNet'):
        params, gmacs, _ = rows[name]['paper']
        assert rows[name]['params_m'] == pytest.approx(params, rel=2e-3), name
        # the paper's are of the convolutions, and of norms
        assert rows[name]['convs_gmacs'] == pytest.approx(gmacs, rel=1e-3), name
    # what it leaves out: the two products of 128^2 pixels each with the other
    left_out = rows['DNL']['gmacs'] - rows['DNL']['convs_gmacs']
    assert left_out == pytest.approx(2 * 128**4 * 256 / 1e9, rel=1e-3)
    assert rows['MDRL']['gmacs'] < rows['PPM+MDRL']['gmacs']
    assert 'MCIBI, table 3' in capsys.readouterr().out


def test_unknown_section_is_named(benchmark, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(benchmark, monkeypatch, tmp_path, 'votting')
    assert 'unknown section votting: choose from losses, ' in capsys.readouterr().err


def test_medians_of_forms_run_in_turn(benchmark, monkeypatch):
    clock, order = [0.0], []

    def takes(name, *seconds):
        rounds = iter(seconds)

        def run():
            order.append(name)
            clock[0] += next(rounds)

        return run

    monkeypatch.setattr(benchmark.time, 'perf_counter', lambda: clock[0])
    monkeypatch.setattr(benchmark, 'peak_memory', lambda form, device: 2**20)
    timer = benchmark.Timer(torch.device('cpu'), warmup=1, repeats=3)
    measured = timer({'a': takes('a', 99, 1, 7, 2), 'b': takes('b', 99, 4, 3, 5)})
    assert measured == {'a': dict(ms=2000, peak_mib=1), 'b': dict(ms=4000, peak_mib=1)}
    assert order == ['a', 'b'] * 4


def test_cpu_time_leaves_out_what_others_do(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, 'peak_memory', lambda form, device: 0)
    monkeypatch.setattr(benchmark.time, 'process_time', iter(range(0, 10, 3)).__next__)
    monkeypatch.setattr(benchmark.time, 'perf_counter', None)
    timer = benchmark.Timer(torch.device('cpu'), warmup=0, repeats=2, cpu_time=True)
    assert timer({'a': lambda: None})['a']['ms'] == 3000


def test_cpu_time_is_of_one_thread(benchmark, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        benchmark.parse_args(['voting', '--device', 'cpu', '--cpu-time', '--threads', '2'])
    assert '--cpu-time goes with --device cpu --threads 1' in capsys.readouterr().err
