"""Make the sample model from nothing: tokenizers, VAE, flow transformer with both text encoders.

    python train.py tokenizers
    python train.py vae  --work DIR --seconds 165       (again while the gate is closed)
    python train.py flow --work DIR --seconds 560 --total 1400   (again until the total is spent)
    python train.py export   --work DIR
    python train.py evaluate --work DIR    (of the exported model)

Checkpoints (pieces under 15 MB) go to the work folder every two minutes, and to the folder that
--copy names.  Every stage continues from the checkpoint it finds in the work folder.  The model's
own files are written to the folder that --model names, by default the one this script lies in.
`--dry` shrinks all sizes so that the whole recipe can be walked through on a CPU in minutes.
"""
from __future__ import annotations

import time

STARTED = time.time()                # before the slow imports: a run's seconds hold them, too

import argparse
import copy
import json
import math
import random
import zlib
from collections import defaultdict
from pathlib import Path

import torch
import torch._dynamo
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import captions
from data import (AXES, DEVICE, SHAPES, T5_LENGTH, Drawer, Encoder, Pool, Source,
                  Words, autocast, crops, layout, psnr, save_grid, shrink, signed, view)
from network import VAE, ClipText, T5Encoder, Transformer, unpack

HERE = Path(__file__).resolve().parent
GATE_PSNR, GATE_FLAT = 28.0, 3.0     # decibels; mean error of flat colours in 8-bit steps

VAE_CONFIG = dict(
    _class_name="AutoencoderKL", act_fn="silu", block_out_channels=[32, 64, 96, 128],
    down_block_types=["DownEncoderBlock2D"] * 4, force_upcast=True, in_channels=3,
    latent_channels=16, latents_mean=None, latents_std=None, layers_per_block=1,
    mid_block_add_attention=True, norm_num_groups=8, out_channels=3, sample_size=512,
    scaling_factor=1.0, shift_factor=0.0, up_block_types=["UpDecoderBlock2D"] * 4,
    use_post_quant_conv=False, use_quant_conv=False)
FLOW_CONFIG = dict(
    _class_name="FluxTransformer2DModel", attention_head_dim=64, axes_dims_rope=list(AXES),
    guidance_embeds=True, in_channels=64, joint_attention_dim=128, num_attention_heads=4,
    num_layers=1, num_single_layers=6, out_channels=None, patch_size=1, pooled_projection_dim=128)
CLIP_CONFIG = dict(
    architectures=["CLIPTextModel"], attention_dropout=0.0, hidden_act="quick_gelu",
    hidden_size=128, initializer_factor=1.0, initializer_range=0.02, intermediate_size=512,
    layer_norm_eps=1e-5, max_position_embeddings=77, model_type="clip_text_model",
    num_attention_heads=4, num_hidden_layers=2, projection_dim=128, torch_dtype="bfloat16")
T5_CONFIG = dict(
    architectures=["T5EncoderModel"], classifier_dropout=0.0, d_ff=256, d_kv=32, d_model=128,
    decoder_start_token_id=0, dense_act_fn="gelu_new", dropout_rate=0.1, eos_token_id=1,
    feed_forward_proj="gated-gelu", initializer_factor=1.0, is_encoder_decoder=True,
    is_gated_act=True, layer_norm_epsilon=1e-6, model_type="t5", num_decoder_layers=2,
    num_heads=4, num_layers=2, pad_token_id=0, relative_attention_max_distance=128,
    relative_attention_num_buckets=32, tie_word_embeddings=False, torch_dtype="bfloat16",
    use_cache=True)
SCHEDULER_CONFIG = dict(
    _class_name="FlowMatchEulerDiscreteScheduler", _diffusers_version="0.30.0.dev0",
    base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15,
    num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True)
MODEL_INDEX = dict(
    _class_name="FluxPipeline", _diffusers_version="0.30.0.dev0",
    scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
    text_encoder=["transformers", "CLIPTextModel"],
    text_encoder_2=["transformers", "T5EncoderModel"],
    tokenizer=["transformers", "CLIPTokenizer"],
    tokenizer_2=["transformers", "T5TokenizerFast"],
    transformer=["diffusers", "FluxTransformer2DModel"], vae=["diffusers", "AutoencoderKL"])

