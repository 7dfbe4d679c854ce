"""The library is cheap to import: rare packages are imported inside the functions that need them."""

from __future__ import annotations

import subprocess
import sys

RARE = "scipy sklearn PIL pooch requests datasets transformers timm pandas lightning_fabric"

PROGRAM = """
import importlib, pkgutil, sys
import curvact

for module in pkgutil.walk_packages(curvact.__path__, "curvact."):
    if not module.name.startswith("curvact.lab") and not module.name.endswith("__main__"):
        before = set(sys.modules)
        importlib.import_module(module.name)
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        for name in sorted(new & set(sys.argv[1:])):
            print(module.name, "imports", name)
"""


def test_no_module_of_the_library_imports_what_few_functions_need() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *RARE.split()],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
