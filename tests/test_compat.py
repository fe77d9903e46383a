"""Each seam by itself, and that nothing more than it says is let through."""

import copy
import importlib
import inspect
import io
import pickle
import re
import sys
import types
import zipfile

import mmcv
import mmengine
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from mmseg_cmdl import compat, environment
from tests import tiny
from tests.paths import PACKAGE, python
from tests.stack import OLD_TORCH

STANDS_IN = isinstance(sys.modules.get('mmcv._ext'), compat._ExtStandIn)
needs_stand_in = pytest.mark.skipif(not STANDS_IN, reason='mmcv has its compiled ops here')
needs_check = pytest.mark.skipif(OLD_TORCH, reason='torch.load checks nothing before 2.6')


# ------------------------------------------------------------------------- mmcv without ops


@needs_stand_in
def test_called_op_names_itself_and_the_package_to_install():
    from mmcv.ops import nms

    command = re.escape(environment.compiled_mmcv_command())
    message = rf'^`nms` is a compiled op of mmcv, .* run: {command} .* mim install mmcv$'
    with pytest.raises(RuntimeError, match=message):
        nms(torch.rand(3, 4), torch.rand(3), 0.5)


@needs_stand_in
def test_compiled_op_in_backward_names_itself():
    from mmcv.ops import PSAMask

    with pytest.raises(RuntimeError, match='`psamask_forward` is a compiled op of mmcv'):
        PSAMask('collect', (3, 3))(torch.rand(1, 9, 3, 3))


@needs_stand_in
def test_ops_in_plain_pytorch_work():
    from mmcv.ops import CrissCrossAttention, point_sample

    image = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[0.5, 0.5], [0.125, 1 / 6]]])
    torch.testing.assert_close(point_sample(image, points), torch.tensor([[[5.5, 0.0]]]))
    attention = CrissCrossAttention(16)
    features = torch.rand(1, 16, 3, 4)
    # Its scale starts at zero: the output is the input until it is trained.
    torch.testing.assert_close(attention(features), features)


@needs_stand_in
def test_hosts_still_see_that_there_are_no_compiled_ops():
    from mmcv.utils import collect_env
    from mmcv.utils.ext_loader import check_ops_exist
    from mmengine.utils.dl_utils import mmcv_full_available

    # The fork only asks whether the module has a spec; see _ExtStandIn.
    assert mmcv_full_available() is environment.is_fork()
    assert check_ops_exist() is False
    found = collect_env()
    assert found['MMCV'] == mmcv.__version__
    assert found['MMCV Compiler'] == 'n/a'
    assert found['MMCV CUDA Compiler'] == 'n/a'


@needs_stand_in
def test_stand_in_behaves_as_a_module():
    ext = importlib.import_module('mmcv._ext')
    assert isinstance(ext, types.ModuleType)
    assert hasattr(ext, 'any_name_that_load_ext_asks_for')
    assert not hasattr(ext, '__file__')
    assert not hasattr(ext, '_private')
    # Walks over all modules and asks each for its __file__.
    assert inspect.getmodule(test_stand_in_behaves_as_a_module.__code__) is not None
    op = pickle.loads(pickle.dumps(ext.roi_align_forward))
    for copied in (op, copy.deepcopy(op)):
        with pytest.raises(RuntimeError, match='`roi_align_forward` is a compiled op'):
            copied(1, x=2)


@needs_stand_in
def test_second_call_keeps_the_stand_in():
    before = sys.modules['mmcv._ext']
    assert compat.stand_in_for_mmcv_ext() is True
    assert sys.modules['mmcv._ext'] is before


