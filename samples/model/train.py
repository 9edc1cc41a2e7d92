"""Make the sample model from nothing: tokenizers, VAE, flow transformer with both text encoders.

    python train.py tokenizers
    python train.py vae  --work DIR --seconds 165       (again while the gate is closed)
    python train.py flow --work DIR --seconds 550 --total 1100   (again until the total is spent)
    python train.py export   --work DIR
    python train.py evaluate --work DIR

Files of the model are written beside this script, checkpoints (pieces under 15 MB) to the work
folder.  Every stage continues from the checkpoint it finds.  `--dry` shrinks all sizes so that the
whole recipe can be walked through on a CPU in minutes.
"""
from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch._dynamo
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import captions
import painter
from network import (VAE, ClipText, T5Encoder, Transformer, pack, rope_table, unpack)

HERE = Path(__file__).resolve().parent
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIP_LENGTH, T5_LENGTH = 48, 64      # CLIP is causal: cutting behind the end token changes nothing
AXES = (8, 28, 28)
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

STARTED = time.time()


def log(*parts: object) -> None:
    print(f"[{time.time() - STARTED:6.1f}]", *parts, flush=True)


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")


# -------------------------------------------------------------------------------------- pictures

SHAPES = {"wide": (288, 512), "square": (512, 512), "tall": (512, 288)}


class Drawer:
    """Draws scenes at random and paints views and crops of them."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def scenes(self, count: int, aspect: float) -> tuple[list, list]:
        themes = [captions.draw_theme(self.rng) for _ in range(count)]
        return themes, [painter.compose(t, aspect, self.rng) for t in themes]

    def words(self, themes: list) -> list[str]:
        return [captions.write_caption(t, self.rng) for t in themes]

    def window(self, scene: dict, span: float) -> tuple[float, float]:
        """Left and top of a square window of side span; land is drawn more often than sky."""
        half = scene["aspect"] / 2
        span_x, span_y = min(span, 2 * half), min(span, 1.0)
        left = self.rng.uniform(-half, half - span_x)
        low, high = span_y, 1.0
        if self.rng.random() < .6:
            high = min(1.0, max(span_y + .01, scene["level"] + .25 + span_y / 2))
        return left, self.rng.uniform(low, high)


def bytes_of(x: Tensor) -> Tensor:
    return (x * 255.0).round().byte()


def signed(x: Tensor) -> Tensor:
    """8-bit pictures to [-1,1]."""
    return x.float() / 127.5 - 1.0


def view(scenes: list, height: int, width: int) -> Tensor:
    """Whole pictures [B,3,height,width] in [0,1]."""
    left = torch.tensor([-s["aspect"] / 2 for s in scenes])
    size = torch.full((len(scenes),), 1.0 / height)
    return painter.paint(scenes, left, torch.ones(len(scenes)), size, height, width, DEVICE)


def save_grid(pictures: list[Tensor], columns: int, path: Path) -> None:
    """Write equally large pictures [3,h,w] in [0,1] as one PNG."""
    h, w = pictures[0].shape[1:]
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * h, columns * w, 3), np.uint8)
    for i, p in enumerate(pictures):
        r, c = divmod(i, columns)
        image = bytes_of(p.float().clamp(0, 1)).permute(1, 2, 0).cpu().numpy()
        sheet[r * h:(r + 1) * h, c * w:(c + 1) * w] = image
    Image.fromarray(sheet).save(path)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures in [-1,1] of the peak signal-to-noise ratio."""
    error = ((a.clamp(-1, 1) - b) / 2).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((-10.0 * torch.log10(error)).mean())


# ----------------------------------------------------------------------------------- checkpoints

PIECE = 14 << 20


