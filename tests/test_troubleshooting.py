"""docs/troubleshooting.md lists every error that the package raises, and none that it doesn't."""

import ast
import re

import pytest

from tests.paths import ROOT

PAGE = ROOT / 'docs' / 'troubleshooting.md'
MODULES = sorted((ROOT / 'mmseg_cmdl').rglob('*.py'))
# What Python's own protocols ask for; it doesn't reach a user as a sentence.
PROTOCOLS = {'AttributeError', 'KeyError', 'NotImplementedError', 'StopIteration'}


def template(node):
    """A message with `…` for its values; None for what isn't written there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else '…' for part in node.values)
        return ''.join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        return (template(node.left) or '…') + (template(node.right) or '…')
    return None


def tidy(message):
    """As the page writes it: one line, without the `error: ` that tools put in front."""
    message = re.sub(r'\s+', ' ', message).strip().replace('`', '')
    return re.sub('…+', '…', message.removeprefix('error: '))


TREES = {path: ast.parse(path.read_text()) for path in MODULES}
FUNCTIONS = {
    node.name: node
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef)
}


def messages(argument):
    """The templates that the argument of an exception can be, through one function of ours."""
    found = template(argument)
    if found is not None:
        return [found]
    if isinstance(argument, ast.Call) and isinstance(argument.func, ast.Name):
        function = FUNCTIONS.get(argument.func.id)
        returned = (
            []
            if function is None
            else [
                template(node.value) for node in ast.walk(function) if isinstance(node, ast.Return)
            ]
        )
        return [text for text in returned if text]
    return []


def raised():
    """(place, message) of every `raise` in the package that has a sentence."""
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            if ast.unparse(node.exc.func) in PROTOCOLS or not node.exc.args:
                continue
            place = f'{path.relative_to(ROOT)}:{node.lineno}'
            found += [(place, tidy(text)) for text in messages(node.exc.args[0])]
    # what `environment.check` raises comes from several functions
    for node in ast.walk(TREES[ROOT / 'mmseg_cmdl' / 'environment.py']):
        text = template(node.value) if isinstance(node, ast.Return) else None
        if text and text.startswith('mmseg_cmdl needs'):
            found.append((f'mmseg_cmdl/environment.py:{node.lineno}', tidy(text)))
    return found


def entries():
    """(code spans, text) of each entry of the page."""
    parts = re.findall(r'^- (`.*?)(?=^- |^#|\Z)', PAGE.read_text(), re.DOTALL | re.MULTILINE)
    found = []
    for part in parts:
        first, _, rest = part.partition('\n')
        found.append((re.findall(r'`([^`]+)`', first), rest))
    return found


def pattern(span):
    """Matches messages that hold a span, whose `…` stands for anything.

    A span of few letters would be found in nearly any message; it must be the whole of it.
    """
    if len(span.replace('…', '').strip()) < 12:
        return re.compile(f'^{re.escape(span)}$')
    return re.compile('.*'.join(re.escape(part) for part in span.split('…')))


PATTERNS = [(span, pattern(span)) for spans, _ in entries() for span in spans]


def test_the_scan_finds_messages():
    texts = [text for _, text in raised()]
    assert len(texts) > 100
    assert 'CPHead: kernel_size must be odd, got …' in texts


@pytest.mark.parametrize(('place', 'message'), raised(), ids=lambda value: value[:60])
def test_every_error_has_its_entry(place, message):
    assert any(found.search(message) for _, found in PATTERNS), (
        f'{place} raises a sentence that docs/troubleshooting.md has not. Add to its section:\n\n'
        f'- `{message}`\\\n  What causes it. **Cure:** what to do.\n\n'
        '(or shorten the sentence to the words that tell it from others, with … for the rest)'
    )


def test_every_entry_is_of_an_error():
    """Sentences that aren't raised but collected or logged count too."""
    texts = [
        tidy(text)
        for tree in TREES.values()
        for node in ast.walk(tree)
        for text in [template(node)]
        if text
    ]
    stale = [span for span, found in PATTERNS if not any(found.search(text) for text in texts)]
    assert not stale, f'docs/troubleshooting.md has entries of no error: {stale}'


def test_every_entry_says_what_to_do():
    for spans, text in entries():
        assert len(text.split()) >= 4, spans
