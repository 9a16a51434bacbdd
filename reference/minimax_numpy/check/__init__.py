"""The judge: is this model, this kernel, this file of numbers the same as the reference, and if not, where and why?

It needs NumPy alone; torch and transformers are reached by name when they are what is to be judged.
"""

from .crosscheck import crosscheck
from .defects import DEFECTS, Defect
from .exercises import broken, exercise
from .report import Report, Row
from .single import check_op

__all__ = ["DEFECTS", "Defect", "Report", "Row", "broken", "check_op", "crosscheck", "exercise"]
