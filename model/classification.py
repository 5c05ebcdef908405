"""Labels or numbers for documents, from the tokens that the encoder keeps."""

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import can_return_tuple

from transpooler.model.config import TranspoolerConfig
from transpooler.model.encoder import EncoderOnlyModel, TranspoolerEncoder
from transpooler.model.input_checks import refuse_unknown


class TranspoolerForSequenceClassification(EncoderOnlyModel):
    """One linear layer over the mean of the kept slots, without a decoder.

    `num_labels`, `id2label` and `problem_type` of the configuration mean what they mean elsewhere in `transformers`.
    `from_pretrained` reads folders of this class, of the encoder alone and of the whole model (the classifier is new).
    """

    encoder_prefix = "model."
    accepts_loss_kwargs = False
    """Trainer would else hand in num_items_in_batch, of which the mean over documents knows nothing."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__(config)
        self.model = TranspoolerEncoder(config)
        self.classifier = nn.Linear(config.d_model, config.num_labels or 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Logits (B, num_labels), and with labels, int64 (B,) or float (B,) or (B, num_labels), the loss."""
        refuse_unknown(kwargs, self)
        encoded = self.model(
            input_ids, attention_mask, inputs_embeds, output_attentions, output_hidden_states, return_dict=True
        )
        document_BD = F.dropout(encoded.document_embedding(), self.config.dropout, self.training)
        logits = self.classifier(document_BD)
        return SequenceClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
