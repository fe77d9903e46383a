"""Build script. The metadata is here, the settings of ruff, mypy and pytest in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
NAME = 'mmseg_cmdl'


def read(name):
    return (ROOT / name).read_text(encoding='utf-8')


def version():
    scope = {}
    exec(read(f'{NAME}/version.py'), scope)
    return scope['__version__']


class BuildWithMim(build_py):
    """Put configs, tools and model index where ``mim`` looks for them: ``mmseg_cmdl/.mim``.

    They are copied into the build folder, never into the source tree. An editable install has
    no build folder, so it has no ``.mim`` and ``mim train mmseg_cmdl`` needs an ordinary one.
    """

    MIM_PARTS = ('configs', 'tools', 'model-index.yml')

    def run(self):
        if not self.editable_mode:
            # A build folder left by an earlier version would bring back files deleted since.
            shutil.rmtree(Path(self.build_lib) / NAME, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            for source, target in self.mim_files():
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target))

    def mim_files(self):
        """Pairs (file in the source tree, its place in the build folder)."""
        pairs = []
        for part in self.MIM_PARTS:
            path = ROOT / part
            found = [path] if path.is_file() else sorted(path.rglob('*'))
            pairs += [
                (file, Path(self.build_lib) / NAME / '.mim' / file.relative_to(ROOT))
                for file in found
                if file.is_file() and '__pycache__' not in file.parts
            ]
        return pairs

    def get_outputs(self, include_bytecode=1):
        ours = [str(target) for _, target in self.mim_files()]
        return super().get_outputs(include_bytecode) + ours


# mmcv, mmengine and mmsegmentation are no hard requirements: the maintained forks bring the
# same modules under other distribution names, and pip would install both. Importing mmseg_cmdl
# says what is missing. ftfy and regex are imported by mmseg.models but not required by it.
REQUIRES = ['numpy', 'torch>=2.0', 'packaging', 'ftfy', 'regex']
EXTRAS = {
    'mmseg': [
        'mmcv-lite>=2.0.0rc4,<2.2.0',
        'mmengine>=0.10.0,<1.0.0',
        'mmsegmentation>=1.2.1,<2.0.0',
        'setuptools<81',
    ],
    # openmim itself goes in with --no-deps: its opendatalab pins versions of requests, rich and
    # setuptools that nothing else here can live with, and `mim train` doesn't use it.
    'mim': [
        'click',
        'colorama',
        'model-index',
        'pandas',
        'requests',
        'rich',
        'setuptools<81',
        'tabulate',
    ],
    # what tools/analysis and tools/study.py draw and reckon with; matplotlib comes with mmengine,
    # of whatever version
    'analysis': ['matplotlib>=3.7', 'scikit-learn>=1.2', 'scipy>=1.15'],
    'export': ['onnx', 'onnxruntime', 'onnxscript'],
    'dev': ['hypothesis', 'mypy', 'pre-commit', 'pytest>=8', 'ruff'],
}

setup(
    name=NAME,
    version=version(),
    description='Class-level context for MMSegmentation: MDRL, CMDL and their kin',
    long_description=read('README.md') if (ROOT / 'README.md').is_file() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='semantic segmentation, computer vision, OpenMMLab',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['py.typed']},
    python_requires='>=3.9',
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
