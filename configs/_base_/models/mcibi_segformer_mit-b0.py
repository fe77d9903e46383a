_base_ = './segformer_mit-b0.py'
# on the decoder's own map, at its size
model = dict(
    decode_head=dict(
        type='MCIBIHead',
        context=dict(type='SegformerHead'),
        bank=dict(type='FeatureBank', strategy='cosine', init='first_seen'),
        loss_coarse=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        loss_memory=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
