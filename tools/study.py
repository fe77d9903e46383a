r"""Which method helps on this data, with this backbone, and by how much?

Trains CONFIG as it is and with each method, several seeds each, and compares them seed by seed.

    python tools/study.py CONFIG --methods fcn mdrl mcibi car dgcw mcibi+car --seeds 0 1 2 3 4 \
        --jobs 2 --work-dir work_dirs/study

A method is the one-line change of the README: car, or a registered decode head by the name of its
class (mdrl, mcibi, dgcw, psp), or both: mcibi+car. A head that takes a context keeps the config's
head as such, unless that is FCNHead; 'mdrl@nl' names another, 'mdrl@none' leaves it out.

Further arms have a name, a method or a config, and settings:

    --arm 'mdrl-n3: mdrl model.decode_head.bank.num_distributions=3'
    --arm 'fcn-wide: model.decode_head.channels=128'        on the baseline
    --arm 'mine: path/to/config.py'                         a config of its own

A study that was stopped goes on with the same command; with more seeds or arms it is extended. In
the work dir, plan.json and results/ are small and all that it needs, on another machine too.
"""

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import mmseg_cmdl  # noqa: F401  before anything of mmseg

from mmseg_cmdl import InputError  # isort: skip
from mmseg_cmdl.config_file import check_model, load_config  # isort: skip
from mmseg_cmdl.config_overrides import add_overrides  # isort: skip
from mmseg_cmdl.command_line import not_negative, number, positive, seed, tool  # isort: skip
from mmseg_cmdl.study import jobs, plan, report  # isort: skip
from mmseg_cmdl.written_files import check_folder  # isort: skip

