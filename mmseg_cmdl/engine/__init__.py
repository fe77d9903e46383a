from .bank_health_hook import BankHealthHook

__all__ = ['BankHealthHook']
