"""Kernels: pure functions, plain torch on the CPU and fused on CUDA, one function each.

Every function takes the same arguments on both devices and gives the same meaning; the plain torch
form is the reference that the fused one is tested against. Import from the modules, by name.
"""
