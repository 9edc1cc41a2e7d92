#!/usr/bin/env python3
"""Makes tests/golden/engine: what the reference implementation computes on small random models.

    python tests/golden/make_goldens.py build/release/mural

The program writes each model folder (`mural synth`) from a spec in models/; diffusers and
transformers load it in fp32 on the CPU.  Nothing of this project computes an expected value.
Packages and date of the last run: engine/README.md.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import diffusers
import numpy as np
import torch
import transformers
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent
OUT = HERE / "engine"

# Tile sizes in tokens, rows first; none is square.
TILES = [(6, 4), (4, 10)]
MODELS = [
    {"name": "dev_small", "dtype": "bf16", "seed": 11, "text_tokens": 24, "guidance": 3.5},
    {"name": "dev_wide", "dtype": "f16", "seed": 12, "text_tokens": 40, "guidance": 2.25},
    {"name": "schnell", "dtype": "f32", "seed": 13, "text_tokens": 17, "guidance": 0.0},
]
PROMPTS = ["", "A majestic mountain landscape at sunset, 8k",
           "two cats: one on the left, one on the right; a very long tail of words " * 8]
# Steps, image tokens, strength (0: the whole schedule).
SCHEDULES = [(1, 4096, 0), (4, 256, 0), (20, 1024, 0), (28, 4096, 0), (28, 9216, 0), (50, 24, 0),
             (28, 4096, 0.6), (28, 4096, 0.3), (20, 1536, 0.75), (4, 4096, 0.3), (7, 1024, 1.0)]


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_map(x):
    """[1, C, h, w] -> [h, w, C], the order in memory of this project."""
    return x[0].permute(1, 2, 0).contiguous()


def smooth_picture(seed, h, w):
    """[1, 3, h, w] within 0..1: waves and a little noise, so that no channel is flat."""
    y = torch.arange(h).view(1, h, 1) / h
    x = torch.arange(w).view(1, 1, w) / w
    k = torch.arange(1, 4).view(3, 1, 1)
    picture = 0.5 + 0.3 * torch.sin(6.0 * k * x + 4.0 * y + k) + 0.05 * noise(seed, 3, h, w)
    return picture.clamp(0, 1)[None]


def text_parts(pipe, spec, out):
    """CLIP and T5, through the pipeline's own methods so that lengths and padding are theirs."""
    for i, prompt in enumerate(PROMPTS):
        clip_ids = pipe.tokenizer(prompt, padding="max_length", truncation=True,
                                  max_length=pipe.tokenizer.model_max_length).input_ids
        t5_ids = pipe.tokenizer_2(prompt, padding="max_length", truncation=True,
                                  max_length=spec["text_tokens"]).input_ids
        out[f"clip.ids.{i}"] = torch.tensor(clip_ids, dtype=torch.float32)
        out[f"clip.pooled.{i}"] = pipe._get_clip_prompt_embeds(prompt)[0]
        out[f"t5.ids.{i}"] = torch.tensor(t5_ids, dtype=torch.float32)
        out[f"t5.states.{i}"] = pipe._get_t5_prompt_embeds(
            prompt, max_sequence_length=spec["text_tokens"])[0]


def transformer_parts(pipe, spec, out):
    """One forward per tile size; the text is that of prompt 1."""
    model, config = pipe.transformer, pipe.transformer.config
    text, pooled = out["t5.states.1"][None], out["clip.pooled.1"][None]
    spec["tiles"] = []
    for i, (h, w) in enumerate(TILES):
        sigma = (0.83, 0.27)[i]
        tokens = noise(100 + i, 1, h * w, config.in_channels)
        velocity = model(
            hidden_states=tokens, encoder_hidden_states=text, pooled_projections=pooled,
            timestep=torch.tensor([sigma]),
            guidance=torch.tensor([spec["guidance"]]) if config.guidance_embeds else None,
            img_ids=FluxPipeline._prepare_latent_image_ids(1, h, w, "cpu", torch.float32),
            txt_ids=torch.zeros(text.shape[1], 3), return_dict=False)[0]
        out[f"transformer.tokens.{i}"] = tokens[0]
        out[f"transformer.velocity.{i}"] = velocity[0]
        spec["tiles"].append({"h_tokens": h, "w_tokens": w, "sigma": sigma})


def vae_parts(pipe, out):
    vae, factor = pipe.vae, pipe.vae_scale_factor
    for i, (h, w) in enumerate(TILES):
        rgb = smooth_picture(200 + i, 2 * h * factor, 2 * w * factor)
        mean = vae.encode(2 * rgb - 1).latent_dist.mode()
        latent = (mean - vae.config.shift_factor) * vae.config.scaling_factor
        out[f"vae.rgb.{i}"] = as_map(rgb)
        out[f"vae.latent.{i}"] = as_map(latent)
        source = noise(300 + i, *latent.shape)
        decoded = vae.decode(source / vae.config.scaling_factor + vae.config.shift_factor).sample
        out[f"vae.source.{i}"] = as_map(source)
        out[f"vae.decoded.{i}"] = as_map(decoded / 2 + 0.5)  # not clamped


