from .command_line import convert_as_asked, converter_parser
from .converting import Conversion, build_without_memory, convert, recognise
from .released_models import RELEASED, ReleasedModel, differences, read_fact
from .state_dicts import ConversionError, check_fit, convert_state, read_state

__all__ = [
    'RELEASED',
    'Conversion',
    'ConversionError',
    'ReleasedModel',
    'build_without_memory',
    'check_fit',
    'convert',
    'convert_as_asked',
    'convert_state',
    'converter_parser',
    'differences',
    'read_fact',
    'read_state',
    'recognise',
]
