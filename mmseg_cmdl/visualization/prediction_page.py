"""Predictions of several models side by side: an HTML page that needs no other file; a figure."""

import base64
import html
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure

from .distribution_map import color_labels
from .style import (
    IGNORED,
    RIGHT,
    WRONG,
    add_class_legend,
    fold,
    new_figure,
    resize_nearest,
    show_picture,
    title_height,
)


class PredictedImage(NamedTuple):
    """An image, its labels and what the models say."""

    # a method of tuples, here a field
    index: int  # type: ignore[assignment]  # in the data set
    path: str
    image: np.ndarray  # RGB [H', W', 3]
    truth: np.ndarray  # [H, W], 255 for no label
    predictions: Dict[str, np.ndarray]  # name of the model: [H, W]
    scores: Dict[str, Optional[float]]  # mean IoU of this image, in percent


def color_errors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Light grey where right, vermilion where wrong, white where there is no label: uint8
    [H, W, 3].
    """
    picture = np.empty((*truth.shape, 3), np.uint8)
    picture[:] = RIGHT
    picture[truth != prediction] = WRONG
    picture[truth == 255] = IGNORED
    return picture


def pictures_of(example: PredictedImage, palette: Sequence) -> List[tuple]:
    """(title, picture) of image, ground truth, and prediction and errors of each model.

    Predictions are shown where there is no label too.
    """
    out = [('image', example.image), ('ground truth', color_labels(example.truth, palette))]
    for name, prediction in example.predictions.items():
        out += [
            (name, color_labels(prediction, palette)),
            (f'errors of {name}', color_errors(example.truth, prediction)),
        ]
    return out


def draw_predictions(
    examples: Sequence[PredictedImage], palette: Sequence, names: Sequence[str]
) -> Figure:
    """A row for each image: image, ground truth, prediction and errors of each model."""
    columns = 2 + 2 * len(examples[0].predictions)
    h, w = examples[0].truth.shape
    cell = 1.9
    titles = [
        fold(text, cell - 0.1, 8)
        for name in examples[0].predictions
        for text in (f'{name}\nmIoU', f'errors of {name}')
    ]
    height = max(0.8, min(3.0, cell * h / w)) + title_height(titles, 8)
    figure = new_figure(cell * columns + 0.3, height * len(examples) + 0.6)
    axes = figure.subplots(len(examples), columns, squeeze=False)
    for row, example in zip(axes, examples):
        for i, (axis, (title, picture)) in enumerate(zip(row, pictures_of(example, palette))):
            score = example.scores[title] if i >= 2 and i % 2 == 0 else None
            title = fold(title, cell - 0.1, 8)
            title += '' if score is None else f'\nmIoU {score:.1f}'
            show_picture(axis, picture, title, 8)
        row[0].set_ylabel(f'image {example.index}', fontsize=8)
    add_class_legend(
        figure, palette, names, [(RIGHT, 'right'), (WRONG, 'wrong'), (IGNORED, 'no label')]
    )
    return figure


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:1.5em;color:#222;background:#fff}
h1{font-size:1.4em}h2{font-size:1.15em;margin:1.6em 0 .4em}
table{border-collapse:collapse}
th,td{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}
.case{border-top:1px solid #ccc;padding:.7em 0}.case p{margin:.1em 0 .4em;overflow-wrap:anywhere}
.row{display:flex;flex-wrap:wrap;gap:.5em}figure{margin:0}
figcaption{font-size:.85em;max-width:var(--side);overflow-wrap:anywhere}
img{display:block;width:var(--side);image-rendering:pixelated;border:1px solid #bbb}
.key{display:flex;flex-wrap:wrap;gap:.3em 1em;max-height:6.3em;overflow:auto}
.key span::before{content:"";display:inline-block;
width:.9em;height:.9em;margin-right:.35em;vertical-align:-.1em;border:1px solid #888;
background:var(--c)}
.controls{position:sticky;top:0;background:#fff;padding:.5em 0;z-index:1}
label{margin-right:1.2em;white-space:nowrap}
"""
_SCRIPT = """
const list=document.getElementById('cases'),cases=[...list.children];
const value=(c,k)=>c.dataset[k]===''?NaN:parseFloat(c.dataset[k]);
function sort(){const[k,d]=document.getElementById('order').value.split(' ');
const n=c=>{const v=value(c,k);return isNaN(v)?Infinity:v*(d==='down'?-1:1)};
cases.sort((a,b)=>n(a)-n(b)).forEach(c=>list.append(c))}
document.getElementById('order').onchange=sort;
document.getElementById('side').oninput=e=>
document.body.style.setProperty('--side',e.target.value+'px');
"""


