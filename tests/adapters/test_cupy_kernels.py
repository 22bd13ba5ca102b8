"""The CUDA source: it compiles for the devices in use, and its own arithmetic, run on the host
thread by thread, is that of the NumPy twins and of the core."""

import numpy as np
import pytest

pytest.importorskip("cupy")
from cupy_cases.kernels import *  # noqa: F403  (the tests, which a device runs too)
from cupy_cases.kernels import Out, run
from cupy_stand_in.host_module import HostModule
from siglip_cupy import kernels


@pytest.fixture(scope="module")
def modules():
    """The compiled source, with the threads of a block run in ascending and descending order."""
    code = kernels.source()
    return [HostModule(code, kernels.INSTANCES, backwards=order) for order in (False, True)]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_kernel_compiles_for_the_device_without_a_warning(arch):
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(kernels.source(), "kernels.cu", (), ())
    for name in kernels.INSTANCES:
        nvrtc.addNameExpression(program, name)
    options = (*kernels.OPTIONS, f"--gpu-architecture={arch}")
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert not nvrtc.getProgramLog(program)
    cubin = nvrtc.getCUBIN(program)
    for name in kernels.INSTANCES:
        assert nvrtc.getLoweredName(program, name).encode() in cubin, name


def test_a_kernel_with_an_error_does_not_compile():
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(
        kernels.source().replace("sqrt(", "no_such_function("), "kernels.cu", (), ()
    )
    nvrtc.addNameExpression(program, "layer_norm_fwd<float>")
    with pytest.raises(nvrtc.NVRTCError):
        nvrtc.compileProgram(program, (*kernels.OPTIONS, "--gpu-architecture=sm_90"))
    assert "no_such_function" in nvrtc.getProgramLog(program)


def test_a_missing_barrier_is_noticed(modules):
    code = kernels.source().replace("__syncthreads();", "")
    broken = [
        HostModule(code, ("add_partials",), backwards=backwards) for backwards in (False, True)
    ]
    partials = np.arange(3.0 * 300).reshape(300, 3)
    args = (partials, 300, Out(0))
    want = run(modules, "add_partials", grid=(1,), args=args, out=[np.zeros(3)])[0]
    np.testing.assert_allclose(want, partials.sum(axis=0), rtol=1e-15)
    with pytest.raises(AssertionError, match="order of the threads"):
        run(broken, "add_partials", grid=(1,), args=args, out=[np.zeros(3)])
