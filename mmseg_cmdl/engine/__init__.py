from .bank_health_hook import BankHealthHook
from .seed_per_iteration_hook import SeedPerIterationHook

__all__ = ['BankHealthHook', 'SeedPerIterationHook']
