"""The server as a deployment of Ray Serve, with as many replicas as there is work for.

Run `serve run configs.serving.ray_serve:build model=DIR gpus=1 replicas=8`. Needs the extras `serve` and `ray`.
"""

from pathlib import Path

from fastapi import FastAPI
from ray import serve

from diffusionvl.serving.settings import ServingSettings


def build(arguments: dict[str, str]) -> serve.Application:
    """The application.

    Args:
        arguments: `model`, a checkpoint; `gpus` of a replica (0); `replicas`, the largest number of them (2);
            `least_replicas`, the smallest (1).
    """
    settings = ServingSettings(name=Path(arguments["model"]).resolve().name)

    def build_app() -> FastAPI:  # in each replica
        from diffusionvl.checkpoints.checkpoint import Checkpoint
        from diffusionvl.checkpoints.loading import find_device
        from diffusionvl.serving.app import create_app

        checkpoint = Checkpoint(arguments["model"])
        model = checkpoint.model().eval().to(find_device(None))
        return create_app(model, checkpoint.processor, settings)

    deployment = serve.deployment(
        serve.ingress(build_app)(),
        name="diffusionvl",
        # What comes beyond it waits in Ray's proxy for a replica that has room.
        max_ongoing_requests=settings.max_batch_size + settings.max_waiting,
        autoscaling_config={
            "min_replicas": int(arguments.get("least_replicas", 1)),
            "max_replicas": int(arguments.get("replicas", 2)),
            "target_ongoing_requests": settings.max_batch_size,
        },
        ray_actor_options={"num_gpus": float(arguments.get("gpus", 0)), "num_cpus": 1},
    )
    return deployment.bind()
