"""What all losses of this package have in common: weight, name, and of some the formulation."""

from torch import nn

from ...utils import check_choice, check_finite


class WeightedLoss(nn.Module):
    """A loss with a weight and a name.

    Args:
        loss_weight (float): Factor.
        loss_name (str): Key in the dictionary of losses; contains 'loss'.

    Raises:
        ValueError: An argument is something else.
    """

    def __init__(self, loss_weight: float, loss_name: str):
        super().__init__()
        check_finite(self, loss_weight=loss_weight)
        if 'loss' not in loss_name:
            raise ValueError(
                f'{type(self).__name__}: loss_name must contain "loss" to be added to '
                f'the objective, got {loss_name!r}'
            )
        self.loss_weight = loss_weight
        self.loss_name = loss_name


class FormulatedLoss(WeightedLoss):
    """Options of a loss that is there in two formulations, that of a paper and that of its code.

    Args:
        formulation (str): 'paper' or 'released'.
        loss_weight (float): Factor.
        loss_name (str): Key in the dictionary of losses; contains 'loss'.

    Raises:
        ValueError: An argument is something else.
    """

    def __init__(self, formulation: str, loss_weight: float, loss_name: str):
        super().__init__(loss_weight, loss_name)
        check_choice(self, ('paper', 'released'), formulation=formulation)
        self.formulation = formulation

    def extra_repr(self) -> str:
        return f'formulation={self.formulation!r}, loss_weight={self.loss_weight}'
