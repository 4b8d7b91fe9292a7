"""Processes of a test's own: killed, signalled, or several that train together over gloo, as torchrun starts them."""

import multiprocessing
import os
import signal
import socket
import sys

import pytest
from transformers import TrainerCallback

# A fork server imports once what every process needs; a process of its own then starts in no time.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["diffusionvl.commands.recipe", "diffusionvl.training.run", "processes"])


def start(function, *args, world_size=1, **kwargs):
    """Starts `world_size` processes of one run, each as `function(*args, **kwargs)`.

    Args:
        function: Of a module, so that the processes find it; what it returns is its process's exit code.
        *args: Its arguments.
        world_size: Processes; more than one find each other as torchrun's do.
        **kwargs: Its keyword arguments; `output` names a file for what they print.

    Returns:
        The processes.
    """
    output = kwargs.pop("output", None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world_size):
        environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        if world_size > 1:
            environment |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            }
        processes.append(FORKS.Process(target=_run, args=(environment, output, function, args, kwargs)))
        processes[-1].start()
    return processes


def run(function, *args, **kwargs):
    """As `start`, and waits. Returns the exit codes, -9 for a process that was killed."""
    return wait(start(function, *args, **kwargs))


def wait(processes, timeout=300):
    """Exit codes; a process that does not end in time fails the test."""
    for process in processes:
        process.join(timeout)
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.kill()
    if stuck:
        pytest.fail(f"{len(stuck)} of {len(processes)} processes did not end in {timeout} seconds")
    return [process.exitcode for process in processes]


def _run(environment, output, function, args, kwargs):
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as in any process that no fork server has started
    os.setpgid(0, 0)  # a group of its own, which a test may signal as a whole
    if output is not None:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    sys.exit(function(*args, **kwargs))


def train(argv, kill=None, term=None):
    """Trains as `diffusionvl train ARGV` does.

    Args:
        argv: Arguments.
        kill: SIGKILLs this process at (where, step): an event of a trainer callback, such as `on_step_end`, or before
            a method of the trainer, such as `_save_rng_state`.
        term: Sends SIGTERM in the same way, to the whole group of the last process and to no other.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from diffusionvl.train import main
    from diffusionvl.training import run as command

    if "--deepspeed" in argv:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it is compiled first, for 42 seconds
        deepspeed.init_distributed("gloo")  # accelerate does so on GPUs only
    build = command.build_trainer

    def build_and_watch(*args):
        if "--fsdp_config" in argv:  # accelerate shards nothing on CPUs; it does if it takes them for GPUs
            PartialState().distributed_type = DistributedType.MULTI_GPU
        trainer = build(*args)
        if kill is not None:
            interrupt(trainer, *kill, lambda: os.kill(os.getpid(), signal.SIGKILL))
        if term is not None and trainer.args.process_index == trainer.args.world_size - 1:
            interrupt(trainer, *term, lambda: os.killpg(0, signal.SIGTERM))
        return trainer

    command.build_trainer = build_and_watch
    return main(list(argv))


def interrupt(trainer, where, step, act):
    """Acts when the trainer comes to `where` in a step."""
    from diffusionvl.training import checkpoints

    def watch(*args, **kwargs):
        if trainer.state.global_step == step:
            act()

    if where.startswith("checkpoints."):  # a function that writes them, before it does or after it has
        name, after = where.removeprefix("checkpoints.").removesuffix("+"), where.endswith("+")
        function = getattr(checkpoints, name)

        def written(*args, **kwargs):
            if not after:
                watch()
            found = function(*args, **kwargs)
            watch()
            return found

        setattr(checkpoints, name, written)
    elif where.startswith("on_"):
        trainer.add_callback(type("Interrupt", (TrainerCallback,), {where: watch})())
    else:
        method = getattr(trainer, where)

        def watched(*args, **kwargs):
            watch()
            return method(*args, **kwargs)

        setattr(trainer, where, watched)
