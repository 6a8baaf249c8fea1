"""mamba_ssm's and causal_conv1d's functions from their equations, one step at a time.

Plain PyTorch, written from the definitions and not from the library under test: channels first, in
the dtype of the inputs. They are the yardstick of the compatibility modules.
"""

import torch
import torch.nn.functional as F


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, state=None
):
    """-> out (batch, dim, length), last_state (batch, dim, dstate)."""
    batch, dim, length = u.shape
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    B, C = (per_channel(x, dim, batch, length) for x in (B, C))  # (batch, dim, dstate, length)
    state = u.new_zeros(batch, dim, A.shape[1]) if state is None else state
    outs = []
    for t in range(length):
        d, x = delta[:, :, t, None], u[:, :, t, None]  # (batch, dim, 1)
        state = torch.exp(d * A) * state + d * B[..., t] * x
        outs.append((state * C[..., t]).sum(-1))
    out = torch.stack(outs, -1)
    if D is not None:
        out = out + D[:, None] * u
    if z is not None:
        out = out * z * torch.sigmoid(z)
    return out, state


def per_channel(x, dim, batch, length):
    """B or C of any of the three shapes -> (batch, dim, dstate, length)."""
    if x.dim() == 2:
        return x[None, :, :, None].expand(batch, -1, -1, length)
    if x.dim() == 3:
        return x[:, None].expand(-1, dim, -1, -1)
    return x.repeat_interleave(dim // x.shape[1], dim=1)


def state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """One step with heads: state (batch, nheads, dim, dstate), B and C (batch, ngroups, dstate).

    -> out (batch, nheads, dim), state.
    """
    dt = dt if dt_bias is None else dt + dt_bias
    dt = F.softplus(dt) if dt_softplus else dt
    per_group = x.shape[1] // B.shape[1]
    B, C = (m.repeat_interleave(per_group, 1)[:, :, None] for m in (B, C))
    state = torch.exp(dt[..., None] * A) * state + dt[..., None] * B * x[..., None]
    out = (state * C).sum(-1)
    out = out if D is None else out + D * x
    return (out if z is None else out * z * torch.sigmoid(z)), state


def conv(x, weight, bias=None, initial_states=None, seq_idx=None, activation=None):
    """-> out (batch, dim, length), the last width - 1 steps (batch, dim, width - 1)."""
    batch, dim, length = x.shape
    width = weight.shape[1]
    if initial_states is None:
        initial_states = x.new_zeros(batch, dim, width - 1)
    steps = torch.cat((initial_states, x), -1)
    out = torch.zeros_like(x)
    for b in range(batch):
        for t in range(length):
            total = torch.zeros(dim, dtype=x.dtype) if bias is None else bias
            for k in range(width):
                source = t - width + 1 + k
                if seq_idx is None or (source >= 0 and seq_idx[b, source] == seq_idx[b, t]):
                    total = total + weight[:, k] * steps[b, :, t + k]
            total = F.silu(total) if activation else total
            if seq_idx is None or seq_idx[b, t] >= 0:
                out[b, :, t] = total
    return out, steps[..., length:]


def mamba_inner(
    xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, out_proj_weight,
    out_proj_bias, A, B=None, C=None, D=None, delta_bias=None, B_proj_bias=None, C_proj_bias=None,
    delta_softplus=True, b_rms_weight=None, c_rms_weight=None, dt_rms_weight=None,
    b_c_dt_rms_eps=1e-6,
):  # fmt: skip
    """-> out (batch, length, d_model)."""
    dt_rank, dstate = delta_proj_weight.shape[1], A.shape[1]
    x, z = xz.chunk(2, 1)
    u, _ = conv(x, conv1d_weight[:, 0], conv1d_bias, activation="silu")
    projected = torch.einsum("rd,bdl->brl", x_proj_weight, u)
    delta = torch.einsum("dr,brl->bdl", delta_proj_weight, projected[:, :dt_rank])

    def norm(m, weight):  # over the second axis
        if weight is None:
            return m
        mean_square = m.pow(2).mean(1, keepdim=True)
        return m / torch.sqrt(mean_square + b_c_dt_rms_eps) * weight[:, None]

    def finish(m, bias, weight):
        return norm(m if bias is None else m + bias[:, None], weight)

    row = dt_rank
    if B is None:
        B, row = finish(projected[:, row : row + dstate], B_proj_bias, b_rms_weight), row + dstate
    if C is None:
        C = finish(projected[:, row : row + dstate], C_proj_bias, c_rms_weight)
    y, _ = selective_scan(u, norm(delta, dt_rms_weight), A, B, C, D, z, delta_bias, delta_softplus)
    out = torch.einsum("md,bdl->blm", out_proj_weight, y)
    return out if out_proj_bias is None else out + out_proj_bias
