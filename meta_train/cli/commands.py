"""What each command of ``metaopt`` does with its arguments.

Imports stand where they are used: ``metaopt list`` does not wait for the estimators.
"""

import argparse
import json
from pathlib import Path

from metaopt.errors import UserError


def evaluation(arguments):
    """The ``evaluate.Request`` that the options of ``add_evaluation`` make, and the folder for its results."""
    from meta_train.evaluation.evaluate import Request
    from metaopt.evaluation.compare import Settings

    request = Request(
        arguments.name,
        arguments.suite,
        tuple(arguments.baselines.split(",")),
        Settings(num_steps=arguments.steps, seeds=arguments.seeds, draws=arguments.draws),
        tuple(arguments.tasks.split(",")) if arguments.tasks else None,
        arguments.block,
    )
    return request, arguments.out or Path("reports") / f"{request.label}-{request.suite}"


def run_train(arguments) -> int:
    from meta_train import recipe as recipes
    from meta_train.parallel import devices
    from meta_train.run import directory, preempt

    chosen = recipes.override(recipes.find(arguments.recipe), arguments.settings) if arguments.recipe else None
    recipe = directory.read_recipe(arguments.resume) if arguments.resume else chosen
    if recipe is None:
        raise UserError(f"name a recipe ({', '.join(recipes.names())}) or a run with --resume DIR")
    devices.prepare(recipe.spread(), arguments.devices)
    if arguments.resume:
        finished = directory.resume(arguments.resume, chosen, arguments.log)
    else:
        finished = directory.start(recipe, arguments.dir or Path("runs") / arguments.recipe, arguments.log)
    return 0 if finished else preempt.EXIT_CODE


def run_export(arguments) -> None:
    from meta_train.run.export import export

    print(export(arguments.dir, arguments.name, arguments.step, arguments.summary))


def run_import(arguments) -> None:
    from metaopt import importers

    words, names = {"true": True, "false": False}, sum(importers.OPTIONS.values(), [])
    given = {name: value for name, value in vars(arguments).items() if name in names and value is not None}
    options = {name: words.get(value, value) for name, value in given.items()}
    print(importers.import_file(arguments.file, arguments.name, arguments.licence, **options))


def run_list(arguments) -> None:
    from metaopt import catalog, checkpoint

    manifests = {name: checkpoint.read_manifest(name) for name in checkpoint.list_pretrained()}
    print(catalog.markdown(manifests) if arguments.markdown else catalog.text(manifests))


def run_info(arguments) -> None:
    from metaopt import checkpoint

    checkpoint.read(arguments.name)  # verified, not only printed
    print(json.dumps(checkpoint.read_manifest(arguments.name), indent=2))


def run_evaluate(arguments) -> None:
    from meta_train.evaluation import evaluate

    request, out = evaluation(arguments)
    if arguments.part is not None:
        if arguments.record:
            raise UserError("a part has no result to record: leave --record to metaopt merge")
        print(evaluate.evaluate_part(request, out, arguments.part))
        return
    evaluate.evaluate(request, out)
    run_report(argparse.Namespace(dir=out))
    if arguments.record:
        evaluate.record(request.name, out)


def run_merge(arguments) -> None:
    from meta_train.evaluation import evaluate, merge

    name = merge.merge(arguments.dir)
    run_report(arguments)
    if arguments.record:
        evaluate.record(name, arguments.dir)


def run_submit_train(arguments) -> None:
    from meta_train import recipe as recipes
    from meta_train.cluster import submit

    if arguments.resume and not arguments.recipe:
        jobs = submit.resume(arguments.resume)
    elif arguments.recipe and not arguments.resume:
        folder = arguments.dir or Path("runs") / arguments.recipe
        jobs = submit.train(arguments.recipe, arguments.settings, folder, arguments.log)
    else:
        raise UserError(f"name a recipe ({', '.join(recipes.names())}) or a run with --resume DIR, one of them")
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