@pytest.mark.parametrize(
    ('body', 'expected'),
    [
        ('nms = "compiled"', 'False compiled'),
        (
            'raise ImportError("undefined symbol: _ZN3c10")',
            'ImportError: the compiled ops of mmcv 2.1.0 do not load with torch '
            f'{torch.__version__} (undefined symbol: _ZN3c10); run: pip install --no-deps '
            "--force-reinstall --no-binary mmcv 'mmcv>=2.0.0,<2.2.0' to build them anew, or: "
            "pip install 'mmcv-lite>=2.0.0rc4,<2.2.0' to do without",
        ),
    ],
    ids=['ops that load', 'ops of another PyTorch'],
)
def test_mmcv_with_ops(tmp_path, body, expected):
    for module, version in (('mmcv', '2.1.0'), ('mmseg', '1.2.2')):
        (tmp_path / module).mkdir()
        (tmp_path / module / '__init__.py').write_text(f"__version__ = '{version}'")
    (tmp_path / 'mmcv' / '_ext.py').write_text(body)
    code = (
        # The seam alone: importing the package would put it in place before there is a result.
        'import sys; from importlib import util; import types; '
        f'package = types.ModuleType("mmseg_cmdl"); package.__path__ = [{str(PACKAGE)!r}]; '
        'sys.modules["mmseg_cmdl"] = package; from mmseg_cmdl import compat; '
        'done = compat.stand_in_for_mmcv_ext(); import mmcv._ext; print(done, mmcv._ext.nms)'
    )
    done = python('-c', code, cwd=tmp_path, first_on_path=[tmp_path])
    last = (done.stdout + done.stderr).strip().splitlines()[-1]
    assert last == expected, done.stderr


@pytest.mark.parametrize(
    ('mmseg', 'package'), [('1.2.2', 'mmcv>=2.0.0,<2.2.0'), ('1.4.2', 'onedl-mmcv')]
)
def test_op_error_names_the_package_of_the_family(monkeypatch, mmseg, package):
    monkeypatch.setattr(environment, 'version_of', lambda module: mmseg)
    with pytest.raises(RuntimeError) as error:
        compat._ExtStandIn().ball_query_forward()
    assert f"pip uninstall -y mmcv-lite && pip install '{package}'" in str(error.value)


# -------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope='module')
def job(tmp_path_factory, tiny_data):
    """(folder of the checkpoints, runner) of a finished job of four iterations."""
    folder = tmp_path_factory.mktemp('job')
    cfg = tiny.config(root=tiny_data)
    cfg.work_dir = str(folder)
    cfg.experiment_name = cfg.visualizer.name = 'compat'
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.1)]
    cfg.optim_wrapper = dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.001), accumulative_counts=2
    )
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, begin=0, end=2, by_epoch=False),
        dict(type='CosineAnnealingLR', begin=2, T_max=4, by_epoch=False),
    ]
    runner = Runner.from_cfg(cfg)
    runner.train()
    return folder, runner


def test_runner_checkpoint_loads_with_the_check_left_on(job):
    folder, runner = job
    for name in ('best_mIoU_iter_4.pth', 'iter_2.pth', 'iter_4.pth'):
        checkpoint = torch.load(folder / name)
        scalars = checkpoint['message_hub']['log_scalars']
        losses, counts = scalars['train/loss'].data
        length = int(name.split('_')[-1][0])
        np.testing.assert_array_equal(
            losses, runner.message_hub.log_scalars['train/loss'].data[0][:length]
        )
        assert counts.tolist() == [1] * length
        assert scalars['train/loss'].statistics('max') == losses.max()
    best = checkpoint['message_hub']['runtime_info']['best_score']
    assert best == runner.message_hub.get_info('best_score')
    assert 0 < best < 100
    assert {'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'} <= checkpoint.keys()


@needs_check
@pytest.mark.parametrize('package', ['numpy.core', 'numpy._core'])
def test_checkpoints_of_either_numpy_load(job, tmp_path, package):
    folder, _ = job
    here = 'numpy._core' if hasattr(np, '_core') else 'numpy.core'
    renamed = zipfile.ZipFile(tmp_path / 'renamed.pth', 'w')
    with zipfile.ZipFile(folder / 'iter_4.pth') as source, renamed as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith('data.pkl'):
                written = f'c{here}.multiarray\n'.encode()
                assert written in data
                data = data.replace(written, f'c{package}.multiarray\n'.encode())
            target.writestr(info.filename, data)
    losses = torch.load(folder / 'iter_4.pth')['message_hub']['log_scalars']['train/loss'].data[0]
    renamed = torch.load(tmp_path / 'renamed.pth')['message_hub']['log_scalars']
    np.testing.assert_array_equal(renamed['train/loss'].data[0], losses)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@needs_check
