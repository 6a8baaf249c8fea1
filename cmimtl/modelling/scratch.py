"""How a model without pretrained parts starts.

The parts' own initialisations give every weight a standard deviation of 0.02, which suits widths of
768. At a width of 96, each layer would pass on only a fifth of what it reads. The image would count
for little among the queries that read it, and the first thousand steps would be spent on making
weights larger.
"""

from torch import nn

# Embedded patches have about this standard deviation in timm, so that positions differ as much from
# one another as contents do.
POSITION_STD = 0.5
# The layers of a fusion that read its normalised tokens. Those that write to the residual
# connection start small, so that the fusion changes little at first.
FUSION_INPUTS = ("in_proj", "query", "key_value", "feed_forward.0")
OUTPUT_STD = 0.1  # the classifier's last weights, relative to the others


def start(model) -> None:
    """Initialise the encoders and what reads them, all but the decoder, in place.

    A linear layer of n inputs gets weights from N(0, 1 / n), so that its outputs are as large as
    its inputs. Embeddings and queries are drawn from N(0, 1). They are then as large as the
    LayerNorm behind them makes them, so that a step of the optimizer changes a word only a little.

    Args:
        model: a CMIMTLForVisualQuestionAnswering.
    """
    readers = [model.contrast_visual, model.contrast_text, model.classifier]
    if model.config.decoder_reads_image:
        readers.append(model.image_projection)
    for part in (model.vision, model.text, model.qformer, *readers):
        for module in part.modules():
            if isinstance(module, nn.Linear):
                _keep_size(module)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
    for name, module in model.fusion.named_modules():
        if name.endswith(FUSION_INPUTS):
            _keep_size(module)
    nn.init.normal_(model.qformer.queries)
    nn.init.normal_(model.vision.vit.pos_embed, std=POSITION_STD)
    model.classifier.layers[-1].weight.mul_(OUTPUT_STD)


def _keep_size(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
