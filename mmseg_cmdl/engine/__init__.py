from .bank_health_hook import BankHealthHook
from .data_guard_hook import DataGuardHook
from .seed_per_iteration_hook import SeedPerIterationHook

__all__ = ['BankHealthHook', 'DataGuardHook', 'SeedPerIterationHook']
