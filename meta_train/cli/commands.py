"""What each command of ``metaopt`` does with its arguments.

Imports stand where they are used: ``metaopt list`` does not wait for the estimators.
"""

import argparse
import json
import math
from pathlib import Path

from meta_train.cli import interrupt
from metaopt.errors import UserError, check_range

# The smallest values of numbers that an import may be given.
LOWEST = {"num_minibatches": 1, "num_epochs": 1, "learning_rate": 0, "step_multiplier": 0, "weight_decay": 0}


def evaluation(arguments):
    """The ``evaluate.Request`` that the options of ``add_evaluation`` make, and the folder for its results."""
    from meta_train.evaluation.evaluate import Request
    from metaopt.evaluation.compare import Settings
    from metaopt.evaluation.comparison import label

    request = Request(
        names=tuple(arguments.names),
        suite=arguments.suite,
        baselines=_words(arguments.baselines),
        settings=Settings(num_steps=arguments.steps, seeds=arguments.seeds, draws=arguments.draws),
        only=_words(arguments.tasks),
        block=arguments.block,
        foreign=tuple(arguments.family),
    )
    return request, arguments.out or Path("reports") / f"{'+'.join(map(label, request.names))}-{request.suite_label}"


def _words(text: str | None) -> tuple[str, ...] | None:
    """Words between commas; none where the text is empty."""
    return None if text is None else tuple(word for word in text.split(",") if word)


def run_train(arguments) -> int:
    from meta_train.run import preempt

    name, run_dir = _recipe_and_run(arguments)
    result = _resume(arguments, run_dir, name) if run_dir else _begin(arguments, name)
    return 0 if result.finished else preempt.EXIT_CODE


def _begin(arguments, name: str):
    from meta_train import recipes, settings, training
    from meta_train.parallel import devices, processes

    recipe = settings.override(recipes.find(name), arguments.settings)
    devices.prepare(recipe.num_sharded(), arguments.devices)
    if processes.is_first():
        print("recipe", name, *arguments.settings, flush=True)
    folder = arguments.dir or Path("runs") / recipes.label(name)
    return training.train(recipe, folder, source=recipes.source_of(name), mirror=arguments.log)


def _resume(arguments, run_dir: Path, name: str):
    from meta_train import recipes, settings, training
    from meta_train.parallel import devices
    from meta_train.run import directory

    chosen = settings.override(recipes.find(name), arguments.settings) if name else None
    if arguments.settings and not name:
        directory.relocate(run_dir, arguments.settings)
    devices.prepare((chosen or directory.read_recipe(run_dir)).num_sharded(), arguments.devices)
    return training.resume(run_dir, chosen, mirror=arguments.log)


def _recipe_and_run(arguments) -> tuple[str, Path | None]:
    """The recipe, "" where none is named, and the run to go on with.

    In ``--resume RUN tasks=NEW`` the first setting stands in the recipe's place.
    """
    from meta_train import recipes

    name = arguments.recipe or ""
    if arguments.resume and "=" in name:
        arguments.settings.insert(0, name)
        name = ""
    if not name and not arguments.resume:
        raise UserError(f"name a recipe ({', '.join(recipes.names())}), its file, or a run with --resume DIR")
    return name, arguments.resume


def run_export(arguments) -> None:
    from meta_train.run.export import export

    about = arguments.step, arguments.summary, arguments.licence
    print(export(arguments.dir, arguments.name, *about, overwrite=arguments.overwrite))


def run_recipes(arguments) -> None:
    from meta_train import recipes

    for name in recipes.names():
        print(f"{name:24} {recipes.about(name).partition(chr(10))[0]}")


def run_import(arguments) -> None:
    from metaopt import importers

    words, names = {"true": True, "false": False}, sum(importers.OPTIONS.values(), [])
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    options = {name: words.get(value, value) for name, value in given.items()}
    for name, value in options.items():
        lowest = LOWEST.get(name, -math.inf)
        if isinstance(value, float | int) and value < lowest:
            raise UserError(f"--{name.replace('_', '-')} must be at least {lowest:g}, got {value}")
        check_range(f"--{name.replace('_', '-')}", value)
    about = arguments.name, arguments.licence, arguments.overwrite
    print(importers.import_file(arguments.file, *about, **options))


