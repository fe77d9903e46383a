from .class_compactness import ClassCompactness, measure_compactness

__all__ = ['ClassCompactness', 'measure_compactness']
