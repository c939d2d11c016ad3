"""Runtimes: ways to execute the denoiser's network, behind the network's own contract."""
