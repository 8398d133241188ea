"""`avatarcast train STAGE`: the making of the tiny checkpoint, stage by stage, in one working folder.

    data     speech with mouth curves (espeak-ng)
    measure  the evaluation network (and, with --loss-meter, one for losses)
    vae      the light video VAE
    decoder  a small decoder of the same latents, for slow machines
    audio    the speech encoder
    teacher  the diffusion transformer on latents
    eval     roll-outs through the streaming path, figures and pictures
    export   one safetensors file with configuration and figures

Every stage takes a time budget, leaves averaged weights in the folder, and goes on from them with --resume.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from model.training.sitting import set_up

STAGES = ("data", "measure", "vae", "decoder", "audio", "teacher", "student", "polish", "eval", "export")
SECONDS = {"measure": 150, "vae": 480, "decoder": 200, "audio": 330, "teacher": 1000}
SMOKE_SECONDS = 8


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="avatarcast train", description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, default=Path("output/tiny"), help="working folder")
    parser.add_argument("--seconds", type=float, help="time budget of this sitting")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's weights")
    parser.add_argument("--hours", type=float, default=10.0, help="data: hours of speech")
    parser.add_argument("--espeak", type=Path, help="data: folder with libespeak-ng and espeak-ng-data")
    parser.add_argument("--jobs", type=int, help="data: processes")
    parser.add_argument("--clips", type=int, help="vae, decoder, teacher: clips to render; eval: clips to speak")
    parser.add_argument("--batch", type=int, help="teacher: clips a step")
    parser.add_argument("--loss-meter", action="store_true", help="measure: the network that may serve losses")
    parser.add_argument("--steps", help="eval: sigmas, for example 1,.5, or 1,.5/same_step/small; several with ;")
    parser.add_argument("--history", choices=("same_step", "clean"), help="eval, export: ring policy")
    parser.add_argument(
        "--checkpoint",
        help="eval, --resume: a finished file instead of the folder's weights, for example tiny; "
        "export: the file that the folder's small decoder is added to",
    )
    parser.add_argument("--tag", default="", help="eval: suffix of its files")
    parser.add_argument("--out", type=Path, help="export: the checkpoint file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, seconds on a CPU")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    set_up()
    args.work.mkdir(parents=True, exist_ok=True)
    seconds = args.seconds or (SMOKE_SECONDS if args.smoke else SECONDS.get(args.stage, 0))
    figures = run_stage(args, seconds)
    if figures is not None:
        (args.work / f"{args.stage}{args.tag}.json").write_text(json.dumps(figures, indent=1))
    return 0


def run_stage(args: argparse.Namespace, seconds: float) -> object:
    more = {"clips": args.clips} if args.clips else {}
    if args.checkpoint and (args.resume or args.stage == "decoder"):
        from model.training.export import unpack
        from model.weights import checkpoint_path

        unpack(checkpoint_path(args.checkpoint), args.work)
    match args.stage:
        case "data":
            from model.training import speech

            hours, held = (0.05, 0.02) if args.smoke else (args.hours, 0.3)
            folder = str(args.espeak) if args.espeak else None
            jobs = args.jobs or os.cpu_count()
            speech.make_corpus(hours, args.work / "speech.npz", folder=folder, jobs=jobs)
            speech.make_corpus(
                held, args.work / "speech_held.npz", folder=folder, jobs=jobs, seed=100_000, voices=speech.HELD_VOICES
            )
            return None
        case "measure":
            from model.training import measure_stage

            return measure_stage.run(args.work, seconds, args.smoke, args.resume, evaluation=not args.loss_meter)
        case "vae":
            from model.training import vae_stage

            return vae_stage.run(args.work, seconds, args.smoke, args.resume, **more)
        case "decoder":
            from model.training import decoder_stage

            return decoder_stage.run(args.work, seconds, args.smoke, args.resume, **more)
        case "audio":
            from model.training import audio_stage

            return audio_stage.run(args.work, seconds, args.smoke, args.resume)
        case _:
            from model.training import late_stages

            return late_stages.run(args, seconds)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
