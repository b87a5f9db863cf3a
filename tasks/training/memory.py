"""How much memory a training job needs, before any weight is loaded: counted on the model's own modules.

    weights      frozen 2 bytes a parameter; in NF4 0.516 for linear layers; those that train 4 (float32)
    gradients    4 bytes for each parameter that trains, optimizer 8 (AdamW's two moments)
    activations  what autograd keeps of one forward pass: the pass is run on shapes alone, and what it saves is added up
    head         the loss, in tiles of 4,096 tokens x 32,768 words of the vocabulary, as TRL computes it
    workspace    the largest 4-bit layer in 16 bits, or the layer that FSDP gathers
    overhead     the process itself: libraries, CUDA context

Gradients and activations are counted as there at once, which is so with accumulation. Against the peak of seven real
trainings of a 135M Llama on a CPU (lora, qlora and full, 256 to 4,096 tokens a batch, with and without checkpointing)
the sum was between 10 % too low (checkpointing; freed blocks that the allocator keeps) and 16 % too high (full).
No GPU was measured. The head is an upper bound: training here scores the positions that have a label and no other.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from infra.device_memory import MARGIN

GIB = 2**30
# NF4 with double quantisation, bytes a weight: 4 bits, an 8-bit scale per 64 weights, a 32-bit one per 256 scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
ADAMW_BYTES = 8
TILE_TOKENS, TILE_WORDS = 4096, 32768  # trl/kernels/chunked_logprob.py, trl/trainer/utils.py
TILE_BUFFERS = 29  # bytes an element beside the tile itself, without Triton: 7 float32 tensors and a mask, in backward
OVERHEAD = {"cpu": round(0.75 * GIB), "cuda": round(0.6 * GIB)}  # measured; a CUDA context with its kernels


@dataclass(frozen=True)
class Memory:
    """Bytes of one process."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    workspace: int
    overhead: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def shared(self) -> int:
        """Of the total, what several adapters that train in one process need once: frozen base, head, process.

        What trains is float32, as each of AdamW's two moments is; so the optimizer says how much of the weights it is.
        """
        return self.weights - self.optimizer // 2 + self.head + self.workspace + self.overhead

    def as_json(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


def estimate(
    model: Any,
    *,
    method: str,
    training: Mapping[str, Any],
    longest_row: int,
    gradient_checkpointing: bool,
    device: str = "cpu",
    num_processes: int = 1,
    config: str = "ddp",
    pairs: bool = False,
) -> Memory:
    """Memory of each process that trains `model`, which is on the meta device and has its adapter (none for `full`).

    `longest_row` in tokens; a preference pair (`pairs`) is two rows in each pass. `device` is cpu or cuda.
    """
    rows = training["per_device_train_batch_size"] * (2 if pairs else 1)
    trains = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = _frozen_bytes(model, four_bit=method == "qlora") + 4 * trains
    if pairs and method == "full":
        weights += 4 * trains  # DPO's reference is a second model; an adapter is just switched off
    gradients, optimizer = 4 * trains, ADAMW_BYTES * trains
    workspace = _largest_linear_bytes(model) if method == "qlora" else 0
    if num_processes > 1:
        if config == "ddp":
            gradients *= 2  # and the buckets that travel
        else:
            gradients, optimizer = gradients // num_processes, optimizer // num_processes
        if config == "fsdp":
            weights //= num_processes
            workspace += 2 * _largest_layer_bytes(model, four_bit=method == "qlora")  # this one, and the next
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=_activations(model, rows, longest_row, device, gradient_checkpointing),
        head=_head_bytes(model, rows * longest_row, device, in_float32=method == "full" and device == "cpu"),
        workspace=workspace,
        overhead=OVERHEAD[device],
    )


def fits(memory: Memory, free_bytes: int) -> bool:
    return memory.total <= (1 - MARGIN) * free_bytes


def choose_checkpointing(without: Memory, with_it: Memory, free_bytes: int) -> bool:
    """Whether activations should be recomputed: only if memory calls for it, and if it saves any."""
    return not fits(without, free_bytes) and with_it.total < without.total


# --- weights


