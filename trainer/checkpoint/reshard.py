"""Resuming with another number of ranks or another ZeRO stage.

DeepSpeed has universal checkpoints for this, but they need a conversion of the whole checkpoint into a folder of small
files, cannot change between stages 1 or 2 and stage 3, and at stage 3 are loaded with the settings of the first
parameter group for all groups (0.19.8: weight decay on norms, one learning rate). Here each rank maps the old ranks'
files, assembles one parameter at a time (float32 weight and optimizer states), cuts out its own part, and hands
DeepSpeed the state that this rank would have saved itself. Each rank reads only what it needs; nothing is written.

A stage-1/2 file holds, per parameter group, one slice of the group's concatenated parameters; a stage-3 file holds a
slice of each parameter, padded to equal size; stage 0 shards nothing.
"""

import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transpooler.common import UserError
from transpooler.trainer.checkpoint.files import model_file, model_files, optimizer_files
from transpooler.trainer.checkpoint.safe_load import load_file
from transpooler.trainer.engine.protocol import TrainingEngine

WEIGHT = "fp32"


@dataclass(frozen=True)
class _Piece:
    """A slice of one parameter: start..start+numel of each of `states` (1-D); `scalars` are not per element."""

    states: dict[str, Tensor]
    scalars: dict[str, Any]
    start: int
    numel: int


class SavedStates:
    """Weights and optimizer states of a checkpoint by parameter name, however they were sharded."""

    def __init__(self, folder: Path, order: list[str] | None, weights_alone: bool = False) -> None:
        """`order`: names of the parameters in the optimizer's order; only stage 0 needs it. `weights_alone` leaves out
        all states of the optimizer.
        """
        self.folder, self._weights_alone = folder, weights_alone
        self._pieces: dict[str, list[_Piece]] = {}
        self.model = load_file(model_file(folder), mmap=True)
        files = [load_file(path, mmap=True)["optimizer_state_dict"] for path in optimizer_files(folder)]
        scale = () if weights_alone or not files else ("loss_scaler", "dynamic_loss_scale")
        self.loss_scale = {key: files[0][key] for key in scale}
        for rank, states in enumerate(files):
            if "param_slice_mappings" in states:
                self._read_stage_1_2(states)
            else:
                self._read_stage_3(states, rank, len(files))
        if not files:
            self._read_stage_0(order or [])
        if files and "param_slice_mappings" not in files[0]:
            self._read_frozen_parts()
        else:
            self._read_frozen()

    def parameter(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, scalars) of one parameter by key: the whole tensors (numel,), float32, and what is not per element.

        Raises UserError where the checkpoint has no such parameter.
        """
        pieces = self._pieces.get(name)
        if not pieces:
            raise UserError(f"{self.folder}: has no parameter {name}; it is a checkpoint of another model")
        whole = {
            key: torch.cat([piece.states[key][piece.start : piece.start + piece.numel] for piece in pieces]).float()
            for key in pieces[0].states
        }
        # Copied, because parameters of one file share its step counter and would count each other's steps.
        return whole, {key: deepcopy(value) for key, value in pieces[0].scalars.items()}

    def _read_stage_1_2(self, states: dict[str, Any]) -> None:
        flat_weights, by_group = states["single_partition_of_fp32_groups"], states["base_optimizer_state"]["state"]
        for group, slices in enumerate(states["param_slice_mappings"]):
            for name, at in slices.items():
                self._add(name, flat_weights[group], by_group.get(group, {}), at.start, at.numel)

    def _read_stage_3(self, states: dict[str, Any], rank: int, world_size: int) -> None:
        by_group = states["optimizer_state_dict"]["state"]
        for group, shapes in enumerate(self.model["param_shapes"]):
            start = 0
            for name, shape in shapes.items():
                size = math.ceil(shape.numel() / world_size)
                own = min(size, max(0, shape.numel() - rank * size))
                self._add(name, states["fp32_flat_groups"][group], by_group.get(group, {}), start, own)
                start += size

    def _read_stage_0(self, order: list[str]) -> None:
        by_parameter = self.model["optimizer"]["state"]
        for number, name in enumerate(order):
            weight = self.model["module"][name]
            state = by_parameter.get(number, {})
            flat = {key: value.flatten() if _is_elementwise(value) else value for key, value in state.items()}
            self._add(name, weight.flatten(), flat, 0, weight.numel())

    def _read_frozen(self) -> None:
        """What no optimizer holds, each once: of tied parameters the file has every name."""
        weights = self.model["module"]
        known = self._pieces.keys() | set(self.model["buffer_names"])
        places = {weights[name].data_ptr() for name in self._pieces.keys() & weights.keys()}
        for name, value in weights.items():
            if name not in known and value.data_ptr() not in places:
                self._add(name, value.flatten(), {}, 0, value.numel())
                places.add(value.data_ptr())

    def _read_frozen_parts(self) -> None:
        """Stage 3 cuts them as it cuts the others; each rank's part lies in its own file of weights."""
        left = {name: shape.numel() for name, shape in self.model["frozen_param_shapes"].items()}
        for path in model_files(self.folder):
            for name, part in load_file(path, mmap=True)["frozen_param_fragments"].items():
                numel = min(part.numel(), left[name])
                self._add(name, part, {}, 0, numel)
                left[name] -= numel

    def _add(self, name: str, weight: Tensor, state: dict[str, Any], start: int, numel: int) -> None:
        state = {} if self._weights_alone else state
        tensors = {key: value for key, value in state.items() if _is_elementwise(value)}
        for key, value in tensors.items():
            if value.numel() < weight.numel():  # states may be longer, by padding
                raise UserError(
                    f"{self.folder}: the optimizer's {key} is not one value per weight, so it cannot be cut for other "
                    "ranks or another ZeRO stage; resume as it was saved"
                )
        scalars = {key: value for key, value in state.items() if key not in tensors}
        self._pieces.setdefault(name, []).append(_Piece({WEIGHT: weight, **tensors}, scalars, start, numel))


