"""One of several processes that hold a base between them: ``RANK WORLD_SIZE MODEL_DIRECTORY SCRATCH``.

Writes ``SCRATCH/<rank>.safetensors``: the logits that it got, and how many bytes of weights it holds.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

TOKENS = range(5, 25)


def main() -> None:
    rank, world_size, directory, scratch = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    torch.set_num_threads(1)
    # They meet at a file: a port may be another's.
    where = f"file://{scratch}/rendezvous"
    dist.init_process_group("gloo", init_method=where, rank=int(rank), world_size=int(world_size))
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, distributed_config=DistributedConfig(tp_plan="auto")
    )
    with torch.no_grad():
        logits = model(torch.tensor([list(TOKENS)])).logits
    parameters = (getattr(parameter, "_local_tensor", parameter) for parameter in model.parameters())
    held = torch.tensor([sum(parameter.nbytes for parameter in parameters)])
    save_file({"logits": logits.contiguous(), "held": held}, Path(scratch) / f"{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
