"""FLUX.1's four networks in plain PyTorch, with the parameter names of a diffusers directory.

Only what training needs: forward passes, no pipelines.  Shapes: B pictures, N image tokens, L text
tokens, H hidden width; image tokens are 2x2 patches of the 16-channel latent, 64 numbers each.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ------------------------------------------------------------------------------------------ VAE


class Resnet(nn.Module):
    def __init__(self, a: int, b: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, a, 1e-6), nn.Conv2d(a, b, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, b, 1e-6), nn.Conv2d(b, b, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(a, b, 1) if a != b else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class PixelAttention(nn.Module):
    """Self-attention with one head over all positions of the smallest map."""

    def __init__(self, c: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, c, 1e-6)
        self.to_q, self.to_k, self.to_v = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        t = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]
        t = F.scaled_dot_product_attention(self.to_q(t), self.to_k(t), self.to_v(t))
        return x + self.to_out[0](t[:, 0]).transpose(1, 2).reshape(b, c, h, w)


class Middle(nn.Module):
    def __init__(self, c: int, groups: int):
        super().__init__()
        self.attentions = nn.ModuleList([PixelAttention(c, groups)])
        self.resnets = nn.ModuleList([Resnet(c, c, groups), Resnet(c, c, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Resample(nn.Module):
    """Halve (stride 2, one zero row and column at the far sides) or double the picture."""

    def __init__(self, c: int, down: bool):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(c, c, 3, stride=2) if down else nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The resnets of one resolution and the step to the next."""

    def __init__(self, a: int, b: int, count: int, groups: int, step: str | None):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(a if i == 0 else b, b, groups) for i in range(count)])
        self.samplers = [f"{step}samplers"] if step else []
        for name in self.samplers:
            setattr(self, name, nn.ModuleList([Resample(b, step == "down")]))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for name in self.samplers:
            x = getattr(self, name)[0](x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        widths, groups = config["block_out_channels"], config["norm_num_groups"]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList([
            Level(widths[max(i - 1, 0)], width, config["layers_per_block"], groups,
                  "down" if i + 1 < len(widths) else None) for i, width in enumerate(widths)])
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config["latent_channels"], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [B,3,h,w] in [-1,1] to mean and log variance [B,32,h/8,w/8]."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        widths, groups = config["block_out_channels"][::-1], config["norm_num_groups"]
        self.conv_in = nn.Conv2d(config["latent_channels"], widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups)
        self.up_blocks = nn.ModuleList([
            Level(widths[max(i - 1, 0)], width, config["layers_per_block"] + 1, groups,
                  "up" if i + 1 < len(widths) else None) for i, width in enumerate(widths)])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """AutoencoderKL; latents outside are always (mean - shift) * scale, about unit variance."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def encode(self, x: Tensor) -> Tensor:
        mean = self.encoder(x).chunk(2, 1)[0].float()
        return (mean - self.config["shift_factor"]) * self.config["scaling_factor"]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z / self.config["scaling_factor"] + self.config["shift_factor"]).float()


def pack(z: Tensor) -> Tensor:
    """Latent [B,16,h,w] to tokens [B,N,64], a token's numbers in the order channel, row, column."""
    b, c, h, w = z.shape
    z = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return z.reshape(b, h // 2 * (w // 2), c * 4)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    z = tokens.view(-1, rows, columns, 16, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return z.reshape(-1, 16, 2 * rows, 2 * columns)


# ---------------------------------------------------------------------------------- transformer

def sinusoid(s: Tensor) -> Tensor:
    """[B] to [B,256]: cosines first, then sines."""
    rates = torch.exp(torch.arange(128, device=s.device) * (-math.log(10000.0) / 128))
    angle = s[:, None].float() * rates
    return torch.cat([angle.cos(), angle.sin()], 1)


def rope_table(rows: int, columns: int, length: int, axes: tuple[int, int, int],
               device: torch.device | str) -> Tensor:
    """Cosines and sines [2, length+N, 32] of all tokens, text (position 0) first."""
    r, c = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place = torch.stack([torch.zeros_like(r), r, c], -1).reshape(-1, 3).double()
    place = torch.cat([torch.zeros(length, 3, dtype=torch.double), place])
    angles = [place[:, i, None] * 10000.0 ** (-torch.arange(0, d, 2).double() / d)
              for i, d in enumerate(axes)]
    angle = torch.cat(angles, 1)
    return torch.stack([angle.cos(), angle.sin()]).float().to(device)


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Turn neighbouring pairs of x [B,heads,T,64] by their tokens' angles."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope[0], rope[1]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class RMSNorm(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def fused(x: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """Several linear maps of one input as a single product."""
    y = F.linear(x, torch.cat([m.weight for m in linears]), torch.cat([m.bias for m in linears]))
    return y.split([m.out_features for m in linears], -1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1.0 + scale) + shift


class Modulation(nn.Module):
    """adaLN: count vectors [B,1,H] from the conditioning vector; zero at the start."""

    def __init__(self, hidden: int, count: int):
        super().__init__()
        self.linear = nn.Linear(hidden, count * hidden)
        self.count = count
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(vec))[:, None].chunk(self.count, -1)


class Attention(nn.Module):
    """Projections and norms; `double` adds those of the text stream and both outputs."""

    def __init__(self, hidden: int, head: int, double: bool):
        super().__init__()
        self.head = head
        self.to_q, self.to_k, self.to_v = (nn.Linear(hidden, hidden) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(head), RMSNorm(head)
        if double:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (
                nn.Linear(hidden, hidden) for _ in range(3))
            self.norm_added_q, self.norm_added_k = RMSNorm(head), RMSNorm(head)
            self.to_out = nn.ModuleList([nn.Linear(hidden, hidden)])
            self.to_add_out = nn.Linear(hidden, hidden)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, rope: Tensor) -> Tensor:
        """Normed q and k [B,heads,T,64] and v to [B,T,H]."""
        q, k = rotate(q, rope).to(v.dtype), rotate(k, rope).to(v.dtype)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        first = nn.Module()
        first.proj = nn.Linear(hidden, 4 * hidden)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(4 * hidden, hidden)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))