def log(*parts: object) -> None:
    print(f"[{time.time() - STARTED:6.1f}]", *parts, flush=True)


# ----------------------------------------------------------------------------------- checkpoints

PIECE = 14 << 20


def save_state(folders: list[Path], name: str, tensors: dict[str, Tensor], facts: dict) -> None:
    """Tensors as bf16 in pieces of at most PIECE bytes, facts as JSON, in each of the folders.

    All parts are written under other names and renamed last, so that a run killed at any moment
    leaves a whole checkpoint.
    """
    piece: dict[str, Tensor] = {}
    pieces, size = [piece], 0
    for key, tensor in tensors.items():
        tensor = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if size + tensor.nbytes > PIECE:
            piece, size = {}, 0
            pieces.append(piece)
        piece[key] = tensor
        size += tensor.nbytes
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for i, piece in enumerate(pieces):
            save_file(piece, folder / f"{name}-{i}.part")
        captions.write_json(folder / f"{name}.part", facts | {"pieces": len(pieces)})
        for i in range(len(pieces)):
            (folder / f"{name}-{i}.part").rename(folder / f"{name}-{i}.safetensors")
        (folder / f"{name}.part").rename(folder / f"{name}.json")


def load_state(folder: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    facts = json.loads((folder / f"{name}.json").read_text())
    tensors: dict[str, Tensor] = {}
    for i in range(facts["pieces"]):
        tensors |= load_file(folder / f"{name}-{i}.safetensors")
    return {k: v.float() for k, v in tensors.items()}, facts


def save_compiled(folders: list[Path]) -> None:
    """Keep what torch.compile made, so that the next run on such a GPU need not make it again.

    A convenience: where it fails, the training goes on and the next run compiles.
    """
    try:
        found = torch.compiler.save_cache_artifacts()
    except RuntimeError as error:
        log("compiled code: not kept,", error)
        return
    packed = zlib.compress(found[0], 6) if found else b""
    log("compiled code:", len(packed), "bytes" + ("" if 0 < len(packed) <= PIECE else ", not kept"))
    if 0 < len(packed) <= PIECE:
        for folder in folders:
            (folder / "compiled.bin").write_bytes(packed)


def load_compiled(folder: Path) -> None:
    if (folder / "compiled.bin").exists():
        torch.compiler.load_cache_artifacts(zlib.decompress((folder / "compiled.bin").read_bytes()))
        log("compiled code read")


# ------------------------------------------------------------------------------------------- VAE

def vae_batch(pool: Tensor, size: int, side: int) -> Tensor:
    """A training batch in [-1,1]: crops, some of them blurred as enlarged drafts are, some flat."""
    pick = torch.randint(len(pool), (size,), device=pool.device)
    y, x = (int(v) for v in torch.randint(0, pool.shape[-1] - side + 1, (2,)))
    batch = signed(pool[pick][:, :, y:y + side, x:x + side])
    soft, flat = size // 6, max(1, size // 5)
    factor = random.choice((2, 3, 4, 6, 8, 12))
    small = F.interpolate(batch[:soft], scale_factor=1 / factor, mode="bicubic", antialias=True)
    batch[:soft] = F.interpolate(small, size=(side, side), mode="bicubic").clamp(-1, 1)
    batch[-flat:] = torch.rand(flat, 3, 1, 1, device=pool.device) * 2 - 1
    return layout(batch)


def reconstruction_loss(made: Tensor, real: Tensor) -> Tensor:
    """Absolute and squared error, edges at three scales, and the colour of 8x8 blocks."""
    loss = (made - real).abs().mean() + 2.0 * (made - real).square().mean()
    loss = loss + 2.0 * F.avg_pool2d(made - real, 8).abs().mean()
    error = made - real
    for _ in range(3):
        loss = loss + .35 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
        error = F.avg_pool2d(error, 2)
    return loss


@torch.no_grad()
def check_vae(vae: VAE, count: int, picture: Path | None = None) -> dict:
    """Held-out PSNR of views and of crops, and how well 27 flat colours come back."""
    drawer = Drawer(90001)
    _, scenes = drawer.scenes(count, 16 / 9)
    views = view(scenes, *SHAPES["wide"])
    close = signed(crops(drawer, count, SHAPES["tile"][0] // 2))
    steps = torch.tensor([-.9, 0.0, .9], device=DEVICE)
    side = SHAPES["tile"][0] // 2
    flats = torch.cartesian_prod(steps, steps, steps).view(27, 3, 1, 1).expand(-1, -1, side, side)
    run = Encoder(vae, compiled=False, part=16)
    back = [run("decode", run("encode", x)) for x in (views, close, flats)]
    flat = (back[2] - flats) * 127.5
    facts = dict(psnr_views=psnr(back[0], views), psnr_crops=psnr(back[1], close),
                 flat_error=float(flat.mean((2, 3)).abs().mean()),
                 flat_worst=float(flat.mean((2, 3)).abs().max()),
                 flat_deviation=float(flat.std((2, 3)).max()))
    if picture:
        pairs = [x[i] for i in range(min(count, 4)) for x in (views, back[0])]
        save_grid(pairs, 4, picture.with_name(picture.stem + "_views.jpg"))
        pairs = [x[i] for i in range(min(count, 8)) for x in (close, back[1])]
        save_grid(pairs, 8, picture.with_name(picture.stem + "_crops.jpg"))
    return {k: round(v, 3) for k, v in facts.items()}


def gate_open(facts: dict) -> bool:
    return (min(facts["psnr_views"], facts["psnr_crops"]) >= GATE_PSNR
            and facts["flat_error"] <= GATE_FLAT and facts["flat_worst"] <= 4 * GATE_FLAT)


def load_vae(work: Path, model: Path) -> tuple[VAE, dict]:
    """The VAE under training if the work folder holds one, else the exported one."""
    if (work / "vae.json").exists():
        tensors, facts = load_state(work, "vae")
        config = VAE_CONFIG | {k: facts[k] for k in ("shift_factor", "scaling_factor")}
    else:
        config = json.loads((model / "vae" / "config.json").read_text())
        tensors, facts = load_file(model / "vae" / "diffusion_pytorch_model.safetensors"), {}
    vae = VAE(config)
    vae.load_state_dict(tensors)
    return vae.to(DEVICE, memory_format=torch.channels_last).eval(), facts


def train_vae(a: argparse.Namespace) -> None:
    """Train for the given seconds (pool of pictures included), measure, save."""
    begin = time.time()
    torch.manual_seed(101)
    random.seed(101)
    facts: dict = dict(steps=0, seconds=0.0)
    if (a.work / "vae.json").exists():
        vae, facts = load_vae(a.work, a.model)
        vae.config |= dict(shift_factor=0.0, scaling_factor=1.0)
        facts["gate"] = False
    else:
        vae = VAE(dict(VAE_CONFIG)).to(DEVICE, memory_format=torch.channels_last)
    vae.train()
    log("VAE parameters", sum(p.numel() for p in vae.parameters()))
    size, side, count = (4, 64, 8) if a.dry else (40, 192, 8192)
    rate = 8e-4 if facts["steps"] else 1.6e-3
    pool = crops(Drawer(1000 + facts["steps"]), count, 96 if a.dry else 256)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    log("pictures", len(pool), "painted in", round(time.time() - begin, 1), "s")

    def loss_of(x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        with autocast():
            mean, logvar = vae.encoder(x).float().chunk(2, 1)
            logvar = logvar.clamp(-30.0, 20.0)
            made = vae.decoder(mean + noise * torch.exp(.5 * logvar)).float()
        kl = .5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return reconstruction_loss(made, x), kl

    run = torch.compile(loss_of, dynamic=False) if DEVICE == "cuda" else loss_of
    optimiser = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(.9, .98), weight_decay=1e-4,
                                  fused=DEVICE == "cuda")
    shape = (size, 16, side // 8, side // 8)
    step, clock = 0, time.time()
    while (done := (time.time() - begin) / a.seconds) < 1.0 or step == 0:
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 150) * (
                .01 + .99 * (.5 + .5 * math.cos(math.pi * done)))
        loss, kl = run(vae_batch(pool, size, side), torch.randn(shape, device=DEVICE))
        optimiser.zero_grad(set_to_none=True)
        (loss + 1e-4 * kl).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step == 20 or step % 300 == 0:
            log(f"vae step {step} loss {loss.item():.4f} kl {kl.item():.3f}",
                f"{(time.time() - clock) / step * 1e3:.1f} ms/step")
    vae.eval()
    del pool
    _, scenes = Drawer(77).scenes(2 if a.dry else 128, 16 / 9)
    z = Encoder(vae, compiled=False, part=16)("encode", view(scenes, *SHAPES["wide"]))
    vae.config |= dict(shift_factor=float(z.mean()), scaling_factor=float(1.0 / z.std()))
    facts |= check_vae(vae, 4 if a.dry else 32, a.work / "vae")
    facts |= dict(steps=facts["steps"] + step, loss=round(float(loss.detach()), 4),
                  seconds=round(facts["seconds"] + time.time() - begin, 1),
                  shift_factor=vae.config["shift_factor"],
                  scaling_factor=vae.config["scaling_factor"])
    facts["gate"] = gate_open(facts)
    save_state(a.folders, "vae", vae.state_dict(), facts)
    log("VAE", json.dumps(facts))


# ------------------------------------------------------------------------------------------ flow

def text_configs(words: Words) -> tuple[dict, dict]:
    special = dict(bos_token_id=words.end - 1, eos_token_id=words.end, pad_token_id=words.end)
    clip = CLIP_CONFIG | special | {"vocab_size": words.end + 1}
    return clip, T5_CONFIG | {"vocab_size": words.t5.get_vocab_size()}


class Flow(nn.Module):
    """The transformer and the two text encoders, trained together."""

    def __init__(self, clip_config: dict, t5_config: dict):
        super().__init__()
        self.transformer = Transformer(FLOW_CONFIG)
        self.text_encoder = ClipText(clip_config)
        self.text_encoder_2 = T5Encoder(t5_config)

    def forward(self, x: Tensor, sigma: Tensor, guidance: Tensor, clip: Tensor, t5: Tensor,
                rope: Tensor) -> Tensor:
        return self.transformer(x, self.text_encoder_2(t5), self.text_encoder(clip), sigma,
                                guidance, rope)

    def compile_blocks(self) -> None:
        t = self.transformer
        for block in [*t.transformer_blocks, *t.single_transformer_blocks]:
            block.compile(dynamic=False)


class Muon:
    """Momentum, made orthogonal, for the inner matrices; equally shaped ones go together.

    The factor .2 sqrt(max side) gives a step the size of AdamW's, so one rate serves both.
    """

    def __init__(self, matrices: list[nn.Parameter]):
        groups = defaultdict(list)
        for p in matrices:
            groups[tuple(p.shape)].append(p)
        self.groups = [(ps, torch.zeros(len(ps), *shape, device=ps[0].device))
                       for shape, ps in groups.items()]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for params, speed in self.groups:
            grads = torch.stack([p.grad for p in params])
            speed.mul_(.95).add_(grads)
            turned = orthogonal(grads + .95 * speed)
            torch._foreach_mul_(params, 1.0 - .01 * rate)
            size = .2 * math.sqrt(max(turned.shape[1:]))
            torch._foreach_add_(params, list(turned.float().unbind()), alpha=-rate * size)


def orthogonal(g: Tensor) -> Tensor:
    """Nearly orthogonal matrices [n,r,c] by five Newton-Schulz steps, on a GPU in bf16."""
    x = g.bfloat16() if g.is_cuda else g
    flat = x.shape[1] > x.shape[2]
    x = x.mT if flat else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.mT if flat else x


def is_inner(name: str, p: nn.Parameter) -> bool:
    """Matrices inside blocks and layers; not embeddings, modulation, first and last maps."""
    inner = ("transformer_blocks." in name or ".layers." in name or ".block." in name)
    return p.ndim == 2 and inner and "norm" not in name and "bias" not in name


def rate_at(done: float, step: int) -> float:
    """Learning rate: short warm-up, flat to 40 %, then a cosine down to 2 %."""
    fall = max(0.0, (done - .4) / .6)
    return 1.6e-3 * min(1.0, (step + 1) / 150) * (.02 + .98 * (.5 + .5 * math.cos(math.pi * fall)))


DISTIL_FROM = .75                    # share of the training after which guidance is distilled
SHARES = {"wide": .48, "square": .10, "tall": .08, "tile": .34}
BATCH = {"wide": 192, "square": 104, "tall": 192, "tile": 104}
POOLS = {"wide": 8192, "square": 2048, "tall": 2048, "tile": 4096}
PROCESSES = {"wide": 6, "square": 1, "tall": 1, "tile": 4}
REUSE = 8                            # how often a picture is seen before a new one takes its place


def view_loss(model: Flow, teacher: Flow, pool: Pool, count: int, blank: tuple, distil: bool
              ) -> Tensor:
    """Flow matching on whole views; while distilling, half the batch learns guidance.

    There the target is what two passes of the averaged model make of it: v0 + g (v - v0).
    """
    z, _, clip, t5 = pool.draw(count)
    drop = torch.rand(count, 1, device=DEVICE) < .1
    half = count // 2 if distil else 0
    drop[:half] = False
    clip, t5 = torch.where(drop, blank[0], clip), torch.where(drop, blank[1], t5)
    sigma = torch.sigmoid(torch.randn(count, device=DEVICE) + .4)
    even = torch.rand(count, device=DEVICE)
    sigma = torch.where(torch.rand_like(even) < .15, even, sigma).clamp(.001, .9995)
    noise = torch.randn_like(z)
    x = z + sigma[:, None, None] * (noise - z)
    target, guidance = noise - z, torch.ones(count, device=DEVICE)
    if half:
        guidance[:half] = 1.0 + 4.0 * torch.rand(half, device=DEVICE)
        with torch.no_grad(), autocast():
            twice = torch.cat([clip[:half], blank[0].expand(half, -1)])
            v = teacher(torch.cat([x[:half]] * 2), torch.cat([sigma[:half]] * 2),
                        torch.ones(2 * half, device=DEVICE), twice,
                        torch.cat([t5[:half], blank[1].expand(half, -1)]), pool.rope).float()
        v, v0 = v.chunk(2)
        target[:half] = v0 + guidance[:half, None, None] * (v - v0)
    with autocast():
        made = model(x, sigma, guidance, clip, t5, pool.rope)
    return (made.float() - target).square().mean((1, 2)).mean()


def tile_loss(model: Flow, pool: Pool, count: int, blank: tuple) -> Tensor:
    """The straight road from a noised enlarged draft to the true tile.

    With y = (1-s) soft + s noise at the start s, the road is x = r y + (1-r) sharp at the noise
    level r s, and its velocity by noise level is (y - sharp) / s.
    """
    sharp, soft, clip, t5 = pool.draw(count)
    drop = torch.rand(count, 1, device=DEVICE) < .05
    clip, t5 = torch.where(drop, blank[0], clip), torch.where(drop, blank[1], t5)
    start = .34 + .16 * torch.rand(count, 1, 1, device=DEVICE)
    r = .03 + .97 * torch.rand(count, 1, 1, device=DEVICE) ** .8
    y = soft + start * (torch.randn_like(soft) - soft)
    x = sharp + r * (y - sharp)
    guidance = 1.0 + 4.0 * torch.rand(count, device=DEVICE)
    with autocast():
        made = model(x, (start * r)[:, 0, 0], guidance, clip, t5, pool.rope)
    error = (made.float() - (y - sharp) / start) * (start / .42)
    return error.square().mean((1, 2)).mean()


def load_flow(work: Path, words: Words, key: str) -> tuple[Flow, dict]:
    tensors, facts = load_state(work, "flow")
    model = Flow(*text_configs(words))
    model.load_state_dict({k[len(key) + 1:]: v for k, v in tensors.items() if k.startswith(key)})
    return model.to(DEVICE), facts


def load_exported(model: Path, words: Words) -> Flow:
    """The flow as it is shipped: bf16 weights, computed with in fp32 or under autocast."""
    files = {"transformer": "diffusion_pytorch_model", "text_encoder": "model",
             "text_encoder_2": "model"}
    flow = Flow(*text_configs(words))
    for part, file in files.items():
        getattr(flow, part).load_state_dict(
            {k: v.float() for k, v in load_file(model / part / f"{file}.safetensors").items()})
    return flow.to(DEVICE)


class Training:
    """The flow in training: both copies of the model, the optimisers, what has been seen."""

    def __init__(self, work: Path, words: Words):
        self.facts: dict = dict(steps=0, samples=0, seconds=0.0, pictures=0, history=[])
        torch.manual_seed(202)
        if (work / "flow.json").exists():
            self.model, self.facts = load_flow(work, words, "model")
            self.mean, _ = load_flow(work, words, "mean")
        else:
            self.model = Flow(*text_configs(words)).to(DEVICE)
            self.mean = copy.deepcopy(self.model)
        self.mean.requires_grad_(False)
        torch.manual_seed(303 + self.facts["steps"])
        random.seed(303 + self.facts["steps"])
        named = list(self.model.named_parameters())
        self.params, self.averaged = [p for _, p in named], list(self.mean.parameters())
        self.muon = Muon([p for n, p in named if is_inner(n, p)])
        self.adam = torch.optim.AdamW([p for n, p in named if not is_inner(n, p)],
                                      betas=(.9, .97), weight_decay=.01, fused=DEVICE == "cuda")
        self.blank = words.encode([""])
        self.step = 0

    def update(self, loss: Tensor, rate: float) -> None:
        """One step of both optimisers and of the averaged copy."""
        for group in self.adam.param_groups:
            group["lr"] = rate
        for p in self.params:
            p.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 1.0)
        self.muon.step(rate)
        self.adam.step()
        self.step += 1
        self.facts["steps"] += 1
        keep = min(.9993, self.facts["steps"] / (self.facts["steps"] + 20))
        torch._foreach_lerp_(self.averaged, self.params, 1.0 - keep)

    def save(self, folders: list[Path], seconds: float) -> None:
        """Write a checkpoint, but never one that holds anything but numbers."""
        if not all(bool(torch.isfinite(p).all()) for p in self.params):
            raise SystemExit("the weights are no longer finite; the last checkpoint stands")
        self.facts["seconds"] = round(seconds, 1)
        both = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        both |= {f"mean.{k}": v for k, v in self.mean.state_dict().items()}
        save_state(folders, "flow", both, self.facts)


def open_pools(a: argparse.Namespace, source: Source, encoder: Encoder, sizes: dict) -> dict:
    pools = {}
    for name, size in sizes.items():
        clock = time.time()
        pools[name] = Pool(name, size, encoder, source)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        log("pool", name, size, "pictures in", round(time.time() - clock, 1), "s")
    return pools


def train_flow(a: argparse.Namespace) -> None:
    """Train until `--seconds` of this run or `--total` seconds of all runs are spent."""
    seed = 5000 + (json.loads((a.work / "flow.json").read_text())["steps"]
                   if (a.work / "flow.json").exists() else 0)
    source = Source(a.model, seed, {} if a.dry else PROCESSES, 2 if a.dry else 64)
    load_compiled(a.work)
    vae, vae_facts = load_vae(a.work, a.model)
    if not vae_facts:
        vae_facts = check_vae(vae, 4 if a.dry else 32)
        log("VAE", json.dumps(vae_facts))
    if not gate_open(vae_facts) and not a.dry:
        raise SystemExit("the VAE has not passed its gate; train it further")
    training = Training(a.work, source.words)
    facts, before = training.facts, training.facts["seconds"]
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        log(name, sum(p.numel() for p in getattr(training.model, name).parameters()))
    encoder = Encoder(vae, compiled=DEVICE == "cuda", part=2 if a.dry else 32)
    pools = open_pools(a, source, encoder, dict.fromkeys(POOLS, 4) if a.dry else POOLS)
    sizes = dict.fromkeys(BATCH, 4) if a.dry else BATCH
    if DEVICE == "cuda":
        training.model.compile_blocks()
        training.mean.compile_blocks()
    recent: dict[str, list[Tensor]] = defaultdict(list)
    credit: dict[str, float] = defaultdict(float)
    clock = saved = time.time()

    while (now := time.time() - STARTED) < a.seconds and (done := (before + now) / a.total) < 1.0:
        distil = done > DISTIL_FROM
        name = random.choices(list(SHARES), list(SHARES.values()))[0]
        pool, count = pools[name], sizes[name]
        if pool.tile:
            loss = tile_loss(training.model, pool, count, training.blank)
        else:
            loss = view_loss(training.model, training.mean, pool, count, training.blank, distil)
        training.update(loss, rate_at(done, training.step))
        facts["samples"] += count
        credit[name] += count / REUSE
        while credit[name] >= source.count:
            pool.refresh()
            credit[name] -= source.count
        recent[name + ("+g" if distil and not pool.tile else "")].append(loss.detach())
        step = training.step
        if step in (20, 200) or step % 500 == 0 or (a.dry and step % 4 == 0):
            losses = {k: round(float(torch.stack(v).mean()), 4) for k, v in recent.items()}
            facts["history"].append([facts["steps"], losses])
            recent.clear()
            log(f"flow step {facts['steps']} done {done:.3f} rate {rate_at(done, step):.2e}",
                losses, f"{(time.time() - clock) / step * 1e3:.1f} ms/step")
        if step == 200 and DEVICE == "cuda":
            save_compiled(a.folders)
        if time.time() - saved > 120.0:
            training.save(a.folders, before + time.time() - STARTED)
            saved = time.time()
    source.close()
    facts["pictures"] += sum(p.made for p in pools.values())
    training.save(a.folders, before + time.time() - STARTED)
    log("flow saved:", {k: facts[k] for k in ("steps", "samples", "pictures", "seconds")})


# ---------------------------------------------------------------------------------------- export

def export(a: argparse.Namespace) -> None:
    """Write what is trained as a diffusers directory, the averaged weights in bf16."""
    captions.write_json(a.model / "model_index.json", MODEL_INDEX)
    (a.model / "scheduler").mkdir(exist_ok=True)
    captions.write_json(a.model / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    if (a.work / "vae.json").exists():
        vae, _ = load_vae(a.work, a.model)
        export_part(a.model / "vae", vae, vae.config, "diffusion_pytorch_model")
        log("exported the VAE")
    if (a.work / "flow.json").exists():
        words = Words(a.model)
        model, _ = load_flow(a.work, words, "mean")
        clip_config, t5_config = text_configs(words)
        export_part(a.model / "transformer", model.transformer, FLOW_CONFIG,
                    "diffusion_pytorch_model")
        export_part(a.model / "text_encoder", model.text_encoder, clip_config, "model")
        export_part(a.model / "text_encoder_2", model.text_encoder_2, t5_config, "model")
        log("exported the transformer and both text encoders")


def export_part(folder: Path, module: nn.Module, config: dict, file: str) -> None:
    folder.mkdir(exist_ok=True)
    captions.write_json(folder / "config.json", config)
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous()
               for k, v in module.state_dict().items()}
    save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=("tokenizers", "vae", "flow", "export", "evaluate"))
    parser.add_argument("--work", type=Path, default=HERE / "work", help="checkpoints, pictures")
    parser.add_argument("--copy", type=Path, help="a second folder for checkpoints")
    parser.add_argument("--model", type=Path, default=HERE, help="folder of the model's files")
    parser.add_argument("--seconds", type=float, default=150.0, help="length of this run")
    parser.add_argument("--total", type=float, default=1400.0, help="length of all flow runs")
    parser.add_argument("--share", type=float, default=1.0,
                        help="evaluate: factor on the numbers of pictures")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, to try the recipe")
    a = parser.parse_args()
    a.folders = [a.work] + ([a.copy] if a.copy else [])
    if a.dry:
        shrink()
    if a.stage != "tokenizers":
        for folder in a.folders:
            folder.mkdir(parents=True, exist_ok=True)
    if DEVICE == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch._dynamo.config.recompile_limit = 32
    if a.stage == "tokenizers":
        texts = captions.corpus(20000, 1)
        captions.train_bpe(texts, 500, a.model / "tokenizer")
        captions.train_unigram(texts, 600, a.model / "tokenizer_2", T5_LENGTH)
    elif a.stage == "vae":
        train_vae(a)
    elif a.stage == "flow":
        train_flow(a)
    elif a.stage == "export":
        export(a)
    else:
        from evaluate import evaluate
        evaluate(a)


if __name__ == "__main__":
    main()