def save_state(folder: Path, name: str, tensors: dict[str, Tensor], facts: dict) -> None:
    """Tensors as bf16 in pieces of at most PIECE bytes, facts as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    piece: dict[str, Tensor] = {}
    pieces, size = [piece], 0
    for key, tensor in tensors.items():
        tensor = tensor.detach().to("cpu", torch.bfloat16).contiguous()
        if size + tensor.nbytes > PIECE:
            piece, size = {}, 0
            pieces.append(piece)
        piece[key] = tensor
        size += tensor.nbytes
    for i, piece in enumerate(pieces):
        save_file(piece, folder / f"{name}-{i}.safetensors")
    captions.write_json(folder / f"{name}.json", facts | {"pieces": len(pieces)})


def load_state(folder: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    from safetensors.torch import load_file
    facts = json.loads((folder / f"{name}.json").read_text())
    tensors: dict[str, Tensor] = {}
    for i in range(facts["pieces"]):
        tensors |= load_file(folder / f"{name}-{i}.safetensors")
    return {k: v.float() for k, v in tensors.items()}, facts


# ------------------------------------------------------------------------------------------- VAE

def vae_crops(drawer: Drawer, count: int, side: int) -> Tensor:
    """8-bit pictures [count,3,side,side]: half near the whole view, half anywhere up to 16x."""
    out, some = [], min(128, count)
    while len(out) * some < count:
        _, scenes = drawer.scenes(some, 16 / 9)
        zoom = [math.exp(drawer.rng.uniform(0, math.log(1.6 if i % 2 else 16.0)))
                for i in range(some)]
        pixel = [1.0 / (288 * z) for z in zoom]
        corner = [drawer.window(s, side * p) for s, p in zip(scenes, pixel)]
        left, top = torch.tensor(corner).T
        out.append(bytes_of(painter.paint(scenes, left, top, torch.tensor(pixel), side, side,
                                          DEVICE)))
    return torch.cat(out)[:count]


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
    return batch.contiguous(memory_format=torch.channels_last)


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
def check_vae(vae: VAE, dry: bool, picture: Path | None = None) -> dict:
    """Held-out PSNR of views and of crops, and how well 27 flat colours come back."""
    drawer, n = Drawer(90001), 4 if dry else 32
    _, scenes = drawer.scenes(n, 16 / 9)
    views = signed(bytes_of(view(scenes, 288, 512)))
    crops = signed(vae_crops(drawer, n, 256))
    steps = torch.tensor([-.9, 0.0, .9], device=DEVICE)
    flats = torch.cartesian_prod(steps, steps, steps).view(27, 3, 1, 1).expand(-1, -1, 256, 256)
    with autocast():
        back = [torch.cat([vae.decode(vae.encode(part)) for part in x.split(16)])
                for x in (views, crops, flats)]
    flat = (back[2] - flats) * 127.5
    facts = dict(psnr_views=psnr(back[0], views), psnr_crops=psnr(back[1], crops),
                 flat_error=float(flat.mean((2, 3)).abs().mean()),
                 flat_worst=float(flat.mean((2, 3)).abs().max()),
                 flat_deviation=float(flat.std((2, 3)).max()))
    if picture:
        pairs = [x[i].add(1).div(2) for i in range(4) for x in (views, back[0])]
        save_grid(pairs, 4, picture.with_name(picture.stem + "_views.png"))
        pairs = [x[i].add(1).div(2) for i in range(min(n, 8)) for x in (crops, back[1])]
        save_grid(pairs, 8, picture.with_name(picture.stem + "_crops.png"))
    return {k: round(v, 3) for k, v in facts.items()}


def gate_open(facts: dict) -> bool:
    return (min(facts["psnr_views"], facts["psnr_crops"]) >= GATE_PSNR
            and facts["flat_error"] <= GATE_FLAT and facts["flat_worst"] <= 4 * GATE_FLAT)


def load_vae(work: Path) -> tuple[VAE, dict]:
    tensors, facts = load_state(work, "vae")
    vae = VAE(VAE_CONFIG | {k: facts[k] for k in ("shift_factor", "scaling_factor")})
    vae.load_state_dict(tensors)
    return vae.to(DEVICE, memory_format=torch.channels_last), facts


def train_vae(work: Path, seconds: float, dry: bool) -> None:
    """Train for the given seconds (pool of pictures included), measure, save."""
    begin = time.time()
    torch.manual_seed(101)
    random.seed(101)
    facts: dict = dict(steps=0, seconds=0.0)
    if (work / "vae.json").exists():
        vae, facts = load_vae(work)
        vae.config |= dict(shift_factor=0.0, scaling_factor=1.0)
        facts["gate"] = False
    else:
        vae = VAE(dict(VAE_CONFIG)).to(DEVICE, memory_format=torch.channels_last)
    log("VAE parameters", sum(p.numel() for p in vae.parameters()))
    size, side, count = (4, 64, 8) if dry else (40, 192, 8192)
    rate = 8e-4 if facts["steps"] else 1.6e-3
    pool = vae_crops(Drawer(1000 + facts["steps"]), count, 96 if dry else 256)
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
    while (done := (time.time() - begin) / seconds) < 1.0 or step == 0:
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
    with torch.no_grad(), autocast():
        _, scenes = Drawer(77).scenes(2 if dry else 128, 16 / 9)
        z = torch.cat([vae.encode(x) for x in signed(bytes_of(view(scenes, 288, 512))).split(16)])
    vae.config |= dict(shift_factor=float(z.mean()), scaling_factor=float(1.0 / z.std()))
    facts |= check_vae(vae, dry, work / "vae")
    facts |= dict(steps=facts["steps"] + step, loss=round(float(loss.detach()), 4),
                  seconds=round(facts["seconds"] + time.time() - begin, 1),
                  shift_factor=vae.config["shift_factor"],
                  scaling_factor=vae.config["scaling_factor"])
    facts["gate"] = gate_open(facts)
    save_state(work, "vae", vae.state_dict(), facts)
    log("VAE", json.dumps(facts))


# ------------------------------------------------------------------------------------------ text

class Words:
    """Both tokenizers, read back from the files that ship."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer
        from transformers import CLIPTokenizer
        self.clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5 = Tokenizer.from_file(str(folder / "tokenizer_2" / "tokenizer.json"))
        self.end = self.clip.eos_token_id

    def configs(self) -> tuple[dict, dict]:
        special = dict(bos_token_id=self.end - 1, eos_token_id=self.end, pad_token_id=self.end)
        clip = CLIP_CONFIG | special | {"vocab_size": self.end + 1}
        return clip, T5_CONFIG | {"vocab_size": self.t5.get_vocab_size()}

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids of CLIP [B,CLIP_LENGTH] and of T5 [B,T5_LENGTH]."""
        clip = torch.full((len(texts), CLIP_LENGTH), self.end)
        t5 = torch.zeros(len(texts), T5_LENGTH, dtype=torch.long)
        rows = self.clip(texts, truncation=True, max_length=CLIP_LENGTH).input_ids
        for i, (a, b) in enumerate(zip(rows, self.t5.encode_batch(texts))):
            clip[i, :len(a)] = torch.tensor(a)
            ids = b.ids[:-1][:T5_LENGTH - 1] + [1]
            t5[i, :len(ids)] = torch.tensor(ids)
        return clip.to(DEVICE), t5.to(DEVICE)


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


# ------------------------------------------------------------------------------------------ flow

class Pool:
    """Latents and captions of one shape, on the device.

    sharp [n,N,64]; soft is None for views, for tiles the latents of their enlarged draft; clip and
    t5 [n,VERSIONS,...] hold several captions of each picture.
    """

    VERSIONS = 4

    def __init__(self, name: str, height: int, width: int):
        self.name, self.tile = name, name == "tile"
        self.rows, self.columns = height // 16, width // 16
        self.rope = rope_table(self.rows, self.columns, T5_LENGTH, AXES, DEVICE)
        self.parts: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, **parts: Tensor) -> None:
        for name, part in parts.items():
            self.parts[name].append(part)

    def close(self) -> None:
        for name, parts in self.parts.items():
            setattr(self, name, torch.cat(parts))
        self.parts.clear()

    def draw(self, count: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        i = torch.randint(len(self.sharp), (count,), device=DEVICE)
        k = torch.randint(self.VERSIONS, (count,), device=DEVICE)
        soft = self.soft[i].float() if self.tile else None
        return self.sharp[i].float(), soft, self.clip[i, k], self.t5[i, k]


@torch.no_grad()
def enlarged(draft: Tensor, left: Tensor, top: Tensor, span: Tensor, side: int) -> Tensor:
    """Windows of drafts [B,3,h,w] blown up to [B,3,side,side] by bicubic interpolation.

    left and top [B] are measured from the draft's upper left corner, like span, in draft heights.
    """
    h, w = draft.shape[-2:]
    step = (torch.arange(side, device=DEVICE) + .5) / side
    x = (left[:, None] + span[:, None] * step) * h / w * 2.0 - 1.0
    y = (top[:, None] + span[:, None] * step) * 2.0 - 1.0
    grid = torch.stack([x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)], -1)
    out = F.grid_sample(draft, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return out.clamp(-1.0, 1.0)


@torch.no_grad()
def fill_pools(vae: VAE, words: Words, counts: dict[str, int], seed: int, batch: int
               ) -> list[Pool]:
    """Paint and encode; a tile comes with its own view, drafted by the VAE and blown up."""
    drawer, pools = Drawer(seed), []
    encode = vae.encode
    for name, count in counts.items():
        height, width = SHAPES["square" if name == "tile" else name]
        pool = Pool(name, height, width)
        made = 0
        while made < count:
            shape = drawer.rng.choice(("wide", "wide", "square", "tall"))
            draft_h, draft_w = SHAPES[shape] if name == "tile" else (height, width)
            themes, scenes = drawer.scenes(batch, draft_w / draft_h)
            whole = signed(bytes_of(view(scenes, draft_h, draft_w)))
            with autocast():
                z = torch.cat([encode(x) for x in whole.split(32)])
            parts = dict(zip(("clip", "t5"), caption_ids(drawer, words, themes)))
            if name == "tile":
                zoom = [15.0 if drawer.rng.random() < .4 else
                        math.exp(drawer.rng.uniform(math.log(3.0), math.log(16.0)))
                        for _ in scenes]
                pixel = [1.0 / (draft_h * f) for f in zoom]
                span = [512 * p for p in pixel]
                left, top = torch.tensor([drawer.window(s, a) for s, a in zip(scenes, span)]).T
                true = painter.paint(scenes, left, top, torch.tensor(pixel), 512, 512, DEVICE)
                rough = z + .12 * torch.rand(len(z), 1, 1, 1, device=DEVICE) * torch.randn_like(z)
                with autocast():
                    drafts = torch.cat([vae.decode(x) for x in rough.split(32)]).clamp(-1, 1)
                half = torch.tensor([s["aspect"] / 2 for s in scenes])
                large = enlarged(drafts, (left + half).to(DEVICE), (1.0 - top).to(DEVICE),
                                 torch.tensor(span, device=DEVICE), 512)
                with autocast():
                    z = torch.cat([encode(x) for x in signed(bytes_of(true)).split(32)])
                    soft = torch.cat([encode(x) for x in large.split(32)])
                parts["soft"] = pack(soft).half()
            pool.add(sharp=pack(z).half(), **parts)
            made += batch
        pool.close()
        pools.append(pool)
        log("pool", name, len(pool.sharp))
    return pools


def caption_ids(drawer: Drawer, words: Words, themes: list) -> tuple[Tensor, Tensor]:
    texts = [t for theme in themes for t in drawer.words([theme] * Pool.VERSIONS)]
    clip, t5 = words.encode(texts)
    shape = (len(themes), Pool.VERSIONS, -1)
    return clip.view(shape), t5.view(shape)


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
    """Nearly orthogonal matrices [n,r,c] by five Newton-Schulz steps (quintic, in bf16)."""
    x = g.bfloat16()
    flat = x.shape[1] > x.shape[2]
    x = x.mT if flat else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).bfloat16()
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
    start = .30 + .25 * torch.rand(count, 1, 1, device=DEVICE)
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
    model = Flow(*words.configs())
    model.load_state_dict({k[len(key) + 1:]: v for k, v in tensors.items() if k.startswith(key)})
    return model.to(DEVICE), facts


def train_flow(work: Path, seconds: float, total: float, share: float, dry: bool) -> None:
    """Train until `seconds` of this run or `total` seconds of all runs are spent."""
    begin = time.time()
    vae, vae_facts = load_vae(work)
    if not vae_facts["gate"] and not dry:
        raise SystemExit("the VAE has not passed its gate; train it further")
    words = Words(HERE)
    facts: dict = dict(steps=0, samples=0, seconds=0.0, history=[])
    torch.manual_seed(202)
    model = Flow(*words.configs()).to(DEVICE)
    mean = copy.deepcopy(model)
    if (work / "flow.json").exists():
        model, facts = load_flow(work, words, "model")
        mean, _ = load_flow(work, words, "mean")
    mean.requires_grad_(False)
    torch.manual_seed(303 + facts["steps"])
    random.seed(303 + facts["steps"])
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        log(name, sum(p.numel() for p in getattr(model, name).parameters()))
    counts = dict(wide=14000, square=5000, tall=3000, tile=9000)
    counts = {k: 4 if dry else int(n * share) for k, n in counts.items()}
    pools = fill_pools(vae, words, counts, 5000 + facts["steps"], 4 if dry else 128)
    sizes = {p.name: 4 if dry else {"wide": 192, "tall": 192, "square": 104, "tile": 104}[p.name]
             for p in pools}
    shares = [{"wide": .40, "square": .16, "tall": .08, "tile": .36}[p.name] for p in pools]
    del vae
    if DEVICE == "cuda":
        model.compile_blocks()
        mean.compile_blocks()
        torch.cuda.empty_cache()
    log("pools filled in", round(time.time() - begin, 1), "s")

    named = list(model.named_parameters())
    muon = Muon([p for n, p in named if is_inner(n, p)])
    adam = torch.optim.AdamW([p for n, p in named if not is_inner(n, p)], betas=(.9, .97),
                             weight_decay=.01, fused=DEVICE == "cuda")
    blank, params, averaged = words.encode([""]), [p for _, p in named], list(mean.parameters())
    recent: dict[str, list[Tensor]] = defaultdict(list)
    before, step, clock, saved = dict(facts), 0, time.time(), time.time()

    def save() -> None:
        facts.update(steps=before["steps"] + step,
                     seconds=round(before["seconds"] + time.time() - begin, 1))
        both = {f"model.{k}": v for k, v in model.state_dict().items()}
        both |= {f"mean.{k}": v for k, v in mean.state_dict().items()}
        save_state(work, "flow", both, facts)

    while time.time() - begin < seconds:
        spent = before["seconds"] + time.time() - begin
        if (done := spent / total) >= 1.0:
            break
        distil = done > DISTIL_FROM
        pool = random.choices(pools, shares)[0]
        count = sizes[pool.name]
        if pool.tile:
            loss = tile_loss(model, pool, count, blank)
        else:
            loss = view_loss(model, mean, pool, count, blank, distil)
        rate = rate_at(done, step)
        for group in adam.param_groups:
            group["lr"] = rate
        for p in params:
            p.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        muon.step(rate)
        adam.step()
        step += 1
        now = before["steps"] + step
        keep = min(.9993, now / (now + 20))
        torch._foreach_lerp_(averaged, params, 1.0 - keep)
        facts["samples"] += count
        recent[pool.name + ("+g" if distil and not pool.tile else "")].append(loss.detach())
        if step == 20 or step % 500 == 0 or (dry and step % 4 == 0):
            losses = {k: round(float(torch.stack(v).mean()), 4) for k, v in recent.items()}
            facts["history"].append([now, losses])
            recent.clear()
            log(f"flow step {now} done {done:.3f} rate {rate:.2e}", losses,
                f"{(time.time() - clock) / step * 1e3:.1f} ms/step")
        if time.time() - saved > 180.0:
            save()
            saved = time.time()
    save()
    log("flow saved:", facts["steps"], "steps,", facts["samples"], "samples,", facts["seconds"],
        "s in all")


# ------------------------------------------------------------------------------------- inference

def draft_sigmas(steps: int, tokens: int) -> list[float]:
    """FLUX.1's shifted schedule for a picture of so many tokens, ending in 0."""
    mu = .5 + (tokens - 256) * .65 / 3840
    base = torch.linspace(1.0, 1.0 / steps, steps)
    return [*(math.exp(mu) / (math.exp(mu) + 1.0 / base - 1.0)).tolist(), 0.0]


