"""The Cross-Mamba block in a model of your own: two streams, one question about both.

Each sample has a stream of colours and one of words. The label says whether they have the same sum
(modulo 2), which neither stream tells alone.

python examples/block.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmimtl_kernels import CrossMamba


class TwoStreams(nn.Module):
    """Embeds two streams of tokens, fuses them, and classifies the masked mean of both."""

    def __init__(self, tokens: int = 2, d_model: int = 32, classes: int = 2):
        super().__init__()
        self.colours, self.words = (nn.Embedding(tokens, d_model) for _ in range(2))
        self.fusion = CrossMamba(d_model, n_layers=1, bidirectional=True)
        self.classifier = nn.Linear(2 * d_model, classes)

    def forward(self, colours: Tensor, words: Tensor, word_lengths: Tensor) -> Tensor:
        x, y = self.fusion(self.colours(colours), self.words(words), text_lengths=word_lengths)
        valid = torch.arange(y.shape[1]) < word_lengths[:, None]  # (batch, words)
        mean = torch.where(valid[..., None], y, 0).sum(1) / word_lengths[:, None]
        return self.classifier(torch.cat((x.mean(1), mean), dim=-1))


def samples(count: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Random streams and their labels: 3 colours, and 2 words of which one may be padding."""
    colours, words = torch.randint(2, (count, 3)), torch.randint(2, (count, 2))
    word_lengths = torch.randint(1, 3, (count,))
    valid = torch.arange(2) < word_lengths[:, None]
    labels = (colours.sum(1) + (words * valid).sum(1)) % 2
    return (colours, words, word_lengths), labels


torch.manual_seed(0)
model = TwoStreams()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(1, 151):
    inputs, labels = samples(64)
    loss = F.cross_entropy(model(*inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 30 == 0:
        print(f"step {step}: loss {loss.item():.3f}")

inputs, labels = samples(512)
with torch.no_grad():
    accuracy = (model(*inputs).argmax(1) == labels).float().mean().item()
print(f"{accuracy:.0%} of new samples are right; chance is 50 %")
