"""The documents: links and anchors lead somewhere, and what is written twice is the same."""

import importlib
import pkgutil
import re
import sys

import pytest
import yaml

import mmseg_cmdl
from mmseg_cmdl import environment
from tests.paths import ROOT

DOCS = ROOT / 'docs'
DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob('*.md'), *ROOT.glob('configs/*/*.md'), *DOCS.rglob('*.md')]
    if '_build' not in path.parts
)


def prose(path):
    """Text of a document without code, in which brackets are no links."""
    return re.sub(r'^```.*?^```|`[^`\n]*`', '', path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path):
    """Anchors of the headings, as GitHub and MyST make them."""
    text = path.read_text()
    shown = re.match(r'This page of the site is \[.*\]\((.*)\)\.\n$', text)
    if shown:
        return anchors(path.parent / shown[1])
    lines = re.sub(r'^```.*?^```', '', text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r'^#+ (.*)$', lines, flags=re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


def links(path):
    """Targets of links and pictures that don't leave the repository."""
    found = re.findall(r'\]\(([^)\s]+)\)', prose(path))
    return [target for target in found if not re.match(r'[a-z]+:', target)]


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in links(path):
        file, _, anchor = target.partition('#')
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f'{path}: {target}'
        if anchor:
            assert anchor in anchors(linked), f'{path}: {target}; there are {anchors(linked)}'


def test_links_are_found():
    """The test above looks at something."""
    readme = links(ROOT / 'README.md')
    assert 'docs/get-started.md' in readme
    assert len(readme) > 10
    assert 'with-the-maintained-fork' in anchors(DOCS / 'get-started.md')


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


@pytest.mark.parametrize('page', ['README.md', 'docs/get-started.md'])
def test_install_commands_are_those_the_package_names(page):
    text = (ROOT / page).read_text()
    for family in (environment.INSTALL_OPENMMLAB, environment.INSTALL_FORK):
        blocks = [
            block for block in re.findall(r'```shell\n(.*?)```', text, re.S) if family in block
        ]
        assert len(blocks) == 1
    assert not any(
        environment.INSTALL_OPENMMLAB in block and environment.INSTALL_FORK in block
        for block in re.findall(r'```shell\n(.*?)```', text, re.S)
    ), 'pasted whole, the block would install both families'


def test_every_tool_has_its_page():
    pages = [path.read_text() for path in sorted((DOCS / 'tools').glob('*.md'))]
    tools = [
        path.relative_to(ROOT / 'tools').as_posix()
        for kind in ('*.py', '*.sh')
        for path in sorted((ROOT / 'tools').rglob(kind))
        if not path.name.startswith('_')
    ]
    titles = [title for page in pages for title in page.splitlines()[0].strip('# ').split(', ')]
    assert sorted(titles) == sorted([*tools, "MMSegmentation's own tools"])
    shown = re.findall(r'^```{tool-help} tools/(.*)$', '\n'.join(pages), re.M)
    assert sorted(shown) == sorted(tools)


def test_tests_that_the_guarantees_name_are_there():
    """A promise without its test is none."""
    page = (DOCS / 'guarantees.md').read_text()
    code = {}  # by name, which two files may have
    for path in (ROOT / 'tests').rglob('test_*.py'):
        code[path.name] = code.get(path.name, '') + path.read_text()
    named = re.findall(r'`(?:[\w/]*?(test_\w+\.py)(?:::)?)?(test_\w+)?`', page)
    file, found = '', 0
    for given, test in named:  # a name without a file is of the file before it
        file = given or file
        assert not given or given in code, given
        if test:
            assert f'def {test}(' in code[file], f'{file}::{test}'
            found += 1
    assert found > 60


def test_every_public_name_is_in_the_reference():
    """Each package with public names has its page; the page lists them all by itself."""
    pages = ' '.join(path.read_text() for path in (DOCS / 'api').glob('*.md'))
    documented = set(re.findall(r'automodule:: ([\w.]+)', pages))
    packages = {
        package.name
        for package in pkgutil.walk_packages(mmseg_cmdl.__path__, 'mmseg_cmdl.')
        if package.ispkg and getattr(importlib.import_module(package.name), '__all__', None)
    }
    assert packages - {'mmseg_cmdl.models'} <= documented
    for name in documented:
        importlib.import_module(name)


@pytest.fixture
def repository(monkeypatch):
    """The site's docs/_ext/repository.py."""
    monkeypatch.syspath_prepend(str(DOCS / '_ext'))
    yield importlib.import_module('repository')
    sys.modules.pop('repository')


def test_model_zoo_has_every_config_with_its_figures(repository):
    files = [
        ROOT / name for name in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    ]
    table = repository.zoo_tables(files)
    rows = [line for line in table if line.startswith('| [')]
    models = [model for file in files for model in yaml.safe_load(file.read_text())['Models']]
    assert len(rows) == len(models) > 100
    (row,) = [row for row in rows if 'mdrl_fcn_r50-d8_4xb2-80k_cityscapes-512x1024]' in row]
    assert row == (
        '| [mdrl_fcn_r50-d8_4xb2-80k_cityscapes-512x1024]'
        '(../configs/mdrl/mdrl_fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py) '
        '| Cityscapes | 8 | mIoU (paper) 79.16 |'
    )
    for model, row in zip(models, rows):
        assert f'[{model["Name"]}](../{model["Config"]})' in row


def test_pages_from_elsewhere_keep_their_links(repository):
    for page, file in repository.REPOSITORY_PAGES.items():
        assert file in (DOCS / f'{page}.md').read_text(), f'{page}.md should name {file}'
        for target in re.findall(r'\]\(([^)\s#]+)[^)]*\)', repository.repository_page(page)):
            if not re.match(r'[a-z]+:', target):
                linked = (
                    DOCS / target.lstrip('/') if target[0] == '/' else DOCS / page / '..' / target
                )
                assert linked.resolve().exists(), f'{page}: {target}'


def test_help_of_a_tool(repository):
    assert '--cfg-options' in repository.tool_help('tools/train.py')
    assert 'GPUS is the number of processes' in repository.tool_help('tools/dist_train.sh')


def test_citation_and_issue_templates_can_be_read():
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'cff-version', 'message', 'title', 'authors'} <= set(citation)
    assert len(citation['references']) == 5
    templates = sorted((ROOT / '.github' / 'ISSUE_TEMPLATE').glob('*_report.yml'))
    assert len(templates) == 2
    for template in templates:
        content = yaml.safe_load(template.read_text())
        assert {'name', 'description', 'body'} <= set(content)
        for field in content['body']:
            assert field['attributes'].get('label') or field['attributes']['value']
