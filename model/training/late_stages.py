"""Stages that need the earlier ones' weights."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace, seconds: float) -> object:
    if args.stage == "teacher":
        from model.training import teacher

        more = {k: v for k, v in {"clips": args.clips, "batch": args.batch}.items() if v}
        return teacher.run(args.work, seconds, args.smoke, args.resume, **more)
    if args.stage == "eval":
        from model.training import evaluation

        settings = []
        for setting in (args.steps or "1,.75,.5,.25").split(";"):
            levels, _, history = setting.partition("/")
            settings.append((tuple(float(v) for v in levels.split(",")), history or args.history or "same_step"))
        return evaluation.run(args.work, settings, args.smoke, args.clips or 32)
    if args.stage == "export":
        from model.training import export

        sigmas = tuple(float(v) for v in args.steps.split(",")) if args.steps else None
        return export.run(args.work, args.out, sigmas, args.history)
    raise SystemExit(f"train: stage {args.stage!r} is not built yet")