@pytest.mark.parametrize(
    'content',
    [
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, HistoryBuffer, 'register_statistics'),
        Call(getattr, np.ndarray, 'tofile'),
        Call(getattr, Call(getattr, HistoryBuffer, 'mean'), '__globals__'),
        Call(print, 'a call'),
        Call(eval, '1 + 1'),
        np.array([object()]),
        mmengine.Config(dict(a=1)),
    ],
    ids=['init', 'classmethod', 'other class', 'chain', 'print', 'eval', 'object array', 'Config'],
)
def test_anything_else_is_refused(content):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved({'a': content}))


@needs_check
def test_foreign_statistics_method_is_refused(monkeypatch):
    monkeypatch.setitem(HistoryBuffer._statistics_methods, 'foreign', saved)
    with pytest.raises(pickle.UnpicklingError, match='saved'):
        torch.load(saved(HistoryBuffer([1.0], [1])))


@needs_check
def test_users_own_permission_of_getattr_stands():
    content = Call(getattr, HistoryBuffer, 'data')
    with pytest.raises(pickle.UnpicklingError, match='mmseg_cmdl allows only'):
        torch.load(saved(content))
    with torch.serialization.safe_globals([getattr]):
        assert torch.load(saved(content)) is HistoryBuffer.data


@needs_check
def test_what_is_loaded_is_what_was_saved():
    values = {
        'history': HistoryBuffer([1.0, 2.5], [1, 1]), 'scalar': np.float32(3.5),
        'number': np.int64(-7), 'matrix': np.arange(6.0).reshape(2, 3), 'zero': np.array(2.5),
        'columns': np.asfortranarray(np.arange(6, dtype='f4').reshape(2, 3)),
    }  # fmt: skip
    for loaded in (torch.load(saved(values)), torch.load(saved(torch.load(saved(values))))):
        assert type(loaded['history']) is HistoryBuffer
        assert type(loaded['history'].data[0]) is np.ndarray
        assert loaded['history'].data[0].tolist() == [1, 2.5]
        assert loaded['history'].statistics('mean') == 1.75
        for name in ('matrix', 'columns', 'zero'):
            np.testing.assert_array_equal(loaded[name], values[name])
            assert loaded[name].dtype == values[name].dtype
            loaded[name] += 1  # writable
            loaded[name] -= 1
        for name in ('scalar', 'number'):
            assert loaded[name] == values[name]
            assert type(loaded[name]) is type(values[name])
    # a file that is saved again names nothing of this package
    assert b'mmseg_cmdl' not in pickle.dumps(torch.load(saved(values)), protocol=2)


@needs_check
def test_every_entry_is_needed(job, monkeypatch):
    folder, _ = job
    wanted = compat.checkpoint_types()
    renamed = 'numpy.core.' if hasattr(np, '_core') else 'numpy._core.'
    # Those for checkpoints from another NumPy, and beside what others allow.
    elsewhere = {item for item in wanted if renamed in item[1]}
    elsewhere |= {item for item in wanted if item[1] in ('array', 'f4', 'f8', 'i4', 'i8')}
    kept = torch.serialization.get_safe_globals()
    try:
        for left_out in set(wanted) - elsewhere:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals([item for item in wanted if item is not left_out])
            with pytest.raises(pickle.UnpicklingError):
                torch.load(folder / 'best_mIoU_iter_4.pth')
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals([item for item in wanted if item not in elsewhere])
        torch.load(folder / 'best_mIoU_iter_4.pth')
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(kept)


@needs_check
def test_names_without_a_dot_cannot_be_asked_for():
    """They let what a stand-in made be filled, and PyTorch looks for module.name."""
    for item, name in compat.checkpoint_types():
        if isinstance(item, type) and issubclass(item, np.dtype):
            assert '.' not in name
    names = {name for _, name in compat.checkpoint_types() if '.' in name}
    assert not [name for name in names if name.startswith('numpy.dtypes')]


THEIRS = {
    'builtins.getattr': getattr,
    'numpy.ndarray': np.ndarray,
    'numpy.dtype': np.dtype,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    '_reconstruct': None,
    'scalar': None,
}


