"""For commands that tests start: as where PyTorch is not installed. See tests/conftest.py."""

import sys
from importlib.machinery import PathFinder


class WithoutTorch(PathFinder):
    """Finds what is installed, but for PyTorch."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "torch" else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
