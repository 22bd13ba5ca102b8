"""What must hold of the core and the adapter on CuPy arrays, whether a device holds them or not.

The functions here are tests: `tests/adapters` runs them over the stand-in, `tests/gpu` on a device.
Both have the fixtures that they ask for: `adapter`, the package `siglip_cupy`; `cupy_backend`; and
`no_waits`, a context in which the host must not wait for the device.
"""
