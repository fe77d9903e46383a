"""Sphinx's side of `repository`: the directives, and the pages that are files from elsewhere."""

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from repository import REPOSITORY_PAGES, ROOT, repository_page, tool_help, zoo_tables
from sphinx.util.docutils import SphinxDirective


def read_repository_page(app, docname, source):
    if docname in REPOSITORY_PAGES:
        app.env.note_dependency(str(ROOT / REPOSITORY_PAGES[docname]), docname=docname)
        source[0] = repository_page(docname)


class ToolHelp(SphinxDirective):
    required_arguments = 1

    def run(self):
        self.env.note_dependency(str(ROOT / self.arguments[0]))
        try:
            text = tool_help(self.arguments[0])
        except Exception as error:
            raise self.error(f'{self.arguments[0]}: {error}') from error
        block = nodes.literal_block(text, text)
        block['language'] = 'text'
        return [block]


class ModelZoo(SphinxDirective):
    def run(self):
        index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
        files = [ROOT / name for name in index['Import']]
        for file in files:
            self.env.note_dependency(str(file))
        section = nodes.section()
        section.document = self.state.document
        self.state.nested_parse(
            StringList(zoo_tables(files), 'metafiles'), self.content_offset, section, 1
        )
        return section.children


def mark_tables_of_numbers(app, doctree):
    """Tables of many columns, such as those of a study, are numbers that must not be broken."""
    for table in doctree.findall(nodes.tgroup):
        if table['cols'] > 7:
            table.parent['classes'].append('numbers')


def draw_dashes(app, doctree):
    """Between a parameter and its text there are two hyphens."""
    for text in list(doctree.findall(nodes.Text)):
        if text.startswith((' -- ', ') -- ')):
            text.parent.replace(text, nodes.Text(text.replace(' -- ', ' – ', 1)))


def setup(app):
    app.connect('doctree-read', mark_tables_of_numbers)
    app.connect('doctree-read', draw_dashes)
    app.connect('source-read', read_repository_page)
    app.add_directive('tool-help', ToolHelp)
    app.add_directive('model-zoo', ModelZoo)
    return {'parallel_read_safe': False}
