"""How a model without pretrained parts starts.

The parts' own initialisations, 0.02 for every weight, are meant for widths of 768. At a width of 96
a layer then passes on a fifth of what it reads, an image is hardly anything among the queries that
read it, and the first thousand steps are spent on growing.
"""

from torch import nn

POSITION_STD = 0.5  # about what timm makes of a patch, so that places differ as contents do
OUTPUT_STD = 0.1  # of a classifier's last weights, relative to the others


def start(model) -> None:
    """Initialise the encoders and what reads them, all but the decoder, in place.

    A linear layer of n inputs gets weights ~ N(0, 1 / n), which keeps the size of what it reads.
    Embeddings and queries are ~ N(0, 1), as large as the LayerNorm behind them makes them, so that
    steps of the optimizer change what a word is by little.

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
        if name.endswith("in_proj"):
            _keep_size(module)
    nn.init.normal_(model.qformer.queries)
    nn.init.normal_(model.vision.vit.pos_embed, std=POSITION_STD)
    model.classifier.layers[-1].weight.mul_(OUTPUT_STD)


def _keep_size(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