def restore(engine: TrainingEngine, folder: Path, facts: dict[str, Any], *, weights_alone: bool = False) -> None:
    """Load a checkpoint of any world size and ZeRO stage into the engine; `facts` are its run.json.

    `weights_alone` leaves the optimizer as it is, which may then train other parameters than the checkpoint's.
    """
    if not weights_alone and any(group.get("use_muon") for group in engine.optimizer.param_groups):
        # Stages 1 and 2 keep the momentum of a whole matrix, even on a rank that holds a slice of it.
        raise UserError(
            f"{folder}: Muon's momentum cannot be cut for other ranks or another ZeRO stage; resume with "
            f"{facts['world_size']} ranks and engine.zero_stage={facts['zero_stage']}, or start a new run from its "
            "export (train.init_from)"
        )
    saved = SavedStates(folder, facts.get("optimizer_order"), weights_alone)
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    stage = engine.zero_optimization_stage()
    if stage == 0:
        _restore_stage_0(engine, saved, names)
    elif stage == 3:
        _restore_stage_3(engine, saved, names)
    else:
        _restore_stage_1_2(engine, saved, names)
    if stage < 3:
        for name, parameter in engine.module.named_parameters():
            if not parameter.requires_grad:
                parameter.data.copy_(saved.parameter(name)[0][WEIGHT].view_as(parameter))
    buffers = dict(engine.module.named_buffers())
    for name in saved.model["buffer_names"]:
        buffers[name].copy_(saved.model["module"][name])
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, saved.model[counter])


def optimizer_order(engine: TrainingEngine) -> list[str] | None:
    """Names of the parameters in the order of a stage-0 optimizer; None at other stages, whose files hold the names."""
    if engine.zero_optimization_stage():
        return None
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return [names[id(parameter)] for group in engine.optimizer.param_groups for parameter in group["params"]]


