"""The gradients of a step, against autograd on all rows at once."""

import copy
import math
import os
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tests.trainer.test_forward import CPU, configure, make_batch, make_model
from trainer.forward import Forward, prepare_model
from trainer.loss import IGNORED_LABEL, next_tokens, token_losses
from trainer.row_sampler import Position
from trainer.shard_dataset import Batch
from trainer.skipped_steps import rows_with_highest_losses
from trainer.step_gradients import compute_gradients, peak_memory_bytes
from trainer.step_loader import LoadedStep

Z_LOSS = 0.5


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture
def batch():
    batch = make_batch(segment_lengths=[[5, 1, 11, 7], [14, 6, 4], [20, 4]])
    # Rows with very different numbers of targets, so that a mean of means would be another.
    batch.labels[1, 6:] = IGNORED_LABEL
    return replace(batch, component_ids=torch.tensor([1, 0, 1]))


def step_of(batch, micro_batches):
    return LoadedStep(
        rows=[number for rows in micro_batches for number in rows],
        next_position=Position(step=1),
        micro_batches=micro_batches,
        batches=[
            Batch(
                input_ids=batch.input_ids[rows],
                labels=batch.labels[rows],
                position_ids=batch.position_ids[rows],
                component_ids=batch.component_ids[rows],
                num_tokens=24 * len(rows),
            )
            for rows in micro_batches
        ],
    )


def compute(step, *, accelerator, max_grad_norm=math.inf):
    model, config = make_model("llama").train(), configure(z_loss=Z_LOSS)
    prepare_model(model, config=config, device=CPU)
    result = compute_gradients(
        model,
        step=step,
        forward=Forward(config),
        components=("a", "b"),
        max_grad_norm=max_grad_norm,
        accelerator=accelerator,
    )
    return result, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("micro_batches", [[[0, 1, 2]], [[0, 1], [2]], [[0], [1], [2]]])
def test_a_step_is_the_mean_over_its_targets_with_the_z_loss(accelerator, batch, micro_batches):
    model = make_model("llama").train()
    logits = model(input_ids=batch.input_ids).logits
    losses = token_losses(logits.flatten(0, 1), targets=next_tokens(batch.labels), z_loss=Z_LOSS)
    num_targets = int((batch.labels[:, 1:] != IGNORED_LABEL).sum())
    ((losses.cross_entropy.sum() + losses.z.sum()) / num_targets).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))

    result, actual = compute(step_of(batch, micro_batches), accelerator=accelerator)
    assert result.loss == pytest.approx(float(losses.cross_entropy.sum()) / num_targets)
    assert result.z_loss == pytest.approx(float(losses.z.sum()) / num_targets)
    assert result.grad_norm == pytest.approx(norm, rel=1e-4)
    assert result.num_tokens == 72
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    row_sums = losses.cross_entropy.view(3, -1).sum(dim=1).tolist()
    counts = (batch.labels[:, 1:] != IGNORED_LABEL).sum(dim=1).tolist()
    assert result.loss_by_component == pytest.approx(
        {"a": row_sums[1] / counts[1], "b": (row_sums[0] + row_sums[2]) / (counts[0] + counts[2])}
    )
    # Clipped, all of it is as much shorter.
    _, clipped = compute(step_of(batch, micro_batches), accelerator=accelerator, max_grad_norm=norm / 2)
    for name, gradient in clipped.items():
        torch.testing.assert_close(gradient, actual[name] / 2, rtol=1e-3, atol=1e-6, msg=name)


def test_rows_are_named_from_the_highest_loss_on(accelerator, batch):
    step = step_of(batch, [[0, 1], [2]])
    result, _ = compute(step, accelerator=accelerator)
    rows = rows_with_highest_losses(result, accelerator=accelerator)
    assert {row for row, _ in rows} == {0, 1, 2}
    assert [loss for _, loss in rows] == sorted((loss for _, loss in rows), reverse=True)
    assert all(3 < loss < 7 for _, loss in rows), "means of tokens, near the logarithm of 96"
    # What is not finite comes first, and a row without a target is no such row.
    broken = copy.copy(result.own_losses[1])
    broken[0] = math.nan
    rows = rows_with_highest_losses(replace(result, own_losses=[result.own_losses[0], broken]), accelerator=accelerator)
    assert rows[0] == (2, None)
    assert all(loss is not None for _, loss in rows[1:])
    batch.labels[1] = IGNORED_LABEL
    result, _ = compute(step_of(batch, [[0, 1], [2]]), accelerator=accelerator)
    assert rows_with_highest_losses(result, accelerator=accelerator)[-1] == (1, 0.0)


def test_a_step_without_a_target_is_refused(accelerator, batch):
    batch.labels[:] = IGNORED_LABEL
    with pytest.raises(ValueError, match="Step 1 has no token to predict"):
        compute(step_of(batch, [[0, 1, 2]]), accelerator=accelerator)


def test_peak_memory_of_the_process_is_what_the_system_says():
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the system has no /proc to compare with")
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    assert peak_memory_bytes(CPU) == pytest.approx(int(line.split()[1]) * 1024, rel=0.02)
