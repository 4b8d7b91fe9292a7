"""A trainer over a few records, on a CPU."""

import torch

from diffusionvl import BlockDiffusionConfig, BlockDiffusionTrainer, RowDataset
from diffusionvl.checkpoints.checkpoint import Checkpoint
from diffusionvl.data.conversation import ConversationEncoder
from diffusionvl.training.next_tokens import load_teacher


def trainer_of(folder, processor, records, tmp_path, views=1, **settings):
    """The trainer of a checkpoint's folder; settings are those of `BlockDiffusionConfig`."""
    model = Checkpoint(folder).model(torch.float32)
    defaults = {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    args = BlockDiffusionConfig(**defaults, **settings)
    seed = args.seed if args.draft else None
    rows = RowDataset(records, ConversationEncoder(processor), model.config, views=views, draft_seed=seed)
    teacher = load_teacher(args.teacher, "float32", model.config, processor) if args.teacher else None
    return BlockDiffusionTrainer(model, args, rows, teacher, processing_class=processor)


def batch_of(trainer):
    """All rows of the trainer's data set as one batch."""
    rows = trainer.train_dataset
    return rows.collate([rows[index] for index in range(len(rows))])


def weights(trainer):
    """A copy of every parameter, by name."""
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def assert_identical(found, expected):
    """The same tensors, by name, to the last bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def logged(trainer, name):
    """The values that a run has logged under a name, in order."""
    return [log[name] for log in trainer.state.log_history if name in log]
