"""The configuration of CMI-MTL: every size in one place."""

import math
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from huggingface_hub.dataclasses import strict
from transformers import InstructBlipQFormerConfig, PreTrainedConfig, RobertaConfig, T5Config

from cmimtl.names import FUSIONS

# A configuration, or a dict of its arguments, of which CMIMTLConfig makes one. Its class knows what
# it holds, which depends on the field.
if TYPE_CHECKING:
    SubConfig: TypeAlias = Any
else:
    SubConfig = dict | PreTrainedConfig | None


@strict
class CMIMTLConfig(PreTrainedConfig):
    """Sizes of a `cmimtl.modelling.model.CMIMTLForVisualQuestionAnswering`.

    Args:
        vision_model: name of a timm Vision Transformer.
        vision_options: keyword arguments of ``timm.create_model`` beside the image and patch size,
            such as ``embed_dim``, ``depth`` and ``num_heads``.
        image_size, patch_size: side of the square image and of its patches, in pixels.
        text_config: configuration of the RobertaModel that reads the question.
        qformer_config: configuration of the question-aware Q-Former. Its ``vocab_size`` is that of
            text_config, and its ``encoder_hidden_size`` is that of the vision model; both are set
            here.
        decoder_config: configuration of the T5 decoder that writes the answer.
        num_queries: number of learnable queries of the Q-Former.
        d_model: number of features of a token of the two streams in the fusion.
        fusion: "cross-mamba", "cross-mamba-gated" (the block of the authors' released code),
            "transformer" (co-attention), or one of the controls of `cmimtl.experiments.fusions`.
        fusion_layers: number of layers of the fusion.
        fusion_bidirectional: whether Cross-Mamba also scans from the last token to the first.
        fusion_heads: number of attention heads of the fusions with attention.
        fusion_feed_forward: width of the feed-forward part of the fusions with attention of
            `cmimtl.experiments.fusions`; None is 4 * d_model.
        fusion_dropout: dropout of the classifier and of the transformer fusion.
        fusion_recompute: whether the backward pass of Cross-Mamba computes again what lies between
            the two projections of a block. That takes less memory and, at small sizes, more time.
        decoder_reads_image: whether the decoder also attends to the tokens of the image. In the
            paper it attends only to the fused tokens.
        contrastive_dim: number of features that the contrastive loss compares.
        temperature: temperature of the contrastive loss at the start; it is learned.
        label_smoothing: label smoothing of the contrastive loss.
        classification_weight, contrastive_weight, generation_weight: weights of the objective's
            three losses; in the paper the first is 1, and the others are alpha and beta.
        initializer_range: standard deviation of the weights of linear layers at the start. 0.02
            suits widths of 768 and parts that are pretrained.
        learns_from_scratch: whether to start the encoders, and what reads them, as
            `cmimtl.modelling.scratch.start` does, so that signal and gradient pass through all of
            them from the first step.
        id2label: the answer classes, index -> normalised answer.
    """

    model_type = "cmi-mtl"
    # The base class makes a SubConfigSpec of each class.
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "text_config": RobertaConfig,
        "qformer_config": InstructBlipQFormerConfig,
        "decoder_config": T5Config,
    }

    vision_model: str = "vit_base_patch16_384"
    vision_options: dict | None = None
    image_size: int = 384
    patch_size: int = 16
    text_config: SubConfig = None
    qformer_config: SubConfig = None
    decoder_config: SubConfig = None
    num_queries: int = 32
    d_model: int = 768
    fusion: str = "cross-mamba"
    fusion_layers: int = 2
    fusion_bidirectional: bool = False
    fusion_heads: int = 12
    fusion_feed_forward: int | None = None
    fusion_dropout: float = 0.1
    fusion_recompute: bool = True
    decoder_reads_image: bool = False
    contrastive_dim: int = 256
    temperature: float = 0.07
    label_smoothing: float = 0.1
    classification_weight: float = 1.0
    contrastive_weight: float = 0.2
    generation_weight: float = 0.3
    initializer_range: float = 0.02
    learns_from_scratch: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.fusion not in FUSIONS:
            names = ", ".join(FUSIONS)
            raise ValueError(f"CMIMTLConfig: fusion must be one of {names}, got {self.fusion!r}.")
        for name in ("num_queries", "d_model", "fusion_layers", "contrastive_dim"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"CMIMTLConfig: {name} must be positive, got {getattr(self, name)}."
                )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"CMIMTLConfig: image_size must be a multiple of patch_size ({self.patch_size}),"
                f" got {self.image_size}."
            )
        if self.d_model % self.fusion_heads:
            raise ValueError(
                f"CMIMTLConfig: fusion_heads must divide d_model ({self.d_model}),"
                f" got {self.fusion_heads}."
            )
        if not self.temperature > 0:
            raise ValueError(f"CMIMTLConfig: temperature must be positive, got {self.temperature}.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"CMIMTLConfig: label_smoothing must lie in [0, 1), got {self.label_smoothing}."
            )
        for name in ("classification_weight", "contrastive_weight", "generation_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"CMIMTLConfig: {name} must be a number of at least 0, got"
                    f" {getattr(self, name)}."
                )
        self.vision_options = dict(self.vision_options or {})
        self.qformer_config.vocab_size = self.text_config.vocab_size
        self.qformer_config.pad_token_id = self.text_config.pad_token_id
        # T5's generation takes the sizes of its cache from the layers of the encoder, which ours
        # does not have.
        self.decoder_config.num_layers = self.decoder_config.num_decoder_layers
        self.decoder_config.is_encoder_decoder = True