class DoubleBlock(nn.Module):
    def __init__(self, hidden: int, head: int):
        super().__init__()
        self.norm1, self.norm1_context = Modulation(hidden, 6), Modulation(hidden, 6)
        self.attn = Attention(hidden, head, double=True)
        self.ff, self.ff_context = FeedForward(hidden), FeedForward(hidden)

    def forward(self, x: Tensor, c: Tensor, vec: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        m, mc, a = self.norm1(vec), self.norm1_context(vec), self.attn
        q, k, v = map(a.heads, fused(modulated(x, m[0], m[1]), a.to_q, a.to_k, a.to_v))
        qc, kc, vc = map(a.heads, fused(modulated(c, mc[0], mc[1]), a.add_q_proj, a.add_k_proj,
                                        a.add_v_proj))
        out = a(torch.cat([a.norm_added_q(qc), a.norm_q(q)], 2),
                torch.cat([a.norm_added_k(kc), a.norm_k(k)], 2), torch.cat([vc, v], 2), rope)
        oc, o = out.split([c.shape[1], x.shape[1]], 1)
        x = x + m[2] * a.to_out[0](o)
        c = c + mc[2] * a.to_add_out(oc)
        x = x + m[5] * self.ff(modulated(x, m[3], m[4]))
        return x, c + mc[5] * self.ff_context(modulated(c, mc[3], mc[4]))


class SingleBlock(nn.Module):
    def __init__(self, hidden: int, head: int):
        super().__init__()
        self.norm = Modulation(hidden, 3)
        self.attn = Attention(hidden, head, double=False)
        self.proj_mlp = nn.Linear(hidden, 4 * hidden)
        self.proj_out = nn.Linear(5 * hidden, hidden)

    def forward(self, s: Tensor, vec: Tensor, rope: Tensor) -> Tensor:
        (shift, scale, gate), a = self.norm(vec), self.attn
        h = modulated(s, shift, scale)
        q, k, v, m = fused(h, a.to_q, a.to_k, a.to_v, self.proj_mlp)
        out = a(a.norm_q(a.heads(q)), a.norm_k(a.heads(k)), a.heads(v), rope)
        return s + gate * self.proj_out(torch.cat([out, F.gelu(m, approximate="tanh")], -1))


class TwoLayers(nn.Module):
    def __init__(self, inputs: int, hidden: int):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class Conditioning(nn.Module):
    def __init__(self, hidden: int, pooled: int):
        super().__init__()
        self.timestep_embedder = TwoLayers(256, hidden)
        self.guidance_embedder = TwoLayers(256, hidden)
        self.text_embedder = TwoLayers(pooled, hidden)

    def forward(self, sigma: Tensor, guidance: Tensor, pooled: Tensor) -> Tensor:
        return (self.timestep_embedder(sinusoid(1000.0 * sigma))
                + self.guidance_embedder(sinusoid(1000.0 * guidance))
                + self.text_embedder(pooled))


class Transformer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        head = config["attention_head_dim"]
        hidden = head * config["num_attention_heads"]
        self.time_text_embed = Conditioning(hidden, config["pooled_projection_dim"])
        self.context_embedder = nn.Linear(config["joint_attention_dim"], hidden)
        self.x_embedder = nn.Linear(config["in_channels"], hidden)
        self.transformer_blocks = nn.ModuleList(
            [DoubleBlock(hidden, head) for _ in range(config["num_layers"])])
        self.single_transformer_blocks = nn.ModuleList(
            [SingleBlock(hidden, head) for _ in range(config["num_single_layers"])])
        self.norm_out = Modulation(hidden, 2)
        self.proj_out = nn.Linear(hidden, config["in_channels"])
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, text: Tensor, pooled: Tensor, sigma: Tensor, guidance: Tensor,
                rope: Tensor) -> Tensor:
        """Velocity [B,N,64] of tokens x [B,N,64]; text [B,L,joint], pooled [B,P], sigma [B]."""
        vec = self.time_text_embed(sigma, guidance, pooled)
        x, c = self.x_embedder(x), self.context_embedder(text)
        for block in self.transformer_blocks:
            x, c = block(x, c, vec, rope)
        s = torch.cat([c, x], 1)
        for block in self.single_transformer_blocks:
            s = block(s, vec, rope)
        scale, shift = self.norm_out(vec)
        return self.proj_out(modulated(s[:, c.shape[1]:], shift, scale))


