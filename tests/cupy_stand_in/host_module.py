"""`cupy.RawModule` on the host: the CUDA source itself, compiled by the C++ compiler."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

import numpy as np

SHIM = Path(__file__).with_name("cuda_on_host.h")
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Werror")

_ONE_AT_A_TIME = threading.Lock()

POINTER, INTEGER, NUMBER = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_double


class HostModule:
    """Kernels of a CUDA source by name, to be launched on NumPy arrays as on a device.

    backwards
        Resume the threads of a block in descending order. The results must be the same.
    """

    def __init__(self, code, instances, *, backwards=False):
        self.backwards = backwards
        self._names = {name: f"launch_{number}" for number, name in enumerate(instances)}
        self._library = ctypes.CDLL(str(_compiled(_with_launchers(code, self._names))))

    def get_function(self, name):
        """The kernel, called with (grid, block, args) as a `cupy.RawKernel`."""
        function = self._library[self._names[name]]

        def kernel(grid, block, args):
            x, y = (*grid, 1)[:2]
            assert x > 0, f"{name}: a grid has at least one block, got {grid}"
            assert y > 0, f"{name}: a grid has at least one block, got {grid}"
            values = [_value(arg) for arg in args]
            pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
            with _ONE_AT_A_TIME:  # the fibers are the library's only ones
                function(x, y, block[0], self.backwards, pointers)

        return kernel


def _value(arg):
    """An argument as the driver takes it: in eight bytes."""
    if isinstance(arg, np.ndarray):
        assert arg.flags.c_contiguous, "a kernel takes contiguous arrays only"
        return POINTER(arg.ctypes.data)
    if type(arg) is int:
        return INTEGER(arg)
    assert type(arg) is float, f"a kernel takes arrays, int and float here, got {type(arg)}"
    return NUMBER(arg)


def _with_launchers(code, names):
    launchers = [
        f"static void run_{symbol}(void** values) {{ host::call(&{name}, values); }}\n"
        f'extern "C" void {symbol}(unsigned x, unsigned y, unsigned t, bool back, void** values) '
        f"{{ host::launch(run_{symbol}, x, y, t, back, values); }}"
        for name, symbol in names.items()
    ]
    return "\n".join([f'#include "{SHIM}"', code, *launchers])


@cache
def _compiled(code):
    """The library made of a source; kept in the temporary folder, by the hash of what went in."""
    compiler = shutil.which("g++")
    assert compiler, "the kernels run on the host in these tests, which takes g++"
    key = hashlib.sha256("\n".join([code, SHIM.read_text(), *FLAGS]).encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"siglip-cupy-kernels-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "kernels.so"
            command = [compiler, *FLAGS, "-x", "c++", "-", "-o", str(made)]
            done = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            mine = library.with_suffix(f".{os.getpid()}")
            shutil.copy(made, mine)
            mine.replace(library)
    return library
