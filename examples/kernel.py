"""The selective scan by itself: gradients, samples of several lengths, and a sequence in two parts.

python examples/kernel.py
"""

import torch

from cmimtl_kernels import selective_scan
from cmimtl_kernels.backends import Call, explain

batch, length, dim, dstate = 2, 100, 64, 16
torch.manual_seed(0)
u = torch.randn(batch, length, dim, requires_grad=True)
delta = torch.randn(batch, length, dim) - 3  # step sizes before softplus
A = -torch.arange(1.0, dstate + 1).expand(dim, dstate)
B, C = (torch.randn(batch, length, dstate) for _ in range(2))

# Which kernels run this call, and why not the others.
for name, reasons in explain(Call("selective_scan", "cpu", torch.float32, dstate=dstate)).items():
    print(f"{name:<13} {'; '.join(reasons) or 'can run it'}")

# Forward and backward. Steps past a sample's length are never read, and their gradient is 0.
lengths = torch.tensor([100, 60])
out = selective_scan(u, delta, A, B, C, delta_softplus=True, lengths=lengths)
out.square().sum().backward()
print(f"gradient of the valid steps {u.grad[1, :60].norm():.3f}, past them {u.grad[1, 60:].norm()}")


# The state after the first part is where the second part begins.
def scan(part: slice, state: torch.Tensor | None):
    inputs = (x[:, part] for x in (u.detach(), delta))
    maps = (x[:, part] for x in (B, C))
    return selective_scan(
        *inputs, A, *maps, delta_softplus=True, initial_state=state, return_last_state=True
    )


first, state = scan(slice(0, 40), None)
second, _ = scan(slice(40, length), state)
whole, _ = scan(slice(0, length), None)
torch.testing.assert_close(torch.cat((first, second), 1), whole)
print("two parts give what the whole sequence gives")