def schedule_parts(pipe, spec, out):
    """Sigmas as the pipelines arrive at them, with the model's scheduler."""
    spec["schedules"] = []
    for steps, tokens, strength in SCHEDULES:
        scheduler = pipe.scheduler
        mu = calculate_shift(
            tokens, scheduler.config.base_image_seq_len, scheduler.config.max_image_seq_len,
            scheduler.config.base_shift, scheduler.config.max_shift)
        timesteps, _ = retrieve_timesteps(scheduler, steps, "cpu",
                                          sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        first = 0
        if strength > 0:
            image_pipe = FluxImg2ImgPipeline(**pipe.components)
            kept, count = image_pipe.get_timesteps(steps, strength, "cpu")
            first = steps - count
            assert torch.equal(kept, timesteps[first:])
        out[f"sigmas.{len(spec['schedules'])}"] = scheduler.sigmas[first:].clone()
        spec["schedules"].append({"steps": steps, "tokens": tokens, "strength": strength})


def check_picture(image, name):
    inside = float(((image > 0) & (image < 1)).mean())
    print(f"  {name}: {image.shape}, {100 * inside:.0f} % of values inside 0..1, "
          f"deviation {image.std():.3f}")
    assert inside > 0.5, "a clamped picture compares nothing"


def txt2img(pipe, spec, out):
    h, w = TILES[0]
    factor = pipe.vae_scale_factor
    steps = 3
    start = noise(400, 1, pipe.transformer.config.in_channels // 4, 2 * h, 2 * w)
    image = pipe(
        prompt=PROMPTS[1], height=2 * h * factor, width=2 * w * factor, num_inference_steps=steps,
        guidance_scale=spec["guidance"], max_sequence_length=spec["text_tokens"],
        latents=FluxPipeline._pack_latents(start, 1, start.shape[1], 2 * h, 2 * w),
        output_type="np").images[0]
    check_picture(image, "txt2img")
    out["txt2img.noise"] = as_map(start)
    out["txt2img.image"] = torch.from_numpy(image).contiguous()
    spec["txt2img"] = {"prompt": PROMPTS[1], "h_tokens": h, "w_tokens": w, "steps": steps}


def img2img(pipe, spec, out):
    """The image-to-image pipeline itself.  Its posterior gives the mean instead of a sample, and the
    noise that it draws is drawn again here from the same generator."""
    h, w = TILES[1]
    factor = pipe.vae_scale_factor
    steps, strength = 6, 0.55
    source = smooth_picture(500, 2 * h * factor, 2 * w * factor)
    shape = (1, pipe.transformer.config.in_channels // 4, 2 * h, 2 * w)
    sample = DiagonalGaussianDistribution.sample
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    try:
        image = FluxImg2ImgPipeline(**pipe.components)(
            prompt=PROMPTS[1], image=source, strength=strength, height=2 * h * factor,
            width=2 * w * factor, num_inference_steps=steps, guidance_scale=spec["guidance"],
            max_sequence_length=spec["text_tokens"],
            generator=torch.Generator().manual_seed(501), output_type="np").images[0]
    finally:
        DiagonalGaussianDistribution.sample = sample
    check_picture(image, "img2img")
    out["img2img.rgb"] = as_map(source)
    out["img2img.noise"] = as_map(noise(501, *shape))
    out["img2img.image"] = torch.from_numpy(image).contiguous()
    spec["img2img"] = {"prompt": PROMPTS[1], "h_tokens": h, "w_tokens": w, "steps": steps,
                       "strength": strength}


def weight_sample(pipe):
    """The first values of a weight of each part: tells other weights from wrong arithmetic."""
    return torch.cat([part.state_dict()[name].flatten()[:4] for part, name in (
        (pipe.transformer, "proj_out.weight"), (pipe.vae, "decoder.conv_in.weight"),
        (pipe.text_encoder_2, "encoder.block.0.layer.0.SelfAttention.q.weight"))])


@torch.no_grad()
def make(program, spec):
    print(spec["name"])
    out = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / spec["name"]
        subprocess.run([program, "synth", folder, "--spec", HERE / f"models/{spec['name']}.json",
                        "--dtype", spec["dtype"], "--seed", str(spec["seed"])], check=True)
        pipe = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        out["weights"] = weight_sample(pipe)
        text_parts(pipe, spec, out)
        transformer_parts(pipe, spec, out)
        vae_parts(pipe, out)
        schedule_parts(pipe, spec, out)
        txt2img(pipe, spec, out)
        img2img(pipe, spec, out)
    spec["prompts"] = len(PROMPTS)
    out = {name: value.to(torch.float32).contiguous() for name, value in out.items()}
    for name, value in out.items():
        assert bool(torch.isfinite(value).all()), name
    path = OUT / f"{spec['name']}.safetensors"
    save_file(out, path)
    path.chmod(0o644)
    for name in ("clip.pooled.1", "t5.states.1", "transformer.velocity.0", "vae.latent.0",
                 "vae.decoded.0"):
        print(f"  {name}: mean {out[name].mean():.4f}, deviation {out[name].std():.4f}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    OUT.mkdir(exist_ok=True)
    for spec in MODELS:
        make(sys.argv[1], spec)
    (OUT / "index.json").write_text(json.dumps({"models": MODELS}, indent=1) + "\n")


if __name__ == "__main__":
    main()
