_base_ = './upernet_mscan-ts.py'
# on the decoder's own map, at its size, and as it is small in the papers' form: all pixels
model = dict(
    decode_head=dict(
        type='MCIBIHead',
        context=dict(type='UPerHead'),
        key_stride=1,
        loss_stride=1,
        bank=dict(type='FeatureBank', strategy='cosine', init='first_seen'),
        loss_coarse=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        loss_memory=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