def _frozen_bytes(model: Any, *, four_bit: bool) -> int:
    """Of the parameters below `model` that do not train; tied ones count once, head and embeddings are never 4-bit."""
    packed = {id(module.weight) for module in _linear_layers(model)} if four_bit else set()
    sizes = [
        parameter.numel() * (NF4_BYTES if id(parameter) in packed else 2)
        for parameter in model.parameters()
        if not parameter.requires_grad
    ]
    return round(sum(sizes))


def _linear_layers(model: Any) -> list[Any]:
    """The layers of the base that 4 bits are for: frozen linear ones but the head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head and not module.weight.requires_grad
    ]


def _largest_linear_bytes(model: Any) -> int:
    return max((2 * module.weight.numel() for module in _linear_layers(model)), default=0)


def _largest_layer_bytes(model: nn.Module, *, four_bit: bool) -> int:
    return max((_frozen_bytes(layer, four_bit=four_bit) for layer in _blocks(model)), default=0)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The layers that gradient checkpointing recomputes as a whole."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


# --- activations


def _activations(model: Any, rows: int, tokens: int, device: str, checkpointing: bool) -> int:
    """Bytes that autograd keeps of a forward pass over (rows, tokens) ids, below the head.

    The pass runs in FakeTensorMode: kernels are chosen as on a real device and only shapes are computed. It runs
    through the first two layers and those that differ from the second; like layers keep as much. With checkpointing the
    input of each layer is kept, and one layer at a time is whole.
    """
    backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    blocks = _blocks(backbone)
    place: list[int | None] = [None]  # the layer that is running
    saved: dict[int | None, int] = {}
    counted: dict[int, torch.Tensor] = {}  # a storage can be saved many times; kept alive, so that ids stay its own
    inputs = 0

    def enter(index: int) -> Any:
        def hook(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal inputs
            place[0] = index
            hidden = given[0] if given else named["hidden_states"]
            inputs += hidden.untyped_storage().nbytes()

        return hook

    others: tuple[Any, ...] | None = None  # what a layer returns behind its hidden states; None: nothing, nor a tuple

    def leave(_module: nn.Module, _given: Any, output: Any) -> None:
        nonlocal others
        place[0] = None
        others = output[1:] if isinstance(output, tuple) else None

    def pass_through(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return hidden_states if others is None else (hidden_states, *others)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in counted:
            counted[storage._cdata] = tensor
            saved[place[0]] = saved.get(place[0], 0) + storage.nbytes()
        return tensor

    alike = [i for i in range(2, len(blocks)) if _shapes(blocks[i]) == _shapes(blocks[1])]
    hooks = [block.register_forward_pre_hook(enter(i), with_kwargs=True) for i, block in enumerate(blocks)]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    was_training = backbone.training
    backbone.train()
    for i in alike:
        blocks[i].forward = pass_through  # hides the class's own
    try:
        with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16, enabled=device == "cuda"):
            weights = _fake_weights(backbone)
            counted.update({tensor.untyped_storage()._cdata: tensor for tensor in weights.values()})
            ids = torch.zeros(rows, tokens, dtype=torch.long)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                functional_call(backbone, weights, (), batch)
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
        for i in alike:
            del blocks[i].forward
    for i in alike:
        saved[i] = saved[1]
    if not checkpointing:
        return sum(saved.values())
    outside = saved.pop(None, 0)
    return outside + inputs + max(saved.values(), default=0)


def _shapes(block: nn.Module) -> list[tuple[str, torch.Size, bool]]:
    return [(name, one.shape, one.requires_grad) for name, one in block.named_parameters()]


def _fake_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Stand-ins in the dtypes of training: float32 for what trains, bfloat16 for what does not, buffers as they are."""
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        dtype = torch.float32 if parameter.requires_grad else torch.bfloat16
        weights[name] = torch.empty(parameter.shape, dtype=dtype, requires_grad=parameter.requires_grad)
    for name, buffer in model.named_buffers():
        weights[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return weights


def _head_bytes(model: Any, tokens: int, device: str, *, in_float32: bool) -> int:
    """What TRL's fused head needs at once: a tile of logits, on a CPU with what its loss is computed from."""
    head = model.get_output_embeddings()
    words, hidden = head.weight.shape
    element = 4 if in_float32 else 2
    tile = min(tokens, TILE_TOKENS) * min(words, TILE_WORDS)
    gradients = 4 * tokens * hidden + (4 * words * hidden if head.weight.requires_grad else 0)
    return tile * (element + (TILE_BUFFERS if device == "cpu" else 0)) + gradients
