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
        from model.weights import checkpoint_path

        settings = []
        for setting in (args.steps or "1,.75,.5,.25").split(";"):
            levels, history, decoder = (*setting.split("/"), "", "")[:3]
            sigmas = tuple(float(v) for v in levels.split(","))
            settings.append((sigmas, history or args.history or "same_step", decoder == "small"))
        checkpoint = checkpoint_path(args.checkpoint) if args.checkpoint else None
        return evaluation.run(args.work, settings, args.smoke, args.clips or 32, checkpoint=checkpoint)
    if args.stage == "export":
        from model.training import export
        from model.weights import checkpoint_path

        if args.checkpoint:
            return export.add_decoder(args.work, checkpoint_path(args.checkpoint), args.out)
        sigmas = tuple(float(v) for v in args.steps.split(",")) if args.steps else None
        return export.run(args.work, args.out, sigmas, args.history)
    raise SystemExit(f"train: stage {args.stage!r} is not built yet")
