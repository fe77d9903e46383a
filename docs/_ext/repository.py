"""What the site takes from the rest of the repository, so that nothing is written twice.

`{tool-help} tools/train.py` is the tool's `--help`; `{model-zoo}` is one table per method of all
configs, from the metafiles; the pages in `REPOSITORY_PAGES` are files that lie elsewhere.
"""

import contextlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
# page of the site: file that it shows
REPOSITORY_PAGES = {
    **{
        f'methods/{file.parent.name}': file.relative_to(ROOT).as_posix()
        for file in sorted(ROOT.glob('configs/*/README.md'))
    },
    'contributing': 'CONTRIBUTING.md',
    'changelog': 'CHANGELOG.md',
}


def tool_help(path):
    """What `python TOOL --help` prints, 90 columns wide; of a shell script, its usage."""
    file = ROOT / path
    if file.suffix == '.sh':
        shown = subprocess.run(['bash', file.relative_to(ROOT)], cwd=ROOT, capture_output=True)
        return shown.stderr.decode().strip()
    spec = importlib.util.spec_from_file_location(f'tool_{file.stem}', file)
    tool = importlib.util.module_from_spec(spec)
    printed, argv = io.StringIO(), sys.argv
    os.environ['COLUMNS'] = '92'
    sys.path.insert(0, str(file.parent))
    try:
        sys.argv = [path, '--help']
        spec.loader.exec_module(tool)
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            tool.parse_args()
    finally:
        sys.argv = argv
        sys.path.remove(str(file.parent))
    if not printed.getvalue().startswith('usage:'):
        raise ValueError(f'{path} --help prints no usage')
    return printed.getvalue().strip()


def zoo_tables(metafiles):
    """Markdown with a section for each metafile and a row for each of its configs.

    Args:
        metafiles (list[Path]): Paths of the files.

    Returns:
        list[str]: Lines.
    """
    lines = []
    for file in metafiles:
        content = yaml.safe_load(file.read_text())
        readme = (ROOT / content['Collections'][0]['README']).read_text()
        lines += [f'#{readme.splitlines()[0]}', '']
        lines += ['| config | data set | batch | what is known |', '| --- | --- | --- | --- |']
        for model in content['Models']:
            known = [
                f'{name} {value}'
                for result in as_list(model.get('Results'))
                for name, value in result.get('Metrics', {}).items()
            ]
            data = {
                result['Dataset']: None
                for result in as_list(model.get('Results'))
                if 'Dataset' in result
            } or {model['Metadata']['Training Data']: None}
            batch = model['Metadata'].get('Batch Size', '')
            link = f'[{model["Name"]}](../{model["Config"]})'
            lines.append(
                f'| {link} | {", ".join(data)} | {batch} | {", ".join(known) or "no figure yet"} |'
            )
        lines.append('')
    return lines


def as_list(results):
    """The results of a model, which a metafile may write as one or as a list."""
    if results is None:
        return []
    return results if isinstance(results, list) else [results]


def repository_page(docname):
    """Text of the file behind a page, its links as they are from the page.

    Links to files that are pages lead there; to other files, to the files.
    """
    file = ROOT / REPOSITORY_PAGES[docname]
    pages = {path: f'/{page}.md' for page, path in REPOSITORY_PAGES.items()}

    def relinked(match):
        target, anchor = match[1], match[2] or ''
        if ':' in target:
            return match[0]
        path = Path(os.path.normpath(file.parent / target)).relative_to(ROOT).as_posix()
        here = (DOCS / docname).parent
        return f']({pages.get(path) or os.path.relpath(ROOT / path, here)}{anchor})'

    return re.sub(r'\]\(([^)#\s]+)(#[^)\s]*)?\)', relinked, file.read_text())