def prediction_page(
    examples: Sequence[PredictedImage],
    palette: Sequence,
    names: Sequence[str],
    totals: Dict[str, dict],
    title: str,
    note: str,
) -> str:
    """One HTML page with everything in it: opens offline and can be mailed.

    Args:
        examples (Sequence[PredictedImage]): In the order in which they are shown first.
        palette (Sequence): RGB of the classes.
        names (Sequence[str]): Names of the classes.
        totals (dict): Name of the model to its `mIoU` and `aAcc` over the split.
        title (str): Heading.
        note (str): A sentence on what is shown.

    Returns:
        str: HTML.
    """
    models = list(totals)
    order = [(f'm{i} up', f'worst of {name} first') for i, name in enumerate(models)]
    order += [(f'm{i} down', f'best of {name} first') for i, name in enumerate(models)]
    if len(models) > 1:
        for i, name in enumerate(models[1:], 1):
            order += [
                (f'd{i} down', f'{name} most ahead of {models[0]}'),
                (f'd{i} up', f'{name} most behind {models[0]}'),
            ]
    colors = [*zip(palette, names), (RIGHT, 'right'), (WRONG, 'wrong'), (IGNORED, 'no label')]
    key = ''.join(
        f'<span style="--c:rgb({r},{g},{b})">{html.escape(name)}</span>'
        for (r, g, b), name in colors
    )
    rows = ''.join(
        f'<tr><td>{html.escape(name)}</td><td>{_number(found["mIoU"])}</td>'
        f'<td>{_number(found["aAcc"])}</td></tr>'
        for name, found in totals.items()
    )
    options = ''.join(
        f'<option value="{value}">{html.escape(text)}</option>'
        for value, text in [('start up', 'as listed'), *order]
    )
    cases = '\n'.join(_case(i, example, palette, models) for i, example in enumerate(examples))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>
<body style="--side:220px"><h1>{html.escape(title)}</h1><p>{html.escape(note)}</p>
<table><tr><th>model</th><th>mIoU</th><th>pixel accuracy</th></tr>{rows}</table>
<div class="controls"><label>order <select id="order">{options}</select></label>
<label>size <input id="side" type="range" min="80" max="900" value="220"></label>
<div class="key">{key}</div></div>
<div id="cases">
{cases}
</div><script>{_SCRIPT}</script></body></html>
"""


def _number(value: Optional[float]) -> str:
    return '–' if value is None else f'{value:.2f}'


def _case(place: int, example: Any, palette: Sequence, models: Sequence) -> str:
    scores = [example.scores[name] for name in models]
    data = [f'data-start="{place}"']
    for i, score in enumerate(scores):
        data.append(f'data-m{i}="{"" if score is None else f"{score:.4f}"}"')
        if i and score is not None and scores[0] is not None:
            data.append(f'data-d{i}="{score - scores[0]:.4f}"')
        elif i:
            data.append(f'data-d{i}=""')
    text = ', '.join(f'{html.escape(name)} {_number(score)}' for name, score in zip(models, scores))
    size = example.truth.shape
    figures = ''.join(
        f'<figure><img alt="{html.escape(title)}" src="{_data_url(picture, size, i == 0)}">'
        f'<figcaption>{html.escape(title)}</figcaption></figure>'
        for i, (title, picture) in enumerate(pictures_of(example, palette))
    )
    return (
        f'<div class="case" {" ".join(data)}><p><b>image {example.index}</b> '
        f'{html.escape(example.path)}<br>mIoU of this image: {text}</p>'
        f'<div class="row">{figures}</div></div>'
    )


def _data_url(picture: np.ndarray, size: tuple, photo: bool) -> str:
    """A photo as JPEG, a map of a few colours as PNG."""
    if photo:
        kind, options = 'jpeg', [cv2.IMWRITE_JPEG_QUALITY, 88]
    else:
        kind, options = 'png', [cv2.IMWRITE_PNG_COMPRESSION, 9]
        picture = resize_nearest(picture, size)
    data = cv2.imencode(f'.{kind}', picture[..., ::-1], options)[1]
    return f'data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}'
