# `custom_imports` makes the config stand on its own: every tool that loads it, a dumped copy
# included, registers the heads, losses and datasets of mmseg_cmdl first.
custom_imports = dict(imports=['mmseg_cmdl'], allow_failed_imports=False)
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False

# Used by `--tta` together with the dataset's `tta_pipeline`.
tta_model = dict(type='SegTTAModel')
