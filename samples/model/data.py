"""Pictures for training: scenes at random, whole views, crops, tiles with their enlarged drafts.

Owns what the networks are shown and how it is made; knows nothing of losses or optimisers.
`Source` draws scenes and captions in processes of its own, because composing and tokenising would
keep the training waiting; painting and encoding happen where the training runs.
"""
from __future__ import annotations

import math
import multiprocessing
import os
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import captions
import painter
from network import VAE, pack, rope_table

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLIP_LENGTH, T5_LENGTH = 48, 64      # CLIP is causal: cutting behind the end token changes nothing
AXES = (8, 28, 28)
# Height and width of views and tiles, and of the part of a draft that a tile is enlarged from.
SHAPES = {"wide": (288, 512), "square": (512, 512), "tall": (512, 288), "tile": (512, 512),
          "window": (192, 192)}


def shrink() -> None:
    """Half of every side, to try things where there is no GPU."""
    SHAPES.update({name: (h // 2, w // 2) for name, (h, w) in SHAPES.items()})


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")


def signed(x: Tensor) -> Tensor:
    """8-bit pictures to [-1,1]."""
    return x.float() / 127.5 - 1.0


def sent(array: np.ndarray) -> Tensor:
    """An array on the device; the host does not wait for a GPU to take it."""
    x = torch.from_numpy(array)
    return x.pin_memory().to(DEVICE, non_blocking=True) if DEVICE == "cuda" else x


def layout(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def psnr(a: Tensor, b: Tensor) -> float:
    """Mean over pictures in [-1,1] of the peak signal-to-noise ratio."""
    error = ((a.clamp(-1, 1) - b) / 2).square().mean((1, 2, 3)).clamp(min=1e-10)
    return float((-10.0 * torch.log10(error)).mean())


def save_grid(pictures: list[Tensor], columns: int, path: Path) -> None:
    """Write equally large pictures [3,h,w] in [-1,1] as one PNG, or as JPEG by the name's end."""
    h, w = pictures[0].shape[1:]
    rows = -(-len(pictures) // columns)
    sheet = np.zeros((rows * h, columns * w, 3), np.uint8)
    for i, p in enumerate(pictures):
        r, c = divmod(i, columns)
        image = (p.float().clamp(-1, 1) + 1).mul(127.5).round().byte().permute(1, 2, 0)
        sheet[r * h:(r + 1) * h, c * w:(c + 1) * w] = image.cpu().numpy()
    Image.fromarray(sheet).save(path, quality=90)


# --------------------------------------------------------------------------------------- scenes

class Drawer:
    """Draws scenes, windows and captions at random."""

    def __init__(self, seed: int | str):
        self.rng = random.Random(seed)

    def scenes(self, count: int, aspect: float) -> tuple[list, list]:
        themes = [captions.draw_theme(self.rng) for _ in range(count)]
        return themes, [painter.compose(t, aspect, self.rng) for t in themes]

    def words(self, theme: painter.Theme, count: int) -> list[str]:
        return [captions.write_caption(theme, self.rng) for _ in range(count)]

    def window(self, scene: dict, span: float) -> tuple[float, float]:
        """Left and top of a square window of side span; land is drawn more often than sky."""
        half = scene["aspect"] / 2
        span_x, span_y = min(span, 2 * half), min(span, 1.0)
        left = self.rng.uniform(-half, half - span_x)
        low, high = span_y, 1.0
        if self.rng.random() < .6:
            high = min(1.0, max(span_y + .01, scene["level"] + .25 + span_y / 2))
        return left, self.rng.uniform(low, high)

    def zoom(self) -> float:
        """How far a tile is enlarged: often 15, the poster's own."""
        if self.rng.random() < .4:
            return 15.0
        return math.exp(self.rng.uniform(math.log(3.0), math.log(16.0)))


def view(scenes: list | painter.Packed, height: int, width: int) -> Tensor:
    """Whole pictures [B,3,height,width] in [-1,1]."""
    packed = painter.pack(scenes) if isinstance(scenes, list) else scenes
    left = -packed.aspects() / 2
    size = torch.full_like(left, 1.0 / height)
    return signed(painter.paint(packed, left, torch.ones_like(left), size, height, width, DEVICE))


def crops(drawer: Drawer, count: int, side: int) -> Tensor:
    """8-bit pictures [count,3,side,side]: half near the whole view, half anywhere up to 16x."""
    out, some = [], min(128, count)
    while len(out) * some < count:
        _, scenes = drawer.scenes(some, 16 / 9)
        zoom = [math.exp(drawer.rng.uniform(0, math.log(1.6 if i % 2 else 16.0)))
                for i in range(some)]
        pixel = [1.0 / (288 * z) for z in zoom]
        corner = [drawer.window(s, side * p) for s, p in zip(scenes, pixel)]
        left, top = torch.tensor(corner).T
        out.append(painter.paint(painter.pack(scenes), left, top, torch.tensor(pixel), side, side,
                                 DEVICE))
    return torch.cat(out)[:count]


# ----------------------------------------------------------------------------------------- words

class Words:
    """Both tokenizers, read back from the files that ship."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer
        from transformers import CLIPTokenizer
        self.clip = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.t5 = Tokenizer.from_file(str(folder / "tokenizer_2" / "tokenizer.json"))
        self.end = self.clip.eos_token_id

    def ids(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of CLIP [B,CLIP_LENGTH] and of T5 [B,T5_LENGTH], padded as each model wants it."""
        clip = np.full((len(texts), CLIP_LENGTH), self.end, np.int64)
        t5 = np.zeros((len(texts), T5_LENGTH), np.int64)
        rows = self.clip(texts, truncation=True, max_length=CLIP_LENGTH).input_ids
        for i, (a, b) in enumerate(zip(rows, self.t5.encode_batch(texts))):
            clip[i, :len(a)] = a
            ids = b.ids[:-1][:T5_LENGTH - 1] + [1]
            t5[i, :len(ids)] = ids
        return clip, t5

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        return tuple(torch.from_numpy(x).to(DEVICE) for x in self.ids(texts))


# --------------------------------------------------------------------------- drawing in processes

VERSIONS = 4                         # captions of each picture


def draw_batch(drawer: Drawer, words: Words, shape: str, count: int) -> dict[str, np.ndarray]:
    """All numbers of `count` new pictures of a shape, and the ids of their captions.

    Tiles carry, besides the scene: left, top and pixel of the tile; left, top and pixel of the
    part of the draft that it is enlarged from; its place in that part in draft pixels.
    """
    draft = shape if shape != "tile" else drawer.rng.choice(("wide", "wide", "square", "tall"))
    height, width = SHAPES[draft]
    themes, scenes = drawer.scenes(count, width / height)
    clip, t5 = words.ids([text for t in themes for text in drawer.words(t, VERSIONS)])
    packed = painter.pack(scenes)
    out = dict(rows=packed.rows.numpy(), seeds=packed.seeds.numpy(),
               clip=clip.reshape(count, VERSIONS, -1), t5=t5.reshape(count, VERSIONS, -1))
    if shape == "tile":
        places, part = [], SHAPES["window"][0]
        for scene in scenes:
            pixel = 1.0 / (height * drawer.zoom())
            span = SHAPES["tile"][0] * pixel
            left, top = drawer.window(scene, span)
            x, y, side = (left + width / height / 2) * height, (1.0 - top) * height, span * height
            a = min(max(round(x + side / 2) - part // 2, 0), width - part)
            b = min(max(round(y + side / 2) - part // 2, 0), height - part)
            places.append((left, top, pixel, a / height - width / height / 2, 1.0 - b / height,
                           1.0 / height, x - a, y - b, side))
        out["places"] = np.array(places, np.float32)
    return out


def draw_forever(queue, seed: str, folder: Path, shape: str, count: int) -> None:
    """Body of one drawing process."""
    torch.set_num_threads(1)
    drawer, words = Drawer(seed), Words(folder)
    while True:
        queue.put(draw_batch(drawer, words, shape, count))


class Source:
    """Batches of drawn pictures, from processes that start before the GPU is touched.

    Each shape has processes of its own, asked in turn, so that the order does not depend on speed.
    With no processes everything is drawn when it is asked for.
    """

    def __init__(self, folder: Path, seed: int, processes: dict[str, int], count: int):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self.count, self.turn = count, defaultdict(int)
        self.queues, self.workers = {}, []
        self.words = Words(folder)   # before the fork, so that its imports are made once
        self.drawer = Drawer(f"{seed} here")
        fork = multiprocessing.get_context("fork")
        for shape, number in processes.items():
            self.queues[shape] = [fork.Queue(6) for _ in range(number)]
            for i, queue in enumerate(self.queues[shape]):
                self.workers.append(fork.Process(
                    target=draw_forever, daemon=True,
                    args=(queue, f"{seed} {shape} {i}", folder, shape, count)))
                self.workers[-1].start()

    def take(self, shape: str) -> dict[str, np.ndarray]:
        if not self.queues.get(shape):
            return draw_batch(self.drawer, self.words, shape, self.count)
        turn = self.turn[shape] = (self.turn[shape] + 1) % len(self.queues[shape])
        return self.queues[shape][turn].get(timeout=180)

    def close(self) -> None:
        for worker in self.workers:
            worker.terminate()


# ----------------------------------------------------------------------------------- enlargement

def lanczos(size: int, side: int, start: Tensor, span: Tensor) -> Tensor:
    """Weights [B,side,size] that enlarge [start, start+span) of a line of pixels to `side`.

    The rule of the program: six taps of a Lanczos window, the line mirrored about its ends.
    """
    place = start[:, None] + span[:, None] * (torch.arange(side, device=start.device) + .5) / side
    first = torch.floor(place - .5).long() - 2
    taps = first[..., None] + torch.arange(6, device=start.device)
    away = place[..., None] - .5 - taps
    weights = torch.sinc(away) * torch.sinc(away / 3) * (away.abs() < 3)
    weights = weights / weights.sum(-1, keepdim=True)
    taps = taps % (2 * size)
    taps = torch.where(taps < size, taps, 2 * size - 1 - taps)
    return torch.zeros(*place.shape, size, device=start.device).scatter_add(-1, taps, weights)


@torch.no_grad()
def enlarged(draft: Tensor, left: Tensor, top: Tensor, span: Tensor, side: int) -> Tensor:
    """Windows of drafts [B,3,h,w] in [-1,1] blown up to [B,3,side,side]; measures in pixels."""
    columns = lanczos(draft.shape[3], side, left, span)
    rows = lanczos(draft.shape[2], side, top, span)
    out = rows[:, None] @ draft.float() @ columns.mT[:, None]
    return out.clamp(-1.0, 1.0)


# ------------------------------------------------------------------------------------------ pools

class Encoder:
    """The VAE without gradients, compiled for a GPU, on parts of at most `part` pictures."""

    def __init__(self, vae: VAE, compiled: bool, part: int = 32):
        self.vae, self.part = vae, part
        self.run = {"encode": vae.encode, "decode": vae.decode}
        if compiled:
            self.run = {k: torch.compile(f, dynamic=False) for k, f in self.run.items()}

    @torch.no_grad()
    def __call__(self, what: str, x: Tensor) -> Tensor:
        with autocast():
            return torch.cat([self.run[what](layout(p)) for p in x.split(self.part)])


class Pool:
    """Latents and captions of one shape on the device; new pictures replace the oldest.

    sharp [n,N,64]; soft, for tiles only, the latents of their enlarged draft; clip and t5
    [n,VERSIONS,...] hold the captions of each picture.
    """

    def __init__(self, name: str, size: int, encoder: Encoder, source: Source):
        self.name, self.tile, self.size = name, name == "tile", size
        self.height, self.width = SHAPES[name]
        self.rows, self.columns = self.height // 16, self.width // 16
        self.rope = rope_table(self.rows, self.columns, T5_LENGTH, AXES, DEVICE)
        self.encoder, self.source = encoder, source
        self.parts: dict[str, Tensor] = {}
        self.next = self.made = 0
        while self.made < size:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Paint and encode one batch of new pictures."""
        drawn = {k: sent(v) for k, v in self.source.take(self.name).items()}
        packed = painter.Packed(drawn["rows"], drawn["seeds"])
        new = {"clip": drawn["clip"], "t5": drawn["t5"]}
        if self.tile:
            tiles, new["soft"] = paint_tiles(packed, drawn["places"], self.encoder)
            new["soft"] = pack(new["soft"])
        else:
            tiles = view(packed, self.height, self.width)
        new["sharp"] = pack(self.encoder("encode", tiles))
        for name, value in new.items():
            value = value.half() if value.is_floating_point() else value.short()
            if name not in self.parts:
                self.parts[name] = torch.zeros(self.size, *value.shape[1:], dtype=value.dtype,
                                               device=DEVICE)
            slots = (torch.arange(len(value), device=DEVICE) + self.next) % self.size
            self.parts[name][slots] = value
        self.next = (self.next + len(packed.seeds)) % self.size
        self.made += len(packed.seeds)

    def draw(self, count: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        i = torch.randint(self.size, (count,), device=DEVICE)
        k = torch.randint(VERSIONS, (count,), device=DEVICE)
        soft = self.parts["soft"][i].float() if self.tile else None
        return (self.parts["sharp"][i].float(), soft, self.parts["clip"][i, k].long(),
                self.parts["t5"][i, k].long())


@torch.no_grad()
def paint_tiles(packed: painter.Packed, places: Tensor, encoder: Encoder) -> tuple[Tensor, Tensor]:
    """True tiles [B,3,side,side] and the latents of what the program would start from.

    The part of the draft around the tile goes through the VAE, a little disturbed, as drafts from
    the model do; then it is enlarged and encoded.
    """
    side, window = SHAPES["tile"][0], SHAPES["window"][0]
    tiles = signed(painter.paint(packed, *places[:, :3].T, side, side, DEVICE))
    part = signed(painter.paint(packed, *places[:, 3:6].T, window, window, DEVICE))
    z = encoder("encode", part)
    z = z + .12 * torch.rand(len(z), 1, 1, 1, device=DEVICE) * torch.randn_like(z)
    draft = encoder("decode", z).clamp(-1, 1)
    left, top, span = places[:, 6:9].T
    return tiles, encoder("encode", enlarged(draft, left, top, span, side))
