"""The kernels in Triton. Import only where `device.is_fused` says so; each module mirrors the plain
one of its name and takes the same arguments.
"""
