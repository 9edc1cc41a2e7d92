"""What diffusers takes from PyTorch's allocator for tiles of FLUX.1-dev: a trace of a real run.

    python3 record_diffusers.py OUT [--sides 2048,2048] [--steps 2] [--offload]

Needs an NVIDIA GPU, torch and diffusers; no weights: all are random, in bf16, in the real shapes and
number of blocks.  Each tile is encoded by the VAE, mixed with noise, painted in so many steps and
decoded, as an image-to-image pipeline does it.  With --offload the transformer's blocks visit the
GPU one by one, by diffusers' own group offloading, with a stream of its own and pinned memory.

Writes OUT.csv.gz, without what was there before the first tile (weights, or those that stay), and
OUT-all.csv.gz, with it.  Nothing is warmed up: what libraries keep for themselves at their first
call is in the trace.
"""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

import diffusers
import torch
from torch import Tensor, nn

import traces

TEXT_TOKENS, TEXT_WIDTH, POOLED_WIDTH, LATENT = 512, 4096, 768, 16
SCALE, SHIFT = 0.3611, 0.1159   # of FLUX.1's latents, as its VAE's config.json has them
STRENGTH = 0.40                 # noise that a tile begins with


def build(make: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """A module in bf16 with the random weights that its constructor gives it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            module = make()
    finally:
        torch.set_default_dtype(before)
    return module.eval().requires_grad_(False)


def build_transformer(device: torch.device, **smaller: object) -> nn.Module:
    return build(lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True, **smaller), device)


def build_vae(device: torch.device, channels: tuple[int, ...] = (128, 256, 512, 512)) -> nn.Module:
    levels = len(channels)
    return build(lambda: diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=channels,
        layers_per_block=2, latent_channels=LATENT, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=SCALE, shift_factor=SHIFT), device)


def pack(latent: Tensor) -> Tensor:
    """[1, C, H, W] to tokens of 2 x 2 cells: [1, H/2 * W/2, 4 C]."""
    _, channels, height, width = latent.shape
    cells = latent.view(1, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(1, height * width // 4, channels * 4)


def unpack(tokens: Tensor, side: int) -> Tensor:
    """The inverse of pack, for a square of `side` cells."""
    cells = tokens.view(1, side // 2, side // 2, LATENT, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(1, LATENT, side, side)


def places(side: int, device: torch.device) -> Tensor:
    """[tokens, 3]: 0, row and column of each token of a square of `side` tokens."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack((torch.zeros_like(rows), rows, columns), -1).view(-1, 3).to(device)


@torch.no_grad()
def paint(transformer: nn.Module, vae: nn.Module, picture: Tensor, text: Tensor, pooled: Tensor,
          steps: int) -> Tensor:
    """A tile's life; `picture` [1, 3, side, side] in -1..1, the result likewise."""
    device, dtype = picture.device, picture.dtype
    latent = (vae.encode(picture).latent_dist.mode() - SHIFT) * SCALE
    side = latent.shape[-1]
    x = pack((1 - STRENGTH) * latent + STRENGTH * torch.randn_like(latent))
    sigmas = [STRENGTH * (1 - step / steps) for step in range(steps + 1)]
    image_places = places(side // 2, device)
    text_places = torch.zeros(text.shape[1], 3, device=device)
    guidance = torch.full((1,), 3.5, device=device)
    for now, then in zip(sigmas, sigmas[1:]):
        velocity = transformer(hidden_states=x, encoder_hidden_states=text,
                               pooled_projections=pooled, guidance=guidance,
                               timestep=torch.full((1,), now, device=device, dtype=dtype),
                               img_ids=image_places, txt_ids=text_places, return_dict=False)[0]
        x = (x.float() + (then - now) * velocity).to(dtype)
    return vae.decode(unpack(x, side) / SCALE + SHIFT, return_dict=False)[0]


def paint_all(transformer: nn.Module, vae: nn.Module, sides: list[int], steps: int,
              device: torch.device) -> None:
    text = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, device=device, dtype=torch.bfloat16)
    pooled = torch.randn(1, POOLED_WIDTH, device=device, dtype=torch.bfloat16)
    for side in sides:
        picture = torch.rand(1, 3, side, side).to(device, torch.bfloat16) * 2 - 1
        painted = paint(transformer, vae, picture, text, pooled, steps)
        if not device.type == "meta":
            painted.cpu()


def visit_by_blocks(transformer: nn.Module, device: torch.device) -> None:
    from diffusers.hooks import apply_group_offloading
    transformer.to("cpu")
    apply_group_offloading(transformer, onload_device=device, offload_device=torch.device("cpu"),
                           offload_type="block_level", num_blocks_per_group=1, use_stream=True,
                           non_blocking=True)


def record(work: Callable[[], None]) -> tuple[list[dict], list[tuple[int, int]], dict]:
    """Runs `work`: what the allocator was asked for, what was there before, its counts of itself."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = traces.held(torch.cuda.memory._snapshot()["segments"])
    torch.cuda.memory._record_memory_history("all", context=None)
    try:
        work()
        torch.cuda.synchronize()
        history = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        stats = torch.cuda.memory_stats()
    finally:
        torch.cuda.memory._record_memory_history(None)
    return history, before, stats


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the traces' path without .csv.gz")
    parser.add_argument("--sides", default="2048,2048", help="px of each tile, in order")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--offload", action="store_true", help="blocks visit the GPU one by one")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    sides = [int(side) for side in args.sides.split(",")]
    device = torch.device("cuda", torch.cuda.current_device())
    transformer, vae = build_transformer(device), build_vae(device)
    if args.offload:
        visit_by_blocks(transformer, device)
    history, before, stats = record(lambda: paint_all(transformer, vae, sides, args.steps, device))
    live, reserved = stats["requested_bytes.all.peak"], stats["reserved_bytes.all.peak"]
    comments = [
        f"diffusers {diffusers.__version__}, PyTorch {torch.__version__}, "
        f"{torch.cuda.get_device_name()}: FLUX.1-dev in bf16, random weights",
        f"tiles of {args.sides} px, one after the other: encode, {args.steps} steps, decode; "
        + ("blocks visit the GPU" if args.offload else "all weights stay on the GPU"),
        f"in that run the allocator had {live} bytes requested and {reserved} reserved at most, "
        f"utilisation {live / reserved:.4f}"]
    for suffix, first, words in (("", [], "without what was there before the first tile"),
                                 ("-all", before, "with what was there before the first tile")):
        events = traces.from_history(history, first)
        path = args.out.with_name(f"{args.out.name}{suffix}.csv.gz")
        traces.write(path, events, comments + [words])
        print(f"{path}: {len(events)} events, peak {traces.peak_live(events)} bytes", flush=True)
    print("\n".join(comments))


if __name__ == "__main__":
    main()
