"""CMI-MTL: from an image and a question to an answer class and a written answer.

    pixel_values -> VisionEncoder -> QFormer -> visual stream ---.          .-> AnswerClassifier
                                        ^                        |          |
    input_ids ---.----------------------'                        |-> fusion-|
                 |                                               |          |
                 '-> RobertaModel ------------> text stream -----'          '-> AnswerDecoder

Source: CMI-MTL (arXiv 2511.01357).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForVisualQuestionAnswering,
    PreTrainedModel,
    RobertaModel,
)
from transformers.utils import ModelOutput

from cmimtl.modelling import loading, losses, scratch
from cmimtl.modelling.config import CMIMTLConfig
from cmimtl.modelling.fusion import build_fusion, initialises_itself
from cmimtl.modelling.heads import AnswerClassifier, AnswerDecoder
from cmimtl.modelling.qformer import QFormer
from cmimtl.modelling.vision import VisionEncoder


@dataclass
class CMIMTLOutput(ModelOutput):
    """What a forward pass gives.

    Attributes:
        loss: the sum of the three, each times its weight in the configuration; None without any
            target.
        classification_loss, contrastive_loss, generation_loss: scalars, None where not computed.
        logits: (batch, classes).
        fused: (batch, num_queries + length, d_model), the visual then the text stream.
        fused_mask: (batch, num_queries + length), 1 at valid tokens.
        query_attentions: (batch, heads, num_queries, image tokens), with return_attentions.
    """

    loss: Tensor | None = None
    classification_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    generation_loss: Tensor | None = None
    logits: Tensor | None = None
    fused: Tensor | None = None
    fused_mask: Tensor | None = None
    query_attentions: Tensor | None = None


class CMIMTLForVisualQuestionAnswering(PreTrainedModel):
    """The model; its configuration is a `cmimtl.modelling.config.CMIMTLConfig`."""

    config_class = CMIMTLConfig
    main_input_name = "pixel_values"
    base_model_prefix = "cmimtl"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CrossMambaBlock"]  # noqa: RUF012 - as transformers has it

    def __init__(self, config: CMIMTLConfig):
        super().__init__(config)
        self.vision = VisionEncoder(config)
        self.text = RobertaModel(config.text_config, add_pooling_layer=False)
        self.qformer = QFormer(config, self.vision.hidden_size)
        self.visual_projection = _projection(self.qformer.hidden_size, config.d_model)
        self.text_projection = _projection(config.text_config.hidden_size, config.d_model)
        self.contrast_visual = nn.Linear(self.qformer.hidden_size, config.contrastive_dim)
        self.contrast_text = nn.Linear(config.text_config.hidden_size, config.contrastive_dim)
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.fusion = build_fusion(config)
        self.classifier = AnswerClassifier(config)
        self.decoder_projection = _projection(config.d_model, config.decoder_config.d_model)
        if config.decoder_reads_image:
            self.image_projection = nn.Linear(
                self.vision.hidden_size, config.decoder_config.d_model
            )
        self.decoder = AnswerDecoder(config.decoder_config)
        self.post_init()
        # T5 keeps its "wo" in float32 where the model is loaded in float16, in which the layer's
        # outputs overflow. That name alone would catch "word_embeddings" too.
        self._keep_in_fp32_modules = {"DenseReluDense.wo"}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **options):
        """Load a whole model of this package, as transformers does, from a folder or the hub.

        No code that comes with it is run, and a folder fetches nothing; see
        `cmimtl.modelling.loading`.

        Raises:
            ValueError: a file is damaged or of another model, or a weight is missing, unknown, of
                another shape or kind, or not finite; the message names the file and the weight.
        """
        loading.check_options(options)
        source = pretrained_model_name_or_path
        folder = loading.local_folder(source, options.get("subfolder", ""))
        options |= {"trust_remote_code": False, "use_safetensors": True}
        told = options.pop("output_loading_info", False)
        resized = options.get("ignore_mismatched_sizes", False)
        if folder is not None:
            loading.check_folder(folder)
            if config is None:
                config, options = loading.read_config(cls.config_class, folder, options)
            if isinstance(config, CMIMTLConfig):
                loading.check_labels(config, folder / loading.CONFIG)
                loading.check_weights(cls, config, folder, resized=resized)
        model, info = super().from_pretrained(
            source, *model_args, config=config, output_loading_info=True, **options
        )
        loading.check_nothing_missing(info, source)
        loading.check_finite(
            model.state_dict(), source if folder is None else folder / loading.WEIGHTS
        )
        return (model, info) if told else model

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the question's words in the text encoder."""
        return self.text.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text.set_input_embeddings(value)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        """Initialise every module, as the base class does for transformers' own models.

        In other models it passes over each module that has no parameter directly in it, so that the
        module's ``reset_parameters`` would never run.
        """
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a part. Parameters that a checkpoint brought are left as they are."""
        loaded = [
            (parameter, parameter.clone())
            for parameter in module.parameters()
            if getattr(parameter, "_is_hf_initialized", False)
        ]
        if isinstance(module, VisionEncoder) or initialises_itself(module):
            module.reset_parameters()
        elif isinstance(module, QFormer):
            module.reset_parameters(self.config.initializer_range)
        elif isinstance(module, CMIMTLForVisualQuestionAnswering):
            self.temperature.fill_(self.config.temperature)
            if self.config.learns_from_scratch:
                scratch.start(self)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        for parameter, value in loaded:
            parameter.copy_(value)

    def encode(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        return_attentions: bool = False,
    ) -> dict[str, Any]:
        """Run both encoders, the question-aware pass of the Q-Former, and the fusion.

        Samples with the same image_index have the same picture, which is encoded once.

        Returns:
            a dict of

                image               (batch, image tokens, vision width)
                question            (batch, length, text width)
                visual              (batch, num_queries, d_model), the fused visual stream
                text                (batch, length, d_model), the fused text stream
                attention_mask      (batch, length), 1 at the question's tokens
                query_attentions    (batch, heads, num_queries, image tokens) or None
                pictures            (distinct pictures, image tokens, vision width)
                picture_of          (batch,), the picture of each sample, or None where each sample
                                    has its own
        """
        if input_ids.shape[:1] != pixel_values.shape[:1]:
            raise ValueError(
                f"CMIMTL: input_ids must have the batch of pixel_values ({pixel_values.shape[0]}),"
                f" got {input_ids.shape[0]}."
            )
        attention_mask = _question_mask(input_ids, attention_mask)
        picture_of = None
        if image_index is not None:
            picture_of, first = _first_of_each(image_index)
            pixel_values = pixel_values[first]
        pictures = self.vision(pixel_values)
        image = pictures if picture_of is None else pictures[picture_of]
        question = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        queries, attentions = self.qformer(image, input_ids, attention_mask, return_attentions)
        visual, text = self.fusion(
            self.visual_projection(queries),
            self.text_projection(question),
            None,
            attention_mask.sum(1),
        )
        return {
            "pictures": pictures,
            "picture_of": picture_of,
            "image": image,
            "question": question,
            "visual": visual,
            "text": text,
            "attention_mask": attention_mask,
            "query_attentions": attentions,
        }

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        answer_scores: Tensor | None = None,
        labels: Tensor | None = None,
        image_index: Tensor | None = None,
        question_index: Tensor | None = None,
        return_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> CMIMTLOutput | tuple[Any, ...]:
        """Answer by class; with targets, compute the losses too.

        Args:
            pixel_values: (batch, 3, image_size, image_size).
            input_ids, attention_mask: (batch, length), the question; padded on the right. The mask
                may be integers, bool or floats.
            answer_scores: (batch, classes) in [0, 1], for the classification loss.
            labels: (batch, answer length), the answer's tokens, -100 at padding and in the whole
                row of a closed question, for the generation loss.
            image_index, question_index: (batch,) integers, equal for the same image or question.
                Such samples are positives of each other in the contrastive loss, which is computed
                where any target is given. Samples with one image_index must have one picture.
            return_attentions: whether query_attentions is wanted.
            return_dict: False returns a tuple.
        """
        state = self.encode(pixel_values, input_ids, attention_mask, image_index, return_attentions)
        visual, text, text_mask = state["visual"], state["text"], state["attention_mask"]
        visual_mask = text_mask.new_ones(visual.shape[:2])
        logits = self.classify(state)
        output = CMIMTLOutput(
            logits=logits,
            fused=torch.cat((visual, text), dim=1),
            fused_mask=torch.cat((visual_mask, text_mask), dim=1),
            query_attentions=state["query_attentions"],
        )
        if answer_scores is not None:
            output.classification_loss = losses.classification_loss(logits, answer_scores)
        if labels is not None:
            output.generation_loss = self._generation_loss(*self.decoder_input(state), labels)
        if answer_scores is not None or labels is not None:
            queries, _ = self.qformer(state["pictures"])
            if state["picture_of"] is not None:
                queries = queries[state["picture_of"]]
            output.contrastive_loss = losses.contrastive_loss(
                nn.functional.normalize(self.contrast_visual(queries), dim=-1),
                nn.functional.normalize(self.contrast_text(state["question"][:, 0]), dim=-1),
                self.temperature,
                image_index=image_index,
                question_index=question_index,
                label_smoothing=self.config.label_smoothing,
            )
            output.loss = losses.total_loss(
                self.config,
                output.classification_loss,
                output.contrastive_loss,
                output.generation_loss,
            )
        return output.to_tuple() if return_dict is False else output

    def classify(self, state: dict[str, Any]) -> Tensor:
        """Logits of the answer classes, (batch, classes), from what `encode` gave."""
        visual, mask = state["visual"], state["attention_mask"]
        seen = mask.new_ones(visual.shape[:2])
        return self.classifier(visual, seen, state["text"], mask)

    @torch.no_grad()
    def write(self, state: dict[str, Any], **options):
        """Write an answer to each question from what `encode` gave; as `generate`."""
        return self.decoder.write(*self.decoder_input(state), **options)

    def decoder_input(self, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The tokens that the decoder attends to, (batch, tokens, its d_model), and their mask.

        They are the tokens of the fused streams that `encode` gave, visual then text, and the
        image's where the decoder reads it.
        """
        tokens = [self.decoder_projection(torch.cat((state["visual"], state["text"]), dim=1))]
        mask = [state["attention_mask"].new_ones(state["visual"].shape[:2])]
        mask.append(state["attention_mask"])
        if self.config.decoder_reads_image:
            tokens.append(self.image_projection(state["image"]))
            mask.append(mask[0].new_ones(state["image"].shape[:2]))
        return torch.cat(tokens, dim=1), torch.cat(mask, dim=1)

    def _generation_loss(self, tokens: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """The generation loss of the open questions; the others do not go through the decoder."""
        is_open = (labels != -100).any(1)
        if not is_open.any():
            # Distributed training waits for a gradient of every parameter. One sample without a
            # target gives the loss 0, and every parameter of the decoder the gradient 0.
            is_open = is_open.new_zeros(len(labels))
            is_open[0] = True
        labels = labels[is_open]
        logits = self.decoder.logits(tokens[is_open], mask[is_open], labels)
        return losses.generation_loss(logits, labels)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        **options,
    ):
        """Write an answer to each question.

        Args:
            pixel_values, input_ids, attention_mask, image_index: as in ``forward``.
            options: of transformers' ``generate``, such as max_new_tokens and num_beams.
        Returns:
            (batch, 1 + answer length) token ids, or what the options ask for.
        """
        state = self.encode(pixel_values, input_ids, attention_mask, image_index)
        return self.write(state, **options)


