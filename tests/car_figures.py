"""Tables 1 and 2 of the CAR paper: mIoU in percent by config name."""

SETTINGS = {
    'pascal': '4xb4-30k_pascal-context-59-480x480',
    'coco': '4xb4-30k_coco-stuff10k-512x512',
}

# (head, backbone): Pascal Context plain and with CAR, COCO-Stuff 10k plain and with CAR
TABLE_2 = {
    ('fcn', 'r50-d8'): ('47.72', '48.40', '34.10', '34.91'),
    ('fcn', 'r101-d8'): ('50.93', '51.39', '35.93', '36.88'),
    ('deeplabv3', 'r50-d8'): ('48.59', '49.53', '34.96', '35.13'),
    ('deeplabv3', 'r101-d8'): ('51.69', '52.58', '36.92', '37.39'),
    ('nonlocal', 'r50-d8'): ('48.32', '50.50', '34.35', '36.58'),
    ('nonlocal', 'r101-d8'): ('51.59', '52.49', '36.53', '38.15'),
    ('ccnet', 'r50-d8'): ('49.15', '49.56', '35.10', '36.39'),
    ('ccnet', 'r101-d8'): ('51.41', '51.97', '36.88', '37.56'),
    ('danet', 'r101-d8'): ('51.45', '52.57', '35.80', '37.47'),
    ('cpnet', 'r101-d8'): ('51.29', '51.98', '36.92', '37.12'),
    ('ocrnet', 'hr48'): ('54.37', '54.99', '38.22', '39.53'),
    ('upernet', 'swin-t'): ('49.62', '50.78', '36.07', '36.63'),
    ('upernet', 'swin-l'): ('57.48', '58.97', '44.25', '44.88'),
}
# COCO-Stuff rows with a class-level threshold of 0.25
REDUCED = [
    ('fcn', 'r50-d8'),
    ('fcn', 'r101-d8'),
    ('nonlocal', 'r50-d8'),
    ('cpnet', 'r101-d8'),
    ('upernet', 'swin-t'),
]

# rows R2 to R7 and S2 to S7; the first and the last are in table 2
METHODS = (
    'pointwise',
    'car-intra-3x3',
    'car-intra-c2c-3x3',
    'car-3x3',
    'car-intra',
    'car-intra-c2c',
)
TABLE_1 = {
    ('nonlocal', 'r50-d8'): ('48.56', '49.17', '49.79', '50.01', '49.62', '50.00'),
    ('upernet', 'swin-t'): ('49.82', '49.01', '50.63', '50.26', '49.62', '50.58'),
}

PAPER = {}
for (_head, _backbone), _row in TABLE_2.items():
    for _index, (_data, _method) in enumerate(
        (data, method) for data in SETTINGS for method in ('', 'car_')
    ):
        PAPER[f'{_method}{_head}_{_backbone}_{SETTINGS[_data]}'] = _row[_index]
for (_head, _backbone), _row in TABLE_1.items():
    for _method, _figure in zip(METHODS, _row):
        PAPER[f'{_method}_{_head}_{_backbone}_{SETTINGS["pascal"]}'] = _figure
