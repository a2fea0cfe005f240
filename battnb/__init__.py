"""How a battery cell will fade. The public names are found at first use, so that `import battnb` costs nothing."""
__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from .data import load
    from .outlook import forecast, life, models, synth
    from .report import show

__all__ = ['forecast', 'life', 'load', 'models', 'show', 'synth']
_HOME = {'forecast': 'outlook', 'life': 'outlook', 'load': 'data', 'models': 'outlook', 'show': 'report', 'synth': 'outlook'}


def __getattr__(name:str):
    if name not in _HOME: raise AttributeError(f"module 'battnb' has no attribute '{name}'; it has {', '.join(__all__)}")
    found = getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    globals()[name] = found
    return found


def __dir__()->list[str]: return sorted([*globals(), *__all__])
