"""curvact: robust activations, chosen by their curvature.

The names below and the submodules are loaded when they are first used, so `import curvact` is
cheap.
"""

import lazy_loader

from curvact._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