# -------------------------------------------------------------------------------- text encoders

class ClipLayer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        h, eps = config["hidden_size"], config["layer_norm_eps"]
        self.heads = config["num_attention_heads"]
        self.self_attn = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.self_attn, name, nn.Linear(h, h))
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Linear(h, config["intermediate_size"])
        self.mlp.fc2 = nn.Linear(config["intermediate_size"], h)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(h, eps), nn.LayerNorm(h, eps)

    def forward(self, x: Tensor) -> Tensor:
        a, h = self.self_attn, self.layer_norm1(x)
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for p in (a.q_proj, a.k_proj, a.v_proj))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + a.out_proj(h.transpose(1, 2).flatten(2))
        h = self.mlp.fc1(self.layer_norm2(x))
        return x + self.mlp.fc2(h * torch.sigmoid(1.702 * h))


class ClipText(nn.Module):
    """CLIP's text model; only the vector at the first end token is used."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        h = config["hidden_size"]
        t = self.text_model = nn.Module()
        t.embeddings = nn.Module()
        t.embeddings.token_embedding = nn.Embedding(config["vocab_size"], h)
        t.embeddings.position_embedding = nn.Embedding(config["max_position_embeddings"], h)
        t.encoder = nn.Module()
        t.encoder.layers = nn.ModuleList(
            [ClipLayer(config) for _ in range(config["num_hidden_layers"])])
        t.final_layer_norm = nn.LayerNorm(h, config["layer_norm_eps"])
        nn.init.normal_(t.embeddings.token_embedding.weight, std=.5)
        nn.init.normal_(t.embeddings.position_embedding.weight, std=.1)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B,T], filled up with the end token, to pooled vectors [B,H]."""
        t = self.text_model
        x = t.embeddings.token_embedding(ids)
        x = x + t.embeddings.position_embedding.weight[:ids.shape[1]]
        for layer in t.encoder.layers:
            x = layer(x)
        end = (ids == self.config["eos_token_id"]).int().argmax(1)
        return t.final_layer_norm(x)[torch.arange(len(ids), device=ids.device), end]


