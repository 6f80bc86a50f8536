"""What work takes on a GPU, by a model simple enough to check by hand: FLOPs, bytes read, memory.

Training: 6 FLOPs a parameter and token, 8 with gradient checkpointing, 2 less with adapters, which leave the weights
without gradients; scoring and prompts: 2. Decoding: every step reads the weights once and each sequence's keys and
values, or computes 2 FLOPs a parameter and token, whichever takes longer. Memory of training: 16 bytes a trained
parameter (weights and gradients in bfloat16, float32 master weights and Adam's two moments, or all four numbers in
float32), split over devices as the engine does, 4 or 2 of a frozen one, and of one micro-batch what its layers keep.
docs/paper_scale.md compares it with measured runs. Knows nothing of jobs.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sso.config import Hardware
from sso.objective import Node
from sso.sampling.settings import Decoding
from sso.train.settings import Spread, Training
from workflow.shapes import Shape

ACTIVATIONS_GB = 8.0
"""Of a forward pass, and all else on a GPU that scores."""
PROCESS_GB = 4.0
"""Host memory of a process with torch and a CUDA context, beside weights: assumed, not measured."""
TILE_BYTES = 6 * (1 << 28)
"""Of a tile of the vocabulary (sso/logprobs.py): its logits in bfloat16, and their softmax in float32."""
OVERHEAD_H = 0.05
"""Start, loading and saving of a job on GPUs, in hours."""
CHECKPOINT_BYTES = 3 * 14
"""A trained parameter, of the checkpoints that a training keeps for resuming: two, and a third while it is written.
Each has the master weights and both moments in float32, and the weights in 16 bits, as DeepSpeed writes them."""


@dataclass
class Cost:
    """What one job costs. ``gpu_hours`` counts every GPU that it holds."""

    gpus: int = 0
    nodes: int = 1
    tokens: float = 0
    hours: float = 0
    """Duration of the work itself, on all its devices at once."""
    memory_gb: float = 0
    """Memory that one GPU needs at its peak."""
    host_gb: float = 2.5
    disk_gb: float = 0
    """What it leaves on disk."""
    resuming_gb: float = 0
    """What it keeps there while it runs, to go on from."""
    requests: int = 0
    money: float = 0

    @property
    def wall_hours(self) -> float:
        """Duration with starting, loading and saving."""
        return self.hours + (OVERHEAD_H if self.gpus else 0)

    @property
    def gpu_hours(self) -> float:
        """GPUs times wall time."""
        return self.gpus * self.wall_hours


class Arithmetic:
    """The cost of decoding, training and scoring on some hardware."""

    def __init__(self, hardware: Hardware):
        self.hardware = hardware

    def decode(
        self, size: Shape, decoding: Decoding, prompts: float, prompt: float, new: float, scored: float = 0
    ) -> Cost:
        """``prompts`` of ``prompt`` tokens, ``new`` tokens drawn for each; ``scored`` continuations instead."""
        device = self.hardware
        peak, bandwidth = device.tflops * 1e12, device.bandwidth_gbs * 1e9
        split = decoding.tensor_parallel
        together = device.sequences if decoding.engine == "vllm" else decoding.batch_size
        cache_bytes = 2 * 2 * size.layers * size.kv * (prompt + new / 2)
        if decoding.engine == "vllm" and cache_bytes:
            # vLLM takes no more sequences than its memory holds.
            room = (decoding.gpu_memory * device.memory_gb - 4) * 1e9 * split - 2 * size.parameters
            together = int(max(1, min(together, room // cache_bytes)))
        work = 2 * size.parameters * prompts * prompt * max(1, scored) / (peak * device.training_mfu * split)
        step = (2 * size.parameters + together * cache_bytes) / (bandwidth * device.decoding_mbu * split)
        step = max(step, 2 * size.parameters * together / (peak * device.training_mfu * split))
        seconds = work + prompts * new / together * step
        memory = (2 * size.parameters + together * cache_bytes) / split / 1e9 + 4
        gpus = decoding.devices * split
        tokens = prompts * (prompt * max(1, scored) + new)
        hours = seconds / 3600 / decoding.devices
        return Cost(gpus, 1, tokens, hours, memory, 16 + 2 * size.parameters * decoding.devices / 1e9)

    def fit(self, size: Shape, spread: Spread, tokens: float, micro: int) -> Cost:
        """A training over ``tokens`` with micro-batches of ``micro`` tokens."""
        device, count = self.hardware, spread.devices * spread.nodes
        lora = spread.lora if isinstance(spread, Training) else None
        trained = size.adapted(lora.rank, lora.target_modules) if lora else size.parameters
        frozen = (4 if spread.engine == "ddp" else 2) * size.parameters if lora else 0.0
        flops = ((4 if lora else 6) + (2 if spread.gradient_checkpointing else 0)) * size.parameters * tokens
        hours = flops / (device.tflops * 1e12 * device.training_mfu * count) / 3600
        weights, moments = frozen + 4 * trained, 12 * trained
        if spread.engine.startswith("zero3") or spread.engine == "fsdp2":
            weights /= count
        if spread.engine != "ddp":
            moments /= count
        # A checkpoint is mapped, and so held once a machine; DeepSpeed's processes take copies of what they split.
        host = 2 * size.parameters * (spread.devices if spread.engine.startswith("zero") else 1)
        if spread.engine.endswith("offload"):
            host, moments = host + moments * spread.devices, 0
        if spread.gradient_checkpointing:  # each layer's input, and all of one layer at a time
            kept = micro * (2 * size.hidden * size.layers + size.kept)
        else:  # all of all layers, and the weights as they were cast for them
            kept = micro * size.kept * size.layers + (2 * size.parameters if spread.numerics == "bfloat16" else 0)
        memory = (weights + moments + kept + TILE_BYTES) / 1e9 + 4
        disk = 2 * size.parameters / 1e9
        resuming = CHECKPOINT_BYTES * trained / 1e9 if spread.save_steps else 0.0
        return Cost(
            count, spread.nodes, tokens, hours, memory, PROCESS_GB * spread.devices + host / 1e9, disk, resuming
        )

    def score(self, size: Shape, tokens: float, devices: int, width: int = 2) -> Cost:
        """A forward pass over ``tokens``, a model a device, its weights of ``width`` bytes each."""
        device = self.hardware
        seconds = 2 * size.parameters * tokens / (device.tflops * 1e12 * device.training_mfu * devices)
        memory = width * size.parameters / 1e9 + ACTIVATIONS_GB
        host = PROCESS_GB * devices + 2 * size.parameters / 1e9
        return Cost(devices, 1, tokens, seconds / 3600, memory, host)

    def sample_tokens(self, nodes: Collection[Node]) -> float:
        """Tokens of one sample: each context once, each response behind it once."""
        device = self.hardware
        guided = len({context for context, _ in nodes} - {"x"})
        contexts = len({context for context, _ in nodes})
        prompts = contexts * device.prompt_tokens + guided * device.principle_tokens
        return prompts + len(set(nodes)) * device.response_tokens