@needs_check
@pytest.mark.parametrize('chosen', range(2 ** len(THEIRS)))
def test_beside_what_others_allow_either_may_get_the_name(monkeypatch, chosen):
    """The fork's mmengine allows the real things at each load; which gets the name is chance."""
    from torch import _weights_only_unpickler as unpickler

    core = importlib.import_module('numpy._core' if hasattr(np, '_core') else 'numpy.core')
    module = f'{core.__name__}.multiarray'
    theirs = {
        (f'{module}.{name}' if real is None else name): real or getattr(core.multiarray, name)
        for name, real in THEIRS.items()
    }
    own = unpickler._get_user_allowed_globals
    won = {name: real for i, (name, real) in enumerate(theirs.items()) if chosen >> i & 1}
    values = dict(history=HistoryBuffer([1.0, 2.0], [1, 1]), best=np.float32(0.5))
    kinds = [type(np.dtype(name)) for name in ('float64', 'int64', 'uint32')]
    with torch.serialization.safe_globals([*theirs.values(), *kinds]):
        ours = {name: item for item, name in compat.checkpoint_types()}
        monkeypatch.setattr(
            unpickler, '_get_user_allowed_globals', lambda: {**own(), **ours, **won}
        )
        loaded = torch.load(saved(values))
    assert isinstance(loaded['history'], HistoryBuffer)
    assert loaded['history'].data[0].tolist() == [1, 2]
    assert loaded['best'] == 0.5
    loaded['history'].update(3.0)
    assert loaded['history'].data[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ('options', 'swaps'), [({}, False), ({'bgr_to_rgb': True}, True), ({'rgb_to_bgr': True}, True)]
)
def test_channel_order_of_a_data_preprocessor(options, swaps):
    from mmseg.models import SegDataPreProcessor

    assert compat.swaps_channels(SegDataPreProcessor(**options)) is swaps
    assert compat.swaps_channels(torch.nn.Identity()) is False


def test_nothing_is_done_before_torch_2_6(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.5.1+cu124')
    monkeypatch.delattr(torch.serialization, 'add_safe_globals', raising=False)
    assert compat.allow_mmengine_types() is False


def test_mmengine_counts_attention():
    """Its counter, behind MMSegmentation's get_flops, left out the products of an attention."""
    from mmengine.analysis import FlopAnalyzer

    q, k, v = torch.randn(2, 3, 10, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 5)

    class Attention(torch.nn.Module):
        def forward(self, *qkv):
            return torch.nn.functional.scaled_dot_product_attention(*qkv)

    counted = FlopAnalyzer(Attention(), (q, k, v)).total()
    assert counted == 2 * 3 * 10 * 7 * 4 + 2 * 3 * 10 * 7 * 5


@pytest.mark.parametrize('head', [
    dict(type='MDRLHead'), dict(type='MCIBIHead'), dict(type='DGCWHead'), dict(type='ProtoSegHead'),
    dict(type='MDRLHead', context=dict(type='PSPHead', pool_scales=(1, 2))),
], ids=lambda head: head['type'] + ('_psp' if 'context' in head else ''))  # fmt: skip
def test_mmengine_counts_what_pytorch_counts(head):
    """All products of our heads; mmengine's own handles count norms and resizing besides."""
    from mmengine.analysis import FlopAnalyzer
    from mmseg.registry import MODELS
    from torch.utils.flop_counter import FlopCounterMode

    options = dict(in_channels=8, in_index=0, channels=8, num_classes=5, norm_cfg=dict(type='BN'))
    head = MODELS.build({**options, **head}).eval()
    maps = torch.randn(2, 8, 12, 16)

    class OnMaps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head.forward([x])

    analyzer = FlopAnalyzer(OnMaps(), (maps,))
    by_operator = analyzer.unsupported_ops_warnings(False).by_operator()
    kinds = ('conv', 'matmul', 'linear', 'bmm', 'mm', 'einsum', 'scaled_dot_product_attention')
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        head.forward([maps])
    assert sum(by_operator[kind] for kind in kinds) == counter.get_total_flops() // 2