class T5Layer(nn.Module):
    """One block; the parameters lie in T5's nested modules layer.0 and layer.1."""

    def __init__(self, config: dict, first: bool):
        super().__init__()
        d, inner = config["d_model"], config["num_heads"] * config["d_kv"]
        self.heads = config["num_heads"]
        attend, feed = nn.Module(), nn.Module()
        attend.SelfAttention = nn.Module()
        for name in "qkv":
            setattr(attend.SelfAttention, name, nn.Linear(d, inner, bias=False))
        nn.init.normal_(attend.SelfAttention.q.weight, std=(d * config["d_kv"]) ** -.5)
        attend.SelfAttention.o = nn.Linear(inner, d, bias=False)
        if first:
            attend.SelfAttention.relative_attention_bias = nn.Embedding(
                config["relative_attention_num_buckets"], self.heads)
            nn.init.normal_(attend.SelfAttention.relative_attention_bias.weight, std=.1)
        feed.DenseReluDense = nn.Module()
        feed.DenseReluDense.wi_0 = nn.Linear(d, config["d_ff"], bias=False)
        feed.DenseReluDense.wi_1 = nn.Linear(d, config["d_ff"], bias=False)
        feed.DenseReluDense.wo = nn.Linear(config["d_ff"], d, bias=False)
        attend.layer_norm, feed.layer_norm = RMSNorm(d), RMSNorm(d)
        self.layer = nn.ModuleList([attend, feed])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        a, f = self.layer[0].SelfAttention, self.layer[1].DenseReluDense
        h = self.layer[0].layer_norm(x)
        q, k, v = (p(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (a.q, a.k, a.v))
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        x = x + a.o(h.transpose(1, 2).flatten(2))
        h = self.layer[1].layer_norm(x)
        return x + f.wo(F.gelu(f.wi_0(h), approximate="tanh") * f.wi_1(h))


class T5Encoder(nn.Module):
    """T5's encoder without any mask: padding takes part, as in FLUX.1."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config["vocab_size"], config["d_model"])
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList(
            [T5Layer(config, first=i == 0) for i in range(config["num_layers"])])
        self.encoder.final_layer_norm = RMSNorm(config["d_model"])

    def buckets(self, length: int) -> Tensor:
        """Bucket of each (query, key) distance, [length, length]."""
        half = self.config["relative_attention_num_buckets"] // 2
        exact, reach = half // 2, self.config["relative_attention_max_distance"]
        place = torch.arange(length, device=self.shared.weight.device)
        away = place[None, :] - place[:, None]
        far = away.abs().clamp(min=1).float()
        log = exact + (torch.log(far / exact) / math.log(reach / exact) * (half - exact)).long()
        near = torch.where(away.abs() < exact, away.abs(), log.clamp(max=half - 1))
        return near + half * (away > 0)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [B,L] to states [B,L,d_model]."""
        first = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = first(self.buckets(ids.shape[1])).permute(2, 0, 1)[None]
        x = self.shared(ids)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)