def _question_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The mask of a batch of questions as (batch, length) int64, checked.

    Its sum is taken for the number of a question's tokens, which must be the first ones.
    """
    if attention_mask is None:
        return torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"CMIMTL: attention_mask must have the shape of input_ids {tuple(input_ids.shape)}, got"
            f" {tuple(attention_mask.shape)}."
        )
    read = not (attention_mask.is_meta or torch.compiler.is_compiling() or torch.jit.is_tracing())
    mask = attention_mask.to(torch.int64)
    if read:
        lengths = mask.sum(1, keepdim=True)
        first = torch.arange(mask.shape[1], device=mask.device) < lengths
        wrong = ((first != attention_mask) | (lengths < 1)).any(1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                "CMIMTL: attention_mask must be 1 at a question's tokens, at least one, and 0 at"
                f" the padding after them, got {attention_mask[row].tolist()} in row {row}; let the"
                " tokenizer pad on the right."
            )
    return mask


def _first_of_each(index: Tensor) -> tuple[Tensor, Tensor]:
    """Number the distinct values of an index.

    (batch,) integers -> (batch,) the number of each sample's value among the distinct ones, counted
    from 0, and (distinct,) the sample in which each value stands first.
    """
    distinct, number = index.unique(return_inverse=True)
    position = torch.arange(len(index), device=index.device)
    first = position.new_full(distinct.shape, len(index))
    return number, first.scatter_reduce(0, number, position, "amin")


def _projection(inputs: int, outputs: int) -> nn.Module:
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)


AutoConfig.register(CMIMTLConfig.model_type, CMIMTLConfig)
AutoModelForVisualQuestionAnswering.register(CMIMTLConfig, CMIMTLForVisualQuestionAnswering)
