_base_ = './upernet_swin-t_aux.py'
# on the decoder's own map, at its size
model = dict(
    decode_head=dict(
        type='MCIBIHead',
        context=dict(type='UPerHead'),
        bank=dict(type='FeatureBank', strategy='cosine', init='first_seen'),
        loss_coarse=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        loss_memory=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