@torch.no_grad()
def euler(model: Flow, x: Tensor, sigmas: list[float], guidance: float, ids: tuple, rope: Tensor
          ) -> Tensor:
    """Follow the velocity from sigmas[0] to the last; x [B,N,64]."""
    g = torch.full((len(x),), guidance, device=DEVICE)
    for now, then in zip(sigmas, sigmas[1:]):
        with autocast():
            v = model(x, torch.full_like(g, now), g, *ids, rope)
        x = x + (then - now) * v.float()
    return x


@torch.no_grad()
def draw_drafts(model: Flow, vae: VAE, words: Words, texts: list[str], seeds: list[int],
                shape: str = "wide", steps: int = 20, guidance: float = 3.0) -> Tensor:
    """Pictures [B,3,h,w] in [-1,1] from captions."""
    rows, columns = (v // 16 for v in SHAPES[shape])
    noise = torch.stack([torch.randn(16, 2 * rows, 2 * columns,
                                     generator=torch.Generator().manual_seed(s)) for s in seeds])
    rope = rope_table(rows, columns, T5_LENGTH, AXES, DEVICE)
    out = []
    for part, some in zip(pack(noise).to(DEVICE).split(32), range(0, len(texts), 32)):
        ids = words.encode(texts[some:some + 32])
        x = euler(model, part, draft_sigmas(steps, rows * columns), guidance, ids, rope)
        with autocast():
            out.append(vae.decode(unpack(x, rows, columns)).clamp(-1, 1))
    return torch.cat(out)


@torch.no_grad()
def refine(model: Flow, vae: VAE, words: Words, tiles: Tensor, texts: list[str], sigma: float,
           steps: int, guidance: float = 3.0, seed: int = 0) -> Tensor:
    """Enlarged tiles [B,3,512,512] in [-1,1] made sharp: noise to sigma, Euler steps to 0."""
    torch.manual_seed(seed)
    rope = rope_table(32, 32, T5_LENGTH, AXES, DEVICE)
    levels = [sigma * (1 - i / steps) for i in range(steps + 1)]
    out = []
    for some in range(0, len(tiles), 16):
        with autocast():
            z = pack(vae.encode(tiles[some:some + 16]))
        x = z + sigma * (torch.randn(z.shape).to(DEVICE) - z)
        x = euler(model, x, levels, guidance, words.encode(texts[some:some + 16]), rope)
        with autocast():
            out.append(vae.decode(unpack(x, 32, 32)).clamp(-1, 1))
    return torch.cat(out)


# ---------------------------------------------------------------------------------------- export

def export(work: Path) -> None:
    """Write what is trained as a diffusers directory beside this script, averaged, in bf16."""
    captions.write_json(HERE / "model_index.json", MODEL_INDEX)
    (HERE / "scheduler").mkdir(exist_ok=True)
    captions.write_json(HERE / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    vae, _ = load_vae(work)
    export_part("vae", vae, vae.config, "diffusion_pytorch_model")
    if not (work / "flow.json").exists():
        log("exported the VAE; the flow is not trained yet")
        return
    words = Words(HERE)
    model, _ = load_flow(work, words, "mean")
    clip_config, t5_config = words.configs()
    export_part("transformer", model.transformer, FLOW_CONFIG, "diffusion_pytorch_model")
    export_part("text_encoder", model.text_encoder, clip_config, "model")
    export_part("text_encoder_2", model.text_encoder_2, t5_config, "model")
    log("exported the whole model")


def export_part(name: str, module: nn.Module, config: dict, file: str) -> None:
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    captions.write_json(folder / "config.json", config)
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous()
               for k, v in module.state_dict().items()}
    save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------------ evaluation

def features(pictures: Tensor) -> Tensor:
    """What the judge sees of pictures [B,3,h,w] in [0,1]: 9x16 blocks of colour and of edges."""
    colour = F.adaptive_avg_pool2d(pictures, (9, 16))
    grey = pictures.mean(1, keepdim=True)
    edges = torch.cat([F.pad(grey.diff(dim=-1), (0, 1)), F.pad(grey.diff(dim=-2), (0, 0, 0, 1))], 1)
    edges = F.adaptive_avg_pool2d(edges.abs(), (9, 16)) * 6.0
    return torch.cat([colour, edges], 1).flatten(1)


class Judge:
    """Names place and time of a picture by ridge regression on painted pictures."""

    @torch.no_grad()
    def __init__(self, count: int):
        themes, pictures = self.painted(Drawer(424242), count)
        seen = features(pictures)
        self.shift, self.size = seen.mean(0), seen.std(0) + 1e-3
        inputs = self.inputs(pictures)
        gram = inputs.T @ inputs + .02 * len(inputs) * torch.eye(inputs.shape[1], device=DEVICE)
        self.heads = {}
        for kind, names in (("place", painter.PLACES), ("time", painter.TIMES)):
            labels = torch.tensor([names.index(getattr(t, kind)) for t in themes], device=DEVICE)
            self.heads[kind] = torch.linalg.solve(gram, inputs.T @ F.one_hot(labels).float()), names

    @staticmethod
    def painted(drawer: Drawer, count: int) -> tuple[list, Tensor]:
        themes, pictures = [], []
        while len(themes) < count:
            some, scenes = drawer.scenes(min(64, count), 16 / 9)
            themes += some
            pictures.append(view(scenes, 288, 512))
        return themes, torch.cat(pictures)

    def inputs(self, pictures: Tensor) -> Tensor:
        seen = (features(pictures) - self.shift) / self.size
        return torch.cat([seen, torch.ones(len(seen), 1, device=DEVICE)], 1)

    def names(self, kind: str, pictures: Tensor) -> list[str]:
        weights, names = self.heads[kind]
        return [names[i] for i in (self.inputs(pictures) @ weights).argmax(1).tolist()]


def sky_light(pictures: Tensor) -> Tensor:
    """Mean luminance [B] of the upper fifth."""
    top = pictures[:, :, :pictures.shape[2] // 5].mean((2, 3))
    return top @ torch.tensor((.30, .59, .11), device=pictures.device)


def sand_share(pictures: Tensor) -> Tensor:
    """Share [B] of the lower third that is sand-coloured: red over green over blue."""
    r, g, b = pictures[:, :, -pictures.shape[2] // 3:].unbind(1)
    return ((r > 1.12 * g) & (g > 1.08 * b)).float().mean((1, 2))


def edge_energy(pictures: Tensor) -> float:
    return float(pictures.diff(dim=-1).abs().mean() + pictures.diff(dim=-2).abs().mean())


@torch.no_grad()
def evaluate(work: Path, share: float, dry: bool) -> None:
    """Losses on held-out pictures, the words test, the tile test; tables, JSON and pictures.

    share scales the numbers of pictures: a CPU wants less than 1.
    """
    vae, _ = load_vae(work)
    words = Words(HERE)
    model, facts = load_flow(work, words, "mean")
    model.eval()
    result: dict = {"vae": check_vae(vae, dry, work / "vae"), "steps": facts["steps"],
                    "samples": facts["samples"], "seconds": facts["seconds"]}

    def pictures_of(count: int) -> int:
        return 4 if dry else max(8, int(count * share))

    held = fill_pools(vae, words, {k: pictures_of(192) for k in ("wide", "square", "tile")},
                      987654, pictures_of(128))
    blank = words.encode([""])
    torch.manual_seed(1)
    for pool in held:
        count = pictures_of(64)
        losses = [tile_loss(model, pool, count, blank) if pool.tile else
                  view_loss(model, model, pool, count, blank, False)
                  for _ in range(1 if dry else 12)]
        result[f"loss_{pool.name}"] = round(float(torch.stack(losses).mean()), 4)
    log("held-out", json.dumps(result))

    judge = Judge(pictures_of(2048))
    themes, real = judge.painted(Drawer(31337), pictures_of(512))
    for kind in ("place", "time"):
        hits = [a == getattr(t, kind) for a, t in zip(judge.names(kind, real), themes)]
        result[f"judge_{kind}_painted"] = round(sum(hits) / len(hits), 3)

    steps = 2 if dry else 20
    places, each = painter.PLACES[:2] if dry else painter.PLACES, max(1, int(5 * share))
    asked = [(p, t, s) for p in places for t in painter.TIMES for s in range(each)]
    rng = random.Random(5)
    texts = [f"{rng.choice(captions.WORDS[p])} {rng.choice(captions.WORDS[t])}"
             for p, t, _ in asked]
    made = (draw_drafts(model, vae, words, texts, [1000 + i for i in range(len(texts))],
                        steps=steps) + 1) / 2
    for kind, column in (("place", 0), ("time", 1)):
        hits = defaultdict(list)
        for name, want in zip(judge.names(kind, made), asked):
            hits[want[column]].append(name == want[column])
        result[f"followed_{kind}"] = {k: round(sum(v) / len(v), 3) for k, v in hits.items()}
    for name, pictures, times in (("painted", real, [t.time for t in themes]),
                                  ("drawn", made, [t for _, t, _ in asked])):
        light = sky_light(pictures).tolist()
        result[f"sky_light_{name}"] = {
            t: round(sum(v for v, u in zip(light, times) if u == t) / max(1, times.count(t)), 3)
            for t in painter.TIMES}
    save_grid([made[i] for i in range(0, len(made), each)], 5, work / "drafts.png")

    swaps = (("time", "sunset", "night", "{} at {{}}", painter.PLACES),
             ("place", "lake", "desert", "a {{}} {}",
              [captions.WORDS[t][0] for t in painter.TIMES]))
    for kind, a, b, pattern, others in swaps:
        texts = [pattern.format(others[i % len(others)]).format(word)
                 for word in (a, b) for i in range(10)]
        pair = (draw_drafts(model, vae, words, texts, [*range(10)] * 2, steps=steps) + 1) / 2
        said = judge.names(kind, pair)
        both = [said[i] == a and said[i + 10] == b for i in range(10)]
        light, sand = sky_light(pair), sand_share(pair)
        result[f"{a}_to_{b}"] = dict(
            both_named=f"{sum(both)} of 10",
            darker=f"{int((light[10:] < .6 * light[:10]).sum())} of 10",
            sandier=f"{int((sand[10:] > sand[:10] + .2).sum())} of 10")
        save_grid([*pair], 10, work / f"{a}_{b}.png")
    log("words", json.dumps(result))

    tile = next(p for p in held if p.tile)
    n = 2 if dry else pictures_of(48)
    levels = ((.42, 2),) if dry else ((.35, 4), (.42, 5), (.42, 8), (.5, 6))
    texts = ["a landscape"] * n
    true = torch.cat([vae.decode(unpack(x, 32, 32)) for x in tile.sharp[:n].float().split(8)])
    soft = torch.cat([vae.decode(unpack(x, 32, 32)) for x in tile.soft[:n].float().split(8)])
    strips = [x[i].add(1).div(2) for x in (soft, true) for i in range(min(n, 8))]
    for sigma, count in levels:
        sharp = refine(model, vae, words, soft.clamp(-1, 1), texts, sigma, count)
        small = [F.interpolate(x, scale_factor=1 / 16, mode="area") for x in (sharp, soft)]
        result[f"tile_{sigma}_{count}"] = dict(
            psnr_to_source_16x_smaller=round(psnr(*small), 2),
            edges_of_true=round(edge_energy(sharp) / edge_energy(true), 3),
            edges_of_source=round(edge_energy(sharp) / edge_energy(soft), 3))
        strips += [x.add(1).div(2) for x in sharp[:min(n, 8)]]
    save_grid(strips, min(n, 8), work / "tiles.png")

    texts = ["a mountain lake at sunset, scattered clouds, warm colours, framed by pines",
             "sea cliffs at night, the moon on the left, a clear sky",
             "a forest of firs at dawn, fog in the valleys"]
    drafts = draw_drafts(model, vae, words, texts, [7, 8, 9], steps=steps)
    save_grid([x.add(1).div(2) for x in drafts], 3, work / "posters.png")
    shots = []
    for draft, text in zip(drafts, texts):
        for left, top in ((.35, .45), (.8, .55), (1.2, .7), (.6, .85)):
            at = [torch.tensor([v], device=DEVICE) for v in (left, top, 512 / (288 * 15))]
            large = enlarged(draft[None], *at, 512)
            shots += [large[0], refine(model, vae, words, large, [text], .42, 6)[0]]
    save_grid([x.add(1).div(2) for x in shots], 8, work / "crops.png")
    captions.write_json(work / "evaluation.json", result)
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stage", choices=("tokenizers", "vae", "flow", "export", "evaluate"))
    parser.add_argument("--work", type=Path, default=HERE / "work", help="checkpoints, pictures")
    parser.add_argument("--seconds", type=float, default=150.0, help="length of this run")
    parser.add_argument("--total", type=float, default=950.0, help="length of all flow runs")
    parser.add_argument("--pool", type=float, default=1.0, help="factor on the number of pictures")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, to try the recipe")
    a = parser.parse_args()
    if a.stage != "tokenizers":
        a.work.mkdir(parents=True, exist_ok=True)
    if DEVICE == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch._dynamo.config.recompile_limit = 32
    if a.stage == "tokenizers":
        texts = captions.corpus(20000, 1)
        captions.train_bpe(texts, 500, HERE / "tokenizer")
        captions.train_unigram(texts, 600, HERE / "tokenizer_2", T5_LENGTH)
    elif a.stage == "vae":
        train_vae(a.work, a.seconds, a.dry)
    elif a.stage == "flow":
        train_flow(a.work, a.seconds, a.total, a.pool, a.dry)
    elif a.stage == "export":
        export(a.work)
    else:
        evaluate(a.work, a.pool, a.dry)


if __name__ == "__main__":
    main()
