# SPDX-License-Identifier: Apache-2.0
"""Old names of modules: they work, and warn."""

import importlib
import subprocess
import sys

import pytest

from stc_video.moved_modules import MOVED_MODULES


@pytest.mark.parametrize("old", MOVED_MODULES)
def test_an_old_name_gives_the_module_itself_and_names_its_new_place(old):
    new = MOVED_MODULES[old]
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=rf"{old} is now {new};") as warned:
        module = importlib.import_module(old)
    assert module is importlib.import_module(new)
    assert module.__name__ == module.__spec__.name == new
    assert len(warned) == 1


def test_the_documented_call_works_and_the_warning_points_at_the_line_with_the_import():
    program = "import stc_video\nimport stc_video.models.rekv\nprint(stc_video.models.rekv.apply)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "function apply" in run.stdout
    assert "<string>:2: DeprecationWarning: stc_video.models.rekv is now" in run.stderr


def test_names_that_never_were_stay_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"stc_video\.models\.nothing"):
        importlib.import_module("stc_video.models.nothing")


def test_importing_the_package_imports_none_of_them():
    program = (
        "import sys, stc_video\n"
        "from stc_video.moved_modules import MOVED_MODULES as moved\n"
        "print([name for name in sys.modules if name in {*moved, *moved.values(), 'torch'}])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
