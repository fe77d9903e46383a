"""Class-wise variance per channel (DGCW, fig. 3 and eq. 8) as histograms of several models.

For each channel, the variance among the average features of the classes: channels with more of
it tell classes apart better. Writes channel_variance.png, and channel_variance.json with the
counts and the variance of each channel.

Example:
    python tools/analysis/channel_variance.py CONFIG CKPT DGCW_CONFIG DGCW_CKPT --out out/
"""

from mmseg_cmdl.analysis import command_line, measure_statistics
from mmseg_cmdl.command_line import positive, tool
from mmseg_cmdl.visualization import draw_channel_variance, save_figure


def parse_args(argv=None):
    parser = command_line.parser_of(__doc__, features='classifier')
    parser.add_argument(
        '--bins', type=positive, default=12, help='intervals (default: %(default)s)'
    )
    parser.add_argument('--log', action='store_true', help='intervals even on a logarithmic scale')
    parser.add_argument(
        '--normalize',
        action='store_true',
        help='bring features to length 1 first, to compare models whose features '
        'have other lengths',
    )
    return command_line.parse(parser, argv)


@tool
def main(argv=None):
    args = parse_args(argv)
    variances = {
        model.name: measure_statistics(
            model, args.features, args.normalize, args.max_images
        ).channel_variance
        for model in command_line.load_models(args)
    }
    figure, edges, counts = draw_channel_variance(variances, args.bins, args.log)
    written = [args.out / 'channel_variance.json', args.out / 'channel_variance.png']
    command_line.write_json(
        written[0],
        dict(
            edges=edges,
            features=args.features,
            normalized=args.normalize,
            split=args.split,
            models={
                name: dict(mean=v.mean(), channels=counts[name], variance=v)
                for name, v in variances.items()
            },
        ),
    )
    save_figure(figure, written[1])
    for name, v in variances.items():
        print(f'{name}: mean class-wise variance {v.mean():.4g} of {len(v)} channels')
    print(*written, sep='\n')


if __name__ == '__main__':
    main()