TRAIN = Path(__file__).resolve().with_name('train.py')


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', help='config of the baseline')
    parser.add_argument('--methods', nargs='+', default=[], metavar='METHOD', help='see above')
    parser.add_argument(
        '--arm', action='append', default=[], metavar='ARM', help='see above; may be given again'
    )
    parser.add_argument(
        '--controls',
        nargs='*',
        metavar='ARM',
        help='add two controls to these arms (none named: to all with MDRLHead or MCIBIHead), '
        'which have the same modules and no memory: in ARM~pixels the relation attends to the '
        'pixels themselves, in ARM~learned to class vectors learned by gradient',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=seed, default=[0, 1, 2], metavar='SEED', help='(default: 0 1 2)'
    )
    parser.add_argument('--jobs', type=positive, default=1, help='at a time (default: %(default)s)')
    parser.add_argument(
        '--iters',
        type=positive,
        help='length of all trainings, schedule included (default: as it is)',
    )
    add_overrides(parser, 'all arms (of a schedule, as they are after --iters)')
    parser.add_argument(
        '--precise-bn',
        type=not_negative,
        default=0,
        metavar='BATCHES',
        help='before the last validation of each job, compute the statistics of batch norms from '
        'this many training batches',
    )
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/study_<config name>')
    parser.add_argument(
        '--keep-checkpoints', action='store_true', help='keep those of finished jobs, too'
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument('--dry-run', action='store_true', help='list the jobs and the time needed')
    other.add_argument(
        '--print-commands',
        action='store_true',
        help='print a command for each job that is not done',
    )
    other.add_argument(
        '--report',
        type=Path,
        metavar='FOLDER',
        help='only write the report of the study in that folder again; needs no config',
    )
    parser.add_argument(
        '--insert',
        type=Path,
        nargs='+',
        default=[],
        metavar='PAGE.md',
        help="renew the study's table in these pages, between the lines <!-- study: NAME --> and "
        "<!-- end of study -->; NAME is that of the study's folder. <!-- study: NAME, brief: ARM "
        'ARM --> is for fewer arms and columns',
    )
    parser.add_argument(
        '--resolution',
        type=number(0),
        default=2.0,
        metavar='POINTS',
        help='of mIoU that the study should tell apart: the report says how many seeds that takes '
        '(default: %(default)s)',
    )
    other.add_argument('--slurm', metavar='PARTITION', help='hand the jobs to Slurm as an array')
    parser.add_argument(
        '--slurm-args', default='', help='further options of sbatch, as one word: "--gres=gpu:1"'
    )
    args = parser.parse_args(argv)
    if len(set(args.seeds)) < len(args.seeds):
        parser.error('--seeds must differ')
    if args.report:
        args.work_dir = args.report
        return args
    if args.config is None:
        parser.error('the following arguments are required: config')
    # says what is wrong with it, before any training
    needs = ('model', 'train_dataloader', 'train_cfg')
    cfg = load_config(args.config, args.cfg_options, needs=needs)
    check_model(cfg, args.config, args.cfg_options)
    args.work_dir = args.work_dir or Path('work_dirs') / f'study_{Path(args.config).stem}'
    return args


def show_plan(todo, baseline, at_a_time):
    """Jobs with their states, and how long they take."""
    whole = jobs.expected_seconds(todo)
    for job in todo:
        print(f'{job.state():8} {job.name}', flush=True)
    source = 'from the jobs that are done'
    if None in whole.values():
        try:
            whole = dict.fromkeys(whole, jobs.measure(baseline, TRAIN))
        except plan.StudyError as error:
            print(f'No estimate: no job is done yet, and {error}.')
            return
        source = f'from a few iterations of {baseline.name} just now'
    left = 0.0
    for job in todo:
        state = job.state()
        if state != 'done':
            left += whole[job.arm] * (1 - job.progress() * (state != 'failed'))
    print(f'About {jobs.describe(left / at_a_time)} with --jobs {at_a_time}, {source}.')


def submit(todo, args):
    """Writes the commands and a batch script, and hands it to Slurm."""
    lines = jobs.command_lines(todo, TRAIN, sys.executable)
    if not lines:
        print('all jobs are done or running')
        return
    (args.work_dir / 'commands.txt').write_text('\n'.join(lines) + '\n')
    script = args.work_dir / 'study.sbatch'
    script.write_text(jobs.slurm_script(lines, args.work_dir, args.slurm, args.jobs))
    try:
        subprocess.run(['sbatch', *shlex.split(args.slurm_args), str(script)], check=True)
    except FileNotFoundError:
        message = f'error: there is no sbatch here; {script} is what it would be given'
        raise SystemExit(message) from None
    except subprocess.CalledProcessError as error:
        message = f'error: sbatch ended with {error.returncode}; the script is {script}'
        raise SystemExit(message) from None
    print(f'{len(lines)} jobs handed to Slurm; run the command again for the report')


def show_report(args):
    """Writes the report, and the tables in pages."""
    study = report.write_report(args.work_dir, args.resolution)
    print(report.as_text(study))
    for page in args.insert:
        text = page.read_text(encoding='utf-8')
        page.write_text(report.insert_tables(text, {study['name']: study}), encoding='utf-8')
    print(f'{args.work_dir / "study.html"}, and study.md, study.json and the pictures beside it')


def terminate(signum, frame):
    raise KeyboardInterrupt


@tool
def main(argv=None):
    args = parse_args(argv)
    try:
        if args.report:
            show_report(args)
            return
        arms = plan.resolve(
            args.config,
            args.methods,
            args.arm,
            args.cfg_options,
            args.iters,
            args.work_dir / 'results',
            args.precise_bn,
            args.controls,
        )
        words = sys.argv[1:] if argv is None else argv
        command = plan.command_line(['python', 'tools/study.py', *map(str, words)])
        todo = jobs.jobs_of(arms, args.seeds, args.work_dir)
        if args.dry_run:
            # refuses what the study would refuse, and leaves no arm that is never trained
            check_folder(args.work_dir)
            plan.merge(args.work_dir, arms, args.precise_bn)
            show_plan(todo, arms[0], args.jobs)
            return
        plan.save(args.work_dir, arms, args.precise_bn, command)
        if args.print_commands:
            print('\n'.join(jobs.command_lines(todo, TRAIN, sys.executable)))
            return
        if args.slurm:
            submit(todo, args)
            return
        signal.signal(signal.SIGTERM, terminate)
        failed = jobs.Runner(todo, TRAIN, args.jobs, args.keep_checkpoints).run()
        show_report(args)
    except InputError:
        raise
    except (plan.StudyError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        raise SystemExit('stopped; the same command goes on from here') from None
    if failed:
        print('failed: ' + '; '.join(job.name for job in failed))
        raise SystemExit(1)


if __name__ == '__main__':
    main()