def run_seal(arguments) -> None:
    from metaopt import checkpoint

    print(checkpoint.seal(arguments.name))


def run_list(arguments) -> None:
    from metaopt import catalog, checkpoint

    manifests = {name: checkpoint.read_manifest(name) for name in checkpoint.list_pretrained()}
    print(catalog.markdown(manifests) if arguments.markdown else catalog.text(manifests))


def run_info(arguments) -> None:
    from metaopt import checkpoint, families

    manifest = checkpoint.read_manifest(arguments.name)
    if arguments.family or families.is_ours(manifest["family"]):
        checkpoint.read(arguments.name, family=arguments.family)  # verified, not only printed
    else:
        checkpoint.read_arrays(arguments.name)
    print(json.dumps(manifest, indent=2))


def run_evaluate(arguments) -> None:
    from meta_train.evaluation import evaluate, record
    from meta_train.parallel import devices

    devices.widen_thread_pool()
    request, out = evaluation(arguments)
    if arguments.shard is not None:
        if arguments.record:
            raise UserError("a shard has no result to record: leave --record to metaopt merge")
        print(evaluate.evaluate_shard(request, out, arguments.shard))
        return
    if arguments.record:
        record.check(request.names)
    with interrupt.saying(f"what is measured is in {out}, and the same command continues"):
        evaluate.evaluate(request, out)
    run_report(argparse.Namespace(dir=out))
    if arguments.record:
        _print_recorded(record.write(request.names, out))


def run_merge(arguments) -> None:
    from meta_train.evaluation import merge, record

    names = merge.merge(arguments.dir)
    run_report(arguments)
    if arguments.record:
        _print_recorded(record.write(names, arguments.dir))


def _print_recorded(manifests: list[Path]) -> None:
    for path in manifests:
        print(f"recorded in {path}")


def run_submit_train(arguments) -> None:
    from meta_train import recipes
    from meta_train.cluster import submit
    from meta_train.run import directory

    name, run_dir = _recipe_and_run(arguments)
    if name and run_dir:
        raise UserError("name a recipe or a run with --resume DIR, one of them")
    if run_dir:
        if arguments.settings:
            directory.relocate(run_dir, arguments.settings)
        jobs = submit.resume(run_dir)
    else:
        folder = arguments.dir or Path("runs") / recipes.label(name)
        jobs = submit.train(name, arguments.settings, folder, arguments.log)
    submit.send(jobs, arguments.sbatch, arguments.dry_run)


def run_submit_sweep(arguments) -> None:
    from meta_train.cluster import submit, sweep

    runs = sweep.plan(arguments.settings, arguments.dir)
    jobs = submit.sweep_array(runs, arguments.dir, arguments.at_once)
    for index, run in enumerate(runs):
        print(f"{index:4d}  {run.folder}")
    if not arguments.dry_run:
        sweep.write(runs, arguments.dir)
    submit.send(jobs, arguments.sbatch, arguments.dry_run)


def run_submit_evaluate(arguments) -> None:
    from meta_train.cluster import submit

    jobs = submit.evaluation(*evaluation(arguments), arguments.at_once)
    submit.send(jobs, arguments.sbatch, arguments.dry_run)


def run_report(arguments) -> None:
    from metaopt.evaluation import report

    print(report.text_table(arguments.dir))
    print(f"report: {report.write(arguments.dir)}")


def run_schedule_study(arguments) -> None:
    from meta_train.studies import schedule

    print(schedule.table(schedule.write(arguments.dirs, arguments.out, arguments.seeds)))
    print(f"picture: {arguments.out / 'schedule.png'}")


def run_estimator_study(arguments) -> None:
    from meta_train.studies import estimator

    estimator.prepare(arguments.out)
    results = estimator.measure(estimator.Settings())
    print(estimator.summary(results))
    print(f"picture: {estimator.write(arguments.out, results)}")


def run_coord_check(arguments) -> None:
    from meta_train.studies import coordinate_check

    print(coordinate_check.table(coordinate_check.write(arguments.optimizer, arguments.network, arguments.out)))
    print(f"picture: {arguments.out / 'coordinate_check.png'}")