def _restore_stage_0(engine: TrainingEngine, saved: SavedStates, names: dict[int, str]) -> None:
    optimizer, states = engine.optimizer, {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        tensors, scalars = saved.parameter(names[id(parameter)])
        parameter.data.copy_(tensors.pop(WEIGHT).view_as(parameter))
        if tensors or scalars:
            states[number] = {**scalars, **{key: value.view_as(parameter) for key, value in tensors.items()}}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _restore_stage_1_2(engine: TrainingEngine, saved: SavedStates, names: dict[int, str]) -> None:
    optimizer = engine.optimizer
    ours = optimizer.state_dict() | saved.loss_scale
    parts = []
    for group, parameters in enumerate(optimizer.bit16_groups):
        own = _OwnPart(optimizer.single_partition_of_fp32_groups[group].numel())
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:  # otherwise other ranks hold all of the parameter
                target, source = mapping.hp_fragment_address, mapping.lp_fragment_address
                own.copy_slice(saved, names[id(parameter)], target.start, source.start, target.numel)
        parts.append(own)
    ours["single_partition_of_fp32_groups"] = [part.states.pop(WEIGHT) for part in parts]
    ours["base_optimizer_state"]["state"] = _list_states(parts)
    optimizer.load_state_dict({torch.distributed.get_rank(): ours}, load_from_fp32_weights=True)
    optimizer.update_lp_params()


def _restore_stage_3(engine: TrainingEngine, saved: SavedStates, names: dict[int, str]) -> None:
    optimizer, rank, world_size = engine.optimizer, torch.distributed.get_rank(), torch.distributed.get_world_size()
    optimizer.checkpoint_event_prologue()
    ours = optimizer.state_dict() | saved.loss_scale
    parts = []
    for group, parameters in enumerate(optimizer.fp16_groups):
        own, start = _OwnPart(optimizer.fp32_partitioned_groups_flat[group].numel()), 0
        for parameter in parameters:
            size = math.ceil(parameter.ds_numel / world_size)
            numel = min(size, max(0, parameter.ds_numel - rank * size))
            own.copy_slice(saved, names[id(parameter)], start, rank * size, numel)
            start += size
        parts.append(own)
    for name, frozen in engine.module.named_parameters():
        if not frozen.requires_grad:
            _copy_part(frozen, saved.parameter(name)[0][WEIGHT], rank)
    ours["fp32_flat_groups"] = [part.states.pop(WEIGHT) for part in parts]
    ours["optimizer_state_dict"]["state"] = _list_states(parts)
    optimizer.load_state_dict({rank: ours})
    optimizer.checkpoint_event_epilogue()


def _copy_part(frozen: Any, whole: Tensor, rank: int) -> None:
    """Fill a rank's part of a frozen parameter at stage 3, which pads the last one."""
    size = frozen.ds_tensor.numel()
    own = whole[rank * size : (rank + 1) * size]
    frozen.ds_tensor.data[: own.numel()].copy_(own)


class _OwnPart:
    """One rank's part of a parameter group while it is filled: 1-D float32 tensors of equal size."""

    def __init__(self, numel: int) -> None:
        self.numel = numel
        self.states: dict[str, Tensor] = {WEIGHT: torch.zeros(numel)}
        self.scalars: dict[str, Any] = {}

    def copy_slice(self, saved: SavedStates, name: str, target_start: int, source_start: int, numel: int) -> None:
        """Copy `numel` elements of a saved parameter, from `source_start` on, to `target_start` of this part."""
        tensors, self.scalars = saved.parameter(name)
        for key, value in tensors.items():
            whole = self.states.setdefault(key, torch.zeros(self.numel))
            whole[target_start : target_start + numel] = value[source_start : source_start + numel]


def _list_states(parts: list[_OwnPart]) -> dict[int, dict[str, Any]]:
    """The base optimizer's states by number of the group, for those that have any; the weights were taken out."""
    states = {group: part.states | part.scalars for group, part in enumerate(parts)}
    return {group: state for group, state in states.items() if state}


def _is_elementwise(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0
