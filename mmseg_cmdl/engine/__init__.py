from .seed_per_iteration_hook import SeedPerIterationHook

__all__ = ['SeedPerIterationHook']
