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

        sigmas = tuple(float(s) for s in (args.steps or "1,.75,.5,.25").split(","))
        return evaluation.run(args.work, sigmas, args.history or "same_step", args.tag, args.smoke)
    raise SystemExit(f"train: stage {args.stage!r} is not built yet")
