# The class consistency losses of every MDRL model: alpha and beta of eq. 18, and the formulation.
# This is the one place that sets them.
loss_consistency = [
    dict(type='ClassLocalConsistencyLoss', formulation='released', loss_weight=0.01),
    dict(type='ClassGlobalConsistencyLoss', formulation='released', loss_weight=0.05),
]
