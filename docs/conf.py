"""The site: `make docs`. Pages are Markdown (MyST), the API reference comes from the docstrings."""

import importlib
import importlib.util
import inspect
import pkgutil
import pydoc
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / '_ext')]

import mmseg_cmdl  # noqa: E402

project = 'mmseg_cmdl'
author = 'the authors of mmseg_cmdl'
version = release = mmseg_cmdl.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'site_directives',
]
html_theme = 'furo'
html_title = f'mmseg_cmdl {release}'
# nothing is fetched by a reader's browser, so that the site works without a connection
html_theme_options = {'footer_icons': []}
html_static_path = ['_static']
html_css_files = ['site.css']
html_show_copyright = False
exclude_patterns = ['_build']

myst_heading_anchors = 4
myst_enable_extensions = ['colon_fence', 'dollarmath']
copybutton_exclude = '.linenos, .gp, .go'

# Single backticks in docstrings are code, as in Markdown.
default_role = 'code'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_member_order = 'bysource'
# Types and shapes stand in the docstrings, in words.
autodoc_typehints = 'none'
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False
napoleon_use_rtype = False
# Readers copy what docstrings have in quotes, and options such as --cfg-options.
smartquotes = False

PUBLIC = {
    name
    for package in [
        'mmseg_cmdl',
        *(p.name for p in pkgutil.walk_packages(mmseg_cmdl.__path__, 'mmseg_cmdl.') if p.ispkg),
    ]
    for name in getattr(importlib.import_module(package), '__all__', ())
}

# A reference that leads nowhere is an error; those to other packages aren't looked up, which would
# need a connection.
nitpicky = True
OTHER_PACKAGES = r'(torch|numpy|mmcv|mmengine|mmseg|typing|collections|argparse|pathlib|abc)\b.*'
# A word without a dot is a type as docstrings name it ('Tensor, optional'); see resolve_references.
nitpick_ignore_regex = [(r'py:.*', OTHER_PACKAGES), (r'py:class', r'[^.]+')]


def resolve_references(app, what, name, obj, options, lines):
    """`:class:`X`` means X of this package, wherever it is; what isn't public is shown as code."""
    module = sys.modules.get(getattr(obj, '__module__', None))
    owner = obj if isinstance(obj, type) else pydoc.locate(name.rpartition('.')[0])

    def resolved(match):
        role, target = match.groups()
        if role == 'mod':
            target = target.lstrip('~')
            known = importlib.util.find_spec(target)
            return f'`{target}`' if known else match[0]
        if target.partition('.')[0] in PUBLIC:
            return f':{role}:`.{target}`'
        if '.' in target:
            return match[0]
        if role in ('meth', 'attr'):
            if target in vars(owner) and not target.startswith('_'):
                return match[0]
            known = hasattr(owner, target)
        else:
            known = hasattr(module, target)
        return f'`{target}`' if known else f':{role}:`mmseg_cmdl.{target}`'

    for index, line in enumerate(lines):
        lines[index] = re.sub(r':(class|func|meth|attr|data|exc|mod):`([^`]+)`', resolved, line)


def replace_private_bases(app, name, obj, options, bases):
    """What isn't public gives place to what it inherits from, up to a base that is."""

    def known(base):
        if not base.__module__.startswith('mmseg_cmdl.') or base.__name__ in PUBLIC:
            return [base]
        return [above for parent in base.__bases__ for above in known(parent)]

    found = dict.fromkeys(above for base in bases for above in known(base))
    inherited = {above for base in found if isinstance(base, type) for above in base.__mro__[1:]}
    bases[:] = [base for base in found if base not in inherited]


def describe_fields(app, what, name, obj, options, lines):
    """Lists the fields of a named tuple, with the comments that they have in the source."""
    if not hasattr(obj, '_fields') or any(':ivar' in line for line in lines):
        return
    for line in inspect.getsource(obj).splitlines():
        field, colon, rest = line.strip().partition(': ')
        if colon and field in obj._fields:
            kind, *comments = rest.split('  # ')
            says = [comment for comment in comments if not comment.startswith('type: ')]
            lines.append(
                f'- ``{field}`` ({kind.partition(" = ")[0]}): {" ".join(says)}'.rstrip(': ')
            )
    lines.append('')


def leave_out_members(app, what, name, obj, skip, options):
    """Leaves out members whose text, 'Alias for field number 0', says nothing."""
    is_field = type(obj).__name__ == '_tuplegetter'
    return True if is_field or name == 'extra_repr' else None


def setup(app):
    app.connect('autodoc-skip-member', leave_out_members)
    app.connect('autodoc-process-docstring', describe_fields)
    app.connect('autodoc-process-docstring', resolve_references)
    app.connect('autodoc-process-bases', replace_private_bases)
